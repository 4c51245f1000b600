//! Captured moments.

use std::collections::BTreeSet;

use super::{Accelerator, Life, Millis, VmSpec};
use crate::state::{
    ids::{NodeId, OperationId, SnapshotId, VmId},
    owners::{Captured, Ownership},
};

/// A captured moment of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Unique among its owner's snapshots; `None` for one that a fork made for itself and that goes with its last child.
    pub name: Option<String>,
    /// Whose it is: who had it taken.
    pub ownership: Ownership,
    /// The VM it was captured from.
    pub vm: Captured,
    /// The snapshot that VM came from.
    pub parent: Option<SnapshotId>,
    /// The nodes that hold its files.
    pub nodes: BTreeSet<NodeId>,
    /// What the VM was made of.
    pub spec: VmSpec,
    /// The VM's family: forks of the snapshot are of it, also when the VM is gone.
    pub family: Option<VmId>,
    /// The number that the VM had in its group: what was captured speaks with that one's addresses. `None` for one that was in none.
    pub member: Option<u32>,
    /// The VM's lineage: see [`crate::state::Vm::lineage`].
    pub lineage: VmId,
    /// The operation that makes it.
    pub operation: OperationId,
    /// What is in it; `None` while it is being captured.
    pub content: Option<Content>,
    /// Why a node that held it does not hold it any more; empty while none has lost it.
    pub lost: String,
    /// How many of its forks are to be kept ready on each node that holds it.
    pub warm: u32,
    /// On how many nodes it is to be; 0 while nobody has asked for a number.
    pub replicas: u32,
    /// Which those are to be: chosen when that was asked for, and again when one is lost. They fetch it. Others may hold it, too.
    pub copies: BTreeSet<NodeId>,
    /// Whether its VM's schedule had it taken, and keeps it until newer ones are safe.
    pub is_scheduled: bool,
    /// How long it is kept. After that it goes with the last that depends on it.
    pub life: Life,
    /// When it was asked for.
    pub created_at: Millis,
}

impl Snapshot {
    /// Bytes of its stream, once they are known.
    pub fn stream_bytes(&self) -> u64 {
        let content = self.content.as_ref();
        content.map_or(0, |content| content.stream_bytes)
    }

    /// How many nodes have it on their disks: of those that are to, where a number was asked for.
    pub fn copies_on_disk(&self) -> u32 {
        let on_disk = |content: &Content| matches!(content.safety, Safety::Disk(_));
        if !self.content.as_ref().is_some_and(on_disk) {
            return 0;
        }
        let held = match self.replicas {
            0 => self.nodes.len(),
            _ => self.nodes.intersection(&self.copies).count(),
        };
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// Whether it would survive the loss of a host: it is on the disks of two nodes, and of as many as were asked for.
    pub fn is_replicated(&self) -> bool {
        self.copies_on_disk() >= self.replicas.max(2)
    }

    /// Whether it is on as many disks as were asked for, which is one at least.
    pub fn is_held_as_asked(&self) -> bool {
        self.copies_on_disk() >= self.replicas.max(1)
    }
}

/// The content of a snapshot that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its base.
    pub base: FileId,
    /// Its stream.
    pub stream: FileId,
    /// Disk layers, the newest first; empty for a VM without a disk. The image's disk lies below.
    pub layers: Vec<FileId>,
    /// The accelerator that ran the guest.
    pub accelerator: Accelerator,
    /// The CPU model that the guest saw.
    pub cpu_model: String,
    /// The processor that ran it: see [`crate::state::Capacity::processor`].
    pub processor: String,
    /// QEMU's exact version.
    pub qemu_version: String,
    /// The machine type as QEMU spells it.
    pub machine: String,
    /// The devices in their order, as `qemu::spec` names them.
    pub devices: Vec<String>,
    /// Whether the guest's agent was answering when it was captured.
    pub agent: bool,
    /// Bytes that the base takes.
    pub base_bytes: u64,
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// The stream's checksum, compared before every load.
    pub stream_checksum: Checksum,
    /// Bytes of the newest layer.
    pub layer_bytes: u64,
    /// What it would survive.
    pub safety: Safety,
    /// How the capture went.
    pub report: CaptureReport,
}

impl Content {
    /// What a node that has nothing of it has to store, bytes, without its image and the layers below the newest.
    pub fn bytes(&self) -> u64 {
        let memory = self.base_bytes.saturating_add(self.stream_bytes);
        memory.saturating_add(self.layer_bytes)
    }
}

/// A file's name: the id of the VM whose first overlay it was, or one derived from the operation that it was made for. Never used
/// twice, not even when an operation is begun again: what was told of the first time may be on its way into the state.
pub type FileId = u128;

/// A file's checksum, as the engine takes it.
pub type Checksum = u32;

/// What a snapshot would survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Safety {
    /// The agent's end.
    Memory,
    /// A reboot of the host: its files are on disk, and are compared with their checksums before they are used after one.
    Disk(Checksums),
}

/// Checksums of what a snapshot shares with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    /// Of its base.
    pub base: Checksum,
    /// Of its layers, in their order.
    pub layers: Vec<Checksum>,
}

/// How a running VM is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureMode {
    /// Live where the host can, else paused.
    Auto,
    /// Stop first.
    Paused,
    /// Copy ahead, or fail.
    Live,
}

/// How a capture went. Times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureReport {
    /// From QEMU's STOP event to its RESUME event.
    pub pause_us: u64,
    /// From sending `stop` to `cont` having returned.
    pub agent_pause_us: u64,
    /// Before the stop.
    pub ahead_us: u64,
    /// Parts of the pause.
    pub stop_us: u64,
    /// See `stop_us`.
    pub disk_us: u64,
    /// See `stop_us`.
    pub devices_us: u64,
    /// See `stop_us`.
    pub scan_us: u64,
    /// See `stop_us`.
    pub copy_us: u64,
    /// See `stop_us`.
    pub cont_us: u64,
    /// After the pause: writing the stream.
    pub write_us: u64,
    /// Rounds of copying while the guest ran.
    pub rounds: u32,
    /// Bytes copied while it ran.
    pub ahead_bytes: u64,
    /// Bytes copied while it stood still.
    pub paused_bytes: u64,
    /// Whether a new base was made.
    pub new_base: bool,
    /// Whether it was copied ahead.
    pub live: bool,
    /// Why the pause was longer than it should be.
    pub note: String,
}
