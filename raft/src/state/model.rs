//! What is replicated: the desired state of the cluster and the rare facts about it.
//!
//! Everything is in ordered maps of shared values, and what there may be many of in maps that share their parts, so that a clone
//! of the state costs little and readers keep theirs while the next command is applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::ids::{
    CertificateId, ClusterId, ImageId, NodeId, OperationId, SnapshotId, TokenId, VmId,
};
use super::{
    authority::{Fingerprint, NodeTrust, Replacement},
    owned_map::OwnedMap,
    owners::{Captured, Ownership},
    quotas::Quota,
    requests::Requests,
    shared_map::SharedMap,
    vms::Vms,
};

/// A point in time as the proposer's clock had it: milliseconds since the Unix epoch.
pub type Millis = u64;

/// Labels: what users note about an object.
pub type Labels = BTreeMap<String, String>;

/// The replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The cluster; `None` before its first command.
    pub cluster: Option<ClusterId>,
    /// Which form of commands and records all members understand, and all write: see [`crate::version`]. It only grows.
    pub version: u32,
    /// The number that the next node gets.
    pub next_node: NodeId,
    /// The hosts.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// The last [`super::KEPT_REMOVED`] hosts that were removed.
    pub removed: BTreeMap<NodeId, Arc<RemovedNode>>,
    /// Join tokens that can still be used.
    pub tokens: BTreeMap<TokenId, Token>,
    /// Certificates of those who use the cluster that have not expired, revoked ones included.
    pub certificates: BTreeMap<CertificateId, Certificate>,
    /// How much owners may have; of those that are not in it, as much as there is.
    pub quotas: BTreeMap<String, Quota>,
    /// Images.
    pub images: OwnedMap<ImageId, Image>,
    /// Virtual machines.
    pub vms: Vms,
    /// Snapshots, those that are being captured included.
    pub snapshots: OwnedMap<SnapshotId, Snapshot>,
    /// Operations: all open ones, and the last [`super::KEPT_OPERATIONS`] that ended.
    pub operations: SharedMap<OperationId, Arc<Operation>>,
    /// Objects that are gone for the users and not yet deleted by their nodes.
    pub tombstones: SharedMap<ObjectId, Tombstone>,
    /// What became of requests: the last [`super::KEPT_REQUESTS`].
    pub requests: Requests,
    /// The time of which nothing is known, once the state was put back.
    pub forgotten: Option<Forgotten>,
    /// The authority's replacement that is under way, or the last one; `None` while there was none.
    pub replacement: Option<Arc<Replacement>>,
}

/// The time of which a state that was put back knows nothing. What was made in it may be there all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// From what was the newest in the state, a little less: clocks differ.
    pub from: Millis,
    /// Until the state was put back.
    pub to: Millis,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Unique in the cluster.
    pub name: String,
    /// HOST:PORT.
    pub address: String,
    /// Whether new VMs may be placed there.
    pub schedulable: bool,
    /// Labels.
    pub labels: Labels,
    /// When it joined.
    pub created_at: Millis,
    /// What it reported when its agent started last; `None` before it did.
    pub capacity: Option<Capacity>,
    /// Of a newcomer whose agent has not started yet: until when it must have. `None` once it has.
    pub start_by: Option<Millis>,
    /// What it said of its certificates last; `None` before it did.
    pub trust: Option<NodeTrust>,
}

impl Node {
    /// Whether its agent has ever started. One that has not is a member only in that it is let in.
    pub fn has_started(&self) -> bool {
        self.start_by.is_none()
    }

    /// Its zone, by its label; empty where it has none.
    pub fn zone(&self) -> &str {
        self.labels.get(ZONE).map_or("", String::as_str)
    }
}

/// The label that says in which zone a node is: what fails together.
pub const ZONE: &str = "zone";

/// A host that was removed, and what was given up with it, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedNode {
    /// Its name.
    pub name: String,
    /// When it was removed.
    pub removed_at: Millis,
    /// VMs that lived there. Their processes are to be ended: it stands for their tombstones.
    pub vms: BTreeMap<VmId, LostVm>,
    /// Snapshots whose files only it had.
    pub snapshots: BTreeMap<SnapshotId, String>,
    /// Images whose files only it had.
    pub images: BTreeMap<ImageId, String>,
}

/// A VM that was given up with its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostVm {
    /// Its name.
    pub name: String,
    /// Whose it was.
    pub owner: String,
}

