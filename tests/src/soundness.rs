//! What must hold whenever an agent has come back, on a cluster of one node with one parent and one snapshot of it that is kept:
//! nothing that is listed is unusable, nothing usable is lost, nothing is left over, no parent stands still.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use qemu::record::VmRecord;
use serde_json::Value;

use crate::{
    cluster::{Cluster, PATIENCE},
    wait_for,
};

/// How soon after its agent's return a parent must go on.
pub const RETURN: Duration = Duration::from_secs(2);
/// How much processor time of a guest shows that it goes on, nanoseconds.
const GOES_ON: u64 = 5_000_000;

/// The files of a node, by folder.
type Files = BTreeMap<&'static str, BTreeSet<String>>;

/// What is there before anything is done, and must be there after everything was undone.
#[derive(Debug)]
pub struct Ground {
    parent: String,
    kept: String,
    /// The files of the kept snapshot.
    files: Files,
    /// The data directory itself and its `run`, where names do not change.
    fixed: BTreeSet<String>,
}

impl Ground {
    /// Of a node that has this VM and this snapshot, just made, and nothing else but what is left over.
    pub fn of(cluster: &Cluster, parent: &str, kept: &str) -> anyhow::Result<Self> {
        let mut ground = Self {
            parent: parent.to_owned(),
            kept: kept.to_owned(),
            files: Files::new(),
            fixed: BTreeSet::new(),
        };
        let data = &cluster.node(1).data;
        let record = record(cluster, &cluster.vm(1, parent)?)?;
        // What a snapshot has of the disk is what its VM had below its own layer then, or more of it.
        let below: BTreeSet<String> = record.layers[1..]
            .iter()
            .map(|layer| format!("{}.qcow2", layer.0))
            .collect();
        // Right after a capture it is its base that the next one is compared with.
        let base = record.delta_base.context("it was not captured")?;
        ground.files = Files::from([
            ("bases", BTreeSet::from([base.0])),
            ("streams", names(&data.join("streams"))?),
            ("layers", below),
        ]);
        ground.fixed = fixed(data)?;
        Ok(ground)
    }

    /// Deletes all that was made, and sees that nothing is left of it.
    pub fn undo(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let node = cluster.node(1);
        for vm in items(cluster, "vm")? {
            let name = vm["name"].as_str().context("no name")?;
            if name != self.parent {
                node.fp(&["vm", "rm", "--force", name])?.success()?;
            }
        }
        node.fp(&["snapshot", "warm", &self.kept, "-n", "0"])?
            .success()?;
        for snapshot in items(cluster, "snapshot")? {
            let id = snapshot["id"].as_str().context("no id")?;
            if !self.is_kept(&snapshot) {
                let answer = node.fp(&["snapshot", "rm", id])?;
                // One that nobody named goes with its last fork.
                let gone = items(cluster, "snapshot")?
                    .iter()
                    .all(|one| one["id"] != id);
                anyhow::ensure!(answer.code == 0 || gone, "{}", answer.err);
            }
        }
        let mut difference = String::new();
        let same = wait_for("everything to be gone that was made", PATIENCE, || {
            difference = self.difference(cluster)?;
            Ok(difference.is_empty().then_some(()))
        });
        same.with_context(|| difference)
    }

    fn is_kept(&self, snapshot: &Value) -> bool {
        Some(&*self.kept)
            == snapshot["name"]
                .as_str()
                .map(|name| format!("@{name}"))
                .as_deref()
    }

    /// What of the node is not as it should be with nothing but the parent and the kept snapshot.
    fn difference(&self, cluster: &Cluster) -> anyhow::Result<String> {
        let data = &cluster.node(1).data;
        let vm = cluster.vm(1, &self.parent)?;
        let record = record(cluster, &vm)?;
        let mut wanted = self.files.clone();
        let mut add = |folder: &'static str, name: String| {
            wanted.entry(folder).or_default().insert(name);
        };
        for base in record.base.iter().chain(&record.delta_base) {
            add("bases", base.0.clone());
        }
        for layer in record.layer_files() {
            add("layers", format!("{}.qcow2", layer.0));
        }
        add("layers", format!("{}.qcow2", text(&vm, "id")?));
        add("vms", text(&vm, "id")?);
        let mut problems = Vec::new();
        for (folder, wanted) in wanted {
            let there = names(&data.join(folder))?;
            let surplus: Vec<_> = there.difference(&wanted).collect();
            if !surplus.is_empty() {
                problems.push(format!("left over in {folder}: {surplus:?}"));
            }
            // A VM's first layer, named for it, goes when it is merged into another.
            let own = format!("{}.qcow2", text(&vm, "id")?);
            let missing: Vec<_> = wanted
                .difference(&there)
                .filter(|name| **name != own)
                .collect();
            if !missing.is_empty() {
                problems.push(format!("missing in {folder}: {missing:?}"));
            }
        }
        let surplus: Vec<_> = fixed(data)?.difference(&self.fixed).cloned().collect();
        if !surplus.is_empty() {
            problems.push(format!("left over: {surplus:?}"));
        }
        let processes = cluster.processes()?;
        if processes
            .iter()
            .map(|pid| u64::from(*pid))
            .ne(vm["pid"].as_u64())
        {
            problems.push(format!(
                "processes {processes:?}, and the parent's is {}",
                vm["pid"]
            ));
        }
        Ok(problems.join("; "))
    }
}

/// What was acknowledged, and must not be lost.
#[derive(Debug, Default)]
pub struct Acknowledged {
    vms: BTreeMap<String, u64>,
    snapshots: BTreeSet<String>,
}

