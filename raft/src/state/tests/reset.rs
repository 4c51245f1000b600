//! Going back, suspending and resuming.

use super::*;

impl World {
    fn reset_command(&mut self, vm: &str, to: Option<&str>) -> Command {
        Command::ResetVm {
            operation: OperationId(self.id()),
            vm: vm.into(),
            to: to.map(|name| (name.into(), None)),
            paused: false,
            expires_at: self.now + 60_000,
        }
    }

    fn suspend_command(&mut self, vm: &str) -> Command {
        Command::SuspendVm {
            operation: OperationId(self.id()),
            vm: vm.into(),
            mode: CaptureMode::Auto,
            expires_at: self.now + 60_000,
        }
    }

    /// A running VM `a` with its snapshot `s`.
    fn with_snapshot() -> (Self, VmId, SnapshotId) {
        let mut world = Self::new();
        let vm = world.running("a");
        let operation = world.capture("a", Some("s"));
        world.ready(operation);
        (world, vm, operation.snapshot())
    }

    fn suspended(&mut self, vm: &str) -> SnapshotId {
        let command = self.suspend_command(vm);
        let operation = self.begun(command);
        self.ready(operation);
        self.children(operation, &[(0, "")]);
        operation.snapshot()
    }
}

#[test]
fn a_reset_vm_is_the_same_one_at_another_moment() {
    let (mut world, id, snapshot) = World::with_snapshot();
    let before = world.find("a");
    let command = world.reset_command("a", Some("s"));
    let operation = world.begun(command);
    // Nothing comes between.
    let forked = world.fork_command(ForkSource::Vm("a".into()), 1, None);
    let (again, captured, suspended) = (
        world.reset_command("a", Some("s")),
        world.capture_command("a", None),
        world.suspend_command("a"),
    );
    for refused in [
        again,
        captured,
        suspended,
        forked,
        Command::SetPower {
            vm: "a".into(),
            action: PowerAction::Stop,
        },
    ] {
        let problem = world.wrong_state(refused);
        assert!(problem.contains(&operation.to_string()), "{problem}");
    }
    // What it goes back to stays.
    let refused = world.refused(Command::DeleteSnapshot {
        snapshot: "s".into(),
    });
    assert!(matches!(refused, Rejection::InUse { .. }), "{refused}");

    world.children(operation, &[(0, "")]);
    let after = world.find("a");
    assert_eq!((after.id, after.node), (id, before.node));
    assert_eq!(after.source, Source::Snapshot(snapshot));
    assert_eq!((after.boot, after.reported_boot), (2, 2));
    assert_eq!((after.power, after.phase), (Power::Running, Phase::Running));
    assert_eq!(
        world.state.operations[&operation].state,
        OperationState::Complete
    );
    assert_eq!(
        dependents_of_snapshot(&world.state, &world.by, snapshot),
        ["VM a"]
    );
}

#[test]
fn a_reset_that_fails_leaves_the_vm_as_it_was_unless_it_had_given_way() {
    let (mut world, _, snapshot) = World::with_snapshot();
    let before = world.find("a");
    let command = world.reset_command("a", Some("s"));
    let operation = world.begun(command);
    world.children(operation, &[(0, "no memory")]);
    assert_eq!(world.find("a"), before);

    let command = world.reset_command("a", Some("s"));
    let operation = world.begun(command);
    let result = ChildResult {
        gave_way: true,
        ..result("it died")
    };
    world.ok(Command::ReportChildren {
        operation,
        results: vec![(0, result)],
    });
    let after = world.find("a");
    assert_eq!(
        (after.phase, after.source),
        (Phase::Failed, Source::Snapshot(snapshot))
    );
    // Starting it tries again.
    world.power("a", PowerAction::Start).unwrap();
    assert_eq!(world.find("a").boot, 3);
}

