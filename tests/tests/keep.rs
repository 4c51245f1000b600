//! What is kept for a time, or by a lease, goes with that.

use harness::{
    cluster::{Cluster, PATIENCE},
    wait_for,
};

/// The names of all VMs.
fn names(cluster: &Cluster, through: usize) -> anyhow::Result<Vec<String>> {
    let listed = cluster.node(through).json(&["vm", "ls"])?;
    let vms = listed["items"].as_array().into_iter().flatten();
    let names = vms.filter_map(|vm| Some(vm["name"].as_str()?.to_owned()));
    Ok(names.collect())
}

#[test]
fn what_is_kept_for_a_time_goes_with_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    let node = cluster.node(2);
    let create = |name, how: &[&str]| {
        let create = ["vm", "create", name, "--image", "tiny", "--node", "node1"];
        node.fp(&[&create[..], how].concat())?.success()
    };
    create("stays", &["--wait"])?;
    let lease = node.json(&["lease", "create", "--ttl", "10s"])?;
    let lease = lease["id"].as_str().unwrap_or_default().to_owned();
    let fork = [
        "fork", "stays", "-n", "2", "--name", "leased", "--lease", &lease,
    ];
    node.fp(&fork)?.success()?;
    let capture = ["snapshot", "create", "stays", "brief", "--ttl", "10m"];
    node.fp(&capture)?.success()?;
    node.fp(&["fork", "@brief", "--name", "timed", "--ttl", "3s"])?
        .success()?;
    node.fp(&["fork", "@brief", "--name", "saved", "--ttl", "20s"])?
        .success()?;
    assert!(!cluster.vm(3, "saved")?["expiresAt"].is_null());
    let keep = ["keep", "vm", "saved", "--forever"];
    cluster.node(3).fp(&keep)?.success()?;
    node.fp(&["lease", "renew", &lease])?.success()?;
    let leases = cluster.node(1).json(&["lease", "ls"])?;
    assert_eq!(leases["items"][0]["vms"], 2, "{leases}");
    node.fp(&["fork", "stays", "--lease", "01J9ZK3A"])?
        .refused(&["lease"])?;
    node.fp(&[
        "vm",
        "create",
        "x",
        "--image",
        "tiny",
        "--lease",
        &format!("{}Z", &lease[1..]),
    ])?
    .refused(&["lease"])?;

    // Whoever leads: it takes over what is to end.
    let leader = cluster.leader()?;
    cluster.node_mut(leader).kill()?;
    let other = if leader == 1 { 2 } else { 1 };
    wait_for("what is over to go", PATIENCE, || {
        let left = names(&cluster, other)?;
        Ok((left == ["saved", "stays"]).then_some(()))
    })?;
    cluster.node_mut(leader).start()?;
    cluster.node_mut(leader).wait_answers()?;
    // A snapshot goes with the last fork of it.
    let node = cluster.node(other);
    let shown = node.json(&["snapshot", "show", "@brief"])?;
    assert!(!shown["expiresAt"].is_null(), "{shown}");
    node.fp(&["keep", "snapshot", "brief", "--ttl", "1s"])?
        .success()?;
    wait_for("its name to go", PATIENCE, || {
        let shown = node.fp(&["snapshot", "show", "@brief"])?;
        Ok((shown.code == 1).then_some(()))
    })?;
    cluster.wait_pulses("saved", 2)?;
    node.fp(&["vm", "rm", "--force", "saved"])?.success()?;
    wait_for("the snapshot to go", PATIENCE, || {
        let listed = node.json(&["snapshot", "ls"])?;
        let is_empty = listed["items"].as_array().is_some_and(Vec::is_empty);
        Ok((is_empty && cluster.processes()?.len() == 1).then_some(()))
    })
}
