//! From the replicated state to the API's messages.

use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

use prost_types::Timestamp;
use proto::{peer, v1};
use qemu::{
    capture::Report,
    past::{Cause, End},
};
use raft::{
    node::Status,
    state::{
        self, Actor, CaptureMode, CaptureReport, CertificateId, Constraints, EndCause, Ending, Ha,
        Image, ImageId, InGroup, Life, Machine, Millis, Node, NodeId, Operation, OperationKind,
        OperationState, Owned as _, Ownership, Phase, Power, Room, Safety, Snapshot, SnapshotId,
        Source, State, Vm,
    },
};

use self::spec::{
    accelerator_message, accelerator_name, guest_agent_message, limits_message, network_message,
    restart_policy_message, unready_message,
};
use crate::{blobs::hex, reconcile::plan::Is};

pub mod files;
mod map;
pub mod spec;

pub use map::{map, map_result, map_result_of};

/// Milliseconds since the epoch as a timestamp.
pub fn timestamp(millis: Millis) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_millis(millis))
}

/// The engine's report of a capture, as it is replicated.
pub fn capture_report(report: &Report) -> CaptureReport {
    let us = |time: Duration| time.as_micros() as u64;
    CaptureReport {
        pause_us: us(report.pause),
        agent_pause_us: us(report.agent_pause),
        ahead_us: us(report.ahead),
        stop_us: us(report.stop),
        disk_us: us(report.disk),
        devices_us: us(report.devices),
        scan_us: us(report.scan),
        copy_us: us(report.copy),
        cont_us: us(report.cont),
        write_us: us(report.write),
        rounds: report.rounds,
        ahead_bytes: report.ahead_bytes,
        paused_bytes: report.paused_bytes,
        new_base: report.new_base,
        live: report.live,
        note: report.note.clone(),
    }
}

/// What a node says that it has free.
pub fn room(room: peer::Room) -> Room {
    Room {
        memory_mib: room.memory_mib,
        disk_mib: room.disk_mib,
    }
}

/// The same, to be sent.
pub fn room_message(room: Room) -> peer::Room {
    peer::Room {
        memory_mib: room.memory_mib,
        disk_mib: room.disk_mib,
    }
}

/// Which nodes may take what a request makes.
pub fn constraints(constraints: Option<v1::Constraints>) -> Constraints {
    let v1::Constraints {
        node_labels,
        apart_from,
    } = constraints.unwrap_or_default();
    Constraints {
        node_labels,
        apart_from,
    }
}

/// Microseconds as milliseconds.
pub fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

/// A capture's report for users.
pub fn report_message(report: &CaptureReport) -> v1::CaptureReport {
    v1::CaptureReport {
        pause_ms: ms(report.pause_us),
        agent_pause_ms: ms(report.agent_pause_us),
        ahead_ms: ms(report.ahead_us),
        stop_ms: ms(report.stop_us),
        disk_ms: ms(report.disk_us),
        devices_ms: ms(report.devices_us),
        scan_ms: ms(report.scan_us),
        copy_ms: ms(report.copy_us),
        cont_ms: ms(report.cont_us),
        write_ms: ms(report.write_us),
        rounds: report.rounds,
        ahead_bytes: report.ahead_bytes,
        paused_bytes: report.paused_bytes,
        new_base: report.new_base,
        mode: if report.live {
            v1::CaptureMode::Live
        } else {
            v1::CaptureMode::Paused
        }
        .into(),
        note: report.note.clone(),
    }
}

/// What of a request says how to capture.
pub fn capture_mode(mode: v1::CaptureMode) -> CaptureMode {
    match mode {
        v1::CaptureMode::Unspecified | v1::CaptureMode::Auto => CaptureMode::Auto,
        v1::CaptureMode::Paused => CaptureMode::Paused,
        v1::CaptureMode::Live => CaptureMode::Live,
    }
}

/// How long something is kept: until when, or by which lease.
pub fn life(life: Life) -> (Option<Timestamp>, String) {
    match life {
        Life::Unbounded => (None, String::new()),
        Life::Until(end) => (Some(timestamp(end)), String::new()),
        Life::Leased(lease) => (None, lease.to_string()),
    }
}

