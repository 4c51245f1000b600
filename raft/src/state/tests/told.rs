//! What VMs are made with for their guests, and what is known of a guest's becoming itself.

use super::*;

/// A VM's command, altered.
fn altered(
    world: &mut World,
    change: impl FnOnce(&mut Network, &mut Vec<u16>, &mut u32),
) -> Command {
    let mut command = world.vm("b");
    let Command::CreateVm {
        network,
        publish,
        self_fork,
        ..
    } = &mut command
    else {
        panic!()
    };
    change(network, publish, self_fork);
    command
}

/// A fork of `a` with these settings.
fn told(world: &mut World, given: Labels) -> Command {
    let mut command = world.fork_command(ForkSource::Vm("a".into()), 2, None);
    let Command::Fork { settings, .. } = &mut command else {
        panic!()
    };
    *settings = given;
    command
}

#[test]
fn published_ports() {
    let mut world = World::new();
    for bad in [vec![0], vec![80, 0], vec![80, 22, 80], (1..=65).collect()] {
        let command = altered(&mut world, |_, publish, _| *publish = bad);
        assert_eq!(world.invalid(command), "publish");
    }
    let command = altered(&mut world, |network, publish, _| {
        (*network, *publish) = (Network::None, vec![80]);
    });
    assert_eq!(world.invalid(command), "publish");
    let command = altered(&mut world, |network, publish, _| {
        *network = Network::User { egress: false };
        *publish = (1..=64).rev().collect();
    });
    world.ok(command);
    let id = world.find("b").id;
    world.report(id, Phase::Running);
    let operation = world.fork("b", 1, None);
    let child = &world.state.vms[&operation.child(0)];
    assert_eq!(child.spec.publish, (1..=64).collect::<Vec<_>>(), "in order");
    assert_eq!(child.spec.network, Network::User { egress: false });
}

#[test]
fn a_right_has_a_limit() {
    let mut world = World::new();
    let command = altered(&mut world, |_, _, most| *most = 1_001);
    assert_eq!(world.invalid(command), "selfFork");
    let command = altered(&mut world, |_, _, most| *most = 1_000);
    world.ok(command);
    let vm = world.find("b");
    assert_eq!(vm.family, Some(vm.id));
}

#[test]
fn settings_have_keys_and_limits() {
    let mut world = World::new();
    world.running("a");
    let one = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
    let many = |count: usize, bytes: usize| -> Labels {
        (0..count)
            .map(|number| (format!("k{number:03}"), "v".repeat(bytes)))
            .collect()
    };
    for bad in [
        one("", "x"),
        one("1a", "x"),
        one("a b", "x"),
        one("a=b", "x"),
        one(&"k".repeat(64), "x"),
        one("k", "a\0b"),
        one("k", &"v".repeat(4097)),
        many(65, 1),
        // With 4 bytes of key each: 16 bytes more than there may be.
        many(4, 4096),
    ] {
        let command = told(&mut world, bad);
        assert_eq!(world.invalid(command), "settings");
    }
    for good in [
        one("_A.b-9", "two\nlines\t"),
        one("k", &"v".repeat(4096)),
        many(64, 252),
    ] {
        let command = told(&mut world, good);
        world.ok(command);
    }
}

#[test]
fn a_fork_is_told_its_settings_and_its_place_and_passes_neither_on() {
    let mut world = World::new();
    world.running("a");
    let given = Labels::from([("role".to_owned(), "worker".to_owned())]);
    let command = told(&mut world, given.clone());
    let operation = world.begun(command);
    world.ready(operation);
    world.children(operation, &[(0, ""), (1, "")]);
    for index in [0, 1] {
        let child = &world.state.vms[&operation.child(index)];
        assert_eq!(child.settings, given);
        assert_eq!(child.place, Some(Place { index, count: 2 }));
    }
    world.fork("a-1", 1, Some("b"));
    let grandchild = world.find("b");
    assert_eq!(grandchild.settings, Labels::new());
    assert_eq!(grandchild.place, Some(Place { index: 0, count: 1 }));
    assert_eq!(world.find("a").place, None);
}

#[test]
fn failed_steps_are_of_one_boot() {
    let mut world = World::new();
    world.running("a");
    let operation = world.fork("a", 1, None);
    world.ready(operation);
    let failed_one = ChildResult {
        ready_us: 9,
        failed_steps: vec!["clock: refused".into()],
        ..result("")
    };
    world.ok(Command::ReportChildren {
        operation,
        results: vec![(0, failed_one)],
    });
    let id = operation.child(0);
    let steps = |world: &World| world.state.vms[&id].failed_steps.clone();
    assert_eq!(steps(&world), ["clock: refused"]);
    assert_eq!(world.state.vms[&id].phase, Phase::Running);
    assert_eq!(
        world.state.operations[&operation].results[&0].ready_us, 9,
        "for the answer"
    );

    let tell = |world: &mut World, boot, failed: &[&str]| {
        world.ok(Command::ReportSteps {
            vm: id,
            boot,
            failed: failed.iter().map(|step| (*step).into()).collect(),
        });
    };
    tell(&mut world, 1, &["clock: refused", "hook x: 1"]);
    assert_eq!(steps(&world), ["clock: refused", "hook x: 1"]);
    for boot in [0, 2] {
        tell(&mut world, boot, &["another"]);
        assert_eq!(steps(&world).len(), 2, "of another boot");
    }
    world.power("a-1", PowerAction::Restart).unwrap();
    assert_eq!(steps(&world), [""; 0], "a new boot begins anew");
    tell(&mut world, 1, &["late"]);
    assert_eq!(steps(&world), [""; 0]);
    world.delete("a-1");
    tell(&mut world, 2, &["gone"]);
}

#[test]
fn a_guests_exit_code_is_kept() {
    let mut world = World::new();
    let id = world.running("a");
    let exited = |code| Ending {
        cause: EndCause::Exited,
        detail: format!("its guest exited with {code}"),
        at: 7,
        exit_code: Some(code),
    };
    for (code, phase) in [(3, Phase::Failed), (0, Phase::Stopped)] {
        world.report_all(VmReport {
            ending: Some(exited(code)),
            ..report(id, world.state.vms[&id].boot, phase)
        });
        let vm = world.find("a");
        assert_eq!((vm.phase, vm.ending.clone()), (phase, Some(exited(code))));
        world.power("a", PowerAction::Start).unwrap();
        assert_eq!(world.find("a").ending, Some(exited(code)), "it stays told");
    }
}

#[test]
fn an_image_says_what_its_guests_answer_with() {
    let mut world = World::new();
    let mut image = world.image("debian");
    let Command::ImportImage { guest_agent, .. } = &mut image else {
        panic!()
    };
    *guest_agent = GuestAgent::Qemu;
    world.ok(image);
    let found = names::image(&world.state, &world.by, "debian").unwrap();
    assert_eq!(found.guest_agent, GuestAgent::Qemu);
}
