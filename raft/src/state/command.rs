//! Everything that can be asked of the replicated state. A command carries all that its application needs: the proposer
//! stamps time, ids and randomness into it.

use super::authority::{AuthorityCertificate, Fingerprint, NodeTrust};
use super::ids::{
    CertificateId, ClusterId, ImageId, LeaseId, MapId, NodeId, OperationId, SnapshotId, TokenId,
    VmId,
};
use super::model::{
    Accelerator, Blob, Capacity, CaptureMode, Checksums, ChildResult, Content, DiskBlob, Ending,
    FileId, GuestAgent, Labels, Life, Limits, Machine, MapAsker, MapJob, MapResult, Millis,
    Network, ObjectId, Phase, RestartPolicy, Role, Schedule, Unready,
};
use super::{owners::Actor, quotas::Quota};

/// A command and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The request it carries out; `None` for what agents report on their own.
    pub request: Option<RequestKey>,
    /// On whose behalf: what is not there for this one is not found.
    pub by: Actor,
    /// The proposer's time.
    pub now: Millis,
    /// What to do.
    pub command: Command,
}

/// Names a request and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The client's id.
    pub id: String,
    /// SHA-256 of the request's body.
    pub body: [u8; 32],
}

/// What to do. Names may be given as names, ids or unambiguous prefixes of ids; `apply` resolves them.
/// Fields are called as in the objects they fill; where one means more, its variant says so.
#[allow(missing_docs)] // As said above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The first command of a cluster: names it and its first node, which gets the number 1.
    Found {
        cluster: ClusterId,
        name: String,
        address: String,
    },

    // -- Trust and membership ----------------------------------------------------------------------------------------
    /// Notes a join token.
    CreateToken {
        id: TokenId,
        key_hash: [u8; 32],
        expires_at: Millis,
        authority: Fingerprint,
    },
    /// Makes a token useless.
    RevokeToken { id: String },
    /// Notes a certificate that is going to be signed. Answered with `Response::Certificate`.
    IssueCertificate {
        id: CertificateId,
        name: String,
        owner: String,
        role: Role,
        expires_at: Millis,
        authority: Fingerprint,
        /// Whether one that is valid and has this name is revoked, rather than in the way.
        replace: bool,
    },
    /// Makes a certificate useless. Answered with `Response::Certificate`.
    RevokeCertificate { certificate: String },
    /// Begins to replace the authority, or begins anew while nothing is of the new one. Of a replacement that is further it only notes, with
    /// `is_compromised`, that the old key is in wrong hands.
    ReplaceAuthority {
        old: AuthorityCertificate,
        new: AuthorityCertificate,
        cross: Vec<u8>,
        is_compromised: bool,
    },
    /// The new authority signs from here on, if all nodes have it but those that are absent.
    SignWithNewAuthority { number: u64, absent: Vec<NodeId> },
    /// The old authority is trusted no more. Refused while a node has its certificate of it, but not with `force`.
    FinishAuthority { force: bool },
    /// What a node says of its certificates.
    ReportTrust { node: NodeId, trust: NodeTrust },
    /// Uses up a token and notes a new node, which must start until `start_by`, or until the token ends if that is later. Answered
    /// with `Response::Node`. Refused when no valid token has this hash, the name is taken, or its agent does
    /// not understand what the cluster writes. While the node has not started, the
    /// token lets it in once more, under its name and another number.
    Join {
        key_hash: [u8; 32],
        name: String,
        address: String,
        newest_version: u32,
        start_by: Millis,
    },
    /// The newcomer that a token let in gives up before it started: it is forgotten, and the token can be used again.
    WithdrawJoin { key_hash: [u8; 32] },
    /// Forgets newcomers that have not started in time.
    ForgetNewcomers,
    /// A node's agent has started: what it has to offer and where it is reached.
    ReportNode {
        node: NodeId,
        address: String,
        capacity: Capacity,
    },
    /// From here on what this version has is used. Refused when a node has not reported that it understands it.
    RaiseVersion { to: u32 },
    /// A node is reached elsewhere from now on.
    MoveNode { node: NodeId, address: String },
    /// Removes a node for good; what only it has is given up with it, but only with `force`. Answered with `Response::DeletedNode`.
    DeleteNode { node: String, force: bool },
    /// Sets and removes labels.
    LabelNode {
        node: String,
        set: Labels,
        remove: Vec<String>,
    },
    /// Allows or forbids placing new VMs. Allowing them ends that it is drained.
    CordonNode { node: String, schedulable: bool },
    /// Forbids placing new VMs on a node, and has those that live there be moved to others: all, also those that could not be before.
    /// Refused when no majority of the voters would be there without the node, those that are silent as the proposer knows it, and those
    /// that are drained; but not with `force`.
    DrainNode {
        node: String,
        voters: Vec<NodeId>,
        silent: Vec<NodeId>,
        force: bool,
        /// Whether they are suspended there instead, until its host was restarted.
        rest: bool,
    },
    /// The host of a node whose VMs were suspended for that was restarted: they go on. Nothing when they were not.
    WakeNode { node: NodeId },
    /// A VM could not be moved from a node that is drained.
    StayOnNode {
        node: NodeId,
        vm: VmId,
        reason: String,
    },

    // -- Images ------------------------------------------------------------------------------------------------------
    /// Notes an image whose files are on a node.
    ImportImage {
        id: ImageId,
        name: String,
        kernel: Option<Blob>,
        initrd: Option<Blob>,
        disk: Option<DiskBlob>,
        cmdline: String,
        ready_line: Option<String>,
        boot_timeout_ms: u64,
        guest_agent: GuestAgent,
        node: NodeId,
    },
    /// A node fetched an image's files.
    ReportImage { image: ImageId, node: NodeId },
    /// Deletes an image.
    DeleteImage { image: String },

    // -- VMs ---------------------------------------------------------------------------------------------------------
    /// Creates a VM. `node` is the user's choice; without one the planner takes the least loaded that can take it (see
    /// `state::placement`).
    CreateVm {
        id: VmId,
        name: String,
        image: String,
        node: Option<String>,
        constraints: Constraints,
        candidates: Vec<Candidate>,
        cpus: u32,
        memory_bytes: u64,
        disk_bytes: u64,
        machine: Machine,
        accelerator: Accelerator,
        cpu_model: Option<String>,
        cmdline: String,
        /// What its process may take at most of its host.
        limits: Limits,
        restart: RestartPolicy,
        labels: Labels,
        network: Network,
        /// In any order; each once.
        publish: Vec<u16>,
        self_fork: u32,
        unready: Unready,
        life: Life,
        schedule: Option<Schedule>,
        /// Whether it is restored elsewhere when its node is lost.
        ha: bool,
        /// The group that it is to be in, which it begins where there is none of this name.
        group: Option<String>,
    },
    /// Changes how a VM should be.
    SetPower { vm: String, action: PowerAction },
    /// Deletes a VM; a running one only with `force`.
    DeleteVm { vm: String, force: bool },
    /// What a node saw of its VMs.
    ReportVms {
        node: NodeId,
        reports: Vec<VmReport>,
    },
    /// Which steps of becoming itself failed in a VM, all of them, when that shows after its fork was answered.
    ReportSteps {
        vm: VmId,
        /// The boot that it is about: told of another one, it is ignored.
        boot: u64,
        failed: Vec<String>,
    },

    // -- Snapshots and forks -----------------------------------------------------------------------------------------
    /// Begins to capture a VM.
    CreateSnapshot {
        operation: OperationId,
        vm: String,
        name: Option<String>,
        mode: CaptureMode,
        life: Life,
        /// On how many nodes it is to be; 0 for no number.
        replicas: u32,
        candidates: Vec<Candidate>,
        expires_at: Millis,
    },
    /// Begins to set a VM to the moment of a snapshot (with the VM's name or id when the user gave it before the `@`); without
    /// one, to let a suspended VM go on.
    ResetVm {
        operation: OperationId,
        vm: String,
        to: Option<(String, Option<String>)>,
        paused: bool,
        expires_at: Millis,
    },
    /// Begins to capture a VM to disk and to end its process.
    SuspendVm {
        operation: OperationId,
        vm: String,
        mode: CaptureMode,
        expires_at: Millis,
    },
    /// Begins to move a VM to a node, or to the best one but its own that the proposer knows to be online.
    MoveVm {
        operation: OperationId,
        vm: String,
        node: Option<String>,
        candidates: Vec<Candidate>,
        expires_at: Millis,
    },
    /// A VM that is moved has come to its new node, and lives there from here on: as a process that stands at this moment, or without one, as
    /// a disk of these layers where it ever ran. Refused when the operation has ended.
    Arrive {
        operation: OperationId,
        node: NodeId,
        content: Option<Content>,
        disk: Option<Vec<FileId>>,
    },
    /// Begins a fork: notes the operation, the snapshot when there is none yet, and the children. One that a guest asked for
    /// (`by_guest`) is of a VM whose family has room for the children; without, it is refused.
    Fork {
        operation: OperationId,
        source: ForkSource,
        count: u32,
        name: Option<String>,
        mode: CaptureMode,
        paused: bool,
        labels: Labels,
        settings: Labels,
        by_guest: bool,
        /// Whether secrets were given with the request, which are not here.
        has_secrets: bool,
        placing: Placing,
        /// How long its children are kept.
        life: Life,
        constraints: Constraints,
        candidates: Vec<Candidate>,
        expires_at: Millis,
    },
    /// Begins to fork a group: an operation for each member, of which `operation` is the first and the others have the ids that
    /// [`OperationId::part`] gives. Each makes `count` children, which are the members of as many copies of the group.
    ForkGroup {
        operation: OperationId,
        group: String,
        count: u32,
        /// What the copies are called; without, what the group is, with the free numbers.
        name: Option<String>,
        mode: CaptureMode,
        /// How long the copies' members are kept.
        life: Life,
        candidates: Vec<Candidate>,
        expires_at: Millis,
    },
    /// All members of a group were captured at one instant: what each of the operations that fork it made.
    GroupCaptured {
        captured: Vec<(OperationId, Content)>,
    },
    /// What became of the children of the operations that fork a group.
    ReportGroup {
        results: Vec<(OperationId, Vec<(u32, ChildResult)>)>,
    },
    /// Deletes all members of a group; running ones only with `force`.
    DeleteGroup { group: String, force: bool },
    /// The capture is done: the snapshot can be forked. Ends an operation of the kind `Snapshot`.
    SnapshotReady {
        operation: OperationId,
        content: Content,
    },
    /// What became of an operation's children. The operation is complete when all are known.
    ReportChildren {
        operation: OperationId,
        results: Vec<(u32, ChildResult)>,
    },
    /// Gives an operation up: its children that are not known to run go, its snapshot goes unless it is ready and named.
    /// Nothing when it ended before.
    FailOperation {
        operation: OperationId,
        reason: String,
        cancelled: bool,
    },
    /// Closes what is open of captures and forks on a node that has been silent for too long: they go on without it.
    CloseParts { node: NodeId, reason: String },
    /// Asks the node that does it to give an operation up.
    CancelOperation { operation: String },
    /// Names a snapshot.
    TagSnapshot { snapshot: String, name: String },
    /// Says how many forks of a snapshot are to be kept ready; with the VM's name or id when the user gave it.
    WarmSnapshot {
        snapshot: String,
        vm: Option<String>,
        count: u32,
    },
    /// Says on how many nodes a snapshot is to be, of those that hold it and those that the proposer knows to be online; with the VM's name or
    /// id when the user gave it. Refused when there are not so many.
    ReplicateSnapshot {
        snapshot: String,
        vm: Option<String>,
        replicas: u32,
        candidates: Vec<Candidate>,
    },
    /// Says what is done so that a VM is not lost with its node; what is `None` stays as it is. Snapshots that were taken stay.
    ProtectVm {
        vm: String,
        snapshots: Option<ScheduleChange>,
        /// Whether it is restored elsewhere when its node is lost.
        ha: Option<bool>,
        candidates: Vec<Candidate>,
    },
    /// A node says of VMs that are to be restored elsewhere when it is lost that they do not run on there: its watchdog has those that run.
    GuardVms { node: NodeId, vms: Vec<VmId> },
    /// Has VMs of a node that is lost go on elsewhere, each from its newest snapshot that another node holds, which the proposer knows to be
    /// online. Who proposes it makes sure that they do not run on there.
    RestoreVms {
        node: NodeId,
        /// For how long it has not been heard of, milliseconds.
        silent_for: Millis,
        candidates: Vec<Candidate>,
    },
    /// The node of a VM begins to take one that is due. Refused when it is not, so that it is taken once.
    TakeScheduled {
        operation: OperationId,
        vm: VmId,
        node: NodeId,
        candidates: Vec<Candidate>,
        expires_at: Millis,
    },
    /// Has other nodes hold the copies of snapshots that those hold, or were to, which have been silent for too long.
    PlaceCopies {
        candidates: Vec<Candidate>,
        lost: Vec<NodeId>,
    },
    /// Deletes a snapshot.
    DeleteSnapshot { snapshot: String },
    /// A node found that it no longer has what a snapshot is made of (its host was restarted, a file is damaged). The snapshot
    /// stays listed for its dependents, without this node.
    LostSnapshot {
        snapshot: SnapshotId,
        node: NodeId,
        reason: String,
    },
    /// A node has fetched what a snapshot is made of, and has it on its disk.
    HoldSnapshot { snapshot: SnapshotId, node: NodeId },
    /// A node has brought a snapshot's files to its disk, and these are the checksums of what it shares with others.
    SecureSnapshot {
        snapshot: SnapshotId,
        node: NodeId,
        checksums: Checksums,
    },

    // -- How long things are kept ------------------------------------------------------------------------------------
    /// Notes a lease, which ends `ttl` after it was renewed last. Answered with `Response::Lease`.
    CreateLease { id: LeaseId, ttl: Millis },
    /// Has a lease go on.
    RenewLease { lease: String },
    /// Ends a lease, and with it all that is kept by it. Answered with `Response::EndedLease`.
    EndLease { lease: String },
    /// Says how long a VM or a snapshot is kept. Answered as a change of it is.
    SetLife { object: ObjectName, life: Life },
    /// Ends what has outlived its time.
    Expire,

    // -- Maps that are left to the cluster -----------------------------------------------------------------------------
    /// Begins a map; of a VM, with a capture of it under the id `operation`. It is driven by `node`, where that can, or another one that the
    /// proposer knows to be online. Answered with `Response::Map`.
    StartMap {
        id: MapId,
        name: Option<String>,
        asker: Option<MapAsker>,
        source: ForkSource,
        job: MapJob,
        operation: OperationId,
        node: NodeId,
        candidates: Vec<Candidate>,
        /// How long it is kept after its end.
        kept_for: Millis,
        /// When its capture is given up.
        expires_at: Millis,
    },
    /// Has another of these nodes drive a map, if it is still in this drive. What the last one made of it goes.
    PlaceMap {
        map: MapId,
        epoch: u64,
        candidates: Vec<Candidate>,
    },
    /// A node that is to drive a map begins to: a new drive, with a lease for what it makes.
    TakeMap {
        map: MapId,
        node: NodeId,
        epoch: u64,
        lease: LeaseId,
    },
    /// What a map's driver knows. Nothing of a drive that is over; of an item that has a result nothing more.
    ReportMap {
        map: MapId,
        epoch: u64,
        results: Vec<MapResult>,
        note: String,
    },
    /// A map's driver has done all of it, or cannot go on.
    EndMap {
        map: MapId,
        epoch: u64,
        failure: Option<String>,
        reduced: Option<MapResult>,
    },
    /// Ends a map, with all that is being made for it. Results stay. Answered with `Response::Map`.
    CancelMap { map: String },
    /// Deletes a map with its results; one that runs only with `force`. Answered with `Response::DeletedMap`.
    DeleteMap { map: String, force: bool },

    // -- Owners ------------------------------------------------------------------------------------------------------
    /// Says who else may see and use an object: an owner, or everybody (`with` is `None`); with `stop`, who may not any more. Answered
    /// with what is answered to a change of such an object.
    Share {
        object: ObjectName,
        with: Option<String>,
        stop: bool,
    },

    /// Says how much an owner may have. What is not said stays as it was.
    SetQuota { owner: String, quota: Quota },
    /// Lets an owner have as much as there is.
    DeleteQuota { owner: String },

    // -- Removal -----------------------------------------------------------------------------------------------------
    /// A node has deleted what it held of these.
    Purged {
        node: NodeId,
        objects: Vec<ObjectId>,
    },
}

