//! What is lost when agents are killed: nothing that was acknowledged, and no guest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, is_alive, signal},
    fpagent, wait_for,
};
use rustix::process::Signal;
use serde_json::Value;

/// Name to process id of all VMs.
fn pids(cluster: &Cluster, through: usize) -> anyhow::Result<BTreeMap<String, u64>> {
    let list = cluster.node(through).json(&["vm", "ls"])?;
    let items = list["items"].as_array().context("no items")?;
    Ok(items
        .iter()
        .filter_map(|vm| Some((vm["name"].as_str()?.to_owned(), vm["pid"].as_u64()?)))
        .collect())
}

#[test]
fn the_leader_is_killed_during_a_stream_of_forks() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(3)?;
    for (name, node) in [("a", "node1"), ("b", "node2"), ("c", "node3")] {
        cluster
            .node(1)
            .fp(&[
                "vm", "create", name, "--image", "tiny", "--node", node, "--wait",
            ])?
            .success()?;
    }
    let leader = cluster.leader()?;
    // Parents that do not live on the leader's host: its agent is what is lost.
    let parents: Vec<&str> = [(1, "a"), (2, "b"), (3, "c")]
        .iter()
        .filter(|(n, _)| *n != leader)
        .map(|(_, p)| *p)
        .collect();
    let survivors: Vec<String> = (1..=3)
        .filter(|node| *node != leader)
        .map(|node| cluster.node(node).address())
        .collect();
    let before = pids(&cluster, leader)?;

    let stop = AtomicBool::new(false);
    let mut answers: Vec<(String, fpagent::Answer)> = Vec::new();
    let mut first_after = None;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let clients: Vec<_> = (0..2)
            .map(|client| {
                let (stop, survivors, parents) = (&stop, &survivors, &parents);
                scope.spawn(
                    move || -> anyhow::Result<Vec<(String, fpagent::Answer, Instant)>> {
                        let mut answers = Vec::new();
                        let mut round = 0;
                        while !stop.load(Ordering::Relaxed) && round < 12 {
                            let name = format!("f{client}-{round}");
                            let address = &survivors[round % survivors.len()];
                            let parent = parents[round % parents.len()];
                            let args = [
                                "fork",
                                parent,
                                "--name",
                                &name,
                                "--paused",
                                "--timeout",
                                "40s",
                                "-o",
                                "json",
                            ];
                            let begun = Instant::now();
                            answers.push((
                                name.clone(),
                                fpagent::run(Some(address), &args)?,
                                begun,
                            ));
                            round += 1;
                        }
                        Ok(answers)
                    },
                )
            })
            .collect();
        std::thread::sleep(Duration::from_millis(1500));
        let killed = Instant::now();
        cluster.agents[leader - 1].kill()?;
        // A new request, made after the kill, gets its answer in time.
        let probe = fpagent::run(
            Some(&survivors[0]),
            &["vm", "create", "probe", "--image", "tiny", "-o", "json"],
        )?;
        probe.success()?;
        first_after = Some(killed.elapsed());
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let made = client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            answers.extend(made.into_iter().map(|(name, answer, _)| (name, answer)));
        }
        Ok(())
    })?;
    let first_after = first_after.context("no probe")?;
    eprintln!("the first request after the leader was killed took {first_after:?}");
    assert!(first_after < Duration::from_secs(3), "{first_after:?}");

    for (name, pid) in &before {
        assert!(is_alive(*pid as u32), "VM {name} has ended");
    }
    cluster.node_mut(leader).start()?;
    cluster.node_mut(leader).wait_answers()?;
    cluster.wait_online(3)?;
    // Its image may have been on the lost host alone.
    cluster.wait_vm(1, "probe", "running")?;
    assert!(answers.len() >= 4, "hardly a stream: {}", answers.len());
    for (name, answer) in &answers {
        assert_eq!(answer.code, 0, "the fork {name} failed: {}", answer.err);
    }
    for through in 1..=3 {
        let list = cluster.node(through).json(&["vm", "ls"])?;
        let all: Vec<&str> = list["items"]
            .as_array()
            .context("no items")?
            .iter()
            .filter_map(|vm| vm["name"].as_str())
            .collect();
        for (name, _) in &answers {
            assert_eq!(
                all.iter().filter(|one| *one == name).count(),
                1,
                "{name} through node {through}"
            );
        }
    }
    let after = pids(&cluster, 1)?;
    for (name, pid) in before {
        assert_eq!(after.get(&name), Some(&pid), "{name} has another process");
    }
    let processes: BTreeSet<u64> = after.values().copied().filter(|pid| *pid > 0).collect();
    assert_eq!(
        processes.len(),
        after.len(),
        "every VM has one process of its own: {after:?}"
    );
    Ok(())
}

