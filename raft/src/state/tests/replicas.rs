//! Copies of snapshots: which nodes are chosen, what is refused, and what becomes of copies that are lost.

use std::collections::BTreeSet;

use super::*;

/// A cluster of this many nodes, and a snapshot of a VM on the first.
fn world(nodes: u64) -> (World, OperationId) {
    let mut world = World::new();
    for node in 3..=nodes {
        world.join(&format!("n{node}"));
        world.report_capacity(node, capacity());
    }
    let create = with_node(world.vm("a"), "n1");
    world.ok(create);
    let vm = world.find("a").id;
    world.report(vm, Phase::Running);
    let operation = world.capture("a", Some("gold"));
    world.ready(operation);
    (world, operation)
}

fn with_node(mut command: Command, wanted: &str) -> Command {
    if let Command::CreateVm {
        node, candidates, ..
    } = &mut command
    {
        *node = Some(wanted.to_owned());
        *candidates = online(1..=4);
    }
    command
}

fn replicate(replicas: u32, online_nodes: impl IntoIterator<Item = NodeId>) -> Command {
    Command::ReplicateSnapshot {
        snapshot: "gold".into(),
        vm: None,
        replicas,
        candidates: online(online_nodes),
    }
}

fn label(world: &mut World, node: &str, zone: &str) {
    world.ok(Command::LabelNode {
        node: node.into(),
        set: Labels::from([(ZONE.to_owned(), zone.to_owned())]),
        remove: Vec::new(),
    });
}

impl World {
    fn copies(&self, operation: OperationId) -> BTreeSet<NodeId> {
        self.state.snapshots[&operation.snapshot()].copies.clone()
    }

    fn hold(&mut self, operation: OperationId, node: NodeId) {
        let snapshot = operation.snapshot();
        self.ok(Command::HoldSnapshot { snapshot, node });
    }