/// The last end of a VM as its node kept it, as it is replicated.
pub fn ending(end: &End) -> Ending {
    Ending {
        cause: match end.cause {
            Cause::Stopped => EndCause::Stopped,
            Cause::Poweroff => EndCause::Poweroff,
            Cause::Reboot => EndCause::Reboot,
            Cause::Panic => EndCause::Panic,
            Cause::Crash => EndCause::Crash,
            Cause::OutOfMemory => EndCause::OutOfMemory,
            Cause::BootFailed => EndCause::BootFailed,
            Cause::StartFailed => EndCause::StartFailed,
            Cause::HostLost => EndCause::HostLost,
            Cause::Unseen => EndCause::Unseen,
            Cause::Exited => EndCause::Exited,
        },
        detail: end.detail.clone(),
        at: end.at,
        exit_code: end.exit_code,
    }
}

fn ending_message(ending: &Ending) -> v1::Ending {
    let cause = match ending.cause {
        EndCause::Stopped => v1::EndCause::Stopped,
        EndCause::Poweroff => v1::EndCause::Poweroff,
        EndCause::Reboot => v1::EndCause::Reboot,
        EndCause::Panic => v1::EndCause::Panic,
        EndCause::Crash => v1::EndCause::Crash,
        EndCause::OutOfMemory => v1::EndCause::OutOfMemory,
        EndCause::BootFailed => v1::EndCause::BootFailed,
        EndCause::StartFailed => v1::EndCause::StartFailed,
        EndCause::HostLost => v1::EndCause::HostLost,
        EndCause::Unseen => v1::EndCause::Unseen,
        EndCause::Exited => v1::EndCause::Exited,
    };
    v1::Ending {
        cause: cause.into(),
        detail: ending.detail.clone(),
        at: Some(timestamp(ending.at)),
        exit_code: ending.exit_code,
    }
}

/// A node's name; its number where it is not known.
pub fn node_name(state: &State, node: NodeId) -> String {
    state
        .nodes
        .get(&node)
        .map_or_else(|| node.to_string(), |node| node.name.clone())
}

/// What somebody may do; `None` when it is not said.
pub fn role(role: v1::Role) -> Option<state::Role> {
    match role {
        v1::Role::Unspecified => None,
        v1::Role::Viewer => Some(state::Role::Viewer),
        v1::Role::Operator => Some(state::Role::Operator),
        v1::Role::Admin => Some(state::Role::Admin),
    }
}

fn role_message(role: state::Role) -> v1::Role {
    match role {
        state::Role::Viewer => v1::Role::Viewer,
        state::Role::Operator => v1::Role::Operator,
        state::Role::Admin => v1::Role::Admin,
    }
}

/// A certificate of somebody who uses the cluster.
pub fn certificate(id: CertificateId, certificate: &state::Certificate) -> v1::Certificate {
    v1::Certificate {
        id: id.to_string(),
        name: certificate.name.clone(),
        owner: certificate.owner.clone(),
        role: role_message(certificate.role).into(),
        created_at: Some(timestamp(certificate.created_at)),
        expires_at: Some(timestamp(certificate.expires_at)),
        revoked_at: certificate.revoked_at.map(timestamp),
        authority: hex(&certificate.authority),
    }
}

/// An authority's certificate.
pub fn authority_certificate(one: &state::AuthorityCertificate) -> v1::AuthorityCertificate {
    v1::AuthorityCertificate {
        fingerprint: hex(&one.fingerprint),
        expires_at: Some(timestamp(one.expires_at)),
        der: one.der.clone().into(),
    }
}

/// A member's address on its group's network.
pub fn group_address(group: &InGroup) -> String {
    guest::group::address(crate::vms::network::number(group)).to_string()
}

