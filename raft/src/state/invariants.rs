//! What must hold in every state that can be reached. Called by tests, and by whoever doubts a state.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
};

use super::{
    KEPT_OPERATIONS, KEPT_REMOVED, KEPT_REQUESTS, MAP_OUTPUT, MAPS_HELD, MAX_CHILDREN, MAX_MEMBERS,
    ids::{DERIVED_IDS, ImageId, SnapshotId, VmId},
    model::{
        Life, MapState, ObjectId, OperationKind, OperationState, Phase, Power, Snapshot, Source,
        State, Vm, VmSpec,
    },
    names,
    owners::Ownership,
};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {rule}")]
pub struct Violation {
    /// What it was found in.
    pub object: String,
    /// What should have been.
    pub rule: &'static str,
}

/// Checks a whole state.
pub fn check(state: &State) -> Result<(), Violation> {
    nodes(state)?;
    tokens(state)?;
    images(state)?;
    vms(state)?;
    groups(state)?;
    lives(state)?;
    maps(state)?;
    snapshots(state)?;
    operations(state)?;
    tombstones(state)?;
    replacement(state)?;
    hold(
        state.events.is_sound(),
        "events",
        "are bounded, and their positions without a gap",
    )?;
    // The oldest go in chunks: a few more than asked for may be there.
    hold(
        state.requests.len() < KEPT_REQUESTS + 1_000,
        "requests",
        "are bounded",
    )
}

fn hold(holds: bool, object: impl Debug, rule: &'static str) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation {
            object: format!("{object:?}"),
            rule,
        })
    }
}

/// `owner`: empty for what has none.
fn unique<'a>(names: impl Iterator<Item = (&'a str, &'a String)>) -> Result<(), Violation> {
    let mut seen = BTreeSet::new();
    for (owner, name) in names {
        hold(names::is_valid(name), name, "a name follows the rule")?;
        hold(
            seen.insert((owner, name)),
            name,
            "a name is used once by an owner",
        )?;
    }
    Ok(())
}

fn ownership(ownership: &Ownership, object: impl Debug) -> Result<(), Violation> {
    let Ownership {
        owner, shared_with, ..
    } = ownership;
    hold(
        names::is_valid(owner) && shared_with.iter().all(|with| names::is_valid(with)),
        &object,
        "an owner has a name that follows the rule",
    )?;
    hold(
        !shared_with.contains(owner),
        object,
        "nothing is shared with its owner",
    )
}

fn nodes(state: &State) -> Result<(), Violation> {
    unique(state.nodes.values().map(|node| ("", &node.name)))?;
    hold(
        state.cluster.is_some() || state.nodes.is_empty(),
        "cluster",
        "nodes are in a cluster",
    )?;
    for (id, node) in &state.nodes {
        hold(*id == node.id, id, "a node is kept under its number")?;
        hold(*id < state.next_node, id, "a node's number was given out")?;
        hold(
            node.drain.is_none() || !node.schedulable,
            id,
            "nothing is placed on a node that is drained",
        )?;
        let stays = |vm: &VmId| state.vms.get(vm).is_some_and(|vm| vm.node == *id);
        hold(
            node.drain.iter().all(|drain| drain.stays.keys().all(stays)),
            id,
            "what cannot be moved from a node lives there",
        )?;
    }
    for id in state.removed.keys() {
        hold(
            !state.nodes.contains_key(id) && *id < state.next_node,
            id,
            "a node that was removed is gone for good",
        )?;
    }
    let removed = state.removed.len();
    hold(
        removed <= KEPT_REMOVED,
        removed,
        "records of removed nodes are bounded",
    )
}

