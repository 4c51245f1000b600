//! Going back: a VM is set to the moment of a snapshot, or suspended to disk and resumed.
//!
//! A suspended VM's source is the snapshot of its last moment; resuming it is a reset to that.

use std::sync::Arc;

use super::{fork, invalid, removal};
use crate::state::{
    command::Command,
    ids::{OperationId, SnapshotId, VmId},
    model::{
        CaptureMode, DrainHow, Millis, Operation, OperationKind, OperationState, Phase, Power,
        Snapshot, Source, State, Vm, VmSpec,
    },
    names,
    owners::{Actor, Owned as _},
    quotas::Usage,
    response::{Kind, Outcome, Rejection},
};

pub(super) fn reset(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::ResetVm {
        operation,
        vm,
        to,
        paused,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    // The id of its one child is a process's that takes the VM's place.
    fork::check_operation_id(state, *operation, 1)?;
    let vm = Arc::clone(names::vm(state, by, vm)?);
    vm.check_ruled_by(by)?;
    check_free(state, &vm)?;
    let snapshot = match (to, vm.source, vm.power) {
        (Some((snapshot, of)), _, _) => {
            let found = Arc::clone(names::snapshot_of(state, by, snapshot, of.as_deref())?);
            check_fits(&vm, &found)?;
            found
        }
        (None, Source::Snapshot(id), Power::Suspended) => {
            let found = state.snapshots.get(&id);
            Arc::clone(found.ok_or_else(|| names::not_found(Kind::Snapshot, &id.to_string()))?)
        }
        (None, _, _) => return Err(wrong_state(&vm, "is not suspended")),
    };
    check_held(state, &vm, &snapshot)?;
    if vm.phase == Phase::Pending {
        return Err(wrong_state(&vm, "is not up yet: wait until it is running"));
    }
    check_not_captured(state, &vm, by)?;
    let begun = fork::Begun {
        kind: OperationKind::Reset,
        mode: CaptureMode::Auto,
        owner: vm.ownership.owner.clone(),
        count: 1,
        paused: *paused,
        to: None,
        expires_at: *expires_at,
        group: None,
    };
    let worked_on = fork::WorkedOn {
        vm: Some(vm.id),
        snapshot: snapshot.id,
        node: vm.node,
        to: None,
    };
    if !vm.counts_as_running() {
        state.check_quota(&vm.ownership.owner, Usage::of_running(&vm))?;
    }
    let outcome = fork::begin(state, now, *operation, worked_on, begun);
    state.vms.change(&vm.id, |vm| vm.is_going_back = true);
    outcome
}

pub(super) fn suspend(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::SuspendVm {
        operation,
        vm,
        mode,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    fork::check_operation_id(state, *operation, 1)?;
    let vm = Arc::clone(names::vm(state, by, vm)?);
    vm.check_ruled_by(by)?;
    fork::check_capturable(state, &vm)?;
    state.check_quota(&vm.ownership.owner, Usage::of_snapshot())?;
    let begun = fork::Begun {
        kind: OperationKind::Suspend,
        mode: *mode,
        owner: vm.ownership.owner.clone(),
        count: 1,
        paused: true,
        to: None,
        expires_at: *expires_at,
        group: None,
    };
    let outcome = fork::begin_capture(state, now, *operation, &vm, None, begun);
    let drain = state
        .nodes
        .get(&vm.node)
        .and_then(|node| node.drain.as_ref());
    let rests = drain.is_some_and(|drain| matches!(drain.how, DrainHow::Rest { .. }));
    state
        .vms
        .change(&vm.id, |vm| vm.rests_from = rests.then_some(vm.power));
    outcome
}

/// Refuses what would come between while a VM is being reset or suspended.
pub(super) fn check_free(state: &State, vm: &Vm) -> Result<(), Rejection> {
    let exclusive = |kind| {
        matches!(
            kind,
            OperationKind::Reset | OperationKind::Suspend | OperationKind::Move
        )
    };
    match open_of(state, vm.id, exclusive) {
        None => Ok(()),
        // Its owner's, who has the VM. To who only uses that an id says nothing.
        Some(operation) => {
            let what = match operation.kind {
                OperationKind::Move => "moved",
                _ => "reset, suspended or resumed",
            };
            let problem = format!(
                "is being {what} by operation {}: wait for its end",
                operation.id
            );
            Err(wrong_state(vm, problem))
        }
    }
}

/// Refuses a VM that is being captured.
pub(super) fn check_not_captured(state: &State, vm: &Vm, by: &Actor) -> Result<(), Rejection> {
    let Some(under_way) = open_of(state, vm.id, |_| true) else {
        return Ok(());
    };
    let operation = match under_way.is_seen_by(by) {
        true => format!("operation {}", under_way.id),
        false => "another owner".to_owned(),
    };
    let problem = format!("is being captured by {operation}: wait for its end");
    Err(wrong_state(vm, problem))
}

fn open_of(
    state: &State,
    vm: VmId,
    wanted: impl Fn(OperationKind) -> bool,
) -> Option<&Arc<Operation>> {
    state.operations.values().find(|operation| {
        operation.state == OperationState::Open
            && operation.vm == Some(vm)
            && wanted(operation.kind)
    })
}

/// Refuses a moment of another kind of machine.
pub(super) fn check_fits(vm: &Vm, snapshot: &Snapshot) -> Result<(), Rejection> {
    let machine = |spec: &VmSpec| {
        (
            spec.image,
            spec.cpus,
            spec.memory_bytes,
            spec.disk_bytes,
            spec.machine,
        )
    };
    if let Some(group) = &vm.group
        && snapshot.member != Some(group.number)
    {
        let problem = format!(
            "was not captured from member {} of a group, as {:?} is one of {:?}: fork it instead",
            group.number, vm.name, group.name
        );
        return Err(invalid("snapshot", problem));
    }
    if machine(&vm.spec) == machine(&snapshot.spec) {
        return Ok(());
    }
    Err(invalid(
        "snapshot",
        format!(
            "was captured from a VM of another image, size or machine type than {:?}: fork it instead",
            vm.name
        ),
    ))
}

/// Refuses a snapshot that the VM's node cannot start from.
fn check_held(state: &State, vm: &Vm, snapshot: &Snapshot) -> Result<(), Rejection> {
    let problem = if snapshot.content.is_none() {
        "is not ready: its capture is under way or failed".to_owned()
    } else if snapshot.nodes.contains(&vm.node) {
        return Ok(());
    } else if snapshot.nodes.is_empty() {
        format!("is lost: no node holds it any more ({})", snapshot.lost)
    } else {
        let node = state.nodes.get(&vm.node).map(|node| node.name.as_str());
        format!(
            "is not on node {}, where VM {:?} lives",
            node.unwrap_or("?"),
            vm.name
        )
    };
    Err(Rejection::WrongState {
        kind: Kind::Snapshot,
        name: snapshot.shown_name(),
        problem,
    })
}

pub(super) fn wrong_state(vm: &Vm, problem: impl Into<String>) -> Rejection {
    Rejection::WrongState {
        kind: Kind::Vm,
        name: vm.name.clone(),
        problem: problem.into(),
    }
}

/// A reset's result is known: the VM is at that moment, as it was, or, when it failed after it had given way, without a process.
pub(super) fn was_reset(state: &mut State, now: Millis, id: OperationId) {
    let Some(operation) = state.operations.get(&id).map(Arc::clone) else {
        return;
    };
    let (Some(vm), Some(result)) = (operation.vm, operation.results.get(&0)) else {
        return;
    };
    let failed = !result.error.is_empty();
    let Some(snapshot) = state.snapshots.get(&operation.snapshot).map(Arc::clone) else {
        return;
    };
    if failed && !result.gave_way {
        return;
    }
    let stream_bytes = snapshot.stream_bytes();
    let before = state.vms.change(&vm, |vm| {
        let before = std::mem::replace(&mut vm.source, Source::Snapshot(operation.snapshot));
        vm.spec = snapshot.spec.clone();
        vm.disk = None;
        vm.lineage = snapshot.lineage;
        vm.family = match &snapshot.family {
            // What others' guests may do is not this VM's.
            Some(_) if snapshot.vm.owner != vm.ownership.owner => Some(vm.id),
            family => *family,
        };
        vm.goes_on_from(stream_bytes);
        vm.boot += 1;
        vm.reported_boot = vm.boot;
        vm.generation += 1;
        vm.power = match (failed, operation.paused) {
            (false, true) => Power::Paused,
            _ => Power::Running,
        };
        vm.phase = match (failed, operation.paused) {
            (true, _) => Phase::Failed,
            (false, true) => Phase::Paused,
            (false, false) => Phase::Running,
        };
        vm.reason.clone_from(&result.error);
        vm.failed_steps.clone_from(&result.failed_steps);
        (vm.ending, vm.restarts, vm.next_start) = (None, 0, None);
        vm.rests_from = None;
        before
    });
    if let Some(before) = before {
        collect_source(state, now, before);
    }
}

/// A suspension's result is known: the VM's moment is on disk and its process gone, or it goes on.
pub(super) fn was_suspended(state: &mut State, now: Millis, id: OperationId) {
    let Some(operation) = state.operations.get(&id).map(Arc::clone) else {
        return;
    };
    let done = |result: &crate::state::ChildResult| result.error.is_empty();
    if operation.results.get(&0).is_some_and(done)
        && let Some(vm) = operation.vm
    {
        let moment = state.snapshots.get(&operation.snapshot);
        let stream_bytes = moment.map_or(0, |moment| moment.stream_bytes());
        state.vms.change(&vm, |vm| {
            vm.goes_on_from(stream_bytes);
            vm.source = Source::Snapshot(operation.snapshot);
            vm.power = Power::Suspended;
            vm.phase = Phase::Suspended;
            vm.reported_boot = vm.boot;
            vm.generation += 1;
            vm.reason.clear();
            vm.next_start = None;
        });
    }
    // Of no use when it failed, or when the VM was deleted meanwhile.
    removal::collect(state, now, Some(operation.snapshot));
}

/// A suspended VM is to be stopped: its last moment is given up, and it starts from its disk the next time.
pub(super) fn forget_moment(state: &mut State, now: Millis, vm: VmId) {
    let Some(moment) = state.vms.get(&vm).and_then(|vm| match vm.source {
        Source::Image => None,
        Source::Snapshot(id) => Some(id),
    }) else {
        return;
    };
    let before = match state.snapshots.get(&moment).and_then(|found| found.parent) {
        Some(parent) => Source::Snapshot(parent),
        None => Source::Image,
    };
    state.vms.change(&vm, |vm| vm.source = before);
    removal::collect(state, now, Some(moment));
}

fn collect_source(state: &mut State, now: Millis, source: Source) {
    let from: Option<SnapshotId> = match source {
        Source::Image => None,
        Source::Snapshot(id) => Some(id),
    };
    removal::collect(state, now, from);
}