/// A node, with what is known of its part in the cluster now.
pub fn node(
    state: &State,
    by: &Actor,
    node: &Node,
    online: Option<&BTreeSet<NodeId>>,
    status: &Status,
) -> v1::Node {
    let role = if status.voters.contains(&node.id) {
        v1::NodeRole::Voter
    } else if status.learners.contains(&node.id) {
        v1::NodeRole::Learner
    } else {
        v1::NodeRole::Unspecified
    };
    let is = match online {
        None => v1::NodeState::Unspecified,
        Some(online) if online.contains(&node.id) => match &node.drain {
            None => v1::NodeState::Online,
            Some(_) if state.vms.count_of(node.id) == 0 => v1::NodeState::Drained,
            Some(_) => v1::NodeState::Draining,
        },
        Some(_) => v1::NodeState::Offline,
    };
    v1::Node {
        id: node.id,
        name: node.name.clone(),
        address: node.address.clone(),
        state: is.into(),
        schedulable: node.schedulable,
        role: role.into(),
        leader: status.leader == Some(node.id),
        labels: node.labels.clone(),
        created_at: Some(timestamp(node.created_at)),
        capacity: node.capacity.as_ref().map(|capacity| v1::NodeCapacity {
            cpus: capacity.cpus,
            memory_bytes: capacity.memory_bytes,
            qemu_version: capacity.qemu_version.clone(),
            accelerators: capacity
                .accelerators
                .iter()
                .map(|one| accelerator_name(*one).to_owned())
                .collect(),
            agent_version: capacity.agent_version.clone(),
            newest_version: capacity.newest_version,
            processor: capacity.processor.clone(),
            problems: capacity.problems.clone(),
        }),
        vms: match by.is_admin {
            true => state.vms.count_of(node.id) as u32,
            false => {
                let seen = state.vms.of(node.id);
                seen.filter(|vm| vm.ownership.is_seen_by(by)).count() as u32
            }
        },
        room: None,
        drain: node.drain.as_ref().map(|of| drain(state, by, node, of)),
    }
}

/// How far a node is drained, in front of somebody.
fn drain(state: &State, by: &Actor, node: &Node, drain: &state::Drain) -> v1::NodeDrain {
    let here = || state.vms.of(node.id);
    let seen = || here().filter(|vm| vm.ownership.is_seen_by(by));
    let suspends = drain.how != state::DrainHow::Move;
    let is_left = |vm: &Vm| !drain.stays.contains_key(&vm.id) && (!suspends || vm.may_run());
    let moving = seen().filter(|vm| is_left(vm));
    let stays = seen().filter_map(|vm| {
        Some(v1::StayingVm {
            vm: vm.name_for(by),
            reason: drain.stays.get(&vm.id)?.clone(),
        })
    });
    let only_here = state.snapshots.values().filter(|snapshot| {
        snapshot.nodes.len() == 1
            && snapshot.nodes.contains(&node.id)
            && snapshot.ownership.is_seen_by(by)
    });
    v1::NodeDrain {
        since: Some(timestamp(drain.since)),
        moving: moving.map(|vm| vm.name_for(by)).collect(),
        stays: stays.collect(),
        snapshots: only_here.map(|one| one.name_for(by)).collect(),
        done: !here().any(|vm| is_left(vm)),
        suspends,
    }
}

/// What a node said about one of its VMs just now.
#[derive(Debug, Clone, Default)]
pub struct Fresh {
    /// Process id; 0 for none.
    pub pid: u32,
    /// How it is, if the node said.
    pub state: Option<v1::VmState>,
    /// Why it has less protection or fewer limits than it could.
    pub warnings: Vec<String>,
    /// What its process takes of memory.
    pub memory: Option<v1::MemoryUse>,
    /// What its guest says about itself.
    pub guest: Option<v1::GuestInfo>,
    /// Where its published ports are reached.
    pub ports: Vec<v1::PublishedPort>,
}

/// With whom an object is shared, for who may say so.
pub fn sharing(ownership: &Ownership, by: &Actor) -> Option<v1::Sharing> {
    ownership.is_ruled_by(by).then(|| v1::Sharing {
        everyone: ownership.everyone,
        owners: ownership.shared_with.iter().cloned().collect(),
    })
}

/// What an image is called in front of somebody; nothing when it is not there for this one.
fn image_name(state: &State, by: &Actor, image: ImageId) -> String {
    let image = state.images.get(&image);
    let seen = image.filter(|image| image.ownership.is_seen_by(by));
    seen.map_or_else(String::new, |image| image.name_for(by))
}

/// A snapshot's id; nothing when it is not there for somebody.
fn snapshot_id(state: &State, by: &Actor, id: SnapshotId) -> String {
    let snapshot = state.snapshots.get(&id);
    let hidden = snapshot.is_some_and(|one| !one.ownership.is_seen_by(by));
    if hidden {
        String::new()
    } else {
        id.to_string()
    }
}

