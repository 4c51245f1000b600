//! VMs that go on elsewhere when their node is lost: which, from what, where, and what is said of it.

use super::*;

/// A VM on the first node of three, to be restored elsewhere, and a snapshot of it that the second has, too.
fn world() -> (World, VmId, OperationId) {
    let mut world = World::new();
    world.join("n3");
    world.report_capacity(3, capacity());
    let mut create = world.vm("a");
    if let Command::CreateVm {
        node,
        candidates,
        ha,
        ..
    } = &mut create
    {
        (*node, *ha, *candidates) = (Some("n1".to_owned()), true, online(1..=3));
    }
    world.ok(create);
    let id = world.find("a").id;
    world.report(id, Phase::Running);
    let operation = world.held_by(2);
    (world, id, operation)
}

impl World {
    /// A snapshot of the VM that a node has beside the one that took it.
    fn held_by(&mut self, node: NodeId) -> OperationId {
        self.now += 1_000;
        let operation = self.capture("a", None);
        self.ready(operation);
        let snapshot = operation.snapshot();
        self.ok(Command::TagSnapshot {
            snapshot: snapshot.to_string(),
            name: format!("s{}", self.now),
        });
        self.ok(Command::HoldSnapshot { snapshot, node });
        operation
    }

    fn lose(&mut self, node: NodeId, rest: impl IntoIterator<Item = NodeId>) {
        self.now += 10_000;
        self.ok(Command::RestoreVms {
            node,
            silent_for: 7_000,
            candidates: online(rest),
        });
    }

    fn protect(&mut self, ha: bool) {
        self.ok(Command::ProtectVm {
            vm: "a".into(),
            snapshots: None,
            ha: Some(ha),
            candidates: online(1..=3),
        });
    }
}

#[test]
fn it_goes_on_where_its_newest_moment_is() {
    let (mut world, vm, first) = world();
    let before = world.find("a");
    assert!(world.state.would_restore(1, &online([2, 3])));
    world.lose(1, [2, 3]);
    let found = world.find("a");
    assert_eq!((found.id, found.node, found.boot), (vm, 2, before.boot + 1));
    assert_eq!(found.source, Source::Snapshot(first.snapshot()));
    assert_eq!((found.phase, found.power), (Phase::Pending, Power::Running));
    assert_eq!(found.ha, Ha::Restore);
    let restored = found.restored.clone().unwrap();
    assert_eq!((restored.from, restored.snapshot), (1, first.snapshot()));
    // It was heard of 3 s after the moment was taken, and 7 s before it was given up.
    assert_eq!((restored.lost(), restored.at), (3_000, world.now));
    let left = &world.state.tombstones[&ObjectId::Left(vm)];
    assert_eq!(left.nodes, [1].into());
    assert!(!world.state.would_restore(1, &online([2, 3])));
    // What its old node says of it is no news.
    let said = world.apply(Command::ReportVms {
        node: 1,
        reports: vec![report(vm, before.boot, Phase::Failed)],
    });
    assert!(said.is_ok());
    assert_eq!(world.find("a").phase, Phase::Pending);
    world.report(vm, Phase::Running);

    // A newer one is better, wherever it is; where it was is no place before that is cleared away.
    let second = world.held_by(3);
    world.lose(2, [1, 3]);
    let found = world.find("a");
    assert_eq!(
        (found.node, found.source),
        (3, Source::Snapshot(second.snapshot()))
    );
    world.report(vm, Phase::Running);
    world.lose(3, [1, 2]);
    assert_eq!(world.find("a").node, 3, "both have something of it left");
    world.ok(Command::Purged {
        node: 1,
        objects: vec![ObjectId::Left(vm)],
    });
    world.lose(3, [1, 2]);
    assert_eq!(world.find("a").node, 1);
}

#[test]
fn only_what_is_meant_and_can_be_is_restored() {
    let (world, vm, _) = world();
    let with = |change: &dyn Fn(&mut World)| {
        let mut world = World {
            state: world.state.clone(),
            by: world.by.clone(),
            ..World::new()
        };
        (world.now, world.next) = (1_000_000, 10_000);
        change(&mut world);
        world.lose(1, [2, 3]);
        world.find("a").node
    };
    assert_eq!(with(&|_| {}), 2);
    assert_eq!(with(&|world| world.protect(false)), 1);
    // Its node has not said yet that it does not run on.
    let rearm = |world: &mut World| {
        world.protect(false);
        world.protect(true);
    };
    assert_eq!(with(&rearm), 1);
    let guarded_by = |node| {
        with(&|world| {
            rearm(world);
            let vms = vec![vm];
            world.ok(Command::GuardVms { node, vms });
        })
    };
    assert_eq!((guarded_by(1), guarded_by(2)), (2, 1));
    let phase = |phase| with(&|world| world.report(vm, phase));
    assert_eq!((phase(Phase::Failed), phase(Phase::Stopped)), (1, 1));
    assert_eq!(phase(Phase::Restarting), 2);
    let stop = |world: &mut World| {
        world.power("a", PowerAction::ForceStop).unwrap();
    };
    assert_eq!(with(&stop), 1);
    let cordon = |world: &mut World| {
        world.ok(Command::CordonNode {
            node: "n2".into(),
            schedulable: false,
        });
    };
    assert_eq!(with(&cordon), 1, "the only other one that has its moment");
}

#[test]
fn nothing_to_change_is_no_change() {
    let (mut world, ..) = world();
    let nothing = Command::ProtectVm {
        vm: "a".into(),
        snapshots: None,
        ha: None,
        candidates: online(1..=3),
    };
    assert_eq!(world.invalid(nothing), "snapshots");
}

#[test]
fn what_was_being_done_to_it_has_ended() {
    let (mut world, vm, moment) = world();
    let captured = world.capture("a", Some("later"));
    let forked = world.fork("a", 1, None);
    world.lose(1, [2, 3]);
    for operation in [captured, forked] {
        let state = &world.state.operations[&operation].state;
        assert!(
            matches!(state, OperationState::Failed { reason, .. } if reason.contains("was lost")),
            "{state:?}"
        );
    }
    assert_eq!(world.find("a").node, 2);
    // Another move begins from where it is now.
    world.report(vm, Phase::Running);
    assert_eq!(world.find("a").source, Source::Snapshot(moment.snapshot()));
    world.capture("a", None);
}

#[test]
fn what_it_could_be_restored_from_is_known() {
    let (mut world, vm, first) = world();
    let point = |world: &World| {
        let vm = &world.state.vms[&vm];
        world.state.restore_point(vm).map(|snapshot| snapshot.id)
    };
    assert_eq!(point(&world), Some(first.snapshot()));
    let second = world.capture("a", None);
    world.ready(second);
    assert_eq!(
        point(&world),
        Some(first.snapshot()),
        "its node alone has the newer"
    );
    world.ok(Command::HoldSnapshot {
        snapshot: second.snapshot(),
        node: 3,
    });
    assert_eq!(point(&world), Some(second.snapshot()));
}