impl Acknowledged {
    /// All that is listed now, and is as it should be.
    pub fn now(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for vm in items(cluster, "vm")? {
            let pid = vm["pid"].as_u64().context("no pid")?;
            all.vms.insert(text(&vm, "name")?, pid);
        }
        for snapshot in items(cluster, "snapshot")? {
            // One that nobody named goes with its last fork.
            let name = text(&snapshot, "name")?;
            if !name.is_empty() {
                all.snapshots.insert(name);
            }
        }
        Ok(all)
    }

    /// A VM that is being deleted may be there or not.
    pub fn forget_vm(&mut self, name: &str) {
        self.vms.remove(name);
    }

    /// The same of a snapshot.
    pub fn forget_snapshot(&mut self, name: &str) {
        self.snapshots.remove(name);
    }

    /// A snapshot was acknowledged.
    pub fn note_snapshot(&mut self, name: &str) {
        self.snapshots.insert(name.to_owned());
    }

    /// Whether it is all there, the VMs with the processes that they had.
    pub fn is_there(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let now = Self::now(cluster)?;
        for (name, pid) in &self.vms {
            let found = now.vms.get(name);
            anyhow::ensure!(
                found == Some(pid),
                "VM {name} had the process {pid}, and has {found:?} now"
            );
        }
        let lost: Vec<_> = self.snapshots.difference(&now.snapshots).collect();
        anyhow::ensure!(lost.is_empty(), "snapshots are lost: {lost:?}");
        Ok(())
    }
}

/// A parent goes on within [`RETURN`] of now.
pub fn goes_on(cluster: &Cluster, vm: &str) -> anyhow::Result<()> {
    let mut last = Value::Null;
    let mut before = None;
    let on = wait_for(&format!("{vm} to go on"), RETURN, || {
        last = cluster.vm(1, vm)?;
        let pid = last["pid"].as_u64().context("no pid")?;
        // Until its agent has found it, there is none.
        if last["state"] != "running" || pid == 0 {
            return Ok(None);
        }
        let now = guest_time(pid)?;
        let (begun, first) = *before.get_or_insert((pid, now));
        Ok((begun == pid && now >= first + GOES_ON).then_some(()))
    });
    on.with_context(|| format!("it is {last}"))
}

/// Everything that goes on without being asked has come to its end: operations are completed or failed, no VM waits for anything.
pub fn settled(cluster: &Cluster) -> anyhow::Result<()> {
    let mut open = Vec::new();
    let settled = wait_for("all that was under way to end", PATIENCE, || {
        let of = |kind, still: &[&str]| -> anyhow::Result<Vec<Value>> {
            let all = items(cluster, kind)?;
            let still = |one: &Value| still.iter().any(|state| one["state"] == **state);
            Ok(all.into_iter().filter(still).collect())
        };
        open = of("op", &["open"])?;
        open.extend(of("vm", &["unknown", "pending", "starting"])?);
        Ok(open.is_empty().then_some(()))
    });
    settled.with_context(|| format!("{open:?}"))
}

/// Nothing that is listed is unusable: every VM runs or stands still as it should, every snapshot can be forked.
pub fn usable(cluster: &Cluster) -> anyhow::Result<()> {
    listed_well(cluster)?;
    let node = cluster.node(1);
    for snapshot in items(cluster, "snapshot")? {
        let id = text(&snapshot, "id")?;
        node.fp(&["fork", &format!("@{id}"), "--paused", "--name", "probe"])?
            .success()
            .with_context(|| format!("a fork of {snapshot}"))?;
        node.fp(&["vm", "rm", "--force", "probe"])?.success()?;
    }
    for vm in items(cluster, "vm")? {
        if vm["state"] == "running" {
            goes_on(cluster, &text(&vm, "name")?)?;
        }
    }
    Ok(())
}

/// The part of [`usable`] that starts nothing.
pub fn listed_well(cluster: &Cluster) -> anyhow::Result<()> {
    for vm in items(cluster, "vm")? {
        let well = vm["state"] == "running" || vm["state"] == "paused";
        anyhow::ensure!(well && vm["pid"] != 0, "a VM that cannot be used: {vm}");
    }
    for snapshot in items(cluster, "snapshot")? {
        anyhow::ensure!(
            snapshot["state"] == "ready",
            "a snapshot that cannot be used: {snapshot}"
        );
    }
    Ok(())
}

/// Processor time of a process's threads but its first, nanoseconds: of its virtual processors, which sleep while the guest stands
/// still, whatever else QEMU is at in its first thread.
fn guest_time(pid: u64) -> anyhow::Result<u64> {
    let mut time = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        // A thread may end while we look.
        let Ok(stat) = fs::read_to_string(task.path().join("schedstat")) else {
            continue;
        };
        if task.file_name().to_str() != Some(&pid.to_string()) {
            let spent = stat.split(' ').next().context("an empty schedstat")?;
            time += spent.parse::<u64>()?;
        }
    }
    Ok(time)
}

/// A VM's own record.
pub fn record(cluster: &Cluster, vm: &Value) -> anyhow::Result<VmRecord> {
    let data = cluster.data_of(&vm["node"])?;
    let path = data.join("vms").join(text(vm, "id")?).join("vm.json");
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// What `fpagent KIND ls` lists.
pub fn items(cluster: &Cluster, kind: &str) -> anyhow::Result<Vec<Value>> {
    let list = cluster.node(1).json(&[kind, "ls"])?;
    Ok(list["items"].as_array().context("no items")?.clone())
}

fn text(value: &Value, key: &str) -> anyhow::Result<String> {
    Ok(value[key]
        .as_str()
        .with_context(|| format!("no {key}"))?
        .to_owned())
}

fn names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// What lies in the data directory itself and in its `run`.
fn fixed(data: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut all = names(data)?;
    all.extend(
        names(&data.join("run"))?
            .into_iter()
            .map(|name| format!("run/{name}")),
    );
    Ok(all)
}
