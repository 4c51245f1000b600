//! Forks onto other hosts: one request, as exact and distinct as on one's own, which moves only what those lack, from whoever has it.
//!
//! `FP_SPREAD`: how many forks are spread over three hosts at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    copies::agree,
    guests::{amount, shell},
    lineage::{files, fork, histories, names, share_then_differ, with_parent},
    pulse::memory_sum,
    requests::Request,
    wait_for,
};
use serde_json::Value;

/// How many guests that are busy are at work at once.
const AT_WORK: usize = 6;

/// On which nodes a fork's children are, by how many.
fn places(fork: &Value) -> BTreeMap<&str, usize> {
    let mut places = BTreeMap::new();
    for child in fork["children"].as_array().into_iter().flatten() {
        *places
            .entry(child["node"].as_str().unwrap_or_default())
            .or_default() += 1;
    }
    places
}

/// Bytes that have come to a node from others.
fn moved(cluster: &Cluster, node: usize) -> anyhow::Result<u64> {
    let shown = cluster
        .node(node)
        .metrics(&cluster.node(1).data.join("certs/admin"))?;
    let mut lines = shown.lines();
    let value = lines.find_map(|line| line.strip_prefix("fpagent_fetched_bytes_total "));
    Ok(value.map_or(Ok(0), str::parse)?)
}

#[test]
fn forks_on_other_hosts_are_exact_distinct_and_deleted() -> anyhow::Result<()> {
    let cluster = with_parent("")?;
    let secret = cluster.folder().join("secret");
    fs::write(&secret, "s3cret")?;
    let secret = format!("key=@{}", secret.display());
    // Through a node that is neither end.
    let told = [
        "parent", "--node", "node2", "--name", "far", "--set", "role=far",
    ];
    let far = fork(&cluster, 3, &[&told[..], &["--secret", &secret]].concat())?;
    assert_eq!(places(&far), BTreeMap::from([("node2", 1)]));
    assert_eq!(cluster.vm(1, "far")?["node"], "node2");
    let says = shell(
        &cluster,
        1,
        "far",
        "hostname; fpguest get role; fpguest get key",
    )?;
    assert_eq!(
        says.split_whitespace().collect::<Vec<_>>(),
        ["far", "fars3cret"]
    );

    // All over, also from there: a fork of a fork that came from elsewhere.
    let each = amount("FP_SPREAD", 6) / 3;
    let count = (3 * each).to_string();
    let spread = fork(&cluster, 2, &["parent", "-n", &count, "--spread"])?;
    assert_eq!(
        places(&spread),
        ["node1", "node2", "node3"].map(|node| (node, each)).into()
    );
    cluster.wait_pulses("far", 2)?;
    let back = fork(&cluster, 3, &["far", "--node", "node1", "--name", "back"])?;
    let mut all = vec!["parent".to_owned(), "far".to_owned()];
    all.extend(names(&spread));
    all.extend(names(&back));
    for name in &all {
        cluster.wait_pulses(name, 2)?;
    }
    wait_for("what was fetched to be held", PATIENCE, || {
        let shown = cluster
            .node(1)
            .json(&["snapshot", "show", text(&spread["snapshot"])?])?;
        let nodes = shown["nodes"].as_array().map(Vec::len);
        Ok((nodes == Some(3)).then_some(()))
    })?;
    agree(&cluster)?;
    share_then_differ(&histories(&cluster, &all)?);

    // It starts anew from its own disk, where it is.
    cluster.node(1).fp(&["vm", "start", "far"])?.success()?;
    cluster.wait_vm(3, "far", "running")?;
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let remove = [&["vm", "rm", "--force"], &all[..]].concat();
    cluster.node(3).fp(&remove)?.success()?;
    cluster.node(3).fp(&["image", "rm", "tiny"])?.success()?;
    wait_for("every file and process to be gone", PATIENCE, || {
        Ok((cluster.processes()?.is_empty() && files(&cluster)?.is_empty()).then_some(()))
    })
    .with_context(|| format!("left: {:?}", files(&cluster)))
}

