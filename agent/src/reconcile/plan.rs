//! What a node has to do so that what is becomes what should be. Pure: the replicated state and what was observed in,
//! actions out. Planning again after the actions were carried out gives nothing to do.
//!
//! A VM that is busy with an action is left alone until it is done. Forks that are under way belong to their operation;
//! here only its beginning and its giving up are decided.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

use qemu::past::{End, Past};
use raft::state::{
    ImageId, Millis, NodeId, ObjectId, Operation, OperationId, OperationKind, OperationState,
    Phase, Power, Safety, Snapshot, SnapshotId, Source, State, Vm, VmId, VmReport,
};

use super::restart::{Verdict, verdict};
use crate::convert;

/// How many snapshots a node fetches at once for having copies of them: what VMs wait for is fetched beside those.
const COPIES_AT_ONCE: usize = 4;
/// Of a VM that ran on its node, which has nothing of it any more.
const NOTHING_LEFT: &str = "nothing of it is left on its node: its files were lost, or it was deleted before the cluster's state was put back. \
     Delete it, or start it to have it begin anew from its image";

/// What a node sees of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Everything that the node has of VMs, whether the state knows them or not.
    pub vms: BTreeMap<VmId, Seen>,
    /// Whether this agent's state has been the cluster's: the one that it starts with may be older than what was done already.
    pub caught_up: bool,
    /// Operations that are being carried out.
    pub operations: BTreeSet<OperationId>,
    /// Images whose files are all here.
    pub images: BTreeSet<ImageId>,
    /// Images that are being fetched.
    pub fetching: BTreeSet<ImageId>,
    /// Snapshots whose files forks that are ready may have open.
    pub held: BTreeSet<SnapshotId>,
    /// How the files of snapshots are. Of one that is not in it nothing is known.
    pub snapshots: BTreeMap<SnapshotId, Files>,
    /// Whether a snapshot is being secured or verified.
    pub storing: bool,
    /// Snapshots whose files are being fetched, or are here and not told yet.
    pub coming: BTreeSet<SnapshotId>,
    /// VMs whose processes are on their groups' networks, or about to be.
    pub plugged: BTreeSet<VmId>,
}

/// How the files of a snapshot are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// They can be used.
    Good,
    /// They must be compared with their checksums first: the host was restarted since they were made.
    Unverified,
    /// One is not what was written.
    Damaged(String),
    /// One is missing.
    Gone,
}

impl Observed {
    /// Whether something can be started from a snapshot, or is to fail by trying.
    fn is_usable(&self, snapshot: SnapshotId) -> bool {
        !matches!(
            self.snapshots.get(&snapshot),
            Some(Files::Unverified | Files::Damaged(_))
        )
    }
}

/// What a node sees of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether something is being done to it. Then nothing else is true for long.
    pub busy: bool,
    /// Whether its guest ever ran here.
    pub has_run: bool,
    /// Whether its guest was stopped to go on elsewhere, or later.
    pub held: bool,
    /// What became of its processes so far.
    pub past: Past,
    /// Whether its process has a card on a group's network.
    pub has_group_card: bool,
    /// How it is.
    pub is: Is,
}

/// How a VM is on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Is {
    /// Nothing can be said: its process is there and does not answer. Nothing is done to it.
    Unknown,
    /// It has no process, and nothing is to be said about why.
    Absent,
    /// It was let go and has not said that it is ready.
    Booting {
        /// Which boot.
        boot: u64,
    },
    /// It runs.
    Running {
        /// Which boot.
        boot: u64,
    },
    /// It stands still.
    Paused {
        /// Which boot.
        boot: u64,
    },
    /// It ended, or could not be started.
    Ended {
        /// Which boot.
        boot: u64,
        /// How.
        end: End,
    },
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fetch an image's files from another node.
    FetchImage(ImageId),
    /// Fetch a snapshot's files from nodes that hold it.
    FetchSnapshot(SnapshotId),
    /// Start a VM from its disk, for the first time in this boot or again.
    Boot {
        /// The VM.
        vm: VmId,
        /// Which boot this is.
        boot: u64,
    },
    /// Start a fork that never ran from its snapshot.
    Restore {
        /// The VM.
        vm: VmId,
        /// Which boot this is.
        boot: u64,
        /// Its snapshot.
        snapshot: SnapshotId,
        /// Whether it should stand still afterwards.
        paused: bool,
    },
    /// Let a running VM stand still.
    Pause(VmId),
    /// Let it go on.
    Resume(VmId),
    /// Press its power button and, when that has not helped for a while, end it.
    Stop(VmId),
    /// End its process at once. Its disk stays.
    Kill(VmId),
    /// End it and delete all that is here of it.
    Destroy(VmId),
    /// Have a VM's process be on its group's network.
    Plug(VmId),
    /// Begin an operation.
    Run(OperationId),
    /// Give an operation up that is being carried out, or was and cannot be any more.
    GiveUp {
        /// The operation.
        operation: OperationId,
        /// Why.
        reason: String,
        /// Whether because somebody asked for it.
        cancelled: bool,
        /// Whether it is being carried out now.
        running: bool,
    },
    /// Tell the cluster how VMs are.
    Report(Vec<VmReport>),
    /// Tell the cluster that this node lost what a snapshot is made of.
    ReportLost {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Why.
        reason: String,
    },
    /// Bring a snapshot's files to the disk.
    Secure(SnapshotId),
    /// Compare a snapshot's files with their checksums.
    Verify(SnapshotId),
    /// Remove files that nothing refers to, then tell the cluster that these are gone.
    Collect(Vec<ObjectId>),
}

