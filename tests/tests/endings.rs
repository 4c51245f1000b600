//! How a guest ends is told apart, shown, and acted on as its restart policy says.

use std::time::Duration;

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, signal},
    lineage::fork,
    session::Session,
    wait_for,
};
use rustix::process::Signal;
use serde_json::Value;

const PANIC: &str = "echo c >/proc/sysrq-trigger\n";

fn create(cluster: &Cluster, name: &str, options: &[&str]) -> anyhow::Result<()> {
    let args = ["vm", "create", name, "--image", "tiny", "--wait"];
    let node = cluster.node(1);
    node.fp(&[&args, options].concat())?.success()
}

/// Has the guest's shell do something that it does not answer. What is typed is on its way while the session lasts.
fn tell(cluster: &Cluster, name: &str, command: &str) -> anyhow::Result<Session> {
    let mut session = Session::open(cluster, 1, name)?;
    session.ask("listening")?;
    session.send(command)?;
    Ok(session)
}

/// `kill -9` of its QEMU.
fn crash(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let pid = cluster.vm(1, name)?["pid"].as_u64().context("no pid")?;
    signal(u32::try_from(pid)?, Signal::KILL)
}

/// Waits until a VM is in a state after an end.
fn wait_end(cluster: &Cluster, name: &str, cause: &str, state: &str) -> anyhow::Result<Value> {
    let what = format!("{name} to be {state} after its {cause}");
    let mut last = Value::Null;
    let found = wait_for(&what, PATIENCE, || {
        last = cluster.vm(1, name)?;
        let there = last["ending"]["cause"] == cause && last["state"] == state;
        Ok(there.then(|| last.clone()))
    });
    found.with_context(|| format!("it is {last}"))
}

/// Waits until a VM that ended waits to be started again; how long it does, seconds.
fn wait_back_off(cluster: &Cluster, name: &str, cause: &str, restarts: u64) -> anyhow::Result<f64> {
    let what = format!("{name} to wait after its {cause}");
    let vm = wait_for(&what, PATIENCE, || {
        let vm = cluster.vm(1, name)?;
        let there = vm["ending"]["cause"] == cause
            && vm["restarts"] == restarts
            && !vm["nextStartAt"].is_null();
        Ok(there.then_some(vm))
    })?;
    assert_eq!((&vm["state"], &vm["pid"]), (&"starting".into(), &0.into()));
    let reason = vm["reason"].as_str().context("no reason")?;
    assert!(reason.contains("starting again"), "{reason}");
    Ok(seconds(&vm["nextStartAt"])? - seconds(&vm["ending"]["at"])?)
}

/// The seconds of a time in its hour; whoever subtracts two of them lives with the turn of an hour.
fn seconds(time: &Value) -> anyhow::Result<f64> {
    let time = time.as_str().context("no time")?;
    let clock = time.split_once('T').context("no clock")?.1;
    let parts: Vec<f64> = clock
        .trim_end_matches('Z')
        .split(':')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(parts[0] * 3600.0 + parts[1] * 60.0 + parts[2])
}

/// Every way to end by itself, of a VM that is not to be started again.
fn all_ends(cluster: &Cluster, machine: &str) -> anyhow::Result<()> {
    let (node, name) = (cluster.node(1), machine);
    create(cluster, name, &["--machine", machine])?;
    let first = cluster.vm(1, name)?;
    assert_eq!(
        (&first["restart"], &first["ending"], &first["restarts"]),
        (&"never".into(), &Value::Null, &0.into())
    );

    // What the guest itself asks for is done.
    let session = tell(cluster, name, "reboot -f\n")?;
    let vm = wait_end(cluster, name, "reboot", "running")?;
    drop(session);
    assert_eq!((&vm["restarts"], &vm["reason"]), (&1.into(), &"".into()));
    assert_ne!(vm["pid"], first["pid"]);

    let session = tell(cluster, name, PANIC)?;
    let vm = wait_end(cluster, name, "panic", "failed")?;
    drop(session);
    let detail = vm["ending"]["detail"].as_str().context("no detail")?;
    assert!(detail.contains("sysrq triggered crash"), "{detail}");
    assert_eq!(vm["reason"], vm["ending"]["detail"]);

    node.fp(&["vm", "start", name])?.success()?;
    assert_eq!(cluster.vm(1, name)?["restarts"], 0);
    let session = tell(cluster, name, "poweroff -f\n")?;
    let vm = wait_end(cluster, name, "poweroff", "stopped")?;
    drop(session);
    assert_eq!(vm["power"], "stopped");

    if machine == "microvm" {
        node.fp(&["vm", "start", name])?.success()?;
        crash(cluster, name)?;
        wait_end(cluster, name, "crash", "failed")?;
        node.fp(&["vm", "start", name])?.success()?;
        node.fp(&["vm", "stop", name])?.success()?;
        wait_end(cluster, name, "stopped", "stopped")?;
    }
    Ok(())
}

