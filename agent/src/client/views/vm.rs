//! A VM.

use std::collections::BTreeMap;

use proto::v1;
use serde::Serialize;

use super::{
    Moment, age,
    guest::{GuestView, NetworkView, PortView, network_text},
    kept, labels_text,
    owner::SharingView,
    time,
};
use crate::client::{output::Row, units};

/// A VM as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct VmView {
    pub id: String,
    pub name: String,
    pub owner: String,
    /// For its owner and administrators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<SharingView>,
    pub parent_hidden: bool,
    pub node: String,
    pub state: &'static str,
    pub reason: String,
    pub image: String,
    pub parent: String,
    pub parent_name: String,
    pub snapshot: String,
    pub pid: u32,
    pub memory_bytes: u64,
    pub cpus: u32,
    pub disk_bytes: u64,
    pub accelerator: &'static str,
    pub cpu_model: String,
    pub machine: String,
    pub labels: BTreeMap<String, String>,
    pub created_at: Option<Moment>,
    pub expires_at: Option<Moment>,
    pub lease: String,
    pub generation: u64,
    pub power: &'static str,
    pub warnings: Vec<String>,
    pub limits: LimitsView,
    pub memory_use: Option<MemoryUseView>,
    pub restart: &'static str,
    pub ending: Option<EndingView>,
    pub restarts: u32,
    pub next_start_at: Option<Moment>,
    pub network: NetworkView,
    pub publish: Vec<u32>,
    pub self_fork: u32,
    pub unready: &'static str,
    pub settings: BTreeMap<String, String>,
    pub index: u32,
    pub count: u32,
    pub failed_steps: Vec<String>,
    pub guest: Option<GuestView>,
    pub ports: Vec<PortView>,
    pub family: String,
    pub by_guest: bool,
    pub snapshots: Option<ScheduleView>,
    pub group: String,
    pub group_number: u32,
    pub group_address: String,
    pub ha: &'static str,
    pub restore_point: String,
    pub restore_point_at: Option<Moment>,
    pub restored: Option<RestoredView>,
}

/// How a VM was restored that was lost with its node, as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct RestoredView {
    pub from: String,
    pub snapshot: String,
    pub captured_at: Option<Moment>,
    pub heard_at: Option<Moment>,
    pub restored_at: Option<Moment>,
    pub lost_ms: u64,
}

impl From<v1::Restored> for RestoredView {
    fn from(restored: v1::Restored) -> Self {
        Self {
            from: restored.from,
            snapshot: restored.snapshot,
            captured_at: time(restored.captured_at),
            heard_at: time(restored.heard_at),
            restored_at: time(restored.restored_at),
            lost_ms: restored.lost_ms,
        }
    }
}

fn ha_word(ha: v1::OnHostLoss) -> &'static str {
    match ha {
        v1::OnHostLoss::Unspecified | v1::OnHostLoss::Stay => "off",
        v1::OnHostLoss::Arming => "arming",
        v1::OnHostLoss::Restore => "restore",
    }
}

/// The snapshots that are taken of a VM by themselves, as they are printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct ScheduleView {
    pub every_ms: u64,
    pub keep: u32,
    pub replicas: u32,
    pub next_at: Option<Moment>,
}

impl From<v1::SnapshotSchedule> for ScheduleView {
    fn from(schedule: v1::SnapshotSchedule) -> Self {
        Self {
            every_ms: schedule.every_ms,
            keep: schedule.keep,
            replicas: schedule.replicas,
            next_at: time(schedule.next_at),
        }
    }
}

/// How a VM ended last, as it is printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct EndingView {
    pub cause: &'static str,
    pub detail: String,
    pub at: Option<Moment>,
    pub exit_code: Option<i32>,
}

impl From<v1::Ending> for EndingView {
    fn from(ending: v1::Ending) -> Self {
        Self {
            cause: cause_word(ending.cause()),
            at: time(ending.at),
            exit_code: ending.exit_code,
            detail: ending.detail,
        }
    }
}

/// What a VM's process may take at most, as it is printed; 0 for no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct LimitsView {
    pub cpu_percent: u32,
    pub memory_bytes: u64,
    pub pids: u32,
}