/// What time it is.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// In the cluster: by it operations are given up.
    pub cluster: Millis,
    /// By the host's clock: by it VMs have started and ended.
    pub host: Millis,
}

/// Plans for one node.
pub fn plan(state: &State, node: NodeId, now: Now, observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut reports = Vec::new();
    let mut wanted_images = BTreeSet::new();
    let mut wanted_snapshots = BTreeSet::new();
    let mut far_snapshots = BTreeSet::new();

    let taken = taken_by_operations(state, node);
    let left_to_us = |vm: &&std::sync::Arc<Vm>| !taken.contains(&vm.id);
    for vm in state.vms.of(node).filter(left_to_us) {
        let image_here = observed.images.contains(&vm.spec.image);
        let seen = observed.vms.get(&vm.id);
        if !observed.caught_up && seen.is_none_or(|seen| seen.held) {
            // It may live elsewhere by now.
            continue;
        }
        // Also one that has left its group: what it sends is taken from it.
        let is_plugged = observed.plugged.contains(&vm.id);
        if !is_plugged && seen.is_some_and(|seen| seen.has_group_card && has_process(seen)) {
            actions.push(Action::Plug(vm.id));
        }
        let step = plan_vm(state, vm, seen, now.host);
        reports.extend(step.report);
        match step.action {
            Some(Action::Boot { .. } | Action::Restore { .. }) if !image_here => {
                wanted_images.insert(vm.spec.image);
            }
            Some(Action::Restore { snapshot, .. }) if is_elsewhere(state, node, snapshot) => {
                far_snapshots.insert(snapshot);
            }
            Some(Action::Restore { snapshot, .. }) if !observed.is_usable(snapshot) => {
                wanted_snapshots.insert(snapshot);
            }
            Some(action) => actions.push(action),
            None => {}
        }
    }
    for (id, seen) in observed.vms.iter().filter(|(_, seen)| !seen.busy) {
        // What the state does not know may be newer than a state that was restored: only a tombstone ends it.
        let is_left = || {
            let left = state.tombstones.get(&ObjectId::Left(*id));
            left.is_some_and(|left| left.nodes.contains(&node))
        };
        let is_gone = state.tombstones.contains_key(&ObjectId::Vm(*id)) || is_left();
        if is_gone && seen.is != Is::Unknown {
            actions.push(Action::Destroy(*id));
        }
    }
    for copy in copies_to_fetch(state, node, observed) {
        match copy {
            Copy::Image(image) => wanted_images.insert(image),
            Copy::Snapshot(snapshot) => far_snapshots.insert(snapshot),
        };
    }
    for image in wanted_images.difference(&observed.fetching) {
        actions.push(Action::FetchImage(*image));
    }
    for snapshot in far_snapshots.difference(&observed.coming) {
        actions.push(Action::FetchSnapshot(*snapshot));
    }
    actions.extend(plan_operations(state, node, now.cluster, observed));
    wanted_snapshots.extend(
        state
            .operations
            .values()
            .filter(|operation| operation.state == OperationState::Open)
            .filter(|operation| state.has_part(operation, node))
            .map(|operation| operation.snapshot),
    );
    actions.extend(plan_snapshots(state, node, observed, &wanted_snapshots));
    if !reports.is_empty() {
        actions.push(Action::Report(reports));
    }
    let gone: Vec<ObjectId> = state
        .tombstones
        .iter()
        .filter(|(id, tombstone)| tombstone.nodes.contains(&node) && !still_here(**id, observed))
        .map(|(id, _)| *id)
        .collect();
    if !gone.is_empty() {
        actions.push(Action::Collect(gone));
    }
    actions
}

