//! What goes when something goes.

use super::*;

/// A fork that has succeeded.
fn forked(world: &mut World, vm: &str, child: &str) -> OperationId {
    let operation = world.fork(vm, 1, Some(child));
    world.ready(operation);
    world.children(operation, &[(0, "")]);
    operation
}

#[test]
fn a_forks_snapshot_goes_with_its_last_child() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 2, Some("c"));
    world.ready(operation);
    world.children(operation, &[(0, ""), (1, "")]);
    let snapshot = operation.snapshot();
    let in_use = Rejection::InUse {
        kind: Kind::Snapshot,
        name: snapshot.to_string(),
        dependents: vec!["VM c-1".into(), "VM c-2".into()],
    };
    assert_eq!(
        world.refused(Command::DeleteSnapshot {
            snapshot: snapshot.to_string()
        }),
        in_use
    );
    world.delete("a");
    world.delete("c-1");
    assert!(world.state.snapshots.contains_key(&snapshot));
    world.delete("c-2");
    assert!(world.state.snapshots.is_empty());
    assert_eq!(
        world.state.tombstones[&ObjectId::Snapshot(snapshot)].nodes,
        [1].into()
    );
}

#[test]
fn a_named_snapshot_stays() {
    let mut world = World::new();
    world.running("a");
    let operation = forked(&mut world, "a", "b");
    world.ok(Command::TagSnapshot {
        snapshot: operation.snapshot().to_string(),
        name: "gold".into(),
    });
    world.delete("b");
    assert!(world.state.snapshots.contains_key(&operation.snapshot()));
    let deleted = world.ok(Command::DeleteSnapshot {
        snapshot: "gold".into(),
    });
    assert_eq!(deleted, Response::DeletedSnapshot(operation.snapshot()));
}

#[test]
fn a_chain_goes_from_its_end() {
    let mut world = World::new();
    world.running("a");
    let first = forked(&mut world, "a", "b");
    let second = forked(&mut world, "b", "c");
    let third = world.capture("c", Some("deep"));
    world.ready(third);
    for vm in ["a", "b", "c"] {
        world.delete(vm);
    }
    assert_eq!(world.state.snapshots.len(), 3, "each is needed by the next");
    let in_use = world.refused(Command::DeleteSnapshot {
        snapshot: second.snapshot().to_string(),
    });
    assert!(
        matches!(in_use, Rejection::InUse { dependents, .. } if dependents == ["snapshot deep"])
    );
    world.ok(Command::DeleteSnapshot {
        snapshot: "deep".into(),
    });
    assert!(world.state.snapshots.is_empty());
    let objects: Vec<ObjectId> = world.state.tombstones.keys().copied().collect();
    assert!(objects.contains(&ObjectId::Snapshot(first.snapshot())));
    world.ok(Command::Purged { node: 1, objects });
    assert_eq!(world.buried(), [""; 0]);
}

#[test]
fn a_failed_capture_leaves_nothing_but_tombstones() {
    let mut world = World::new();
    world.running("a");
    let operation = world.capture("a", Some("gold"));
    let delete = Command::DeleteSnapshot {
        snapshot: "gold".into(),
    };
    assert!(world.wrong_state(delete).contains("cancel"));
    world.ok(Command::FailOperation {
        operation,
        reason: "disk full".into(),
        cancelled: false,
    });
    assert!(world.state.snapshots.is_empty());
    // Its node may have written something, although it was never known to hold it.
    assert_eq!(
        world.state.tombstones[&ObjectId::Snapshot(operation.snapshot())].nodes,
        [1].into()
    );
    world.capture("a", Some("gold"));
}

#[test]
fn a_failed_fork_keeps_the_children_that_run() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 3, Some("c"));
    world.ready(operation);
    world.children(operation, &[(0, ""), (1, "no memory")]);
    world.ok(Command::FailOperation {
        operation,
        reason: "node lost".into(),
        cancelled: true,
    });
    assert!(world.state.vms.contains_key(&operation.child(0)));
    assert_eq!(world.buried(), ["c-2", "c-3"]);
    assert!(
        world.state.snapshots.contains_key(&operation.snapshot()),
        "a child depends on it"
    );
    world.delete("c-1");
    assert!(world.state.snapshots.is_empty());
}

