//! VMs: making them, their power, what is reported of them.

use super::*;

macro_rules! with {
    ($command:expr, $field:ident = $value:expr $(, $($rest:tt)*)?) => {{
        let mut command = $command;
        let value = $value;
        let Command::CreateVm { $field: place, .. } = &mut command else { panic!() };
        *place = value;
        with!(command $(, $($rest)*)?)
    }};
    ($command:expr) => {
        $command
    };
}

#[test]
fn vms_are_spread_over_nodes() {
    let mut world = World::new();
    for name in ["a", "b", "c", "d"] {
        world.running(name);
    }
    let nodes: Vec<NodeId> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| world.find(name).node)
        .collect();
    assert_eq!(nodes, [1, 2, 1, 2]);
    let vm = world.find("a");
    assert_eq!((vm.power, vm.generation, vm.boot), (Power::Running, 1, 1));
    assert_eq!(vm.spec.disk_bytes, 64 * MIB, "the image's");
}

#[test]
fn a_vm_goes_where_it_fits() {
    let mut world = World::new();
    world.ok(Command::CordonNode {
        node: "n1".into(),
        schedulable: false,
    });
    let command = world.vm("a");
    world.ok(command);
    assert_eq!(world.find("a").node, 2);

    let command = with!(world.vm("b"), node = Some("n1".into()));
    assert!(world.wrong_state(command).contains("cordoned"));
    let reasons = |rejection| match rejection {
        Rejection::NoCapacity { reasons, .. } => reasons,
        other => panic!("{other}"),
    };
    let command = with!(
        world.vm("b"),
        node = Some("n2".into()),
        candidates = online([1])
    );
    assert_eq!(reasons(world.refused(command)), ["n2 is offline"]);
    let command = with!(world.vm("b"), memory_bytes = 8192 * MIB);
    let said = reasons(world.refused(command));
    assert_eq!(said.len(), 2, "one for each node: {said:?}");
    // The first is cordoned.
    let short = "n2 memory 1 short (8256 MiB each; of 4096 MiB 320 are promised)";
    assert_eq!(said, [short, "n1 is cordoned"]);
    let command = with!(world.vm("b"), accelerator = Accelerator::Kvm);
    assert!(reasons(world.refused(command))[1].contains("KVM"));
    let command = with!(world.vm("b"), node = Some("n9".into()));
    assert!(matches!(
        world.refused(command),
        Rejection::NotFound {
            kind: Kind::Node,
            ..
        }
    ));

    let no_qemu = Capacity {
        qemu_version: String::new(),
        ..capacity()
    };
    world.ok(Command::ReportNode {
        node: 2,
        address: "h2:7000".into(),
        capacity: no_qemu,
    });
    let command = with!(world.vm("b"), node = Some("n2".into()));
    assert!(reasons(world.refused(command))[0].contains("QEMU"));
    let third = world.join("n3");
    let command = with!(
        world.vm("b"),
        node = Some("n3".into()),
        candidates = online([third])
    );
    assert!(reasons(world.refused(command))[0].contains("not reported"));
}

#[test]
fn bad_vms_are_refused() {
    let mut world = World::new();
    world.running("a");
    let command = world.vm("a");
    assert_eq!(
        world.refused(command),
        Rejection::NameTaken {
            kind: Kind::Vm,
            name: "a".into()
        }
    );
    let command = with!(world.vm("b"), image = "none".into());
    assert!(matches!(
        world.refused(command),
        Rejection::NotFound {
            kind: Kind::Image,
            ..
        }
    ));
    let mut field = |expected: &str, command: Command| assert_eq!(world.invalid(command), expected);
    let mut make = World::new();
    let mut vm = || make.vm("b");
    for name in ["", "../x", "a,b", "a\nb", &"x".repeat(5_000)] {
        field("name", with!(vm(), name = name.to_owned()));
    }
    field("cpus", with!(vm(), cpus = 0));
    field("cpus", with!(vm(), cpus = 256));
    field("memory", with!(vm(), memory_bytes = 0));
    field("memory", with!(vm(), memory_bytes = 30 * MIB));
    field("memory", with!(vm(), memory_bytes = 255 * MIB));
    field("disk", with!(vm(), disk_bytes = 32 * MIB));
    field("disk", with!(vm(), disk_bytes = 64 * MIB + 1));
    field("cmdline", with!(vm(), cmdline = "a\0".into()));
    field("cpuModel", with!(vm(), cpu_model = Some("max;x".into())));
    field("cpuModel", with!(vm(), cpu_model = Some(String::new())));
    let mut limit = |field: &str, change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        let command = with!(make.vm("b"), limits = limits);
        assert_eq!(world.invalid(command), field);
    };
    limit("limits.cpu", |limits| limits.cpu_percent = Some(0));
    limit("limits.cpu", |limits| limits.cpu_percent = Some(25_501));
    limit("limits.memory", |limits| {
        limits.memory_bytes = Some(63 * MIB)
    });
    limit("limits.memory", |limits| {
        limits.memory_bytes = Some(u64::MAX)
    });
    limit("limits.pids", |limits| limits.pids = Some(15));
    limit("limits.pids", |limits| limits.pids = Some(u32::MAX));
    let mut field = |expected: &str, command: Command| assert_eq!(world.invalid(command), expected);
    let mut vm = || make.vm("b");
    field(
        "labels",
        with!(vm(), labels = Labels::from([("k".into(), "v".repeat(256))])),
    );
}

