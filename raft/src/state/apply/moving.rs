//! VMs that go on on another node, and nodes whose VMs all do.
//!
//! Until one command, [`Command::Arrive`], a VM lives where it was: whatever fails before it leaves it there. From then on only its new
//! node may run it.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    fork, group, operation,
    placement::{self, Wanted},
    removal, reset,
};
use crate::state::{
    command::{Candidate, Command, Constraints, Placing},
    ids::{NodeId, OperationId, VmId},
    model::{
        CaptureMode, ChildResult, Content, Labels, Millis, ObjectId, Operation, OperationKind,
        OperationState, Phase, Power, Source, State, Vm,
    },
    names,
    owners::{Actor, Owned as _},
    quotas::Usage,
    response::{Kind, Outcome, Rejection, Response},
};

pub(super) fn begin(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::MoveVm {
        operation,
        vm,
        node,
        candidates,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    fork::check_operation_id(state, *operation, 1)?;
    let vm = Arc::clone(names::vm(state, by, vm)?);
    vm.check_ruled_by(by)?;
    group::check_alone(&vm)?;
    reset::check_free(state, &vm)?;
    reset::check_not_captured(state, &vm, by)?;
    check_made(state, &vm)?;
    let rests = rests(&vm)?;
    let to = place(state, &vm, rests, node.as_deref(), candidates)?;
    state.check_quota(&vm.ownership.owner, Usage::of_snapshot())?;
    let begun = fork::Begun {
        kind: OperationKind::Move,
        mode: CaptureMode::Auto,
        owner: vm.ownership.owner.clone(),
        count: 1,
        paused: vm.power == Power::Paused,
        to: Some(to),
        expires_at: *expires_at,
        group: None,
    };
    fork::begin_capture(state, now, *operation, &vm, None, begun)
}

/// Refuses one whose fork is still being made: what becomes of it is for its first node to say.
fn check_made(state: &State, vm: &Vm) -> Result<(), Rejection> {
    let made = vm.operation.and_then(|id| state.operations.get(&id));
    if made.is_some_and(|made| made.state == OperationState::Open) {
        return Err(reset::wrong_state(
            vm,
            "is still being made: wait until it is running",
        ));
    }
    Ok(())
}

/// Whether a VM has no process, and is to have none; refused while that is about to change.
fn rests(vm: &Vm) -> Result<bool, Rejection> {
    let problem = match (vm.power, vm.phase) {
        (Power::Running | Power::Paused, Phase::Running | Phase::Paused) => return Ok(false),
        (Power::Suspended, Phase::Suspended)
        | (
            Power::Running | Power::Paused | Power::Stopped { .. },
            Phase::Stopped | Phase::Failed,
        ) => return Ok(true),
        (Power::Stopped { .. }, _) => "is being stopped: wait until it is stopped",
        (Power::Suspended, _) => "is being suspended: wait until it is suspended",
        (Power::Running | Power::Paused, Phase::Pending | Phase::Suspended) => {
            "is not up yet: wait until it is running"
        }
        (Power::Running | Power::Paused, Phase::Restarting) => {
            "is being started again: wait until it is running"
        }
    };
    Err(reset::wrong_state(vm, problem))
}

/// The node that a VM goes to.
fn place(
    state: &State,
    vm: &Arc<Vm>,
    rests: bool,
    asked: Option<&str>,
    candidates: &[Candidate],
) -> Result<NodeId, Rejection> {
    if let Some(asked) = asked {
        let node = names::node(state, asked)?;
        if node.id == vm.node {
            let problem = format!("is on node {} already", node.name);
            return Err(reset::wrong_state(vm, problem));
        }
    }
    let is_other = |candidate: &&Candidate| candidate.node != vm.node;
    let others: Vec<Candidate> = candidates.iter().filter(is_other).copied().collect();
    let wanted = Wanted {
        by: &Actor::cluster(),
        labels: &Labels::new(),
        constraints: &Constraints::default(),
        candidates: &others,
        count: 1,
    };
    let image = state.images.get(&vm.spec.image);
    let chosen = match image.filter(|_| rests && vm.power != Power::Suspended) {
        Some(image) => placement::of_vm(state, &wanted, asked, &vm.spec, image),
        None => {
            let placing = asked.map_or(Placing::Spread, |node| Placing::On(node.to_owned()));
            let moment = moment(state, vm);
            fork::place_of_moved(state, vm, moment, &placing, &wanted)
                .and_then(|places| places.first().copied().ok_or_else(nowhere))
        }
    };
    chosen.map_err(|refused| say_where_it_is(state, vm, refused))
}

fn nowhere() -> Rejection {
    Rejection::NoCapacity {
        short: 1,
        wanted: 1,
        reasons: Vec::new(),
    }
}

/// What a suspended VM goes on from.
fn moment<'a>(state: &'a State, vm: &Vm) -> Option<&'a Content> {
    match (vm.power, vm.source) {
        (Power::Suspended, Source::Snapshot(id)) => state.snapshots.get(&id)?.content.as_ref(),
        _ => None,
    }
}

/// The node where it lives is not offline, as those are that are no candidates.
fn say_where_it_is(state: &State, vm: &Vm, mut refused: Rejection) -> Rejection {
    if let (Rejection::NoCapacity { reasons, .. }, Some(node)) =
        (&mut refused, state.nodes.get(&vm.node))
    {
        let begins = format!("{} ", node.name);
        for reason in reasons.iter_mut().filter(|one| one.starts_with(&begins)) {
            *reason = format!("{} is where it lives", node.name);
        }
    }
    refused
}