#[test]
fn a_fork_that_is_reset_leaves_the_snapshot_it_came_from() {
    let (mut world, _, snapshot) = World::with_snapshot();
    let forked = world.fork("a", 1, Some("f"));
    world.ready(forked);
    world.children(forked, &[(0, "")]);
    let command = world.reset_command("f", Some("s"));
    let operation = world.begun(command);
    world.children(operation, &[(0, "")]);
    assert_eq!(world.find("f").source, Source::Snapshot(snapshot));
    assert!(!world.state.snapshots.contains_key(&forked.snapshot()));
}

#[test]
fn only_a_moment_of_such_a_machine_on_the_same_node_is_gone_back_to() {
    let (mut world, _, _) = World::with_snapshot();
    let mut other = world.vm("b");
    if let Command::CreateVm { cpus, node, .. } = &mut other {
        (*cpus, *node) = (2, Some("n1".into()));
    }
    world.ok(other);
    let id = world.find("b").id;
    world.report(id, Phase::Running);
    let command = world.reset_command("b", Some("s"));
    assert_eq!(world.invalid(command), "snapshot");

    let lives = world.find("a").node;
    let elsewhere = if lives == 1 { "n2" } else { "n1" };
    let mut away = world.vm("c");
    if let Command::CreateVm { node, .. } = &mut away {
        *node = Some(elsewhere.into());
    }
    world.ok(away);
    let id = world.find("c").id;
    world.report(id, Phase::Running);
    let command = world.reset_command("c", Some("s"));
    let problem = world.wrong_state(command);
    assert!(problem.contains(elsewhere), "{problem}");

    let command = world.reset_command("a", None);
    let problem = world.wrong_state(command);
    assert!(problem.contains("not suspended"), "{problem}");
}

#[test]
fn a_suspended_vm_goes_on_from_its_moment() {
    let (mut world, id, _) = World::with_snapshot();
    let moment = world.suspended("a");
    let vm = world.find("a");
    assert_eq!((vm.power, vm.phase), (Power::Suspended, Phase::Suspended));
    assert_eq!(vm.source, Source::Snapshot(moment));
    for action in [PowerAction::Start, PowerAction::Resume, PowerAction::Pause] {
        assert!(world.power("a", action).is_err());
    }
    let problem = {
        let command = world.capture_command("a", None);
        world.wrong_state(command)
    };
    assert!(problem.contains("suspended"), "{problem}");

    let command = world.reset_command("a", None);
    let operation = world.begun(command);
    world.children(operation, &[(0, "")]);
    let vm = world.find("a");
    assert_eq!((vm.id, vm.phase), (id, Phase::Running));
    // And again: the first moment is what the second came from.
    let second = world.suspended("a");
    assert_eq!(world.state.snapshots[&second].parent, Some(moment));
    world.delete("a");
    assert!(!world.state.snapshots.contains_key(&second));
    assert!(!world.state.snapshots.contains_key(&moment));
}

#[test]
fn a_suspended_vm_that_is_stopped_gives_its_moment_up() {
    let (mut world, _, _) = World::with_snapshot();
    let moment = world.suspended("a");
    world.power("a", PowerAction::Stop).unwrap();
    let vm = world.find("a");
    assert_eq!(
        (vm.power, vm.source),
        (Power::Stopped { force: true }, Source::Image)
    );
    assert!(!world.state.snapshots.contains_key(&moment));
}

#[test]
fn a_suspension_that_fails_leaves_nothing() {
    let (mut world, _, _) = World::with_snapshot();
    let before = world.find("a");
    let command = world.suspend_command("a");
    let operation = world.begun(command);
    world.ready(operation);
    world.children(operation, &[(0, "disk full")]);
    assert_eq!(world.find("a"), before);
    assert!(!world.state.snapshots.contains_key(&operation.snapshot()));

    let command = world.suspend_command("a");
    let operation = world.begun(command);
    world.ok(Command::FailOperation {
        operation,
        reason: "x".into(),
        cancelled: true,
    });
    assert_eq!(world.find("a"), before);
}
