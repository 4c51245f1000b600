//! What goes wrong with one child, or one capture: a clear error for that, the parent runs, the others are unharmed, and nothing is
//! left over. QEMU processes are stopped or ended, and disks are full, at failpoints.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, signal},
    fpagent::{self, Answer},
    soundness::{Acknowledged, Ground, goes_on, items, listed_well, settled, usable},
    wait_for,
};
use qemu::failpoint::{END, FULL, STOP};
use rustix::process::Signal;
use serde_json::Value;

/// How long an operation may be held up by a child that hangs.
const HELD_UP: Duration = Duration::from_secs(45);

/// A node with failpoints, and a guest that runs on it.
fn cluster() -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start(1)?;
    cluster.import("tiny", "fp.pulse")?;
    let agent = cluster.node_mut(1);
    agent.terminate()?;
    agent.set_program(env!("CARGO_BIN_EXE_fpagent-failpoints"));
    agent.set_options(&["--ready-forks", "0"]);
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(1)?;
    let create = ["vm", "create", "parent", "--image", "tiny", "--wait"];
    cluster.node(1).fp(&create)?.success()?;
    cluster.wait_pulses("parent", 3)?;
    Ok(cluster)
}

/// The same, captured.
fn captured() -> anyhow::Result<(Cluster, Ground)> {
    let cluster = cluster()?;
    let create = ["snapshot", "create", "parent", "kept"];
    cluster.node(1).fp(&create)?.success()?;
    let ground = Ground::of(&cluster, "parent", "@kept")?;
    Ok((cluster, ground))
}

/// One fault of one child: where, what, and how it is told, if it is any child's end.
struct Fault(&'static str, &'static str, Option<&'static str>);

/// Forks with a fault in one child, beside what else is done. The fault has happened when this returns.
fn fork(
    cluster: &Cluster,
    source: &str,
    count: usize,
    name: &str,
    fault: &Fault,
) -> anyhow::Result<thread::JoinHandle<anyhow::Result<Answer>>> {
    let node = cluster.node(1);
    node.arm(fault.0, fault.1)?;
    let (address, source, name) = (node.address(), source.to_owned(), name.to_owned());
    let request = thread::spawn(move || {
        let count = count.to_string();
        let args = ["fork", &source, "-n", &count, "--name", &name, "-o", "json"];
        fpagent::run(Some(&address), &args)
    });
    wait_for(fault.0, PATIENCE, || Ok(node.was_reached().then_some(())))?;
    Ok(request)
}

/// One child failed and says so, if it is to; the others run.
fn well_but_one(cluster: &Cluster, answer: &Answer, fault: &Fault) -> anyhow::Result<()> {
    let Fault(at, what, words) = fault;
    let forked: Value = serde_json::from_str(&answer.out)?;
    let children = forked["children"].as_array().context("no children")?;
    let (failed, well): (Vec<_>, Vec<_>) = children.iter().partition(|child| child["error"] != "");
    anyhow::ensure!(
        failed.len() == usize::from(words.is_some()),
        "{at}, {what}: {forked}"
    );
    for child in well {
        goes_on(cluster, child["name"].as_str().context("no name")?)?;
    }
    goes_on(cluster, "parent")?;
    let (Some(words), Some(failed)) = (words, failed.first()) else {
        return answer.success();
    };
    anyhow::ensure!(answer.code == 1, "{at}, {what}: {answer:?}");
    let error = failed["error"].as_str().context("no error")?;
    eprintln!("{at}, {what}: {error}");
    anyhow::ensure!(error.contains(words), "{at}, {what}: {error}");
    let name = failed["name"].as_str().context("no name")?;
    let vm = cluster.vm(1, name)?;
    anyhow::ensure!(vm["state"] == "failed", "{vm}");
    wait_for(
        &format!("the process of {name} to be ended"),
        PATIENCE,
        || Ok((cluster.vm(1, name)?["pid"] == 0).then_some(())),
    )
}

fn join(request: thread::JoinHandle<anyhow::Result<Answer>>) -> anyhow::Result<Answer> {
    request
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))?
}

#[test]
fn a_child_that_dies_leaves_the_others_alone() -> anyhow::Result<()> {
    let (cluster, ground) = captured()?;
    let faults = [
        // Of those that are started ahead: it is started again.
        ("parent", Fault("restore.process-saved", END, None)),
        ("parent", Fault("restore.loading", END, Some("QEMU ended"))),
        ("@kept", Fault("restore.loaded", END, Some("QEMU ended"))),
        ("@kept", Fault("restore.claimed", END, Some("QEMU ended"))),
    ];
    for (source, fault) in &faults {
        let answer = join(fork(&cluster, source, 3, "child", fault)?)?;
        well_but_one(&cluster, &answer, fault)?;
        if fault.2.is_some() {
            start_failed(&cluster)?;
        }
        settled(&cluster)?;
        usable(&cluster)?;
        ground.undo(&cluster)?;
    }
    Ok(())
}

