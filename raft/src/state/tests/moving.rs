//! VMs that move, and nodes that are drained.

use super::*;

impl World {
    fn move_command(&mut self, vm: &str, node: Option<&str>) -> Command {
        Command::MoveVm {
            operation: OperationId(self.id()),
            vm: vm.into(),
            node: node.map(Into::into),
            candidates: online([1, 2]),
            expires_at: self.now + 60_000,
        }
    }

    fn moving(&mut self, vm: &str, node: Option<&str>) -> OperationId {
        let command = self.move_command(vm, node);
        self.begun(command)
    }

    fn arrive_command(operation: OperationId, node: NodeId, runs: bool) -> Command {
        Command::Arrive {
            operation,
            node,
            content: runs.then(|| content(operation)),
            disk: Some(vec![7, 8]),
        }
    }

    fn arrive(&mut self, operation: OperationId, node: NodeId, runs: bool) {
        self.ok(Self::arrive_command(operation, node, runs));
    }

    fn is_open(&self, operation: OperationId) -> bool {
        self.state.operations[&operation].state == OperationState::Open
    }

    fn left(&self, vm: VmId) -> Vec<NodeId> {
        let left = self.state.tombstones.get(&ObjectId::Left(vm));
        left.map_or_else(Vec::new, |left| left.nodes.iter().copied().collect())
    }

    fn cleared(&mut self, vm: VmId, node: NodeId) {
        self.ok(Command::Purged {
            node,
            objects: vec![ObjectId::Left(vm)],
        });
    }
}

#[test]
fn a_moved_vm_is_the_same_one_elsewhere() {
    let mut world = World::new();
    let id = world.running("a");
    let before = world.find("a");
    let to = 3 - before.node;
    let operation = world.moving("a", None);
    // Nothing comes between.
    let (again, captured) = (
        world.move_command("a", None),
        world.capture_command("a", None),
    );
    for refused in [
        again,
        captured,
        Command::SetPower {
            vm: "a".into(),
            action: PowerAction::Stop,
        },
    ] {
        let problem = world.wrong_state(refused);
        assert!(problem.contains("moved by operation"), "{problem}");
    }
    // A result is of what has arrived.
    world.children(operation, &[(0, "")]);
    assert!(world.is_open(operation) && world.find("a").node == before.node);

    world.arrive(operation, to, true);
    assert!(world.is_open(operation));
    assert_eq!(
        (world.find("a").node, world.left(id)),
        (to, vec![before.node])
    );
    assert!(
        world
            .state
            .has_part(&world.state.operations[&operation], to)
    );
    assert!(
        !world
            .state
            .has_part(&world.state.operations[&operation], before.node)
    );
    // There is no way back.
    world.ok(Command::CancelOperation {
        operation: operation.to_string(),
    });
    world.ok(Command::FailOperation {
        operation,
        reason: "too late".into(),
        cancelled: true,
    });
    assert!(world.is_open(operation));
    world.children(operation, &[(0, "")]);
    assert!(!world.is_open(operation));

    let after = world.find("a");
    let mut expected = (*before).clone();
    (expected.node, expected.generation) = (to, before.generation + 1);
    assert_eq!(*after, expected, "nothing else is another");
    assert!(
        world.state.snapshots.is_empty(),
        "its moment is of no use any more"
    );

    // Not back before its first node has cleared away what it had.
    let back = world.state.nodes[&before.node].name.clone();
    let operation = world.moving("a", Some(&back));
    let early = World::arrive_command(operation, before.node, true);
    assert!(world.wrong_state(early).contains("left from before"));
    world.cleared(id, before.node);
    world.arrive(operation, before.node, true);
    assert_eq!(
        (world.find("a").node, world.left(id)),
        (before.node, vec![to])
    );
}

#[test]
fn a_move_that_fails_leaves_the_vm_where_it_was() {
    let mut world = World::new();
    let id = world.running("a");
    let before = world.find("a");
    let to = 3 - before.node;
    for cancelled in [true, false] {
        let operation = world.moving("a", None);
        if cancelled {
            world.ok(Command::CancelOperation {
                operation: operation.to_string(),
            });
            let late = World::arrive_command(operation, to, true);
            assert!(world.wrong_state(late).contains("given up"));
        }
        world.ok(Command::FailOperation {
            operation,
            reason: "no room".into(),
            cancelled,
        });
        let late = World::arrive_command(operation, to, true);
        assert!(world.wrong_state(late).contains("ended"));
        assert_eq!(
            (world.find("a"), world.left(id)),
            (Arc::clone(&before), vec![])
        );
        assert!(world.state.snapshots.is_empty());
    }
}

#[test]
fn a_moved_vm_of_which_nothing_could_be_made_starts_from_its_moment() {
    let mut world = World::new();
    world.running("a");
    let operation = world.moving("a", None);
    let to = world.state.operations[&operation].to.unwrap();
    world.arrive(operation, to, true);
    world.children(operation, &[(0, "its process ended")]);
    let vm = world.find("a");
    assert_eq!((vm.node, vm.phase), (to, Phase::Failed));
    assert_eq!(vm.source, Source::Snapshot(operation.snapshot()));
    world.power("a", PowerAction::Start).unwrap();
}

#[test]
fn what_has_no_process_moves_as_a_disk() {
    let mut world = World::new();
    let id = world.running("a");
    world.power("a", PowerAction::Stop).unwrap();
    let early = world.move_command("a", None);
    assert!(world.wrong_state(early).contains("being stopped"));
    world.report(id, Phase::Stopped);
    let from = world.find("a").node;
    let operation = world.moving("a", None);
    let wrong = World::arrive_command(operation, 3 - from, true);
    world.wrong_state(wrong);
    world.arrive(operation, 3 - from, false);
    assert!(!world.is_open(operation));
    let vm = world.find("a");
    assert_eq!((vm.node, vm.phase), (3 - from, Phase::Stopped));
    assert_eq!(vm.disk, Some(vec![7, 8]));
    // From its record on, that says it.
    world.power("a", PowerAction::Start).unwrap();
    world.report(id, Phase::Running);
    assert_eq!(world.find("a").disk, None);
}