/// The parent writes all over its memory and its disk as fast as it can: forks of it on three hosts hold the same moment, byte for byte, find all
/// that they wrote, and are others from there on.
#[test]
fn forks_of_a_busy_guest_hold_one_moment_on_every_host() -> anyhow::Result<()> {
    let cluster = with_parent("fp.churn=32 fp.churn-disk")?;
    let count = (amount("FP_SPREAD", 6) / 3 * 3).to_string();
    let spread = ["fork", "parent", "-n", &count, "--spread", "--paused"];
    let made = cluster.node(3).json(&spread)?;
    assert_eq!(places(&made).len(), 3, "{made}");
    let all = names(&made);
    let mut sums = BTreeMap::<u32, Vec<&str>>::new();
    for name in &all {
        let vm = cluster.vm(2, name)?;
        assert_eq!(vm["state"], "paused", "{vm}");
        sums.entry(memory_sum(&vm)?).or_default().push(name);
    }
    assert_eq!(sums.len(), 1, "their memory is not the same: {sums:?}");
    let (mut ids, mut written) = (BTreeSet::new(), Vec::new());
    // Each keeps a processor busy: the others stand still, and are stopped when they were seen to go on.
    for few in all.chunks(AT_WORK) {
        for name in few {
            cluster.node(1).fp(&["vm", "resume", name])?.success()?;
        }
        for name in few {
            cluster.wait_pulses(name, 2)?;
            // Each ends when it does not find what it wrote.
            let churns = shell(&cluster, 2, name, "ps | grep -c '[f]pguest churn'")?;
            assert_eq!(churns.trim(), "2", "{name}");
            ids.insert(shell(&cluster, 3, name, "hostname; cat /etc/machine-id")?);
        }
        written.extend(histories(&cluster, few)?);
    }
    assert_eq!(ids.len(), all.len(), "{ids:?}");
    share_then_differ(&written);
    Ok(())
}

#[test]
fn only_what_a_host_lacks_moves() -> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let cluster = with_parent("")?;
    let first = fork(&cluster, 1, &["parent", "--node", "node2"])?;
    // What nobody waits for comes, too.
    wait_for("all of the image to be there", PATIENCE, || {
        let shown = cluster.node(1).json(&["image", "show", "tiny"])?;
        let nodes = shown["nodes"].as_array().map(Vec::len);
        Ok((nodes == Some(2)).then_some(()))
    })?;
    all_there(&cluster, &first)?;
    let all = moved(&cluster, 2)?;
    let base = base_of(&cluster, &first)?;
    let base_bytes = base.0;
    // All of it, and packed: the image's files come, too.
    assert!(
        all > 20 * MIB && all < base_bytes,
        "{all} bytes for a base of {base_bytes} and an image"
    );
    // The base is there: what the guest wrote since comes.
    cluster.wait_pulses("parent", 2)?;
    let second = fork(&cluster, 1, &["parent", "--node", "node2"])?;
    assert_eq!(base_of(&cluster, &second)?.1, base.1);
    all_there(&cluster, &second)?;
    let more = moved(&cluster, 2)? - all;
    assert!(
        more < 5 * MIB / 2,
        "{more} bytes for what was written in a moment"
    );

    // Another base, since so much was written: most of its pages are as in the one before.
    shell(
        &cluster,
        1,
        "parent",
        "dd if=/dev/urandom of=/dev/shm/noise bs=1M count=40 2>&1",
    )?;
    let third = fork(&cluster, 1, &["parent", "--node", "node2"])?;
    assert_ne!(base_of(&cluster, &third)?.1, base.1, "there is no new base");
    all_there(&cluster, &third)?;
    let noise = moved(&cluster, 2)? - all - more;
    assert!(
        noise > 40 * MIB && noise < 48 * MIB,
        "{noise} bytes for 40 MiB that cannot be packed"
    );
    agree(&cluster)
}

/// Waits until two nodes hold what a fork was made of.
fn all_there(cluster: &Cluster, fork: &Value) -> anyhow::Result<()> {
    let snapshot = text(&fork["snapshot"])?;
    wait_for("all that the fork is made of to be there", PATIENCE, || {
        let shown = cluster.node(1).json(&["snapshot", "show", snapshot])?;
        let nodes = shown["nodes"].as_array().map(Vec::len);
        Ok((nodes == Some(2)).then_some(()))
    })
}

/// The size of a fork's base, and its name.
fn base_of(cluster: &Cluster, fork: &Value) -> anyhow::Result<(u64, String)> {
    let shown = cluster
        .node(1)
        .json(&["snapshot", "show", text(&fork["snapshot"])?])?;
    let bytes = shown["baseBytes"].as_u64().context("no size")?;
    let vm = cluster.vm(1, &names(fork)[0])?;
    let record = harness::soundness::record(cluster, &vm)?;
    Ok((bytes, record.base.context("no base")?.0))
}

fn text(value: &Value) -> anyhow::Result<&str> {
    value
        .as_str()
        .with_context(|| format!("{value} is no text"))
}

