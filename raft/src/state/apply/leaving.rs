//! Nodes that leave the cluster, and what is given up with them. After that nothing that goes on refers to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{map, operation, removal, replicas, vm};
use crate::state::{
    KEPT_REMOVED,
    ids::{ImageId, NodeId, OperationId, SnapshotId, VmId},
    model::{
        Image, LostVm, Millis, Node, ObjectId, OperationState, RemovedNode, Snapshot, State, Vm,
    },
    names,
    owners::{Actor, Owned as _},
    response::{Kind, Outcome, Rejection, Response},
};

pub(super) fn delete_node(
    state: &mut State,
    by: &Actor,
    now: Millis,
    node: &str,
    force: bool,
) -> Outcome {
    let node = Arc::clone(names::node(state, node)?);
    let stays = |other: &Arc<Node>| other.id != node.id && other.has_started();
    if node.has_started() && !state.nodes.values().any(stays) {
        return Err(Rejection::WrongState {
            kind: Kind::Node,
            name: node.name.clone(),
            problem: "is the last node of the cluster: end its agent instead".to_owned(),
        });
    }
    if !force {
        removal::refuse_dependents(Kind::Node, &node.name, only_there(state, by, node.id))?;
    }
    remove(state, now, &node);
    Ok(Response::DeletedNode(node.id))
}

/// What would be lost with a node, each with its kind: its VMs, and snapshots and images that no other node holds.
fn only_there(state: &State, by: &Actor, node: NodeId) -> Vec<String> {
    let vms = state.vms.of(node);
    let snapshots = snapshots_of(state, node);
    let images = images_of(state, node);
    vms.map(|vm| format!("VM {}", vm.name_for(by)))
        .chain(
            snapshots
                .filter(|found| found.nodes.len() == 1)
                .map(|found| format!("snapshot {}", found.name_for(by))),
        )
        .chain(
            images
                .filter(|found| found.nodes.len() == 1)
                .map(|found| format!("image {}", found.name_for(by))),
        )
        .collect()
}

fn snapshots_of(state: &State, node: NodeId) -> impl Iterator<Item = &Arc<Snapshot>> {
    let held = move |found: &&Arc<Snapshot>| found.nodes.contains(&node);
    state.snapshots.values().filter(held)
}

fn images_of(state: &State, node: NodeId) -> impl Iterator<Item = &Arc<Image>> {
    let held = move |found: &&Arc<Image>| found.nodes.contains(&node);
    state.images.values().filter(held)
}

fn remove(state: &mut State, now: Millis, node: &Node) {
    let lost = format!("node {} was removed from the cluster", node.name);
    fail_operations(state, now, node.id, &lost);
    let vms = give_up_vms(state, now, node.id);
    let snapshots = give_up_snapshots(state, now, node.id, &lost);
    let images = give_up_images(state, node.id);
    forget(state, node.id);
    let removed = RemovedNode {
        name: node.name.clone(),
        removed_at: now,
        vms,
        snapshots,
        images,
    };
    state.removed.insert(node.id, Arc::new(removed));
    while state.removed.len() > KEPT_REMOVED {
        state.removed.pop_first();
    }
}

fn fail_operations(state: &mut State, now: Millis, node: NodeId, reason: &str) {
    let open: Vec<OperationId> = state
        .operations
        .values()
        .filter(|operation| operation.state == OperationState::Open)
        .filter(|operation| operation.node == node || operation.to == Some(node))
        .map(|operation| operation.id)
        .collect();
    for id in open {
        // What it answers is of no interest: it is open.
        let _failed = operation::fail_operation(state, now, id, reason, false);
    }
}

fn give_up_vms(state: &mut State, now: Millis, node: NodeId) -> BTreeMap<VmId, LostVm> {
    let theirs = state.vms.of(node);
    let lost = |vm: &Arc<Vm>| LostVm {
        name: vm.name.clone(),
        owner: vm.ownership.owner.clone(),
    };
    let given_up: BTreeMap<VmId, LostVm> = theirs.map(|vm| (vm.id, lost(vm))).collect();
    for id in given_up.keys() {
        vm::remove(state, now, *id);
    }
    given_up
}

/// Snapshots that no node holds any more stay listed as lost where somebody named them, or something depends on them.
fn give_up_snapshots(
    state: &mut State,
    now: Millis,
    node: NodeId,
    lost: &str,
) -> BTreeMap<SnapshotId, String> {
    let held: Vec<SnapshotId> = snapshots_of(state, node).map(|found| found.id).collect();
    let mut given_up = BTreeMap::new();
    for id in held {
        if let Some(found) = state.snapshots.get(&id)
            && found.nodes.len() == 1
        {
            given_up.insert(id, found.shown_name());
        }
        // It may have gone with another one.
        let _gone = removal::lost_snapshot(state, now, id, node, lost);
    }
    given_up
}

/// Images that no node holds any more stay listed where something depends on them.
fn give_up_images(state: &mut State, node: NodeId) -> BTreeMap<ImageId, String> {
    let held: Vec<ImageId> = images_of(state, node).map(|found| found.id).collect();
    let mut given_up = BTreeMap::new();
    for id in held {
        let Some(image) = state.images.get_mut(&id).map(Arc::make_mut) else {
            continue;
        };
        image.nodes.remove(&node);
        if image.nodes.is_empty() {
            given_up.insert(id, image.name.clone());
            if removal::dependents_of_image(state, &Actor::cluster(), id).is_empty() {
                state.images.remove(&id);
            }
        }
    }
    given_up
}

/// Removes a node that nothing lives on, and what waits for it.
fn forget(state: &mut State, node: NodeId) {
    state.nodes.remove(&node);
    replicas::forget_node(state, node);
    map::forget_node(state, node);
    state.tokens.retain(|_, token| token.node != Some(node));
    let waiting = state.tombstones.iter();
    let waiting: Vec<ObjectId> = waiting
        .filter(|(_, tombstone)| tombstone.nodes.contains(&node))
        .map(|(object, _)| *object)
        .collect();
    for object in waiting {
        let Some(tombstone) = state.tombstones.get_mut(&object) else {
            continue;
        };
        tombstone.nodes.remove(&node);
        if tombstone.nodes.is_empty() {
            state.tombstones.remove(&object);
        }
    }
}

/// A newcomer that has not started yet is no member any more: it tried again, gave up, or let its time pass.
pub(super) fn forget_newcomer(state: &mut State, node: NodeId) {
    if state
        .nodes
        .get(&node)
        .is_some_and(|node| !node.has_started())
    {
        forget(state, node);
    }
}

/// Never refused: there may be none.
pub(super) fn forget_newcomers(state: &mut State, now: Millis) -> Outcome {
    let late = |node: &&Arc<Node>| node.start_by.is_some_and(|end| end <= now);
    let late: BTreeSet<NodeId> = state
        .nodes
        .values()
        .filter(late)
        .map(|node| node.id)
        .collect();
    for node in late {
        forget_newcomer(state, node);
    }
    Ok(Response::Done)
}