/// A VM in front of somebody, with what its node said about it just now. `online`: whether its node is there.
pub fn vm(state: &State, by: &Actor, vm: &Vm, fresh: Option<&Fresh>, online: bool) -> v1::Vm {
    let settled = vm.reported_boot == vm.boot;
    let is = match (online, vm.phase) {
        (false, _) => v1::VmState::Unknown,
        (true, Phase::Pending) => fresh
            .and_then(|fresh| fresh.state)
            .filter(|state| *state == v1::VmState::Starting)
            .unwrap_or(v1::VmState::Pending),
        (true, _) if !settled => v1::VmState::Starting,
        (true, Phase::Running) => v1::VmState::Running,
        (true, Phase::Paused) => v1::VmState::Paused,
        (true, Phase::Stopped) => v1::VmState::Stopped,
        (true, Phase::Failed) => v1::VmState::Failed,
        (true, Phase::Suspended) => v1::VmState::Suspended,
        (true, Phase::Restarting) => v1::VmState::Starting,
    };
    let seen_parent = vm.parent.as_ref().filter(|one| one.is_seen_by(state, by));
    let point = match vm.ha {
        Ha::Off => None,
        Ha::Arming | Ha::Restore => state.restore_point(vm),
    };
    v1::Vm {
        id: vm.id.to_string(),
        owner: vm.ownership.owner.clone(),
        sharing: sharing(&vm.ownership, by),
        parent_hidden: vm.parent.is_some() && seen_parent.is_none(),
        name: vm.name.clone(),
        node: node_name(state, vm.node),
        state: is.into(),
        reason: if online {
            vm.reason.clone()
        } else {
            "its node does not answer".to_owned()
        },
        image: image_name(state, by, vm.spec.image),
        parent: seen_parent.map_or_else(String::new, |one| one.vm.to_string()),
        parent_name: seen_parent.map_or_else(String::new, |one| one.name.clone()),
        snapshot: match vm.source {
            Source::Image => String::new(),
            Source::Snapshot(snapshot) => snapshot_id(state, by, snapshot),
        },
        pid: fresh.map_or(0, |fresh| fresh.pid),
        memory_bytes: vm.spec.memory_bytes,
        cpus: vm.spec.cpus,
        disk_bytes: vm.spec.disk_bytes,
        accelerator: accelerator_message(vm.spec.accelerator).into(),
        cpu_model: vm.spec.cpu_model.clone().unwrap_or_default(),
        machine: match vm.spec.machine {
            Machine::Microvm => "microvm".to_owned(),
            Machine::Q35 => "q35".to_owned(),
        },
        labels: vm.labels.clone(),
        created_at: Some(timestamp(vm.created_at)),
        expires_at: life(vm.life).0,
        lease: life(vm.life).1,
        snapshots: spec::schedule_message(vm),
        on_host_loss: spec::ha_message(vm.ha).into(),
        restore_point: point.map_or_else(String::new, |point| point.id.to_string()),
        restore_point_at: point.map(|point| timestamp(point.created_at)),
        restored: vm.restored.as_ref().map(|restored| v1::Restored {
            from: node_name(state, restored.from),
            snapshot: snapshot_id(state, by, restored.snapshot),
            captured_at: Some(timestamp(restored.captured_at)),
            heard_at: Some(timestamp(restored.heard_at)),
            restored_at: Some(timestamp(restored.at)),
            lost_ms: restored.lost(),
        }),
        group: vm
            .group
            .as_ref()
            .map_or_else(String::new, |group| group.name.clone()),
        group_number: vm.group.as_ref().map_or(0, |group| group.number),
        group_address: vm.group.as_ref().map_or_else(String::new, group_address),
        generation: vm.generation,
        power: match vm.power {
            Power::Running => v1::PowerState::Running,
            Power::Paused => v1::PowerState::Paused,
            Power::Stopped { .. } => v1::PowerState::Stopped,
            Power::Suspended => v1::PowerState::Suspended,
        }
        .into(),
        warnings: fresh.map_or_else(Vec::new, |fresh| fresh.warnings.clone()),
        limits: Some(limits_message(&vm.spec.limits)),
        memory_use: fresh.and_then(|fresh| fresh.memory),
        restart: restart_policy_message(vm.spec.restart).into(),
        ending: vm.ending.as_ref().map(ending_message),
        restarts: vm.restarts,
        next_start_at: vm.next_start.map(timestamp),
        network: Some(network_message(vm.spec.network)),
        publish: vm
            .spec
            .publish
            .iter()
            .map(|port| u32::from(*port))
            .collect(),
        self_fork: vm.spec.self_fork,
        unready: unready_message(vm.spec.unready).into(),
        settings: vm.settings.clone(),
        index: vm.place.map_or(0, |place| place.index),
        count: vm.place.map_or(0, |place| place.count),
        failed_steps: vm.failed_steps.clone(),
        guest: fresh.and_then(|fresh| fresh.guest.clone()),
        ports: fresh.map_or_else(Vec::new, |fresh| fresh.ports.clone()),
        family: vm.family.map_or_else(String::new, |founder| {
            let is_seen = match state.vms.get(&founder) {
                Some(founder) => founder.ownership.is_seen_by(by),
                // A family is of one owner.
                None => by.sees(&vm.ownership.owner),
            };
            if is_seen {
                founder.to_string()
            } else {
                String::new()
            }
        }),
        by_guest: vm.by_guest,
    }
}

