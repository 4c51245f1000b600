//! Clusters of three and of five agents, each on a host of its own, while links and processes fail at random and clients work: what
//! the clients were answered is linearizable, nothing that was acknowledged is missing, all nodes come to one state, and no agent
//! ends by itself.
//!
//! `FP_FAULT_SECONDS` says for how long each (50), `FP_FAULT_SEED` with which numbers; a failure prints how to repeat it.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use agent::trust::tls::connect::{Target, channel};
use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    nemesis::{Fault, Nemesis, none_ended},
    random::{seed, setting},
    wait_for,
    workload::{Load, Workload, agree, is_linearizable},
};
use proto::v1::{LabelNodeRequest, node_service_client::NodeServiceClient};
use tonic::{Code, Status};

/// How long, unless it is said.
const SECONDS: u64 = 50;

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

/// Cuts or joins the ways between all nodes, or those of one node.
fn between(cluster: &Cluster, only: Option<usize>, cut: bool) -> anyhow::Result<()> {
    let (network, nodes) = (cluster.network()?, cluster.agents.len());
    for from in 1..=nodes {
        for to in (1..=nodes).filter(|to| *to != from) {
            if only.is_none_or(|node| node == from || node == to) {
                match cut {
                    true => network.cut(from, to)?,
                    false => network.join(from, to)?,
                }
            }
        }
    }
    Ok(())
}

/// Sets a label through a node, without any retry of a client's.
async fn write_once(cluster: &Cluster, node: usize) -> Result<(), Status> {
    let path = cluster.node(node).data.with_extension("sock");
    let mut client = NodeServiceClient::new(channel(Target::Unix(path)));
    let request = LabelNodeRequest {
        node: "node1".to_owned(),
        set: [("written".to_owned(), node.to_string())].into(),
        ..Default::default()
    };
    client.label_node(request).await.map(drop)
}

#[tokio::test]
async fn without_a_majority_calls_are_refused_within_two_seconds() -> anyhow::Result<()> {
    const REFUSED: Duration = Duration::from_secs(2);
    let cluster = Cluster::start_apart(3)?;
    between(&cluster, None, true)?;
    for round in 0..2 {
        for node in 1..=3 {
            let begun = Instant::now();
            let refused = write_once(&cluster, node).await;
            let took = begun.elapsed();
            eprintln!("node{node}, round {round}: {took:?}: {refused:?}");
            let code = refused.err().map(|status| status.code());
            assert_eq!(code, Some(Code::Unavailable));
            assert!(took < REFUSED, "{took:?}");
        }
    }
    between(&cluster, None, false)?;
    cluster.wait_online(3)
}

/// The term of the leader.
fn term(cluster: &Cluster) -> anyhow::Result<u64> {
    let status = cluster.node(cluster.leader()?).json(&["status"])?;
    status["term"].as_u64().context("no term")
}

#[tokio::test]
async fn a_node_that_was_cut_off_is_back_soon_and_unseats_nobody() -> anyhow::Result<()> {
    /// Between two tries of the kernel to send again what was lost.
    const CUT: Duration = Duration::from_millis(6_500);
    const SOON: Duration = Duration::from_secs(3);
    let cluster = Cluster::start_apart(3)?;
    let (node, before) = (cluster.leader()? % 3 + 1, term(&cluster)?);
    between(&cluster, Some(node), true)?;
    sleep(CUT);
    between(&cluster, Some(node), false)?;
    let back = Instant::now();
    while let Err(status) = write_once(&cluster, node).await {
        assert!(back.elapsed() < SOON, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("back after {:?}", back.elapsed());
    assert!(back.elapsed() < SOON, "{:?}", back.elapsed());
    cluster.wait_online(3)?;
    assert_eq!(term(&cluster)?, before);
    Ok(())
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
    const ROUNDS: u64 = 16;
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
    // Whoever lost what it had acknowledged may end when it meets the others.
    wait_for("3 nodes online", PATIENCE, || {
        none_ended(cluster)?;
        Ok(cluster.is_online(3)?.then_some(()))
    })?;
    is_linearizable(&workload.end(cluster)?)
}

#[test]
fn reads_that_may_be_stale_are_found() -> anyhow::Result<()> {
    finds("reads.stale", Fault::Mute, &["is not linearizable"])
}

#[test]
fn an_acknowledgement_before_the_flush_is_found() -> anyhow::Result<()> {
    // Some of it lost is a state of the past; some of it in the middle, a damaged log; of a few nodes, logs that contradict.
    let words = ["is not linearizable", "is damaged", "can no longer be kept"];
    let all = |_| Fault::Killed([1, 2, 3].into());
    finds("log.before-flush", all, &words)
}