#[test]
fn a_vm_needs_a_kernel() {
    let mut world = World::new();
    let mut image = world.image("disk-only");
    let Command::ImportImage { kernel, .. } = &mut image else {
        panic!()
    };
    *kernel = None;
    world.ok(image);
    let command = with!(world.vm("a"), image = "disk-only".into());
    assert_eq!(world.invalid(command), "image");
}

#[test]
fn an_id_is_never_used_again() {
    let mut world = World::new();
    let id = world.running("a");
    let command = with!(world.vm("b"), id = id);
    world.wrong_state(command);
    world.delete("a");
    let command = with!(world.vm("b"), id = id);
    world.wrong_state(command);
    let command = world.vm("a");
    world.ok(command);
}

#[test]
fn power() {
    let mut world = World::new();
    let id = world.running("a");
    let facts = |world: &World| {
        let vm = &world.state.vms[&id];
        (vm.power, vm.generation, vm.boot, vm.phase)
    };
    let (stop, force) = (
        Power::Stopped { force: false },
        Power::Stopped { force: true },
    );
    let done = Ok(Response::Vm(id));

    for (action, expected) in [
        (PowerAction::Start, (Power::Running, 1, 1, Phase::Running)),
        (PowerAction::Resume, (Power::Running, 1, 1, Phase::Running)),
        (PowerAction::Pause, (Power::Paused, 2, 1, Phase::Running)),
        (PowerAction::Pause, (Power::Paused, 2, 1, Phase::Running)),
        (PowerAction::Resume, (Power::Running, 3, 1, Phase::Running)),
        (PowerAction::Restart, (Power::Running, 4, 2, Phase::Pending)),
        (PowerAction::Stop, (stop, 5, 2, Phase::Pending)),
        (PowerAction::Stop, (stop, 5, 2, Phase::Pending)),
        (PowerAction::ForceStop, (force, 6, 2, Phase::Pending)),
        (PowerAction::Stop, (force, 6, 2, Phase::Pending)),
        (PowerAction::Start, (Power::Running, 7, 3, Phase::Pending)),
        (PowerAction::Start, (Power::Running, 7, 3, Phase::Pending)),
    ] {
        assert_eq!(world.power("a", action), done, "{action:?}");
        assert_eq!(facts(&world), expected, "{action:?}");
    }

    world.power("a", PowerAction::Pause).unwrap();
    assert!(matches!(
        world.power("a", PowerAction::Start),
        Err(Rejection::WrongState { .. })
    ));
    world.power("a", PowerAction::Stop).unwrap();
    for action in [
        PowerAction::Pause,
        PowerAction::Resume,
        PowerAction::Restart,
    ] {
        assert!(
            matches!(world.power("a", action), Err(Rejection::WrongState { .. })),
            "{action:?}"
        );
    }
}

#[test]
fn a_failed_vm_is_started_again() {
    let mut world = World::new();
    let id = world.running("a");
    world.report(id, Phase::Failed);
    for action in [PowerAction::Pause, PowerAction::Resume] {
        assert!(
            matches!(world.power("a", action), Err(Rejection::WrongState { .. })),
            "{action:?}"
        );
    }
    world.power("a", PowerAction::Start).unwrap();
    let vm = world.find("a");
    assert_eq!(
        (vm.boot, vm.phase, vm.power),
        (2, Phase::Pending, Power::Running)
    );
}

#[test]
fn reports_of_older_boots_and_other_nodes_are_ignored() {
    let mut world = World::new();
    let id = world.running("a");
    world.power("a", PowerAction::Restart).unwrap();
    let before = world.state.clone();
    for (node, boot) in [(1, 1), (1, 3), (2, 2)] {
        world.ok(Command::ReportVms {
            node,
            reports: vec![VmReport {
                reason: "old".into(),
                ..report(id, boot, Phase::Stopped)
            }],
        });
    }
    assert_eq!(world.state, before);
}

#[test]
fn a_guest_that_powers_off_stays_off() {
    let mut world = World::new();
    let id = world.running("a");
    world.report(id, Phase::Stopped);
    let vm = world.find("a");
    assert_eq!(
        (vm.power, vm.generation, vm.phase),
        (Power::Stopped { force: false }, 2, Phase::Stopped)
    );
    world.report(id, Phase::Stopped);
    assert_eq!(world.find("a").generation, 2);
    world.power("a", PowerAction::Start).unwrap();
    assert_eq!(world.find("a").boot, 2);
}