/// How a VM is by its own node's account.
pub fn seen_state(is: &Is) -> v1::VmState {
    match is {
        Is::Unknown => v1::VmState::Unknown,
        Is::Absent => v1::VmState::Pending,
        Is::Booting { .. } => v1::VmState::Starting,
        Is::Running { .. } => v1::VmState::Running,
        Is::Paused { .. } => v1::VmState::Paused,
        Is::Ended { end, .. } if end.is_orderly() => v1::VmState::Stopped,
        Is::Ended { .. } => v1::VmState::Failed,
    }
}

/// An image in front of somebody.
pub fn image(state: &State, by: &Actor, image: &Image) -> v1::Image {
    let file = |kind: v1::ImageFileKind, blob: &state::Blob, virtual_bytes| v1::ImageFile {
        kind: kind.into(),
        sha256: hex(&blob.sha256),
        size_bytes: blob.size_bytes,
        virtual_bytes,
    };
    let kernel = image
        .kernel
        .iter()
        .map(|blob| file(v1::ImageFileKind::Kernel, blob, 0));
    let initrd = image
        .initrd
        .iter()
        .map(|blob| file(v1::ImageFileKind::Initrd, blob, 0));
    let disk = image
        .disk
        .iter()
        .map(|disk| file(v1::ImageFileKind::Disk, &disk.blob, disk.virtual_bytes));
    v1::Image {
        id: image.id.to_string(),
        owner: image.ownership.owner.clone(),
        sharing: sharing(&image.ownership, by),
        name: image.name.clone(),
        files: kernel.chain(initrd).chain(disk).collect(),
        cmdline: image.cmdline.clone(),
        ready_line: image.ready_line.clone().unwrap_or_default(),
        boot_timeout_ms: image.boot_timeout_ms,
        nodes: image
            .nodes
            .iter()
            .map(|node| node_name(state, *node))
            .collect(),
        created_at: Some(timestamp(image.created_at)),
        guest_agent: guest_agent_message(image.guest_agent).into(),
    }
}

