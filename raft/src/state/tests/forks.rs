//! Captures, forks and their operations.

use super::*;

fn state_of(world: &World, operation: OperationId) -> OperationState {
    world.state.operations[&operation].state.clone()
}

fn names_of(world: &World, operation: OperationId) -> Vec<String> {
    let children = world
        .state
        .vms
        .values()
        .filter(|vm| vm.operation == Some(operation));
    children.map(|vm| vm.name.clone()).collect()
}

#[test]
fn a_fork_of_a_vm() {
    let mut world = World::new();
    let parent = world.running("web");
    let operation = world.fork("web", 3, None);
    assert_eq!(names_of(&world, operation), ["web-1", "web-2", "web-3"]);
    let child = world.find("web-2");
    assert_eq!(child.id, operation.child(1));
    assert_eq!(child.source, Source::Snapshot(operation.snapshot()));
    let parent = world.state.vms[&parent].clone();
    assert_eq!(child.parent, Some(Captured::of(&parent)));
    assert_eq!(
        (child.node, child.boot, child.phase),
        (world.find("web").node, 1, Phase::Pending)
    );
    let snapshot = &world.state.snapshots[&operation.snapshot()];
    assert_eq!(
        (&snapshot.content, snapshot.nodes.len(), &snapshot.name),
        (&None, 0, &None)
    );

    world.ready(operation);
    assert_eq!(state_of(&world, operation), OperationState::Open);
    assert_eq!(
        world.state.snapshots[&operation.snapshot()].nodes,
        [1].into()
    );
    world.children(operation, &[(0, ""), (1, "no memory")]);
    world.children(operation, &[(1, ""), (9, "")]);
    assert_eq!(state_of(&world, operation), OperationState::Open);
    world.now += 5;
    world.children(operation, &[(2, "")]);
    let record = &world.state.operations[&operation];
    assert_eq!(
        (record.ended_at, &record.state),
        (Some(world.now), &OperationState::Complete)
    );
    assert_eq!(
        record.results[&1].error, "no memory",
        "the first result counts"
    );
    assert_eq!(
        (world.find("web-1").phase, world.find("web-1").reported_boot),
        (Phase::Running, 1)
    );
    assert_eq!(
        (world.find("web-2").phase, &*world.find("web-2").reason),
        (Phase::Failed, "no memory")
    );
}

#[test]
fn names_of_children() {
    let mut world = World::new();
    world.running("a");
    world.running("a-2");
    let operation = world.fork("a", 2, None);
    assert_eq!(names_of(&world, operation), ["a-1", "a-3"]);
    let operation = world.fork("a", 1, Some("exact"));
    assert_eq!(names_of(&world, operation), ["exact"]);
    let operation = world.fork("a", 2, Some("many"));
    assert_eq!(names_of(&world, operation), ["many-1", "many-2"]);

    let vm = || ForkSource::Vm("a".into());
    let command = world.fork_command(vm(), 1, Some("exact"));
    assert!(matches!(
        world.refused(command),
        Rejection::NameTaken { .. }
    ));
    let command = world.fork_command(vm(), 3, Some("many"));
    assert_eq!(
        world.refused(command),
        Rejection::NameTaken {
            kind: Kind::Vm,
            name: "many-1".into()
        }
    );
    let command = world.fork_command(vm(), 1, Some("a,b"));
    assert_eq!(world.invalid(command), "name");
    let command = world.fork_command(vm(), 10, Some(&"x".repeat(62)));
    assert_eq!(world.invalid(command), "name");
    for count in [0, MAX_CHILDREN + 1, 100_000] {
        let command = world.fork_command(vm(), count, None);
        assert_eq!(world.invalid(command), "count");
    }
    world.report_capacity(1, large());
    let command = world.fork_command(vm(), MAX_CHILDREN, Some("thousand"));
    world.ok(command);
    assert!(names::vm(&world.state, &world.by, "thousand-1000").is_ok());
}

#[test]
fn only_what_runs_is_captured() {
    let mut world = World::new();
    let command = world.vm("a");
    world.ok(command);
    let fork = world.fork_command(ForkSource::Vm("a".into()), 1, None);
    let capture = world.capture_command("a", None);
    let id = world.find("a").id;
    let refused = |world: &mut World| {
        world.wrong_state(fork.clone());
        world.wrong_state(capture.clone());
    };
    refused(&mut world);
    world.report(id, Phase::Failed);
    refused(&mut world);
    world.report(id, Phase::Running);
    world.power("a", PowerAction::Stop).unwrap();
    refused(&mut world);
    world.report(id, Phase::Stopped);
    refused(&mut world);
    world.power("a", PowerAction::Start).unwrap();
    world.report(id, Phase::Paused);
    world.ok(fork);
    world.ok(capture);
}