/// Whether a VM's guest runs, or stands still.
fn has_process(seen: &Seen) -> bool {
    !seen.busy
        && matches!(
            seen.is,
            Is::Booting { .. } | Is::Running { .. } | Is::Paused { .. }
        )
}

/// Whether only other nodes hold a snapshot.
fn is_elsewhere(state: &State, node: NodeId, snapshot: SnapshotId) -> bool {
    let found = state.snapshots.get(&snapshot);
    found.is_some_and(|found| !found.nodes.is_empty() && !found.nodes.contains(&node))
}

/// What is fetched for copies that this node is to hold.
enum Copy {
    /// Its image first: without it nothing could be started from the copy.
    Image(ImageId),
    Snapshot(SnapshotId),
}

/// Snapshots are copied once their files are summed up, so that what comes is compared with that; the newest first.
fn copies_to_fetch(state: &State, node: NodeId, observed: &Observed) -> Vec<Copy> {
    let wanted = state.snapshots.values().filter(|snapshot| {
        let content = snapshot.content.as_ref();
        snapshot.copies.contains(&node)
            && is_elsewhere(state, node, snapshot.id)
            && content.is_some_and(|content| matches!(content.safety, Safety::Disk(_)))
    });
    let wanted: Vec<_> = wanted.collect();
    let copy = |snapshot: &std::sync::Arc<Snapshot>| match observed
        .images
        .contains(&snapshot.spec.image)
    {
        true => Copy::Snapshot(snapshot.id),
        false => Copy::Image(snapshot.spec.image),
    };
    let newest = wanted.into_iter().rev().take(COPIES_AT_ONCE);
    newest.map(copy).collect()
}

/// VMs that are being reset, suspended or moved: they belong to that operation until it is known what became of them.
fn taken_by_operations(state: &State, node: NodeId) -> BTreeSet<VmId> {
    state
        .operations
        .values()
        .filter(|operation| {
            operation.node == node
                && operation.state == OperationState::Open
                && matches!(
                    operation.kind,
                    OperationKind::Reset | OperationKind::Suspend | OperationKind::Move
                )
        })
        .filter_map(|operation| operation.vm)
        .collect()
}

/// Whether a reset cannot be given up any more: its VM has given way, and the one at the other moment is there or to come. Or a move: the
/// VM lives here now.
fn is_past_return(state: &State, operation: &Operation, observed: &Observed) -> bool {
    if operation.has_arrived() {
        return true;
    }
    let (OperationKind::Reset, Some(vm)) = (operation.kind, operation.vm) else {
        return false;
    };
    let wanted = state.vms.get(&vm).map(|vm| vm.boot);
    match observed.vms.get(&vm).map(|seen| &seen.is) {
        None => wanted.is_some(),
        Some(Is::Booting { boot } | Is::Running { boot } | Is::Paused { boot }) => {
            wanted.is_some_and(|wanted| *boot > wanted)
        }
        Some(Is::Unknown | Is::Absent | Is::Ended { .. }) => false,
    }
}

/// Whether something of an object must be ended before its files can go.
fn still_here(id: ObjectId, observed: &Observed) -> bool {
    match id {
        ObjectId::Vm(vm) | ObjectId::Left(vm) => observed.vms.contains_key(&vm),
        ObjectId::Image(image) => observed.fetching.contains(&image),
        ObjectId::Snapshot(snapshot) => {
            observed.held.contains(&snapshot) || observed.coming.contains(&snapshot)
        }
    }
}

/// What is lost is reported; what is in doubt is verified, what is wanted first; then what is only in memory is secured.
fn plan_snapshots(
    state: &State,
    node: NodeId,
    observed: &Observed,
    wanted: &BTreeSet<SnapshotId>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let (mut verify, mut secure) = (Vec::new(), Vec::new());
    for snapshot in state.snapshots.values() {
        let (true, Some(content)) = (snapshot.nodes.contains(&node), &snapshot.content) else {
            continue;
        };
        let id = snapshot.id;
        let mut lost = |reason: &str| {
            actions.push(Action::ReportLost {
                snapshot: id,
                reason: reason.to_owned(),
            });
        };
        match (observed.snapshots.get(&id), &content.safety) {
            (None, _) | (Some(Files::Good), Safety::Disk(_)) => {}
            (Some(Files::Gone), _) => lost("its files are gone from its node"),
            (Some(Files::Damaged(reason)), _) => lost(reason),
            (Some(Files::Unverified), Safety::Memory) => {
                lost("its node's host was restarted before its files were on disk");
            }
            (Some(Files::Unverified), Safety::Disk(_)) => verify.push(id),
            (Some(Files::Good), Safety::Memory) => secure.push(id),
        }
    }
    if !observed.storing {
        let first = verify
            .iter()
            .find(|id| wanted.contains(id))
            .or(verify.first());
        let next_to_secure = secure
            .iter()
            .find(|id| wanted.contains(id))
            .or(secure.first());
        let next = match (first, next_to_secure) {
            (Some(id), _) => Some(Action::Verify(*id)),
            (None, Some(id)) => Some(Action::Secure(*id)),
            (None, None) => None,
        };
        actions.extend(next);
    }
    actions
}

