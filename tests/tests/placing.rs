//! Where VMs and forks go on three hosts: by labels, apart from others, over zones, and what is said where there is no room.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use harness::{
    cluster::{Cluster, PATIENCE},
    lineage::fork,
    wait_for,
};
use serde_json::Value;

/// A cluster of three with a guest on the first node.
fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::with_image(3)?;
    let create = ["vm", "create", "web", "--image", "tiny", "--node", "node1"];
    cluster
        .node(2)
        .fp(&[&create[..], &["--wait"]].concat())?
        .success()?;
    Ok(cluster)
}

/// On which nodes a fork's children are, by how many.
fn places(fork: &Value) -> BTreeMap<&str, usize> {
    let mut places = BTreeMap::new();
    for child in fork["children"].as_array().into_iter().flatten() {
        let node = child["node"].as_str().unwrap_or_default();
        *places.entry(node).or_default() += 1;
    }
    places
}

fn label(cluster: &Cluster, node: &str, label: &str) -> anyhow::Result<()> {
    cluster
        .node(1)
        .fp(&["node", "label", node, label])?
        .success()
}

#[test]
fn vms_go_where_they_may() -> anyhow::Result<()> {
    let cluster = cluster()?;
    label(&cluster, "node2", "disk=ssd")?;
    let create = ["vm", "create", "db", "--image", "tiny"];
    let apart = ["--where", "disk=ssd", "--apart-from", "web", "--wait"];
    let created = cluster.node(3).json(&[&create[..], &apart].concat())?;
    assert_eq!(created["node"], "node2");

    let near = fork(&cluster, 3, &["web", "-n", "2", "--apart-from", "db"])?;
    assert_eq!(places(&near), [("node1", 2)].into());
    let spread = ["web", "-n", "4", "--spread", "--apart-from", "db"];
    let spread = fork(&cluster, 2, &spread)?;
    assert_eq!(places(&spread), [("node1", 2), ("node3", 2)].into());
    let far = fork(&cluster, 1, &["web", "-n", "2", "--where", "disk=ssd"])?;
    assert_eq!(places(&far), [("node2", 2)].into());

    // As many in each zone.
    for (node, zone) in [("node1", "east"), ("node2", "east"), ("node3", "west")] {
        label(&cluster, node, &format!("zone={zone}"))?;
    }
    let zones = fork(&cluster, 2, &["web", "-n", "4", "--spread"])?;
    assert_eq!(
        places(&zones),
        [("node1", 1), ("node2", 1), ("node3", 2)].into()
    );

    // One on each node, and no node has two of them later.
    let single = [
        "fork",
        "web",
        "--label",
        "app=one",
        "--apart-from",
        "app=one",
    ];
    let single = |count: &str| {
        cluster
            .node(3)
            .fp(&[&single[..], &["-n", count, "--spread"]].concat())
    };
    single("2")?.success()?;
    single("2")?.refused(&[
        "cannot place 1 of 2: ",
        " takes one",
        " has a VM with app=one",
    ])?;
    single("1")?.success()?;
    single("1")?.refused(&["cannot place 1 of 1: node1 has a VM with app=one, node2"])?;

    let nowhere = ["fork", "web", "--where", "disk=tape"];
    cluster.node(1).fp(&nowhere)?.refused(&[
        "cannot place 1 of 1: node1 has no label disk=tape, node2 has no label disk=tape, node3",
    ])?;
    let unknown = ["fork", "web", "--spread", "--apart-from", "nobody"];
    cluster.node(1).fp(&unknown)?.refused(&["no VM \"nobody\""])
}

#[test]
fn who_lacks_room_is_told_with_how_many_it_is_short_of() -> anyhow::Result<()> {
    let mut cluster = cluster()?;
    cluster.node_mut(2).terminate()?;
    cluster
        .node_mut(2)
        .set_options(&["--reserve-memory", "64T"]);
    cluster.node_mut(2).start()?;
    cluster.node_mut(2).wait_answers()?;
    cluster.wait_online(3)?;
    let to_second = ["fork", "web", "-n", "3", "--node", "node2"];
    let said = [
        "cannot place 3 of 3: node2 memory 3 short (16 MiB each; 0 MiB are free beyond what is kept back, or memory is short)",
        "--reserve-memory",
    ];
    for node in 1..=3 {
        wait_for("what node2 has free to be known", PATIENCE, || {
            let shown = cluster.node(node).json(&["node", "show", "node2"])?;
            let free = &shown["room"]["freeMemoryBytes"];
            Ok((*free == 0).then_some(()))
        })?;
    }
    for node in 1..=3 {
        cluster.node(node).fp(&to_second)?.refused(&said)?;
    }
    // What fits is tried first.
    let spread = fork(&cluster, 3, &["web", "-n", "4", "--spread"])?;
    assert_eq!(places(&spread), [("node1", 2), ("node3", 2)].into());
    cluster
        .node(1)
        .fp(&["node", "cordon", "node3"])?
        .success()?;
    let apart = ["fork", "web", "-n", "2", "--spread", "--apart-from", "web"];
    cluster.node(2).fp(&apart)?.refused(&[
        "cannot place 2 of 2: node2 memory 2 short",
        "node1 has VM web, node3 is cordoned",
    ])?;
    let create = [
        "vm",
        "create",
        "big",
        "--image",
        "tiny",
        "--apart-from",
        "web",
    ];
    cluster
        .node(1)
        .fp(&create)?
        .refused(&["cannot place 1 of 1: node2 memory 1 short (320 MiB each; "])?;
    // Nothing of what was refused is there.
    let listed = cluster.node(1).json(&["vm", "ls"])?;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(5));
    Ok(())
}

#[test]
fn a_host_with_another_qemu_is_passed_over_and_says_why() -> anyhow::Result<()> {
    let mut cluster = cluster()?;
    let other = cluster.folder().join("other-qemu");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'QEMU emulator version 99.1.0'\nexec qemu-system-x86_64 \"$@\"\n";
    fs::write(&other, script)?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755))?;
    let node = cluster.node_mut(2);
    node.terminate()?;
    node.set_options(&["--qemu", &other.display().to_string()]);
    node.start()?;
    node.wait_answers()?;
    cluster.wait_online(3)?;
    wait_for("node2's QEMU to be known", PATIENCE, || {
        let said = cluster.node(3).fp(&["fork", "web", "--node", "node2"])?;
        Ok(said.err.contains("99.1.0").then_some(()))
    })?;
    let said = ["node2 has QEMU 99.1.0, and QEMU ", " captured it"];
    let far = ["fork", "web", "-n", "2", "--node", "node2"];
    cluster.node(1).fp(&far)?.refused(&said)?;
    let moved = ["vm", "move", "web", "--node", "node2"];
    cluster.node(2).fp(&moved)?.refused(&said)?;
    // What fits is tried first, and is enough.
    let spread = fork(&cluster, 2, &["web", "-n", "4", "--spread"])?;
    assert_eq!(places(&spread), [("node1", 2), ("node3", 2)].into());
    let moved = cluster.node(2).json(&["vm", "move", "web"])?;
    assert_eq!(moved["vm"]["node"], "node3");
    // Nothing fits any more.
    for node in ["node1", "node3"] {
        cluster.node(1).fp(&["node", "cordon", node])?.success()?;
    }
    let near = ["fork", "web", "-n", "3", "--spread"];
    cluster.node(1).fp(&near)?.refused(&[
        "cannot place 3 of 3",
        said[0],
        "node1 is cordoned",
        "node3 is cordoned",
    ])
}