#[test]
fn a_snapshot_is_forked_once_it_is_ready() {
    let mut world = World::new();
    world.running("a");
    let made = world.capture("a", Some("gold"));
    let source = |vm: Option<&str>| ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: vm.map(Into::into),
    };
    let command = world.fork_command(source(None), 1, None);
    assert!(world.wrong_state(command).contains("not ready"));
    world.ready(made);
    assert_eq!(state_of(&world, made), OperationState::Complete);

    let command = world.fork_command(source(Some("a")), 2, None);
    let operation = world.begun(command);
    let record = &world.state.operations[&operation];
    assert_eq!(
        (record.vm, record.snapshot, record.node),
        (None, made.snapshot(), 1)
    );
    assert_eq!(names_of(&world, operation), ["a-1", "a-2"]);
    world.wrong_state(Command::SnapshotReady {
        operation,
        content: content(operation),
    });
    world.children(operation, &[(0, ""), (1, "")]);
    assert_eq!(state_of(&world, operation), OperationState::Complete);

    world.running("b");
    let command = world.fork_command(source(Some("b")), 1, None);
    let missing = Rejection::NotFound {
        kind: Kind::Snapshot,
        name: "b@gold".into(),
    };
    assert_eq!(world.refused(command), missing);
    // The VM it was captured from is gone: its name and id still name the snapshot.
    let id = world.find("a").id;
    world.delete("a");
    for vm in ["a", &id.to_string()] {
        let command = world.fork_command(source(Some(vm)), 1, None);
        world.ok(command);
    }
    for name in ["a@gold", "@gold", "gold"] {
        let found = names::snapshot(&world.state, &world.by, name).unwrap();
        assert_eq!(found.id, made.snapshot(), "{name}");
    }
    // Until another VM has its name.
    world.running("a");
    assert!(matches!(
        names::snapshot(&world.state, &world.by, "a@gold"),
        Err(Rejection::NotFound { .. })
    ));
}

#[test]
fn a_paused_fork_and_a_cordoned_node() {
    let mut world = World::new();
    world.running("a");
    let mut command = world.fork_command(ForkSource::Vm("a".into()), 1, None);
    let Command::Fork { paused, .. } = &mut command else {
        panic!()
    };
    *paused = true;
    let operation = world.begun(command);
    world.ready(operation);
    world.children(operation, &[(0, "")]);
    assert_eq!(
        (world.find("a-1").power, world.find("a-1").phase),
        (Power::Paused, Phase::Paused)
    );

    world.ok(Command::CordonNode {
        node: "n1".into(),
        schedulable: false,
    });
    let command = world.fork_command(ForkSource::Vm("a".into()), 1, None);
    assert!(world.wrong_state(command).contains("cordoned"));
}

#[test]
fn the_parent_of_a_snapshot_is_the_one_its_vm_came_from() {
    let mut world = World::new();
    world.running("a");
    let first = world.fork("a", 1, Some("b"));
    world.ready(first);
    world.children(first, &[(0, "")]);
    let second = world.fork("b", 1, Some("c"));
    assert_eq!(world.state.snapshots[&first.snapshot()].parent, None);
    assert_eq!(
        world.state.snapshots[&second.snapshot()].parent,
        Some(first.snapshot())
    );
}

#[test]
fn ready_twice_is_ready_once() {
    let mut world = World::new();
    world.running("a");
    let operation = world.capture("a", None);
    world.ready(operation);
    let before = world.state.clone();
    // The proposal sent again: the node must not take it for a refusal and delete its files.
    world.ready(operation);
    assert_eq!(world.state, before);
    let other = Content {
        base_bytes: 1,
        ..content(operation)
    };
    world.wrong_state(Command::SnapshotReady {
        operation,
        content: other,
    });
}

#[test]
fn the_first_end_wins() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 1, None);
    let fail = || Command::FailOperation {
        operation,
        reason: "node lost".into(),
        cancelled: false,
    };
    world.ok(fail());
    let failed = OperationState::Failed {
        reason: "node lost".into(),
        cancelled: false,
    };
    assert_eq!(state_of(&world, operation), failed);
    let before = world.state.clone();
    world.wrong_state(Command::SnapshotReady {
        operation,
        content: content(operation),
    });
    world.children(operation, &[(0, "")]);
    world.ok(Command::FailOperation {
        operation,
        reason: "again".into(),
        cancelled: true,
    });
    world.ok(Command::CancelOperation {
        operation: operation.to_string(),
    });
    assert_eq!(world.state, before);

    let operation = world.fork("a", 1, None);
    world.ready(operation);
    world.children(operation, &[(0, "")]);
    world.ok(Command::FailOperation {
        operation,
        reason: "late".into(),
        cancelled: false,
    });
    assert_eq!(state_of(&world, operation), OperationState::Complete);
    assert_eq!(world.find("a-1").phase, Phase::Running);
}