#[test]
fn all_agents_are_killed_and_come_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(3)?;
    for (name, node) in [("a", "node1"), ("b", "node2"), ("c", "node3")] {
        cluster
            .node(2)
            .fp(&[
                "vm", "create", name, "--image", "tiny", "--node", node, "--wait",
            ])?
            .success()?;
    }
    cluster.node(3).fp(&["fork", "a", "-n", "2"])?.success()?;
    cluster
        .node(3)
        .fp(&["snapshot", "create", "b", "kept"])?
        .success()?;
    let before = pids(&cluster, 1)?;
    assert_eq!(before.len(), 5);
    let snapshots = wait_for("the snapshots to be on disk", PATIENCE, || {
        let listed = cluster.node(1).json(&["snapshot", "ls"])?;
        let items = listed["items"].as_array().context("no items")?;
        let safe = items.iter().all(|snapshot| snapshot["safety"] == "disk");
        Ok(safe.then_some(listed))
    })?;

    for agent in &mut cluster.agents {
        agent.kill()?;
    }
    for (name, pid) in &before {
        assert!(is_alive(*pid as u32), "{name} ended with the agents");
    }
    // One of the guests is lost while nobody looks.
    let victim = before["c"] as u32;
    signal(victim, Signal::KILL)?;
    wait_for("the victim's end", PATIENCE, || {
        Ok((!is_alive(victim)).then_some(()))
    })?;
    for agent in &mut cluster.agents {
        agent.start()?;
    }
    cluster.wait_online(3)?;

    let failed = cluster.wait_vm(1, "c", "failed")?;
    assert!(
        failed["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty()),
        "{failed}"
    );
    for through in 1..=3 {
        let expected: BTreeMap<_, _> = before
            .iter()
            .map(|(name, pid)| (name.clone(), if name == "c" { 0 } else { *pid }))
            .collect();
        wait_for(
            &format!("node {through} to see every process"),
            PATIENCE,
            || Ok((pids(&cluster, through)? == expected).then_some(())),
        )
        .with_context(|| format!("{:?}, not {expected:?}", pids(&cluster, through)))?;
    }
    assert_eq!(cluster.node(2).json(&["snapshot", "ls"])?, snapshots);
    assert_eq!(cluster.processes()?.len(), 4, "none was started twice");

    cluster.node(2).fp(&["vm", "start", "c"])?.success()?;
    assert_eq!(cluster.vm(1, "c")?["state"], "running");
    // What was adopted can be forked.
    cluster.node(2).fp(&["fork", "a"])?.success()?;
    cluster.node(2).fp(&["fork", "b@kept"])?.success()?;
    Ok(())
}

#[test]
fn an_orderly_end_leaves_the_guests_running() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(1)?;
    cluster
        .node(1)
        .fp(&["vm", "create", "a", "--image", "tiny", "--wait"])?
        .success()?;
    cluster.node(1).fp(&["fork", "a"])?.success()?;
    let before = pids(&cluster, 1)?;
    cluster.node_mut(1).terminate()?;
    assert!(before.values().all(|pid| is_alive(*pid as u32)));
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.wait_vm(1, "a", "running")?;
    assert_eq!(pids(&cluster, 1)?, before);
    Ok(())
}

