//! VMs that go on elsewhere when their host is lost: at most one of each at any time, and soon one.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use agent::fence::LEASE;
use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, signal},
    processes,
    random::{Random, seed, setting},
    wait_for,
    witness::Witness,
};
use rustix::process::Signal;
use serde_json::Value;

/// How much longer than the lease it may take until it is up again.
const SOON: Duration = Duration::from_secs(5);

/// A cluster on three hosts, and a VM on the first that is restored elsewhere.
fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start_apart(3)?;
    cluster.import("tiny", "fp.pulse")?;
    let create = [
        "vm", "create", "web", "--image", "tiny", "--node", "node1", "--ha", "restore", "--wait",
    ];
    cluster.node(2).fp(&create)?.success()?;
    Ok(cluster)
}

/// Has every host have its newest moment.
fn save(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let create = [
        "snapshot",
        "create",
        "web",
        name,
        "--wait",
        "--replicas",
        "3",
    ];
    let made = cluster.node(1).json(&create)?;
    assert_eq!(made["safety"], "replicated", "{made}");
    Ok(())
}

fn show(cluster: &Cluster, through: usize) -> anyhow::Result<Value> {
    cluster.node(through).json(&["vm", "show", "web"])
}

/// The number of the node where it lives.
fn host(cluster: &Cluster, vm: &Value) -> anyhow::Result<usize> {
    let name = vm["node"].as_str().context("no node")?;
    let found = (1..=3).find(|number| cluster.node(*number).name == name);
    found.context("no such node")
}

/// What was done to a host before it was cut off.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    AgentKilled,
    AgentStopped,
}

/// Loses its host once, sees it come up elsewhere, and lets the host come back.
fn round(cluster: &mut Cluster, random: &mut Random, number: u64) -> anyhow::Result<()> {
    let moment = format!("moment-{number}");
    save(cluster, &moment)?;
    thread::sleep(random.millis(0, 2_000));
    let vm = show(cluster, 1)?;
    let (from, id) = (host(cluster, &vm)?, vm["id"].as_str().context("no id")?);
    let others: Vec<usize> = (1..=3).filter(|other| *other != from).collect();
    let folders = (1..=3).map(|node| cluster.node(node).data.clone());
    let folders: Vec<_> = folders.collect();
    let before = match random.below(3) {
        0 => Before::Nothing,
        1 => Before::AgentKilled,
        _ => Before::AgentStopped,
    };
    let pid = cluster.node(from).pid().context("no agent")?;
    let witness = Witness::of(id, folders.clone());
    thread::sleep(random.millis(100, 1_000));
    let begun = Instant::now();
    match before {
        Before::Nothing => {}
        Before::AgentKilled => cluster.node_mut(from).kill()?,
        Before::AgentStopped => signal(pid, Signal::STOP)?,
    }
    thread::sleep(match before {
        Before::Nothing => Duration::ZERO,
        _ => random.millis(0, 1_000),
    });
    cluster.network()?.unplug(from)?;
    let cut = Instant::now();

    let restored = wait_for("it to be up elsewhere", PATIENCE, || {
        // There may be no leader.
        let shown = cluster
            .node(others[0])
            .fp(&["vm", "show", "web", "-o", "json"])?;
        let Ok(shown) = shown.json() else {
            return Ok(None);
        };
        let is_up = shown["state"] == "running" && shown["node"] != vm["node"];
        anyhow::ensure!(shown["state"] != "failed", "it failed: {shown}");
        Ok(is_up.then_some(shown))
    })?;
    let took = cut.elapsed();
    // For some time beyond that both could run.
    thread::sleep(Duration::from_secs(2));
    let seen = witness.end()?;
    let to = host(cluster, &restored)?;
    let there = seen
        .get(&folders[to - 1])
        .context("it wrote nothing there")?;
    let here = seen
        .get(&folders[from - 1])
        .context("it wrote nothing here")?;
    let apart = there.0.duration_since(here.1);
    println!(
        "round {number}: {before:?}, node{from} to node{to}: up {took:?} after the cut, {:?} in all; stood still for {apart:?}",
        begun.elapsed()
    );
    let apart = apart.map_err(|by| anyhow::anyhow!("both ran: {here:?}, {there:?}, {by}"))?;
    assert!(!apart.is_zero());
    assert!(took <= LEASE + SOON, "up again after {took:?}");
    let lost = &restored["restored"];
    assert_eq!(lost["from"], vm["node"], "{restored}");
    assert!(
        lost["lostMs"].as_u64().is_some_and(|lost| lost < 60_000),
        "{lost}"
    );

    cluster.network()?.plug(from)?;
    match before {
        Before::Nothing => {}
        Before::AgentKilled => {
            cluster.node_mut(from).start()?;
            cluster.node_mut(from).wait_answers()?;
        }
        Before::AgentStopped => signal(pid, Signal::CONT)?,
    }
    cluster.wait_online(3)?;
    // The host clears away what it had, and does not let it go on.
    wait_for("nothing to be left of it where it was", PATIENCE, || {
        let is_gone = !folders[from - 1].join("vms").join(id).exists();
        Ok(is_gone.then_some(()))
    })?;
    assert_eq!(cluster.processes()?.len(), 1);
    cluster.wait_vm(from, "web", "running")?;
    wait_for("a place for its next moment", PATIENCE, || {
        let deleted = cluster.node(1).fp(&["snapshot", "rm", &moment])?;
        // It is what it goes on from, now or a little longer.
        Ok((deleted.code == 0 || deleted.err.contains("web")).then_some(()))
    })
}