fn lives(state: &State) -> Result<(), Violation> {
    let holds = |life: Life, owner: &str| match life {
        Life::Leased(lease) => {
            let lease = state.leases.get(&lease);
            lease.is_some_and(|lease| lease.owner == owner)
        }
        Life::Unbounded | Life::Until(_) => true,
    };
    let rule = "what a lease keeps goes with it, and is of its owner";
    for vm in state.vms.values() {
        hold(holds(vm.life, &vm.ownership.owner), vm.id, rule)?;
    }
    for snapshot in state.snapshots.values() {
        let owner = &snapshot.ownership.owner;
        hold(holds(snapshot.life, owner), snapshot.id, rule)?;
    }
    Ok(())
}

fn maps(state: &State) -> Result<(), Violation> {
    let named = state.maps.values();
    let named: Vec<(&str, &String)> = named
        .filter_map(|map| Some((map.ownership.owner.as_str(), map.name.as_ref()?)))
        .collect();
    unique(named.into_iter())?;
    hold(
        state.maps.is_sound(),
        "maps",
        "are counted for their owners",
    )?;
    for (id, map) in &state.maps {
        ownership(&map.ownership, id)?;
        hold(*id == map.id, id, "a map is kept under its id")?;
        let is_running = map.is_running();
        hold(
            is_running == map.ended_at.is_none(),
            id,
            "what has ended has a time of its end",
        )?;
        hold(
            is_running || (map.driver.is_none() && map.lease.is_none()),
            id,
            "nobody drives a map that has ended",
        )?;
        hold(
            map.driver
                .is_none_or(|node| state.nodes.contains_key(&node)),
            id,
            "a map's driver exists",
        )?;
        hold(
            !is_running || state.snapshots.contains_key(&map.snapshot),
            id,
            "the moment of a map that runs is there",
        )?;
        let is_whole = map.results.len() == map.job.count as usize;
        hold(
            map.state != MapState::Finished || is_whole,
            id,
            "a finished map has all results",
        )?;
        let places = map.done.iter().map(|(index, place)| (*place, *index));
        let places: BTreeSet<(u32, u32)> = places.collect();
        let results = map.results.iter();
        let results: BTreeSet<(u32, u32)> =
            results.map(|(place, one)| (*place, one.index)).collect();
        hold(
            places == results && map.done.keys().all(|index| *index < map.job.count),
            id,
            "each item has one result at most",
        )?;
        let outputs = map.results.values().map(|one| one.output_bytes());
        hold(
            map.output_bytes == outputs.sum::<u64>() && map.output_bytes <= MAP_OUTPUT,
            id,
            "a map's outputs are counted and bounded",
        )?;
    }
    let held: u64 = state.maps.values().map(|map| map.held_bytes()).sum();
    hold(held <= MAPS_HELD, held, "what all maps hold is bounded")
}

fn tokens(state: &State) -> Result<(), Violation> {
    for (id, token) in &state.tokens {
        let waits = |node| {
            let found = state.nodes.get(&node);
            found.is_some_and(|node| !node.has_started())
        };
        hold(
            token.node.is_none_or(waits),
            id,
            "a token waits for a newcomer that has not started",
        )?;
    }
    Ok(())
}

fn images(state: &State) -> Result<(), Violation> {
    let named = state.images.values();
    unique(named.map(|image| (image.ownership.owner.as_str(), &image.name)))?;
    hold(
        state.images.is_sound(),
        "images",
        "are counted for their owners",
    )?;
    for (id, image) in &state.images {
        ownership(&image.ownership, id)?;
        hold(*id == image.id, id, "an image is kept under its id")?;
        hold(
            image
                .nodes
                .iter()
                .all(|node| state.nodes.contains_key(node)),
            id,
            "an image's nodes exist",
        )?;
        hold(
            !image.nodes.is_empty() || !state.removed.is_empty(),
            id,
            "an image is somewhere, unless that was removed",
        )?;
    }
    Ok(())
}

fn image_exists(state: &State, image: ImageId, object: impl Debug) -> Result<(), Violation> {
    hold(
        state.images.contains_key(&image),
        object,
        "its image exists",
    )
}

