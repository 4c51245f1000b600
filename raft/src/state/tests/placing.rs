//! Where forks go, which node does what of them, and which nodes hold what they come from.

use super::*;

/// A third node, and a VM that runs on the first.
fn world() -> (World, NodeId) {
    let mut world = World::new();
    let third = world.join("n3");
    world.report_capacity(third, capacity());
    world.running("a");
    (world, third)
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
        Rejection::NoCapacity { reasons, .. } => reasons.join("; "),
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
    world.report_capacity(2, other_qemu);
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
    (*candidates, *operation) = (online([2, 3]), OperationId(world.next + DERIVED_IDS));
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
    world.report_capacity(1, with("one"));
    world.report_capacity(2, with("another"));
    world.report_capacity(third, with("one"));
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
    *candidates = online([2, third]);
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

/// A fork, with constraints.
fn constrained(world: &mut World, on: Placing, labels: &[&str], apart: &[&str]) -> Command {
    let mut command = placed(world, vm(), 3, on);
    let Command::Fork { constraints, .. } = &mut command else {
        unreachable!("it is a fork")
    };
    let label = |text: &&str| text.split_once('=').map(|(k, v)| (k.into(), v.into()));
    constraints.node_labels = labels.iter().filter_map(label).collect();
    constraints.apart_from = apart.iter().map(|what| (*what).to_owned()).collect();
    command
}

fn label_node(world: &mut World, node: &str, key: &str, value: &str) {
    world.ok(Command::LabelNode {
        node: node.into(),
        set: Labels::from([(key.into(), value.into())]),
        remove: Vec::new(),
    });
}

#[test]
fn nodes_are_chosen_by_their_labels_and_by_what_they_have() {
    let (mut world, third) = world();
    for node in ["n2", "n3"] {
        label_node(&mut world, node, "disk", "ssd");
    }
    // Near: where the parent is does not do, of the others one is enough.
    let command = constrained(&mut world, Placing::Near, &["disk=ssd"], &[]);
    let operation = world.begun(command);
    assert_eq!(nodes_of(&world, operation), [2, 2, 2]);
    let command = constrained(&mut world, Placing::Spread, &["disk=ssd"], &["a-1"]);
    let operation = world.begun(command);
    assert_eq!(nodes_of(&world, operation), [third; 3]);
    let command = constrained(&mut world, on("n1"), &["disk=ssd"], &[]);
    let said = world.refused(command).to_string();
    assert_eq!(said, "cannot place 3 of 3: n1 has no label disk=ssd");
    let command = constrained(&mut world, Placing::Spread, &["disk=ssd"], &["a-1", "a-4"]);
    let said = world.refused(command).to_string();
    let all = "cannot place 3 of 3: n1 has no label disk=ssd, n2 has VM a-1, n3 has VM a-4";
    assert_eq!(said, all);
    let command = constrained(&mut world, Placing::Spread, &[], &["nobody"]);
    assert!(matches!(
        world.refused(command),
        Rejection::NotFound { kind: Kind::Vm, .. }
    ));
    let command = constrained(&mut world, Placing::Spread, &[], &["a"; 17]);
    assert_eq!(world.invalid(command), "apartFrom");
}

#[test]
fn vms_with_a_label_are_kept_apart() {
    let (mut world, _) = world();
    let mut labelled = |count: u32, apart: &str| {
        let mut command = constrained(&mut world, Placing::Spread, &[], &[apart]);
        let Command::Fork {
            labels,
            count: number,
            ..
        } = &mut command
        else {
            unreachable!("it is a fork")
        };
        labels.insert("app".into(), "web".into());
        *number = count;
        world.apply(command)
    };
    let said = labelled(4, "app=web").unwrap_err().to_string();
    assert_eq!(
        said,
        "cannot place 1 of 4: n1 takes one, n2 takes one, n3 takes one"
    );
    assert!(labelled(2, "app=web").is_ok());
    let said = labelled(2, "app=web").unwrap_err().to_string();
    assert_eq!(
        said,
        "cannot place 1 of 2: n3 takes one, n1 has a VM with app=web, n2 has a VM with app=web"
    );
    assert!(labelled(2, "app=db").is_ok(), "nothing has that");
    let of = |world: &World, node| {
        let there = world.state.vms.of(node);
        let web = there.filter(|vm| vm.labels.contains_key("app"));
        web.map(|vm| vm.name.clone()).collect::<Vec<_>>()
    };
    for name in of(&world, 1) {
        let there = world.state.vms.nodes_labelled("app", "web", None);
        assert!(there.collect::<Vec<_>>().contains(&1));
        world.delete(&name);
    }
    let there = world.state.vms.nodes_labelled("app", "web", None);
    let there: Vec<NodeId> = there.collect();
    assert!(there.contains(&2) && !there.contains(&1), "{there:?}");
}

/// Others' VMs are not there for somebody: neither by name nor by label.
#[test]
fn nobody_finds_out_by_being_apart_where_others_vms_are() {
    let (mut world, third) = world();
    let mut command = constrained(&mut world, Placing::Spread, &[], &[]);
    let Command::Fork { labels, .. } = &mut command else {
        unreachable!("it is a fork")
    };
    labels.insert("app".into(), "web".into());
    world.begun(command);
    world.ok(Command::Share {
        object: ObjectName::Vm("a".into()),
        with: Some("ann".into()),
        stop: false,
    });
    world.by = Actor::user("ann");
    let spread = |world: &mut World, apart: &str| {
        let mut command = constrained(world, Placing::Spread, &[], &[apart]);
        let Command::Fork { source, .. } = &mut command else {
            unreachable!("it is a fork")
        };
        let of = Actor::cluster().owner;
        *source = ForkSource::Vm(format!("{of}/a"));
        world.apply(command)
    };
    assert!(matches!(
        spread(&mut world, "a-1"),
        Err(Rejection::NotFound { .. })
    ));
    let Ok(Response::Operation(operation)) = spread(&mut world, "app=web") else {
        panic!("it is refused")
    };
    assert_eq!(nodes_of(&world, operation), [1, 2, third]);
}

#[test]
fn what_was_promised_and_not_seen_leaves_no_room_twice() {
    let mut world = World::new();
    world.running("a");
    let room = |memory_mib| {
        let disk_mib = 1_000;
        Some(Room {
            memory_mib,
            disk_mib,
        })
    };
    let fork = |world: &mut World, count, on| {
        let mut command = placed(world, vm(), count, on);
        let Command::Fork { candidates, .. } = &mut command else {
            unreachable!("it is a fork")
        };
        let of = |node, room| Candidate { node, room };
        *candidates = vec![of(1, room(320)), of(2, room(160))];
        world.apply(command)
    };
    let Ok(Response::Operation(first)) = fork(&mut world, 18, Placing::Spread) else {
        panic!("it is refused")
    };
    // Both have seen nothing of them yet.
    let said = fork(&mut world, 13, Placing::Spread).unwrap_err();
    assert!(
        said.to_string()
            .starts_with("cannot place 1 of 13: n2 memory 1 short (16 MiB each; 16 MiB are free"),
        "{said}"
    );
    let said = fork(&mut world, 12, Placing::WithSource).unwrap_err();
    assert!(
        said.to_string().starts_with("cannot place 1 of 12: n1"),
        "{said}"
    );
    world.ready(first);
    world.children(
        first,
        &(0..18).map(|number| (number, "")).collect::<Vec<_>>(),
    );
    assert!(fork(&mut world, 30, Placing::Spread).is_ok());
    // One that is away carries it out when it is back, if that is promised.
    let mut command = placed(&mut world, vm(), 100, Placing::WithSource);
    let Command::Fork { candidates, .. } = &mut command else {
        unreachable!("it is a fork")
    };
    candidates.clear();
    world.begun(command);
}

#[test]
fn what_a_vm_takes_follows_how_it_began() {
    let mut world = World::new();
    world.running("a");
    let load = |world: &World| world.state.vms.load_of(1);
    let booted = memory_of_boot(256 * MIB);
    assert_eq!((load(&world).own_bytes, load(&world).cpus), (booted, 1));
    let operation = world.fork("a", 2, Some("f"));
    let forks = 2 * CHILD_BYTES;
    let Load {
        own_bytes,
        unseen_bytes,
        shared_bytes,
        ..
    } = load(&world);
    assert_eq!(
        (own_bytes, unseen_bytes, shared_bytes),
        (booted + forks, forks, 0)
    );
    // Its stream brings 20 MiB.
    let stream_bytes = 24 * MIB;
    world.ok(Command::SnapshotReady {
        operation,
        content: Content {
            stream_bytes,
            ..content(operation)
        },
    });
    let forks = forks + 40 * MIB;
    assert_eq!(load(&world).own_bytes, booted + forks);
    world.children(operation, &[(0, ""), (1, "no room")]);
    // The one that failed takes nothing.
    assert_eq!(load(&world).own_bytes, booted + forks / 2);
    assert_eq!(load(&world).unseen_bytes, 0);
    // Without the parent they share what it began with.
    world.delete("a");
    assert_eq!(load(&world).shared_bytes, 256 * MIB);
    world.power("f-1", PowerAction::Restart).unwrap();
    let again = load(&world);
    assert_eq!(
        (again.own_bytes, again.unseen_bytes, again.shared_bytes),
        (booted, booted, 0)
    );
    world.delete("f-1");
    world.delete("f-2");
    assert_eq!(load(&world), Load::default());
}