#[test]
fn ends_are_told_apart_on_every_machine() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(1)?;
    std::thread::scope(|scope| {
        let machines = ["microvm", "q35"];
        let tests = machines.map(|machine| scope.spawn(|| all_ends(&cluster, machine)));
        tests.into_iter().try_for_each(|test| {
            let result = test.join();
            result.map_err(|_| anyhow::anyhow!("it panicked"))?
        })
    })
}

#[test]
fn a_vm_that_keeps_failing_waits_longer_each_time_until_somebody_steps_in() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(1)?;
    create(&cluster, "v", &["--restart", "on-failure"])?;
    let session = tell(&cluster, "v", PANIC)?;
    assert_eq!(wait_back_off(&cluster, "v", "panic", 0)?, 1.0);
    drop(session);
    wait_end(&cluster, "v", "panic", "running")?;
    crash(&cluster, "v")?;
    assert_eq!(wait_back_off(&cluster, "v", "crash", 1)?, 2.0);

    // Neither the count nor the wait is the agent's memory.
    cluster.node_mut(1).kill()?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    let vm = cluster.wait_vm(1, "v", "running")?;
    assert_eq!(
        (&vm["restarts"], &vm["nextStartAt"]),
        (&2.into(), &Value::Null)
    );
    crash(&cluster, "v")?;
    assert_eq!(wait_back_off(&cluster, "v", "crash", 2)?, 4.0);

    // Who starts it does not wait, and is the first again.
    let node = cluster.node(1);
    node.fp(&["vm", "start", "v"])?.success()?;
    let vm = cluster.vm(1, "v")?;
    assert_eq!(
        (&vm["state"], &vm["restarts"]),
        (&"running".into(), &0.into())
    );
    crash(&cluster, "v")?;
    assert_eq!(wait_back_off(&cluster, "v", "crash", 0)?, 1.0);
    wait_end(&cluster, "v", "crash", "running")?;

    // Who stops it has it stopped.
    crash(&cluster, "v")?;
    let wait = wait_back_off(&cluster, "v", "crash", 1)?;
    node.fp(&["vm", "stop", "v"])?.success()?;
    let vm = cluster.vm(1, "v")?;
    assert_eq!(
        (&vm["state"], &vm["nextStartAt"]),
        (&"stopped".into(), &Value::Null)
    );
    // What did not start when it was due does not start any more.
    std::thread::sleep(Duration::from_secs_f64(wait + 1.5));
    let vm = cluster.vm(1, "v")?;
    assert_eq!((&vm["state"], &vm["pid"]), (&"stopped".into(), &0.into()));
    Ok(())
}

#[test]
fn a_fork_starts_again_from_its_own_disk_as_its_parent_would() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(1)?;
    create(&cluster, "parent", &["--restart", "always"])?;
    fork(&cluster, 1, &["parent", "--name", "child"])?;
    assert_eq!(cluster.vm(1, "child")?["restart"], "always");
    let session = tell(
        &cluster,
        "child",
        "echo mine >/root/whose; sync; reboot -f\n",
    )?;
    let vm = wait_end(&cluster, "child", "reboot", "running")?;
    drop(session);
    assert_eq!(vm["restarts"], 1);
    let mut session = Session::open(&cluster, 1, "child")?;
    session.send("echo disk-$(cat /root/whose); poweroff -f\n")?;
    session.wait_for("disk-mine")?;
    let vm = wait_end(&cluster, "child", "poweroff", "running")?;
    assert_eq!(vm["restarts"], 2);
    let parent = cluster.vm(1, "parent")?;
    assert_eq!(
        (&parent["state"], &parent["ending"]),
        (&"running".into(), &Value::Null)
    );
    Ok(())
}