/// A snapshot in front of somebody.
pub fn snapshot(state: &State, by: &Actor, snapshot: &Snapshot) -> v1::Snapshot {
    let content = snapshot.content.as_ref();
    let is = match content {
        None => v1::SnapshotState::Capturing,
        Some(_) if snapshot.nodes.is_empty() => v1::SnapshotState::Failed,
        Some(_) => v1::SnapshotState::Ready,
    };
    let seen_vm = Some(&snapshot.vm).filter(|one| one.is_seen_by(state, by));
    v1::Snapshot {
        id: snapshot.id.to_string(),
        owner: snapshot.ownership.owner.clone(),
        sharing: sharing(&snapshot.ownership, by),
        vm_hidden: seen_vm.is_none(),
        name: snapshot.name.clone().unwrap_or_default(),
        vm: seen_vm.map_or_else(String::new, |one| one.vm.to_string()),
        vm_name: seen_vm.map_or_else(String::new, |one| one.name.clone()),
        parent: snapshot
            .parent
            .map_or_else(String::new, |parent| snapshot_id(state, by, parent)),
        nodes: snapshot
            .nodes
            .iter()
            .map(|node| node_name(state, *node))
            .collect(),
        state: is.into(),
        safety: match content.map(|content| &content.safety) {
            None => v1::SnapshotSafety::Unspecified,
            Some(_) if snapshot.is_replicated() => v1::SnapshotSafety::Replicated,
            Some(Safety::Memory) => v1::SnapshotSafety::Memory,
            Some(Safety::Disk(_)) => v1::SnapshotSafety::Disk,
        }
        .into(),
        created_at: Some(timestamp(snapshot.created_at)),
        expires_at: life(snapshot.life).0,
        lease: life(snapshot.life).1,
        base_bytes: content.map_or(0, |content| content.base_bytes),
        stream_bytes: content.map_or(0, |content| content.stream_bytes),
        layer_bytes: content.map_or(0, |content| content.layer_bytes),
        dependents: state::dependents_of_snapshot(state, by, snapshot.id),
        image: image_name(state, by, snapshot.spec.image),
        qemu_version: content.map_or_else(String::new, |content| content.qemu_version.clone()),
        capture: content.map(|content| report_message(&content.report)),
        warm: snapshot.warm,
        ready: 0,
        reason: snapshot.lost.clone(),
        replicas: snapshot.replicas,
        scheduled: snapshot.is_scheduled,
        copies_on_disk: snapshot.copies_on_disk(),
        copies: snapshot
            .copies
            .iter()
            .map(|node| node_name(state, *node))
            .collect(),
    }
}

/// An operation in front of somebody.
pub fn operation(state: &State, by: &Actor, operation: &Operation) -> v1::Operation {
    let captured = state
        .snapshots
        .get(&operation.snapshot)
        .is_some_and(|snapshot| snapshot.content.is_some());
    let capture = match operation.kind {
        OperationKind::Snapshot | OperationKind::Fork => operation.vm.is_some(),
        OperationKind::Suspend => true,
        OperationKind::Reset | OperationKind::Move => false,
    };
    let vms = match (operation.kind, operation.vm) {
        (OperationKind::Reset | OperationKind::Suspend | OperationKind::Move, Some(vm)) => {
            vec![vm.to_string()]
        }
        _ => (0..operation.count)
            .map(|number| operation.id.child(number).to_string())
            .collect(),
    };
    let (is, error) = match &operation.state {
        OperationState::Open => (v1::OperationState::Open, String::new()),
        OperationState::Complete => (v1::OperationState::Complete, String::new()),
        OperationState::Failed { reason, .. } => (v1::OperationState::Failed, reason.clone()),
    };
    v1::Operation {
        id: operation.id.to_string(),
        kind: match operation.kind {
            OperationKind::Snapshot => v1::OperationKind::Snapshot,
            OperationKind::Fork => v1::OperationKind::Fork,
            OperationKind::Reset => v1::OperationKind::Reset,
            OperationKind::Suspend => v1::OperationKind::Suspend,
            OperationKind::Move => v1::OperationKind::Move,
        }
        .into(),
        state: is.into(),
        owner: operation.owner.clone(),
        source: match operation.vm {
            None => snapshot_id(state, by, operation.snapshot),
            Some(vm) => {
                let there = state.vms.get(&vm);
                let hidden = there.is_some_and(|vm| !vm.ownership.is_seen_by(by));
                if hidden {
                    String::new()
                } else {
                    vm.to_string()
                }
            }
        },
        snapshot: snapshot_id(state, by, operation.snapshot),
        vms,
        node: node_name(state, operation.node),
        created_at: Some(timestamp(operation.created_at)),
        ended_at: operation.ended_at.map(timestamp),
        error,
        cancel_requested: operation.cancel_requested,
        done: operation.results.len() as u32 + u32::from(capture && captured),
        total: operation.count + u32::from(capture),
        transfers: Vec::new(),
        to: operation
            .to
            .map_or_else(String::new, |to| node_name(state, to)),
        pause_ms: pause_ms(operation),
    }
}

/// How long a VM stood still that was moved, milliseconds: see [`raft::state::ChildResult::running_us`].
pub fn pause_ms(operation: &Operation) -> f64 {
    let moved = operation
        .results
        .get(&0)
        .filter(|_| operation.kind == OperationKind::Move);
    moved.map_or(0.0, |result| ms(result.running_us))
}