/// What a host has to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// QEMU's version; empty where no usable one is.
    pub qemu_version: String,
    /// What `auto` chooses from, best first.
    pub accelerators: Vec<Accelerator>,
    /// The agent's version.
    pub agent_version: String,
    /// The newest form of commands and records that it understands.
    pub newest_version: u32,
    /// What keeps the host from being fully used.
    pub problems: Vec<String>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER) that the token's holder can prove to own.
    pub key_hash: [u8; 32],
    /// When it was made.
    pub created_at: Millis,
    /// When it ends.
    pub expires_at: Millis,
    /// The newcomer that it let in, while that has not started yet: it lets nobody else in, and is forgotten when it has.
    pub node: Option<NodeId>,
    /// The authority that it pins.
    pub authority: Fingerprint,
}

/// What somebody may do. Each may do what the ones before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Viewer,
    /// Work with images, VMs, snapshots and forks.
    Operator,
    /// Everything: also who belongs to the cluster, and who may do what in it.
    Admin,
}

/// A certificate of somebody who uses the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose. Unique among those that are neither revoked nor expired.
    pub name: String,
    /// Whose objects are there for it: several certificates may have one owner.
    pub owner: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Millis,
    /// When it ends.
    pub expires_at: Millis,
    /// When it was made useless before that, if it was.
    pub revoked_at: Option<Millis>,
    /// The authority that signed it.
    pub authority: Fingerprint,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Unique among its owner's images.
    pub name: String,
    /// Whose it is.
    pub ownership: Ownership,
    /// The kernel, if it has one.
    pub kernel: Option<Blob>,
    /// The initial RAM file system, if it has one.
    pub initrd: Option<Blob>,
    /// The root disk, if it has one.
    pub disk: Option<DiskBlob>,
    /// The kernel's command line.
    pub cmdline: String,
    /// A line that the guest prints once it is up.
    pub ready_line: Option<String>,
    /// How long it may take until then, milliseconds.
    pub boot_timeout_ms: u64,
    /// Which program its guests answer with.
    pub guest_agent: GuestAgent,
    /// The nodes that hold its files.
    pub nodes: BTreeSet<NodeId>,
    /// When it was imported.
    pub created_at: Millis,
}

/// Which program an image's guests answer with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuestAgent {
    /// Ours, `fpguest`.
    #[default]
    ForkyPig,
    /// QEMU's, `qemu-ga`.
    Qemu,
    /// None that is known.
    None,
}

/// A file that is named by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// Its size, bytes.
    pub size_bytes: u64,
}

/// A qcow2 disk without a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBlob {
    /// The file.
    pub blob: Blob,
    /// The disk's size as the guest sees it, bytes.
    pub virtual_bytes: u64,
}

/// How guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accelerator {
    /// The best that the host has.
    Auto,
    /// KVM.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// QEMU's machine types that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// `microvm`: virtio-mmio, started from a kernel.
    Microvm,
    /// `q35`: PCI, started from a kernel.
    Q35,
}

/// What a VM is made of. A fork's is its parent's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// The image whose disk it began with and whose kernel it starts.
    pub image: ImageId,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Disk, bytes; 0 for none.
    pub disk_bytes: u64,
    /// The machine type.
    pub machine: Machine,
    /// How its code is run.
    pub accelerator: Accelerator,
    /// QEMU's CPU model; `None` for the accelerator's best.
    pub cpu_model: Option<String>,
    /// Added to the image's kernel command line.
    pub cmdline: String,
    /// What its process may take at most of its host.
    pub limits: Limits,
    /// What follows when it ends without having been asked to.
    pub restart: RestartPolicy,
    /// What network it has.
    pub network: Network,
    /// TCP ports of its guest that its node forwards to: ascending, each once, none of them 0.
    pub publish: Vec<u16>,
    /// How many VMs its family may hold that were made by guests themselves and live; 0: no guest of it may fork.
    pub self_fork: u32,
    /// What becomes of a fork of which a step of becoming itself failed.
    pub unready: Unready,
}

/// What network a VM has. It is each VM's own: no two share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// None.
    None,
    /// One of its own, behind its process on the host.
    User {
        /// Whether its guest may reach out.
        egress: bool,
    },
}

impl Default for Network {
    fn default() -> Self {
        Self::User { egress: true }
    }
}

