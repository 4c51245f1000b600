//! Snapshots that are taken by a schedule: as many are kept as are wanted, on as many hosts, through restarts and a move.

use std::collections::BTreeSet;

use harness::{
    cluster::{Cluster, PATIENCE},
    wait_for,
};
use serde_json::Value;

/// The ids of the scheduled snapshots that are replicated, and of all.
fn scheduled(cluster: &Cluster, through: usize) -> anyhow::Result<[BTreeSet<String>; 2]> {
    let listed = cluster.node(through).json(&["snapshot", "ls"])?;
    let items = listed["items"].as_array().into_iter().flatten();
    let all: Vec<&Value> = items.filter(|one| one["scheduled"] == true).collect();
    let ids = |ones: &mut dyn Iterator<Item = &&Value>| {
        let ids = ones.filter_map(|one| Some(one["id"].as_str()?.to_owned()));
        ids.collect::<BTreeSet<_>>()
    };
    let safe = ids(&mut all.iter().filter(|one| one["safety"] == "replicated"));
    Ok([safe, ids(&mut all.iter())])
}

#[test]
fn a_protected_vm_has_the_snapshots_that_are_wanted() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    let node = cluster.node(2);
    let create = ["vm", "create", "web", "--image", "tiny", "--node", "node1"];
    let every = ["--snapshot-every", "10s", "--keep", "2"];
    node.fp(&[&create[..], &every, &["--replicas", "4"]].concat())?
        .refused(&["cannot keep 4 copies: 3 of 3 nodes can hold one"])?;
    let wait = ["--replicas", "2", "--wait"];
    let made = node.json(&[&create[..], &every, &wait].concat())?;
    assert_eq!(
        (&made["snapshots"]["everyMs"], &made["snapshots"]["keep"]),
        (&10_000.into(), &2.into()),
        "{made}"
    );
    node.fp(&["vm", "protect", "web", "--snapshot-every", "5s"])?
        .refused(&["snapshots.every", "10 s"])?;
    let first = wait_for("the first snapshot to be replicated", PATIENCE, || {
        let [safe, _] = scheduled(&cluster, 2)?;
        Ok(safe.first().cloned())
    })?;
    let fork = ["fork", &format!("@{first}"), "--name", "child"];
    node.fp(&fork)?.success()?;
    assert!(cluster.vm(3, "child")?["snapshots"].is_null());
    node.fp(&["vm", "rm", "--force", "child"])?.success()?;
    assert!(scheduled(&cluster, 2)?[1].contains(&first));

    // The agent that takes them goes, and comes back.
    cluster.node_mut(1).kill()?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    wait_for("the first snapshot to give way", PATIENCE, || {
        let [safe, all] = scheduled(&cluster, 2)?;
        assert!(!safe.is_empty(), "none is safe");
        // One more is being made at most.
        assert!(all.len() <= 3, "too many are kept: {all:?}");
        Ok((!all.contains(&first)).then_some(()))
    })?;

    // Its new node goes on with it.
    let [_, before] = scheduled(&cluster, 2)?;
    wait_for("a move", PATIENCE, || {
        // It may be being captured.
        let moved = cluster
            .node(2)
            .fp(&["vm", "move", "web", "--node", "node2"])?;
        Ok((moved.code == 0).then_some(()))
    })?;
    let later = wait_for("a snapshot that was taken there", PATIENCE, || {
        let [safe, _] = scheduled(&cluster, 2)?;
        let shown = |id: &String| cluster.node(2).json(&["snapshot", "show", id]);
        for id in safe.difference(&before) {
            let nodes = shown(id)?["nodes"].as_array().cloned().unwrap_or_default();
            if nodes.contains(&"node2".into()) {
                return Ok(Some(id.clone()));
            }
        }
        Ok(None)
    })?;
    let node = cluster.node(2);
    node.fp(&["snapshot", "tag", &later, "gold"])?.success()?;
    let off = node.json(&["vm", "protect", "web", "--snapshot-every", "off"])?;
    assert!(off["snapshots"].is_null(), "{off}");
    wait_for("those to go that are nobody's", PATIENCE, || {
        // A capture may be under way.
        let deleted = cluster.node(2).fp(&["vm", "rm", "--force", "web"])?;
        let listed = cluster.node(2).json(&["snapshot", "ls"])?;
        let items = listed["items"].as_array().cloned().unwrap_or_default();
        let gold = items.len() == 1 && items[0]["name"] == "gold";
        Ok((gold && deleted.code != 0).then_some(()))
    })
}