/// A child that failed is as good as new.
fn start_failed(cluster: &Cluster) -> anyhow::Result<()> {
    for vm in items(cluster, "vm")? {
        if vm["state"] == "failed" {
            let name = vm["name"].as_str().context("no name")?;
            cluster.node(1).fp(&["vm", "start", name])?.success()?;
            cluster.wait_vm(1, name, "running")?;
        }
    }
    Ok(())
}

#[test]
fn a_child_that_hangs_holds_nobody_up_for_long() -> anyhow::Result<()> {
    let (cluster, ground) = captured()?;
    // At once, and in this order: none of an earlier fork comes to the failpoint of a later one.
    let faults = [
        (3, Fault("restore.claimed", STOP, Some("cont"))),
        // Of those that are started ahead: it is started again.
        (1, Fault("restore.process-saved", STOP, None)),
        (3, Fault("restore.loading", STOP, Some("QEMU"))),
    ];
    let begun = Instant::now();
    let mut requests = Vec::new();
    for (number, (count, fault)) in faults.iter().enumerate() {
        let name = format!("child{number}");
        requests.push(fork(&cluster, "@kept", *count, &name, fault)?);
    }
    for (request, (_, fault)) in requests.into_iter().zip(&faults) {
        let answer = join(request)?;
        assert!(begun.elapsed() < HELD_UP, "{:?}", begun.elapsed());
        well_but_one(&cluster, &answer, fault)?;
    }
    start_failed(&cluster)?;
    settled(&cluster)?;
    usable(&cluster)?;
    ground.undo(&cluster)
}

#[test]
fn a_full_disk_in_a_capture_fails_that_alone() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let node = cluster.node(1);
    let full = |at: &str| -> anyhow::Result<()> {
        node.arm(at, FULL)?;
        let answer = node.fp(&["snapshot", "create", "parent", "made"])?;
        node.disarm()?;
        answer.refused(&["disk"]).with_context(|| at.to_owned())?;
        anyhow::ensure!(node.was_reached(), "{at} was not reached");
        eprintln!("{at}: {}", answer.err.trim());
        listed_well(&cluster)?;
        goes_on(&cluster, "parent")
    };
    for at in ["capture.base-made", "capture.base-copied"] {
        full(at)?;
    }
    node.fp(&["snapshot", "create", "parent", "kept"])?
        .success()?;
    let ground = Ground::of(&cluster, "parent", "@kept")?;
    for at in [
        "capture.overlay-made",
        "capture.stream-written",
        "capture.layers-frozen",
    ] {
        let acknowledged = Acknowledged::now(&cluster)?;
        full(at)?;
        acknowledged.is_there(&cluster)?;
        ground.undo(&cluster).with_context(|| at.to_owned())?;
    }
    node.fp(&["fork", "parent", "-n", "2"])?.success()?;
    usable(&cluster)?;
    ground.undo(&cluster)
}

#[test]
fn a_parent_that_hangs_fails_its_capture_and_goes_on_when_it_can() -> anyhow::Result<()> {
    let (cluster, ground) = captured()?;
    let node = cluster.node(1);
    let pid = cluster.vm(1, "parent")?["pid"].as_u64().context("no pid")?;
    let acknowledged = Acknowledged::now(&cluster)?;
    node.arm("capture.prepared", STOP)?;
    let begun = Instant::now();
    let answer = node.fp(&["snapshot", "create", "parent", "made"])?;
    signal(u32::try_from(pid)?, Signal::CONT)?;
    answer.refused(&["QEMU did not answer"])?;
    assert!(begun.elapsed() < HELD_UP, "{:?}", begun.elapsed());
    wait_for("the parent to be known again", PATIENCE, || {
        Ok((cluster.vm(1, "parent")?["state"] == "running").then_some(()))
    })?;
    wait_for("the parent to go on", PATIENCE, || {
        Ok(goes_on(&cluster, "parent").ok())
    })?;
    acknowledged.is_there(&cluster)?;
    node.fp(&["fork", "parent"])?.success()?;
    usable(&cluster)?;
    ground.undo(&cluster)
}
