//! Going back: a VM is set to the moment of a snapshot, and is suspended to disk and resumed.

use std::{fs, thread, time::Duration};

use anyhow::Context as _;
use guest::history::common_prefix;
use harness::{
    cluster::{Cluster, PATIENCE, is_alive, signal},
    lineage::{fork, histories},
    wait_for,
};
use rustix::process::Signal;
use serde_json::Value;

fn create(cluster: &Cluster, name: &str, args: &[&str]) -> anyhow::Result<()> {
    cluster
        .node(1)
        .fp(&[&["vm", "create", name, "--image", "tiny", "--wait"], args].concat())?
        .success()?;
    cluster.wait_pulses(name, 3)
}

fn pid(vm: &Value) -> anyhow::Result<u32> {
    Ok(vm["pid"].as_u64().context("no pid")? as u32)
}

/// A cluster whose nodes keep no forks ready that nobody asked for: what is left over can be counted.
fn cluster(nodes: usize, more: &[&str]) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start(nodes)?;
    for number in 1..=nodes {
        let node = cluster.node_mut(number);
        node.set_options(&[&["--ready-forks", "0"], more].concat());
        node.terminate()?;
        node.start()?;
        node.wait_answers()?;
    }
    cluster.wait_online(nodes)?;
    cluster.import("tiny", "fp.pulse")?;
    Ok(cluster)
}

/// Waits until a node holds as many disk layers as this, and no more.
fn wait_layers(cluster: &Cluster, node: usize, count: usize) -> anyhow::Result<()> {
    let folder = cluster.node(node).data.join("layers");
    let layers = || Ok::<_, anyhow::Error>(fs::read_dir(&folder)?.count());
    wait_for(&format!("{count} layers"), 2 * PATIENCE, || {
        Ok((layers()? == count).then_some(()))
    })
    .with_context(|| format!("there are {:?}", layers()))
}

#[test]
fn a_vm_goes_back_to_a_moment_and_on_from_there() -> anyhow::Result<()> {
    let cluster = cluster(3, &[])?;
    create(&cluster, "a", &["--node", "node2"])?;
    let node = cluster.node(3);
    node.fp(&["snapshot", "create", "a", "s"])?.success()?;
    cluster.wait_pulses("a", 3)?;
    // Shares more with the VM than the snapshot does.
    fork(&cluster, 3, &["a", "--name", "sibling"])?;
    fork(&cluster, 3, &["@s", "--name", "witness"])?;
    cluster.wait_pulses("a", 2)?;
    let before = cluster.vm(1, "a")?;

    let reset = node.json(&["vm", "reset", "a", "--to", "a@s"])?;
    assert_eq!(reset["vm"]["state"], "running", "{reset}");
    assert!(reset["runningMs"].as_f64().is_some_and(|ms| ms > 0.0));
    let after = cluster.vm(1, "a")?;
    assert_eq!(
        (&after["id"], &after["node"]),
        (&before["id"], &before["node"])
    );
    assert_ne!(after["pid"], before["pid"]);
    wait_for("the old process's end", PATIENCE, || {
        Ok((!is_alive(pid(&before)?)).then_some(()))
    })?;
    // It is forked and captured like any other, and what it goes back to stays.
    cluster.wait_pulses("a", 2)?;
    fork(&cluster, 1, &["a", "--name", "after"])?;
    node.fp(&["snapshot", "rm", "s"])?.refused(&["VM a"])?;
    let tree = node.fp(&["tree", "@s"])?;
    assert!(tree.out.contains("a  running"), "{}", tree.out);
    for name in ["a", "sibling", "witness", "after"] {
        cluster.wait_pulses(name, 2)?;
    }
    let names = ["a", "sibling", "witness", "after"].map(str::to_owned);
    let all = histories(&cluster, &names)?;
    let shared = |i: usize, j: usize| common_prefix(&all[i], &all[j]);
    // What it had been after the snapshot is gone.
    assert_eq!(shared(0, 1), shared(0, 2));
    assert_eq!(shared(1, 2), shared(0, 2));
    assert!(shared(0, 3) > shared(0, 2));

    // One that is stopped, left standing still.
    let reset = node.json(&["vm", "reset", "a", "--to", "@s", "--paused"])?;
    assert_eq!(reset["vm"]["state"], "paused", "{reset}");
    node.fp(&["vm", "resume", "a"])?.success()?;
    cluster.wait_pulses("a", 2)?;
    // Preloaded.
    node.fp(&["snapshot", "warm", "s", "-n", "1"])?.success()?;
    wait_for("a fork that is ready", PATIENCE, || {
        let shown = node.json(&["snapshot", "show", "s"])?;
        Ok((shown["ready"] == 1).then_some(()))
    })?;
    node.json(&["vm", "reset", "a", "--to", "s"])?;
    cluster.wait_pulses("a", 2)?;
    node.fp(&["snapshot", "warm", "s", "-n", "0"])?.success()?;
    // Nothing of its former lives is left: of the snapshot one layer, of the fork one and what it froze in "a", of each VM its own.
    node.fp(&["vm", "rm", "--force", "sibling", "witness", "after"])?
        .success()?;
    wait_layers(&cluster, 2, 2)?;
    let histories = histories(&cluster, &names[..1])?;
    assert!(!histories[0].is_empty());

    create(&cluster, "elsewhere", &["--node", "node1"])?;
    node.fp(&["vm", "reset", "elsewhere", "--to", "s"])?
        .refused(&["not on node node1"])?;
    create(&cluster, "larger", &["--node", "node2", "--memory", "512M"])?;
    node.fp(&["vm", "reset", "larger", "--to", "s"])?
        .refused(&["another image, size or machine type"])?;
    node.fp(&["vm", "reset", "nothing", "--to", "s"])?
        .refused(&["nothing"])?;
    Ok(())
}