/// A VM that panicked for the third time and waits to be started again.
fn waiting(world: &mut World) -> VmId {
    let command = with!(world.vm("a"), restart = RestartPolicy::OnFailure);
    world.ok(command);
    let id = world.find("a").id;
    world.report_all(VmReport {
        ending: Some(panic()),
        restarts: 2,
        next_start: Some(9_000),
        ..report(id, 1, Phase::Restarting)
    });
    id
}

fn panic() -> Ending {
    Ending {
        cause: EndCause::Panic,
        detail: "the guest's kernel panicked".into(),
        at: 5_000,
        exit_code: None,
    }
}

#[test]
fn a_vm_that_waits_to_be_started_again_is_started_at_once_on_request() {
    let mut world = World::new();
    let id = waiting(&mut world);
    let vm = world.find("a");
    assert_eq!(
        (vm.boot, vm.restarts, vm.next_start),
        (1, 2, Some(9_000)),
        "its node's account"
    );
    let fork = world.fork_command(ForkSource::Vm("a".into()), 1, None);
    assert!(world.wrong_state(fork).contains("started again"));

    world.power("a", PowerAction::Start).unwrap();
    let vm = world.find("a");
    assert_eq!(
        (vm.boot, vm.restarts, vm.next_start, vm.phase),
        (2, 0, None, Phase::Pending)
    );
    assert_eq!(vm.ending, Some(panic()), "what is past stays told");
    // It is being started: nobody waits, and once more would be once too often.
    world.report_all(VmReport {
        restarts: 1,
        ..report(id, 2, Phase::Restarting)
    });
    world.power("a", PowerAction::Start).unwrap();
    let vm = world.find("a");
    assert_eq!(
        (vm.boot, vm.restarts, vm.ending.clone()),
        (2, 1, Some(panic()))
    );
}

#[test]
fn a_vm_that_waits_to_be_started_again_can_be_stopped() {
    let mut world = World::new();
    let id = waiting(&mut world);
    world.power("a", PowerAction::Stop).unwrap();
    let vm = world.find("a");
    assert_eq!(
        (vm.power, vm.next_start),
        (Power::Stopped { force: false }, None)
    );
    // What its node said before it knew changes nothing about that.
    world.report_all(VmReport {
        next_start: Some(9_000),
        ..report(id, 1, Phase::Restarting)
    });
    assert_eq!(world.find("a").next_start, None);
    world.report(id, Phase::Stopped);
    world.power("a", PowerAction::Start).unwrap();
    assert_eq!(world.find("a").boot, 2);
}

#[test]
fn a_fork_has_its_parents_restart_policy() {
    let mut world = World::new();
    let command = with!(world.vm("a"), restart = RestartPolicy::Always);
    world.ok(command);
    let id = world.find("a").id;
    world.report(id, Phase::Running);
    world.fork("a", 1, None);
    assert_eq!(world.find("a-1").spec.restart, RestartPolicy::Always);
}

#[test]
fn a_running_vm_is_deleted_only_by_force() {
    let mut world = World::new();
    let id = world.running("a");
    let delete = |force| Command::DeleteVm {
        vm: "a".into(),
        force,
    };
    assert!(world.wrong_state(delete(false)).contains("--force"));
    world.power("a", PowerAction::Stop).unwrap();
    assert_eq!(world.ok(delete(false)), Response::DeletedVm(id));
    assert_eq!(world.state.tombstones[&ObjectId::Vm(id)].nodes, [1].into());
    assert!(matches!(
        world.refused(delete(true)),
        Rejection::NotFound { .. }
    ));
}

#[test]
fn vms_are_found_by_name_id_and_prefix() {
    let mut world = World::new();
    let first = world.running("a");
    let second = world.running("b");
    let text = first.to_string();
    assert_eq!(world.find("a").id, first);
    assert_eq!(world.find(&text).id, first);
    assert_eq!(world.find(&text.to_lowercase()).id, first);
    let differs = (1..=26)
        .find(|len| !second.to_string().starts_with(&text[..*len]))
        .unwrap();
    assert_eq!(world.find(&text[..differs]).id, first);
    assert!(matches!(
        names::vm(&world.state, &world.by, &text[..differs - 1]),
        Err(Rejection::Ambiguous { matches, .. }) if matches == [first.to_string(), second.to_string()]
    ));
    assert!(matches!(
        names::vm(&world.state, &world.by, ""),
        Err(Rejection::NotFound { .. })
    ));
    // A name that looks like the other's id is a name first.
    let tricky = with!(world.vm("c"), name = second.to_string().to_lowercase());
    world.ok(tricky);
    assert_ne!(world.find(&second.to_string().to_lowercase()).id, second);
}