    fn too_few(&mut self, command: Command) -> String {
        match self.refused(command) {
            refused @ Rejection::TooFewNodes { .. } => refused.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_is_replicated_once_two_disks_and_as_many_as_were_asked_for_have_it() {
    let (mut world, operation) = world(3);
    let id = operation.snapshot();
    world.ok(replicate(3, [1, 2, 3]));
    assert_eq!(world.copies(operation), BTreeSet::from([1, 2, 3]));
    let so_far = |world: &World| {
        let snapshot = &world.state.snapshots[&id];
        (snapshot.copies_on_disk(), snapshot.is_replicated())
    };
    assert_eq!(so_far(&world), (0, false), "nothing is on a disk yet");
    world.ok(Command::SecureSnapshot {
        snapshot: id,
        node: 1,
        checksums: Checksums {
            base: 1,
            layers: world.state.snapshots[&id]
                .content
                .as_ref()
                .map_or(vec![], |content| vec![1; content.layers.len()]),
        },
    });
    assert_eq!(so_far(&world), (1, false));
    world.hold(operation, 2);
    assert_eq!(so_far(&world), (2, false));
    world.hold(operation, 3);
    assert_eq!(so_far(&world), (3, true));
    // Two are enough now, and the third is kept.
    world.ok(replicate(2, [1, 2, 3]));
    assert_eq!(
        (so_far(&world), world.copies(operation).len()),
        ((2, true), 2)
    );
    assert_eq!(world.state.snapshots[&id].nodes.len(), 3);
    world.ok(replicate(1, [1, 2, 3]));
    assert_eq!(so_far(&world), (1, false));
}

#[test]
fn other_zones_come_first_then_the_least_load() {
    let (mut world, operation) = world(4);
    for (node, zone) in [
        ("n1", "east"),
        ("n2", "east"),
        ("n3", "west"),
        ("n4", "west"),
    ] {
        label(&mut world, node, zone);
    }
    let busy = with_node(world.vm("b"), "n3");
    world.ok(busy);
    world.ok(replicate(2, [1, 2, 3, 4]));
    assert_eq!(world.copies(operation), BTreeSet::from([1, 4]));
    // What was chosen stays.
    world.ok(replicate(3, [1, 2, 3, 4]));
    assert!(world.copies(operation).is_superset(&BTreeSet::from([1, 4])));
    world.ok(replicate(4, [1, 2, 3, 4]));
    assert_eq!(world.copies(operation).len(), 4);
}

#[test]
fn what_cannot_be_met_is_refused_with_the_reasons() {
    let (mut world, _) = world(3);
    let cordon = |node: &str, schedulable| Command::CordonNode {
        node: node.into(),
        schedulable,
    };
    world.ok(cordon("n2", false));
    assert_eq!(
        world.too_few(replicate(3, [1, 2, 3])),
        "cannot keep 3 copies: 2 of 3 nodes can hold one; n2 is cordoned"
    );
    assert_eq!(
        world.too_few(replicate(4, [1, 2])),
        "cannot keep 4 copies: 1 of 3 nodes can hold one; n2 is cordoned; n3 is offline"
    );
    world.drain("n2");
    assert!(
        world
            .too_few(replicate(3, [1, 2, 3]))
            .ends_with("n2 is being drained")
    );
    assert_eq!(world.invalid(replicate(0, [1, 2, 3])), "replicas");
    world.wrong_state(replicate(2, [2, 3]));
    world.ok(cordon("n2", true));
    let mut full = replicate(3, [1, 2, 3]);
    if let Command::ReplicateSnapshot { candidates, .. } = &mut full {
        candidates[1].room = Some(Room {
            memory_mib: 1,
            disk_mib: 0,
        });
    }
    let said = world.too_few(full);
    assert!(said.contains("n2 has 0 MiB of disk left"), "{said}");
    // The same before it is captured: nothing is begun.
    let mut capture = world.capture_command("a", Some("silver"));
    if let Command::CreateSnapshot {
        replicas,
        candidates,
        ..
    } = &mut capture
    {
        (*replicas, *candidates) = (3, online([1, 2]));
    }
    assert!(world.too_few(capture.clone()).ends_with("n3 is offline"));
    if let Command::CreateSnapshot { candidates, .. } = &mut capture {
        *candidates = online([1, 2, 3]);
    }
    let begun = world.begun(capture);
    assert_eq!(world.copies(begun), BTreeSet::from([1, 2, 3]));
}

#[test]
fn a_lost_copy_is_replaced_and_what_comes_back_changes_nothing() {
    let (mut world, operation) = world(4);
    world.ok(replicate(2, [1, 2]));
    world.hold(operation, 2);
    let place = |candidates: &[NodeId], lost: &[NodeId]| Command::PlaceCopies {
        candidates: online(candidates.iter().copied()),
        lost: lost.to_vec(),
    };
    // Nobody is there to take its place.
    world.ok(place(&[1], &[2]));
    assert_eq!(world.copies(operation), BTreeSet::from([1, 2]));
    // Nobody is there who could give it.
    world.ok(place(&[3, 4], &[1, 2]));
    assert_eq!(world.copies(operation), BTreeSet::from([1, 2]));
    world.ok(place(&[1, 3], &[2, 4]));
    assert_eq!(world.copies(operation), BTreeSet::from([1, 3]));
    assert_eq!(
        world.state.snapshots[&operation.snapshot()].nodes,
        BTreeSet::from([1, 2])
    );
    let settled = world.state.clone();
    world.ok(place(&[1, 2, 3, 4], &[]));
    assert_eq!(world.state, settled);
    // A node that is removed leaves its place to another, who has it first.
    world.ok(Command::DeleteNode {
        node: "n3".into(),
        force: true,
    });
    assert_eq!(world.copies(operation), BTreeSet::from([1]));
    world.ok(place(&[1, 2, 4], &[]));
    assert_eq!(world.copies(operation), BTreeSet::from([1, 2]));
}
