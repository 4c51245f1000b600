//! Snapshots that are taken by a schedule: when, how many are kept, and what they go with.

use super::*;

const EVERY: Millis = 60_000;

/// A VM of which so many snapshots are kept, on so many nodes.
fn world(keep: u32, replicas: u32) -> (World, VmId) {
    let mut world = World::new();
    let id = world.running("a");
    world.ok(protect(keep, replicas));
    (world, id)
}

fn protect(keep: u32, replicas: u32) -> Command {
    Command::ProtectVm {
        vm: "a".into(),
        ha: None,
        snapshots: Some(ScheduleChange::Follow(Schedule {
            every: EVERY,
            keep,
            replicas,
        })),
        candidates: online([1, 2]),
    }
}

impl World {
    fn take_command(&mut self, vm: VmId) -> Command {
        Command::TakeScheduled {
            operation: OperationId(self.id()),
            vm,
            node: self.state.vms[&vm].node,
            candidates: online([1, 2]),
            expires_at: self.now + 60_000,
        }
    }

    /// Takes one that is due, and brings it to its node's disk.
    fn taken(&mut self, vm: VmId) -> SnapshotId {
        let take = self.take_command(vm);
        let operation = self.begun(take);
        self.ready(operation);
        let snapshot = operation.snapshot();
        let node = self.state.vms[&vm].node;
        let content = self.state.snapshots[&snapshot].content.as_ref();
        let layers = content.map_or(0, |content| content.layers.len());
        self.ok(Command::SecureSnapshot {
            snapshot,
            node,
            checksums: Checksums {
                base: 1,
                layers: vec![1; layers],
            },
        });
        self.now += EVERY;
        snapshot
    }

    fn copied(&mut self, snapshot: SnapshotId) {
        for node in [1, 2] {
            self.ok(Command::HoldSnapshot { snapshot, node });
        }
    }

    fn snapshots_there(&self) -> Vec<SnapshotId> {
        self.state.snapshots.values().map(|one| one.id).collect()
    }

    fn due(&self, vm: VmId) -> Vec<VmId> {
        let node = self.state.vms[&vm].node;
        self.state
            .snapshots_due(node, self.now, 2, &Default::default())
    }
}

#[test]
fn one_is_taken_at_a_time_and_what_was_missed_is_not_made_up_for() {
    let (mut world, vm) = world(3, 1);
    assert_eq!(world.due(vm), [vm]);
    let take = world.take_command(vm);
    let operation = world.begun(take);
    assert_eq!(world.due(vm), []);
    world.now += 5 * EVERY;
    // It is due again, and the one before is still under way.
    assert_eq!(world.due(vm), []);
    let take = world.take_command(vm);
    world.wrong_state(take);
    world.ready(operation);
    assert_eq!(world.due(vm), [vm]);
    let take = world.take_command(vm);
    let operation = world.begun(take);
    world.ready(operation);
    assert_eq!(world.due(vm), []);
    let take = world.take_command(vm);
    world.wrong_state(take);
    world.now += EVERY - 1;
    assert_eq!(world.due(vm), []);
    world.now += 1;
    assert_eq!(world.due(vm), [vm]);
    // One that failed leaves nothing, and is not tried before its time.
    let take = world.take_command(vm);
    let operation = world.begun(take);
    world.ok(Command::FailOperation {
        operation,
        reason: "no".into(),
        cancelled: false,
    });
    assert_eq!((world.due(vm), world.snapshots_there().len()), (vec![], 2));
    world.now += EVERY;
    world.report(vm, Phase::Failed);
    assert_eq!(world.due(vm), []);
    world.ok(Command::ProtectVm {
        vm: "a".into(),
        snapshots: Some(ScheduleChange::Stop),
        ha: None,
        candidates: vec![],
    });
    world.report(vm, Phase::Running);
    assert_eq!((world.due(vm), world.snapshots_there().len()), (vec![], 2));
}

#[test]
fn older_ones_go_once_newer_ones_are_held_as_often_as_asked() {
    let (mut world, vm) = world(2, 2);
    let taken = [(); 2].map(|()| world.taken(vm));
    taken.iter().for_each(|one| world.copied(*one));
    let later = [(); 4].map(|()| world.taken(vm));
    // What is safe stays, and of what is not only the newest.
    let expected = [taken[0], taken[1], later[2], later[3]];
    assert_eq!(world.snapshots_there(), expected);
    world.copied(later[3]);
    assert_eq!(world.snapshots_there(), [taken[1], later[2], later[3]]);
    world.copied(later[2]);
    assert_eq!(world.snapshots_there(), [later[2], later[3]]);
    // One that got a name is its owner's, and one that was forked goes with its fork.
    world.ok(Command::TagSnapshot {
        snapshot: later[2].to_string(),
        name: "gold".into(),
    });
    let source = ForkSource::Snapshot {
        snapshot: later[3].to_string(),
        vm: None,
    };
    let fork = world.fork_command(source, 1, Some("child"));
    world.begun(fork);
    assert_eq!(world.find("child").schedule, None);
    world.ok(protect(1, 1));
    let last = [(); 2].map(|()| world.taken(vm));
    assert_eq!(world.snapshots_there(), [later[2], later[3], last[1]]);
    world.delete("child");
    assert_eq!(world.snapshots_there(), [later[2], last[1]]);
    world.delete("a");
    assert_eq!(world.snapshots_there(), [later[2]]);
}

#[test]
fn they_outlive_the_node_that_their_vm_was_lost_with() {
    let (mut world, vm) = world(2, 2);
    let taken = world.taken(vm);
    world.copied(taken);
    let node = world.state.vms[&vm].node;
    world.ok(Command::DeleteNode {
        node: format!("n{node}"),
        force: true,
    });
    assert_eq!(world.snapshots_there(), [taken]);
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut world, vm) = world(2, 1);
    let with = |every, keep, replicas| Command::ProtectVm {
        vm: "a".into(),
        ha: None,
        snapshots: Some(ScheduleChange::Follow(Schedule {
            every,
            keep,
            replicas,
        })),
        candidates: online([1, 2]),
    };
    assert_eq!(world.invalid(with(9_999, 3, 1)), "snapshots.every");
    assert_eq!(world.invalid(with(EVERY, 0, 1)), "snapshots.keep");
    assert_eq!(world.invalid(with(EVERY, 3, 0)), "replicas");
    let refused = world.refused(with(EVERY, 3, 3));
    assert!(matches!(refused, Rejection::TooFewNodes { .. }));
    let mut create = world.vm("b");
    if let Command::CreateVm { schedule, .. } = &mut create {
        *schedule = Some(Schedule {
            every: EVERY,
            keep: 3,
            replicas: 3,
        });
    }
    let refused = world.refused(create.clone());
    assert!(matches!(refused, Rejection::TooFewNodes { .. }));
    // What comes sooner counts at once.
    world.taken(vm);
    world.now -= EVERY;
    world.ok(with(20_000, 3, 1));
    world.now += 20_000;
    assert_eq!(world.due(vm), [vm]);
    let mut elsewhere = world.take_command(vm);
    if let Command::TakeScheduled { node, .. } = &mut elsewhere {
        *node = 3 - *node;
    }
    world.wrong_state(elsewhere);
}
