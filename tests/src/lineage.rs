//! What is asked of the VMs of a lineage: forking them, their histories, and what is left of them.

use anyhow::Context as _;
use guest::{history::common_prefix, record::Record};
use serde_json::Value;

use crate::{cluster::Cluster, pulse};

/// Stops VMs and reads their histories: memory while they stand still, disk after their processes have ended.
pub fn histories(cluster: &Cluster, names: &[String]) -> anyhow::Result<Vec<Vec<Record>>> {
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
pub fn share_then_differ(histories: &[Vec<Record>]) {
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

/// A cluster of three with a guest on the first node, `parent`, that writes records, and does what else these words say.
pub fn with_parent(words: &str) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", &format!("fp.pulse {words}"))?;
    let create = [
        "vm", "create", "parent", "--image", "tiny", "--node", "node1", "--wait",
    ];
    cluster.node(2).fp(&create)?.success()?;
    cluster.wait_pulses("parent", 3)?;
    Ok(cluster)
}

/// Forks, and sees to it that every child runs.
pub fn fork(cluster: &Cluster, through: usize, args: &[&str]) -> anyhow::Result<Value> {
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

/// The children's names.
pub fn names(fork: &Value) -> Vec<String> {
    let children = fork["children"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    children
        .iter()
        .filter_map(|child| Some(child["name"].as_str()?.to_owned()))
        .collect()
}

/// Everything that nodes keep of VMs, snapshots and images.
pub fn files(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for agent in &cluster.agents {
        for folder in ["images", "bases", "layers", "streams", "vms"] {
            for entry in std::fs::read_dir(agent.data.join(folder))? {
                found.push(entry?.path().display().to_string());
            }
        }
    }
    Ok(found)
}