#[test]
fn a_lost_hosts_vm_runs_once_and_soon() -> anyhow::Result<()> {
    let seed = seed("FP_SEED")?;
    println!("FP_SEED={seed}");
    let mut random = Random::new(seed);
    let mut cluster = cluster()?;
    for number in 1..=setting("FP_HA_ROUNDS")?.unwrap_or(3) {
        round(&mut cluster, &mut random, number)
            .with_context(|| format!("round {number} of FP_SEED={seed}"))?;
    }
    Ok(())
}

/// The watchdog of a host.
fn watchdog(cluster: &Cluster, number: usize) -> anyhow::Result<Option<u32>> {
    let all = processes::of_folder(&cluster.node(number).data)?;
    let is_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.ends_with(b"\0watchdog\0")
    };
    Ok(all.into_iter().find(is_it))
}

/// Cuts a host off for longer than the lease. Gives for how long the VM stood still there meanwhile, as far as that can be seen.
fn cut_off(cluster: &Cluster, number: usize, vm: &Value) -> anyhow::Result<Duration> {
    let id = vm["id"].as_str().context("no id")?;
    let folder = cluster.node(number).data.clone();
    let witness = Witness::of(id, vec![folder.clone()]);
    cluster.network()?.unplug(number)?;
    thread::sleep(LEASE + Duration::from_secs(2));
    let last = witness.end()?.get(&folder).context("it wrote nothing")?.1;
    let still = last.elapsed()?;
    cluster.network()?.plug(number)?;
    cluster.wait_online(3)?;
    Ok(still)
}

#[test]
fn without_a_copy_it_stands_still_and_goes_on_where_it_was() -> anyhow::Result<()> {
    let cluster = Cluster::start_apart(3)?;
    cluster.import("tiny", "fp.pulse")?;
    // Not where the leader is: that has to be elected anew otherwise.
    let create = [
        "vm", "create", "web", "--image", "tiny", "--node", "node3", "--wait",
    ];
    cluster.node(1).fp(&create)?.success()?;
    let node = cluster.node(2);
    assert_eq!(node.json(&["vm", "show", "web"])?["ha"], "off");
    assert_eq!(watchdog(&cluster, 3)?, None);
    node.fp(&["vm", "protect", "web", "--ha", "restore"])?
        .success()?;
    let vm = wait_for("its node to watch it", PATIENCE, || {
        let vm = show(&cluster, 2)?;
        Ok((vm["ha"] == "restore").then_some(vm))
    })?;
    assert_eq!(vm["restorePoint"], "");

    // One that is lost is started again.
    let first = watchdog(&cluster, 3)?.context("no watchdog")?;
    signal(first, Signal::KILL)?;
    wait_for("another watchdog", PATIENCE, || {
        let now = watchdog(&cluster, 3)?;
        Ok(now.filter(|now| *now != first))
    })?;
    // It has been told which it is by the next look.
    thread::sleep(Duration::from_secs(2));
    let still = cut_off(&cluster, 3, &vm)?;
    assert!(still > Duration::from_secs(1), "it ran on: {still:?}");
    cluster.wait_pulses("web", 3)?;
    let after = cluster.wait_vm(2, "web", "running")?;
    assert_eq!((&after["pid"], &after["node"]), (&vm["pid"], &vm["node"]));
    assert_eq!(after["restored"], Value::Null);

    // It takes that with it; its fork has none.
    node.fp(&["vm", "move", "web", "--node", "node2"])?
        .success()?;
    let there = cluster.wait_vm(2, "web", "running")?;
    assert_eq!(
        (&there["node"], &there["ha"]),
        (&"node2".into(), &"restore".into())
    );
    assert!(watchdog(&cluster, 2)?.is_some());
    let forked = node.json(&["fork", "web", "--name", "child"])?;
    let child = node.json(&["vm", "show", "child"])?;
    assert_eq!(child["ha"], "off", "{forked}");
    node.fp(&["vm", "move", "web", "--node", "node3"])?
        .success()?;
    cluster.wait_vm(2, "web", "running")?;

    // Where nobody would restore it, nobody stops it.
    node.fp(&["vm", "protect", "web", "--ha", "off"])?
        .success()?;
    wait_for("no watchdog", PATIENCE, || {
        Ok(watchdog(&cluster, 3)?.is_none().then_some(()))
    })?;
    let still = cut_off(&cluster, 3, &vm)?;
    assert!(still < Duration::from_secs(1), "it stood still: {still:?}");
    cluster.wait_pulses("web", 1)
}
