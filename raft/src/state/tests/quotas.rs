//! What owners have, and how much they may.

use super::*;

fn of(owner: &str, quota: Quota) -> Command {
    Command::SetQuota {
        owner: owner.into(),
        quota,
    }
}

/// A world in which Ann may have so much.
fn world(quota: Quota) -> World {
    let mut world = World::new();
    world.ok(Command::Share {
        object: ObjectName::Image("tiny".into()),
        with: None,
        stop: false,
    });
    world.ok(of("ann", quota));
    world.by = Actor::user("ann");
    world
}

impl World {
    fn over(&mut self, command: Command) -> Vec<String> {
        match self.refused(command) {
            Rejection::OverQuota { owner, exceeded } => {
                assert_eq!(owner, "ann");
                exceeded
            }
            other => panic!("{other}"),
        }
    }

    fn used(&self) -> Usage {
        self.state.used_by("ann")
    }
}

#[test]
fn what_is_made_is_counted_and_what_is_too_much_refused() {
    let mut world = world(Quota {
        vms: Some(3),
        cpus: Some(3),
        ..Quota::default()
    });
    world.running("a");
    let more = world.fork_command(ForkSource::Vm("a".into()), 3, None);
    assert_eq!(
        world.over(more),
        [
            "1 of 3 VMs are used, and 3 more asked for",
            "1 of 3 processors are used, and 3 more asked for"
        ]
    );
    // Two fit, both or none.
    let forked = world.fork("a", 2, None);
    world.ready(forked);
    assert_eq!((world.used().vms, world.used().snapshots), (3, 1));
    let another = world.vm("b");
    assert_eq!(world.over(another.clone()).len(), 2);
    // Others are not in its way.
    let by = std::mem::replace(&mut world.by, Actor::user("bob"));
    world.ok(another.clone());
    world.by = by;
    // One that could not be forked counts no more, as one that is deleted.
    world.ok(Command::FailOperation {
        operation: forked,
        reason: "no memory".into(),
        cancelled: false,
    });
    assert_eq!(world.used().vms, 1);
    world.delete("a");
    assert_eq!(world.used(), Usage::default());
    assert!(world.state.owners().all(|owner| owner != "ann"));
}

#[test]
fn what_runs_counts_for_processors_and_memory_and_what_is_stopped_for_its_disk() {
    let mut world = world(Quota {
        memory_bytes: Some(256 * MIB),
        ..Quota::default()
    });
    let a = world.running("a");
    world.power("a", PowerAction::ForceStop).unwrap();
    assert_eq!(
        (world.used().memory_bytes, world.used().disk_bytes),
        (0, 64 * MIB)
    );
    world.running("b");
    let start = Command::SetPower {
        vm: "a".into(),
        action: PowerAction::Start,
    };
    assert_eq!(world.over(start.clone()).len(), 1);
    assert_eq!(world.state.vms[&a].boot, 1);
    // A guest that powers off gives way.
    let b = world.find("b").id;
    world.report(b, Phase::Stopped);
    world.ok(start);
    // Nothing more is needed for what runs already.
    world.report(a, Phase::Running);
    world.power("a", PowerAction::Restart).unwrap();
    world.power("a", PowerAction::Pause).unwrap();
}

#[test]
fn suspended_vms_cannot_all_be_resumed_at_once() {
    let mut world = world(Quota {
        memory_bytes: Some(512 * MIB),
        ..Quota::default()
    });
    for name in ["a", "b"] {
        world.running(name);
        let suspend = Command::SuspendVm {
            operation: OperationId(world.id()),
            vm: name.into(),
            mode: CaptureMode::Auto,
            expires_at: world.now + 60_000,
        };
        let operation = world.begun(suspend);
        world.ready(operation);
        world.children(operation, &[(0, "")]);
        assert_eq!(world.find(name).power, Power::Suspended);
    }
    assert_eq!((world.used().memory_bytes, world.used().snapshots), (0, 2));
    world.by = Actor::cluster();
    world.ok(of(
        "ann",
        Quota {
            memory_bytes: Some(256 * MIB),
            ..Quota::default()
        },
    ));
    world.by = Actor::user("ann");
    let resume = |world: &mut World, vm: &str| Command::ResetVm {
        operation: OperationId(world.id()),
        vm: vm.into(),
        to: None,
        paused: false,
        expires_at: world.now + 60_000,
    };
    let (first, second) = (resume(&mut world, "a"), resume(&mut world, "b"));
    let operation = world.begun(first);
    assert_eq!(world.used().memory_bytes, 256 * MIB);
    assert_eq!(world.over(second.clone()).len(), 1);
    // It came to nothing: there is room again.
    world.ok(Command::FailOperation {
        operation,
        reason: "x".into(),
        cancelled: false,
    });
    assert_eq!(world.used().memory_bytes, 0);
    world.ok(second);
}

#[test]
fn snapshots_and_images_count() {
    let mut world = world(Quota {
        snapshots: Some(1),
        images: Some(1),
        ..Quota::default()
    });
    let (own, other) = (world.image("own"), world.image("other"));
    world.ok(own);
    assert_eq!(world.over(other).len(), 1);
    world.running("a");
    let capture = world.capture("a", Some("gold"));
    world.ready(capture);
    let more = [
        world.capture_command("a", None),
        world.fork_command(ForkSource::Vm("a".into()), 1, None),
        Command::SuspendVm {
            operation: OperationId(world.id()),
            vm: "a".into(),
            mode: CaptureMode::Auto,
            expires_at: 90_000,
        },
    ];
    for command in more {
        assert_eq!(world.over(command).len(), 1);
    }
    // A fork of what is kept makes no other.
    let source = ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: None,
    };
    let fork = world.fork_command(source, 2, None);
    world.ok(fork);
}

#[test]
fn a_quota_is_said_piece_by_piece_and_taken_back() {
    let mut world = world(Quota {
        vms: Some(1),
        ..Quota::default()
    });
    world.by = Actor::cluster();
    world.ok(of(
        "ann",
        Quota {
            cpus: Some(7),
            ..Quota::default()
        },
    ));
    let quota = world.state.quotas["ann"];
    assert_eq!((quota.vms, quota.cpus), (Some(1), Some(7)));
    assert_eq!(world.invalid(of("A b", Quota::default())), "owner");
    let delete = Command::DeleteQuota {
        owner: "ann".into(),
    };
    world.ok(delete.clone());
    assert!(matches!(world.refused(delete), Rejection::NotFound { .. }));
    world.by = Actor::user("ann");
    for name in ["a", "b"] {
        world.running(name);
    }
}
