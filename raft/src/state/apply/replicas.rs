//! On which nodes copies of snapshots are to be: chosen here, when somebody asks for them and when the leader finds that a node is lost.
//! Those nodes fetch them; what others have besides stays.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::invalid;
use crate::state::{
    command::{Candidate, Command, Room},
    ids::{NodeId, SnapshotId},
    model::{Content, Node, Snapshot, State},
    names,
    owners::{Actor, Owned as _},
    response::{Kind, Outcome, Rejection, Response},
};

/// A load of 1, of memory.
const FULL: u128 = 1_000_000;

/// What copies are to be of.
pub(super) struct Copied<'a> {
    /// Nodes that are to have it and count first; where it is captured.
    pub first: &'a BTreeSet<NodeId>,
    /// Nodes that have it.
    pub holders: &'a BTreeSet<NodeId>,
    /// What is in it; `None` while it is to be captured.
    pub content: Option<&'a Content>,
}

pub(super) fn replicate(state: &mut State, by: &Actor, command: &Command) -> Outcome {
    let Command::ReplicateSnapshot {
        snapshot,
        vm,
        replicas,
        candidates,
    } = command
    else {
        unreachable!("called for this command only");
    };
    let found = Arc::clone(names::snapshot_of(state, by, snapshot, vm.as_deref())?);
    found.check_ruled_by(by)?;
    let refuse = |problem: String| Rejection::WrongState {
        kind: Kind::Snapshot,
        name: found.shown_name(),
        problem,
    };
    let content = found.content.as_ref();
    let content = content.ok_or_else(|| refuse("is not ready".to_owned()))?;
    let rooms = rooms(candidates);
    let is_online = |node: &&NodeId| rooms.contains_key(node);
    let online: BTreeSet<NodeId> = found.nodes.iter().filter(is_online).copied().collect();
    if online.is_empty() {
        return Err(refuse(match found.nodes.is_empty() {
            true => format!("is lost: no node holds it any more ({})", found.lost),
            false => "is on no node that is online: wait until one is back".to_owned(),
        }));
    }
    // Those that were chosen before, as far as they count.
    let first = found.copies.intersection(&online).copied().collect();
    let copied = Copied {
        first: &first,
        holders: &online,
        content: Some(content),
    };
    let copies = chosen(state, &copied, *replicas, &rooms)?;
    if let Some(snapshot) = state.snapshots.get_mut(&found.id) {
        let snapshot = Arc::make_mut(snapshot);
        (snapshot.replicas, snapshot.copies) = (*replicas, copies);
    }
    Ok(Response::Snapshot(found.id))
}

/// The nodes for copies of what is to be captured on a node.
pub(super) fn of_capture(
    state: &State,
    node: NodeId,
    replicas: u32,
    candidates: &[Candidate],
) -> Result<BTreeSet<NodeId>, Rejection> {
    let here = BTreeSet::from([node]);
    let copied = Copied {
        first: &here,
        holders: &here,
        content: None,
    };
    chosen(state, &copied, replicas, &rooms(candidates))
}

/// The same where fewer are better than none.
pub(super) fn as_many_as_there_are(
    state: &State,
    node: NodeId,
    replicas: u32,
    candidates: &[Candidate],
) -> BTreeSet<NodeId> {
    let here = BTreeSet::from([node]);
    let copied = Copied {
        first: &here,
        holders: &here,
        content: None,
    };
    pick(state, &copied, replicas, &rooms(candidates)).chosen
}

/// Never refused: what was to be replaced may have come back, or be gone.
pub(super) fn place(state: &mut State, candidates: &[Candidate], lost: &[NodeId]) -> Outcome {
    for (id, copies) in state.copies_to_replace(candidates, lost) {
        if let Some(snapshot) = state.snapshots.get_mut(&id) {
            Arc::make_mut(snapshot).copies = copies;
        }
    }
    Ok(Response::Done)
}

/// A node is no member any more.
pub(super) fn forget_node(state: &mut State, node: NodeId) {
    let theirs = state.snapshots.values();
    let theirs: Vec<SnapshotId> = theirs
        .filter(|snapshot| snapshot.copies.contains(&node))
        .map(|snapshot| snapshot.id)
        .collect();
    for id in theirs {
        if let Some(snapshot) = state.snapshots.get_mut(&id) {
            Arc::make_mut(snapshot).copies.remove(&node);
        }
    }
}

impl State {
    /// Snapshots of which copies are to be on other nodes than before, and on which: since some are lost (silent for too long, or no
    /// members any more). Where nobody can take a lost one's place it keeps it, and none is replaced while nobody could give it.
    pub fn copies_to_replace(
        &self,
        candidates: &[Candidate],
        lost: &[NodeId],
    ) -> Vec<(SnapshotId, BTreeSet<NodeId>)> {
        let rooms = rooms(candidates);
        let is_lost = |node: &NodeId| lost.contains(node);
        let mut replaced = Vec::new();
        for snapshot in self.snapshots.values() {
            let lacks = (snapshot.copies.len() as u64) < u64::from(snapshot.replicas);
            if snapshot.replicas < 2 || !(lacks || snapshot.copies.iter().any(is_lost)) {
                continue;
            }
            let is_there = |node: &&NodeId| rooms.contains_key(node) && !is_lost(node);
            let holders: BTreeSet<NodeId> =
                snapshot.nodes.iter().filter(is_there).copied().collect();
            if holders.is_empty() || snapshot.content.is_none() {
                continue;
            }
            let copies = self.replaced(snapshot, &holders, &rooms, lost);
            if copies != snapshot.copies {
                replaced.push((snapshot.id, copies));
            }
        }
        replaced
    }

