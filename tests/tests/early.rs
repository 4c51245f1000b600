//! Forks that run before all of their memory and disk is there: what they read is right or waited for, whatever becomes of those who give it,
//! of the agent that fetches it, and of themselves.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    copies::agree,
    guests::shell,
    lineage::{histories, share_then_differ, with_parent},
    wait_for,
};
use serde_json::Value;

/// A cluster of three, with a snapshot of a guest that writes records on the first node.
fn cluster() -> anyhow::Result<Cluster> {
    let cluster = with_parent("")?;
    let snapshot = ["snapshot", "create", "parent", "warm"];
    cluster.node(2).fp(&snapshot)?.success()?;
    Ok(cluster)
}

/// Has a node send no more than so much a second.
fn slow_down(cluster: &mut Cluster, number: usize, rate: &str) -> anyhow::Result<()> {
    let giver = cluster.node_mut(number);
    giver.terminate()?;
    giver.set_options(&["--transfer-rate", rate]);
    giver.start()?;
    giver.wait_answers()?;
    cluster.wait_online(3)
}

/// Waits until a node holds the snapshot.
fn held(cluster: &Cluster, through: usize, by: &str) -> anyhow::Result<()> {
    wait_for(&format!("{by} to hold the snapshot"), PATIENCE, || {
        let shown = cluster
            .node(through)
            .json(&["snapshot", "show", "parent@warm"])?;
        let nodes = shown["nodes"].as_array().into_iter().flatten();
        Ok(nodes.into_iter().any(|node| node == by).then_some(()))
    })
}

/// What a node uses that has not come, by the links that lead to it.
fn coming(cluster: &Cluster, number: usize) -> anyhow::Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    for folder in ["bases", "layers", "images"] {
        for entry in fs::read_dir(cluster.node(number).data.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_symlink() {
                links.push(entry.path());
            }
        }
    }
    Ok(links)
}

fn is_base(path: &Path) -> bool {
    path.parent()
        .is_some_and(|folder| folder.ends_with("bases"))
}

/// The kernel has not been asked for huge pages where a VM's memory is a file that comes: it would read 4 MiB for each page that is touched.
fn reads_no_more_than_it_touches(vm: &Value) -> anyhow::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", vm["pid"]))?;
    let mut lines = maps.lines();
    lines
        .by_ref()
        .find(|line| line.contains("/arriving/"))
        .context("its memory is no file that comes")?;
    let flags = lines.find(|line| line.starts_with("VmFlags:"));
    let flags: Vec<&str> = flags.context("no flags")?.split_whitespace().collect();
    assert!(!flags.contains(&"hg"), "{flags:?}");
    Ok(())
}

#[test]
fn a_fork_goes_on_from_another_source_and_with_another_agent() -> anyhow::Result<()> {
    let mut cluster = cluster()?;
    let near = ["fork", "parent@warm", "--node", "node3", "--name", "near"];
    cluster.node(2).fp(&near)?.success()?;
    held(&cluster, 2, "node3")?;
    for giver in [1, 3] {
        slow_down(&mut cluster, giver, "2M")?;
    }
    let far = ["fork", "parent@warm", "--node", "node2", "--name", "far"];
    cluster.node(3).fp(&far)?.success()?;
    let links = coming(&cluster, 2)?;
    assert!(
        links.iter().any(|link| is_base(link)),
        "it ran when all of its memory was there: {links:?}"
    );
    cluster.wait_pulses("far", 1)?;
    reads_no_more_than_it_touches(&cluster.vm(3, "far")?)?;

    // Nobody fetches, and one of two that have it is gone.
    cluster.node_mut(2).kill()?;
    cluster.node_mut(3).kill()?;
    cluster.node_mut(2).start()?;
    cluster.node_mut(2).wait_answers()?;
    let left = coming(&cluster, 2)?;
    assert!(
        left.iter().any(|link| is_base(link)),
        "all of it came before anything was lost: the test shows nothing"
    );
    cluster.wait_pulses("far", 3)?;
    held(&cluster, 1, "node2")?;
    let left = coming(&cluster, 2)?;
    assert!(!left.iter().any(|link| is_base(link)), "{left:?}");
    cluster.node_mut(3).start()?;
    cluster.node_mut(3).wait_answers()?;
    cluster.wait_online(3)?;
    agree(&cluster)?;
    // What it has open is what came; a fork of it is made of the file.
    let again = ["fork", "far", "--name", "again"];
    cluster.node(1).fp(&again)?.success()?;
    assert_eq!(shell(&cluster, 1, "again", "hostname")?.trim(), "again");
    let all = ["parent", "near", "far", "again"].map(str::to_owned);
    for name in &all {
        cluster.wait_pulses(name, 2)?;
    }
    share_then_differ(&histories(&cluster, &all)?);
    Ok(())
}

