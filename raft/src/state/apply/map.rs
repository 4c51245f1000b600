//! Maps that are left to the cluster: their beginning, who drives them, their results, and their end.
//!
//! All that a map makes hangs on two things: its moment on the map itself, while it runs, and its forks on the lease of the drive that made
//! them. So what ends a map, or a drive, ends what there is of it in the same entry, whoever is there.

mod asked;

use std::sync::Arc;

use super::{fork, life, operation, removal, replicas};
use crate::state::{
    command::{Candidate, Command, ForkSource},
    ids::{LeaseId, MapId, NodeId, OperationId, SnapshotId},
    limits::{MAP_ITEM_OUTPUT, MAP_OUTPUT, MAP_REDUCED_OUTPUT},
    model::{CaptureMode, Lease, Life, Map, MapResult, MapState, Millis, OperationState, State},
    names,
    owners::{Actor, Owned as _, Ownership},
    response::{Kind, Outcome, Rejection, Response},
};

/// How long a text of a result may be, bytes.
const MOST_TEXT: usize = 256;
/// How long a reason may be, bytes.
const MOST_REASON: usize = 2_048;
/// So long a node may take to begin with a map that it is to drive.
const BEGIN_WITHIN: Millis = 60_000;
/// On how many nodes the moment of a map is to be that was captured for it.
const COPIES: u32 = 2;
/// Of a capture whose map is over.
const ENDED: &str = "the map that it was for has ended";

pub(super) fn start(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::StartMap {
        id,
        name,
        asker,
        source,
        job,
        operation,
        node,
        candidates,
        kept_for,
        expires_at,
    } = command
    else {
        unreachable!("called for this command only");
    };
    names::check_owner("owner", &by.owner)?;
    if state.maps.contains_key(id) {
        return Err(removal::id_taken(Kind::Map, id));
    }
    // What is not there is said first, and what is asked of it after that.
    let there = moment(state, by, source)?;
    asked::check(state, by, name.as_deref(), job, *kept_for)?;
    let snapshot = match there {
        Some(snapshot) => snapshot,
        None => {
            capture(
                state,
                by,
                now,
                source,
                candidates,
                (*operation, *expires_at),
            )?;
            operation.snapshot()
        }
    };
    let map = Map {
        id: *id,
        name: name.clone(),
        ownership: Ownership::of(by.owner.clone()),
        asker: asker.clone(),
        job: Arc::new(job.clone()),
        snapshot,
        operation: there.is_none().then_some(*operation),
        driver: choose(state, candidates, |other| other == *node),
        epoch: 1,
        drives: 0,
        placed_at: now,
        lease: None,
        results: Default::default(),
        done: Default::default(),
        output_bytes: 0,
        reduced: None,
        state: MapState::Running,
        note: String::new(),
        kept_for: *kept_for,
        created_at: now,
        ended_at: None,
    };
    state.maps.insert(*id, Arc::new(map));
    Ok(Response::Map(*id))
}

/// The snapshot that is named; `None` for a VM, which is captured.
fn moment(state: &State, by: &Actor, source: &ForkSource) -> Result<Option<SnapshotId>, Rejection> {
    match source {
        ForkSource::Vm(vm) => names::vm(state, by, vm).map(|_| None),
        ForkSource::Snapshot { snapshot, vm } => {
            let found = names::snapshot_of(state, by, snapshot, vm.as_deref())?;
            match found.content.is_some() && !found.nodes.is_empty() {
                true => Ok(Some(found.id)),
                false => Err(Rejection::WrongState {
                    kind: Kind::Snapshot,
                    name: found.name_for(by),
                    problem: "cannot be forked: it is being made, or was lost".to_owned(),
                }),
            }
        }
    }
}

fn capture(
    state: &mut State,
    by: &Actor,
    now: Millis,
    source: &ForkSource,
    candidates: &[Candidate],
    (operation, expires_at): (OperationId, Millis),
) -> Result<(), Rejection> {
    let ForkSource::Vm(vm) = source else {
        unreachable!("a snapshot is not captured");
    };
    let command = Command::CreateSnapshot {
        operation,
        vm: vm.clone(),
        name: None,
        mode: CaptureMode::Auto,
        life: Life::Unbounded,
        replicas: 0,
        candidates: Vec::new(),
        expires_at,
    };
    fork::create_snapshot(state, by, now, &command)?;
    let Some(node) = state.operations.get(&operation).map(|one| one.node) else {
        return Ok(());
    };
    // The map goes on from there when the VM's host is lost; where there is nobody to hold it, the leader finds somebody later.
    let copies = replicas::as_many_as_there_are(state, node, COPIES, candidates);
    if let Some(snapshot) = state.snapshots.get_mut(&operation.snapshot()) {
        let snapshot = Arc::make_mut(snapshot);
        (snapshot.replicas, snapshot.copies) = (COPIES, copies);
    }
    Ok(())
}

