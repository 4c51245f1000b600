//! Groups: who is in them, and their forks.

use super::*;

impl World {
    /// The command that makes a VM of a group.
    fn of_group(&mut self, name: &str, group: &str) -> Command {
        let mut command = self.vm(name);
        let Command::CreateVm {
            group: of,
            memory_bytes,
            ..
        } = &mut command
        else {
            panic!()
        };
        *of = Some(group.to_owned());
        // Sixteen of them fit.
        *memory_bytes = 64 * MIB;
        command
    }

    /// A member that runs.
    fn member(&mut self, name: &str, group: &str) -> VmId {
        let command = self.of_group(name, group);
        self.ok(command);
        let id = self.find(name).id;
        self.report(id, Phase::Running);
        id
    }

    fn group_fork(&mut self, group: &str, count: u32, name: Option<&str>) -> Command {
        Command::ForkGroup {
            operation: OperationId(self.id()),
            group: group.into(),
            count,
            name: name.map(Into::into),
            mode: CaptureMode::Auto,
            life: Life::Unbounded,
            candidates: online(self.state.nodes.keys().copied()),
            expires_at: self.now + 60_000,
        }
    }

    /// Begins a fork of a group, and gives its parts.
    fn fork_group(&mut self, group: &str, count: u32, name: Option<&str>) -> Vec<OperationId> {
        let command = self.group_fork(group, count, name);
        let first = self.begun(command);
        // Others' ids do not come so close.
        for _ in 0..MAX_MEMBERS {
            self.id();
        }
        self.state.parts_of_group(Some(first))
    }

    /// All members are captured.
    fn all_ready(&mut self, parts: &[OperationId]) {
        self.ok(Command::GroupCaptured {
            captured: parts.iter().map(|id| (*id, content(*id))).collect(),
        });
    }

    fn group_of(&self, name: &str) -> InGroup {
        self.find(name).group.clone().unwrap()
    }

    fn states(&self, parts: &[OperationId]) -> Vec<OperationState> {
        let state = |id| self.state.operations[id].state.clone();
        parts.iter().map(state).collect()
    }
}

#[test]
fn members_live_together_and_have_numbers_of_their_own() {
    let mut world = World::new();
    let mut on_second = world.of_group("db", "app");
    if let Command::CreateVm { node, .. } = &mut on_second {
        *node = Some("n2".into());
    }
    world.ok(on_second);
    // The first node is as free, and comes first.
    let web = world.member("web", "app");
    let db = world.find("db");
    assert_eq!(world.state.vms[&web].node, db.node);
    assert_eq!(db.node, 2);
    let group = |number| InGroup {
        id: db.id,
        name: "app".into(),
        number,
    };
    assert_eq!(
        (world.group_of("db"), world.group_of("web")),
        (group(1), group(2))
    );

    let mut elsewhere = world.of_group("x", "app");
    if let Command::CreateVm { node, .. } = &mut elsewhere {
        *node = Some("n1".into());
    }
    match world.refused(elsewhere) {
        Rejection::InvalidField { field, problem } => {
            assert_eq!(field, "node");
            assert!(problem.contains("n2"), "{problem}");
        }
        other => panic!("{other}"),
    }

    // A number that is free again is given again; the group goes on without its first.
    world.delete("db");
    world.member("queue", "app");
    assert_eq!(world.group_of("queue"), group(1));
    for name in ["web", "queue"] {
        world.delete(name);
    }
    world.member("new", "app");
    assert_ne!(world.group_of("new").id, db.id, "it is another one");
}

#[test]
fn a_group_has_so_many_members() {
    let mut world = World::new();
    for number in 1..=MAX_MEMBERS {
        world.member(&format!("m{number}"), "app");
    }
    let more = world.of_group("more", "app");
    match world.refused(more) {
        Rejection::WrongState { kind, problem, .. } => {
            assert_eq!(kind, Kind::Group);
            assert!(problem.contains("16"), "{problem}");
        }
        other => panic!("{other}"),
    }
    let parts = world.fork_group("app", 2, None);
    assert_eq!(parts.len(), MAX_MEMBERS as usize);
}