/// What becomes of a fork of which a step of becoming itself failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unready {
    /// It runs all the same.
    #[default]
    Run,
    /// It is held, standing still.
    Hold,
}

/// What follows when a VM ends without having been asked to. What its guest asks for itself, a reboot, is done in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It stays as it ended.
    #[default]
    Never,
    /// It is started from its disk again unless its guest powered off.
    OnFailure,
    /// It is started from its disk again, also when its guest powered off.
    Always,
}

/// What a VM's process may take at most of its host, guest and emulation together; `None` for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processor time: percent of one processor.
    pub cpu_percent: Option<u32>,
    /// Memory, bytes: what is its own, not what it shares with its lineage.
    pub memory_bytes: Option<u64>,
    /// Threads.
    pub pids: Option<u32>,
}

/// Where a VM's first state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It boots from its image.
    Image,
    /// It goes on from a snapshot: the one it was forked from, reset to, or suspended into. After that it boots from its disk like
    /// any other.
    Snapshot(SnapshotId),
}

/// How a VM should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Running.
    Running,
    /// Standing still.
    Paused,
    /// Without a process. When it still has one: `force` ends it at once, else its power button is pressed first.
    Stopped {
        /// Whether to end it at once.
        force: bool,
    },
    /// Without a process, its moment kept on disk: the snapshot that is its source.
    Suspended,
}

/// How a VM was when its node reported it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its node has not reported anything yet.
    Pending,
    /// It runs (and printed its ready line, where it has one).
    Running,
    /// It stands still.
    Paused,
    /// It has no process, as it should be or because its guest powered off.
    Stopped,
    /// It ended in an unforeseen way or could not be started.
    Failed,
    /// It has no process, and can go on from where it was.
    Suspended,
    /// It ended and is being started again, or waits to be.
    Restarting,
}

/// What ended a VM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// Somebody asked for it.
    Stopped,
    /// Its guest powered off.
    Poweroff,
    /// Its guest reset itself.
    Reboot,
    /// Its guest's kernel panicked.
    Panic,
    /// Its QEMU ended by itself, or was killed.
    Crash,
    /// The host's kernel killed its QEMU for want of memory.
    OutOfMemory,
    /// Its guest did not come up, however often that was tried.
    BootFailed,
    /// Its QEMU could not be started.
    StartFailed,
    /// Its host went down with it.
    HostLost,
    /// It was gone when its node's agent came back: nobody saw why.
    Unseen,
    /// Its guest ended it with an exit code.
    Exited,
}

/// The last end of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// What ended it.
    pub cause: EndCause,
    /// The same for people.
    pub detail: String,
    /// When its node saw it, by that node's clock.
    pub at: Millis,
    /// The exit code that its guest gave; with [`EndCause::Exited`] only.
    pub exit_code: Option<i32>,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Unique among its owner's VMs.
    pub name: String,
    /// Whose it is.
    pub ownership: Ownership,
    /// Where it lives.
    pub node: NodeId,
    /// What it is made of.
    pub spec: VmSpec,
    /// Where its first state comes from.
    pub source: Source,
    /// The VM it was forked from.
    pub parent: Option<Captured>,
    /// Labels.
    pub labels: Labels,
    /// How it should be.
    pub power: Power,
    /// Whether an operation that is open sets it to a moment.
    pub is_going_back: bool,
    /// Counts every change of what should be.
    pub generation: u64,
    /// Counts how often it should have been started: a process of an older boot is not the one that is wanted.
    pub boot: u64,
    /// How it was reported last.
    pub phase: Phase,
    /// Why, where that needs saying.
    pub reason: String,
    /// Which boot that report was about.
    pub reported_boot: u64,
    /// How it ended last; `None` while it never did.
    pub ending: Option<Ending>,
    /// How often its node started it again since somebody started it.
    pub restarts: u32,
    /// When its node starts it again, by that node's clock, while it waits for that.
    pub next_start: Option<Millis>,
    /// The operation that made it.
    pub operation: Option<OperationId>,
    /// When it was created.
    pub created_at: Millis,
    /// What its guest was told with the fork that made it. Its own forks do not inherit it.
    pub settings: Labels,
    /// Its place among the forks that were made together; `None` when it was not forked.
    pub place: Option<Place>,
    /// The VM whose right to fork itself its line has, which may be gone; `None` where guests may not fork. Goes with the spec.
    pub family: Option<VmId>,
    /// Whether a guest asked for it, not a user.
    pub by_guest: bool,
    /// Whether its guest is to be told secrets, which its node has and the state has not.
    pub has_secrets: bool,
    /// Steps of becoming itself that failed in this boot, with the reasons.
    pub failed_steps: Vec<String>,
}

