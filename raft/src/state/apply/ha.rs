//! VMs that go on elsewhere when their node is lost.
//!
//! That they do not run on there is no matter of the state: a node runs them under a watchdog only, which stops them when no leader has
//! heard of their node for a while, and the leader proposes [`Command::RestoreVms`] when that must have happened.

use std::sync::Arc;

use super::{fork, invalid, moving, operation, placement::Wanted, removal, reset, schedule};
use crate::state::{
    command::{Candidate, Command, Constraints, Placing, ScheduleChange},
    ids::{NodeId, OperationId, SnapshotId, VmId},
    model::{
        Content, Ha, Labels, Millis, ObjectId, OperationKind, OperationState, Phase, Power,
        Restored, Snapshot, Source, State, Vm,
    },
    names,
    owners::{Actor, Owned as _},
    response::{Outcome, Rejection, Response},
};

pub(super) fn protect(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::ProtectVm {
        vm,
        snapshots,
        ha,
        candidates,
    } = command
    else {
        unreachable!("called for this command only");
    };
    let vm = Arc::clone(names::vm(state, by, vm)?);
    vm.check_ruled_by(by)?;
    if snapshots.is_none() && ha.is_none() {
        let problem = "nothing is to be changed: say which snapshots are taken, or what becomes of it when its node is lost";
        return Err(invalid("snapshots", problem));
    }
    if *ha == Some(true) {
        check_alone(&vm)?;
    }
    if let Some(ScheduleChange::Follow(schedule)) = snapshots {
        schedule::check(state, schedule, vm.node, candidates)?;
    }
    match snapshots {
        None => {}
        Some(ScheduleChange::Stop) => schedule::set(state, now, vm.id, None),
        Some(ScheduleChange::Follow(new)) => schedule::set(state, now, vm.id, Some(*new)),
    }
    if let Some(wanted) = ha {
        state.vms.change(&vm.id, |vm| {
            vm.ha = match (wanted, vm.ha) {
                (false, _) => Ha::Off,
                (true, Ha::Off) => Ha::Arming,
                (true, same) => same,
            };
        });
    }
    Ok(Response::Vm(vm.id))
}

/// Refuses a member of a group: what the others are to it cannot be where it would be restored.
pub(super) fn check_alone(vm: &Vm) -> Result<(), Rejection> {
    match &vm.group {
        None => Ok(()),
        Some(group) => Err(reset::wrong_state(vm, group.why_it_stays())),
    }
}

/// Never refused: what is not meant any more is left as it is.
pub(super) fn guarded(state: &mut State, node: NodeId, vms: &[VmId]) -> Outcome {
    for id in vms {
        let is_meant = |vm: &&Arc<Vm>| vm.node == node && vm.ha == Ha::Arming;
        if state.vms.get(id).filter(is_meant).is_some() {
            state.vms.change(id, |vm| vm.ha = Ha::Restore);
        }
    }
    Ok(Response::Done)
}

/// Never refused: those for which there is nothing, or no room, stay where they were.
pub(super) fn restore(
    state: &mut State,
    now: Millis,
    node: NodeId,
    silent_for: Millis,
    candidates: &[Candidate],
) -> Outcome {
    let lost: Vec<VmId> = lost_with(state, node).map(|vm| vm.id).collect();
    for id in lost {
        let vm = state.vms.get(&id).map(Arc::clone);
        // Each takes room that the next does not have.
        if let Some(vm) = vm
            && let Some(point) = point_of(state, &vm, candidates)
        {
            let heard_at = now.saturating_sub(silent_for);
            restore_one(state, now, &vm, point, heard_at);
        }
    }
    Ok(Response::Done)
}

/// What a VM goes on from, and where.
#[derive(Clone, Copy)]
struct Point {
    snapshot: SnapshotId,
    node: NodeId,
}

/// The VMs that are restored elsewhere when a node is lost, and have a process there as far as is known.
fn lost_with(state: &State, node: NodeId) -> impl Iterator<Item = &Arc<Vm>> {
    state.vms.of(node).filter(|vm| {
        vm.ha == Ha::Restore
            && vm.group.is_none()
            && matches!(vm.power, Power::Running | Power::Paused)
            && !matches!(vm.phase, Phase::Stopped | Phase::Failed)
    })
}

/// The newest moment of a VM's that one of the candidates has and can go on from.
fn point_of(state: &State, vm: &Arc<Vm>, candidates: &[Candidate]) -> Option<Point> {
    moments_of(state, vm)
        .into_iter()
        .find_map(|(snapshot, content)| {
            let node = place(state, vm, snapshot, content, candidates)?;
            let snapshot = snapshot.id;
            Some(Point { snapshot, node })
        })
}