#[test]
fn an_operation_is_cancelled_by_request() {
    let mut world = World::new();
    world.running("a");
    let operation = world.capture("a", None);
    world.ok(Command::CancelOperation {
        operation: operation.to_string(),
    });
    assert!(world.state.operations[&operation].cancel_requested);
    let nothing = Command::CancelOperation {
        operation: "01ZZZ".into(),
    };
    assert!(matches!(
        world.refused(nothing),
        Rejection::NotFound {
            kind: Kind::Operation,
            ..
        }
    ));
}

#[test]
fn children_may_be_known_before_the_snapshot_is() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 1, None);
    world.children(operation, &[(0, "")]);
    assert_eq!(state_of(&world, operation), OperationState::Open);
    world.ready(operation);
    assert_eq!(state_of(&world, operation), OperationState::Complete);
}

#[test]
fn ended_operations_are_bounded() {
    let mut world = World::new();
    world.running("a");
    let open = world.capture("a", None);
    let mut ended = Vec::new();
    for _ in 0..KEPT_OPERATIONS + 5 {
        let operation = world.capture("a", None);
        world.ok(Command::FailOperation {
            operation,
            reason: "x".into(),
            cancelled: false,
        });
        ended.push(operation);
    }
    assert_eq!(world.state.operations.len(), KEPT_OPERATIONS + 1);
    assert!(
        world.state.operations.contains_key(&open),
        "an open one stays"
    );
    assert!(!world.state.operations.contains_key(&ended[4]));
    assert!(world.state.operations.contains_key(&ended[5]));
    assert!(world.state.snapshots.len() == 1);
}

#[test]
fn ids_of_operations() {
    let mut world = World::new();
    world.running("a");
    let mut used = world.fork_command(ForkSource::Vm("a".into()), 2, None);
    world.ok(used.clone());
    let Command::Fork { operation, .. } = &mut used else {
        panic!()
    };
    let first = *operation;
    world.wrong_state(used.clone());
    let Command::Fork { operation, .. } = &mut used else {
        panic!()
    };
    operation.0 += 1;
    assert_eq!(world.invalid(used.clone()), "operation");
    // Forgotten, but a child of it is still there.
    world.ready(first);
    world.children(first, &[(0, ""), (1, "")]);
    world.state.operations.remove(&first);
    let Command::Fork { operation, .. } = &mut used else {
        panic!()
    };
    *operation = first;
    world.wrong_state(used);
}

#[test]
fn tagging() {
    let mut world = World::new();
    world.running("a");
    let (first, second) = (world.capture("a", Some("gold")), world.capture("a", None));
    let command = world.capture_command("a", Some("gold"));
    assert_eq!(
        world.refused(command),
        Rejection::NameTaken {
            kind: Kind::Snapshot,
            name: "gold".into()
        }
    );
    let tag = |id: OperationId, name: &str| Command::TagSnapshot {
        snapshot: id.snapshot().to_string(),
        name: name.into(),
    };
    assert!(matches!(
        world.refused(tag(second, "gold")),
        Rejection::NameTaken { .. }
    ));
    assert_eq!(world.invalid(tag(second, "Gold")), "name");
    world.ok(tag(second, "silver"));
    world.ok(tag(first, "gold"));
    assert_eq!(
        names::snapshot(&world.state, &world.by, "silver")
            .unwrap()
            .id,
        second.snapshot()
    );
}

#[test]
fn forks_of_a_snapshot_are_kept_ready() {
    let mut world = World::new();
    world.running("a");
    let operation = world.capture("a", Some("gold"));
    let warm = |name: &str, count| Command::WarmSnapshot {
        snapshot: name.into(),
        vm: Some("a".into()),
        count,
    };
    world.wrong_state(warm("gold", 3));
    world.ready(operation);
    assert_eq!(world.invalid(warm("gold", MAX_CHILDREN + 1)), "count");
    assert!(matches!(
        world.refused(warm("lead", 3)),
        Rejection::NotFound { .. }
    ));
    world.ok(warm("gold", 3));
    assert_eq!(world.state.snapshots[&operation.snapshot()].warm, 3);
    world.ok(warm("gold", 0));
    assert_eq!(world.state.snapshots[&operation.snapshot()].warm, 0);
}
