//! A snapshot, and how its capture went.

use proto::v1;
use serde::Serialize;

use super::{Moment, age, kept, milliseconds, owner::SharingView, time};
use crate::client::{output::Row, units};

/// A snapshot as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct SnapshotView {
    pub id: String,
    pub name: String,
    pub owner: String,
    /// For its owner and administrators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<SharingView>,
    pub vm_hidden: bool,
    pub vm: String,
    pub vm_name: String,
    pub parent: String,
    pub nodes: Vec<String>,
    pub state: &'static str,
    pub reason: String,
    pub safety: &'static str,
    pub created_at: Option<Moment>,
    pub expires_at: Option<Moment>,
    pub lease: String,
    pub base_bytes: u64,
    pub stream_bytes: u64,
    pub layer_bytes: u64,
    pub dependents: Vec<String>,
    pub image: String,
    pub qemu_version: String,
    pub capture: Option<CaptureView>,
    pub warm: u32,
    pub ready: u32,
    /// 0 where nobody asked for a number.
    pub replicas: u32,
    pub copies_on_disk: u32,
    pub copies: Vec<String>,
    /// Its VM's schedule keeps it.
    pub scheduled: bool,
}

/// How a capture went.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct CaptureView {
    /// Absent where the object around it has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
    pub agent_pause_ms: f64,
    pub ahead_ms: f64,
    pub stop_ms: f64,
    pub disk_ms: f64,
    pub devices_ms: f64,
    pub scan_ms: f64,
    pub copy_ms: f64,
    pub cont_ms: f64,
    pub write_ms: f64,
    pub rounds: u32,
    pub ahead_bytes: u64,
    pub paused_bytes: u64,
    pub new_base: bool,
    pub mode: &'static str,
    pub note: String,
}

impl From<v1::Snapshot> for SnapshotView {
    fn from(snapshot: v1::Snapshot) -> Self {
        let (state, safety) = (state_word(snapshot.state()), safety_word(snapshot.safety()));
        Self {
            id: snapshot.id,
            name: snapshot.name,
            owner: snapshot.owner,
            sharing: snapshot.sharing.map(SharingView::from),
            vm_hidden: snapshot.vm_hidden,
            vm: snapshot.vm,
            vm_name: snapshot.vm_name,
            parent: snapshot.parent,
            nodes: snapshot.nodes,
            state,
            reason: snapshot.reason,
            safety,
            created_at: time(snapshot.created_at),
            expires_at: time(snapshot.expires_at),
            lease: snapshot.lease,
            base_bytes: snapshot.base_bytes,
            stream_bytes: snapshot.stream_bytes,
            layer_bytes: snapshot.layer_bytes,
            dependents: snapshot.dependents,
            image: snapshot.image,
            qemu_version: snapshot.qemu_version,
            capture: snapshot.capture.map(CaptureView::from),
            warm: snapshot.warm,
            ready: snapshot.ready,
            replicas: snapshot.replicas,
            copies_on_disk: snapshot.copies_on_disk,
            copies: snapshot.copies,
            scheduled: snapshot.scheduled,
        }
    }
}

impl From<v1::CaptureReport> for CaptureView {
    fn from(report: v1::CaptureReport) -> Self {
        let mode = mode_word(report.mode());
        Self {
            pause_ms: Some(milliseconds(report.pause_ms)),
            agent_pause_ms: milliseconds(report.agent_pause_ms),
            ahead_ms: milliseconds(report.ahead_ms),
            stop_ms: milliseconds(report.stop_ms),
            disk_ms: milliseconds(report.disk_ms),
            devices_ms: milliseconds(report.devices_ms),
            scan_ms: milliseconds(report.scan_ms),
            copy_ms: milliseconds(report.copy_ms),
            cont_ms: milliseconds(report.cont_ms),
            write_ms: milliseconds(report.write_ms),
            rounds: report.rounds,
            ahead_bytes: report.ahead_bytes,
            paused_bytes: report.paused_bytes,
            new_base: report.new_base,
            mode,
            note: report.note,
        }
    }
}

impl SnapshotView {
    /// How many of those that were asked for there are on disks; where nobody asked for a number, how many there are.
    fn copies(&self) -> String {
        match self.replicas {
            0 => self.copies_on_disk.to_string(),
            wanted => format!("{}/{wanted}", self.copies_on_disk),
        }
    }
}

impl Row for SnapshotView {
    fn owner(&self) -> Option<&str> {
        Some(&self.owner)
    }

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec![
            "ID",
            "NAME",
            "VM",
            "STATE",
            "SAFETY",
            "COPIES",
            "NODES",
            "DEPENDENTS",
            "AGE",
        ];
        if wide {
            header.extend([
                "BASE", "STREAM", "LAYER", "PAUSE", "PARENT", "IMAGE", "QEMU", "WARM", "KEPT",
            ]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.id.clone(),
            self.name.clone(),
            self.vm_name.clone(),
            self.state.to_owned(),
            self.safety.to_owned(),
            self.copies(),
            self.nodes.join(","),
            self.dependents.len().to_string(),
            age(self.created_at),
        ];
        if wide {
            let pause = self.capture.as_ref().and_then(|capture| capture.pause_ms);
            cells.extend([
                units::show_size(self.base_bytes),
                units::show_size(self.stream_bytes),
                units::show_size(self.layer_bytes),
                pause.map_or_else(String::new, |pause| format!("{pause:.1}ms")),
                self.parent.clone(),
                self.image.clone(),
                self.qemu_version.clone(),
                self.warm.to_string(),
                kept(self.expires_at, &self.lease),
            ]);
        }
        cells
    }
}

fn state_word(state: v1::SnapshotState) -> &'static str {
    match state {
        v1::SnapshotState::Unspecified => "unknown",
        v1::SnapshotState::Capturing => "capturing",
        v1::SnapshotState::Ready => "ready",
        v1::SnapshotState::Failed => "failed",
    }
}

fn safety_word(safety: v1::SnapshotSafety) -> &'static str {
    match safety {
        v1::SnapshotSafety::Unspecified => "unknown",
        v1::SnapshotSafety::Memory => "memory",
        v1::SnapshotSafety::Disk => "disk",
        v1::SnapshotSafety::Replicated => "replicated",
    }
}

fn mode_word(mode: v1::CaptureMode) -> &'static str {
    match mode {
        v1::CaptureMode::Unspecified | v1::CaptureMode::Auto => "auto",
        v1::CaptureMode::Paused => "paused",
        v1::CaptureMode::Live => "live",
    }
}
