//! What depends on what, tombstones, and the end of snapshots.
//!
//! Removal has an order: tombstone in the state, the node deletes, the node reports, the record goes.

use std::{collections::BTreeSet, fmt::Display, sync::Arc};

use crate::state::{
    ids::{ImageId, NodeId, SnapshotId},
    model::{
        Life, Map, Millis, ObjectId, Operation, OperationKind, OperationState, Snapshot, State,
        Tombstone,
    },
    names,
    owners::{Actor, Owned},
    response::{Kind, Outcome, Rejection, Response},
};

/// How many dependents a rejection lists.
const LISTED: usize = 20;

/// What depends on a snapshot: the VMs that were started from it, the snapshots of those, maps that fork it, and operations that go
/// back to it. Each with its kind.
pub fn dependents_of_snapshot(state: &State, by: &Actor, id: SnapshotId) -> Vec<String> {
    let vms = state.vms.made_from(id);
    let snapshots = state.snapshots.values();
    let snapshots = snapshots.filter(|snapshot| snapshot.parent == Some(id));
    let resets = resets_to(state, id).map(|operation| {
        operation
            .is_seen_by(by)
            .then(|| format!("operation {}", operation.id))
    });
    let all = vms.map(|vm| label(vm, by));
    known(
        all.chain(snapshots.map(|snapshot| label(snapshot, by)))
            .chain(maps_of(state, id).map(|map| label(map, by)))
            .chain(resets),
    )
}

/// What an object is called in front of somebody; `None` when it is not there for this one.
fn label<T: Owned>(one: &Arc<T>, by: &Actor) -> Option<String> {
    let is_seen = one.ownership().is_seen_by(by);
    is_seen.then(|| format!("{} {}", T::KIND, one.name_for(by)))
}

/// Those that somebody knows, and how many others there are.
fn known(all: impl Iterator<Item = Option<String>>) -> Vec<String> {
    let (mut known, mut others) = (Vec::new(), 0);
    for one in all {
        match one {
            Some(one) => known.push(one),
            None => others += 1,
        }
    }
    if others > 0 {
        known.push(format!("{others} of other owners"));
    }
    known
}

/// Operations under way that set a VM to a snapshot.
fn resets_to(state: &State, id: SnapshotId) -> impl Iterator<Item = &Arc<Operation>> + '_ {
    let to_it = move |operation: &&Arc<Operation>| {
        operation.kind == OperationKind::Reset
            && operation.snapshot == id
            && operation.state == OperationState::Open
    };
    state.operations.values().filter(to_it)
}

/// Maps that run on a snapshot.
fn maps_of(state: &State, id: SnapshotId) -> impl Iterator<Item = &Arc<Map>> + '_ {
    let maps = state.maps.values();
    maps.filter(move |map| map.is_running() && map.snapshot == id)
}

/// What depends on an image: the VMs and snapshots that were made from it. Each with its kind.
pub fn dependents_of_image(state: &State, by: &Actor, id: ImageId) -> Vec<String> {
    let vms = state.vms.values().filter(|vm| vm.spec.image == id);
    let snapshots = state.snapshots.values();
    let snapshots = snapshots.filter(|snapshot| snapshot.spec.image == id);
    let all = vms.map(|vm| label(vm, by));
    known(all.chain(snapshots.map(|snapshot| label(snapshot, by))))
}

pub(super) fn refuse_dependents(
    kind: Kind,
    name: &str,
    mut dependents: Vec<String>,
) -> Result<(), Rejection> {
    if dependents.is_empty() {
        return Ok(());
    }
    if dependents.len() > LISTED {
        let more = dependents.len() - LISTED;
        dependents.truncate(LISTED);
        dependents.push(format!("{more} more"));
    }
    Err(Rejection::InUse {
        kind,
        name: name.to_owned(),
        dependents,
    })
}

pub(super) fn id_taken(kind: Kind, id: impl Display) -> Rejection {
    Rejection::WrongState {
        kind,
        name: id.to_string(),
        problem: "exists or existed already".to_owned(),
    }
}

