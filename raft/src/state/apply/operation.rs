//! The course and the end of operations: what nodes report of them, and what is left when they fail.

use std::{collections::BTreeSet, sync::Arc};

use super::{group, moving, removal, reset, schedule, vm};
use crate::state::{
    KEPT_OPERATIONS,
    ids::{NodeId, OperationId},
    loads::memory_of_fork,
    model::{
        ChildResult, Content, Millis, Operation, OperationKind, OperationState, Phase, Power,
        Source, State, Unready, Vm,
    },
    names,
    owners::Actor,
    response::{Kind, Outcome, Rejection, Response},
};

pub(super) fn snapshot_ready(
    state: &mut State,
    now: Millis,
    id: OperationId,
    content: &Content,
) -> Outcome {
    ready(state, now, id, content, false)
}

/// `with_others`: whether it is told with the other members of its group.
pub(super) fn ready(
    state: &mut State,
    now: Millis,
    id: OperationId,
    content: &Content,
    with_others: bool,
) -> Outcome {
    let operation = state
        .operations
        .get(&id)
        .ok_or_else(|| names::not_found(Kind::Operation, &id.to_string()))?;
    let (node, open) = (operation.node, operation.state == OperationState::Open);
    let (children, group) = (operation.count, operation.group);
    let refuse = |problem: &str| Rejection::WrongState {
        kind: Kind::Operation,
        name: id.to_string(),
        problem: problem.to_owned(),
    };
    if group.is_some() && !with_others {
        return Err(refuse(
            "is part of a group's fork: all members are captured at once",
        ));
    }
    if operation.vm.is_none() || operation.kind == OperationKind::Move {
        return Err(refuse("makes no snapshot"));
    }
    let snapshot = state
        .snapshots
        .get_mut(&id.snapshot())
        .ok_or_else(|| refuse("has no snapshot any more"))?;
    match &snapshot.content {
        // Told twice: the first time counted, and the node must not take it for a refusal.
        Some(known) if known == content => return Ok(Response::Snapshot(id.snapshot())),
        Some(_) => return Err(refuse("has made its snapshot already")),
        None if !open => return Err(refuse("has ended")),
        None => {}
    }
    let snapshot = Arc::make_mut(snapshot);
    snapshot.content = Some(content.clone());
    snapshot.nodes = BTreeSet::from([node]);
    weigh_children(state, id, children, content.stream_bytes);
    complete_when_done(state, now, id);
    schedule::prune_beside(state, now, id.snapshot());
    Ok(Response::Snapshot(id.snapshot()))
}

/// What is captured for a fork is known: its children take what its stream brings.
fn weigh_children(state: &mut State, id: OperationId, children: u32, stream_bytes: u64) {
    for child in (0..children).map(|index| id.child(index)) {
        let is_of = |vm: &&Arc<Vm>| is_first(vm) && vm.source == Source::Snapshot(id.snapshot());
        let Some(vm) = state.vms.get(&child).filter(is_of) else {
            continue;
        };
        if vm.own_bytes != memory_of_fork(vm.spec.memory_bytes, stream_bytes) {
            state.vms.change(&child, |vm| vm.goes_on_from(stream_bytes));
        }
    }
}

/// Never refused: the operation may have ended.
pub(super) fn report_children(
    state: &mut State,
    now: Millis,
    id: OperationId,
    results: &[(u32, ChildResult)],
) -> Outcome {
    let Some(operation) = state.operations.get_mut(&id) else {
        return Ok(Response::Done);
    };
    // What moves has no result before it has arrived.
    let is_early = operation.kind == OperationKind::Move && !operation.has_arrived();
    if operation.state != OperationState::Open || is_early {
        return Ok(Response::Done);
    }
    let operation = Arc::make_mut(operation);
    for (index, result) in results {
        if *index >= operation.count || operation.results.contains_key(index) {
            continue;
        }
        operation.results.insert(*index, result.clone());
        match operation.kind {
            OperationKind::Reset | OperationKind::Suspend | OperationKind::Move => {}
            OperationKind::Fork | OperationKind::Snapshot => {
                let child = id.child(*index);
                if state.vms.get(&child).is_some_and(|child| is_first(child)) {
                    state.vms.change(&child, |child| note_result(child, result));
                }
            }
        }
    }
    complete_when_done(state, now, id);
    Ok(Response::Done)
}

/// Whether nothing is known of a child yet, and it was not started anew.
fn is_first(child: &Vm) -> bool {
    child.boot == 1 && child.reported_boot == 0
}

/// Sets a child's phase.
fn note_result(child: &mut Vm, result: &ChildResult) {
    child.reported_boot = 1;
    child.phase = match (result.error.is_empty(), child.power) {
        (false, _) => Phase::Failed,
        (true, Power::Paused) => Phase::Paused,
        (true, Power::Running | Power::Stopped { .. } | Power::Suspended) => Phase::Running,
    };
    child.reason.clone_from(&result.error);
    child.failed_steps.clone_from(&result.failed_steps);
    hold_if_unready(child);
}

/// Has a VM stand still that has not wholly become itself, where that is wanted.
pub(super) fn hold_if_unready(vm: &mut Vm) {
    let holds = vm.spec.unready == Unready::Hold && !vm.failed_steps.is_empty();
    if holds && vm.power == Power::Running {
        vm.power = Power::Paused;
        vm.generation += 1;
    }
}

