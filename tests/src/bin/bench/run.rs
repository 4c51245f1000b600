//! Carrying the scenarios out on a cluster of real agents.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    wait_for,
};
use serde_json::Value;

use crate::{
    host,
    report::{Report, Row, Series},
    scenario::{self, Guest, Scenario},
    yardstick::{self, Floor},
};

/// Where the VMs live. Requests go through another node, and not the leader where that can be.
const HOLDER: &str = "node2";
/// A quiet moment between measurements, so that what was ended is gone.
const REST: Duration = Duration::from_millis(300);

/// Measures all scenarios with this in their names, and adds them to a report.
pub fn run(report: &mut Report, only: &str, prototypes: Option<&Path>) -> anyhow::Result<()> {
    for scenario in scenario::all(report.quick) {
        let said = format!("{scenario:?}").to_lowercase();
        if !said.contains(&only.to_lowercase()) {
            continue;
        }
        eprintln!("==> {said}");
        let begun = Instant::now();
        // A cluster of its own: what one scenario leaves behind is not in the next one's figures.
        let mut bench = Bench::new()?;
        if report.machine.is_empty() {
            report.machine = host::describe(bench.cluster.folder())?;
        }
        let rows = match &scenario {
            Scenario::Repeated {
                guest,
                parents,
                rounds,
            } => bench.repeated(*guest, *parents, *rounds),
            Scenario::Deep {
                guest,
                depths,
                rounds,
            } => bench.deep(*guest, depths, *rounds),
            Scenario::Ready { rounds } => bench.ready(*rounds),
            Scenario::Inside { rounds, mib } => bench.inside(*rounds, *mib),
            Scenario::Burst {
                forks,
                warm,
                rounds,
            } => bench.burst(*forks, *warm, *rounds),
            Scenario::Many { forks } => bench.many(*forks),
            Scenario::Yardsticks { rounds } => yardstick::measure(&bench, *rounds, prototypes),
        };
        eprintln!("    took {:.0} s", begun.elapsed().as_secs_f64());
        bench.cluster.tells = rows.is_err();
        for mut row in rows.with_context(|| format!("{scenario:?}"))? {
            row.scenario = scenario.name().to_owned();
            report.rows.push(row);
        }
    }
    Ok(())
}

/// A cluster to measure on.
pub struct Bench {
    pub cluster: Cluster,
    leader: usize,
    pub other: usize,
}

/// What forks cost, one after the other.
#[derive(Default)]
struct Costs {
    pause: Vec<f64>,
    running: Vec<f64>,
    stream: Vec<f64>,
    notes: Vec<String>,
}

impl Costs {
    fn add(&mut self, fork: &Value) -> anyhow::Result<()> {
        let mut last = 0.0_f64;
        for child in fork["children"].as_array().context("no children")? {
            anyhow::ensure!(child["error"] == "", "{child}");
            last = last.max(child["runningMs"].as_f64().context("no runningMs")?);
        }
        self.running.push(last);
        if let Some(capture) = fork["capture"].as_object() {
            self.pause
                .push(fork["pauseMs"].as_f64().context("no pause")?);
            self.notes.extend(
                capture
                    .get("note")
                    .and_then(Value::as_str)
                    .filter(|note| !note.is_empty())
                    .map(str::to_owned),
            );
        }
        Ok(())
    }

    fn row(self, what: impl Into<String>) -> Row {
        let count = self.stream.len();
        Row {
            what: what.into(),
            forks: 1,
            pause_ms: Series::of(self.pause),
            running_ms: Series::of(self.running),
            stream_kib: (count > 0).then(|| self.stream.iter().sum::<f64>() / count as f64),
            note: self.notes.into_iter().next().unwrap_or_default(),
            ..Row::default()
        }
    }
}

fn median(row: &Row) -> Option<f64> {
    row.running_ms.as_ref().map(|series| series.median)
}