impl From<v1::Limits> for LimitsView {
    fn from(limits: v1::Limits) -> Self {
        Self {
            cpu_percent: limits.cpu_percent,
            memory_bytes: limits.memory_bytes,
            pids: limits.pids,
        }
    }
}

/// What a process takes of its host's memory, as it is printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct MemoryUseView {
    pub private_bytes: u64,
    pub shared_bytes: u64,
    pub merged_bytes: u64,
    pub merge_profit_bytes: i64,
}

impl From<v1::MemoryUse> for MemoryUseView {
    fn from(used: v1::MemoryUse) -> Self {
        Self {
            private_bytes: used.private_bytes,
            shared_bytes: used.shared_bytes,
            merged_bytes: used.merged_bytes,
            merge_profit_bytes: used.merge_profit_bytes,
        }
    }
}

impl From<v1::Vm> for VmView {
    fn from(vm: v1::Vm) -> Self {
        let (state, power) = (vm_state_word(vm.state()), power_word(vm.power()));
        let accelerator = accelerator_word(vm.accelerator());
        let restart = restart_word(vm.restart());
        let unready = unready_word(vm.unready());
        let ha = ha_word(vm.on_host_loss());
        Self {
            id: vm.id,
            name: vm.name,
            owner: vm.owner,
            sharing: vm.sharing.map(SharingView::from),
            parent_hidden: vm.parent_hidden,
            node: vm.node,
            state,
            reason: vm.reason,
            image: vm.image,
            parent: vm.parent,
            parent_name: vm.parent_name,
            snapshot: vm.snapshot,
            pid: vm.pid,
            memory_bytes: vm.memory_bytes,
            cpus: vm.cpus,
            disk_bytes: vm.disk_bytes,
            accelerator,
            cpu_model: vm.cpu_model,
            machine: vm.machine,
            labels: vm.labels,
            created_at: time(vm.created_at),
            expires_at: time(vm.expires_at),
            lease: vm.lease,
            generation: vm.generation,
            power,
            warnings: vm.warnings,
            limits: vm.limits.unwrap_or_default().into(),
            memory_use: vm.memory_use.map(MemoryUseView::from),
            restart,
            ending: vm.ending.map(EndingView::from),
            restarts: vm.restarts,
            next_start_at: time(vm.next_start_at),
            network: vm.network.unwrap_or_default().into(),
            publish: vm.publish,
            self_fork: vm.self_fork,
            unready,
            settings: vm.settings,
            index: vm.index,
            count: vm.count,
            failed_steps: vm.failed_steps,
            guest: vm.guest.map(GuestView::from),
            ports: vm.ports.into_iter().map(PortView::from).collect(),
            family: vm.family,
            by_guest: vm.by_guest,
            ha,
            restore_point: vm.restore_point,
            restore_point_at: time(vm.restore_point_at),
            restored: vm.restored.map(RestoredView::from),
            snapshots: vm.snapshots.map(ScheduleView::from),
            group: vm.group,
            group_number: vm.group_number,
            group_address: vm.group_address,
        }
    }
}

