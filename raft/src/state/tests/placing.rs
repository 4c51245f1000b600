//! Where forks go, which node does what of them, and which nodes hold what they come from.

use super::*;

/// A third node, and a VM that runs on the first.
fn world() -> (World, NodeId) {
    let mut world = World::new();
    let third = world.join("n3");
    report_capacity(&mut world, third, capacity());
    world.running("a");
    (world, third)
}

fn report_capacity(world: &mut World, node: NodeId, capacity: Capacity) {
    world.ok(Command::ReportNode {
        node,
        address: format!("h{node}:7000"),
        capacity,
    });
}

/// A fork of several that are placed this way.
fn placed(world: &mut World, source: ForkSource, count: u32, on: Placing) -> Command {
    let mut command = world.fork_command(source, count, None);
    let Command::Fork { placing, .. } = &mut command else {
        unreachable!("it is a fork")
    };
    *placing = on;
    command
}

fn vm() -> ForkSource {
    ForkSource::Vm("a".into())
}

fn snapshot(name: &str) -> ForkSource {
    ForkSource::Snapshot {
        snapshot: name.into(),
        vm: None,
    }
}

fn on(node: &str) -> Placing {
    Placing::On(node.into())
}

fn nodes_of(world: &World, operation: OperationId) -> Vec<NodeId> {
    let count = world.state.operations[&operation].count;
    let node = |number| world.state.vms[&operation.child(number)].node;
    (0..count).map(node).collect()
}

fn reasons(rejection: Rejection) -> String {
    match rejection {
        Rejection::NoCapacity { reasons } => reasons.join("; "),
        other => panic!("{other}"),
    }
}

#[test]
fn forks_stay_with_their_source_go_to_a_node_or_are_spread() {
    let (mut world, third) = world();
    let command = placed(&mut world, vm(), 2, Placing::WithSource);
    let operation = world.begun(command);
    assert_eq!(nodes_of(&world, operation), [1, 1]);
    let command = placed(&mut world, vm(), 2, on("n2"));
    let operation = world.begun(command);
    assert_eq!(nodes_of(&world, operation), [2, 2]);
    assert_eq!(world.state.operations[&operation].node, 1, "it captures");
    // Evenly, and of what is over, more where what is forked is.
    let command = placed(&mut world, vm(), 7, Placing::Spread);
    let operation = world.begun(command);
    let nodes = nodes_of(&world, operation);
    let here = |node| nodes.iter().filter(|other| **other == node).count();
    assert_eq!((here(1), here(2), here(third)), (3, 2, 2), "{nodes:?}");
}

#[test]
fn a_node_that_cannot_restore_it_is_no_choice() {
    let (mut world, third) = world();
    let other_qemu = Capacity {
        qemu_version: "9.2.0".into(),
        ..capacity()
    };
    report_capacity(&mut world, 2, other_qemu);
    let command = placed(&mut world, vm(), 1, on("n2"));
    let said = reasons(world.refused(command));
    assert!(
        said.contains("n2 has QEMU 9.2.0, and QEMU 10.0.2"),
        "{said}"
    );
    let command = placed(&mut world, vm(), 4, Placing::Spread);
    let operation = world.begun(command);
    assert_eq!(nodes_of(&world, operation), [1, third, 1, third]);

    world.ok(Command::CordonNode {
        node: "n3".into(),
        schedulable: false,
    });
    let command = placed(&mut world, vm(), 1, on("n3"));
    assert!(world.wrong_state(command).contains("cordoned"));
    let mut command = placed(&mut world, vm(), 2, Placing::Spread);
    let operation = world.begun(command.clone());
    assert_eq!(nodes_of(&world, operation), [1, 1]);
    let Command::Fork {
        candidates,
        operation,
        ..
    } = &mut command
    else {
        unreachable!("it is a fork")
    };
    (*candidates, *operation) = (vec![2, 3], OperationId(world.next + DERIVED_IDS));
    let said = reasons(world.refused(command));
    assert!(
        said.contains("n1 is offline") && said.contains("n3 is cordoned"),
        "{said}"
    );
}

#[test]
fn under_kvm_the_processor_must_be_the_same() {
    let (mut world, third) = world();
    let with = |processor: &str| Capacity {
        accelerators: vec![Accelerator::Kvm, Accelerator::Tcg],
        processor: processor.into(),
        ..capacity()
    };
    report_capacity(&mut world, 1, with("one"));
    report_capacity(&mut world, 2, with("another"));
    report_capacity(&mut world, third, with("one"));
    let command = placed(&mut world, vm(), 1, on("n2"));
    let said = reasons(world.refused(command));
    assert!(said.contains("another processor (another)"), "{said}");
    let command = placed(&mut world, vm(), 1, on("n3"));
    world.begun(command);

    // It was captured under emulation: any processor does.
    let operation = world.capture("a", Some("s"));
    world.ready(operation);
    let command = placed(&mut world, snapshot("s"), 1, on("n2"));
    world.begun(command);
}

#[test]
fn each_node_has_its_part_of_a_fork_until_all_is_known_of_it() {
    let (mut world, third) = world();
    let command = placed(&mut world, vm(), 3, Placing::Spread);
    let operation = world.begun(command);
    let parts = |world: &World| {
        let operation = &world.state.operations[&operation];
        [1, 2, third].map(|node| world.state.has_part(operation, node))
    };
    assert_eq!(parts(&world), [true, true, true]);
    world.ready(operation);
    let number_on = |world: &World, node| {
        let nodes = nodes_of(world, operation);
        nodes.iter().position(|other| *other == node).unwrap() as u32
    };
    let (on_first, on_second) = (number_on(&world, 1), number_on(&world, 2));
    world.children(operation, &[(on_first, "")]);
    assert_eq!(parts(&world), [false, true, true], "it has captured, too");
    world.children(operation, &[(on_second, "no room")]);
    assert_eq!(parts(&world), [false, false, true]);
    // Of one that was deleted the operation's node says so.
    let last = world.state.vms[&operation.child(number_on(&world, third))]
        .name
        .clone();
    world.delete(&last);
    assert_eq!(parts(&world), [true, false, false]);
}

#[test]
fn a_snapshot_is_forked_from_who_holds_it_and_is_there() {
    let (mut world, third) = world();
    let operation = world.capture("a", Some("s"));
    // Of one that is not ready nobody holds anything.
    let id = operation.snapshot();
    let hold = |node| Command::HoldSnapshot { snapshot: id, node };
    world.ok(hold(2));
    world.ready(operation);
    assert_eq!(world.state.snapshots[&id].nodes, [1].into());
    world.ok(hold(third));
    world.ok(hold(99));
    assert_eq!(world.state.snapshots[&id].nodes, [1, third].into());
    let mut command = placed(&mut world, snapshot("s"), 1, Placing::WithSource);
    let Command::Fork { candidates, .. } = &mut command else {
        unreachable!("it is a fork")
    };
    *candidates = vec![2, third];
    let operation = world.begun(command);
    assert_eq!(nodes_of(&world, operation), [third]);
    // Its lineage is its parent's, wherever it is.
    let child = &world.state.vms[&operation.child(0)];
    assert_eq!(child.lineage, world.find("a").id);
    // Where it is lost, others still have it.
    world.ok(Command::LostSnapshot {
        snapshot: id,
        node: 1,
        reason: "gone".into(),
    });
    let command = placed(&mut world, snapshot("s"), 1, Placing::WithSource);
    let operation = world.begun(command);
    assert_eq!(nodes_of(&world, operation), [third]);
}