/// One figure as a part of another, in words.
fn ratio(one: Option<f64>, other: Option<f64>, of: &str) -> String {
    match (one, other) {
        (Some(one), Some(other)) => format!("{:.2} {of}", one / other),
        _ => String::new(),
    }
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let mut cluster = Cluster::start(3)?;
        cluster.tells = false;
        let leader = cluster.leader()?;
        let other = (1..=3)
            .find(|node| *node != leader && *node != 2)
            .context("no third node")?;
        Ok(Self {
            cluster,
            leader,
            other,
        })
    }

    pub fn fp(&self, args: &[&str]) -> anyhow::Result<()> {
        self.cluster.node(self.other).fp(args)?.success()
    }

    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        self.cluster.node(self.other).json(args)
    }

    /// Boots a VM whose guest does as it should.
    pub fn boot(&self, name: &str, guest: Guest) -> anyhow::Result<()> {
        let mut words = if guest.records { "fp.pulse" } else { "" }.to_owned();
        for (flag, mib) in [("fp.fill", guest.fill_mib), ("fp.rate", guest.rate_mib)] {
            if mib > 0 {
                words.push_str(&format!(" {flag}={mib}"));
            }
        }
        let image = format!(
            "tiny-{}-{}-{}",
            guest.fill_mib, guest.rate_mib, guest.records
        );
        if self.cluster.node(1).fp(&["image", "show", &image])?.code != 0 {
            self.cluster.import(&image, &words)?;
        }
        let memory = format!("{}M", guest.memory_mib);
        self.fp(&[
            "vm", "create", name, "--image", &image, "--node", HOLDER, "--memory", &memory,
            "--wait",
        ])?;
        if guest.fill_mib > 0 {
            wait_for("the guest's memory to be filled", 10 * PATIENCE, || {
                let log = self.cluster.node(1).fp(&["logs", name])?;
                Ok(log.out.contains("fp.fill done").then_some(()))
            })?;
        }
        if !guest.records {
            return Ok(());
        }
        self.cluster.wait_pulses(name, 10)
    }

    pub fn remove(&self, names: &[String]) -> anyhow::Result<()> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.fp(&[&["vm", "rm", "--force"], &names[..]].concat())?;
        sleep(REST);
        Ok(())
    }

    /// A fork through a node; its children's names.
    pub fn fork(&self, through: usize, args: &[&str]) -> anyhow::Result<(Value, Vec<String>)> {
        let fork = self
            .cluster
            .node(through)
            .json(&[&["fork"], args].concat())?;
        let children = fork["children"].as_array().context("no children")?;
        let names = children
            .iter()
            .filter_map(|child| child["name"].as_str())
            .map(str::to_owned)
            .collect();
        Ok((fork, names))
    }

    /// One fork that is ended again.
    fn once(&self, costs: &mut Costs, through: usize, source: &str) -> anyhow::Result<()> {
        let (fork, names) = self.fork(through, &[source])?;
        costs.add(&fork)?;
        let shown = self.cluster.node(through).json(&[
            "snapshot",
            "show",
            fork["snapshot"].as_str().context("no snapshot")?,
        ])?;
        costs.stream.extend(
            shown["streamBytes"]
                .as_f64()
                .or_else(|| shown["streamBytes"].as_str()?.parse().ok())
                .map(|bytes| bytes / 1024.0),
        );
        self.remove(&names)
    }

    fn repeated(&self, guest: Guest, parents: u32, rounds: u32) -> anyhow::Result<Vec<Row>> {
        let (mut first, mut between, mut last) =
            (Costs::default(), Costs::default(), Costs::default());
        for parent in 1..=parents {
            let name = format!("p{parent}");
            self.boot(&name, guest)?;
            for round in 1..=rounds {
                let costs = match round {
                    1 => &mut first,
                    _ if round == rounds => &mut last,
                    _ => &mut between,
                };
                if let (2.., Some(seconds)) = (round, guest.fill_mib.checked_div(guest.rate_mib)) {
                    // So much has been written since the capture before.
                    sleep(Duration::from_secs(u64::from(seconds)));
                }
                self.once(costs, self.other, &name)?;
            }
            self.remove(&[name])?;
        }
        let what = format!(
            "{} MiB guest, {} filled, {} MiB/s",
            guest.memory_mib, guest.fill_mib, guest.rate_mib
        );
        let all = Series::of([&first.pause[..], &between.pause, &last.pause].concat());
        let mut rows = vec![
            first.row(format!("{what}: first fork")),
            between.row(format!("{what}: between")),
            last.row(format!("{what}: fork {rounds}")),
        ];
        rows.push(Row {
            what: format!("{what}: all"),
            forks: 1,
            pause_ms: all,
            ..Row::default()
        });
        Ok(rows)
    }

    fn deep(&self, guest: Guest, depths: &[u32], rounds: u32) -> anyhow::Result<Vec<Row>> {
        self.boot("d0", guest)?;
        let (mut line, mut rows) = (vec!["d0".to_owned()], Vec::new());
        for depth in 1..=depths.iter().copied().max().unwrap_or_default() {
            let parent = line[line.len() - 1].clone();
            // The one that is forked at depth N is itself N - 1 forks away from the guest that was booted.
            if depths.contains(&depth) {
                let mut costs = Costs::default();
                for _ in 0..rounds {
                    self.once(&mut costs, self.other, &parent)?;
                }
                let what = if guest.records {
                    ""
                } else {
                    "an idle guest at "
                };
                rows.push(costs.row(format!("{what}depth {depth}, forked {rounds} times")));
            }
            let child = format!("d{depth}");
            self.fork(self.other, &[&parent, "--name", &child])?;
            self.fp(&["vm", "pause", &parent])?;
            line.push(child);
            if guest.records {
                self.cluster.wait_pulses(&line[line.len() - 1], 3)?;
            } else {
                sleep(REST);
            }
        }
        self.remove(&line)?;
        Ok(rows)
    }

    /// One fork of a snapshot in a request.
    fn ready(&mut self, rounds: u32) -> anyhow::Result<Vec<Row>> {
        self.boot("parent", scenario::quiet(256))?;
        self.fp(&["snapshot", "create", "parent", "s"])?;
        self.fp(&["vm", "pause", "parent"])?;
        // Before any is asked for: it begins with none that is ready.
        let mut costs = Costs::default();
        for _ in 0..rounds {
            self.once(&mut costs, self.other, "@s")?;
        }
        let mut rows = vec![costs.row("nobody asked for it, forked again and again")];
        for (what, through) in [
            ("asked at the leader", self.leader),
            ("asked at another node", self.other),
        ] {
            self.warm("@s", 4)?;
            let mut costs = Costs::default();
            for _ in 0..rounds {
                self.once(&mut costs, through, "@s")?;
                self.wait_warm("@s", 4)?;
            }
            rows.push(costs.row(format!("preloaded, {what}")));
        }
        self.fp(&["snapshot", "warm", "@s", "-n", "0"])?;
        self.keep_nothing_ready()?;
        // By turns: what the host does beside it meets both.
        let (mut costs, mut floor) = (Costs::default(), Floor::of(self, "@s")?);
        for _ in 0..rounds {
            floor.once(true)?;
            self.once(&mut costs, self.other, "@s")?;
        }
        let (floor, row) = (
            floor.row("floor, by turns with the next"),
            costs.row("nothing ready"),
        );
        let note = ratio(median(&row), median(&floor), "of the floor's time");
        rows.extend([floor, Row { note, ..row }]);
        self.restart_holder(&["--ready-forks", "0", "--waiting-processes", "2"])?;
        let mut costs = Costs::default();
        for _ in 0..rounds {
            // Until what was taken is there again.
            sleep(2 * REST);
            self.once(&mut costs, self.other, "@s")?;
        }
        rows.push(costs.row("from a process in waiting"));
        Ok(rows)
    }

    /// Has the node of the VMs keep no forks ready unless it is asked to.
    fn keep_nothing_ready(&mut self) -> anyhow::Result<()> {
        self.restart_holder(&["--ready-forks", "0"])
    }

    /// Starts the agent of the VMs' node anew, with these options.
    pub fn restart_holder(&mut self, options: &[&str]) -> anyhow::Result<()> {
        let holder = self.cluster.node_mut(2);
        holder.set_options(options);
        holder.terminate()?;
        holder.start()?;
        holder.wait_answers()?;
        self.cluster.wait_online(3)?;
        self.leader = self.cluster.leader()?;
        Ok(())
    }

    fn warm(&self, snapshot: &str, count: u32) -> anyhow::Result<()> {
        self.fp(&["snapshot", "warm", snapshot, "-n", &count.to_string()])?;
        self.wait_warm(snapshot, count)
    }

    fn wait_warm(&self, snapshot: &str, count: u32) -> anyhow::Result<()> {
        wait_for("preloaded children", 5 * PATIENCE, || {
            let shown = self.json(&["snapshot", "show", snapshot])?;
            Ok((shown["ready"].as_u64().unwrap_or_default() == u64::from(count)).then_some(()))
        })
    }

    /// Many at once: first standing still, for their processor time and memory, then running.
    fn burst(&mut self, forks: u32, warm: bool, rounds: u32) -> anyhow::Result<Vec<Row>> {
        self.keep_nothing_ready()?;
        self.boot("parent", scenario::IDLE)?;
        self.fp(&["snapshot", "create", "parent", "s"])?;
        self.fp(&["vm", "pause", "parent"])?;
        let mut rows = Vec::new();
        for paused in [true, false] {
            let mut floor = None;
            if paused && !warm {
                let beside = floor.insert(Floor::of(self, "@s")?);
                for _ in 0..10 {
                    beside.once(false)?;
                }
            }
            let (mut costs, mut cpu, mut taken) = (Costs::default(), 0.0, 0.0);
            for _ in 0..rounds {
                let (mib, ms) = self.many_at_once(&mut costs, forks, warm, paused)?;
                taken += mib / f64::from(forks * rounds);
                cpu += ms / f64::from(forks * rounds);
            }
            let mut note = String::new();
            if let Some(floor) = &mut floor {
                // Before and after, as the host is not always the same.
                for _ in 0..10 {
                    floor.once(false)?;
                }
                let row = floor.row("floor, 10 before the next and 10 after");
                note = ratio(Some(cpu), row.cpu_ms, "of the floor's processor time");
                rows.push(row);
            }
            rows.push(Row {
                forks,
                note,
                cpu_ms: paused.then_some(cpu),
                memory_mib: (!warm).then_some(taken),
                ..costs.row(format!(
                    "{}{}",
                    if warm { "preloaded" } else { "nothing ready" },
                    if paused { ", left paused" } else { "" }
                ))
            });
        }
        Ok(rows)
    }

    /// So many in one request, ended again: the memory that they took, MiB, and the processor time, ms.
    fn many_at_once(
        &self,
        costs: &mut Costs,
        forks: u32,
        warm: bool,
        paused: bool,
    ) -> anyhow::Result<(f64, f64)> {
        self.warm("@s", if warm { forks } else { 0 })?;
        sleep(10 * REST);
        let (free, agents) = (host::available()?, self.agents_cpu());
        // The parent has used some, and what is ready too: only what comes now counts.
        let others = self.guests_cpu()?;
        let count = forks.to_string();
        let mut args = vec!["@s", "-n", &count];
        args.extend(paused.then_some("--paused"));
        let (fork, names) = self.fork(self.other, &args)?;
        let agents = self.agents_cpu() - agents;
        let children = self.guests_cpu()? - others;
        costs.add(&fork)?;
        let taken = free.saturating_sub(host::available()?) as f64 / f64::from(1 << 20);
        self.remove(&names)?;
        Ok((taken, agents + children))
    }

    fn guests_cpu(&self) -> anyhow::Result<f64> {
        Ok(self
            .cluster
            .processes()?
            .into_iter()
            .map(host::cpu_ms)
            .sum())
    }

    fn agents_cpu(&self) -> f64 {
        self.cluster
            .agents
            .iter()
            .filter_map(|agent| agent.pid())
            .map(host::cpu_ms)
            .sum()
    }
}