/// Completes an operation when its snapshot is ready and all its children are known; what forks a group, when that is so of all its parts.
pub(super) fn complete_when_done(state: &mut State, now: Millis, id: OperationId) {
    let mut parts = group::others(state, id);
    parts.push(id);
    if parts.iter().all(|part| is_done(state, *part)) {
        for part in parts {
            complete(state, now, part);
        }
    }
}

fn is_done(state: &State, id: OperationId) -> bool {
    let Some(operation) = state.operations.get(&id) else {
        return false;
    };
    // What moved without a process has no moment.
    let ready = operation.kind == OperationKind::Move
        || state
            .snapshots
            .get(&operation.snapshot)
            .is_some_and(|snapshot| snapshot.content.is_some());
    operation.state == OperationState::Open
        && (operation.vm.is_none() || ready)
        && (operation.results.len() as u64) >= u64::from(operation.count)
}

fn complete(state: &mut State, now: Millis, id: OperationId) {
    let Some(operation) = state.operations.get(&id) else {
        return;
    };
    let (kind, snapshot) = (operation.kind, operation.snapshot);
    end(state, now, id, OperationState::Complete);
    // All children may have been deleted meanwhile, and with them the reason for the fork's own snapshot.
    match kind {
        OperationKind::Fork => removal::collect(state, now, Some(snapshot)),
        OperationKind::Snapshot => {}
        OperationKind::Reset => reset::was_reset(state, now, id),
        OperationKind::Suspend => reset::was_suspended(state, now, id),
        OperationKind::Move => moving::was_moved(state, now, id),
    }
}

/// Ends an operation, and forgets the oldest ended ones when there are more than enough.
fn end(state: &mut State, now: Millis, id: OperationId, how: OperationState) {
    if let Some(operation) = state.operations.get_mut(&id) {
        let operation = Arc::make_mut(operation);
        operation.state = how;
        operation.ended_at = Some(now);
        if let (OperationKind::Reset, Some(vm)) = (operation.kind, operation.vm) {
            state.vms.change(&vm, |vm| vm.is_going_back = false);
        }
    }
    let ended = |operation: &&Arc<Operation>| operation.state != OperationState::Open;
    let surplus = state
        .operations
        .values()
        .filter(ended)
        .count()
        .saturating_sub(KEPT_OPERATIONS);
    let gone: Vec<OperationId> = state
        .operations
        .values()
        .filter(ended)
        .take(surplus)
        .map(|operation| operation.id)
        .collect();
    for id in gone {
        state.operations.remove(&id);
    }
}

/// Never refused: the operation may have ended, or come to where it is not given up any more.
pub(super) fn give_up(
    state: &mut State,
    now: Millis,
    id: OperationId,
    reason: &str,
    cancelled: bool,
) -> Outcome {
    let found = state.operations.get(&id);
    if found.is_some_and(|operation| operation.has_arrived()) {
        return Ok(Response::Operation(id));
    }
    fail_operation(state, now, id, reason, cancelled)
}

/// Never refused: the operation may have ended. What forks a group fails as a whole.
pub(super) fn fail_operation(
    state: &mut State,
    now: Millis,
    id: OperationId,
    reason: &str,
    cancelled: bool,
) -> Outcome {
    for other in group::others(state, id) {
        fail_one(state, now, other, reason, cancelled)?;
    }
    fail_one(state, now, id, reason, cancelled)
}

fn fail_one(
    state: &mut State,
    now: Millis,
    id: OperationId,
    reason: &str,
    cancelled: bool,
) -> Outcome {
    let Some(operation) = state.operations.get(&id).map(Arc::clone) else {
        return Ok(Response::Done);
    };
    if operation.state != OperationState::Open {
        return Ok(Response::Operation(id));
    }
    let runs = |index: &u32| {
        operation
            .results
            .get(index)
            .is_some_and(|result| result.error.is_empty())
    };
    for index in (0..operation.count).filter(|index| !runs(index)) {
        vm::remove(state, now, id.child(index));
    }
    end(
        state,
        now,
        id,
        OperationState::Failed {
            reason: reason.to_owned(),
            cancelled,
        },
    );
    // What there is of a capture that was given up lies on the node that did it.
    if let Some(snapshot) = state.snapshots.get_mut(&operation.snapshot)
        && snapshot.content.is_none()
    {
        Arc::make_mut(snapshot).nodes = BTreeSet::from([operation.node]);
    }
    removal::collect(state, now, Some(operation.snapshot));
    Ok(Response::Operation(id))
}

/// Never refused: what was open may have ended.
pub(super) fn close_parts(state: &mut State, now: Millis, node: NodeId, reason: &str) -> Outcome {
    for id in state.parts_of(node) {
        let Some(operation) = state.operations.get(&id).map(Arc::clone) else {
            continue;
        };
        if state.is_to_capture(&operation, node) {
            // Nobody else can.
            fail_operation(state, now, id, reason, false)?;
            continue;
        }
        let lost = ChildResult {
            error: reason.to_owned(),
            ..ChildResult::default()
        };
        let numbers = state.open_children(&operation, node);
        let results: Vec<_> = numbers.map(|number| (number, lost.clone())).collect();
        report_children(state, now, id, &results)?;
    }
    Ok(Response::Done)
}

pub(super) fn cancel_operation(state: &mut State, by: &Actor, operation: &str) -> Outcome {
    let id = names::operation(state, by, operation)?.id;
    for id in group::others(state, id).into_iter().chain([id]) {
        if let Some(operation) = state.operations.get_mut(&id)
            && operation.state == OperationState::Open
            && !operation.has_arrived()
        {
            Arc::make_mut(operation).cancel_requested = true;
        }
    }
    Ok(Response::Operation(id))
}