impl Command {
    /// Whether applying it again right after the first time changes nothing and is answered alike, so that it may be sent
    /// again without a request id: what nodes report of themselves. (One exception that does no harm: a snapshot whose
    /// last dependent was gone when it became ready goes in that instant, and saying so again is refused.)
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Found { .. }
            | Self::ReportNode { .. }
            | Self::SignWithNewAuthority { .. }
            | Self::ReportTrust { .. }
            | Self::RaiseVersion { .. }
            | Self::MoveNode { .. }
            | Self::WithdrawJoin { .. }
            | Self::ForgetNewcomers
            | Self::ReportImage { .. }
            | Self::ReportVms { .. }
            | Self::ReportSteps { .. }
            | Self::SnapshotReady { .. }
            | Self::GroupCaptured { .. }
            | Self::ReportGroup { .. }
            | Self::Arrive { .. }
            | Self::StayOnNode { .. }
            | Self::WakeNode { .. }
            | Self::ReportChildren { .. }
            | Self::FailOperation { .. }
            | Self::CloseParts { .. }
            | Self::LostSnapshot { .. }
            | Self::HoldSnapshot { .. }
            | Self::SecureSnapshot { .. }
            | Self::PlaceCopies { .. }
            | Self::GuardVms { .. }
            | Self::RestoreVms { .. }
            | Self::RenewLease { .. }
            | Self::PlaceMap { .. }
            | Self::TakeMap { .. }
            | Self::ReportMap { .. }
            | Self::EndMap { .. }
            | Self::Expire
            | Self::Purged { .. } => true,
            Self::CreateToken { .. }
            | Self::RevokeToken { .. }
            | Self::IssueCertificate { .. }
            | Self::RevokeCertificate { .. }
            | Self::ReplaceAuthority { .. }
            | Self::FinishAuthority { .. }
            | Self::Join { .. }
            | Self::DeleteNode { .. }
            | Self::LabelNode { .. }
            | Self::CordonNode { .. }
            | Self::DrainNode { .. }
            | Self::ImportImage { .. }
            | Self::DeleteImage { .. }
            | Self::CreateVm { .. }
            | Self::SetPower { .. }
            | Self::DeleteVm { .. }
            | Self::CreateSnapshot { .. }
            | Self::ResetVm { .. }
            | Self::SuspendVm { .. }
            | Self::MoveVm { .. }
            | Self::Fork { .. }
            | Self::ForkGroup { .. }
            | Self::DeleteGroup { .. }
            | Self::CancelOperation { .. }
            | Self::TagSnapshot { .. }
            | Self::WarmSnapshot { .. }
            | Self::ReplicateSnapshot { .. }
            | Self::ProtectVm { .. }
            | Self::TakeScheduled { .. }
            | Self::DeleteSnapshot { .. }
            | Self::CreateLease { .. }
            | Self::EndLease { .. }
            | Self::StartMap { .. }
            | Self::CancelMap { .. }
            | Self::DeleteMap { .. }
            | Self::SetLife { .. }
            | Self::Share { .. }
            | Self::SetQuota { .. }
            | Self::DeleteQuota { .. } => false,
        }
    }
}