#[test]
fn what_cannot_be_had_fails_with_the_reason_and_is_had_later() -> anyhow::Result<()> {
    let mut cluster = with_parent("")?;
    for (args, words) in [
        (&["fork", "parent", "--node", "node9"][..], &["node9"][..]),
        (
            &["fork", "parent", "--node", "node2", "--spread"],
            &["--spread"],
        ),
    ] {
        let answer = cluster.node(1).fp(args)?;
        assert_ne!(answer.code, 0);
        for word in words {
            assert!(answer.err.contains(word), "{}", answer.err);
        }
    }
    cluster
        .node(1)
        .fp(&["node", "cordon", "node2"])?
        .success()?;
    cluster
        .node(1)
        .fp(&["fork", "parent", "--node", "node2"])?
        .refused(&["node2", "cordoned"])?;
    let spread = fork(&cluster, 1, &["parent", "-n", "2", "--spread"])?;
    assert_eq!(places(&spread), [("node1", 1), ("node3", 1)].into());
    cluster
        .node(1)
        .fp(&["node", "uncordon", "node2"])?
        .success()?;

    let create = ["snapshot", "create", "parent", "kept"];
    cluster.node(1).fp(&create)?.success()?;
    fork(
        &cluster,
        1,
        &["@kept", "--node", "node2", "--name", "second"],
    )?;
    wait_for("the second node to hold it", PATIENCE, || {
        let shown = cluster.node(1).json(&["snapshot", "show", "@kept"])?;
        Ok((shown["nodes"].as_array().map(Vec::len) == Some(2)).then_some(()))
    })?;
    // Its first node is away: the other one has it.
    cluster.node_mut(1).kill()?;
    missed(&cluster, "node1")?;
    let third = fork(
        &cluster,
        2,
        &["@kept", "--node", "node3", "--name", "third"],
    )?;
    assert_eq!(places(&third), [("node3", 1)].into());
    let where_it_is = fork(&cluster, 3, &["@kept", "--name", "fourth"])?;
    assert_ne!(places(&where_it_is), [("node1", 1)].into());
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.wait_online(3)?;

    // What only a node has that is away cannot be had.
    let create = ["snapshot", "create", "parent", "alone"];
    cluster.node(1).fp(&create)?.success()?;
    cluster.node_mut(1).kill()?;
    missed(&cluster, "node1")?;
    let asked = ["fork", "@alone", "--node", "node2", "--name", "late"];
    cluster
        .node(2)
        .fp(&asked)?
        .refused(&["cannot be had", "node1"])?;
    assert_eq!(cluster.vm(2, "late")?["state"], "failed");
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.node(2).fp(&["vm", "start", "late"])?.success()?;
    cluster.wait_vm(3, "late", "running")?;
    cluster.wait_pulses("late", 2)?;
    agree(&cluster)
}

/// Waits until a node is known to be away.
fn missed(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    wait_for(&format!("{name} to be missed"), PATIENCE, || {
        let list = cluster.node(2).json(&["node", "ls"])?;
        let mut nodes = list["items"].as_array().into_iter().flatten();
        let is_away = nodes.any(|node| node["name"] == name && node["state"] == "offline");
        Ok(is_away.then_some(()))
    })
}

#[test]
fn a_node_that_was_killed_makes_its_part_when_it_is_back() -> anyhow::Result<()> {
    let mut cluster = with_parent("")?;
    for number in [1, 3] {
        let agent = cluster.node_mut(number);
        agent.terminate()?;
        agent.set_options(&["--lost-after", "10m"]);
        agent.start()?;
        agent.wait_answers()?;
    }
    cluster.wait_online(3)?;
    cluster.node_mut(2).kill()?;
    // It is not missed yet.
    let spread = ["fork", "parent", "-n", "3", "--spread", "-o", "json"];
    let request = Request::begin(&cluster, 3, &spread);
    wait_for("the others' parts", PATIENCE, || {
        let list = cluster.node(3).json(&["vm", "ls"])?;
        let vms = list["items"].as_array().into_iter().flatten();
        Ok((vms.filter(|vm| vm["state"] == "running").count() == 3).then_some(()))
    })?;
    cluster.node_mut(2).start()?;
    cluster.node_mut(2).wait_answers()?;
    let made = request.answer()?.json()?;
    assert_eq!(
        places(&made),
        ["node1", "node2", "node3"].map(|node| (node, 1)).into(),
        "{made}"
    );
    let mut all = vec!["parent".to_owned()];
    all.extend(names(&made));
    for name in &all {
        cluster.wait_pulses(name, 2)?;
    }
    share_then_differ(&histories(&cluster, &all)?);
    Ok(())
}

