//! The main job: a running VM is forked through any node, and parent and children go on from the same instant, each whole.

use std::collections::BTreeSet;

use anyhow::Context as _;
use guest::{history::common_prefix, record::Record};
use harness::{
    cluster::{Cluster, PATIENCE},
    pulse, wait_for,
};
use serde_json::Value;

/// Stops VMs and reads their histories: memory while they stand still, disk after their processes have ended.
fn histories(cluster: &Cluster, names: &[String]) -> anyhow::Result<Vec<Vec<Record>>> {
    let mut all = Vec::new();
    for name in names {
        cluster.node(1).fp(&["vm", "pause", name])?.success()?;
        let vm = cluster.vm(2.min(cluster.agents.len()), name)?;
        assert_eq!(vm["state"], "paused");
        let memory = pulse::in_memory(&vm)?;
        cluster
            .node(1)
            .fp(&["vm", "stop", "--force", name])?
            .success()?;
        let disk = pulse::on_disk(cluster.data_of(&vm["node"])?, &vm)?;
        let run = disk[0].run;
        let memory = memory
            .into_iter()
            .find(|records| records[0].run == run)
            .context("its run is not in memory")?;
        // Memory is written before the disk: the disk may be one record behind, and no more.
        let (m, d) = (memory.len(), disk.len());
        assert!(
            d == m || d + 1 == m,
            "{name}: {m} records in memory, {d} on the disk"
        );
        assert_eq!(
            common_prefix(&memory, &disk),
            d,
            "{name}: memory and disk differ"
        );
        all.push(memory);
    }
    Ok(all)
}

/// Each pair shares its history up to a fork and differs from there on, and each went on after it.
fn share_then_differ(histories: &[Vec<Record>]) {
    for (i, a) in histories.iter().enumerate() {
        for b in &histories[i + 1..] {
            let shared = common_prefix(a, b);
            assert!(shared > 0, "two of one lineage share nothing");
            assert!(
                shared < a.len() && shared < b.len(),
                "one did not go on: {} {} {shared}",
                a.len(),
                b.len()
            );
        }
    }
}

fn fork(cluster: &Cluster, through: usize, args: &[&str]) -> anyhow::Result<Value> {
    let fork = cluster.node(through).json(&[&["fork"], args].concat())?;
    for child in fork["children"].as_array().context("no children")? {
        assert_eq!(
            (&child["state"], &child["error"]),
            (&"running".into(), &"".into()),
            "{child}"
        );
    }
    Ok(fork)
}