fn vms(state: &State) -> Result<(), Violation> {
    let named = state.vms.values();
    unique(named.map(|vm| (vm.ownership.owner.as_str(), &vm.name)))?;
    hold(
        state.vms.is_sound(),
        "VMs",
        "a VM is found by its name, its node and its labels, and counted for its owner and its node",
    )?;
    let going_back: BTreeSet<VmId> = (state.operations.values())
        .filter(|one| one.kind == OperationKind::Reset && one.state == OperationState::Open)
        .filter_map(|one| one.vm)
        .collect();
    for (id, vm) in &state.vms {
        ownership(&vm.ownership, id)?;
        hold(
            vm.is_going_back == going_back.contains(id),
            id,
            "what is set to a moment has an operation for it",
        )?;
        hold(*id == vm.id, id, "a VM is kept under its id")?;
        hold(state.nodes.contains_key(&vm.node), id, "a VM's node exists")?;
        image_exists(state, vm.spec.image, id)?;
        hold(
            vm.generation >= vm.boot && vm.boot >= 1,
            id,
            "every boot is a change",
        )?;
        hold(
            vm.reported_boot <= vm.boot,
            id,
            "no boot is reported that was not wanted",
        )?;
        let may_wait = vm.phase == Phase::Restarting && !matches!(vm.power, Power::Stopped { .. });
        hold(
            vm.next_start.is_none() || may_wait,
            id,
            "only what is wanted and ended waits to be started again",
        )?;
        spec(&vm.spec, vm.family, id)?;
        place(vm)?;
        match vm.source {
            Source::Image => hold(vm.parent.is_none(), id, "a VM from an image has no parent")?,
            Source::Snapshot(snapshot) => {
                hold(
                    state.snapshots.contains_key(&snapshot),
                    id,
                    "a fork's snapshot exists",
                )?;
                hold(
                    vm.parent.is_some() || vm.generation > 1,
                    id,
                    "a fork has a parent, unless it was reset or suspended",
                )?;
            }
        }
        let moment = match vm.source {
            Source::Image => None,
            Source::Snapshot(snapshot) => state.snapshots.get(&snapshot),
        };
        hold(
            vm.power != Power::Suspended || moment.is_some_and(|found| found.content.is_some()),
            id,
            "a suspended VM has its moment",
        )?;
    }
    Ok(())
}

fn groups(state: &State) -> Result<(), Violation> {
    let (mut numbers, mut alike, mut named) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    for (id, vm) in &state.vms {
        let Some(group) = &vm.group else { continue };
        hold(
            (1..=MAX_MEMBERS).contains(&group.number) && numbers.insert((group.id, group.number)),
            id,
            "members have numbers of their own, and are few",
        )?;
        hold(
            names::is_valid(&group.name),
            id,
            "a group's name follows the rule",
        )?;
        let (owner, name) = (&vm.ownership.owner, &group.name);
        let shared = (vm.node, owner, name);
        hold(
            *alike.entry(group.id).or_insert(shared) == shared,
            id,
            "members have one node, one owner and one name for their group",
        )?;
        hold(
            *named.entry((owner, name)).or_insert(group.id) == group.id,
            id,
            "an owner's groups have different names",
        )?;
    }
    let mut parts = BTreeMap::new();
    for (id, one) in &state.operations {
        let Some(first) = one.group else { continue };
        let is_part = (0..MAX_MEMBERS).any(|index| first.part(index) == *id);
        hold(
            is_part && one.kind == OperationKind::Fork && one.vm.is_some(),
            id,
            "a part of a group's fork forks a VM, and has an id that derives from the first",
        )?;
        let captured = state.snapshots.get(&one.snapshot);
        let captured = captured.is_some_and(|snapshot| snapshot.content.is_some());
        let is_open = one.state == OperationState::Open;
        let shared = (
            std::mem::discriminant(&one.state),
            one.node,
            one.count,
            is_open && captured,
        );
        hold(
            *parts.entry(first).or_insert(shared) == shared,
            id,
            "the parts of a group's fork are captured together and end together",
        )?;
    }
    Ok(())
}

