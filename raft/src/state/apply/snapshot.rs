//! Snapshots that are there: their names, how many forks are kept ready, how safe they are.

use std::sync::Arc;

use super::{invalid, schedule};
use crate::state::{
    MAX_CHILDREN,
    ids::{NodeId, SnapshotId},
    model::{Checksums, Content, Millis, Safety, Snapshot, State},
    names,
    owners::{Actor, Owned as _},
    response::{Kind, Outcome, Rejection, Response},
};

pub(super) fn tag(state: &mut State, by: &Actor, snapshot: &str, name: &str) -> Outcome {
    let found = names::snapshot(state, by, snapshot)?;
    found.check_ruled_by(by)?;
    let id = found.id;
    check_name(state, name, &found.ownership.owner, Some(id))?;
    if let Some(snapshot) = state.snapshots.get_mut(&id) {
        let snapshot = Arc::make_mut(snapshot);
        snapshot.name = Some(name.to_owned());
        // It is not for its VM's schedule any more to say how long it is kept.
        snapshot.is_scheduled = false;
    }
    Ok(Response::Snapshot(id))
}

/// Whether a snapshot of an owner may have this name.
pub(super) fn check_name(
    state: &State,
    name: &str,
    owner: &str,
    own: Option<SnapshotId>,
) -> Result<(), Rejection> {
    names::check_name("name", name)?;
    let is_other = |snapshot: &Arc<Snapshot>| {
        Some(snapshot.id) != own
            && snapshot.name.as_deref() == Some(name)
            && snapshot.ownership.owner == owner
    };
    if state.snapshots.values().any(is_other) {
        return Err(Rejection::NameTaken {
            kind: Kind::Snapshot,
            name: name.to_owned(),
        });
    }
    Ok(())
}

pub(super) fn warm(
    state: &mut State,
    by: &Actor,
    snapshot: &str,
    vm: Option<&str>,
    count: u32,
) -> Outcome {
    let found = names::snapshot_of(state, by, snapshot, vm)?;
    found.check_ruled_by(by)?;
    if count > MAX_CHILDREN {
        return Err(invalid("count", format!("must be 0 to {MAX_CHILDREN}")));
    }
    if found.content.is_none() {
        return Err(not_ready(snapshot));
    }
    let id = found.id;
    if let Some(snapshot) = state.snapshots.get_mut(&id) {
        Arc::make_mut(snapshot).warm = count;
    }
    Ok(Response::Snapshot(id))
}

/// Never refused: the snapshot may be gone.
pub(super) fn hold(state: &mut State, now: Millis, id: SnapshotId, node: NodeId) -> Outcome {
    let is_member = state.nodes.contains_key(&node);
    if let Some(snapshot) = state.snapshots.get_mut(&id)
        && snapshot.content.is_some()
        && is_member
    {
        Arc::make_mut(snapshot).nodes.insert(node);
    }
    schedule::prune_beside(state, now, id);
    Ok(Response::Done)
}

/// Never refused: the snapshot may be gone, or its layers others than when its node began.
pub(super) fn secure(
    state: &mut State,
    now: Millis,
    id: SnapshotId,
    node: NodeId,
    checksums: &Checksums,
) -> Outcome {
    let held = |snapshot: &Snapshot| {
        let fits = |content: &Content| content.layers.len() == checksums.layers.len();
        snapshot.nodes.contains(&node) && snapshot.content.as_ref().is_some_and(fits)
    };
    if let Some(snapshot) = state.snapshots.get_mut(&id).filter(|found| held(found))
        && let Some(content) = &mut Arc::make_mut(snapshot).content
    {
        content.safety = Safety::Disk(checksums.clone());
    }
    schedule::prune_beside(state, now, id);
    Ok(Response::Done)
}

fn not_ready(name: &str) -> Rejection {
    Rejection::WrongState {
        kind: Kind::Snapshot,
        name: name.to_owned(),
        problem: "is not ready".into(),
    }
}