#[test]
fn an_agent_is_killed_while_a_vm_is_reset() -> anyhow::Result<()> {
    let mut cluster = cluster(1, &[])?;
    create(&cluster, "a", &[])?;
    cluster
        .node(1)
        .fp(&["snapshot", "create", "a", "s"])?
        .success()?;
    for (round, delay) in [3, 10, 20, 30, 40, 50, 60, 80].into_iter().enumerate() {
        let to_paused = round % 2 == 0;
        let mut args = vec!["vm", "reset", "a", "--to", "s", "--timeout", "30s"];
        args.extend(to_paused.then_some("--paused"));
        let answer = cluster.kill_during(1, Duration::from_millis(delay), &args)?;
        let vm = cluster.vm(1, "a")?;
        let state = if answer.code == 0 && to_paused {
            "paused"
        } else {
            "running"
        };
        assert!(
            vm["state"] == state || (answer.code != 0 && to_paused && vm["state"] == "paused"),
            "after {delay} ms: {vm}, {answer:?}"
        );
        wait_for("the former process's end", PATIENCE, || {
            Ok((cluster.processes()? == [pid(&vm)?]).then_some(()))
        })
        .with_context(|| format!("after {delay} ms: {:?}, {vm}", cluster.processes()))?;
        if vm["state"] == "paused" {
            cluster.node(1).fp(&["vm", "resume", "a"])?.success()?;
        }
        cluster.wait_pulses("a", 1)?;
    }
    wait_layers(&cluster, 1, 2)?;
    histories(&cluster, &["a".to_owned()])?;
    Ok(())
}

#[test]
fn a_suspended_vm_goes_on_after_a_restart_of_its_host() -> anyhow::Result<()> {
    let boot = tempfile::NamedTempFile::new()?;
    fs::write(&boot, "first\n")?;
    let option = boot.path().display().to_string();
    let mut cluster = cluster(1, &["--host-boot-file", &option])?;
    create(&cluster, "a", &[])?;
    fork(&cluster, 1, &["a", "--name", "b"])?;
    cluster.wait_pulses("b", 2)?;
    for name in ["a", "b"] {
        let suspended = cluster.node(1).json(&["vm", "suspend", name])?;
        assert_eq!(suspended["state"], "suspended", "{suspended}");
        assert_eq!(suspended["pid"], 0);
    }
    assert_eq!(cluster.processes()?, Vec::<u32>::new());
    let node = cluster.node(1);
    node.fp(&["vm", "start", "a"])?.refused(&["resume it"])?;
    node.fp(&["fork", "a"])?.refused(&["suspended"])?;

    // The host is restarted.
    cluster.node_mut(1).kill()?;
    fs::write(&boot, "second\n")?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.wait_vm(1, "a", "suspended")?;
    for name in ["a", "b"] {
        cluster.node(1).fp(&["vm", "resume", name])?.success()?;
        assert_eq!(cluster.vm(1, name)?["state"], "running");
        cluster.wait_pulses(name, 2)?;
    }
    // And again, from pause, and killed at once.
    cluster.node(1).fp(&["vm", "pause", "b"])?.success()?;
    cluster.node(1).fp(&["vm", "suspend", "b"])?.success()?;
    cluster.node(1).fp(&["vm", "resume", "b"])?.success()?;
    cluster.wait_pulses("b", 2)?;
    let all = histories(&cluster, &["a".to_owned(), "b".to_owned()])?;
    assert!(common_prefix(&all[0], &all[1]) > 0);

    // Given up: it starts from its disk.
    cluster.node(1).fp(&["vm", "start", "a"])?.success()?;
    cluster.wait_pulses("a", 2)?;
    cluster.node(1).fp(&["vm", "suspend", "a"])?.success()?;
    cluster.node(1).fp(&["vm", "stop", "a"])?.success()?;
    assert_eq!(cluster.vm(1, "a")?["state"], "stopped");
    cluster.node(1).fp(&["vm", "start", "a"])?.success()?;
    cluster.wait_pulses("a", 2)?;
    Ok(())
}