fn names(fork: &Value) -> Vec<String> {
    let children = fork["children"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    children
        .iter()
        .filter_map(|child| Some(child["name"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn a_vm_made_through_one_node_on_another_is_forked_through_a_third() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    cluster
        .node(1)
        .fp(&[
            "vm", "create", "parent", "--image", "tiny", "--node", "node2", "--wait",
        ])?
        .success()?;
    assert_eq!(cluster.vm(3, "parent")?["node"], "node2");
    cluster.wait_pulses("parent", 3)?;

    let made = fork(&cluster, 3, &["parent", "-n", "3"])?;
    assert_eq!(names(&made), ["parent-1", "parent-2", "parent-3"]);
    assert!(made["pauseMs"].as_f64().context("no pause")? > 0.0);
    // A fork of a fork of a fork.
    cluster.wait_pulses("parent-1", 2)?;
    let second = fork(&cluster, 1, &["parent-1", "--name", "second"])?;
    cluster.wait_pulses("second", 2)?;
    let third = fork(&cluster, 2, &["second", "--name", "third"])?;
    assert_eq!(
        (names(&second), names(&third)),
        (vec!["second".into()], vec!["third".into()])
    );
    for name in [
        "parent", "parent-1", "parent-2", "parent-3", "second", "third",
    ] {
        cluster.wait_pulses(name, 2)?;
    }

    let lineage = [
        "parent", "parent-1", "parent-2", "parent-3", "second", "third",
    ]
    .map(str::to_owned);
    let histories = histories(&cluster, &lineage)?;
    share_then_differ(&histories);
    let shared = |a: usize, b: usize| common_prefix(&histories[a], &histories[b]);
    // Siblings share exactly what they share with their parent; the deeper the fork, the later it was.
    assert_eq!(shared(2, 3), shared(0, 2));
    assert!(
        shared(1, 4) > shared(0, 1),
        "the second fork was after the first"
    );
    assert!(shared(4, 5) > shared(1, 4));
    Ok(())
}

#[test]
fn one_parent_is_forked_twenty_times() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    cluster
        .node(2)
        .fp(&["vm", "create", "parent", "--image", "tiny", "--wait"])?
        .success()?;
    cluster.wait_pulses("parent", 3)?;
    let mut children = Vec::new();
    for round in 0..20 {
        let made = fork(&cluster, round % 3 + 1, &["parent"])?;
        let child = names(&made).remove(0);
        // All twenty are kept stopped but a few, or two processors would be at it for long.
        if round % 7 != 0 {
            cluster.node(1).fp(&["vm", "pause", &child])?.success()?;
        }
        children.push(child);
    }
    assert_eq!(children.iter().collect::<BTreeSet<_>>().len(), 20);
    let chosen: Vec<String> = std::iter::once("parent".to_owned())
        .chain(children.iter().step_by(7).cloned())
        .collect();
    for name in &chosen {
        cluster.wait_pulses(name, 2)?;
    }
    share_then_differ(&histories(&cluster, &chosen)?);
    Ok(())
}

#[test]
fn children_outlive_their_parent_and_nothing_is_left_of_what_is_deleted() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    let node = cluster.node(1);
    node.fp(&[
        "vm", "create", "parent", "--image", "tiny", "--node", "node3", "--wait",
    ])?
    .success()?;
    cluster.wait_pulses("parent", 3)?;
    let kept = node.json(&["snapshot", "create", "parent", "kept"])?;
    assert_eq!(kept["state"], "ready");
    let made = fork(&cluster, 2, &["parent", "-n", "2"])?;
    let other = fork(&cluster, 2, &["parent@kept", "--name", "other"])?;
    assert_eq!(other["pauseMs"], 0.0);

    // What something depends on is not deleted, and the error names it.
    node.fp(&["snapshot", "rm", "kept"])?
        .refused(&["kept", "other"])?;
    let automatic = made["snapshot"].as_str().context("no snapshot")?;
    node.fp(&["snapshot", "rm", automatic])?
        .refused(&["parent-1", "parent-2"])?;
    node.fp(&["image", "rm", "tiny"])?
        .refused(&["tiny", "parent", "other"])?;
    node.fp(&["vm", "rm", "parent"])?.refused(&["parent"])?;

    node.fp(&["vm", "rm", "--force", "parent"])?.success()?;
    node.fp(&["vm", "show", "parent"])?.refused(&["parent"])?;
    let orphans = ["parent-1", "parent-2", "other"].map(str::to_owned);
    for name in &orphans {
        cluster.wait_pulses(name, 2)?;
    }
    share_then_differ(&histories(&cluster, &orphans)?);
    // A stopped one starts again, from its own disk.
    node.fp(&["vm", "start", "parent-1"])?.success()?;
    cluster.wait_vm(2, "parent-1", "running")?;

    node.fp(&["vm", "rm", "--force", "parent-1", "parent-2", "other"])?
        .success()?;
    // The fork's own snapshot went with its last child, the named one stays.
    let left = node.json(&["snapshot", "ls"])?;
    let left: Vec<_> = left["items"]
        .as_array()
        .context("no items")?
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(left, ["kept"]);
    node.fp(&["snapshot", "rm", "kept"])?.success()?;
    node.fp(&["image", "rm", "tiny"])?.success()?;
    wait_for("every file and process to be gone", PATIENCE, || {
        Ok((cluster.processes()?.is_empty() && files(&cluster)?.is_empty()).then_some(()))
    })
    .with_context(|| format!("left: {:?}", files(&cluster)))
}

/// Everything that nodes keep of VMs, snapshots and images.
fn files(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for agent in &cluster.agents {
        let folders = ["images", "bases", "layers", "streams", "vms"];
        for folder in folders.map(|name| agent.data.join(name)) {
            for entry in std::fs::read_dir(&folder)? {
                found.push(entry?.path().display().to_string());
            }
        }
    }
    Ok(found)
}

#[test]
fn a_guest_is_stopped_paused_restarted_and_reboots() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(1)?;
    let node = cluster.node(1);
    node.fp(&["vm", "create", "v", "--image", "tiny", "--wait"])?
        .success()?;
    let first = cluster.vm(1, "v")?["pid"].clone();
    node.fp(&["vm", "pause", "v"])?.success()?;
    assert_eq!(cluster.vm(1, "v")?["state"], "paused");
    // A paused VM is forked, and stays paused; its fork runs.
    let made = fork(&cluster, 1, &["v"])?;
    assert_eq!(made["pauseMs"], 0.0);
    assert_eq!(cluster.vm(1, "v")?["state"], "paused");
    node.fp(&["vm", "resume", "v"])?.success()?;
    node.fp(&["vm", "restart", "v"])?.success()?;
    assert_ne!(cluster.vm(1, "v")?["pid"], first);
    // Its power button works, and it stays stopped.
    node.fp(&["vm", "stop", "v"])?.success()?;
    assert_eq!(
        (&cluster.vm(1, "v")?["state"], &cluster.vm(1, "v")?["pid"]),
        (&"stopped".into(), &0.into())
    );
    node.fp(&["vm", "pause", "v"])?.refused(&["v"])?;
    node.fp(&["vm", "start", "v"])?.success()?;
    // A fork that stands still does not run until it is told to.
    let made = node.json(&["fork", "v", "--paused", "--name", "still"])?;
    assert_eq!(made["children"][0]["state"], "paused");
    node.fp(&["vm", "resume", "still"])?.success()?;
    assert_eq!(cluster.vm(1, "still")?["state"], "running");
    let console = node.fp(&["logs", "v"])?;
    console.success()?;
    assert!(
        console.out.contains("forkypig-guest ready"),
        "{}",
        console.out
    );
    let tree = node.fp(&["tree"])?;
    assert!(tree.out.contains("still"), "{}", tree.out);
    Ok(())
}

#[test]
fn a_cancelled_fork_leaves_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(1)?;
    let node = cluster.node(1);
    node.fp(&["vm", "create", "v", "--image", "tiny", "--wait"])?
        .success()?;
    let answer = std::thread::scope(|scope| -> anyhow::Result<_> {
        let fork = scope.spawn(|| node.fp(&["fork", "v", "-n", "24", "--paused"]));
        let open = wait_for("the operation to be open", PATIENCE, || {
            let list = node.json(&["op", "ls"])?;
            let items = list["items"].as_array().context("no items")?;
            let open = items.iter().find(|op| op["state"] == "open");
            Ok(open.and_then(|op| Some(op["id"].as_str()?.to_owned())))
        })?;
        node.fp(&["op", "cancel", &open])?.success()?;
        fork.join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    answer.refused(&["cancelled"])?;
    wait_for("nothing but the parent to be left", PATIENCE, || {
        let vms = node.json(&["vm", "ls"])?["items"].as_array().map(Vec::len);
        let snapshots = node.json(&["snapshot", "ls"])?["items"]
            .as_array()
            .map(Vec::len);
        Ok(
            (vms == Some(1) && snapshots == Some(0) && cluster.processes()?.len() == 1)
                .then_some(()),
        )
    })?;
    assert_eq!(cluster.vm(1, "v")?["state"], "running");
    // The parent is as good as before.
    node.fp(&["fork", "v"])?.success()
}

/// Captures of one VM that are prepared at the same time, its first among them, must not take each other's overlays or bases
/// for their own: every child is whole.
#[test]
fn one_parent_is_forked_by_several_at_once() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    cluster
        .node(2)
        .fp(&["vm", "create", "parent", "--image", "tiny", "--wait"])?
        .success()?;
    cluster.wait_pulses("parent", 3)?;
    let children = std::thread::scope(|scope| -> anyhow::Result<Vec<String>> {
        let clients: Vec<_> = (1..=3)
            .map(|client| {
                let cluster = &cluster;
                scope.spawn(move || -> anyhow::Result<Vec<String>> {
                    let mut made = Vec::new();
                    for round in 0..3 {
                        let name = format!("c{client}-{round}");
                        fork(cluster, client, &["parent", "--name", &name])?;
                        made.push(name);
                    }
                    Ok(made)
                })
            })
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(
                client
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??,
            );
        }
        Ok(all)
    })?;
    let lineage: Vec<String> = std::iter::once("parent".to_owned())
        .chain(children)
        .collect();
    for name in &lineage {
        cluster.wait_pulses(name, 2)?;
    }
    share_then_differ(&histories(&cluster, &lineage)?);
    Ok(())
}