#[test]
fn a_suspended_vm_moves_when_its_moment_is_there() {
    let mut world = World::new();
    let id = world.running("a");
    let suspend = Command::SuspendVm {
        operation: OperationId(world.id()),
        vm: "a".into(),
        mode: CaptureMode::Auto,
        expires_at: 9_000,
    };
    let suspended = world.begun(suspend);
    world.ready(suspended);
    world.children(suspended, &[(0, "")]);
    let operation = world.moving("a", None);
    let to = world.state.operations[&operation].to.unwrap();
    let early = World::arrive_command(operation, to, false);
    assert!(world.wrong_state(early).contains("not there yet"));
    world.ok(Command::HoldSnapshot {
        snapshot: suspended.snapshot(),
        node: to,
    });
    world.arrive(operation, to, false);
    let vm = world.find("a");
    assert_eq!((vm.node, vm.phase, vm.id), (to, Phase::Suspended, id));
    assert_eq!(vm.source, Source::Snapshot(suspended.snapshot()));
}

#[test]
fn a_vm_is_moved_only_where_it_can_go_on() {
    let mut world = World::new();
    world.running("a");
    let here = world.find("a").node;
    let (there, other) = (world.state.nodes[&here].name.clone(), 3 - here);
    let refused = world.move_command("a", Some(&there));
    assert!(world.wrong_state(refused).contains("already"));
    world.ok(Command::ReportNode {
        node: other,
        address: "h:1".into(),
        capacity: Capacity {
            qemu_version: "9.2.0".into(),
            ..capacity()
        },
    });
    let refused = world.move_command("a", None);
    let Rejection::NoCapacity { reasons, .. } = world.refused(refused) else {
        panic!("it is another QEMU's");
    };
    let all = reasons.join("; ");
    assert!(
        all.contains("9.2.0") && all.contains("is where it lives"),
        "{all}"
    );
}

#[test]
fn a_drained_node_takes_nothing_and_tells_what_stays() {
    let mut world = World::new();
    let id = world.running("a");
    let node = world.find("a").node;
    let name = world.state.nodes[&node].name.clone();
    world.drain(&name);
    let stays = |world: &World| {
        let drain = world.state.nodes[&node].drain.as_ref();
        drain.map(|drain| drain.stays.len())
    };
    assert!(!world.state.nodes[&node].schedulable);
    for (of, known) in [(3 - node, 0), (node, 1)] {
        world.ok(Command::StayOnNode {
            node: of,
            vm: id,
            reason: "no room".into(),
        });
        assert_eq!(stays(&world), Some(known));
    }
    // Asked for again, all are tried again.
    world.drain(&name);
    assert_eq!(stays(&world), Some(0));
    world.ok(Command::StayOnNode {
        node,
        vm: id,
        reason: "no room".into(),
    });
    let operation = world.moving("a", None);
    world.arrive(operation, 3 - node, true);
    assert_eq!(stays(&world), Some(0));
    world.ok(Command::CordonNode {
        node: name,
        schedulable: true,
    });
    assert_eq!(stays(&world), None);
}

#[test]
fn a_node_that_is_removed_ends_moves_to_it() {
    let mut world = World::new();
    world.running("a");
    let from = world.find("a").node;
    let operation = world.moving("a", None);
    let to = world.state.nodes[&(3 - from)].name.clone();
    world.ok(Command::DeleteNode {
        node: to,
        force: true,
    });
    assert!(!world.is_open(operation));
    assert_eq!(world.find("a").node, from);
}

#[test]
fn a_drain_leaves_a_majority_of_the_voters() {
    let mut world = World::new();
    for name in ["n3", "n4", "n5", "n6"] {
        let node = world.join(name);
        world.report_capacity(node, capacity());
    }
    let drain = |node: &str, voters: &[NodeId], silent: &[NodeId], force| Command::DrainNode {
        node: node.into(),
        voters: voters.to_vec(),
        silent: silent.to_vec(),
        force,
        rest: false,
    };
    let three = &[1, 2, 3];
    assert_eq!(
        world.wrong_state(drain("n1", three, &[2], false)),
        "cannot be drained: without it 2 of 3 voters would be away, and 2 must be there: n2 is offline; bring n2 back first, or use --force"
    );
    // Who has no vote takes none away; nor does one that is silent itself take more.
    world.ok(drain("n4", three, &[2], false));
    world.ok(drain("n2", three, &[2], false));
    let problem = world.wrong_state(drain("n1", three, &[], false));
    assert!(
        problem.contains("n2 is drained; `fpagent node uncordon n2`"),
        "{problem}"
    );
    // Asked for again, it is as it was; and who says so has it.
    world.ok(drain("n2", three, &[1], false));
    world.ok(drain("n1", three, &[], true));
    // Five do with three; two need both, and one itself.
    let five = &[1, 2, 3, 5, 6];
    let problem = world.wrong_state(drain("n5", five, &[], false));
    assert!(
        problem.contains("3 of 5 voters would be away, and 3 must"),
        "{problem}"
    );
    for (voters, counts) in [(&[5, 6][..], "1 of 2"), (&[5], "1 of 1")] {
        let problem = world.wrong_state(drain("n5", voters, &[], false));
        assert!(
            problem.contains(counts) && problem.contains("join more"),
            "{problem}"
        );
    }
    world.ok(drain("n5", &[2, 3, 4, 5, 6], &[], true));
}