fn plan_operations(state: &State, node: NodeId, now: Millis, observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    let open = |operation: &OperationId| {
        state
            .operations
            .get(operation)
            .is_some_and(|op| op.state == OperationState::Open)
    };
    for operation in state.operations.values() {
        if operation.state != OperationState::Open {
            continue;
        }
        let has_part = state.has_part(operation, node);
        if operation.node != node {
            // Whether it is given up is for its node to say; of the children that are to live here, this one says what became of them.
            if has_part
                && !observed.operations.contains(&operation.id)
                && observed.is_usable(operation.snapshot)
            {
                actions.push(Action::Run(operation.id));
            }
            continue;
        }
        let running = observed.operations.contains(&operation.id);
        let give_up = |reason: &str, cancelled| Action::GiveUp {
            operation: operation.id,
            reason: reason.to_owned(),
            cancelled,
            running,
        };
        if is_past_return(state, operation, observed) {
            if !running && observed.is_usable(operation.snapshot) {
                actions.push(Action::Run(operation.id));
            }
        } else if operation.cancel_requested {
            actions.push(give_up("it was cancelled", true));
        } else if !has_part {
            // Others are at theirs.
        } else if !running && now > operation.expires_at {
            actions.push(give_up(
                "its node was away until it was too late to begin",
                false,
            ));
        } else if !running && observed.is_usable(operation.snapshot) {
            actions.push(Action::Run(operation.id));
        }
    }
    for operation in observed
        .operations
        .iter()
        .filter(|operation| !open(operation))
    {
        actions.push(Action::GiveUp {
            operation: *operation,
            reason: "it ended without this node".to_owned(),
            cancelled: false,
            running: true,
        });
    }
    actions
}

#[derive(Debug, Default)]
struct Step {
    action: Option<Action>,
    report: Option<VmReport>,
}

impl Step {
    fn act(action: Action) -> Self {
        Self {
            action: Some(action),
            report: None,
        }
    }

    /// Says how a VM is, unless the state says so already.
    fn report(vm: &Vm, seen: &Seen, phase: Phase, reason: &str) -> Self {
        Self::report_next(vm, seen, phase, reason, None)
    }

    /// The same of one that may be started again at some time.
    fn report_next(
        vm: &Vm,
        seen: &Seen,
        phase: Phase,
        reason: &str,
        next_start: Option<Millis>,
    ) -> Self {
        let past = &seen.past;
        let report = VmReport {
            vm: vm.id,
            boot: vm.boot,
            phase,
            reason: reason.to_owned(),
            ending: past.last.as_ref().map(convert::ending),
            // What was counted is of the boot that ended last.
            restarts: if past.boot == vm.boot {
                past.restarts
            } else {
                0
            },
            next_start,
        };
        let known = vm.phase == phase
            && vm.reported_boot == vm.boot
            && vm.reason == reason
            && (report.ending.is_none() || vm.ending == report.ending)
            && vm.restarts == report.restarts
            && vm.next_start == next_start;
        Self {
            action: None,
            report: (!known).then_some(report),
        }
    }
}