#[test]
fn a_fork_makes_whole_copies() {
    let mut world = World::new();
    world.member("db", "app");
    world.member("web", "app");
    // A number that is not free for one of the names is free for none.
    world.running("web-1");
    let parts = world.fork_group("app", 2, None);
    assert_eq!(parts.len(), 2);
    let (db, web) = (world.find("db-2"), world.find("web-2"));
    assert_eq!(db.group.as_ref().unwrap().name, "app-2");
    assert_eq!(
        (
            world.group_of("db-2").number,
            world.group_of("web-2").number
        ),
        (1, 2)
    );
    assert_eq!(world.group_of("db-2").id, db.id);
    assert_eq!(world.group_of("web-2").id, db.id);
    assert_eq!(world.group_of("web-3").name, "app-3");
    assert_eq!((db.node, web.node), (1, 1));

    // One of them alone is not known to be captured.
    world.wrong_state(Command::SnapshotReady {
        operation: parts[0],
        content: content(parts[0]),
    });
    let one = vec![(parts[0], content(parts[0]))];
    world.refused(Command::GroupCaptured { captured: one });
    world.all_ready(&parts);
    world.ok(Command::ReportGroup {
        results: vec![(parts[0], vec![(0, result("")), (1, result("no memory"))])],
    });
    assert!(
        world
            .states(&parts)
            .iter()
            .all(|state| *state == OperationState::Open)
    );
    world.ok(Command::ReportGroup {
        results: vec![(parts[1], vec![(0, result("")), (1, result("no memory"))])],
    });
    let complete = |state: &OperationState| *state == OperationState::Complete;
    assert!(world.states(&parts).iter().all(complete));
    assert_eq!(world.find("db-2").phase, Phase::Running);
    assert_eq!(world.find("web-3").phase, Phase::Failed);

    // Of a copy, too; with a name all that is made is called by it.
    let again = world.fork_group("app-2", 1, Some("try"));
    let name = |operation: &OperationId| world.state.vms[&operation.child(0)].name.clone();
    assert_eq!(
        again.iter().map(name).collect::<Vec<_>>(),
        ["try-db-2", "try-web-2"]
    );
    assert_eq!(world.group_of("try-db-2").name, "try");
    // A fork of one member is in none.
    let alone = world.fork("web", 1, Some("alone"));
    assert_eq!(world.state.vms[&alone.child(0)].group, None);
}

#[test]
fn a_fork_fails_as_a_whole() {
    let mut world = World::new();
    world.member("db", "app");
    let web = world.member("web", "app");
    let parts = world.fork_group("app", 2, None);
    world.ok(Command::FailOperation {
        operation: parts[1],
        reason: "member web could not be captured".into(),
        cancelled: false,
    });
    let failed = |state: &OperationState| matches!(state, OperationState::Failed { .. });
    assert!(world.states(&parts).iter().all(failed));
    assert_eq!(world.state.vms.len(), 2, "nothing is left of it");
    assert!(world.state.snapshots.is_empty());

    let parts = world.fork_group("app", 1, None);
    world.ok(Command::CancelOperation {
        operation: parts[1].to_string(),
    });
    let asked = |id: &OperationId| world.state.operations[id].cancel_requested;
    assert!(parts.iter().all(asked));
    world.ok(Command::FailOperation {
        operation: parts[0],
        reason: "it was cancelled".into(),
        cancelled: true,
    });

    world.report(web, Phase::Stopped);
    let stopped = world.group_fork("app", 1, None);
    world.wrong_state(stopped);
    assert_eq!(world.state.vms.len(), 2);
}

