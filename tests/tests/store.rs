//! Snapshots on disk: they come to be safe, survive a restart of the host, and are never served when they are not what was
//! written. And hosts that have too little room.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, signal},
    wait_for,
};
use rustix::process::Signal;
use serde_json::Value;

/// A cluster of one node whose host's boot is named by a file of ours.
fn cluster() -> anyhow::Result<(Cluster, PathBuf)> {
    let mut cluster = Cluster::with_image(1)?;
    let boot = cluster.folder().join("boot");
    fs::write(&boot, "first\n")?;
    cluster.node_mut(1).terminate()?;
    let option = boot.display().to_string();
    cluster
        .node_mut(1)
        .set_options(&["--host-boot-file", &option]);
    start(&mut cluster)?;
    Ok((cluster, boot))
}

fn start(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.wait_online(1)
}

/// The host goes down at once: agent and guests with it.
fn go_down(cluster: &mut Cluster, boot: &Path, next: &str) -> anyhow::Result<()> {
    cluster.node_mut(1).kill()?;
    for pid in cluster.processes()? {
        signal(pid, Signal::KILL)?;
    }
    wait_for("the guests' end", PATIENCE, || {
        Ok(cluster.processes()?.is_empty().then_some(()))
    })?;
    Ok(fs::write(boot, next)?)
}

fn vm(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    cluster
        .node(1)
        .fp(&["vm", "create", name, "--image", "tiny", "--wait"])?
        .success()
}

fn show(cluster: &Cluster, snapshot: &str) -> anyhow::Result<Value> {
    cluster.node(1).json(&["snapshot", "show", snapshot])
}

fn wait_field(cluster: &Cluster, snapshot: &str, field: &str, is: &str) -> anyhow::Result<Value> {
    wait_for(
        &format!("{snapshot}'s {field} to be {is}"),
        PATIENCE,
        || {
            let found = show(cluster, snapshot)?;
            Ok((found[field] == is).then_some(found))
        },
    )
    .with_context(|| format!("it is {:?}", show(cluster, snapshot)))
}

/// Changes one bit in the middle of what a sparse file holds.
fn flip(path: &Path) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    let half = bytes.len() / 2;
    let at = (half..bytes.len())
        .find(|at| bytes[*at] != 0)
        .context("nothing but zeros")?;
    Ok(file.write_all_at(&[bytes[at] ^ 1], at as u64)?)
}

/// The file of a snapshot in a folder that only it has files in.
fn only_file(cluster: &Cluster, folder: &str) -> anyhow::Result<PathBuf> {
    let mut files = fs::read_dir(cluster.node(1).data.join(folder))?;
    let file = files.next().context("no file")??.path();
    anyhow::ensure!(files.next().is_none(), "more than one file in {folder}");
    Ok(file)
}

