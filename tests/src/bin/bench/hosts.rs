//! Forks onto another host, over a link that passes so much a second: while the bytes come, onto one that has the base, and the same guest by
//! QEMU's postcopy over a link of the same rate.

use std::{
    fs,
    path::Path,
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use harness::{
    cluster::{Cluster, PATIENCE},
    wait_for,
};

use crate::{
    bare::Bare,
    host, postcopy,
    report::{Held, Report, Row, Series},
};

/// A link.
#[derive(Clone, Copy)]
struct Link {
    name: &'static str,
    /// Bytes a second.
    rate: u64,
    /// Bounds of a fork onto a host that has nothing, milliseconds: running, and the first answer of `exec`. Without one it is bounded by
    /// what all of its bytes take.
    most: Option<(f64, f64)>,
}

const LINKS: [Link; 2] = [
    Link {
        name: "1 Gbit/s",
        rate: 119 << 20,
        most: Some((400.0, 1_000.0)),
    },
    Link {
        name: "100 Mbit/s",
        rate: 12 << 20,
        most: None,
    },
];
/// Bounds, milliseconds, and MiB.
const MOST_BEYOND_LINK_MS: f64 = 100.0;
const MOST_KNOWN_MS: f64 = 60.0;
const MOST_KNOWN_MIB: f64 = 2.5;
/// What the guest has in its memory that cannot be packed, MiB, and writes between two forks, KiB.
const NOISE_MIB: u32 = 80;
const WRITTEN_KIB: u32 = 1_300;
/// What a guest does that shows when it goes on: it prints a line fifty times a second.
const TICKS: &str =
    "setsid sh -c 'while :; do echo tick; usleep 20000; done' > /dev/console 2>&1 < /dev/null &";
const MIB: f64 = 1_048_576.0;

/// Measures, and adds what was measured to a report.
pub fn run(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let rounds = if quick { 2 } else { 5 };
    for link in LINKS {
        let name = link.name;
        let (mut early, mut other) = (Early::default(), Early::default());
        for round in 1..=rounds {
            eprintln!("==> {name}, {round} of {rounds}");
            // A cluster of its own: the host that is forked onto has nothing.
            let hosts = Hosts::new(link.rate)?;
            report.machine = host::describe(hosts.cluster.folder())?;
            hosts.early(&mut early)?;
            hosts.postcopy(&mut other, link.rate)?;
        }
        report.held.extend(early.held(link)?);
        report
            .rows
            .push(early.row(format!("{name}: a fork, in a FUSE file")));
        report
            .rows
            .push(other.row(format!("{name}: QEMU's postcopy of a running guest")));
    }
    eprintln!("==> a host that has the base");
    let hosts = Hosts::new(LINKS[0].rate)?;
    report.held.extend(hosts.known(if quick { 5 } else { 15 })?);
    Ok(())
}

/// What it took, milliseconds from the request on, and bytes.
#[derive(Default)]
struct Early {
    running: Vec<f64>,
    answer: Vec<f64>,
    printed: Vec<f64>,
    whole: Vec<f64>,
    bytes: Vec<f64>,
}

impl Early {
    fn held(&self, link: Link) -> anyhow::Result<Vec<Held>> {
        let bytes = Series::of(self.bytes.clone()).context("nothing measured")?;
        let on_link = bytes.median / link.rate as f64 * 1e3;
        let held = |what: &str, figures: &[f64], bound, note: &str| {
            let what = format!(
                "{}, onto a host that has nothing: {what}, median",
                link.name
            );
            let series = Series::of(figures.to_vec()).context("nothing measured")?;
            let all: Vec<String> = figures.iter().map(|ms| format!("{ms:.0}")).collect();
            let note = format!("{}{note}", all.join(", "));
            anyhow::Ok(Held::at_most("hosts", &what, series.median, bound, "ms").noted(note))
        };
        let come = format!(
            "; {:.1} MiB come, which take {on_link:.0} ms",
            bytes.median / MIB
        );
        Ok(match link.most {
            Some((running, answer)) => vec![
                held("running", &self.running, running, &come)?,
                held("first answer of exec", &self.answer, answer, "")?,
            ],
            None => {
                let most = on_link + MOST_BEYOND_LINK_MS;
                vec![held("running", &self.running, most, &come)?]
            }
        })
    }

    fn row(self, what: String) -> Row {
        let median = |figures: Vec<f64>| Series::of(figures).map_or(0.0, |series| series.median);
        Row {
            scenario: "hosts".to_owned(),
            what,
            forks: 1,
            running_ms: Series::of(self.running),
            note: format!(
                "printed after {:.0} ms, all there after {:.0}",
                median(self.printed),
                median(self.whole)
            ),
            ..Row::default()
        }
    }
}

/// Three hosts, and on the first a guest.
struct Hosts {
    cluster: Cluster,
}

impl Hosts {
    fn new(rate: u64) -> anyhow::Result<Self> {
        let mut cluster = Cluster::start_apart(3)?;
        cluster.tells = false;
        let rate = rate.to_string();
        for number in 1..=3 {
            let agent = cluster.node_mut(number);
            agent.terminate()?;
            // Where forks come: as many as an agent has unless it is told otherwise.
            let waiting = if number == 1 { "0" } else { "2" };
            agent.set_options(&["--transfer-rate", &rate, "--waiting-processes", waiting]);
            agent.start()?;
            agent.wait_answers()?;
        }
        cluster.wait_online(3)?;
        cluster.import("tiny", "")?;
        let hosts = Self { cluster };
        hosts.fp(&[
            "vm", "create", "parent", "--image", "tiny", "--node", "node1", "--memory", "256M",
            "--wait",
        ])?;
        hosts.fp(&["vm", "wait", "parent", "--for", "ready"])?;
        let fill =
            format!("dd if=/dev/urandom of=/dev/shm/noise bs=1M count={NOISE_MIB} 2>&1; {TICKS}");
        hosts.fp(&["exec", "parent", "--", "sh", "-c", &fill])?;
        sleep(Duration::from_secs(1));
        Ok(hosts)
    }

    /// Through a node that has neither the parent nor the child.
    fn fp(&self, args: &[&str]) -> anyhow::Result<()> {
        self.cluster.node(3).fp(args)?.success()
    }

    /// A fork of a running VM onto a host that has nothing of it, not even the image.
    fn early(&self, early: &mut Early) -> anyhow::Result<()> {
        let data = self.cluster.node(2).data.clone();
        let begun = Instant::now();
        let printed = spawn(move || {
            wait_printed(&data)?;
            anyhow::Ok(begun.elapsed())
        });
        let fork = ["fork", "parent", "--node", "node2", "--name", "far"];
        let fork = self.cluster.node(3).json(&fork)?;
        let child = &fork["children"][0];
        anyhow::ensure!(child["error"] == "", "{child}");
        self.fp(&["exec", "far", "--", "true"])?;
        early.answer.push(millis(begun));
        early
            .running
            .push(child["runningMs"].as_f64().context("no runningMs")?);
        let printed = printed.join().map_err(|_| anyhow!("it panicked"))??;
        early.printed.push(printed.as_secs_f64() * 1e3);
        self.until_whole()?;
        early.whole.push(millis(begun));
        early.bytes.push(self.bytes_of_last()?);
        Ok(())
    }

    /// Waits until all is there that the second host uses.
    fn until_whole(&self) -> anyhow::Result<()> {
        wait_for("all of it", PATIENCE, || {
            Ok((!is_coming(&self.cluster.node(2).data)?).then_some(()))
        })
    }

    /// The bytes that came for the fork before, as the node says that fetched them.
    fn bytes_of_last(&self) -> anyhow::Result<f64> {
        wait_for("what came to be told", PATIENCE, || {
            let log = self.cluster.node(2).log_text();
            let mut lines = log.lines().rev();
            let told = lines.find(|line| line.contains("a snapshot was fetched"));
            let bytes = told.and_then(|line| line.split("bytes=").nth(1)?.split(' ').next());
            Ok(bytes.and_then(|bytes| bytes.parse().ok()))
        })
    }

    /// The same guest, that QEMU moves by itself while it runs.
    fn postcopy(&self, other: &mut Early, rate: u64) -> anyhow::Result<()> {
        let data = &self.cluster.node(1).data;
        self.fp(&["snapshot", "create", "parent", "moment"])?;
        let local = [
            "fork", "@moment", "--node", "node1", "--name", "near", "--paused",
        ];
        let fork = self.cluster.node(3).json(&local)?;
        anyhow::ensure!(fork["children"][0]["error"] == "", "{fork}");
        let pid = self.cluster.vm(3, "near")?["pid"].as_u64();
        let bare = Bare::like(
            pid.context("it has no process")?,
            data,
            self.cluster.folder(),
        )?;
        let mut streams = Vec::new();
        for entry in fs::read_dir(data.join("streams"))? {
            let entry = entry?;
            streams.push((entry.metadata()?.modified()?, entry.path()));
        }
        // The moment's, which was written last.
        let (_, stream) = streams.into_iter().max().context("no stream")?;
        let moved = postcopy::once(&bare, &stream, rate)?;
        other.running.push(moved.running);
        other.printed.push(moved.printed);
        other.whole.push(moved.whole);
        Ok(())
    }

    /// Forks onto a host that has the base, by turns with forks on the parent's own.
    fn known(&self, rounds: u32) -> anyhow::Result<[Held; 2]> {
        let (mut far, mut near, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        let write =
            format!("dd if=/dev/urandom of=/dev/shm/written bs=1k count={WRITTEN_KIB} 2>&1");
        // It stays, and its base with it.
        let holds = ["fork", "parent", "--node", "node2", "--name", "holds"];
        self.fp(&holds)?;
        self.until_whole()?;
        for _ in 0..rounds {
            for (node, running) in [("node2", &mut far), ("node1", &mut near)] {
                self.fp(&["exec", "parent", "--", "sh", "-c", &write])?;
                let fork = ["fork", "parent", "--node", node, "--name", "known"];
                let fork = self.cluster.node(3).json(&fork)?;
                let child = &fork["children"][0];
                anyhow::ensure!(child["error"] == "", "{child}");
                self.until_whole()?;
                running.push(child["runningMs"].as_f64().context("no runningMs")?);
                if node == "node2" {
                    bytes.push(self.bytes_of_last()? / MIB);
                }
                self.fp(&["vm", "rm", "--force", "known"])?;
                sleep(Duration::from_millis(300));
            }
        }
        let series = |figures| Series::of(figures).context("nothing measured");
        let (far, near, bytes) = (series(far)?, series(near)?, series(bytes)?);
        let what = "onto a host that has the base";
        Ok([
            Held::at_most(
                "hosts",
                &format!("{what}: running, median"),
                far.median,
                MOST_KNOWN_MS,
                "ms",
            )
            .noted(format!(
                "most of {} {:.0}; on its own host by turns {:.0}",
                far.n, far.max, near.median
            )),
            Held::at_most(
                "hosts",
                &format!("{what}: come for {WRITTEN_KIB} KiB written, most"),
                bytes.max,
                MOST_KNOWN_MIB,
                "MiB",
            ),
        ])
    }
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Waits until a guest of a node has printed something.
fn wait_printed(data: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        for entry in fs::read_dir(data.join("vms"))? {
            let console = entry?.path().join("console.log");
            if postcopy::printed(&console) {
                return Ok(());
            }
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "no guest prints anything");
        sleep(Duration::from_millis(1));
    }
}

/// Whether a node uses something that has not come yet: where it will be, a link is.
fn is_coming(data: &Path) -> anyhow::Result<bool> {
    for folder in ["bases", "layers", "images"] {
        for entry in fs::read_dir(data.join(folder))? {
            if entry?.file_type()?.is_symlink() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