pub(super) fn arrive(state: &mut State, now: Millis, command: &Command) -> Outcome {
    let Command::Arrive {
        operation: id,
        node,
        content,
        disk,
    } = command
    else {
        unreachable!("called for this command only");
    };
    let operation = state.operations.get(id).map(Arc::clone);
    let operation = operation.ok_or_else(|| names::not_found(Kind::Operation, &id.to_string()))?;
    if operation.to != Some(*node) {
        return Err(refused(&operation, "moves nothing to this node"));
    }
    if operation.has_arrived() {
        // Told twice: the first time counted, and the node must not take it for a refusal.
        return Ok(Response::Done);
    }
    let vm = checked(state, &operation, *node, content.as_ref())?;
    let from = operation.node;
    if let (Some(content), Some(snapshot)) = (content, state.snapshots.get_mut(&operation.snapshot))
    {
        let snapshot = Arc::make_mut(snapshot);
        snapshot.content = Some(content.clone());
        snapshot.nodes = BTreeSet::from([from]);
    }
    leave(state, now, &vm, from);
    let there = Vm {
        node: *node,
        generation: vm.generation + 1,
        disk: disk.clone().filter(|_| content.is_none()),
        ..(*vm).clone()
    };
    state.vms.insert(vm.id, Arc::new(there));
    if let Some(operation) = state.operations.get_mut(id) {
        let operation = Arc::make_mut(operation);
        operation.node = *node;
        if content.is_none() {
            // There is nothing more to do.
            operation.results.insert(0, ChildResult::default());
        }
    }
    operation::complete_when_done(state, now, *id);
    Ok(Response::Done)
}

/// The VM of a move that goes on, and comes as it should.
fn checked(
    state: &State,
    operation: &Operation,
    node: NodeId,
    content: Option<&Content>,
) -> Result<Arc<Vm>, Rejection> {
    if operation.state != OperationState::Open {
        return Err(refused(operation, "has ended"));
    }
    if operation.cancel_requested {
        return Err(refused(operation, "is being given up"));
    }
    let vm = operation.vm.and_then(|vm| state.vms.get(&vm));
    let vm = vm.ok_or_else(|| refused(operation, "has no VM any more"))?;
    if rests(vm)? != content.is_none() {
        return Err(refused(
            operation,
            "moves a VM with its process, or without one",
        ));
    }
    let left = state.tombstones.get(&ObjectId::Left(vm.id));
    if left.is_some_and(|left| left.nodes.contains(&node)) {
        let problem = "moves a VM to where something of it is left from before";
        return Err(refused(operation, problem));
    }
    let is_there = |id| {
        let snapshot = state.snapshots.get(&id);
        snapshot.is_some_and(|snapshot| snapshot.nodes.contains(&node))
    };
    match (vm.power, vm.source) {
        (Power::Suspended, Source::Snapshot(id)) if !is_there(id) => Err(refused(
            operation,
            "moves a VM whose moment is not there yet",
        )),
        _ => Ok(Arc::clone(vm)),
    }
}

fn refused(operation: &Operation, problem: &str) -> Rejection {
    Rejection::WrongState {
        kind: Kind::Operation,
        name: operation.id.to_string(),
        problem: problem.to_owned(),
    }
}

/// Has a node clear away what it has of a VM that lives elsewhere from now on.
pub(super) fn leave(state: &mut State, now: Millis, vm: &Vm, from: NodeId) {
    let object = ObjectId::Left(vm.id);
    let before = state.tombstones.get(&object);
    let mut nodes = before.map_or_else(BTreeSet::new, |before| before.nodes.clone());
    nodes.insert(from);
    removal::bury(state, now, object, &vm.name, &nodes);
    forget_stay(state, from, vm.id);
}

/// A moved VM's result is known: it goes on, or, when nothing could be made of what came, has no process.
pub(super) fn was_moved(state: &mut State, now: Millis, id: OperationId) {
    let Some(operation) = state.operations.get(&id).map(Arc::clone) else {
        return;
    };
    let has_moment = state
        .snapshots
        .get(&operation.snapshot)
        .is_some_and(|snapshot| snapshot.content.is_some());
    if let (Some(vm), Some(result), true) = (operation.vm, operation.results.get(&0), has_moment) {
        state
            .vms
            .change(&vm, |vm| note_moved(vm, &operation, result));
    }
    // Its process has what it needs of it; one that has none starts from it.
    removal::collect(state, now, Some(operation.snapshot));
}

fn note_moved(vm: &mut Vm, operation: &Operation, result: &ChildResult) {
    vm.reported_boot = vm.boot;
    vm.reason.clone_from(&result.error);
    vm.phase = match (result.error.is_empty(), vm.power) {
        (true, Power::Paused) => Phase::Paused,
        (true, _) => Phase::Running,
        (false, _) => {
            vm.source = Source::Snapshot(operation.snapshot);
            Phase::Failed
        }
    };
}

/// Never refused: the VM may be gone, or the node not be drained any more.
pub(super) fn stay_on_node(state: &mut State, node: NodeId, vm: VmId, reason: &str) -> Outcome {
    let lives_there = state.vms.get(&vm).is_some_and(|vm| vm.node == node);
    if let Some(node) = state.nodes.get_mut(&node).filter(|_| lives_there)
        && let Some(drain) = &mut Arc::make_mut(node).drain
    {
        drain.stays.insert(vm, reason.to_owned());
    }
    Ok(Response::Done)
}

/// A VM does not live on a node any more.
pub(super) fn forget_stay(state: &mut State, node: NodeId, vm: VmId) {
    let stays = |node: &&mut Arc<crate::state::model::Node>| {
        let drain = node.drain.as_ref();
        drain.is_some_and(|drain| drain.stays.contains_key(&vm))
    };
    if let Some(node) = state.nodes.get_mut(&node).filter(stays)
        && let Some(drain) = &mut Arc::make_mut(node).drain
    {
        drain.stays.remove(&vm);
    }
}