/// What a VM is made of, and the family that goes with it.
fn spec(spec: &VmSpec, family: Option<VmId>, object: impl Debug) -> Result<(), Violation> {
    let ascend = spec.publish.windows(2).all(|pair| pair[0] < pair[1]);
    hold(
        ascend && !spec.publish.contains(&0),
        &object,
        "published ports ascend, from 1",
    )?;
    hold(
        family.is_some() == (spec.self_fork > 0),
        &object,
        "what may fork itself is in a family, and nothing else is",
    )
}

fn place(vm: &Vm) -> Result<(), Violation> {
    let within = vm
        .place
        .is_none_or(|place| place.index < place.count && place.count <= MAX_CHILDREN);
    hold(within, vm.id, "a fork's number is one of those made")?;
    hold(
        vm.place.is_some() == vm.parent.is_some(),
        vm.id,
        "a fork has its place, and nothing else has",
    )?;
    hold(
        vm.place.is_some() || (vm.settings.is_empty() && !vm.by_guest),
        vm.id,
        "only a fork is told settings, or made by a guest",
    )
}

fn snapshots(state: &State) -> Result<(), Violation> {
    let named = |snapshot: &'_ Arc<Snapshot>| {
        let owner = snapshot.ownership.owner.clone();
        Some((owner, snapshot.name.clone()?))
    };
    let named: Vec<(String, String)> = state.snapshots.values().filter_map(named).collect();
    unique(named.iter().map(|(owner, name)| (owner.as_str(), name)))?;
    let used: BTreeSet<SnapshotId> = state
        .vms
        .values()
        .filter_map(|vm| match vm.source {
            Source::Image => None,
            Source::Snapshot(snapshot) => Some(snapshot),
        })
        .chain(
            state
                .snapshots
                .values()
                .filter_map(|snapshot| snapshot.parent),
        )
        .chain((state.maps.values().filter(|map| map.is_running())).map(|map| map.snapshot))
        .collect();
    hold(
        state.snapshots.is_sound(),
        "snapshots",
        "are counted for their owners",
    )?;
    for (id, snapshot) in &state.snapshots {
        ownership(&snapshot.ownership, id)?;
        hold(*id == snapshot.id, id, "a snapshot is kept under its id")?;
        image_exists(state, snapshot.spec.image, id)?;
        spec(&snapshot.spec, snapshot.family, id)?;
        hold(
            snapshot
                .nodes
                .iter()
                .all(|node| state.nodes.contains_key(node)),
            id,
            "its nodes exist",
        )?;
        let copies = snapshot.copies.len() as u64;
        hold(
            copies <= u64::from(snapshot.replicas)
                && (snapshot.copies.iter()).all(|node| state.nodes.contains_key(node)),
            id,
            "the nodes for its copies exist, and are not more than were asked for",
        )?;
        hold(
            !snapshot.is_scheduled || snapshot.name.is_none(),
            id,
            "what a schedule keeps has no name",
        )?;
        let parent_exists = snapshot
            .parent
            .is_none_or(|parent| state.snapshots.contains_key(&parent));
        hold(
            parent_exists,
            id,
            "the snapshot that its VM came from exists",
        )?;
        let making = state
            .operations
            .get(&snapshot.operation)
            .filter(|made| made.state == OperationState::Open);
        hold(
            snapshot.content.is_some() || making.is_some() || used.contains(id),
            id,
            "a snapshot without content is being made, or something depends on it",
        )?;
    }
    Ok(())
}