/// A VM's moments that can be gone on from, the newest first.
fn moments_of<'a>(state: &'a State, vm: &Vm) -> Vec<(&'a Arc<Snapshot>, &'a Content)> {
    let all = state.snapshots.values();
    let of_vm = all.filter(|one| one.vm.vm == vm.id && reset::check_fits(vm, one).is_ok());
    let ready = of_vm.filter_map(|snapshot| Some((snapshot, snapshot.content.as_ref()?)));
    let mut moments: Vec<_> = ready.collect();
    moments.sort_by_key(|(snapshot, _)| std::cmp::Reverse((snapshot.created_at, snapshot.id)));
    moments
}

/// One of the nodes that hold a moment, where the VM may live.
fn place(
    state: &State,
    vm: &Arc<Vm>,
    snapshot: &Snapshot,
    content: &Content,
    candidates: &[Candidate],
) -> Option<NodeId> {
    let left = state.tombstones.get(&ObjectId::Left(vm.id));
    let may = |candidate: &&Candidate| {
        let node = candidate.node;
        node != vm.node
            && snapshot.nodes.contains(&node)
            && left.is_none_or(|left| !left.nodes.contains(&node))
    };
    let holders: Vec<Candidate> = candidates.iter().filter(may).copied().collect();
    let wanted = Wanted {
        by: &Actor::cluster(),
        labels: &Labels::new(),
        constraints: &Constraints::default(),
        candidates: &holders,
        count: 1,
    };
    let placed = fork::place_of_moved(state, vm, Some(content), &Placing::Spread, &wanted);
    placed.ok()?.first().copied()
}

fn restore_one(state: &mut State, now: Millis, vm: &Arc<Vm>, point: Point, heard_at: Millis) {
    let Some(snapshot) = state.snapshots.get(&point.snapshot).map(Arc::clone) else {
        return;
    };
    end_work_on(state, now, vm);
    moving::leave(state, now, vm, vm.node);
    let there = Vm {
        node: point.node,
        spec: snapshot.spec.clone(),
        source: Source::Snapshot(snapshot.id),
        lineage: snapshot.lineage,
        disk: None,
        generation: vm.generation + 1,
        boot: vm.boot + 1,
        phase: Phase::Pending,
        reason: String::new(),
        ending: None,
        restarts: 0,
        next_start: None,
        failed_steps: Vec::new(),
        restored: Some(Restored {
            from: vm.node,
            snapshot: snapshot.id,
            captured_at: snapshot.created_at,
            heard_at,
            at: now,
        }),
        ..(**vm).clone()
    };
    state.vms.insert(vm.id, Arc::new(there));
    let stream_bytes = snapshot.stream_bytes();
    state.vms.change(&vm.id, |vm| vm.goes_on_from(stream_bytes));
    if let Source::Snapshot(before) = vm.source {
        removal::collect(state, now, Some(before));
    }
}

/// Ends what was being done to a VM where it was.
fn end_work_on(state: &mut State, now: Millis, vm: &Vm) {
    let all = state.operations.values();
    let on_it = all.filter(|operation| {
        operation.state == OperationState::Open
            && operation.vm == Some(vm.id)
            && (operation.kind != OperationKind::Fork || state.is_to_capture(operation, vm.node))
    });
    let ids: Vec<OperationId> = on_it.map(|operation| operation.id).collect();
    let reason = "its VM's node was lost: the VM goes on elsewhere, from an earlier moment";
    for id in ids {
        // Failing an operation is never refused.
        let _ended = operation::fail_operation(state, now, id, reason, false);
    }
}

impl State {
    /// Whether [`Command::RestoreVms`] would have a VM of a node go on elsewhere.
    pub fn would_restore(&self, node: NodeId, candidates: &[Candidate]) -> bool {
        lost_with(self, node).any(|vm| point_of(self, vm, candidates).is_some())
    }

    /// Nodes with VMs that are restored elsewhere when they are lost, or are to be.
    pub fn nodes_with_ha(&self) -> std::collections::BTreeSet<NodeId> {
        let all = self.vms.values().filter(|vm| vm.ha != Ha::Off);
        all.map(|vm| vm.node).collect()
    }

    /// The newest moment that a VM could be restored from if its node were lost now: one that another node has.
    pub fn restore_point(&self, vm: &Vm) -> Option<&Arc<Snapshot>> {
        let is_elsewhere = |snapshot: &Snapshot| snapshot.nodes.iter().any(|node| *node != vm.node);
        let moments = moments_of(self, vm).into_iter();
        moments
            .map(|(snapshot, _)| snapshot)
            .find(|snapshot| is_elsewhere(snapshot))
    }
}
