//! Snapshots that are there: their names, how many forks are kept ready, how safe they are.

use std::sync::Arc;

use super::invalid;
use crate::state::{
    MAX_CHILDREN,
    ids::{NodeId, SnapshotId},
    model::{Digests, Snapshot, State},
    names,
    response::{Kind, Outcome, Rejection, Response},
};

pub(super) fn tag(state: &mut State, snapshot: &str, name: &str) -> Outcome {
    let id = names::snapshot(state, snapshot)?.id;
    check_name(state, name, Some(id))?;
    if let Some(snapshot) = state.snapshots.get_mut(&id) {
        Arc::make_mut(snapshot).name = Some(name.to_owned());
    }
    Ok(Response::Snapshot(id))
}

/// Whether a snapshot may have this name.
pub(super) fn check_name(
    state: &State,
    name: &str,
    own: Option<SnapshotId>,
) -> Result<(), Rejection> {
    names::check_name("name", name)?;
    let is_other = |snapshot: &Arc<Snapshot>| {
        Some(snapshot.id) != own && snapshot.name.as_deref() == Some(name)
    };
    if state.snapshots.values().any(is_other) {
        return Err(Rejection::NameTaken {
            kind: Kind::Snapshot,
            name: name.to_owned(),
        });
    }
    Ok(())
}

pub(super) fn warm(state: &mut State, snapshot: &str, vm: Option<&str>, count: u32) -> Outcome {
    let found = names::snapshot_of(state, snapshot, vm)?;
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

pub(super) fn secure(
    state: &mut State,
    id: SnapshotId,
    node: NodeId,
    digests: &Digests,
) -> Outcome {
    let Some(snapshot) = state.snapshots.get_mut(&id) else {
        return Err(Rejection::NotFound {
            kind: Kind::Snapshot,
            name: id.to_string(),
        });
    };
    if !snapshot.nodes.contains(&node) {
        return Err(Rejection::WrongState {
            kind: Kind::Snapshot,
            name: id.to_string(),
            problem: "is not on this node".into(),
        });
    }
    let layers = snapshot
        .content
        .as_ref()
        .map(|content| content.layers.len());
    if layers != Some(digests.layers.len()) {
        return Err(not_ready(&id.to_string()));
    }
    if snapshot.digests.is_none() {
        Arc::make_mut(snapshot).digests = Some(digests.clone());
    }
    Ok(Response::Snapshot(id))
}

fn not_ready(name: &str) -> Rejection {
    Rejection::WrongState {
        kind: Kind::Snapshot,
        name: name.to_owned(),
        problem: "is not ready".into(),
    }
}
