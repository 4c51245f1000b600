//! The beginning of captures and forks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    check_labels, invalid, life,
    placement::{self, Wanted},
    removal, replicas, reset, settings, snapshot,
};
use crate::state::{
    MAX_CHILDREN,
    command::{Candidate, Command, ForkSource, Placing},
    ids::{DERIVED_IDS, NodeId, OperationId, SnapshotId, VmId},
    model::{
        Accelerator, CaptureMode, Content, Life, Millis, ObjectId, Operation, OperationKind,
        OperationState, Phase, Place, Power, Snapshot, Source, State, Vm, VmSpec,
    },
    names,
    owners::{Actor, Captured, Owned as _, Ownership},
    quotas::Usage,
    response::{Kind, Outcome, Rejection, Response},
};

pub(super) fn create_snapshot(
    state: &mut State,
    by: &Actor,
    now: Millis,
    command: &Command,
) -> Outcome {
    let Command::CreateSnapshot {
        operation,
        vm,
        name,
        mode,
        life: how_long,
        replicas,
        candidates,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    check_operation_id(state, *operation, 0)?;
    names::check_owner("owner", &by.owner)?;
    life::check(state, by, &by.owner, now, *how_long)?;
    let vm = Arc::clone(names::vm(state, by, vm)?);
    check_capturable(state, &vm)?;
    if let Some(name) = name {
        snapshot::check_name(state, name, &by.owner, None)?;
    }
    state.check_quota(&by.owner, Usage::of_snapshot())?;
    let copies = match replicas {
        0 => BTreeSet::new(),
        wanted => replicas::of_capture(state, vm.node, *wanted, candidates)?,
    };
    let begun = Begun {
        kind: OperationKind::Snapshot,
        owner: by.owner.clone(),
        mode: *mode,
        count: 0,
        paused: false,
        to: None,
        expires_at: *expires_at,
        group: None,
    };
    let begun = begin_capture(state, now, *operation, &vm, name.clone(), begun);
    if let Some(snapshot) = state.snapshots.get_mut(&operation.snapshot()) {
        let snapshot = Arc::make_mut(snapshot);
        snapshot.life = *how_long;
        (snapshot.replicas, snapshot.copies) = (*replicas, copies);
    }
    begun
}

pub(super) fn fork(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::Fork {
        operation,
        source,
        count,
        name,
        mode,
        paused,
        labels,
        settings,
        by_guest,
        has_secrets,
        placing,
        constraints,
        candidates,
        life: how_long,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    if !(1..=MAX_CHILDREN).contains(count) {
        return Err(invalid("count", format!("must be 1 to {MAX_CHILDREN}")));
    }
    check_operation_id(state, *operation, *count)?;
    check_labels(labels)?;
    placement::check(constraints)?;
    settings::check(settings)?;
    life::check(state, by, &by.owner, now, *how_long)?;
    names::check_owner("owner", &by.owner)?;
    let origin = origin(state, by, *operation, source, candidates)?;
    if *by_guest {
        check_right(state, &origin, *count)?;
    }
    // What a machine forks of itself is its VM's owner's.
    let owner = match (by_guest, &origin.captured) {
        (true, Some(vm)) => vm.ownership.owner.clone(),
        _ => by.owner.clone(),
    };
    let moment = origin.moment(state);
    let wanted = Wanted {
        by,
        labels,
        constraints,
        candidates,
        count: *count,
    };
    let places = placement::of_forks(state, &moment, placing, &wanted)?;
    let names = child_names(state, &owner, name.as_deref(), &origin.prefix, *count)?;

    let template = Vm {
        labels: labels.clone(),
        power: if *paused {
            Power::Paused
        } else {
            Power::Running
        },
        settings: settings.clone(),
        by_guest: *by_guest,
        has_secrets: *has_secrets,
        life: *how_long,
        own_bytes: moment.own_bytes(),
        ..origin.first_child(*operation, &owner, now)
    };
    state.check_quota(&owner, origin.usage(*count))?;
    let children = names.into_iter().zip(places);
    let children = children.map(|(name, node)| Vm {
        name,
        node,
        ..template.clone()
    });
    let begun = Begun {
        kind: OperationKind::Fork,
        owner,
        mode: *mode,
        count: *count,
        paused: *paused,
        to: None,
        expires_at: *expires_at,
        group: None,
    };
    make(state, now, *operation, &origin, children.collect(), begun)
}

/// Begins a fork that nothing is in the way of. `children`: how they differ from each other, in their order.
pub(super) fn make(
    state: &mut State,
    now: Millis,
    operation: OperationId,
    origin: &Origin,
    children: Vec<Vm>,
    begun: Begun,
) -> Outcome {
    if let Some(vm) = &origin.captured {
        add_capture(state, now, operation, vm, &begun.owner, None);
    }
    let count = children.len() as u32;
    for (index, child) in (0..count).zip(children) {
        let id = operation.child(index);
        let place = Some(Place { index, count });
        state.vms.insert(id, Arc::new(Vm { id, place, ..child }));
    }
    let worked_on = WorkedOn {
        vm: origin.captured.as_ref().map(|vm| vm.id),
        snapshot: origin.snapshot,
        node: origin.node,
        to: None,
    };
    begin(state, now, operation, worked_on, begun)
}

/// Where forks would go now; of those that are made later, nothing is said by that.
pub fn places_of_fork(
    state: &State,
    source: &ForkSource,
    placing: &Placing,
    wanted: &Wanted<'_>,
) -> Result<Vec<NodeId>, Rejection> {
    let origin = origin(state, wanted.by, OperationId(0), source, wanted.candidates)?;
    placement::of_forks(state, &origin.moment(state), placing, wanted)
}

/// Where a VM that has, or is to have, a process can go on, of these nodes: the best one first. `content`: what it would go on from, where
/// it was captured before.
pub(super) fn place_of_moved(
    state: &State,
    vm: &Arc<Vm>,
    content: Option<&Content>,
    placing: &Placing,
    wanted: &Wanted<'_>,
) -> Result<Vec<NodeId>, Rejection> {
    let origin = Origin {
        content: content.cloned(),
        ..Origin::of_vm(Arc::clone(vm), OperationId(0))
    };
    placement::of_forks(state, &origin.moment(state), placing, wanted)
}

/// What the names of forks begin with whose snapshot has no name that may be said.
const NAMELESS: &str = "fork";

/// What children come from.
pub(super) struct Origin {
    /// The VM to capture first; `None` when a snapshot is forked.
    captured: Option<Arc<Vm>>,
    snapshot: SnapshotId,
    parent: Captured,
    /// What the children's names begin with when nobody says it.
    prefix: String,
    spec: VmSpec,
    family: Option<VmId>,
    lineage: VmId,
    /// Where it is, or one of the nodes that hold it.
    node: NodeId,
    /// All nodes that hold it.
    holders: BTreeSet<NodeId>,
    /// What a snapshot was captured with.
    content: Option<Content>,
}

impl Origin {
    /// A VM, which is captured first.
    pub(super) fn of_vm(vm: Arc<Vm>, operation: OperationId) -> Self {
        Self {
            prefix: vm.name.clone(),
            snapshot: operation.snapshot(),
            parent: Captured::of(&vm),
            spec: vm.spec.clone(),
            family: vm.family,
            lineage: vm.lineage,
            node: vm.node,
            holders: BTreeSet::from([vm.node]),
            content: None,
            captured: Some(vm),
        }
    }

    /// What a fork of it takes of an owner's quota.
    pub(super) fn usage(&self, count: u32) -> Usage {
        let kept = match self.captured {
            Some(_) => Usage::of_snapshot(),
            None => Usage::default(),
        };
        let each = Usage {
            vms: 1,
            cpus: u64::from(self.spec.cpus),
            memory_bytes: self.spec.memory_bytes,
            disk_bytes: self.spec.disk_bytes,
            ..Usage::default()
        };
        each.times(count).plus(kept)
    }

    /// The first of the children that an operation makes of it, as far as they are all alike.
    pub(super) fn first_child(&self, operation: OperationId, owner: &str, now: Millis) -> Vm {
        let id = operation.child(0);
        let (name, source) = (self.prefix.clone(), Source::Snapshot(self.snapshot));
        // Others' line is not gone on with: what its guests may do is theirs.
        let family = match self.family {
            Some(_) if self.parent.owner != owner => Some(id),
            family => family,
        };
        Vm {
            parent: Some(self.parent.clone()),
            operation: Some(operation),
            family,
            lineage: self.lineage,
            ..Vm::new(id, name, owner, self.node, self.spec.clone(), source, now)
        }
    }

    /// What is restored, and what that takes. A VM is captured as its node runs it.
    pub(super) fn moment(&self, state: &State) -> placement::Moment<'_> {
        let capacity = state
            .nodes
            .get(&self.node)
            .and_then(|node| node.capacity.as_ref());
        let accelerator = match (self.spec.accelerator, capacity) {
            (Accelerator::Auto, Some(capacity)) => capacity.accelerators.first().copied(),
            (asked, _) => Some(asked),
        };
        let (accelerator, processor, qemu_version) = match (&self.content, capacity) {
            (Some(content), _) => (
                content.accelerator,
                content.processor.clone(),
                content.qemu_version.clone(),
            ),
            (None, Some(capacity)) => (
                accelerator.unwrap_or(Accelerator::Auto),
                capacity.processor.clone(),
                capacity.qemu_version.clone(),
            ),
            (None, None) => (Accelerator::Auto, String::new(), String::new()),
        };
        placement::Moment {
            node: self.node,
            holders: &self.holders,
            lineage: self.lineage,
            spec: &self.spec,
            content: self.content.as_ref(),
            accelerator,
            processor,
            qemu_version,
        }
    }
}

fn origin(
    state: &State,
    by: &Actor,
    operation: OperationId,
    source: &ForkSource,
    candidates: &[Candidate],
) -> Result<Origin, Rejection> {
    match source {
        ForkSource::Vm(vm) => {
            let vm = Arc::clone(names::vm(state, by, vm)?);
            check_capturable(state, &vm)?;
            Ok(Origin::of_vm(vm, operation))
        }
        ForkSource::Snapshot { snapshot, vm } => {
            let snapshot = match vm {
                Some(vm) => names::snapshot_of(state, by, snapshot, Some(vm))?,
                None => names::snapshot(state, by, snapshot)?,
            };
            let refuse = |problem: &str| Rejection::WrongState {
                kind: Kind::Snapshot,
                name: snapshot.shown_name(),
                problem: problem.to_owned(),
            };
            let Some(content) = &snapshot.content else {
                return Err(refuse("is not ready: its capture is under way or failed"));
            };
            // One that is there, if there is one.
            let mut holders = snapshot.nodes.iter();
            let holder = holders.find(|node| {
                let mut online = candidates.iter();
                online.any(|candidate| candidate.node == **node)
            });
            let node = holder.or(snapshot.nodes.first()).ok_or_else(|| {
                refuse(&format!(
                    "is lost: no node holds it any more ({})",
                    snapshot.lost
                ))
            })?;
            // The VM's name is for who may know of that.
            let prefix = match (snapshot.vm.is_seen_by(state, by), &snapshot.name) {
                (true, _) => &snapshot.vm.name,
                (false, Some(name)) => name,
                (false, None) => NAMELESS,
            };
            Ok(Origin {
                prefix: prefix.to_owned(),
                captured: None,
                snapshot: snapshot.id,
                parent: snapshot.vm.clone(),
                spec: snapshot.spec.clone(),
                family: snapshot.family,
                lineage: snapshot.lineage,
                node: *node,
                holders: snapshot.nodes.clone(),
                content: Some(content.clone()),
            })
        }
    }
}

/// Refuses a fork that a guest asks for: it forks itself only, where it may, and while its family has room.
fn check_right(state: &State, origin: &Origin, count: u32) -> Result<(), Rejection> {
    let Some(vm) = &origin.captured else {
        return Err(invalid("source", "a guest can fork its own VM only"));
    };
    let Some(family) = vm.family else {
        return Err(Rejection::WrongState {
            kind: Kind::Vm,
            name: vm.name.clone(),
            problem: "may not fork itself: it was made without --allow-self-fork".to_owned(),
        });
    };
    let alive = state
        .vms
        .values()
        .filter(|member| member.family == Some(family) && member.takes_a_place())
        .count();
    let most = vm.spec.self_fork;
    if alive as u64 + u64::from(count) > u64::from(most) {
        let room = u64::from(most).saturating_sub(alive as u64);
        return Err(Rejection::NoCapacity {
            short: count - (room as u32).min(count),
            wanted: count,
            reasons: vec![format!(
                "guests of the family of VM {:?} may make {most} VMs, {alive} of theirs are alive, and {count} more are wanted",
                vm.name
            )],
        });
    }
    Ok(())
}

pub(super) fn check_capturable(state: &State, vm: &Vm) -> Result<(), Rejection> {
    reset::check_free(state, vm)?;
    let problem = match (vm.power, vm.phase) {
        (Power::Suspended, _) | (_, Phase::Suspended) => "is suspended: resume it first",
        (Power::Stopped { .. }, _) => {
            "is stopped or being stopped: only a running VM can be captured"
        }
        (Power::Running | Power::Paused, Phase::Running | Phase::Paused) => return Ok(()),
        (Power::Running | Power::Paused, Phase::Pending) => {
            "is not up yet: wait until it is running"
        }
        (Power::Running | Power::Paused, Phase::Restarting) => {
            "is being started again: wait until it is running"
        }
        (Power::Running | Power::Paused, Phase::Stopped | Phase::Failed) => {
            "is not running: start it first"
        }
    };
    Err(Rejection::WrongState {
        kind: Kind::Vm,
        name: vm.name.clone(),
        problem: problem.to_owned(),
    })
}

/// Refuses an operation whose id, or an id that derives from it, was used before.
pub(super) fn check_operation_id(
    state: &State,
    operation: OperationId,
    count: u32,
) -> Result<(), Rejection> {
    if !operation.0.is_multiple_of(DERIVED_IDS) {
        return Err(invalid(
            "operation",
            format!("must be a multiple of {DERIVED_IDS}"),
        ));
    }
    let children = operation.child(0)..operation.child(count);
    let buried = ObjectId::Vm(children.start)..ObjectId::Vm(children.end);
    let snapshot = operation.snapshot();
    if state.operations.contains_key(&operation)
        || state.snapshots.contains_key(&snapshot)
        || state.tombstones.contains_key(&ObjectId::Snapshot(snapshot))
        || state.vms.range(children).next().is_some()
        || state.tombstones.range(buried).next().is_some()
    {
        return Err(removal::id_taken(Kind::Operation, operation));
    }
    Ok(())
}

/// The names of a fork's children: a single one is named as asked, several get numbers; without a name the parent's is the
/// prefix and the free numbers follow.
fn child_names(
    state: &State,
    owner: &str,
    asked: Option<&str>,
    parent: &str,
    count: u32,
) -> Result<Vec<String>, Rejection> {
    let is_taken = |name: &String| state.vms.named(owner, name).is_some();
    let names: Vec<String> = match asked {
        Some(name) => {
            names::check_name("name", name)?;
            let names: Vec<String> = match count {
                1 => vec![name.to_owned()],
                _ => (1..=count)
                    .map(|number| format!("{name}-{number}"))
                    .collect(),
            };
            if let Some(name) = names.iter().find(|name| is_taken(name)) {
                return Err(Rejection::NameTaken {
                    kind: Kind::Vm,
                    name: name.clone(),
                });
            }
            names
        }
        None => {
            let mut taken = state.vms.numbers_of(owner, parent).peekable();
            (1u32..)
                .filter(|number| taken.next_if_eq(number).is_none())
                .map(|number| format!("{parent}-{number}"))
                .take(count as usize)
                .collect()
        }
    };
    check_names(&names)?;
    Ok(names)
}

/// Refuses names that are too long: what they were made from is not.
pub(super) fn check_names(all: &[String]) -> Result<(), Rejection> {
    if let Some(name) = all.iter().find(|name| !names::is_valid(name)) {
        let problem = format!(
            "the name {name:?} would be longer than {} letters",
            names::MAX_NAME
        );
        return Err(invalid("name", problem));
    }
    Ok(())
}

/// Notes the snapshot that an operation makes.
fn add_capture(
    state: &mut State,
    now: Millis,
    operation: OperationId,
    vm: &Vm,
    owner: &str,
    name: Option<String>,
) {
    let snapshot = Snapshot {
        id: operation.snapshot(),
        name,
        ownership: Ownership::of(owner),
        vm: Captured::of(vm),
        parent: match vm.source {
            Source::Image => None,
            Source::Snapshot(parent) => Some(parent),
        },
        nodes: BTreeSet::new(),
        spec: vm.spec.clone(),
        family: vm.family,
        member: vm.group.as_ref().map(|group| group.number),
        lineage: vm.lineage,
        operation,
        content: None,
        lost: String::new(),
        warm: 0,
        replicas: 0,
        copies: BTreeSet::new(),
        is_scheduled: false,
        life: Life::Unbounded,
        created_at: now,
    };
    state.snapshots.insert(snapshot.id, Arc::new(snapshot));
}

/// How an operation is begun.
pub(super) struct Begun {
    pub(super) kind: OperationKind,
    pub(super) owner: String,
    pub(super) mode: CaptureMode,
    pub(super) count: u32,
    pub(super) paused: bool,
    /// Where a VM is moved to.
    pub(super) to: Option<NodeId>,
    pub(super) expires_at: Millis,
    /// The first of the forks that a group's fork is made of.
    pub(super) group: Option<OperationId>,
}

/// Begins an operation that captures a VM.
pub(super) fn begin_capture(
    state: &mut State,
    now: Millis,
    id: OperationId,
    vm: &Vm,
    name: Option<String>,
    begun: Begun,
) -> Outcome {
    add_capture(state, now, id, vm, &begun.owner, name);
    let worked_on = WorkedOn {
        vm: Some(vm.id),
        snapshot: id.snapshot(),
        node: vm.node,
        to: begun.to,
    };
    begin(state, now, id, worked_on, begun)
}

/// What an operation works on, and where.
pub(super) struct WorkedOn {
    /// The VM that is captured or set back.
    pub(super) vm: Option<VmId>,
    pub(super) snapshot: SnapshotId,
    pub(super) node: NodeId,
    /// Where a VM is moved to.
    pub(super) to: Option<NodeId>,
}

/// Begins an operation.
pub(super) fn begin(
    state: &mut State,
    now: Millis,
    id: OperationId,
    on: WorkedOn,
    begun: Begun,
) -> Outcome {
    let operation = Operation {
        id,
        owner: begun.owner,
        kind: begun.kind,
        state: OperationState::Open,
        vm: on.vm,
        snapshot: on.snapshot,
        mode: begun.mode,
        count: begun.count,
        paused: begun.paused,
        results: BTreeMap::new(),
        node: on.node,
        created_at: now,
        to: on.to,
        expires_at: begun.expires_at,
        ended_at: None,
        cancel_requested: false,
        group: begun.group,
    };
    state.operations.insert(id, Arc::new(operation));
    Ok(Response::Operation(id))
}
