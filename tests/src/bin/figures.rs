//! Prints what forks cost on this machine, on a cluster of three agents with data on the machine's disk and a guest that
//! writes to its disk ten times a second: the parent's pause, and the time from the request's arrival to the child running.
//!
//! `cargo run --release -p fp-tests --bin figures [ROUNDS]`; figures are worth something beside others of the same run only.

use anyhow::Context as _;
use harness::cluster::Cluster;
use serde_json::Value;

/// Of several forks: pause, time to running, and the parts of the pause; milliseconds.
#[derive(Default)]
struct Series(Vec<(f64, f64, Value)>);

impl Series {
    fn add(&mut self, fork: &Value) -> anyhow::Result<()> {
        let children = fork["children"].as_array().context("no children")?;
        let last = children
            .iter()
            .filter_map(|child| child["runningMs"].as_f64())
            .fold(0.0, f64::max);
        for child in children {
            anyhow::ensure!(child["error"] == "", "{child}");
        }
        self.0.push((
            fork["pauseMs"].as_f64().context("no pause")?,
            last,
            fork["capture"].clone(),
        ));
        Ok(())
    }

    fn print(&self, what: &str) {
        let (pauses, times): (Vec<f64>, Vec<f64>) = self
            .0
            .iter()
            .map(|(pause, time, _)| (*pause, *time))
            .unzip();
        let part = |name: &str| {
            median(
                self.0
                    .iter()
                    .filter_map(|(_, _, capture)| capture[name].as_f64())
                    .collect(),
            )
        };
        println!(
            "{what:28} n={:<3} pause {:5.1} (max {:5.1})  running {:6.1} (max {:6.1})  ahead {:5.1} stop {:4.1} disk {:4.1} devices {:4.1} scan {:4.1} copy {:4.1} cont {:4.1} write {:4.1}",
            self.0.len(),
            median(pauses.clone()),
            max(&pauses),
            median(times.clone()),
            max(&times),
            part("aheadMs"),
            part("stopMs"),
            part("diskMs"),
            part("devicesMs"),
            part("scanMs"),
            part("copyMs"),
            part("contMs"),
            part("writeMs"),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

struct Bench {
    cluster: Cluster,
    through: usize,
}

impl Bench {
    fn fork(&self, args: &[&str]) -> anyhow::Result<Value> {
        self.cluster
            .node(self.through)
            .json(&[&["fork"], args].concat())
    }

    fn parent(&self, name: &str) -> anyhow::Result<()> {
        let create = [
            "vm", "create", name, "--image", "tiny", "--node", "node2", "--wait",
        ];
        self.cluster.node(1).fp(&create)?.success()?;
        self.cluster.wait_pulses(name, 10)
    }

    fn remove(&self, names: &[&str]) -> anyhow::Result<()> {
        self.cluster
            .node(1)
            .fp(&[&["vm", "rm", "--force"], names].concat())?
            .success()
    }

    /// A fork that is ended again before the next, so that guests do not add up.
    fn once(&self, series: &mut Series, parent: &str, count: u32) -> anyhow::Result<()> {
        let fork = self.fork(&[parent, "-n", &count.to_string()])?;
        series.add(&fork)?;
        let children = fork["children"].as_array().context("no children")?;
        let names: Vec<&str> = children
            .iter()
            .filter_map(|child| child["name"].as_str())
            .collect();
        self.remove(&names)?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    let bench = Bench {
        cluster,
        through: 3,
    };

    let (mut first, mut early, mut tenth) =
        (Series::default(), Series::default(), Series::default());
    let (mut deep, mut ten, mut known) = (Series::default(), Series::default(), Series::default());
    for round in 0..rounds {
        let name = format!("p{round}");
        bench.parent(&name)?;
        bench.once(&mut first, &name, 1)?;
        for again in 2..=10 {
            bench.once(if again == 10 { &mut tenth } else { &mut early }, &name, 1)?;
        }
        bench.once(&mut ten, &name, 10)?;
        bench
            .cluster
            .node(1)
            .fp(&["snapshot", "create", &name, &format!("s{round}")])?
            .success()?;
        bench.once(&mut known, &format!("{name}@s{round}"), 1)?;
        let mut line = vec![name.clone()];
        for depth in 1..=5 {
            let child = format!("{name}-d{depth}");
            let fork = bench.fork(&[&line[depth - 1], "--name", &child])?;
            if depth == 5 {
                deep.add(&fork)?;
            }
            bench
                .cluster
                .node(1)
                .fp(&["vm", "pause", &line[depth - 1]])?
                .success()?;
            line.push(child);
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        bench.remove(&line.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    first.print("first capture, 1 fork");
    early.print("captures 2 to 9, 1 fork");
    tenth.print("tenth fork of one parent");
    deep.print("depth 5");
    ten.print("10 forks");
    known.print("1 fork of a snapshot");
    Ok(())
}
