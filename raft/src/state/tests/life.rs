//! How long things are kept, and what is open on nodes that are gone.

use super::*;

impl World {
    fn lease(&mut self, ttl: Millis) -> LeaseId {
        let id = LeaseId(self.id());
        match self.ok(Command::CreateLease { id, ttl }) {
            Response::Lease(id) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Makes a VM that is kept so long.
    fn kept(&mut self, name: &str, how_long: Life) -> VmId {
        let mut command = self.vm(name);
        let Command::CreateVm { id, life, .. } = &mut command else {
            unreachable!("it is a VM")
        };
        *life = how_long;
        let id = *id;
        self.ok(command);
        id
    }

    /// Captures a VM in a snapshot that is kept so long.
    fn kept_snapshot(&mut self, vm: &str, name: Option<&str>, how_long: Life) -> OperationId {
        let mut command = self.capture_command(vm, name);
        let Command::CreateSnapshot { life, .. } = &mut command else {
            unreachable!("it is a capture")
        };
        *life = how_long;
        self.begun(command)
    }

    /// Lets time pass, and what has outlived it end.
    fn pass(&mut self, time: Millis) {
        self.now += time;
        self.ok(Command::Expire);
        assert!(self.state.overdue(self.now).is_empty());
    }

    fn names(&self) -> Vec<&str> {
        self.state.vms.by_name().map(|vm| &*vm.name).collect()
    }
}

#[test]
fn what_has_a_time_ends_with_it() {
    let mut world = World::new();
    let end = Life::Until(world.now + 5_000);
    let a = world.kept("a", end);
    world.kept("b", Life::Unbounded);
    world.pass(4_000);
    assert_eq!(world.names(), ["a", "b"]);
    world.pass(2_000);
    assert_eq!(world.names(), ["b"]);
    assert_eq!(world.buried(), ["a"], "its node has to end it");
    assert!(!world.state.vms.contains_key(&a));
    // It is given one later, another one, and none again.
    let set = |end| Command::SetLife {
        object: ObjectName::Vm("b".into()),
        life: end,
    };
    let over = set(Life::Until(world.now));
    assert_eq!(world.invalid(over), "ttl");
    let end = Life::Until(world.now + 1_000);
    world.ok(set(end));
    world.ok(set(Life::Unbounded));
    world.pass(10_000);
    assert_eq!(world.names(), ["b"]);
    let image = Command::SetLife {
        object: ObjectName::Image("tiny".into()),
        life: Life::Unbounded,
    };
    assert_eq!(world.invalid(image), "object");
}

#[test]
fn a_lease_keeps_things_while_it_is_renewed() {
    let mut world = World::new();
    world.running("a");
    let lease = world.lease(10_000);
    let life = Life::Leased(lease);
    let moment = world.kept_snapshot("a", None, life);
    world.ready(moment);
    let snapshot = ForkSource::Snapshot {
        snapshot: moment.snapshot().to_string(),
        vm: None,
    };
    let mut fork = world.fork_command(snapshot, 2, Some("f"));
    if let Command::Fork { life: kept, .. } = &mut fork {
        *kept = life;
    }
    let forked = world.begun(fork);
    world.children(forked, &[(0, ""), (1, "")]);
    world.pass(9_000);
    let renew = Command::RenewLease {
        lease: lease.to_string(),
    };
    world.ok(renew.clone());
    world.delete("f-1");
    world.delete("f-2");
    world.pass(9_000);
    assert!(
        world.state.snapshots.contains_key(&moment.snapshot()),
        "the lease keeps what nobody named"
    );
    world.kept("b", life);
    world.pass(1_000);
    assert_eq!(world.names(), ["a"], "it ended");
    assert!(!world.state.snapshots.contains_key(&moment.snapshot()));
    let gone = world.refused(renew);
    assert!(matches!(
        gone,
        Rejection::NotFound {
            kind: Kind::Lease,
            ..
        }
    ));
    // Nothing is made for a lease that is over.
    let mut late = world.vm("late");
    if let Command::CreateVm { life: kept, .. } = &mut late {
        *kept = life;
    }
    assert!(matches!(world.refused(late), Rejection::NotFound { .. }));
}

#[test]
fn a_lease_is_ended_at_once_and_is_its_owners() {
    let mut world = World::new();
    for ttl in [9_999, 24 * 3_600_000 + 1] {
        let id = LeaseId(world.id());
        assert_eq!(world.invalid(Command::CreateLease { id, ttl }), "ttl");
    }
    let lease = world.lease(10_000);
    world.kept("a", Life::Leased(lease));
    let end = Command::EndLease {
        lease: lease.to_string(),
    };
    let admin = std::mem::replace(&mut world.by, Actor::user("bob"));
    let hidden = world.refused(end.clone());
    assert!(matches!(hidden, Rejection::NotFound { .. }), "{hidden}");
    // An administrator sees bob's, and cannot have it keep what is not bob's.
    let bobs = world.lease(10_000);
    world.by = admin;
    let theirs = Command::SetLife {
        object: ObjectName::Vm("a".into()),
        life: Life::Leased(bobs),
    };
    assert!(matches!(world.refused(theirs), Rejection::NotFound { .. }));
    assert_eq!(world.ok(end), Response::EndedLease(lease));
    assert!(world.names().is_empty());
}

#[test]
fn a_snapshot_whose_time_is_over_goes_with_the_last_that_needs_it() {
    let mut world = World::new();
    world.running("a");
    let end = Life::Until(world.now + 5_000);
    let gold = world.kept_snapshot("a", Some("gold"), end);
    world.ready(gold);
    let fork = world.fork_command(
        ForkSource::Snapshot {
            snapshot: "gold".into(),
            vm: None,
        },
        1,
        Some("f"),
    );
    let forked = world.begun(fork);
    world.children(forked, &[(0, "")]);
    // One that is being made is given up.
    let late = world.kept_snapshot("a", Some("late"), end);
    world.pass(6_000);
    assert!(!world.state.snapshots.contains_key(&late.snapshot()));
    assert!(matches!(
        world.state.operations[&late].state,
        OperationState::Failed { .. }
    ));
    let kept = &world.state.snapshots[&gold.snapshot()];
    assert_eq!(kept.name, None, "it can be named again");
    world.delete("f");
    assert!(world.state.snapshots.is_empty());
}

#[test]
fn what_waits_for_a_node_that_is_gone_goes_on_without_it() {
    let mut world = World::new();
    world.running("a");
    let close = |node| Command::CloseParts {
        node,
        reason: "node n2 is silent".into(),
    };
    let mut spread = world.fork_command(ForkSource::Vm("a".into()), 2, Some("f"));
    if let Command::Fork { placing, .. } = &mut spread {
        *placing = Placing::Spread;
    }
    let forked = world.begun(spread);
    world.ready(forked);
    world.children(forked, &[(0, "")]);
    assert_eq!(world.state.parts_of(2), [forked]);
    world.ok(close(2));
    let operation = &world.state.operations[&forked];
    assert_eq!(operation.state, OperationState::Complete);
    assert_eq!(operation.results[&1].error, "node n2 is silent");
    assert_eq!(world.state.vms[&forked.child(1)].phase, Phase::Failed);
    assert!(world.state.parts_of(2).is_empty());

    // What only that node could capture fails as a whole; another's goes on.
    let capture = world.capture("a", Some("gold"));
    world.ok(close(2));
    let open = &world.state.operations[&capture].state;
    assert_eq!(*open, OperationState::Open);
    world.ok(close(1));
    let failed = &world.state.operations[&capture].state;
    assert!(matches!(failed, OperationState::Failed { reason, .. } if reason.contains("silent")));
    assert!(!world.state.snapshots.contains_key(&capture.snapshot()));
}