#[test]
fn what_is_on_disk_survives_a_restart_of_the_host_and_what_is_not_is_lost() -> anyhow::Result<()> {
    let (mut cluster, boot) = cluster()?;
    for name in ["a", "b"] {
        vm(&cluster, name)?;
    }
    let node = cluster.node(1);
    node.fp(&["snapshot", "create", "a", "kept"])?.success()?;
    wait_field(&cluster, "@kept", "safety", "disk")?;
    // Shares its base with the first.
    node.fp(&["fork", "a", "--name", "child"])?.success()?;
    let child = node.json(&["vm", "show", "child"])?;
    let shared = child["snapshot"].as_str().context("no snapshot")?;
    wait_field(&cluster, shared, "safety", "disk")?;
    node.fp(&["snapshot", "create", "b", "late"])?.success()?;
    go_down(&mut cluster, &boot, "second\n")?;
    let late = fs::read_dir(cluster.node(1).data.join("bases"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<Vec<_>>>()?
        .into_iter()
        .max()
        .context("no bases")?;
    // As a file system may leave what was not synced.
    let file = File::options().write(true).open(&late)?;
    let size = file.metadata()?.len();
    file.set_len(0)?;
    file.set_len(size)?;
    start(&mut cluster)?;

    let lost = wait_field(&cluster, "@late", "state", "failed")?;
    let reason = lost["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("restarted"), "{lost}");
    let node = cluster.node(1);
    let list = node.json(&["snapshot", "ls"])?;
    let listed = list["items"].as_array().context("no items")?;
    assert!(
        listed
            .iter()
            .any(|one| one["name"] == "late" && one["state"] == "failed"),
        "{list}"
    );
    node.fp(&["fork", "@late"])?
        .refused(&["late", "restarted"])?;
    // On first use, or before.
    node.fp(&["fork", "@kept", "-n", "2", "--name", "again"])?
        .success()?;
    for name in ["again-1", "again-2"] {
        cluster.wait_vm(1, name, "running")?;
    }
    // They go on as they were: a further fork of one is as good.
    node.fp(&["fork", "again-1"])?.success()?;
    node.fp(&["fork", &format!("@{shared}")])?.success()?;
    assert_eq!(cluster.vm(1, "a")?["state"], "failed");
    assert_eq!(show(&cluster, "@kept")?["state"], "ready");
    Ok(())
}

#[test]
fn a_base_that_changed_while_the_host_was_down_is_never_served() -> anyhow::Result<()> {
    let (mut cluster, boot) = cluster()?;
    vm(&cluster, "a")?;
    let node = cluster.node(1);
    node.fp(&["snapshot", "create", "a", "kept"])?.success()?;
    wait_field(&cluster, "@kept", "safety", "disk")?;
    node.fp(&["snapshot", "create", "a", "other"])?.success()?;
    wait_field(&cluster, "@other", "safety", "disk")?;
    go_down(&mut cluster, &boot, "second\n")?;
    flip(&only_file(&cluster, "bases")?)?;
    start(&mut cluster)?;
    // Both have it.
    for name in ["@kept", "@other"] {
        let lost = wait_field(&cluster, name, "state", "failed")?;
        let reason = lost["reason"].as_str().unwrap_or_default();
        assert!(
            reason.contains("bases/") && reason.contains("damaged"),
            "{lost}"
        );
        cluster.node(1).fp(&["fork", name])?.refused(&["damaged"])?;
    }
    assert_eq!(cluster.processes()?, Vec::<u32>::new());
    Ok(())
}

#[test]
fn a_flipped_bit_in_a_stream_fails_the_child_alone() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(1)?;
    vm(&cluster, "a")?;
    let node = cluster.node(1);
    node.fp(&["snapshot", "create", "a", "kept"])?.success()?;
    flip(&only_file(&cluster, "streams")?)?;
    let answer = node.fp(&["fork", "@kept", "--name", "child"])?;
    anyhow::ensure!(answer.code != 0, "{answer:?}");
    let child = cluster.wait_vm(1, "child", "failed")?;
    let reason = child["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("streams/") && reason.contains("damaged"),
        "{child}"
    );
    let lost = wait_field(&cluster, "@kept", "state", "failed")?;
    assert!(
        lost["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("damaged")),
        "{lost}"
    );
    assert_eq!(cluster.vm(1, "a")?["state"], "running");
    node.fp(&["fork", "a"])?.success()?;
    Ok(())
}

#[test]
fn a_host_with_too_little_memory_or_disk_refuses_new_work() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(1)?;
    vm(&cluster, "a")?;
    cluster
        .node(1)
        .fp(&["snapshot", "create", "a", "kept"])?
        .success()?;
    cluster.node_mut(1).terminate()?;
    cluster
        .node_mut(1)
        .set_options(&["--reserve-memory", "64T"]);
    start(&mut cluster)?;
    cluster.wait_vm(1, "a", "running")?;
    let node = cluster.node(1);
    for source in ["a", "@kept"] {
        node.fp(&["fork", source])?
            .refused(&["memory", "kept back", "--reserve-memory"])?;
    }
    node.fp(&["vm", "create", "b", "--image", "tiny", "--wait"])?
        .refused(&["memory", "kept back"])?;
    // A capture alone needs no memory that counts.
    node.fp(&["snapshot", "create", "a"])?.success()?;
    cluster.node_mut(1).terminate()?;
    cluster.node_mut(1).set_options(&["--reserve-disk", "64T"]);
    start(&mut cluster)?;
    cluster.wait_vm(1, "a", "running")?;
    let node = cluster.node(1);
    node.fp(&["fork", "a"])?.refused(&["disk", "free room"])?;
    assert_eq!(cluster.vm(1, "a")?["state"], "running");
    Ok(())
}