/// Waits until so much of what an operation needs has come, as a node shows it that has nothing to do with it.
fn until_moved(cluster: &Cluster, operation: &str, bytes: u64) -> anyhow::Result<()> {
    wait_for("some of it to come", PATIENCE, || {
        let shown = cluster.node(3).json(&["op", "show", operation])?;
        let moved = &shown["transfers"][0]["movedBytes"];
        Ok((moved.as_u64().unwrap_or_default() >= bytes).then_some(()))
    })
}

#[test]
fn what_was_cut_off_goes_on_where_it_was() -> anyhow::Result<()> {
    const RATE: u64 = 8 << 20;
    let mut cluster = Cluster::start_apart(3)?;
    let giver = cluster.node_mut(1);
    giver.terminate()?;
    giver.set_options(&["--transfer-rate", "8M"]);
    giver.start()?;
    giver.wait_answers()?;
    cluster.wait_online(3)?;
    cluster.import("tiny", "fp.pulse")?;
    let create = [
        "vm", "create", "parent", "--image", "tiny", "--node", "node1", "--wait",
    ];
    cluster.node(1).fp(&create)?.success()?;
    cluster.wait_pulses("parent", 3)?;
    let began = std::time::Instant::now();
    let fork = ["fork", "parent", "--node", "node2", "--name", "far"];
    let (request, operation) = Request::begun(&cluster, 2, &fork)?;
    until_moved(&cluster, &operation, RATE)?;
    cluster.network()?.unplug(1)?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    cluster.network()?.plug(1)?;
    request.answer()?.success()?;
    // Nothing came twice but what was on its way, and nothing faster than it may.
    let bytes: u64 = wait_for("how much came to be in the log", PATIENCE, || {
        let log = cluster.node(2).log_text();
        let line = log
            .lines()
            .find(|line| line.contains("a snapshot was fetched"));
        Ok(line.and_then(|line| line.split("bytes=").nth(1)?.split(' ').next()?.parse().ok()))
    })?;
    let packed = 37 << 20;
    assert!(
        bytes < packed * 5 / 4,
        "{bytes} bytes came for {packed} or so"
    );
    let least = (bytes - RATE) / RATE;
    assert!(began.elapsed().as_secs() >= least, "{:?}", began.elapsed());
    cluster.wait_pulses("far", 2)?;
    agree(&cluster)
}

#[test]
fn a_cancelled_transfer_leaves_nothing() -> anyhow::Result<()> {
    let mut cluster = with_parent("")?;
    let giver = cluster.node_mut(1);
    giver.terminate()?;
    giver.set_options(&["--transfer-rate", "1M"]);
    giver.start()?;
    giver.wait_answers()?;
    cluster.wait_online(3)?;
    let fork = ["fork", "parent", "-n", "2", "--spread", "--name", "far"];
    let on_two = [&fork[..], &["--paused"]].concat();
    let mut cancelled = false;
    for _ in 0..5 {
        let (request, operation) = Request::begun(&cluster, 1, &on_two)?;
        let show = ["op", "show", &operation];
        wait_for("some of it to come", PATIENCE, || {
            let shown = cluster.node(3).json(&show)?;
            let moved = shown["transfers"][0]["movedBytes"].as_u64();
            Ok((moved > Some(0) || shown["state"] != "open").then_some(()))
        })?;
        cluster
            .node(3)
            .fp(&["op", "cancel", &operation])?
            .success()?;
        let answer = request.answer()?;
        // Who is loaded by then stays, on each node: those are deleted like any other.
        let listed = cluster.node(1).json(&["vm", "ls"])?;
        for vm in listed["items"].as_array().into_iter().flatten() {
            if vm["name"] != "parent" {
                let id = vm["id"].as_str().context("no id")?;
                cluster
                    .node(1)
                    .fp(&["vm", "rm", "--force", id])?
                    .success()?;
            }
        }
        cancelled = answer.code != 0;
        if cancelled {
            answer.refused(&["cancelled"])?;
            break;
        }
    }
    assert!(cancelled, "it was too late each time");
    wait_for("nothing of it to be left", PATIENCE, || {
        let is_empty = |folder| -> anyhow::Result<bool> {
            let folder = cluster.node(2).data.join(folder);
            Ok(fs::read_dir(folder)?.next().is_none())
        };
        Ok((is_empty("bases")? && is_empty("layers")? && is_empty("streams")?).then_some(()))
    })?;
    cluster.wait_pulses("parent", 2)
}
