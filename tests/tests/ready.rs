//! Forks that are ready before anybody asks: they are what is taken, they are exact, and nothing is left of them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, is_alive, signal},
    lineage::{files, fork, histories, names, share_then_differ},
    wait_for,
};
use rustix::process::Signal;

/// A cluster with a guest on its last node, captured as `s`.
fn cluster(nodes: usize) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(nodes)?;
    cluster.import("tiny", "fp.pulse")?;
    let node = format!("node{nodes}");
    let create = [
        "vm", "create", "parent", "--image", "tiny", "--node", &node, "--wait",
    ];
    cluster.node(1).fp(&create)?.success()?;
    cluster.wait_pulses("parent", 3)?;
    let capture = ["snapshot", "create", "parent", "s"];
    cluster.node(1).fp(&capture)?.success()?;
    Ok(cluster)
}

fn wait_ready(cluster: &Cluster, count: u64) -> anyhow::Result<()> {
    wait_for(&format!("{count} forks to be ready"), PATIENCE, || {
        let shown = cluster.node(1).json(&["snapshot", "show", "s"])?;
        Ok((shown["ready"] == count).then_some(()))
    })
}

fn warm(cluster: &Cluster, count: u64) -> anyhow::Result<()> {
    let number = count.to_string();
    let node = cluster.node(1);
    node.fp(&["snapshot", "warm", "s", "-n", &number])?
        .success()?;
    wait_ready(cluster, count)
}

fn processes(cluster: &Cluster) -> anyhow::Result<BTreeSet<u32>> {
    Ok(cluster.processes()?.into_iter().collect())
}

/// The processes of all VMs.
fn of_vms(cluster: &Cluster) -> anyhow::Result<BTreeSet<u32>> {
    let list = cluster.node(1).json(&["vm", "ls"])?;
    let pids = list["items"].as_array().context("no items")?.iter();
    Ok(pids
        .filter_map(|vm| vm["pid"].as_u64())
        .filter(|pid| *pid != 0)
        .map(|pid| pid as u32)
        .collect())
}

/// Waits until no process and no file is left but those of VMs and of so many forks that are ready.
fn wait_nothing_else(cluster: &Cluster, ready: usize) -> anyhow::Result<()> {
    wait_for("nothing but VMs and what is ready", PATIENCE, || {
        let vms = cluster.node(1).json(&["vm", "ls"])?;
        let vms = vms["items"].as_array().context("no items")?.len();
        let folders = files(cluster)?
            .into_iter()
            .filter(|file| file.contains("/vms/"))
            .count();
        let there = processes(cluster)?.len();
        Ok((there == vms + ready && folders == vms + ready).then_some(()))
    })
    .with_context(|| format!("{:?}", files(cluster)))
}

/// Deletes all VMs, the snapshot and the image, and waits until nothing is left of them.
fn nothing_is_left(cluster: &Cluster, vms: &[&str]) -> anyhow::Result<()> {
    let node = cluster.node(1);
    node.fp(&[&["vm", "rm", "--force"], vms].concat())?
        .success()?;
    node.fp(&["snapshot", "rm", "s"])?.success()?;
    node.fp(&["image", "rm", "tiny"])?.success()?;
    wait_for("every file and process to be gone", PATIENCE, || {
        Ok((cluster.processes()?.is_empty() && files(cluster)?.is_empty()).then_some(()))
    })
    .with_context(|| format!("left: {:?}", files(cluster)))
}