#[test]
fn a_hosts_vms_go_on_after_its_restart() -> anyhow::Result<()> {
    let boot = tempfile::NamedTempFile::new()?;
    fs::write(&boot, "first\n")?;
    let option = boot.path().display().to_string();
    let mut cluster = cluster(1, &["--host-boot-file", &option])?;
    create(&cluster, "a", &[])?;
    fork(&cluster, 1, &["a", "-n", "4", "--name", "b"])?;
    let node = cluster.node(1);
    node.fp(&["vm", "pause", "b-2"])?.success()?;
    node.fp(&["vm", "suspend", "b-3"])?.success()?;
    node.fp(&["vm", "stop", "--force", "b-4"])?.success()?;
    let drain = ["node", "drain", "node1", "--suspend", "--timeout", "1m"];
    // Nobody else votes.
    node.fp(&drain)?.refused(&["1 of 1 voters", "--force"])?;
    let drained = node.fp(&[&drain[..], &["--force"]].concat())?;
    drained.success()?;
    assert!(drained.out.contains("ready to be restarted"), "{drained:?}");
    assert_eq!(cluster.processes()?, Vec::<u32>::new());
    for name in ["a", "b-1", "b-2", "b-3"] {
        assert_eq!(cluster.vm(1, name)?["state"], "suspended");
    }

    // An agent alone that is started anew wakes nobody.
    cluster.node_mut(1).kill()?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    thread::sleep(Duration::from_secs(2));
    assert_eq!(cluster.processes()?, Vec::<u32>::new());

    // The host is restarted.
    cluster.node_mut(1).kill()?;
    fs::write(&boot, "second\n")?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    for (name, state) in [
        ("a", "running"),
        ("b-1", "running"),
        ("b-2", "paused"),
        ("b-3", "suspended"),
        ("b-4", "stopped"),
    ] {
        cluster.wait_vm(1, name, state)?;
    }
    for name in ["a", "b-1"] {
        cluster.wait_pulses(name, 2)?;
    }
    histories(&cluster, &["a", "b-1"].map(str::to_owned))?;
    let shown = cluster.node(1).json(&["node", "show", "node1"])?;
    assert_eq!(
        (&shown["state"], &shown["drain"]),
        (&"online".into(), &Value::Null)
    );
    Ok(())
}

#[test]
fn an_agent_is_killed_while_a_vm_is_suspended() -> anyhow::Result<()> {
    let mut cluster = cluster(1, &[])?;
    create(&cluster, "a", &[])?;
    for delay in [5, 20, 50, 100, 200, 400] {
        let args = ["vm", "suspend", "a", "--timeout", "30s"];
        let answer = cluster.kill_during(1, Duration::from_millis(delay), &args)?;
        let vm = wait_for("the VM to be one or the other", PATIENCE, || {
            let vm = cluster.vm(1, "a")?;
            let settled = vm["state"] == "running" || vm["state"] == "suspended";
            Ok(settled.then_some(vm))
        })?;
        if answer.code == 0 || vm["state"] == "suspended" {
            assert_eq!(vm["state"], "suspended", "after {delay} ms: {vm}");
            assert_eq!(cluster.processes()?, Vec::<u32>::new());
            cluster.node(1).fp(&["vm", "resume", "a"])?.success()?;
        }
        cluster.wait_pulses("a", 1)?;
    }
    // A process that is killed while its VM is suspended fails the VM, not the agent.
    let vm = cluster.vm(1, "a")?;
    signal(pid(&vm)?, Signal::KILL)?;
    cluster.wait_vm(1, "a", "failed")?;
    cluster
        .node(1)
        .fp(&["vm", "suspend", "a"])?
        .refused(&["not running"])?;
    Ok(())
}