#[test]
fn a_failed_fork_with_nothing_running_leaves_nothing() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 2, Some("c"));
    world.ready(operation);
    world.ok(Command::FailOperation {
        operation,
        reason: "node lost".into(),
        cancelled: false,
    });
    assert_eq!(world.state.vms.len(), 1);
    assert!(world.state.snapshots.is_empty());
    assert_eq!(world.state.tombstones.len(), 3);

    // A fork of a named snapshot leaves that.
    let made = world.capture("a", Some("gold"));
    world.ready(made);
    let source = ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: None,
    };
    let command = world.fork_command(source, 2, None);
    let operation = world.begun(command);
    world.ok(Command::FailOperation {
        operation,
        reason: "x".into(),
        cancelled: false,
    });
    assert_eq!((world.state.vms.len(), world.state.snapshots.len()), (1, 1));
}

#[test]
fn a_child_that_ran_before_its_snapshot_was_known_keeps_it_when_the_fork_fails() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 1, Some("c"));
    world.children(operation, &[(0, "")]);
    world.ok(Command::FailOperation {
        operation,
        reason: "x".into(),
        cancelled: false,
    });
    let snapshot = &world.state.snapshots[&operation.snapshot()];
    assert_eq!((&snapshot.content, &snapshot.nodes), (&None, &[1].into()));
    let source = ForkSource::Snapshot {
        snapshot: operation.snapshot().to_string(),
        vm: None,
    };
    let command = world.fork_command(source, 1, None);
    world.wrong_state(command);
    world.delete("c");
    assert!(world.state.snapshots.is_empty());
}

#[test]
fn children_deleted_during_the_fork_take_its_snapshot_at_the_end() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 1, Some("c"));
    world.delete("c");
    assert!(
        world.state.snapshots.contains_key(&operation.snapshot()),
        "it is being made"
    );
    world.ready(operation);
    world.children(operation, &[(0, "")]);
    assert!(world.state.snapshots.is_empty());
}

#[test]
fn a_lost_snapshot_stays_for_its_dependents() {
    let mut world = World::new();
    world.running("a");
    let operation = forked(&mut world, "a", "b");
    let lost = |node| Command::LostSnapshot {
        snapshot: operation.snapshot(),
        node,
        reason: "its host was restarted".into(),
    };
    world.ok(lost(2));
    assert_eq!(
        world.state.snapshots[&operation.snapshot()].nodes,
        [1].into()
    );
    world.ok(lost(1));
    assert!(
        world.state.snapshots[&operation.snapshot()]
            .nodes
            .is_empty()
    );
    let source = ForkSource::Snapshot {
        snapshot: operation.snapshot().to_string(),
        vm: None,
    };
    let command = world.fork_command(source, 1, None);
    let problem = world.wrong_state(command);
    assert!(
        problem.contains("lost") && problem.contains("its host was restarted"),
        "{problem}"
    );
    world.delete("b");
    assert!(world.state.snapshots.is_empty());
    assert_eq!(
        world.buried(),
        ["b"],
        "nobody holds anything of the snapshot"
    );

    let made = world.capture("a", None);
    world.ready(made);
    world.ok(Command::LostSnapshot {
        snapshot: made.snapshot(),
        node: 1,
        reason: String::new(),
    });
    assert!(
        world.state.snapshots.is_empty(),
        "nobody named it and nothing depends on it"
    );
    let made = world.capture("a", Some("gold"));
    world.ready(made);
    world.ok(Command::LostSnapshot {
        snapshot: made.snapshot(),
        node: 1,
        reason: String::new(),
    });
    assert!(
        world.state.snapshots.contains_key(&made.snapshot()),
        "somebody named it"
    );
}

#[test]
fn a_snapshot_that_is_on_disk_says_so() {
    let mut world = World::new();
    world.running("a");
    let made = world.capture("a", Some("gold"));
    let secure = |node, layers: Vec<u32>| Command::SecureSnapshot {
        snapshot: made.snapshot(),
        node,
        checksums: Checksums { base: 5, layers },
    };
    let safety = |world: &World| {
        let content = world.state.snapshots[&made.snapshot()].content.as_ref();
        content.map(|content| content.safety.clone())
    };
    world.ok(secure(1, vec![6]));
    assert_eq!(safety(&world), None, "it is not ready");
    world.ready(made);
    world.ok(secure(2, vec![6]));
    world.ok(secure(1, vec![6, 7]));
    assert_eq!(
        safety(&world),
        Some(Safety::Memory),
        "another node, other layers"
    );
    world.ok(secure(1, vec![6]));
    let secured = Safety::Disk(Checksums {
        base: 5,
        layers: vec![6],
    });
    assert_eq!(safety(&world), Some(secured));
    world.delete("a");
    world.ok(Command::DeleteSnapshot {
        snapshot: "gold".into(),
    });
    world.ok(secure(1, vec![6]));
    assert!(world.state.snapshots.is_empty());
}