#[test]
fn what_is_ready_is_taken_and_made_again() -> anyhow::Result<()> {
    let cluster = cluster(3)?;
    let before = processes(&cluster)?;
    warm(&cluster, 3)?;
    let waiting: BTreeSet<u32> = processes(&cluster)?.difference(&before).copied().collect();
    assert_eq!(waiting.len(), 3);

    // Three are ready, one more has to be started.
    let made = fork(&cluster, 2, &["parent@s", "-n", "4", "--name", "c"])?;
    let vms = of_vms(&cluster)?;
    assert!(waiting.is_subset(&vms), "{waiting:?} became VMs: {vms:?}");
    wait_ready(&cluster, 3)?;
    assert_eq!(processes(&cluster)?.len(), 1 + 4 + 3);

    // They are children like all others: each whole, each going on by itself, and they can be forked.
    let mut all = names(&made);
    cluster.wait_pulses(&all[0], 2)?;
    all.extend(names(&fork(
        &cluster,
        1,
        &[&all[0], "--name", "grandchild"],
    )?));
    all.push("parent".to_owned());
    for name in &all {
        cluster.wait_pulses(name, 2)?;
    }
    share_then_differ(&histories(&cluster, &all)?);

    let node = cluster.node(1);
    node.fp(&["fork", "@s", "-n", "2", "--paused", "--name", "p"])?
        .success()?;
    assert_eq!(cluster.vm(1, "p-1")?["state"], "paused");
    node.fp(&["snapshot", "warm", "s", "-n", "1001"])?
        .refused(&["count", "1000"])?;
    // Two stay ready that nobody asked for: it was forked twice just now.
    node.fp(&["snapshot", "warm", "s", "-n", "0"])?.success()?;
    wait_ready(&cluster, 2)?;
    let vms: Vec<&str> = all
        .iter()
        .map(String::as_str)
        .chain(["p-1", "p-2"])
        .collect();
    nothing_is_left(&cluster, &vms)
}

#[test]
fn nothing_stays_ready_without_an_agent_or_memory() -> anyhow::Result<()> {
    let mut cluster = cluster(1)?;
    warm(&cluster, 2)?;
    let vms = of_vms(&cluster)?;
    cluster.node_mut(1).terminate()?;
    assert_eq!(processes(&cluster)?, vms, "its orderly end leaves the VMs");

    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    wait_ready(&cluster, 2)?;
    let waiting: Vec<u32> = processes(&cluster)?.difference(&vms).copied().collect();
    cluster.node_mut(1).kill()?;
    assert!(waiting.iter().all(|pid| is_alive(*pid)), "they outlive it");
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    wait_ready(&cluster, 2)?;
    assert!(!waiting.iter().any(|pid| is_alive(*pid)), "and are cleared");
    wait_nothing_else(&cluster, 2)?;

    // Forks are kept ready while twice this is free, and made while this is.
    let reserve = format!("{}M", (qemu::host::available_memory()? >> 20) * 2 / 3);
    let options = ["--reserve-memory", &reserve];
    cluster.node_mut(1).set_options(&options);
    cluster.node_mut(1).terminate()?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    wait_nothing_else(&cluster, 0)?;
    fork(&cluster, 1, &["@s"])?;
    assert_eq!(
        cluster.node(1).json(&["snapshot", "show", "s"])?["ready"],
        0
    );
    Ok(())
}

/// The agent is killed at moments around the taking of forks that are ready: each fork is there once or not at all, runs, and
/// nothing is left over.
#[test]
fn an_agent_is_killed_while_forks_are_taken() -> anyhow::Result<()> {
    let mut cluster = cluster(1)?;
    for (round, delay) in [0, 2, 4, 6, 8, 10, 12, 15, 20, 30].into_iter().enumerate() {
        warm(&cluster, 2)?;
        let name = format!("k{round}");
        let args = ["fork", "@s", "-n", "3", "--name", &name];
        // It lost its agent and asked again: what it was told may be anything but wrong.
        let answer = cluster.kill_during(1, Duration::from_millis(5 + delay), &args)?;
        let list = cluster.node(1).json(&["vm", "ls"])?;
        let made: Vec<String> = list["items"]
            .as_array()
            .context("no items")?
            .iter()
            .filter_map(|vm| Some(vm["name"].as_str()?.to_owned()))
            .filter(|vm| vm.starts_with(&name))
            .collect();
        assert!(
            made.len() == 3 || (made.is_empty() && answer.code != 0),
            "{made:?}"
        );
        for vm in &made {
            cluster.wait_vm(1, vm, "running")?;
            cluster.wait_pulses(vm, 1)?;
        }
        wait_ready(&cluster, 2)?;
        wait_nothing_else(&cluster, 2)?;
        if !made.is_empty() {
            let made: Vec<&str> = made.iter().map(String::as_str).collect();
            let remove = [&["vm", "rm", "--force"], &made[..]].concat();
            cluster.node(1).fp(&remove)?.success()?;
        }
    }
    cluster.wait_pulses("parent", 2)
}