fn operations(state: &State) -> Result<(), Violation> {
    let mut ended = 0;
    for (id, operation) in &state.operations {
        hold(*id == operation.id, id, "an operation is kept under its id")?;
        hold(
            id.0 % DERIVED_IDS == 0,
            id,
            "ids can be derived from an operation's",
        )?;
        let open = operation.state == OperationState::Open;
        hold(
            state.nodes.contains_key(&operation.node)
                || (!open && operation.node < state.next_node),
            id,
            "an operation's node exists, unless it ended and that was removed",
        )?;
        hold(
            operation
                .results
                .keys()
                .all(|index| *index < operation.count),
            id,
            "results are of its children",
        )?;
        match operation.kind {
            OperationKind::Snapshot => {
                hold(
                    operation.count == 0 && operation.vm.is_some(),
                    id,
                    "a capture has a VM and no children",
                )?;
            }
            OperationKind::Fork => hold(operation.count > 0, id, "a fork has children")?,
            OperationKind::Reset | OperationKind::Suspend | OperationKind::Move => hold(
                operation.count == 1 && operation.vm.is_some(),
                id,
                "what changes a VM has one, and one result",
            )?,
        }
        hold(
            operation.to.is_some() == (operation.kind == OperationKind::Move),
            id,
            "what moves goes somewhere, and nothing else does",
        )?;
        hold(
            !open || operation.to.is_none_or(|to| state.nodes.contains_key(&to)),
            id,
            "where an open operation moves a VM to exists",
        )?;
        let moved = operation.vm.filter(|_| open && operation.to.is_some());
        let moved = moved.and_then(|vm| state.vms.get(&vm));
        hold(
            moved.is_none_or(|vm| vm.node == operation.node),
            id,
            "a VM that is moved lives where its operation is",
        )?;
        hold(
            open == operation.ended_at.is_none(),
            id,
            "what has ended has a time of its end",
        )?;
        if open {
            let made = operation.vm.is_some() && operation.kind != OperationKind::Reset;
            let exists = !made || state.snapshots.contains_key(&operation.snapshot);
            hold(exists, id, "the snapshot of an open operation exists")?;
        } else {
            ended += 1;
        }
        if operation.state == OperationState::Complete {
            hold(
                operation.results.len() == operation.count as usize,
                id,
                "all results are known at the end",
            )?;
        }
    }
    hold(
        ended <= KEPT_OPERATIONS,
        ended,
        "ended operations are bounded",
    )
}

fn replacement(state: &State) -> Result<(), Violation> {
    let Some(replacement) = &state.replacement else {
        return Ok(());
    };
    let number = replacement.number;
    hold(
        replacement.old.fingerprint != replacement.new.fingerprint,
        number,
        "an authority is replaced by another one",
    )?;
    hold(
        replacement.is_open() == replacement.finished_at.is_none(),
        number,
        "a replacement that is finished has a time of that",
    )?;
    let is_trusted = replacement.is_open() && !replacement.is_compromised;
    let old = replacement.old.fingerprint;
    let mut certificates = state.certificates.values();
    hold(
        is_trusted || certificates.all(|one| one.authority != old || one.revoked_at.is_some()),
        number,
        "nobody has a certificate of an authority that is not trusted",
    )?;
    let mut tokens = state.tokens.values();
    hold(
        is_trusted || tokens.all(|token| token.authority != old),
        number,
        "no token pins an authority that is not trusted",
    )
}

fn tombstones(state: &State) -> Result<(), Violation> {
    for (object, tombstone) in &state.tombstones {
        hold(
            !tombstone.nodes.is_empty(),
            object,
            "a tombstone waits for a node",
        )?;
        let exist = |node| state.nodes.contains_key(node);
        hold(
            tombstone.nodes.iter().all(exist),
            object,
            "the nodes that a tombstone waits for exist",
        )?;
        let lives = match object {
            ObjectId::Image(id) => state.images.contains_key(id),
            ObjectId::Vm(id) => state.vms.contains_key(id),
            ObjectId::Snapshot(id) => state.snapshots.contains_key(id),
            ObjectId::Left(id) => {
                let vm = state.vms.get(id);
                vm.is_some_and(|vm| tombstone.nodes.contains(&vm.node))
            }
        };
        hold(!lives, object, "nothing is both there and gone")?;
    }
    Ok(())
}
