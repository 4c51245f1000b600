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
    soundness::{Acknowledged, Ground, goes_on, listed_well, settled, usable},
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

/// One fault of one child: where, what, and how it is told.
struct Fault(&'static str, &'static str, &'static str);

/// Forks with a fault in one of three children, beside what else is done. The fault has happened when this returns.
fn fork(
    cluster: &Cluster,
    source: &str,
    name: &str,
    fault: &Fault,
) -> anyhow::Result<thread::JoinHandle<anyhow::Result<Answer>>> {
    let node = cluster.node(1);
    node.arm(fault.0, fault.1)?;
    let (address, source, name) = (node.address(), source.to_owned(), name.to_owned());
    let request = thread::spawn(move || {
        let args = ["fork", &source, "-n", "3", "--name", &name, "-o", "json"];
        fpagent::run(Some(&address), &args)
    });
    wait_for(fault.0, PATIENCE, || Ok(node.was_reached().then_some(())))?;
    Ok(request)
}

/// One child failed and says so; the others run.
fn one_failed(cluster: &Cluster, answer: &Answer, fault: &Fault) -> anyhow::Result<()> {
    let Fault(at, what, words) = fault;
    anyhow::ensure!(answer.code == 1, "{at}, {what}: {answer:?}");
    let forked: Value = serde_json::from_str(&answer.out)?;
    let children = forked["children"].as_array().context("no children")?;
    let (failed, well): (Vec<_>, Vec<_>) = children.iter().partition(|child| child["error"] != "");
    anyhow::ensure!(
        failed.len() == 1 && well.len() == 2,
        "{at}, {what}: {forked}"
    );
    let error = failed[0]["error"].as_str().context("no error")?;
    eprintln!("{at}, {what}: {error}");
    anyhow::ensure!(error.contains(words), "{at}, {what}: {error}");
    let name = failed[0]["name"].as_str().context("no name")?;
    let vm = cluster.vm(1, name)?;
    anyhow::ensure!(vm["state"] == "failed" && vm["pid"] == 0, "{vm}");
    for child in well {
        goes_on(cluster, child["name"].as_str().context("no name")?)?;
    }
    goes_on(cluster, "parent")?;
    // It is as good as new.
    cluster.node(1).fp(&["vm", "start", name])?.success()?;
    cluster.wait_vm(1, name, "running")?;
    Ok(())
}

#[test]
fn a_child_that_dies_leaves_the_others_alone() -> anyhow::Result<()> {
    let (cluster, ground) = captured()?;
    let faults = [
        Fault("restore.process-saved", END, "QEMU"),
        Fault("restore.loading", END, "QEMU ended"),
        Fault("restore.loaded", END, "QEMU"),
        Fault("restore.claimed", END, "QEMU"),
    ];
    for fault in &faults {
        // The second as a burst of a VM, whose processes are started ahead.
        let source = if fault.0 == "restore.loading" {
            "parent"
        } else {
            "@kept"
        };
        let answer = fork(&cluster, source, "child", fault)?
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        one_failed(&cluster, &answer, fault)?;
        settled(&cluster)?;
        usable(&cluster)?;
        ground.undo(&cluster)?;
    }
    Ok(())
}

#[test]
fn a_child_that_hangs_holds_nobody_up_for_long() -> anyhow::Result<()> {
    let (cluster, ground) = captured()?;
    let faults = [
        Fault("restore.process-saved", STOP, "hangs"),
        Fault("restore.loading", STOP, "hangs"),
        Fault("restore.claimed", STOP, "cont"),
    ];
    let begun = Instant::now();
    let mut requests = Vec::new();
    for (number, fault) in faults.iter().enumerate() {
        requests.push(fork(&cluster, "@kept", &format!("child{number}"), fault)?);
    }
    for (request, fault) in requests.into_iter().zip(&faults) {
        let answer = request
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        assert!(begun.elapsed() < HELD_UP, "{:?}", begun.elapsed());
        one_failed(&cluster, &answer, fault)?;
    }
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
        "capture.layer-frozen",
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