impl VmView {
    /// What becomes of it when its host is lost, and what became.
    fn ha_text(&self) -> String {
        let wanted = match (self.ha, self.restore_point_at) {
            ("restore", None) => "restore, from nothing yet".to_owned(),
            ("restore", at) => format!("restore, from {} ago", age(at)),
            ("off", _) => String::new(),
            (other, _) => other.to_owned(),
        };
        let was = self.restored.as_ref().map(|restored| {
            let seconds = restored.lost_ms / 1000;
            format!(
                "was on {}, which was lost with {seconds} s of it",
                restored.from
            )
        });
        let parts = [Some(wanted).filter(|text| !text.is_empty()), was];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

impl Row for VmView {
    fn owner(&self) -> Option<&str> {
        Some(&self.owner)
    }

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec![
            "NAME", "STATE", "NODE", "IMAGE", "CPUS", "MEMORY", "PARENT", "AGE",
        ];
        if wide {
            header.extend(["ID", "PID", "DISK", "SNAPSHOT", "LABELS"]);
            header.extend(["RESTART", "RESTARTS", "LAST END", "NETWORK", "SELF-FORK"]);
            header.extend([
                "PLACE",
                "SETTINGS",
                "FAILED STEPS",
                "KEPT",
                "GROUP",
                "HA",
                "REASON",
            ]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.name.clone(),
            self.state.to_owned(),
            self.node.clone(),
            self.image.clone(),
            self.cpus.to_string(),
            units::show_size(self.memory_bytes),
            self.parent_name.clone(),
            age(self.created_at),
        ];
        if wide {
            let or_nothing =
                |number: u64, text: String| if number == 0 { String::new() } else { text };
            cells.extend([
                self.id.clone(),
                or_nothing(u64::from(self.pid), self.pid.to_string()),
                or_nothing(self.disk_bytes, units::show_size(self.disk_bytes)),
                self.snapshot.clone(),
                labels_text(&self.labels),
                self.restart.to_owned(),
                or_nothing(u64::from(self.restarts), self.restarts.to_string()),
                self.ending.as_ref().map_or_else(String::new, end_text),
                network_text(&self.network, &self.publish),
                or_nothing(u64::from(self.self_fork), self.self_fork.to_string()),
                or_nothing(
                    u64::from(self.count),
                    format!("{} of {}", self.index, self.count),
                ),
                labels_text(&self.settings),
                self.failed_steps.join("; "),
                kept(self.expires_at, &self.lease),
                self.group.clone(),
                self.ha_text(),
                self.reason.clone(),
            ]);
        }
        cells
    }
}

/// The word for a VM's state.
pub fn vm_state_word(state: v1::VmState) -> &'static str {
    match state {
        v1::VmState::Unspecified | v1::VmState::Unknown => "unknown",
        v1::VmState::Pending => "pending",
        v1::VmState::Starting => "starting",
        v1::VmState::Running => "running",
        v1::VmState::Paused => "paused",
        v1::VmState::Stopped => "stopped",
        v1::VmState::Failed => "failed",
        v1::VmState::Suspended => "suspended",
    }
}

fn power_word(power: v1::PowerState) -> &'static str {
    match power {
        v1::PowerState::Unspecified => "unknown",
        v1::PowerState::Running => "running",
        v1::PowerState::Paused => "paused",
        v1::PowerState::Stopped => "stopped",
        v1::PowerState::Suspended => "suspended",
    }
}

fn restart_word(restart: v1::RestartPolicy) -> &'static str {
    match restart {
        v1::RestartPolicy::Unspecified | v1::RestartPolicy::Never => "never",
        v1::RestartPolicy::OnFailure => "on-failure",
        v1::RestartPolicy::Always => "always",
    }
}

fn unready_word(unready: v1::Unready) -> &'static str {
    match unready {
        v1::Unready::Unspecified | v1::Unready::Run => "run",
        v1::Unready::Hold => "hold",
    }
}

/// An end in a word, with the guest's code.
fn end_text(ending: &EndingView) -> String {
    match ending.exit_code {
        Some(code) => format!("{} {code}", ending.cause),
        None => ending.cause.to_owned(),
    }
}

fn cause_word(cause: v1::EndCause) -> &'static str {
    match cause {
        v1::EndCause::Unspecified => "unknown",
        v1::EndCause::Stopped => "stopped",
        v1::EndCause::Poweroff => "poweroff",
        v1::EndCause::Reboot => "reboot",
        v1::EndCause::Panic => "panic",
        v1::EndCause::Crash => "crash",
        v1::EndCause::OutOfMemory => "out-of-memory",
        v1::EndCause::BootFailed => "boot-failed",
        v1::EndCause::StartFailed => "start-failed",
        v1::EndCause::HostLost => "host-lost",
        v1::EndCause::Unseen => "unseen",
        v1::EndCause::Exited => "exited",
    }
}

fn accelerator_word(accelerator: v1::Accelerator) -> &'static str {
    match accelerator {
        v1::Accelerator::Unspecified | v1::Accelerator::Auto => "auto",
        v1::Accelerator::Kvm => "kvm",
        v1::Accelerator::Tcg => "tcg",
    }
}
