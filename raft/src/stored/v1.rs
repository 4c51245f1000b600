//! Version 1 of the stored forms.
#![allow(missing_docs)] // Each type and field is documented where it is mirrored from, in `crate::state`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::mirror::{Mirror, mirrors};
use crate::state as m;

/// A ULID of any kind.
type Id = u128;
type NodeId = u64;
type Millis = u64;
type Labels = BTreeMap<String, String>;

mirrors! {
    id ClusterId;
    id ImageId;
    id VmId;
    id SnapshotId;
    id OperationId;
    id TokenId;
    id CertificateId;
    id LeaseId;
    id MapId;

    struct Proposal { request: Option<RequestKey>, by: Actor, now: Millis, command: Command }
    struct Actor { owner: String, is_admin: bool }
    struct RequestKey { id: String, body: [u8; 32] }

    enum Command {
        Found { cluster: Id, name: String, address: String },
        CreateToken { id: Id, key_hash: [u8; 32], expires_at: Millis, authority: [u8; 32] },
        RevokeToken { id: String },
        IssueCertificate {
            id: Id,
            name: String,
            owner: String,
            role: Role,
            expires_at: Millis,
            authority: [u8; 32],
            replace: bool,
        },
        RevokeCertificate { certificate: String },
        ReplaceAuthority {
            old: AuthorityCertificate,
            new: AuthorityCertificate,
            cross: Vec<u8>,
            is_compromised: bool,
        },
        SignWithNewAuthority { number: u64, absent: Vec<NodeId> },
        FinishAuthority { force: bool },
        ReportTrust { node: NodeId, trust: NodeTrust },
        Join { key_hash: [u8; 32], name: String, address: String, newest_version: u32, start_by: Millis },
        WithdrawJoin { key_hash: [u8; 32] },
        ForgetNewcomers,
        ReportNode { node: NodeId, address: String, capacity: Capacity },
        RaiseVersion { to: u32 },
        MoveNode { node: NodeId, address: String },
        DeleteNode { node: String, force: bool },
        LabelNode { node: String, set: Labels, remove: Vec<String> },
        CordonNode { node: String, schedulable: bool },
        DrainNode { node: String, voters: Vec<NodeId>, silent: Vec<NodeId>, force: bool, rest: bool },
        WakeNode { node: NodeId },
        StayOnNode { node: NodeId, vm: Id, reason: String },
        ImportImage {
            id: Id,
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
        ReportImage { image: Id, node: NodeId },
        DeleteImage { image: String },
        CreateVm {
            id: Id,
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
            limits: Limits,
            restart: RestartPolicy,
            labels: Labels,
            network: Network,
            publish: Vec<u16>,
            self_fork: u32,
            unready: Unready,
            life: Life,
            schedule: Option<Schedule>,
            ha: bool,
            group: Option<String>,
        },
        SetPower { vm: String, action: PowerAction },
        DeleteVm { vm: String, force: bool },
        ReportVms { node: NodeId, reports: Vec<VmReport> },
        ReportSteps { vm: Id, boot: u64, failed: Vec<String> },
        CreateSnapshot { operation: Id, vm: String, name: Option<String>, mode: CaptureMode, life: Life, replicas: u32, candidates: Vec<Candidate>, expires_at: Millis },
        ResetVm {
            operation: Id,
            vm: String,
            to: Option<(String, Option<String>)>,
            paused: bool,
            expires_at: Millis,
        },
        SuspendVm { operation: Id, vm: String, mode: CaptureMode, expires_at: Millis },
        MoveVm { operation: Id, vm: String, node: Option<String>, candidates: Vec<Candidate>, expires_at: Millis },
        Arrive { operation: Id, node: NodeId, content: Option<Content>, disk: Option<Vec<Id>> },
        Fork {
            operation: Id,
            source: ForkSource,
            count: u32,
            name: Option<String>,
            mode: CaptureMode,
            paused: bool,
            labels: Labels,
            settings: Labels,
            by_guest: bool,
            has_secrets: bool,
            placing: Placing,
            life: Life,
            constraints: Constraints,
            candidates: Vec<Candidate>,
            expires_at: Millis,
        },
        ForkGroup { operation: Id, group: String, count: u32, name: Option<String>, mode: CaptureMode, life: Life, candidates: Vec<Candidate>, expires_at: Millis },
        GroupCaptured { captured: Vec<(Id, Content)> },
        ReportGroup { results: Vec<(Id, Vec<(u32, ChildResult)>)> },
        DeleteGroup { group: String, force: bool },
        SnapshotReady { operation: Id, content: Content },
        ReportChildren { operation: Id, results: Vec<(u32, ChildResult)> },
        FailOperation { operation: Id, reason: String, cancelled: bool },
        CloseParts { node: NodeId, reason: String },
        CancelOperation { operation: String },
        TagSnapshot { snapshot: String, name: String },
        WarmSnapshot { snapshot: String, vm: Option<String>, count: u32 },
        ReplicateSnapshot { snapshot: String, vm: Option<String>, replicas: u32, candidates: Vec<Candidate> },
        ProtectVm { vm: String, snapshots: Option<ScheduleChange>, ha: Option<bool>, candidates: Vec<Candidate> },
        GuardVms { node: NodeId, vms: Vec<Id> },
        RestoreVms { node: NodeId, silent_for: Millis, candidates: Vec<Candidate> },
        TakeScheduled { operation: Id, vm: Id, node: NodeId, candidates: Vec<Candidate>, expires_at: Millis },
        PlaceCopies { candidates: Vec<Candidate>, lost: Vec<NodeId> },
        DeleteSnapshot { snapshot: String },
        LostSnapshot { snapshot: Id, node: NodeId, reason: String },
        HoldSnapshot { snapshot: Id, node: NodeId },
        SecureSnapshot { snapshot: Id, node: NodeId, checksums: Checksums },
        CreateLease { id: Id, ttl: Millis },
        RenewLease { lease: String },
        EndLease { lease: String },
        SetLife { object: ObjectName, life: Life },
        Expire,
        StartMap {
            id: Id,
            name: Option<String>,
            asker: Option<MapAsker>,
            source: ForkSource,
            job: MapJob,
            operation: Id,
            node: NodeId,
            candidates: Vec<Candidate>,
            kept_for: Millis,
            expires_at: Millis,
        },
        PlaceMap { map: Id, epoch: u64, candidates: Vec<Candidate> },
        TakeMap { map: Id, node: NodeId, epoch: u64, lease: Id },
        ReportMap { map: Id, epoch: u64, results: Vec<MapResult>, note: String },
        EndMap { map: Id, epoch: u64, failure: Option<String>, reduced: Option<MapResult> },
        CancelMap { map: String },
        DeleteMap { map: String, force: bool },
        SetQuota { owner: String, quota: Quota },
        DeleteQuota { owner: String },
        Share { object: ObjectName, with: Option<String>, stop: bool },
        Purged { node: NodeId, objects: Vec<ObjectId> },
    }
    enum ObjectName { Image(name: String), Vm(name: String), Snapshot(name: String) }

    enum ScheduleChange { Stop, Follow(schedule: Schedule) }
    enum PowerAction { Start, Stop, ForceStop, Pause, Resume, Restart }
    enum ForkSource { Vm(vm: String), Snapshot { snapshot: String, vm: Option<String> } }
    enum Placing { WithSource, On(node: String), Near, Spread }
    struct Constraints { node_labels: Labels, apart_from: Vec<String> }
    struct Candidate { node: NodeId, room: Option<Room> }
    struct Room { memory_mib: u32, disk_mib: u32 }
    struct VmReport {
        vm: Id,
        boot: u64,
        phase: Phase,
        reason: String,
        ending: Option<Ending>,
        restarts: u32,
        next_start: Option<Millis>,
    }

    enum Response {
        Done,
        Node(id: NodeId),
        DeletedNode(id: NodeId),
        Image(id: Id),
        Vm(id: Id),
        DeletedVm(id: Id),
        Snapshot(id: Id),
        DeletedSnapshot(id: Id),
        Operation(id: Id),
        Certificate(id: Id),
        Lease(id: Id),
        EndedLease(id: Id),
        Map(id: Id),
        DeletedMap(id: Id),
    }
    enum Kind { Node, Token, Image, Vm, Snapshot, Operation, Certificate, Quota, Authority, Lease, Group, Map }
    enum Rejection {
        InvalidField { field: String, problem: String },
        NotFound { kind: Kind, name: String },
        GivenUp { kind: Kind, name: String, node: String },
        Ambiguous { kind: Kind, name: String, matches: Vec<String> },
        NameTaken { kind: Kind, name: String },
        NotOwner { kind: Kind, name: String },
        InUse { kind: Kind, name: String, dependents: Vec<String> },
        WrongState { kind: Kind, name: String, problem: String },
        NoCapacity { short: u32, wanted: u32, reasons: Vec<String> },
        TooFewNodes { wanted: u32, reasons: Vec<String> },
        OverQuota { owner: String, exceeded: Vec<String> },
        RequestIdReused { id: String },
        BadToken,
    }

    struct Node {
        id: NodeId,
        name: String,
        address: String,
        schedulable: bool,
        labels: Labels,
        created_at: Millis,
        capacity: Option<Capacity>,
        start_by: Option<Millis>,
        trust: Option<NodeTrust>,
        drain: Option<Drain>,
    }
    struct Drain { how: DrainHow, since: Millis, stays: BTreeMap<Id, String> }
    enum DrainHow { Move, Rest { schedulable: bool } }
    struct RemovedNode {
        name: String,
        removed_at: Millis,
        vms: BTreeMap<Id, LostVm>,
        snapshots: BTreeMap<Id, String>,
        images: BTreeMap<Id, String>,
    }
    struct LostVm { name: String, owner: String }
    struct Capacity {
        cpus: u32,
        memory_bytes: u64,
        qemu_version: String,
        accelerators: Vec<Accelerator>,
        processor: String,
        agent_version: String,
        newest_version: u32,
        problems: Vec<String>,
    }
    struct Token {
        key_hash: [u8; 32],
        created_at: Millis,
        expires_at: Millis,
        node: Option<NodeId>,
        authority: [u8; 32],
    }
    struct Quota {
        vms: Option<u64>,
        cpus: Option<u64>,
        memory_bytes: Option<u64>,
        disk_bytes: Option<u64>,
        snapshots: Option<u64>,
        images: Option<u64>,
    }
    struct NodeTrust { key: [u8; 32], authority: [u8; 32], holds: [u8; 32] }
    struct AuthorityCertificate { fingerprint: [u8; 32], der: Vec<u8>, expires_at: Millis }
    enum ReplacementPhase { Spreading, Renewing, Finished }
    struct Replacement {
        number: u64,
        phase: ReplacementPhase,
        old: AuthorityCertificate,
        new: AuthorityCertificate,
        cross: Vec<u8>,
        is_compromised: bool,
        began_at: Millis,
        finished_at: Option<Millis>,
    }
    enum Role { Viewer, Operator, Admin }
    struct Certificate {
        name: String,
        owner: String,
        role: Role,
        created_at: Millis,
        expires_at: Millis,
        revoked_at: Option<Millis>,
        authority: [u8; 32],
    }
    enum Life { Unbounded, Until(at: Millis), Leased(lease: Id) }
    struct Lease { owner: String, ttl: Millis, expires_at: Millis, created_at: Millis }
    struct Ownership { owner: String, everyone: bool, shared_with: BTreeSet<String> }
    struct Captured { vm: Id, name: String, owner: String }
    struct Image {
        id: Id,
        name: String,
        ownership: Ownership,
        kernel: Option<Blob>,
        initrd: Option<Blob>,
        disk: Option<DiskBlob>,
        cmdline: String,
        ready_line: Option<String>,
        boot_timeout_ms: u64,
        guest_agent: GuestAgent,
        nodes: BTreeSet<NodeId>,
        created_at: Millis,
    }
    enum GuestAgent { ForkyPig, Qemu, None }
    struct Blob { sha256: [u8; 32], size_bytes: u64 }
    struct DiskBlob { blob: Blob, virtual_bytes: u64 }
    enum Accelerator { Auto, Kvm, Tcg }
    enum Machine { Microvm, Q35 }
    struct Limits { cpu_percent: Option<u32>, memory_bytes: Option<u64>, pids: Option<u32> }
    struct VmSpec {
        image: Id,
        cpus: u32,
        memory_bytes: u64,
        disk_bytes: u64,
        machine: Machine,
        accelerator: Accelerator,
        cpu_model: Option<String>,
        cmdline: String,
        limits: Limits,
        restart: RestartPolicy,
        network: Network,
        publish: Vec<u16>,
        self_fork: u32,
        unready: Unready,
    }
    enum Network { None, User { egress: bool } }
    enum Unready { Run, Hold }
    enum RestartPolicy { Never, OnFailure, Always }
    enum Source { Image, Snapshot(id: Id) }
    enum Power { Running, Paused, Stopped { force: bool }, Suspended }
    enum Phase { Pending, Running, Paused, Stopped, Failed, Suspended, Restarting }
    enum EndCause {
        Stopped,
        Poweroff,
        Reboot,
        Panic,
        Crash,
        OutOfMemory,
        BootFailed,
        StartFailed,
        HostLost,
        Unseen,
        Exited,
    }
    struct Ending { cause: EndCause, detail: String, at: Millis, exit_code: Option<i32> }
    struct Vm {
        id: Id,
        name: String,
        ownership: Ownership,
        node: NodeId,
        spec: VmSpec,
        source: Source,
        parent: Option<Captured>,
        labels: Labels,
        power: Power,
        is_going_back: bool,
        generation: u64,
        boot: u64,
        phase: Phase,
        reason: String,
        reported_boot: u64,
        ending: Option<Ending>,
        restarts: u32,
        next_start: Option<Millis>,
        operation: Option<Id>,
        created_at: Millis,
        settings: Labels,
        place: Option<Place>,
        family: Option<Id>,
        by_guest: bool,
        has_secrets: bool,
        failed_steps: Vec<String>,
        lineage: Id,
        life: Life,
        own_bytes: u64,
        disk: Option<Vec<Id>>,
        schedule: Option<Schedule>,
        next_snapshot: Millis,
        rests_from: Option<Power>,
        ha: Ha,
        restored: Option<Restored>,
        group: Option<InGroup>,
    }
    enum Ha { Off, Arming, Restore }
    struct Restored { from: NodeId, snapshot: Id, captured_at: Millis, heard_at: Millis, at: Millis }
    struct InGroup { id: Id, name: String, number: u32 }
    struct Schedule { every: Millis, keep: u32, replicas: u32 }
    struct Place { index: u32, count: u32 }
    struct Snapshot {
        id: Id,
        name: Option<String>,
        ownership: Ownership,
        vm: Captured,
        parent: Option<Id>,
        nodes: BTreeSet<NodeId>,
        spec: VmSpec,
        family: Option<Id>,
        member: Option<u32>,
        lineage: Id,
        operation: Id,
        content: Option<Content>,
        lost: String,
        warm: u32,
        replicas: u32,
        copies: BTreeSet<NodeId>,
        is_scheduled: bool,
        life: Life,
        created_at: Millis,
    }
    struct Content {
        base: Id,
        stream: Id,
        layers: Vec<Id>,
        accelerator: Accelerator,
        cpu_model: String,
        processor: String,
        qemu_version: String,
        machine: String,
        devices: Vec<String>,
        agent: bool,
        base_bytes: u64,
        stream_bytes: u64,
        stream_checksum: u32,
        layer_bytes: u64,
        safety: Safety,
        report: CaptureReport,
    }
    enum Safety { Memory, Disk(checksums: Checksums) }
    struct Checksums { base: u32, layers: Vec<u32> }
    enum CaptureMode { Auto, Paused, Live }
    struct CaptureReport {
        pause_us: u64,
        agent_pause_us: u64,
        ahead_us: u64,
        stop_us: u64,
        disk_us: u64,
        devices_us: u64,
        scan_us: u64,
        copy_us: u64,
        cont_us: u64,
        write_us: u64,
        rounds: u32,
        ahead_bytes: u64,
        paused_bytes: u64,
        new_base: bool,
        live: bool,
        note: String,
    }
    enum OperationKind { Snapshot, Fork, Reset, Suspend, Move }
    enum OperationState { Open, Complete, Failed { reason: String, cancelled: bool } }
    struct Operation {
        id: Id,
        owner: String,
        kind: OperationKind,
        state: OperationState,
        vm: Option<Id>,
        snapshot: Id,
        mode: CaptureMode,
        count: u32,
        paused: bool,
        results: BTreeMap<u32, ChildResult>,
        node: NodeId,
        to: Option<NodeId>,
        created_at: Millis,
        expires_at: Millis,
        ended_at: Option<Millis>,
        cancel_requested: bool,
        group: Option<Id>,
    }
    struct ChildResult {
        running_us: u64,
        ready_us: u64,
        error: String,
        gave_way: bool,
        failed_steps: Vec<String>,
    }
    struct Map {
        id: Id,
        name: Option<String>,
        ownership: Ownership,
        asker: Option<MapAsker>,
        job: Box<MapJob>,
        snapshot: Id,
        operation: Option<Id>,
        driver: Option<NodeId>,
        epoch: u64,
        drives: u64,
        placed_at: Millis,
        lease: Option<Id>,
        results: BTreeMap<u32, Box<MapResult>>,
        done: BTreeMap<u32, u32>,
        output_bytes: u64,
        reduced: Option<Box<MapResult>>,
        state: MapState,
        note: String,
        kept_for: Millis,
        created_at: Millis,
        ended_at: Option<Millis>,
    }
    enum MapState { Running, Finished, Cancelled, Failed { reason: String } }
    struct MapAsker { certificate: Id, name: String, role: Role, expires_at: Millis }
    struct MapJob {
        source: String,
        count: u32,
        inputs: Vec<Vec<u8>>,
        argv: Vec<Vec<u8>>,
        env: Vec<String>,
        user: String,
        limit: Option<Millis>,
        retries: u32,
        parallel: u32,
        lease_ttl: Millis,
        node: String,
        spread: bool,
        constraints: Constraints,
        reduce: Option<String>,
    }
    struct MapResult {
        index: u32,
        exit_code: Option<u8>,
        error: String,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        truncated: bool,
        vm: String,
        node: String,
        attempts: u32,
        took_us: u64,
    }
    enum ObjectId { Image(id: Id), Vm(id: Id), Snapshot(id: Id), Left(id: Id) }
    struct Tombstone { name: String, nodes: BTreeSet<NodeId>, created_at: Millis }
    struct RequestRecord { body: [u8; 32], outcome: Outcome }

    struct Event {
        at: Millis,
        kind: EventKind,
        subject: Subject,
        name: String,
        node: String,
        detail: String,
        audience: Audience,
        vm: Option<Captured>,
    }
    enum Subject {
        Cluster,
        Node(id: NodeId),
        Token(id: Id),
        Certificate(id: Id),
        Quota,
        Lease(id: Id),
        Image(id: Id),
        Vm(id: Id),
        Snapshot(id: Id),
        Operation(id: Id),
        Map(id: Id),
    }
    enum Audience { Everybody, Administrators, Of(ownership: Ownership) }
    enum EventKind {
        ClusterFounded,
        ClusterUpgraded,
        AuthoritySpreading,
        AuthorityRenewing,
        AuthorityFinished,
        AuthorityCompromised,
        TokenCreated,
        TokenUsed,
        TokenEnded,
        CertificateIssued,
        CertificateRevoked,
        CertificateEnded,
        QuotaSet,
        QuotaDeleted,
        NodeJoined,
        NodeStarted,
        NodeMoved,
        NodeLabelled,
        NodeCordoned,
        NodeUncordoned,
        NodeDraining,
        NodeDrained,
        NodeChanged,
        NodeRemoved,
        LeaseCreated,
        LeaseEnded,
        ImageImported,
        ImageHeld,
        ImageShared,
        ImageUnshared,
        ImageChanged,
        ImageDeleted,
        VmCreated,
        VmWanted,
        VmStarting,
        VmRunning,
        VmPaused,
        VmStopped,
        VmFailed,
        VmSuspended,
        VmRestarting,
        VmReset,
        VmMoved,
        VmRestored,
        VmStays,
        VmUnready,
        VmShared,
        VmUnshared,
        VmKept,
        VmChanged,
        VmDeleted,
        SnapshotBegun,
        SnapshotReady,
        SnapshotNamed,
        SnapshotUnnamed,
        SnapshotHeld,
        SnapshotLost,
        SnapshotSecured,
        SnapshotWarmed,
        SnapshotShared,
        SnapshotUnshared,
        SnapshotKept,
        SnapshotChanged,
        SnapshotDeleted,
        OperationBegun,
        OperationProgressed,
        OperationCancelling,
        OperationComplete,
        OperationFailed,
        MapStarted,
        MapDriven,
        MapFinished,
        MapCancelled,
        MapFailed,
        MapDeleted,
    }

    struct State {
        cluster: Option<Id>,
        version: u32,
        next_node: NodeId,
        nodes: BTreeMap<NodeId, Box<Node>>,
        removed: BTreeMap<NodeId, Box<RemovedNode>>,
        tokens: BTreeMap<Id, Token>,
        certificates: BTreeMap<Id, Certificate>,
        quotas: BTreeMap<String, Quota>,
        leases: BTreeMap<Id, Lease>,
        images: BTreeMap<Id, Box<Image>>,
        vms: BTreeMap<Id, Box<Vm>>,
        snapshots: BTreeMap<Id, Box<Snapshot>>,
        operations: BTreeMap<Id, Box<Operation>>,
        maps: BTreeMap<Id, Box<Map>>,
        tombstones: BTreeMap<ObjectId, Tombstone>,
        requests: Requests,
        events: BTreeMap<u64, Box<Event>>,
        forgotten: Option<Forgotten>,
        replacement: Option<Box<Replacement>>,
    }
    struct Forgotten { from: Millis, to: Millis }
}

/// What became of a command.
pub type Outcome = Result<Response, Rejection>;

/// The records of requests, in the chunks that they are forgotten in, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Requests(pub Vec<BTreeMap<String, RequestRecord>>);

impl Mirror<m::Requests> for Requests {
    fn store(model: &m::Requests) -> Self {
        Self(
            model
                .chunks()
                .iter()
                .map(|chunk| Mirror::store(&**chunk))
                .collect(),
        )
    }
    fn load(self) -> m::Requests {
        m::Requests::from_chunks(self.0.load())
    }
}