/// A VM's place among the forks that were made together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub index: u32,
    /// How many they were.
    pub count: u32,
}

impl Vm {
    /// One that is to run and of which nothing is known yet.
    pub fn new(
        id: VmId,
        name: String,
        owner: &str,
        node: NodeId,
        spec: VmSpec,
        source: Source,
        created_at: Millis,
    ) -> Self {
        Self {
            id,
            name,
            ownership: Ownership::of(owner),
            node,
            spec,
            source,
            parent: None,
            labels: Labels::new(),
            power: Power::Running,
            is_going_back: false,
            generation: 1,
            boot: 1,
            phase: Phase::Pending,
            reason: String::new(),
            reported_boot: 0,
            ending: None,
            restarts: 0,
            next_start: None,
            operation: None,
            created_at,
            settings: Labels::new(),
            place: None,
            family: None,
            by_guest: false,
            has_secrets: false,
            failed_steps: Vec::new(),
        }
    }

    /// Whether it takes up one of its family's places for VMs that guests made: one that has stopped or failed has left its own.
    pub fn takes_a_place(&self) -> bool {
        self.by_guest && !matches!(self.phase, Phase::Stopped | Phase::Failed)
    }
}

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
    /// The operation that makes it.
    pub operation: OperationId,
    /// What is in it; `None` while it is being captured.
    pub content: Option<Content>,
    /// Why a node that held it does not hold it any more; empty while none has lost it.
    pub lost: String,
    /// How many of its forks are to be kept ready on each node that holds it.
    pub warm: u32,
    /// When it was asked for.
    pub created_at: Millis,
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

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Captures a VM.
    Snapshot,
    /// Forks a VM or a snapshot.
    Fork,
    /// Sets a VM to the moment of a snapshot, or lets a suspended one go on. Its one result is the VM's.
    Reset,
    /// Captures a VM to disk and ends its process. Its one result is the VM's.
    Suspend,
}

/// How an operation is. The first end wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationState {
    /// Under way.
    Open,
    /// Done; single children may have failed.
    Complete,
    /// Not done; nothing of it is left.
    Failed {
        /// Why.
        reason: String,
        /// Whether because it was cancelled.
        cancelled: bool,
    },
}

/// A piece of long work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// Whose it is: what comes of it is this one's.
    pub owner: String,
    /// What it does.
    pub kind: OperationKind,
    /// How it is.
    pub state: OperationState,
    /// The VM that is captured or reset; `None` when a snapshot is forked.
    pub vm: Option<VmId>,
    /// The snapshot that is made, forked or gone back to.
    pub snapshot: SnapshotId,
    /// How to capture.
    pub mode: CaptureMode,
    /// How many results: a fork's children, whose ids are [`OperationId::child`] of 0 to `count - 1`, or the one of a VM that is
    /// reset or suspended.
    pub count: u32,
    /// Whether a VM that is reset is left standing still.
    pub paused: bool,
    /// What became of each, by its number; absent while it is not known.
    pub results: BTreeMap<u32, ChildResult>,
    /// The node that does it.
    pub node: NodeId,
    /// When it was asked for.
    pub created_at: Millis,
    /// After this a node that has not begun with it (or was away in the middle of it) gives it up.
    pub expires_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// Whether somebody asked to give it up.
    pub cancel_requested: bool,
}

/// What became of a child, or of a VM that is reset or suspended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildResult {
    /// From the operation's beginning on its node to `cont` having returned, microseconds.
    pub running_us: u64,
    /// From the same moment to the guest having become itself, microseconds; 0 while that is not known.
    pub ready_us: u64,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// Whether a VM whose reset failed had given way already: it is not as it was before, and has to be started anew.
    pub gave_way: bool,
    /// Steps of becoming itself that failed, with the reasons.
    pub failed_steps: Vec<String>,
}

/// An object of any kind that leaves a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectId {
    /// An image.
    Image(ImageId),
    /// A VM.
    Vm(VmId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// An object that is gone for the users while nodes still hold something of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Its name, for messages.
    pub name: String,
    /// The nodes that have not reported its deletion.
    pub nodes: BTreeSet<NodeId>,
    /// When it was deleted.
    pub created_at: Millis,
}