#[test]
fn a_fork_whose_only_source_is_gone_stands_still_and_goes_on_or_away() -> anyhow::Result<()> {
    let mut cluster = cluster()?;
    slow_down(&mut cluster, 1, "4M")?;
    let far = [
        "fork",
        "parent@warm",
        "-n",
        "2",
        "--node",
        "node2",
        "--name",
        "far",
    ];
    let made = cluster.node(3).json(&far)?;
    let ran = made["children"].as_array().into_iter().flatten();
    let failed: Vec<&Value> = ran.filter(|child| child["error"] != "").collect();
    assert_eq!(failed, Vec::<&Value>::new());
    cluster.node_mut(1).kill()?;
    assert!(coming(&cluster, 2)?.iter().any(|link| is_base(link)));
    // It needs what is not there: all of its memory.
    let reads = [
        "exec",
        "far-1",
        "--timeout",
        "3s",
        "--",
        "cat",
        "/proc/kcore",
    ];
    let answer = cluster.node(3).fp(&reads)?;
    assert!(answer.success().is_err(), "a guest read what nobody has");
    let pid = &cluster.vm(2, "far-1")?["pid"];
    let process = PathBuf::from(format!("/proc/{pid}"));
    assert!(process.exists(), "it has no process {pid}");
    cluster
        .node(3)
        .fp(&["vm", "rm", "--force", "far-1"])?
        .success()?;
    wait_for("a process that stands still to be gone", PATIENCE, || {
        Ok((!process.exists()).then_some(()))
    })?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.wait_pulses("far-2", 3)?;
    held(&cluster, 3, "node2")?;
    agree(&cluster)?;

    // The same, and nobody ever comes: what was begun goes with the last that needs it.
    let snapshot = ["snapshot", "create", "parent", "lone"];
    shell(
        &cluster,
        1,
        "parent",
        "dd if=/dev/urandom of=/dev/shm/noise bs=1M count=40 2>&1",
    )?;
    cluster.node(1).fp(&snapshot)?.success()?;
    let lone = ["fork", "parent@lone", "--node", "node2", "--name", "lone"];
    cluster.node(3).fp(&lone)?.success()?;
    cluster.node_mut(1).kill()?;
    assert!(coming(&cluster, 2)?.iter().any(|link| is_base(link)));
    cluster
        .node(3)
        .fp(&["vm", "rm", "--force", "lone"])?
        .success()?;
    cluster
        .node(3)
        .fp(&["snapshot", "rm", "parent@lone"])?
        .success()?;
    wait_for("what was begun to be gone", PATIENCE, || {
        let is_left = coming(&cluster, 2)?.iter().any(|link| is_base(link));
        Ok((!is_left).then_some(()))
    })
    .context("what comes of a snapshot that nobody has any more stays")
}

#[test]
fn what_was_removed_and_comes_again_is_shown_anew() -> anyhow::Result<()> {
    // How long the page server knows a file that has ended, and a little more.
    const FORGOTTEN: std::time::Duration = std::time::Duration::from_secs(11);
    let cluster = with_parent("")?;
    for round in 1..=2 {
        let far = ["fork", "parent", "--node", "node2", "--name", "far"];
        cluster.node(3).fp(&far)?.success()?;
        cluster.wait_pulses("far", 1)?;
        let remove = ["vm", "rm", "--force", "far"];
        cluster.node(3).fp(&remove)?.success()?;
        wait_for("its base to be gone", PATIENCE, || {
            let bases = cluster.node(2).data.join("bases");
            Ok(fs::read_dir(bases)?.next().is_none().then_some(()))
        })?;
        if round == 1 {
            std::thread::sleep(FORGOTTEN);
        }
    }
    Ok(())
}
