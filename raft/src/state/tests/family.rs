//! Families: VMs whose guests may fork themselves, and how many of those there may be.

use super::*;

impl World {
    /// A running VM whose line may hold so many that guests made.
    fn founder(&mut self, name: &str, most: u32) -> VmId {
        let mut command = self.vm(name);
        let Command::CreateVm { self_fork, .. } = &mut command else {
            panic!()
        };
        *self_fork = most;
        self.ok(command);
        let id = self.find(name).id;
        self.report(id, Phase::Running);
        id
    }

    /// A guest's request to fork its own VM.
    fn guests_fork(&mut self, vm: &str, count: u32) -> Command {
        let mut command = self.fork_command(ForkSource::Vm(vm.into()), count, None);
        let Command::Fork { by_guest, .. } = &mut command else {
            panic!()
        };
        *by_guest = true;
        command
    }

    /// Lets a guest fork its VM; the children run.
    fn forked_itself(&mut self, vm: &str, count: u32) {
        let command = self.guests_fork(vm, count);
        let operation = self.begun(command);
        self.ready(operation);
        let results: Vec<_> = (0..count).map(|index| (index, "")).collect();
        self.children(operation, &results);
    }

    /// Why a family has no room.
    fn no_room(&mut self, vm: &str, count: u32) -> String {
        let command = self.guests_fork(vm, count);
        match self.refused(command) {
            Rejection::NoCapacity { reasons, .. } => reasons.join(";"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_family_is_its_founders_whole_line() {
    let mut world = World::new();
    let founder = world.founder("a", 39);
    world.forked_itself("a", 3);
    for child in ["a-1", "a-2", "a-3"] {
        world.forked_itself(child, 3);
        for grandchild in 1..=3 {
            world.forked_itself(&format!("{child}-{grandchild}"), 3);
        }
    }
    let of_guests = world.state.vms.values().filter(|vm| vm.by_guest);
    assert_eq!(of_guests.count(), 3 + 9 + 27);
    let last = world.find("a-3-3-3");
    assert_eq!((last.family, last.spec.self_fork), (Some(founder), 39));
    assert_eq!(last.place, Some(Place { index: 2, count: 3 }));

    // The limit is the line's, whoever of it asks.
    for vm in ["a", "a-1", "a-2-2", "a-3-3-3"] {
        let why = world.no_room(vm, 1);
        assert!(why.contains("39 VMs, 39 of theirs"), "{why}");
    }
}

#[test]
fn what_ended_or_is_gone_gives_its_place_back() {
    let mut world = World::new();
    world.founder("a", 3);
    world.no_room("a", 4);
    world.forked_itself("a", 3);
    world.no_room("a-1", 1);

    world.delete("a-1");
    world.no_room("a", 2);
    world.forked_itself("a", 1);
    world.no_room("a", 1);
    let ended = world.find("a-2").id;
    for phase in [Phase::Failed, Phase::Stopped] {
        world.report(ended, phase);
        let command = world.guests_fork("a", 1);
        let operation = world.begun(command);
        // One that is only on its way counts.
        world.no_room("a", 1);
        world.ok(Command::FailOperation {
            operation,
            reason: "x".into(),
            cancelled: false,
        });
    }
    // The founder's end ends nothing.
    world.delete("a");
    world.forked_itself("a-3", 1);
    let why = world.no_room("a-3", 1);
    assert!(why.contains("\"a-3\""), "{why}");
}

#[test]
fn what_users_fork_takes_no_place_and_is_of_the_family() {
    let mut world = World::new();
    let founder = world.founder("a", 1);
    let operation = world.fork("a", 5, None);
    world.ready(operation);
    world.children(operation, &[(0, ""), (1, ""), (2, ""), (3, ""), (4, "")]);
    let child = world.find("a-5");
    assert_eq!((child.family, child.by_guest), (Some(founder), false));
    world.forked_itself("a-5", 1);
    world.no_room("a-4", 1);
}

#[test]
fn forks_of_a_members_snapshot_are_of_its_family() {
    let mut world = World::new();
    let founder = world.founder("a", 1);
    let operation = world.capture("a", Some("gold"));
    world.ready(operation);
    world.forked_itself("a", 1);
    world.delete("a");
    let source = ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: None,
    };
    let command = world.fork_command(source.clone(), 1, Some("b"));
    let forked = world.begun(command);
    world.children(forked, &[(0, "")]);
    assert_eq!(world.find("b").family, Some(founder));
    world.no_room("b", 1);

    // A guest forks itself, not what was kept of it.
    let mut command = world.fork_command(source, 1, None);
    let Command::Fork { by_guest, .. } = &mut command else {
        panic!()
    };
    *by_guest = true;
    assert_eq!(world.invalid(command), "source");
}

#[test]
fn a_guest_without_the_right_is_refused() {
    let mut world = World::new();
    world.running("a");
    assert_eq!(world.find("a").family, None);
    let command = world.guests_fork("a", 1);
    assert!(world.wrong_state(command).contains("--allow-self-fork"));
    // A right is no way around what all forks need.
    let founder = world.founder("b", 9);
    world.report(founder, Phase::Paused);
    world.forked_itself("b", 1);
    world.report(founder, Phase::Failed);
    let command = world.guests_fork("b", 1);
    assert!(world.wrong_state(command).contains("not running"));
}

#[test]
fn a_reset_vm_has_its_new_specs_family() {
    let mut world = World::new();
    let founder = world.founder("a", 2);
    let operation = world.capture("a", Some("gold"));
    world.ready(operation);
    let mut command = world.vm("b");
    let Command::CreateVm { node, .. } = &mut command else {
        panic!()
    };
    *node = Some("n1".into());
    world.ok(command);
    let id = world.find("b").id;
    world.report(id, Phase::Running);
    let reset = Command::ResetVm {
        operation: OperationId(world.id()),
        vm: "b".into(),
        to: Some(("gold".into(), None)),
        paused: false,
        expires_at: world.now + 60_000,
    };
    let operation = world.begun(reset);
    world.children(operation, &[(0, "")]);
    let vm = world.find("b");
    assert_eq!((vm.spec.self_fork, vm.family), (2, Some(founder)));
}
