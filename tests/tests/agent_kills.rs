//! Agents are killed again and again, one or all of them at random moments, while clients work and guests run: every store opens,
//! nothing that was acknowledged is missing, and no VM is restarted or lost.
//!
//! `FP_AGENT_KILLS` says how many agents (20), `FP_FAULT_SEED` with which numbers; a failure prints how to repeat it.

use std::{collections::BTreeMap, thread::sleep};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, is_alive},
    nemesis::{Fault, Nemesis, none_ended},
    random::{Random, seed, setting},
    workload::{Load, Workload, agree, is_linearizable},
};

const NODES: usize = 3;
/// How many agents are killed, unless it is said.
const KILLS: u64 = 20;
const LOAD: Load = Load {
    clients: 6,
    forkers: 0,
};

/// The processes of all VMs that run, which none was started anew.
fn running(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut all = BTreeMap::new();
    for number in 1..=NODES {
        let name = format!("guest{number}");
        let vm = cluster.wait_vm(1, &name, "running")?;
        anyhow::ensure!(vm["restarts"] == 0, "it was started anew: {vm}");
        let pid = vm["pid"].as_u64().filter(|pid| *pid > 0);
        let pid = u32::try_from(pid.context("no process")?)?;
        anyhow::ensure!(is_alive(pid), "its process has ended: {vm}");
        all.insert(name, pid);
    }
    Ok(all)
}

#[test]
fn agents_are_killed_under_load() -> anyhow::Result<()> {
    let kills = setting("FP_AGENT_KILLS")?.unwrap_or(KILLS);
    let seed = seed("FP_FAULT_SEED")?;
    eprintln!("seed {seed}");
    run(kills, seed).with_context(|| {
        format!(
            "again: FP_FAULT_SEED={seed} FP_AGENT_KILLS={kills} cargo nextest run -p fp-tests --test agent_kills"
        )
    })
}

fn run(kills: u64, seed: u64) -> anyhow::Result<()> {
    let mut cluster = Cluster::start_apart(NODES)?;
    cluster.import("tiny", "fp.pulse")?;
    for number in 1..=NODES {
        let (name, node) = (format!("guest{number}"), format!("node{number}"));
        let create = [
            "vm", "create", &name, "--image", "tiny", "--node", &node, "--wait",
        ];
        cluster.node(1).fp(&create)?.success()?;
    }
    let before = running(&cluster)?;
    let workload = Workload::begin(&cluster, LOAD, seed)?;
    let mut nemesis = Nemesis::new(seed);
    let mut random = Random::new(seed ^ 1);
    let mut done = 0;
    while done < kills && !workload.is_broken() {
        // Alone most of the time; all at one moment lose what none of them has written.
        let nodes = match random.below(4) {
            0 => (1..=NODES).collect(),
            _ => [random.below(NODES as u64) as usize + 1].into(),
        };
        let fault = Fault::Killed(nodes);
        let away = random.millis(0, 600);
        nemesis.inflict(&mut cluster, &fault, away)?;
        if let Fault::Killed(nodes) = fault {
            done += nodes.len() as u64;
        }
        // From before its store is open to after it has caught up.
        sleep(random.millis(0, 2_000));
        none_ended(&mut cluster)?;
    }
    for agent in &mut cluster.agents {
        agent.wait_answers()?;
    }
    cluster.wait_online(NODES)?;
    let history = workload.end(&cluster)?;
    eprintln!("{done} kills, {} operations answered", history.answered());
    none_ended(&mut cluster)?;
    is_linearizable(&history)?;
    agree(&cluster)?;
    let after = running(&cluster)?;
    anyhow::ensure!(
        after == before,
        "VMs had {before:?}, and have {after:?} now"
    );
    for name in before.keys() {
        cluster.wait_pulses(name, 2)?;
    }
    Ok(())
}