fn plan_vm(state: &State, vm: &Vm, seen: Option<&Seen>, now: Millis) -> Step {
    let absent = Seen {
        busy: false,
        has_run: false,
        held: false,
        past: Past::default(),
        has_group_card: false,
        is: Is::Absent,
    };
    // It ran here in this boot. From its image it would be started as another VM.
    let nothing_is_left = seen.is_none()
        && vm.reported_boot == vm.boot
        && matches!(vm.phase, Phase::Running | Phase::Paused)
        && matches!(vm.power, Power::Running | Power::Paused);
    let seen = seen.unwrap_or(&absent);
    if seen.busy || seen.is == Is::Unknown {
        return Step::default();
    }
    // A child of a fork that is under way belongs to its operation until it is known what became of it.
    let being_forked = vm
        .operation
        .and_then(|id| state.operations.get(&id))
        .is_some_and(|operation| {
            operation.state == OperationState::Open && vm.phase == Phase::Pending && vm.boot == 1
        });
    if being_forked {
        return Step::default();
    }
    if nothing_is_left {
        return Step::report(vm, seen, Phase::Failed, NOTHING_LEFT);
    }
    match (&seen.is, vm.power) {
        (Is::Unknown, _) => Step::default(),
        (Is::Absent | Is::Ended { .. }, Power::Suspended) => {
            Step::report(vm, seen, Phase::Suspended, &vm.reason)
        }
        (Is::Absent, Power::Stopped { .. }) => Step::report(vm, seen, Phase::Stopped, ""),
        (Is::Absent, _) => start(vm, seen),
        (Is::Ended { end, .. }, Power::Stopped { .. }) => {
            Step::report(vm, seen, Phase::Stopped, &end.detail)
        }
        (Is::Ended { boot, .. }, _) if *boot < vm.boot => start(vm, seen),
        (Is::Ended { end, .. }, _) => ended(vm, seen, end, now),
        (Is::Booting { boot } | Is::Running { boot } | Is::Paused { boot }, power) => {
            process(vm, seen, *boot, power)
        }
    }
}

/// It ended, and nobody asked for that, or for another start.
fn ended(vm: &Vm, seen: &Seen, end: &End, now: Millis) -> Step {
    // A fork that never ran has no disk of its own to start from, and whoever asked for it was told that it failed.
    let may_start = seen.has_run || vm.disk.is_some() || vm.source == Source::Image;
    match verdict(vm.spec.restart, end, seen.past.in_a_row, now) {
        Verdict::Start if may_start => Step::act(Action::Boot {
            vm: vm.id,
            boot: vm.boot,
        }),
        Verdict::Wait { until, wait } if may_start => {
            let (detail, times) = (&end.detail, seen.past.restarts + 1);
            let seconds = wait / 1000;
            let reason =
                format!("{detail}; starting again {seconds} s after that (restart {times})");
            Step::report_next(vm, seen, Phase::Restarting, &reason, Some(until))
        }
        Verdict::Stay | Verdict::Start | Verdict::Wait { .. } => {
            let phase = if end.is_orderly() {
                Phase::Stopped
            } else {
                Phase::Failed
            };
            Step::report(vm, seen, phase, &end.detail)
        }
    }
}

/// It has a process.
fn process(vm: &Vm, seen: &Seen, boot: u64, power: Power) -> Step {
    match (&seen.is, power) {
        (_, Power::Stopped { force: true }) => Step::act(Action::Kill(vm.id)),
        // Its moment is on disk, which makes this one a thing of the past.
        (_, Power::Suspended) => Step::act(Action::Kill(vm.id)),
        // A guest that stands still, or is not up yet, does not feel its power button.
        (Is::Paused { .. } | Is::Booting { .. }, Power::Stopped { .. }) => {
            Step::act(Action::Kill(vm.id))
        }
        (_, Power::Stopped { force: false }) => Step::act(Action::Stop(vm.id)),
        _ if boot < vm.boot => Step::act(Action::Kill(vm.id)),
        (Is::Running { .. }, Power::Running) => Step::report(vm, seen, Phase::Running, ""),
        (Is::Paused { .. }, Power::Paused) => Step::report(vm, seen, Phase::Paused, ""),
        (Is::Paused { .. }, Power::Running) => Step::act(Action::Resume(vm.id)),
        (Is::Running { .. }, Power::Paused) => Step::act(Action::Pause(vm.id)),
        // Its first boot is what everybody expects. It is paused once it is up.
        (Is::Booting { .. }, _) if vm.phase == Phase::Pending => Step::default(),
        (Is::Booting { .. }, _) => {
            let why = seen.past.last.as_ref().map_or("", |end| &end.detail);
            Step::report(vm, seen, Phase::Restarting, why)
        }
        (Is::Unknown | Is::Absent | Is::Ended { .. }, _) => Step::default(),
    }
}

fn start(vm: &Vm, seen: &Seen) -> Step {
    if vm.phase == Phase::Failed && vm.reported_boot == vm.boot {
        // Nobody asked for another try.
        return Step::default();
    }
    match vm.source {
        // One that came without a process has its disk.
        Source::Snapshot(snapshot) if !seen.has_run && vm.disk.is_none() => {
            Step::act(Action::Restore {
                vm: vm.id,
                boot: vm.boot,
                snapshot,
                paused: vm.power == Power::Paused,
            })
        }
        Source::Image | Source::Snapshot(_) => Step::act(Action::Boot {
            vm: vm.id,
            boot: vm.boot,
        }),
    }
}

#[cfg(test)]
mod tests;