    fn replaced(
        &self,
        snapshot: &Snapshot,
        holders: &BTreeSet<NodeId>,
        rooms: &BTreeMap<NodeId, Option<Room>>,
        lost: &[NodeId],
    ) -> BTreeSet<NodeId> {
        let stays = |node: &&NodeId| !lost.contains(node);
        let first: BTreeSet<NodeId> = snapshot.copies.iter().filter(stays).copied().collect();
        let copied = Copied {
            first: &first,
            holders,
            content: snapshot.content.as_ref(),
        };
        let wanted = snapshot.replicas;
        let mut copies = pick(self, &copied, wanted, rooms).chosen;
        let missing = (wanted as usize).saturating_sub(copies.len());
        let given_up = snapshot.copies.iter().filter(|node| lost.contains(node));
        copies.extend(given_up.take(missing));
        copies
    }
}

fn rooms(candidates: &[Candidate]) -> BTreeMap<NodeId, Option<Room>> {
    candidates.iter().map(|one| (one.node, one.room)).collect()
}

/// As many nodes as are wanted, or why there are not so many.
fn chosen(
    state: &State,
    copied: &Copied<'_>,
    wanted: u32,
    rooms: &BTreeMap<NodeId, Option<Room>>,
) -> Result<BTreeSet<NodeId>, Rejection> {
    if wanted == 0 {
        return Err(invalid("replicas", "must be 1 or more"));
    }
    let picked = pick(state, copied, wanted, rooms);
    if picked.chosen.len() as u64 >= u64::from(wanted) {
        return Ok(picked.chosen);
    }
    let possible = picked.chosen.len();
    let nodes = state.nodes.len();
    let mut reasons = vec![format!("{possible} of {nodes} nodes can hold one")];
    reasons.extend(picked.unfit);
    Err(Rejection::TooFewNodes { wanted, reasons })
}

struct Picked {
    chosen: BTreeSet<NodeId>,
    /// Why the others were not.
    unfit: Vec<String>,
}

/// Up to so many nodes: those that come first, those that have it, then those in zones that have few of the chosen, that could also run
/// it, and that have the least load.
fn pick(
    state: &State,
    copied: &Copied<'_>,
    wanted: u32,
    rooms: &BTreeMap<NodeId, Option<Room>>,
) -> Picked {
    let mut chosen: BTreeSet<NodeId> = BTreeSet::new();
    let (mut fit, mut unfit) = (Vec::new(), Vec::new());
    for node in state.nodes.values() {
        let is_there = copied.first.contains(&node.id) || copied.holders.contains(&node.id);
        match unfit_for(node, copied.content, rooms).filter(|_| !is_there) {
            Some(reason) => unfit.push(format!("{} {reason}", node.name)),
            None => fit.push(node),
        }
    }
    while (chosen.len() as u64) < u64::from(wanted) {
        let in_zone = |zone: &str| {
            let nodes = chosen.iter().filter_map(|node| state.nodes.get(node));
            nodes.filter(|node| node.zone() == zone).count()
        };
        let best = fit.iter().min_by_key(|node| {
            (
                !copied.first.contains(&node.id),
                !copied.holders.contains(&node.id),
                in_zone(node.zone()),
                !could_run(node, copied.content),
                load(state, node),
                Reverse(
                    rooms
                        .get(&node.id)
                        .copied()
                        .flatten()
                        .map(|room| room.disk_mib),
                ),
                node.id,
            )
        });
        let Some(best) = best.map(|node| node.id) else {
            break;
        };
        chosen.insert(best);
        fit.retain(|node| node.id != best);
    }
    Picked { chosen, unfit }
}

/// Why a node cannot be given a copy.
fn unfit_for(
    node: &Node,
    content: Option<&Content>,
    rooms: &BTreeMap<NodeId, Option<Room>>,
) -> Option<String> {
    let Some(room) = rooms.get(&node.id) else {
        return Some("is offline".to_owned());
    };
    if node.drain.is_some() {
        return Some("is being drained".to_owned());
    }
    if !node.schedulable {
        return Some("is cordoned".to_owned());
    }
    let needed = content.map_or(0, Content::bytes) >> 20;
    let free = room.map(|room| u64::from(room.disk_mib));
    free.filter(|free| *free <= needed)
        .map(|free| format!("has {free} MiB of disk left, and {} are needed", needed + 1))
}

/// Whether a node could run what is in a copy. One that cannot may hold it all the same.
fn could_run(node: &Node, content: Option<&Content>) -> bool {
    node.capacity.as_ref().is_some_and(|capacity| {
        content.is_none_or(|content| {
            capacity.qemu_version == content.qemu_version
                && capacity.accelerators.contains(&content.accelerator)
        })
    })
}

/// How much of a node's memory is promised, in millionths.
fn load(state: &State, node: &Node) -> u128 {
    let promised = state.vms.load_of(node.id).promised_bytes();
    let memory = node.capacity.as_ref();
    let memory = memory.map_or(1, |capacity| capacity.memory_bytes.max(1));
    u128::from(promised) * FULL / u128::from(memory)
}
