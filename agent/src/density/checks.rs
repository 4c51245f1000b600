//! What `doctor` says about a host that is to hold many VMs.

use proto::v1::{HostCheck, HostCheckResult};
use qemu::ksm::Ksm;

use super::{Level, pressure};
use crate::{daemon::options::MergeMemory, node::Node};

/// Checks limits, merging, pressure and huge pages.
pub fn check(node: &Node) -> Vec<HostCheck> {
    vec![
        limits(node),
        merging(node),
        short(node),
        order(),
        huge_pages(),
    ]
}

/// Whether the kernel's killer takes VMs before the agent.
fn order() -> HostCheck {
    let name = "oom-order";
    let hint = "give the agent CAP_SYS_RESOURCE, or have what starts it set OOMScoreAdjust=-900";
    match std::fs::read_to_string("/proc/self/oom_score_adj") {
        Ok(score) if score.trim().parse::<i32>().is_ok_and(|score| score < 0) => ok(
            name,
            "when memory has run out the kernel ends forks before booted VMs, and those before the agent".to_owned(),
        ),
        Ok(_) => warning(
            name,
            "when memory has run out the kernel ends forks before booted VMs, but may end the agent before them".to_owned(),
            hint,
        ),
        Err(error) => warning(name, format!("the order cannot be read: {error}"), hint),
    }
}

fn ok(name: &str, found: String) -> HostCheck {
    HostCheck {
        name: name.to_owned(),
        result: HostCheckResult::Ok.into(),
        found,
        hint: String::new(),
    }
}

fn warning(name: &str, found: String, hint: &str) -> HostCheck {
    HostCheck {
        result: HostCheckResult::Warning.into(),
        hint: hint.to_owned(),
        ..ok(name, found)
    }
}

/// Which limits of VMs are enforced.
fn limits(node: &Node) -> HostCheck {
    let hint = "boot the host with the unified cgroup hierarchy (systemd.unified_cgroup_hierarchy=1), or say with --cgroup where \
                a group with these controllers is";
    match node.vms.engine().groups.controllers() {
        Err(why) => warning(
            "limits",
            format!("no limit of a VM is enforced: {why}"),
            hint,
        ),
        Ok(controllers) => {
            let missing: Vec<&str> = ["cpu", "memory", "pids"]
                .into_iter()
                .filter(|name| !controllers.contains(name))
                .collect();
            if missing.is_empty() {
                ok(
                    "limits",
                    "limits of processor time, memory and threads are enforced".to_owned(),
                )
            } else {
                warning(
                    "limits",
                    format!(
                        "not all limits of a VM are enforced: cgroup v2 lacks these controllers here: {}",
                        missing.join(", ")
                    ),
                    hint,
                )
            }
        }
    }
}

fn merging(node: &Node) -> HostCheck {
    let density = &node.density;
    let name = "memory-merging";
    let aslr = node.vms.engine().aslr;
    match (density.setting, &density.can_merge) {
        (MergeMemory::Off, _) if !aslr => warning(
            name,
            "off, but QEMU processes are laid out alike in memory, which has no other use"
                .to_owned(),
            "start the agent with --qemu-aslr on, or with --merge-memory on",
        ),
        (MergeMemory::Off, _) => ok(
            name,
            match Ksm::of_host() {
                Some(_) => "off; --merge-memory auto saves memory where all VMs trust each other"
                    .to_owned(),
                None => "off, and this kernel has none".to_owned(),
            },
        ),
        (_, Ok(())) => {
            let merging = density.merging();
            let runs = if merging.running {
                "runs"
            } else {
                "stands still"
            };
            let alike = if aslr {
                ""
            } else {
                "; QEMU processes are laid out alike in memory"
            };
            ok(
                name,
                format!(
                    "{}: it {runs}: {}{alike}",
                    density.setting_name(),
                    merging.reason
                ),
            )
        }
        (_, Err(why)) => warning(
            name,
            format!("{why}: nothing is merged"),
            "use Linux 6.7 or newer, built with CONFIG_KSM, or --merge-memory off",
        ),
    }
}

fn short(node: &Node) -> HostCheck {
    let name = "memory-pressure";
    let pressure = *node.density.pressure.borrow();
    let free = format!("{} MiB available", pressure.available >> 20);
    match (pressure.level, pressure.some) {
        (Level::High, _) => HostCheck {
            result: HostCheckResult::Failed.into(),
            ..warning(
                name,
                format!("memory is short ({free}): new VMs and forks are refused"),
                "stop or delete VMs, or give the host more memory",
            )
        },
        (Level::Some, _) => warning(
            name,
            format!("memory is getting short: {free}"),
            "stop or delete VMs, or give the host more memory",
        ),
        (Level::None, Some(_)) => ok(name, free),
        (Level::None, None) => warning(
            name,
            format!(
                "{free}; the kernel does not say how long it is waited for ({} cannot be read)",
                pressure::PSI
            ),
            "boot with psi=1 on a kernel with CONFIG_PSI",
        ),
    }
}

/// Booted guests use them; forks never do.
fn huge_pages() -> HostCheck {
    let name = "huge-pages";
    match std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled") {
        Ok(text) if text.contains("[never]") => warning(
            name,
            "transparent huge pages are off: booted guests run slower".to_owned(),
            "write madvise to /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Ok(_) => ok(
            name,
            "booted guests may use transparent huge pages; forks do not, which saves memory"
                .to_owned(),
        ),
        Err(error) => warning(
            name,
            format!("whether there are transparent huge pages cannot be told: {error}"),
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}
