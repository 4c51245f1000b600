//! Looks at the host: what a node needs, what it would be better with, and what to do about it.

use proto::v1::{HostCheck, HostCheckResult};

use raft::state::ObjectId;

use crate::node::Node;

/// Checks everything there is to check.
pub fn check(node: &Node) -> Vec<HostCheck> {
    let mut checks = vec![
        qemu(node),
        kvm(node),
        write_tracking(node),
        early(),
        disk(node),
    ];
    checks.extend(crate::density::check(node));
    checks.push(authority(node));
    checks.push(clock(node));
    checks.push(strangers(node));
    checks
}

/// What keeps a host from being fully used, one sentence each: what is replicated about it.
pub fn problems(node_checks: &[HostCheck]) -> Vec<String> {
    let failed = |check: &&HostCheck| check.result() == HostCheckResult::Failed;
    node_checks
        .iter()
        .filter(failed)
        .map(|check| format!("{}: {}; {}", check.name, check.found, check.hint))
        .collect()
}

fn result(name: &str, result: HostCheckResult, found: impl Into<String>, hint: &str) -> HostCheck {
    HostCheck {
        name: name.to_owned(),
        result: result.into(),
        found: found.into(),
        hint: hint.to_owned(),
    }
}

/// VMs that ran here and that the cluster's state does not know: it was put back to a moment before they were made.
fn strangers(node: &Node) -> HostCheck {
    let state = node.state();
    let is_known =
        |vm| state.vms.contains_key(&vm) || state.tombstones.contains_key(&ObjectId::Vm(vm));
    let seen = node.vms.observe();
    let unknown: Vec<String> = seen
        .iter()
        .filter(|(vm, seen)| seen.has_run && !is_known(**vm))
        .map(|(vm, _)| match node.pid_of(*vm) {
            0 => vm.to_string(),
            pid => format!("{vm} (process {pid})"),
        })
        .collect();
    match unknown.is_empty() || state.cluster.is_none() {
        true => result(
            "unknown-vms",
            HostCheckResult::Ok,
            "the cluster knows every VM that is here",
            "",
        ),
        false => result(
            "unknown-vms",
            HostCheckResult::Warning,
            format!(
                "the cluster does not know these VMs: {}",
                unknown.join(", ")
            ),
            "they are left alone. Restore a newer backup, or end their processes and remove their folders in DATA/vms",
        ),
    }
}

fn qemu(node: &Node) -> HostCheck {
    match &node.fitness.qemu {
        Ok(version) => result("qemu", HostCheckResult::Ok, format!("QEMU {version}"), ""),
        Err(problem) => result(
            "qemu",
            HostCheckResult::Failed,
            problem,
            "install QEMU 8.2 or newer (Debian 12: from bookworm-backports, see deploy/deps.sh), then restart the agent",
        ),
    }
}

fn kvm(node: &Node) -> HostCheck {
    match node.fitness.kvm {
        Ok(()) => result("kvm", HostCheckResult::Ok, "KVM can be used", ""),
        Err(problem) => result(
            "kvm",
            HostCheckResult::Warning,
            format!("guests run in software emulation: {problem}"),
            "use a host with hardware virtualisation, enabled in its firmware, and load kvm_intel or kvm_amd",
        ),
    }
}

fn write_tracking(node: &Node) -> HostCheck {
    match &node.write_tracking {
        Ok(()) => result(
            "write-tracking",
            HostCheckResult::Ok,
            "the kernel tracks guests' writes",
            "",
        ),
        Err(problem) => result(
            "write-tracking",
            HostCheckResult::Warning,
            format!("VMs stand still while their memory is copied: {problem}"),
            "use Linux 6.7 or newer with userfaultfd",
        ),
    }
}

/// Whether forks can run here before all that they are made of has come.
fn early() -> HostCheck {
    // The same as a mount needs of it.
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    match opened {
        Ok(_) => result(
            "early-start",
            HostCheckResult::Ok,
            "forks from other nodes run while their memory comes",
            "",
        ),
        Err(error) => result(
            "early-start",
            HostCheckResult::Warning,
            format!(
                "forks from other nodes run once all of their memory is here: /dev/fuse cannot be opened: {error}"
            ),
            "load the kernel's module fuse",
        ),
    }
}

/// The authority's end, and whether this node belongs to it.
fn authority(node: &Node) -> HostCheck {
    let problems = crate::api::authority::problems(node, &node.state());
    match problems.split_first() {
        None => result("authority", HostCheckResult::Ok, "it is good", ""),
        // Each says what to do.
        Some(_) => result(
            "authority",
            HostCheckResult::Warning,
            problems.join("; "),
            "see `fpagent authority show` and docs/authority.md",
        ),
    }
}

fn disk(node: &Node) -> HostCheck {
    match node.free_bytes() {
        Ok(free) if free >= node.reserves.disk => result(
            "disk",
            HostCheckResult::Ok,
            format!("{} MiB free in the data directory", free >> 20),
            "",
        ),
        Ok(free) => result(
            "disk",
            HostCheckResult::Failed,
            format!(
                "only {} MiB free in the data directory: new work is refused",
                free >> 20
            ),
            "free room on its file system",
        ),
        Err(error) => result(
            "disk",
            HostCheckResult::Failed,
            error.to_string(),
            "look at the data directory's file system",
        ),
    }
}

/// Tokens and certificates end at times that all nodes must agree on.
fn clock(node: &Node) -> HostCheck {
    match node.clock.problem() {
        Some(problem) => result(
            "clock",
            HostCheckResult::Warning,
            problem,
            "synchronise it (NTP); the cluster goes by most of its voters' clocks, and this node signs nothing meanwhile",
        ),
        None if node.clock.is_known() => {
            result("clock", HostCheckResult::Ok, "as the cluster's", "")
        }
        None => result(
            "clock",
            HostCheckResult::Ok,
            "not compared: the cluster's time is not known without a leader",
            "",
        ),
    }
}