#[test]
fn what_has_no_room_is_refused_as_a_whole() {
    let mut world = World::new();
    world.member("db", "app");
    world.member("web", "app");
    let mut many = world.group_fork("app", 100, None);
    if let Command::ForkGroup { candidates, .. } = &mut many {
        // For one of the members it would do.
        *candidates = vec![Candidate {
            node: 1,
            room: Some(Room {
                memory_mib: 2_500,
                disk_mib: 1_000_000,
            }),
        }];
    }
    match world.refused(many) {
        Rejection::NoCapacity { wanted, .. } => assert_eq!(wanted, 100),
        other => panic!("{other}"),
    }
    world.ok(Command::SetQuota {
        owner: world.by.owner.clone(),
        quota: Quota {
            vms: Some(5),
            ..Quota::default()
        },
    });
    let two = world.group_fork("app", 2, None);
    assert!(matches!(world.refused(two), Rejection::OverQuota { .. }));
    world.fork_group("app", 1, None);
}

#[test]
fn names_that_are_taken_are_refused() {
    let mut world = World::new();
    world.member("db", "app");
    world.member("web", "app");
    world.member("x", "try");
    let taken = |rejection| match rejection {
        Rejection::NameTaken { kind, name } => (kind, name),
        other => panic!("{other}"),
    };
    let group = world.group_fork("app", 1, Some("try"));
    assert_eq!(taken(world.refused(group)), (Kind::Group, "try".into()));
    world.running("new-web");
    let vm = world.group_fork("app", 1, Some("new"));
    assert_eq!(taken(world.refused(vm)), (Kind::Vm, "new-web".into()));
    // Two members of different copies would be called the same.
    world.member("db-1", "app");
    world.member("web-1", "app");
    world.delete("db");
    world.delete("web");
    world.fork_group("app", 1, None);
    assert_eq!(world.group_of("db-1-1").name, "app-1");
}

#[test]
fn what_parts_a_member_from_the_others_is_refused() {
    let mut world = World::new();
    world.member("db", "app");
    world.member("web", "app");
    let operation = OperationId(world.id());
    let moved = world.refused(Command::MoveVm {
        operation,
        vm: "db".into(),
        node: None,
        candidates: online([1, 2]),
        expires_at: 99,
    });
    assert!(moved.to_string().contains("group \"app\""), "{moved}");

    let captured = world.capture("web", Some("then"));
    world.ready(captured);
    let reset = |vm: &str, operation| Command::ResetVm {
        operation,
        vm: vm.into(),
        to: Some(("then".into(), None)),
        paused: false,
        expires_at: 99,
    };
    let id = OperationId(world.id());
    let other = world.refused(reset("db", id));
    assert!(other.to_string().contains("member 1"), "{other}");
    let id = OperationId(world.id());
    world.ok(reset("web", id));
}

#[test]
fn a_group_is_its_owners() {
    let mut world = World::new();
    world.by = Actor::admin("ann");
    world.member("db", "app");
    world.by = Actor::user("bob");
    let not_there = |rejection: Rejection| {
        matches!(
            rejection,
            Rejection::NotFound {
                kind: Kind::Group,
                ..
            }
        )
    };
    let fork = world.group_fork("app", 1, None);
    assert!(not_there(world.refused(fork)));
    let fork = world.group_fork("ann/app", 1, None);
    assert!(not_there(world.refused(fork)));
    assert!(not_there(world.refused(Command::DeleteGroup {
        group: "app".into(),
        force: true,
    })));
    // Another administrator's bare name is anybody's.
    world.by = Actor::admin("carol");
    let parts = world.fork_group("app", 1, None);
    let copy = &world.state.vms[&parts[0].child(0)];
    assert_eq!(copy.ownership.owner, "carol");
    world.ok(Command::DeleteGroup {
        group: "ann/app".into(),
        force: true,
    });
    let left: Vec<&str> = world
        .state
        .vms
        .values()
        .map(|vm| vm.name.as_str())
        .collect();
    assert_eq!(left, ["db-1"]);
}
