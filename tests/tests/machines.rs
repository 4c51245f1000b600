//! Machine types: a `q35` is made, forked, forked again and started anew as a `microvm` is.

use anyhow::Context as _;
use guest::{history::common_prefix, record::Record};
use harness::{cluster::Cluster, pulse};

/// Stops a VM and reads its history: memory while it stands still, and the disk, which may be one record behind.
fn history(cluster: &Cluster, name: &str) -> anyhow::Result<Vec<Record>> {
    cluster.node(1).fp(&["vm", "pause", name])?.success()?;
    let vm = cluster.vm(1, name)?;
    let memory = pulse::in_memory(&vm)?;
    cluster
        .node(1)
        .fp(&["vm", "stop", "--force", name])?
        .success()?;
    let disk = pulse::on_disk(cluster.data_of(&vm["node"])?, &vm)?;
    let memory = memory
        .into_iter()
        .find(|records| records[0].run == disk[0].run)
        .context("its run is not in memory")?;
    assert!(memory.starts_with(&disk) && memory.len() - disk.len() <= 1);
    Ok(memory)
}

#[test]
fn a_q35_is_forked_and_its_fork_is_forked_and_started_anew() -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    cluster.import("tiny", "fp.pulse")?;
    let fp = |words: &[&str]| -> anyhow::Result<()> { cluster.node(1).fp(words)?.success() };
    fp(&[
        "vm",
        "create",
        "parent",
        "--image",
        "tiny",
        "--machine",
        "q35",
        "--cpus",
        "2",
        "--wait",
    ])?;
    assert_eq!(cluster.vm(1, "parent")?["machine"], "q35");
    cluster.wait_pulses("parent", 3)?;
    fp(&["fork", "parent", "--name", "child"])?;
    cluster.wait_pulses("child", 2)?;
    fp(&["fork", "child", "--name", "grandchild"])?;
    for name in ["parent", "child", "grandchild"] {
        cluster.wait_pulses(name, 2)?;
    }
    let [parent, child, grandchild] =
        ["parent", "child", "grandchild"].map(|name| history(&cluster, name));
    let (parent, child, grandchild) = (parent?, child?, grandchild?);
    let first = common_prefix(&parent, &child);
    let second = common_prefix(&child, &grandchild);
    assert!(first > 0 && first < parent.len(), "{first}");
    assert!(second > first && second < child.len(), "{second}");

    // A fork has no kernel in its process: a start from its disk gives it one again, on the same machine.
    fp(&["vm", "start", "grandchild"])?;
    let vm = cluster.wait_vm(1, "grandchild", "running")?;
    assert_eq!(vm["machine"], "q35");
    cluster.wait_pulses("grandchild", 2)
}
