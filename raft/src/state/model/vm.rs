//! VMs: what they are made of, how they should be and how they are.

use super::{FileId, Labels, Life, Millis};
use crate::state::{
    ids::{ImageId, NodeId, OperationId, SnapshotId, VmId},
    loads::{memory_of_boot, memory_of_fork},
    owners::{Captured, Ownership},
};

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
    /// The VM that its line began with, which was booted and may be gone: what their snapshots are made of, all of a line may share.
    pub lineage: VmId,
    /// How long it is kept.
    pub life: Life,
    /// Memory of its own, bytes, by an estimate of when it was begun: see [`crate::state::memory_of_boot`] and
    /// [`crate::state::memory_of_fork`].
    pub own_bytes: u64,
    /// The layers of its disk, the newest first, where it was moved to its node without a process: its node has no record of them before it
    /// is started there. What it writes then lies on them.
    pub disk: Option<Vec<FileId>>,
    /// The snapshots that its node takes of it by itself; not its forks'.
    pub schedule: Option<Schedule>,
    /// When the next of them is due.
    pub next_snapshot: Millis,
    /// How it is to be again when its node does not rest any more, for which it was suspended; `None` for any other.
    pub rests_from: Option<Power>,
    /// What becomes of it when its node is lost; not its forks'.
    pub ha: Ha,
    /// How it was restored last; `None` while it never was.
    pub restored: Option<Restored>,
    /// The group that it is in. A fork of it alone is in none.
    pub group: Option<InGroup>,
}

/// What becomes of a VM when its node is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ha {
    /// It is where it was, when its node is back.
    #[default]
    Off,
    /// It is to be restored elsewhere, and its node has not said yet that it would not run on there.
    Arming,
    /// It is restored elsewhere, from its newest snapshot that another node holds. On its own it runs only under a watchdog.
    Restore,
}

/// How a VM was restored that was lost with its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The node that was lost.
    pub from: NodeId,
    /// The snapshot that it goes on from.
    pub snapshot: SnapshotId,
    /// When that was taken.
    pub captured_at: Millis,
    /// When its node was heard of last: what happened in between is lost.
    pub heard_at: Millis,
    /// When it was given its new node.
    pub at: Millis,
}

impl Restored {
    /// How much of what happened in it is lost, milliseconds: from its moment until its node was heard of last.
    pub fn lost(&self) -> Millis {
        self.heard_at.saturating_sub(self.captured_at)
    }
}

/// A VM's place in a group: VMs that are forked together, with a network between them. A group is its members, and nothing besides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InGroup {
    /// The group, by the VM that it was begun with, which may be gone.
    pub id: VmId,
    /// What it is called: unique among the groups of its members' owner.
    pub name: String,
    /// The VM's number in it, from 1, which its address follows from: no other member has it, and the copies of a member have the same.
    pub number: u32,
}

/// Snapshots that a VM's node takes of it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// How far they are apart, milliseconds. One that was missed is not made up for.
    pub every: Millis,
    /// How many of the newest are kept.
    pub keep: u32,
    /// On how many nodes each is to be.
    pub replicas: u32,
}

/// A VM's place among the forks that were made together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub index: u32,
    /// How many they were.
    pub count: u32,
}

impl InGroup {
    /// Why a member is not moved, as the end of a sentence that begins with it.
    pub fn why_it_stays(&self) -> String {
        format!(
            "is in group {:?}, whose members stay on one node; a fork of it alone can be moved",
            self.name
        )
    }
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
        let own_bytes = match source {
            Source::Image => memory_of_boot(spec.memory_bytes),
            Source::Snapshot(_) => memory_of_fork(spec.memory_bytes, 0),
        };
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
            lineage: id,
            life: Life::Unbounded,
            own_bytes,
            disk: None,
            schedule: None,
            next_snapshot: created_at,
            rests_from: None,
            ha: Ha::Off,
            restored: None,
            group: None,
        }
    }

    /// It begins anew from its disk: its guest will touch all of its memory.
    pub fn boots(&mut self) {
        self.own_bytes = memory_of_boot(self.spec.memory_bytes);
    }

    /// It begins with a moment whose stream has so many bytes: the rest it shares with its lineage.
    pub fn goes_on_from(&mut self, stream_bytes: u64) {
        self.own_bytes = memory_of_fork(self.spec.memory_bytes, stream_bytes);
    }

    /// Whether it has a process, or is to have one, as far as is known.
    pub fn may_run(&self) -> bool {
        let is_over = matches!(
            self.phase,
            Phase::Stopped | Phase::Failed | Phase::Suspended
        );
        !is_over || self.is_going_back
    }

    /// Whether it takes up one of its family's places for VMs that guests made: one that has stopped or failed has left its own.
    pub fn takes_a_place(&self) -> bool {
        self.by_guest && !matches!(self.phase, Phase::Stopped | Phase::Failed)
    }
}