/// What is to become of the snapshots that a VM's node takes of it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleChange {
    /// None are taken any more.
    Stop,
    /// They are taken like this.
    Follow(Schedule),
}

/// What a user asks of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerAction {
    /// From `Stopped`, failed, or waiting to be started again, to running.
    Start,
    /// Press the power button.
    Stop,
    /// Pull the plug.
    ForceStop,
    /// From running to paused.
    Pause,
    /// From paused to running.
    Resume,
    /// End it and start it from its disk.
    Restart,
}

/// What is forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkSource {
    /// A VM, captured first.
    Vm(String),
    /// A snapshot; with the VM's name or id when the user gave it, which must be the one it was captured from.
    Snapshot {
        /// The snapshot's name or id.
        snapshot: String,
        /// The VM that the user named before the `@`.
        vm: Option<String>,
    },
}

/// Where a fork's children go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placing {
    /// Where what is forked is.
    WithSource,
    /// To this node.
    On(String),
    /// Where what is forked is, and where something like it is, before other nodes: what has to move is as little as can be.
    Near,
    /// Over all nodes that can take them.
    Spread,
}

/// Which nodes may take what a request makes. Looked at when it is carried out, and not remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Labels that a node must have, all of them.
    pub node_labels: Labels,
    /// Each a VM, or a label `KEY=VALUE` of VMs, that a node must not have. Of what the request makes with such a label each node takes one.
    pub apart_from: Vec<String>,
}

impl Constraints {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.node_labels.is_empty() && self.apart_from.is_empty()
    }
}

/// A node that the proposer knows to be online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// What it had free when it was heard of last; `None` where it has not said.
    pub room: Option<Room>,
}

/// What a node has free for new work, beyond what it keeps back. In MiB: an entry has one for each node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Memory.
    pub memory_mib: u32,
    /// Its data directory's disk.
    pub disk_mib: u32,
}

/// An object that has an owner, as somebody names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectName {
    /// An image.
    Image(String),
    /// A VM.
    Vm(String),
    /// A snapshot.
    Snapshot(String),
}

/// What a node saw of one of its VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmReport {
    /// The VM.
    pub vm: VmId,
    /// The boot that the report is about: one about an older boot than the wanted one is ignored.
    pub boot: u64,
    /// How it is.
    pub phase: Phase,
    /// Why, where that needs saying.
    pub reason: String,
    /// How it ended last, as far as the node knows.
    pub ending: Option<Ending>,
    /// How often it was started again in this boot.
    pub restarts: u32,
    /// When it is started again; with `Phase::Restarting` only.
    pub next_start: Option<Millis>,
}