/// Leaves a tombstone for the nodes that hold something of an object.
pub(super) fn bury(
    state: &mut State,
    now: Millis,
    object: ObjectId,
    name: &str,
    nodes: &BTreeSet<NodeId>,
) {
    if !nodes.is_empty() {
        let tombstone = Tombstone {
            name: name.to_owned(),
            nodes: nodes.clone(),
            created_at: now,
        };
        state.tombstones.insert(object, tombstone);
    }
}

fn has_dependents(state: &State, id: SnapshotId) -> bool {
    state.vms.made_from(id).next().is_some()
        || state
            .snapshots
            .values()
            .any(|snapshot| snapshot.parent == Some(id))
        || resets_to(state, id).next().is_some()
        || maps_of(state, id).next().is_some()
}

/// Whether the operation that makes a snapshot is still under way.
pub(super) fn is_being_made(state: &State, snapshot: &Snapshot) -> bool {
    state
        .operations
        .get(&snapshot.operation)
        .is_some_and(|operation| operation.state == OperationState::Open)
}

/// Removes a snapshot, whatever depends on it.
pub(super) fn remove_snapshot(
    state: &mut State,
    now: Millis,
    id: SnapshotId,
) -> Option<Arc<Snapshot>> {
    let snapshot = state.snapshots.remove(&id)?;
    bury(
        state,
        now,
        ObjectId::Snapshot(id),
        &snapshot.shown_name(),
        &snapshot.nodes,
    );
    Some(snapshot)
}

/// Removes a snapshot that nobody named or has for a time, nor a VM's schedule keeps, or that never became ready, once nothing depends on it; then the ones it came
/// from in the same way.
pub(super) fn collect(state: &mut State, now: Millis, from: Option<SnapshotId>) {
    let mut next = from;
    while let Some(id) = next {
        let Some(snapshot) = state.snapshots.get(&id) else {
            return;
        };
        let is_kept =
            snapshot.name.is_some() || snapshot.is_scheduled || snapshot.life != Life::Unbounded;
        let wanted = is_kept && snapshot.content.is_some();
        if wanted || is_being_made(state, snapshot) || has_dependents(state, id) {
            return;
        }
        next = remove_snapshot(state, now, id).and_then(|snapshot| snapshot.parent);
    }
}

pub(super) fn delete_snapshot(
    state: &mut State,
    by: &Actor,
    now: Millis,
    snapshot: &str,
) -> Outcome {
    let snapshot = Arc::clone(names::snapshot(state, by, snapshot)?);
    snapshot.check_ruled_by(by)?;
    let name = snapshot.shown_name();
    if is_being_made(state, &snapshot) {
        return Err(Rejection::WrongState {
            kind: Kind::Snapshot,
            name,
            problem: format!(
                "is being made: cancel operation {} instead",
                snapshot.operation
            ),
        });
    }
    refuse_dependents(
        Kind::Snapshot,
        &name,
        dependents_of_snapshot(state, by, snapshot.id),
    )?;
    remove_snapshot(state, now, snapshot.id);
    collect(state, now, snapshot.parent);
    Ok(Response::DeletedSnapshot(snapshot.id))
}

/// Never refused: the snapshot may be gone.
pub(super) fn lost_snapshot(
    state: &mut State,
    now: Millis,
    id: SnapshotId,
    node: NodeId,
    reason: &str,
) -> Outcome {
    if let Some(snapshot) = state.snapshots.get_mut(&id)
        && snapshot.nodes.contains(&node)
    {
        let snapshot = Arc::make_mut(snapshot);
        snapshot.nodes.remove(&node);
        reason.clone_into(&mut snapshot.lost);
        if snapshot.nodes.is_empty() {
            collect(state, now, Some(id));
        }
    }
    Ok(Response::Done)
}

/// Never refused: what is gone is gone.
pub(super) fn purged(state: &mut State, node: NodeId, objects: &[ObjectId]) -> Outcome {
    for object in objects {
        if let Some(tombstone) = state.tombstones.get_mut(object) {
            tombstone.nodes.remove(&node);
            if tombstone.nodes.is_empty() {
                state.tombstones.remove(object);
            }
        }
    }
    Ok(Response::Done)
}