/// The node that is to drive: the one that is preferred, else one that takes new work, else any; of several the one that drives least.
fn choose(
    state: &State,
    candidates: &[Candidate],
    prefers: impl Fn(NodeId) -> bool,
) -> Option<NodeId> {
    let drives = |node: NodeId| {
        let maps = state.maps.values();
        maps.filter(|map| map.driver == Some(node)).count()
    };
    let able = candidates
        .iter()
        .filter_map(|one| state.nodes.get(&one.node));
    let able = able.filter(|node| node.has_started() && node.drain.is_none());
    able.map(|node| node.id).min_by_key(|id| {
        let takes = state.nodes.get(id).is_some_and(|node| node.schedulable);
        (!(takes && prefers(*id)), !takes, drives(*id), *id)
    })
}

/// Never refused: it may be driven otherwise meanwhile, or there may be nobody.
pub(super) fn place(
    state: &mut State,
    now: Millis,
    id: MapId,
    epoch: u64,
    candidates: &[Candidate],
) -> Outcome {
    let found = state.maps.get(&id);
    let Some(map) = found.filter(|map| map.is_running() && map.epoch == epoch) else {
        return Ok(Response::Done);
    };
    let (last, lease) = (map.driver, map.lease);
    let Some(driver) = choose(state, candidates, |node| Some(node) != last) else {
        return Ok(Response::Done);
    };
    if let Some(lease) = lease {
        life::end_lease(state, now, lease);
    }
    change(state, id, |map| {
        map.driver = Some(driver);
        map.epoch += 1;
        map.placed_at = now;
        map.lease = None;
        map.note = String::new();
    });
    Ok(Response::Done)
}

pub(super) fn take(
    state: &mut State,
    now: Millis,
    id: MapId,
    (node, epoch): (NodeId, u64),
    lease: LeaseId,
) -> Outcome {
    let not_found = || names::not_found(Kind::Map, &id.to_string());
    let map = state.maps.get(&id).ok_or_else(not_found)?;
    if map.is_running() && map.driver == Some(node) && map.lease == Some(lease) {
        // It was told twice.
        return Ok(Response::Map(id));
    }
    if !map.is_driven_by(node, epoch) || state.leases.contains_key(&lease) {
        return Err(Rejection::WrongState {
            kind: Kind::Map,
            name: id.to_string(),
            problem: "has ended, or is driven by another node".to_owned(),
        });
    }
    let (owner, ttl) = (map.ownership.owner.clone(), map.job.lease_ttl);
    // What an earlier drive of the same node made.
    if let Some(earlier) = map.lease {
        life::end_lease(state, now, earlier);
    }
    let held = Lease {
        owner,
        ttl,
        expires_at: now.saturating_add(ttl),
        created_at: now,
    };
    state.leases.insert(lease, held);
    change(state, id, |map| {
        map.lease = Some(lease);
        map.epoch += 1;
        map.drives += 1;
        map.placed_at = now;
        map.note = String::new();
    });
    Ok(Response::Map(id))
}

/// Never refused: the drive may be over, and items may have their results.
pub(super) fn report(
    state: &mut State,
    id: MapId,
    epoch: u64,
    results: &[MapResult],
    note: &str,
) -> Outcome {
    let found = state.maps.get(&id);
    let is_heard = |map: &&Arc<Map>| map.is_running() && map.epoch == epoch && map.lease.is_some();
    if found.filter(is_heard).is_none() {
        return Ok(Response::Done);
    }
    change(state, id, |map| {
        map.note = cut_text(note, MOST_TEXT);
        for result in results {
            accept(map, result);
        }
    });
    Ok(Response::Done)
}

/// Takes an item's result, if it is its first.
fn accept(map: &mut Map, result: &MapResult) {
    if result.index >= map.job.count || map.done.contains_key(&result.index) {
        return;
    }
    let room = MAP_OUTPUT.saturating_sub(map.output_bytes);
    let kept = bounded(
        result,
        MAP_ITEM_OUTPUT,
        usize::try_from(room).unwrap_or(usize::MAX),
    );
    map.output_bytes += kept.output_bytes();
    // There are not so many.
    let place = map.results.len() as u32;
    map.done.insert(kept.index, place);
    map.results.insert(place, Arc::new(kept));
}

/// A result with as much of each output as is kept, and of both together as there is room for.
fn bounded(result: &MapResult, each: usize, room: usize) -> MapResult {
    let keep = |bytes: &[u8], most: usize| bytes[..bytes.len().min(most)].to_vec();
    let stdout = keep(&result.stdout, each.min(room));
    let stderr = keep(&result.stderr, each.min(room - stdout.len()));
    let is_cut = stdout.len() < result.stdout.len() || stderr.len() < result.stderr.len();
    MapResult {
        truncated: result.truncated || is_cut,
        stdout,
        stderr,
        error: cut_text(&result.error, MOST_TEXT),
        vm: cut_text(&result.vm, names::MAX_NAME),
        node: cut_text(&result.node, names::MAX_NAME),
        ..*result
    }
}

