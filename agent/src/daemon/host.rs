//! The host: what it can do, what the agent takes of it, and what an earlier agent left on it.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, RwLock},
};

use anyhow::Context as _;
use qemu::{
    disk::Overlays, groups::Groups, host, layout::Layout, machine::Engine, record::host_boot,
    sys::spawn,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::options::{MergeMemory, RunOptions, Switch, WriteTracking};
use crate::{node::Node, vms::launch::Fitness};

/// How much others give way to the agent (nice(2)).
const NICE: i32 = -20;

/// What is known of a host.
pub(super) struct Host {
    pub(super) fitness: Fitness,
    pub(super) write_tracking: Result<(), String>,
    pub(super) can_merge: Result<(), String>,
    pub(super) engine: Engine,
}

/// What this host can do, and where its VMs are kept.
pub(super) async fn look_at_host(options: &RunOptions) -> anyhow::Result<Host> {
    let layout = Layout::create(&options.data_dir, Some(options.vm_uid_base))
        .context("the data directory's folders cannot be made")?;
    layout
        .install_tracking_library(qemu::TRACKING_LIBRARY)
        .context("the tracking library cannot be installed")?;
    crate::blobs::remove_parts(&layout).context("files of broken-off imports cannot be removed")?;
    let fitness = Fitness {
        qemu: host::qemu_version(&options.qemu)
            .await
            .map_err(|problem| problem.to_string()),
        kvm: host::kvm(),
        tsc_khz: host::tsc_khz(),
        processor: host::processor().context("the processor cannot be told")?,
    };
    let write_tracking = match options.write_tracking {
        WriteTracking::Off => Err("it is turned off".to_owned()),
        WriteTracking::Auto => match host::write_tracking(&layout.tracking_library()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("this kernel does not".to_owned()),
            Err(error) => Err(format!("trying it failed: {error}")),
        },
    };
    let can_merge = match options.merge_memory {
        MergeMemory::Off => Ok(()),
        MergeMemory::On | MergeMemory::Auto => match host::memory_merging().await {
            Ok(true) => Ok(()),
            Ok(false) => Err("this kernel cannot merge the memory of VMs".to_owned()),
            Err(error) => Err(format!("trying to merge memory failed: {error}")),
        },
    };
    if let Err(problem) = &fitness.qemu {
        tracing::warn!(problem, "no VM can run on this node");
    }
    let engine = Engine {
        overlays: Overlays::new(layout.clone(), options.qemu_img.clone()),
        qemu: options.qemu.clone(),
        track_writes: write_tracking.is_ok(),
        merge_memory: options.merge_memory != MergeMemory::Off && can_merge.is_ok(),
        aslr: options.qemu_aslr == Switch::On,
        groups: Groups::open(options.cgroup.as_deref(), &group_name(layout.root())),
        priorities: Arc::default(),
        host_boot: host_boot(&options.host_boot_file)
            .context("the host's boot id cannot be read")?,
        naming: RwLock::default(),
        layout,
    };
    Ok(Host {
        fitness,
        write_tracking,
        can_merge,
        engine,
    })
}

/// A name for the control groups of who has this data directory, that no other agent of the host has.
pub fn group_name(data: &Path) -> String {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
    format!("fpagent-{}", &crate::blobs::hex(&digest)[..12])
}

/// Has guests give way to the agent: what they do costs, and what it does lets them go on. Neither is needed.
pub(super) fn come_first() {
    let own = std::process::id();
    if let Err(error) = spawn::set_oom_score(own, qemu::oom::AGENT) {
        tracing::warn!(%error, "the kernel may end the agent before its VMs when memory is short");
    }
    if let Err(error) = spawn::set_nice(own, NICE) {
        tracing::warn!(%error, "guests do not give way to the agent");
    }
    if !spawn::leads_session(own).unwrap_or(true) {
        // Its priority is others' too.
        tracing::warn!(
            "guests may not give way to the agent: start it as a service, or with setsid"
        );
    }
    // Each VM takes half a dozen.
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, "the agent may run out of file descriptors with many VMs");
    }
}

/// Ends QEMU processes of this data directory that no record knows: an agent was killed between starting one and noting it.
/// Their guests never ran.
pub(super) fn end_strays(node: &Node) -> anyhow::Result<()> {
    let known: BTreeSet<u32> = node
        .vms
        .all()
        .iter()
        .map(|(_, handle)| handle.pid())
        .collect();
    let layout = &node.vms.engine().layout;
    for pid in host::processes_of(layout.root())? {
        if known.contains(&pid) || recorded(node, pid)? {
            continue;
        }
        tracing::warn!(
            pid,
            "ending a QEMU process that was started and never noted"
        );
        let Some(raw) = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        else {
            continue;
        };
        if let Err(error) = rustix::process::kill_process(raw, rustix::process::Signal::KILL) {
            tracing::debug!(pid, %error, "it was gone");
        }
    }
    Ok(())
}

/// Whether a VM's record names this process, so that it may be one that does not answer just now.
fn recorded(node: &Node, pid: u32) -> anyhow::Result<bool> {
    for (vm, _) in node.vms.all() {
        let dir = node.vms.engine().layout.vm(&crate::vms::vm_name(vm));
        let record = qemu::record::VmRecord::load(&dir)?;
        if record
            .and_then(|record| record.process)
            .is_some_and(|process| process.pid == pid)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