/// Waits until so many processes are there that are no VM's.
fn wait_blank(cluster: &Cluster, count: usize) -> anyhow::Result<BTreeSet<u32>> {
    wait_for(&format!("{count} processes to wait"), PATIENCE, || {
        let vms = of_vms(cluster)?;
        let waiting: BTreeSet<u32> = processes(cluster)?.difference(&vms).copied().collect();
        Ok((waiting.len() == count).then_some(waiting))
    })
}

#[test]
fn a_process_that_waited_becomes_a_fork_of_anything() -> anyhow::Result<()> {
    let mut cluster = cluster(1)?;
    let options = ["--waiting-processes", "2", "--ready-forks", "0"];
    let agent = cluster.node_mut(1);
    agent.terminate()?;
    agent.set_options(&options);
    agent.start()?;
    agent.wait_answers()?;

    // Of a snapshot that was never forked, of a VM, and of a fork.
    let mut all = vec!["parent".to_owned()];
    for source in ["@s", "parent", "c"] {
        let waiting = wait_blank(&cluster, 2)?;
        let name = ["c", "d", "e"][all.len() - 1];
        fork(&cluster, 1, &[source, "--name", name])?;
        let pid = cluster.vm(1, name)?["pid"].as_u64().context("no pid")?;
        assert!(waiting.contains(&(pid as u32)), "{name} was started anew");
        all.push(name.to_owned());
    }
    for name in &all {
        cluster.wait_pulses(name, 2)?;
    }
    share_then_differ(&histories(&cluster, &all)?);

    // More than wait are started; others of another kind are too.
    wait_blank(&cluster, 2)?;
    fork(&cluster, 1, &["@s", "-n", "4", "--name", "f"])?;
    cluster.wait_pulses("f-4", 1)?;

    // One that ended a moment ago is of no use: another is started.
    for pid in wait_blank(&cluster, 2)? {
        signal(pid, Signal::KILL)?;
    }
    fork(&cluster, 1, &["@s", "-n", "2", "--name", "g"])?;
    cluster.wait_pulses("g-2", 1)?;

    // Whether or not they answer: one may wait for what comes from another node.
    let waiting = wait_blank(&cluster, 2)?;
    for pid in waiting.iter().take(1) {
        signal(*pid, Signal::STOP)?;
    }
    cluster.node_mut(1).kill()?;
    assert!(waiting.iter().all(|pid| is_alive(*pid)), "they outlive it");
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    let again = wait_blank(&cluster, 2)?;
    assert!(waiting.is_disjoint(&again), "and are cleared");

    let vms = of_vms(&cluster)?;
    cluster.node_mut(1).terminate()?;
    assert_eq!(processes(&cluster)?, vms, "its orderly end leaves the VMs");

    // What waits has the image's disk open, and keeps nobody from deleting it.
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    wait_blank(&cluster, 2)?;
    let numbered = |of: &str, count| {
        (1..=count)
            .map(|number| format!("{of}-{number}"))
            .collect::<Vec<_>>()
    };
    let forks = [numbered("f", 4), numbered("g", 2)].concat();
    let names: Vec<&str> = all.iter().chain(&forks).map(String::as_str).collect();
    nothing_is_left(&cluster, &names)
}