fn cut_text(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

pub(super) fn finish(
    state: &mut State,
    now: Millis,
    (id, epoch): (MapId, u64),
    failure: Option<&str>,
    reduced: Option<&MapResult>,
) -> Outcome {
    let found = state.maps.get(&id);
    let Some(map) = found.filter(|map| map.is_running() && map.epoch == epoch) else {
        return Ok(Response::Done);
    };
    let how = match failure {
        Some(reason) => MapState::Failed {
            reason: cut_text(reason, MOST_REASON),
        },
        None if map.results.len() == map.job.count as usize => MapState::Finished,
        None => {
            return Err(Rejection::WrongState {
                kind: Kind::Map,
                name: id.to_string(),
                problem: "has items without a result".to_owned(),
            });
        }
    };
    let reduced = reduced.filter(|_| map.job.reduce.is_some());
    let reduced = reduced.map(|one| {
        let room = 2 * MAP_REDUCED_OUTPUT;
        Arc::new(bounded(one, MAP_REDUCED_OUTPUT, room))
    });
    change(state, id, |map| map.reduced = reduced);
    end(state, now, id, how);
    Ok(Response::Done)
}

pub(super) fn cancel(state: &mut State, by: &Actor, now: Millis, map: &str) -> Outcome {
    let found = names::map(state, by, map)?;
    let id = found.id;
    if !found.is_running() {
        return Err(Rejection::WrongState {
            kind: Kind::Map,
            name: found.name_for(by),
            problem: "has ended".to_owned(),
        });
    }
    end(state, now, id, MapState::Cancelled);
    Ok(Response::Map(id))
}

pub(super) fn delete(
    state: &mut State,
    by: &Actor,
    now: Millis,
    map: &str,
    force: bool,
) -> Outcome {
    let found = names::map(state, by, map)?;
    let id = found.id;
    if found.is_running() && !force {
        return Err(Rejection::WrongState {
            kind: Kind::Map,
            name: found.name_for(by),
            problem: "is running: cancel it, or delete it with --force".to_owned(),
        });
    }
    if found.is_running() {
        end(state, now, id, MapState::Cancelled);
    }
    state.maps.remove(&id);
    Ok(Response::DeletedMap(id))
}

/// Ends a map, and all that was made for it.
fn end(state: &mut State, now: Millis, id: MapId, how: MapState) {
    let Some(map) = state.maps.get(&id).map(Arc::clone) else {
        return;
    };
    change(state, id, |map| {
        map.state = how;
        map.ended_at = Some(now);
        map.driver = None;
        map.lease = None;
        map.note = String::new();
        Arc::make_mut(&mut map.job).inputs = Vec::new();
    });
    if let Some(lease) = map.lease {
        life::end_lease(state, now, lease);
    }
    if let Some(operation) = map.operation {
        // Nothing when it has ended.
        let _done = operation::fail_operation(state, now, operation, ENDED, false);
    }
    removal::collect(state, now, Some(map.snapshot));
}

/// A node is no member any more: what it drives is another's to drive.
pub(super) fn forget_node(state: &mut State, node: NodeId) {
    let its = state.maps.values().filter(|map| map.driver == Some(node));
    let its: Vec<MapId> = its.map(|map| map.id).collect();
    for id in its {
        change(state, id, |map| map.driver = None);
    }
}

fn change(state: &mut State, id: MapId, change: impl FnOnce(&mut Map)) {
    if let Some(map) = state.maps.get_mut(&id) {
        change(Arc::make_mut(map));
    }
}

impl State {
    /// Maps that another node has to drive, each with its drive: their driver is lost or drained, has let its lease end, or has not begun.
    pub fn maps_to_place(
        &self,
        now: Millis,
        candidates: &[Candidate],
        is_lost: impl Fn(NodeId) -> bool,
    ) -> Vec<(MapId, u64)> {
        if choose(self, candidates, |_| true).is_none() {
            return Vec::new();
        }
        let is_over = |map: &Map| match map.lease {
            Some(lease) => !self.leases.contains_key(&lease),
            None => now >= map.placed_at.saturating_add(BEGIN_WITHIN),
        };
        let is_drained = |node: &NodeId| {
            let node = self.nodes.get(node);
            node.is_none_or(|node| node.drain.is_some())
        };
        let is_left = |map: &Map| match map.driver {
            Some(driver) => is_lost(driver) || is_drained(&driver) || is_over(map),
            None => true,
        };
        let running = self.maps.values().filter(|map| map.is_running());
        running
            .filter(|map| is_left(map))
            .map(|map| (map.id, map.epoch))
            .collect()
    }

    /// Whether what a map forks can still be had, and if not, why.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn moment_of(&self, map: &Map) -> Result<bool, String> {
        let captured = map.operation.and_then(|id| self.operations.get(&id));
        if let Some(OperationState::Failed { reason, .. }) = captured.map(|one| &one.state) {
            return Err(format!("its VM could not be captured: {reason}"));
        }
        match self.snapshots.get(&map.snapshot) {
            None => Err("the moment that it forks is gone".to_owned()),
            Some(snapshot) if snapshot.content.is_none() => Ok(false),
            Some(snapshot) if snapshot.nodes.is_empty() => Err(format!(
                "the moment that it forks was lost: {}",
                snapshot.lost
            )),
            Some(_) => Ok(true),
        }
    }
}
