//! Two versions of the agent in one cluster: the older decides what is used. Nodes are upgraded one after another while VMs run and the
//! cluster is worked with; and then there is no way back.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    fpagent, wait_for,
};
use serde_json::Value;

/// The version that the cluster uses, and what is wrong with it, as each node has it.
fn versions(cluster: &Cluster) -> anyhow::Result<Vec<(u64, String)>> {
    let nodes = 1..=cluster.agents.len();
    let look = |node| {
        let status = cluster.node(node).json(&["status"])?;
        let version = status["version"].as_u64().context("no version")?;
        Ok((version, status["problems"].to_string()))
    };
    nodes.map(look).collect()
}

/// Has a node be the newer agent.
fn upgrade(cluster: &mut Cluster, number: usize) -> anyhow::Result<()> {
    let agent = cluster.node_mut(number);
    agent.terminate()?;
    agent.set_program(env!("CARGO_BIN_EXE_fpagent-failpoints"));
    agent.set_variable("FP_NEXT_VERSION", "1");
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(3)
}

#[test]
fn nodes_are_upgraded_one_after_another_while_the_cluster_works() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(3)?;
    for (name, node) in [("a", "node1"), ("b", "node2"), ("c", "node3")] {
        let create = [
            "vm", "create", name, "--image", "tiny", "--node", node, "--wait",
        ];
        cluster.node(1).fp(&create)?.success()?;
    }
    let before = pids(&cluster)?;
    // An older program finds the agents' files as they are now.
    let token = cluster.node(1).json(&["token", "create"])?;
    let token = token["token"].as_str().context("no token")?.to_owned();

    let addresses: Vec<String> = cluster.agents.iter().map(|agent| agent.address()).collect();
    let addresses = addresses.join(",");
    let goes_on = AtomicBool::new(true);
    let rounds = thread::scope(|scope| -> anyhow::Result<u32> {
        let worker = scope.spawn(|| fpagent::work(&addresses, &goes_on));
        let upgraded = (|| {
            for number in [2, 1] {
                upgrade(&mut cluster, number)?;
                // The oldest decides, and everybody says which that is.
                wait_for("the upgrade to be held back", PATIENCE, || {
                    let all = versions(&cluster)?;
                    for (version, problems) in &all {
                        assert_eq!(*version, 1, "after node{number}: {problems}");
                    }
                    let told = |problems: &str| problems.contains("node node3: its agent");
                    Ok(all.iter().all(|(_, problems)| told(problems)).then_some(()))
                })?;
            }
            upgrade(&mut cluster, 3)?;
            wait_for("the new version to be used", PATIENCE, || {
                let all = versions(&cluster)?;
                Ok(all.iter().all(|(version, _)| *version == 2).then_some(()))
            })
        })();
        goes_on.store(false, Ordering::Relaxed);
        let rounds = worker
            .join()
            .map_err(|_| anyhow::anyhow!("the worker panicked"))?;
        upgraded?;
        rounds
    })?;
    println!("{rounds} changes were made and read meanwhile");
    anyhow::ensure!(rounds > 10, "hardly any work was done: {rounds}");
    for (_, problems) in versions(&cluster)? {
        anyhow::ensure!(!problems.contains("older"), "{problems}");
    }
    assert_eq!(pids(&cluster)?, before, "a VM was started anew");
    cluster
        .node(2)
        .fp(&["fork", "c", "--name", "d", "--timeout", "30s"])?
        .success()?;

    // What is written now the older one does not take for something else: neither in its own files, nor as a newcomer.
    let newcomer = cluster.newcomer("node4")?;
    Cluster::join(&newcomer, &token)?.refused(&["cannot join", "version 2", "understands 1"])?;
    anyhow::ensure!(!newcomer.data.exists(), "the newcomer left something");
    let agent = cluster.node_mut(3);
    agent.terminate()?;
    let data = agent.data.display().to_string();
    let socket = agent.data.with_extension("old").display().to_string();
    let old = ["run", "--data-dir", &data, "--socket", &socket];
    let answer = fpagent::run(None, &old)?;
    assert_eq!(answer.code, 1, "{answer:?}");
    anyhow::ensure!(answer.err.contains("has version 2"), "{answer:?}");
    // And nothing came of that.
    let agent = cluster.node_mut(3);
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(3)?;
    assert_eq!(pids(&cluster)?[..3], before);
    Ok(())
}

/// The processes of all VMs, by their names.
fn pids(cluster: &Cluster) -> anyhow::Result<Vec<(String, Value)>> {
    let list = cluster.node(1).json(&["vm", "ls"])?;
    let all = list["items"].as_array().context("no items")?;
    let mut all: Vec<_> = all
        .iter()
        .map(|vm| {
            let name = vm["name"].as_str().unwrap_or_default().to_owned();
            (name, vm["pid"].clone())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}
