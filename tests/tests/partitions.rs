//! Clusters of three and of five agents, each on a host of its own, while links and processes fail at random and clients work: what
//! the clients were answered is linearizable, nothing that was acknowledged is missing, all nodes come to one state, and no agent
//! ends by itself.
//!
//! `FP_FAULT_SECONDS` says for how long each (60), `FP_FAULT_SEED` with which numbers; a failure prints how to repeat it.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{
    cluster::Cluster,
    nemesis::{Fault, Nemesis, none_ended},
    random::{seed, setting},
    workload::{Load, Workload, agree, is_linearizable},
};

/// How long, unless it is said.
const SECONDS: u64 = 60;

fn survives(nodes: usize, load: Load) -> anyhow::Result<()> {
    let seconds = setting("FP_FAULT_SECONDS")?.unwrap_or(SECONDS);
    let seed = seed("FP_FAULT_SEED")?;
    eprintln!("seed {seed}");
    run(nodes, load, Duration::from_secs(seconds), seed).with_context(|| {
        format!(
            "again: FP_FAULT_SEED={seed} FP_FAULT_SECONDS={seconds} cargo nextest run -p fp-tests --test partitions"
        )
    })
}

fn run(nodes: usize, load: Load, time: Duration, seed: u64) -> anyhow::Result<()> {
    let mut cluster = Cluster::start_apart(nodes)?;
    cluster.import("tiny", "")?;
    let workload = Workload::begin(&cluster, load, seed)?;
    let mut nemesis = Nemesis::new(seed);
    let begun = Instant::now();
    let mut faults = 0;
    while begun.elapsed() < time && !workload.is_broken() {
        nemesis.strike(&mut cluster)?;
        faults += 1;
    }
    for agent in &mut cluster.agents {
        agent.wait_answers()?;
    }
    cluster.wait_online(nodes)?;
    let history = workload.end(&cluster)?;
    eprintln!(
        "{faults} faults, {} operations answered, {} not",
        history.answered(),
        history.unanswered()
    );
    none_ended(&mut cluster)?;
    is_linearizable(&history)?;
    agree(&cluster)
}

#[test]
fn three_agents_survive_what_fails_at_random() -> anyhow::Result<()> {
    let load = Load {
        clients: 8,
        forkers: 1,
    };
    survives(3, load)
}

#[test]
fn five_agents_survive_what_fails_at_random() -> anyhow::Result<()> {
    let load = Load {
        clients: 8,
        forkers: 0,
    };
    survives(5, load)
}

/// A cluster whose agents have a bug planted.
fn with_planted(bug: &str) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start_apart(3)?;
    cluster.import("tiny", "")?;
    for agent in &mut cluster.agents {
        agent.terminate()?;
        agent.set_program(env!("CARGO_BIN_EXE_fpagent-failpoints"));
        agent.set_variable("FP_PLANTED", bug);
    }
    for agent in &mut cluster.agents {
        agent.start()?;
    }
    cluster.wait_online(3)?;
    Ok(cluster)
}

/// Has clients work while a fault strikes, round after round, until what a planted bug does is found.
fn finds(bug: &str, fault: impl Fn(usize) -> Fault, words: &[&str]) -> anyhow::Result<()> {
    /// How often the fault may strike before it must have been found.
    const ROUNDS: u64 = 8;
    let mut cluster = with_planted(bug)?;
    cluster.tells = false;
    for round in 0..ROUNDS {
        let found = strike_once(&mut cluster, &fault, round);
        let Err(error) = found else { continue };
        let told = format!("{error:#}");
        anyhow::ensure!(words.iter().any(|word| told.contains(word)), "{told}");
        eprintln!("{bug}, after {} rounds: {told}", round + 1);
        return Ok(());
    }
    anyhow::bail!("{bug} was not found in {ROUNDS} rounds")
}

fn strike_once(
    cluster: &mut Cluster,
    fault: &impl Fn(usize) -> Fault,
    round: u64,
) -> anyhow::Result<()> {
    let load = Load {
        clients: 8,
        forkers: 0,
    };
    let leader = cluster.leader()?;
    let workload = Workload::begin(cluster, load, round)?;
    sleep(Duration::from_secs(2));
    Nemesis::new(round).inflict(cluster, &fault(leader), Duration::from_secs(2))?;
    for agent in &mut cluster.agents {
        agent.wait_answers()?;
    }
    cluster.wait_online(3)?;
    is_linearizable(&workload.end(cluster)?)
}

#[test]
fn reads_that_may_be_stale_are_found() -> anyhow::Result<()> {
    finds("reads.stale", Fault::Mute, &["is not linearizable"])
}

#[test]
fn an_acknowledgement_before_the_flush_is_found() -> anyhow::Result<()> {
    // Some of it lost is a state of the past; some of it in the middle, a damaged log.
    let words = ["is not linearizable", "is damaged"];
    let all = |_| Fault::Killed([1, 2, 3].into());
    finds("log.before-flush", all, &words)
}