#[test]
fn a_snapshot_whose_memory_is_lost_is_not_offered() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(1)?;
    let node = cluster.node(1);
    node.fp(&["vm", "create", "a", "--image", "tiny", "--wait"])?
        .success()?;
    node.fp(&["snapshot", "create", "a", "kept"])?.success()?;
    node.fp(&["fork", "a@kept", "--name", "child"])?.success()?;
    let bases = node.data.join("bases");
    cluster.node_mut(1).kill()?;
    for entry in std::fs::read_dir(&bases)? {
        std::fs::remove_file(entry?.path())?;
    }
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    wait_for("the snapshot to be known as lost", PATIENCE, || {
        let list = cluster.node(1).json(&["snapshot", "ls"])?;
        Ok((list["items"][0]["state"] == "failed").then_some(()))
    })?;
    cluster.node(1).fp(&["fork", "@kept"])?.refused(&["kept"])?;
    // Who runs, runs on, and can be forked: into a new base.
    cluster.wait_vm(1, "child", "running")?;
    cluster
        .node(1)
        .fp(&["fork", "child", "-n", "2"])?
        .success()?;
    Ok(())
}

/// The agent is killed at moments that cover a capture from its beginning to its end.
#[test]
fn an_agent_is_killed_in_the_middle_of_a_capture() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    cluster.import("tiny", "fp.churn=48")?;
    cluster
        .node(1)
        .fp(&[
            "vm", "create", "parent", "--image", "tiny", "--memory", "512M", "--wait",
        ])?
        .success()?;
    for (round, delay) in [5, 20, 40, 60, 90, 130, 200].into_iter().enumerate() {
        let address = cluster.node(1).address();
        let name = format!("s{round}");
        let request = std::thread::spawn({
            let name = name.clone();
            move || {
                fpagent::run(
                    Some(&address),
                    &[
                        "snapshot",
                        "create",
                        "parent",
                        &name,
                        "--mode",
                        "paused",
                        "--timeout",
                        "30s",
                    ],
                )
            }
        });
        std::thread::sleep(Duration::from_millis(delay));
        cluster.node_mut(1).kill()?;
        cluster.node_mut(1).start()?;
        let back = Instant::now();
        cluster.node_mut(1).wait_answers()?;
        wait_for("the parent to run", Duration::from_secs(2), || {
            let vm = cluster.vm(1, "parent")?;
            Ok((vm["state"] == "running" && running(&cluster, &vm)?).then_some(()))
        })
        .with_context(|| {
            format!(
                "killed after {delay} ms, {:?} after its return",
                back.elapsed()
            )
        })?;
        let answer = request
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        let listed = cluster.node(1).json(&["snapshot", "ls"])?;
        let listed: Vec<&Value> = listed["items"]
            .as_array()
            .context("no items")?
            .iter()
            .collect();
        assert!(
            listed.iter().all(|one| one["state"] == "ready"),
            "{listed:?}"
        );
        let is_there = listed.iter().any(|one| one["name"] == name.as_str());
        assert!(
            is_there || answer.code != 0,
            "an acknowledged snapshot is missing"
        );
        if is_there {
            // Whatever is listed can be forked.
            let fork = format!("@{name}");
            cluster
                .node(1)
                .fp(&["fork", &fork, "--name", &format!("fork{round}"), "--paused"])?
                .success()?;
            cluster
                .node(1)
                .fp(&["vm", "rm", "--force", &format!("fork{round}")])?
                .success()?;
        } else {
            cluster
                .node(1)
                .fp(&["fork", &format!("@{name}")])?
                .refused(&[&name])?;
        }
    }
    Ok(())
}

/// Whether a VM's guest gets on: its process uses processor time.
fn running(_: &Cluster, vm: &Value) -> anyhow::Result<bool> {
    let pid = vm["pid"]
        .as_u64()
        .filter(|pid| *pid > 0)
        .context("no process")?;
    let ticks = || -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(") ").context("no stat")?.1;
        let mut fields = fields.split(' ').skip(11);
        let mut next = || {
            fields
                .next()
                .and_then(|field| field.parse::<u64>().ok())
                .unwrap_or_default()
        };
        Ok(next() + next())
    };
    let first = ticks()?;
    std::thread::sleep(Duration::from_millis(100));
    Ok(ticks()? > first)
}
