//! Snapshots that VMs' nodes take of them by themselves: when, how many are kept, and what becomes of older ones.

use std::{collections::BTreeSet, sync::Arc};

use super::{fork, invalid, removal, replicas, reset};
use crate::state::{
    command::{Candidate, Command},
    ids::{NodeId, SnapshotId, VmId},
    model::{
        CaptureMode, Millis, OperationKind, OperationState, Phase, Schedule, Snapshot, State, Vm,
    },
    names,
    owners::Actor,
    quotas::Usage,
    response::{Outcome, Rejection},
};

/// How far snapshots of a VM may be apart, milliseconds.
const EVERY: std::ops::RangeInclusive<Millis> = 10_000..=366 * 24 * 3_600_000;
/// How many may be kept.
const KEEP: std::ops::RangeInclusive<u32> = 1..=100;

/// Refuses a schedule that can never be right, or whose copies could not be made now.
pub(super) fn check(
    state: &State,
    schedule: &Schedule,
    node: NodeId,
    candidates: &[Candidate],
) -> Result<(), Rejection> {
    if !EVERY.contains(&schedule.every) {
        return Err(invalid("snapshots.every", "must be 10 s to a year"));
    }
    if !KEEP.contains(&schedule.keep) {
        return Err(invalid("snapshots.keep", "must be 1 to 100"));
    }
    replicas::of_capture(state, node, schedule.replicas, candidates).map(drop)
}

/// Has a VM's node follow a schedule that was checked, or none.
pub(super) fn set(state: &mut State, now: Millis, vm: VmId, schedule: Option<Schedule>) {
    state.vms.change(&vm, |vm| {
        vm.next_snapshot = match (vm.schedule, schedule) {
            (Some(_), Some(new)) => vm.next_snapshot.min(now.saturating_add(new.every)),
            _ => now,
        };
        vm.schedule = schedule;
    });
    prune(state, now, vm);
}

pub(super) fn take(state: &mut State, now: Millis, command: &Command) -> Outcome {
    let Command::TakeScheduled {
        operation,
        vm,
        node,
        candidates,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    fork::check_operation_id(state, *operation, 0)?;
    let cluster = Actor::cluster();
    let vm = Arc::clone(names::vm(state, &cluster, &vm.to_string())?);
    let Some(schedule) = vm.schedule.filter(|_| vm.next_snapshot <= now) else {
        return Err(reset::wrong_state(&vm, "has no snapshot due"));
    };
    if vm.node != *node {
        return Err(reset::wrong_state(&vm, "lives on another node"));
    }
    reset::check_not_captured(state, &vm, &cluster)?;
    fork::check_capturable(state, &vm)?;
    state.check_quota(&vm.ownership.owner, Usage::of_snapshot())?;
    let begun = fork::Begun {
        kind: OperationKind::Snapshot,
        owner: vm.ownership.owner.clone(),
        mode: CaptureMode::Auto,
        count: 0,
        paused: false,
        to: None,
        expires_at: *expires_at,
        group: None,
    };
    let outcome = fork::begin_capture(state, now, *operation, &vm, None, begun);
    // One with fewer copies than are wanted is better than none; the leader finds the others.
    let copies = replicas::as_many_as_there_are(state, vm.node, schedule.replicas, candidates);
    if let Some(snapshot) = state.snapshots.get_mut(&operation.snapshot()) {
        let snapshot = Arc::make_mut(snapshot);
        snapshot.is_scheduled = true;
        (snapshot.replicas, snapshot.copies) = (schedule.replicas, copies);
    }
    state.vms.change(&vm.id, |vm| {
        // Those that were missed are not made up for.
        vm.next_snapshot = now.saturating_add(schedule.every);
    });
    outcome
}

/// Lets go of scheduled snapshots of the VM that one is of, after a change of that one.
pub(super) fn prune_beside(state: &mut State, now: Millis, id: SnapshotId) {
    let snapshot = state.snapshots.get(&id);
    if let Some(vm) = snapshot.filter(|one| one.is_scheduled).map(|one| one.vm.vm) {
        prune(state, now, vm);
    }
}

/// Lets go of a VM's scheduled snapshots that are not kept any more: of those that are held as often as asked, all but the newest so many; of
/// the others, those that are not among the newest so many of all. So what is safe stays until something newer is.
fn prune(state: &mut State, now: Millis, vm: VmId) {
    let Some(schedule) = state.vms.get(&vm).and_then(|vm| vm.schedule) else {
        return;
    };
    let all = scheduled(state, vm);
    let keep = schedule.keep as usize;
    let ready = all.iter().rev().filter(|one| one.content.is_some());
    let ready: Vec<&Arc<Snapshot>> = ready.collect();
    let safe = ready.iter().filter(|one| one.is_held_as_asked());
    let newest = ready.iter().take(keep);
    let kept: BTreeSet<SnapshotId> = safe.take(keep).chain(newest).map(|one| one.id).collect();
    for one in ready.iter().filter(|one| !kept.contains(&one.id)) {
        let_go(state, now, one.id);
    }
}

/// A VM is deleted, and with it the snapshots that were only there for it.
pub(super) fn forget(state: &mut State, now: Millis, vm: VmId) {
    for one in scheduled(state, vm) {
        let_go(state, now, one.id);
    }
}

/// The scheduled snapshots of a VM, the oldest first.
fn scheduled(state: &State, vm: VmId) -> Vec<Arc<Snapshot>> {
    let all = state.snapshots.values();
    let all = all.filter(|one| one.is_scheduled && one.vm.vm == vm);
    all.cloned().collect()
}

fn let_go(state: &mut State, now: Millis, id: SnapshotId) {
    if let Some(snapshot) = state.snapshots.get_mut(&id) {
        Arc::make_mut(snapshot).is_scheduled = false;
    }
    removal::collect(state, now, Some(id));
}

impl State {
    /// The VMs of a node of which a snapshot is due, that can be captured now, but for some; as many as may be taken at once with those
    /// that are being taken.
    pub fn snapshots_due(
        &self,
        node: NodeId,
        now: Millis,
        at_once: usize,
        but: &BTreeSet<VmId>,
    ) -> Vec<VmId> {
        let open = self.operations.values();
        let open = open.filter(|one| one.state == OperationState::Open && one.node == node);
        let busy: Vec<_> = open
            .filter_map(|one| Some((one.vm?, one.snapshot)))
            .collect();
        let is_scheduled = |id| self.snapshots.get(id).is_some_and(|one| one.is_scheduled);
        let under_way = busy.iter().filter(|(_, id)| is_scheduled(id)).count();
        let is_due = |vm: &&Arc<Vm>| {
            vm.schedule.is_some()
                && vm.next_snapshot <= now
                && vm.phase == Phase::Running
                && !but.contains(&vm.id)
                && !busy.iter().any(|(id, _)| *id == vm.id)
        };
        let mut due: Vec<&Arc<Vm>> = self.vms.of(node).filter(is_due).collect();
        // Who has waited longest.
        due.sort_by_key(|vm| (vm.next_snapshot, vm.id));
        let room = at_once.saturating_sub(under_way);
        due.into_iter().take(room).map(|vm| vm.id).collect()
    }
}
