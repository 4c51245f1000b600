//! What forks cost on this machine: a cluster of three agents with data on the machine's disk, guests that write to theirs,
//! everything asked by the commands of `fpagent` through a node that neither leads nor holds the VM, beside a bare QEMU doing
//! the same with the same files, QEMU's own way (its whole state through a file), and the prototypes if they are at hand.
//! And what the replicated state costs: writes side by side with etcd, ten thousand VMs, a day's writes, where new VMs go; and forks onto other
//! hosts, beside QEMU's postcopy.
//!
//! `deploy/bench.sh` runs it. Figures are worth something beside others of the same run only.

mod bare;
mod beside_etcd;
mod draw;
mod etcd;
mod fake_host;
mod host;
mod hosts;
mod inside;
mod many;
mod planner;
mod postcopy;
mod qmp;
mod report;
mod run;
mod scenario;
mod state;
mod store;
mod writers;
mod yardstick;

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Measures forks and draws what was measured.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  bench run --quick --json target/bench.json\n  bench raft --json target/bench.json\n  bench draw docs/benchmarks.json docs/benchmarks.svg"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures, prints a table and writes JSON.
    Run {
        /// The short way: about five minutes.
        #[arg(long)]
        quick: bool,
        /// Only scenarios that have this in their name or settings, such as `deep` or `memory_mib: 8192`.
        #[arg(long, default_value = "")]
        only: String,
        /// Where the JSON goes.
        #[arg(long)]
        json: PathBuf,
        /// A folder with fork_floor.py and tracked_capture.py, to be run beside.
        #[arg(long)]
        prototypes: Option<PathBuf>,
    },
    /// Measures writes side by side with etcd.
    Raft {
        /// The short way: about half a minute.
        #[arg(long)]
        quick: bool,
        /// Where the JSON goes; what else is in it stays.
        #[arg(long)]
        json: PathBuf,
    },
    /// Measures a state of ten thousand VMs, which a host claims that has none.
    State {
        /// The short way.
        #[arg(long)]
        quick: bool,
        /// Where the JSON goes; what else is in it stays.
        #[arg(long)]
        json: PathBuf,
    },
    /// Measures what a day's writes leave on disk.
    Store {
        /// The short way: a tenth of a day.
        #[arg(long)]
        quick: bool,
        /// Where the JSON goes; what else is in it stays.
        #[arg(long)]
        json: PathBuf,
    },
    /// Measures how long it takes to decide where a thousand forks go, of a thousand nodes with a hundred thousand VMs.
    Planner {
        /// The short way.
        #[arg(long)]
        quick: bool,
        /// Where the JSON goes; what else is in it stays.
        #[arg(long)]
        json: PathBuf,
    },
    /// Measures forks onto other hosts, beside QEMU's postcopy.
    Hosts {
        /// The short way.
        #[arg(long)]
        quick: bool,
        /// Where the JSON goes; what else is in it stays.
        #[arg(long)]
        json: PathBuf,
    },
    /// Draws a JSON of `run` as SVG.
    Draw {
        /// The JSON.
        from: PathBuf,
        /// The picture.
        to: PathBuf,
    },
    /// Prints a JSON of `run` as a table.
    Show {
        /// The JSON.
        from: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Run {
            quick,
            only,
            json,
            prototypes,
        } => {
            let mut report = report::Report {
                quick,
                ..report::Report::default()
            };
            let ran = run::run(&mut report, &only, prototypes.as_deref());
            // What was measured before something failed is kept.
            save(&report, &json)?;
            print!("{}", report.table());
            ran
        }
        Command::Raft { quick, json } => beside(&json, |report| beside_etcd::run(report, quick)),
        Command::State { quick, json } => beside(&json, |report| state::run(report, quick)),
        Command::Store { quick, json } => beside(&json, |report| store::run(report, quick)),
        Command::Planner { quick, json } => beside(&json, |report| planner::run(report, quick)),
        Command::Hosts { quick, json } => beside(&json, |report| hosts::run(report, quick)),
        Command::Draw { from, to } => draw::draw(&load(&from)?, &to),
        Command::Show { from } => {
            print!("{}", load(&from)?.table());
            Ok(())
        }
    }
}

/// Measures something that has a place of its own in a report, and prints that.
fn beside(
    json: &PathBuf,
    measure: impl FnOnce(&mut report::Report) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut report = match json.exists() {
        true => load(json)?,
        false => report::Report::default(),
    };
    let mut measured = report::Report::default();
    measure(&mut measured)?;
    print!("{}", measured.table());
    report.take(measured);
    save(&report, json)
}

fn save(report: &report::Report, path: &PathBuf) -> anyhow::Result<()> {
    fs::write(path, serde_json::to_vec_pretty(report)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn load(path: &PathBuf) -> anyhow::Result<report::Report> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no report", path.display()))
}
