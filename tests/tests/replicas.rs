//! Copies of snapshots on several hosts: made in the background, made elsewhere when a host is lost, and good to go on from.

use std::collections::BTreeSet;

use harness::{
    cluster::{Cluster, PATIENCE},
    copies, wait_for,
};
use serde_json::Value;

fn names(listed: &Value) -> BTreeSet<&str> {
    let names = listed.as_array().into_iter().flatten();
    names.filter_map(Value::as_str).collect()
}

#[test]
fn copies_are_made_replaced_and_forked() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    for node in 1..=3 {
        let agent = cluster.node_mut(node);
        agent.terminate()?;
        agent.set_options(&["--lost-after", "5s"]);
        agent.start()?;
        agent.wait_answers()?;
        cluster.wait_online(3)?;
    }
    cluster.import("tiny", "fp.pulse")?;
    let create = ["vm", "create", "web", "--image", "tiny", "--node", "node1"];
    wait_for("a place for a VM", PATIENCE, || {
        // Whoever leads may not have heard of the first node again.
        Ok((cluster.node(2).fp(&create)?.code == 0).then_some(()))
    })?;
    cluster.wait_vm(2, "web", "running")?;
    cluster.wait_pulses("web", 2)?;

    // All or nothing.
    let node = cluster.node(2);
    node.fp(&["node", "cordon", "node2"])?.success()?;
    let capture = ["snapshot", "create", "web", "gold", "--wait", "--replicas"];
    node.fp(&[&capture[..], &["3"]].concat())?.refused(&[
        "cannot keep 3 copies: 2 of 3 nodes can hold one; node2 is cordoned",
        "fewer copies",
    ])?;
    let listed = node.json(&["snapshot", "ls"])?;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(0));
    let made = node.json(&[&capture[..], &["2"]].concat())?;
    assert_eq!(
        (&made["safety"], &made["copiesOnDisk"], &made["replicas"]),
        (&"replicated".into(), &2.into(), &2.into()),
        "{made}"
    );
    assert_eq!(names(&made["nodes"]), BTreeSet::from(["node1", "node3"]));
    node.fp(&["node", "uncordon", "node2"])?.success()?;
    let table = node.fp(&["snapshot", "ls"])?.out;
    assert!(table.contains("replicated  2/2"), "{table}");
    // Another number later.
    let more = ["snapshot", "replicate", "web@gold", "--replicas"];
    node.fp(&[&more[..], &["4"]].concat())?
        .refused(&["cannot keep 4 copies: 3 of 3 nodes can hold one"])?;
    let other = node.json(&["snapshot", "create", "web", "silver"])?;
    assert_eq!(other["replicas"], 0);
    let silver = [
        "snapshot",
        "replicate",
        "silver",
        "--replicas",
        "3",
        "--wait",
    ];
    let silver = node.json(&silver)?;
    assert_eq!(names(&silver["nodes"]).len(), 3, "{silver}");
    copies::agree(&cluster)?;

    // What is on a host that is lost is made on another one.
    cluster.node_mut(3).kill()?;
    let replaced = wait_for("another copy of what was lost", PATIENCE, || {
        let shown = cluster.node(2).json(&["snapshot", "show", "@gold"])?;
        let copies = names(&shown["copies"]) == BTreeSet::from(["node1", "node2"]);
        Ok((copies && shown["safety"] == "replicated").then_some(shown))
    })?;
    assert_eq!(names(&replaced["nodes"]).len(), 3, "{replaced}");
    // Where nobody can take its place it keeps it.
    let shown = cluster.node(2).json(&["snapshot", "show", "@silver"])?;
    assert_eq!(names(&shown["copies"]).len(), 3, "{shown}");
    cluster.node_mut(3).start()?;
    cluster.node_mut(3).wait_answers()?;
    cluster.wait_online(3)?;
    copies::agree(&cluster)?;

    // The host that it was captured on is gone, too.
    cluster.node_mut(1).kill()?;
    let fork = ["fork", "@gold", "--name", "again", "--node", "node2"];
    wait_for("a fork of a copy", PATIENCE, || {
        // There may be no leader yet, and one that was elected may have made it before who asked was answered.
        let is_made = cluster.node(3).fp(&fork)?.code == 0;
        let shown = cluster.node(3).fp(&["vm", "show", "again"])?;
        Ok((is_made || shown.out.contains("running")).then_some(()))
    })?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.wait_pulses("again", 2)
}
