//! Whose an object is, who finds it, and who may change it.

use super::*;

impl World {
    /// Does something on behalf of somebody.
    fn by<T>(&mut self, by: Actor, what: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.by, by);
        let done = what(self);
        self.by = before;
        done
    }

    fn share(&mut self, object: ObjectName, with: Option<&str>, stop: bool) -> Outcome {
        self.apply(Command::Share {
            object,
            with: with.map(Into::into),
            stop,
        })
    }
}

fn ann() -> Actor {
    Actor::user("ann")
}

fn bob() -> Actor {
    Actor::user("bob")
}

/// Ann has a VM `web` with the snapshot `gold`, all made from an image that everybody sees.
fn world() -> (World, VmId, SnapshotId) {
    let mut world = World::new();
    let tiny = ObjectName::Image("tiny".into());
    world.share(tiny, None, false).unwrap();
    let (vm, gold) = world.by(ann(), |world| {
        let vm = world.running("web");
        let gold = world.capture("web", Some("gold"));
        world.ready(gold);
        (vm, gold.snapshot())
    });
    (world, vm, gold)
}

/// Every command by which somebody names an object, with what it is called in it.
fn naming(
    world: &mut World,
    vm: &str,
    snapshot: &str,
    image: &str,
    operation: &str,
) -> Vec<Command> {
    let named = |text: &str| text.to_owned();
    let of_vm = |vm| ObjectName::Vm(vm);
    let mut create = world.vm("made");
    let Command::CreateVm { image: from, .. } = &mut create else {
        panic!()
    };
    *from = named(image);
    let actions = [
        PowerAction::Start,
        PowerAction::Stop,
        PowerAction::ForceStop,
        PowerAction::Pause,
        PowerAction::Resume,
        PowerAction::Restart,
    ];
    let mut commands: Vec<Command> = actions
        .map(|action| Command::SetPower {
            vm: named(vm),
            action,
        })
        .into();
    let reset =
        |world: &mut World, vm: &str, to: Option<(String, Option<String>)>| Command::ResetVm {
            operation: OperationId(world.id()),
            vm: vm.to_owned(),
            to,
            paused: false,
            expires_at: 90_000,
        };
    let share = |object| Command::Share {
        object,
        with: None,
        stop: false,
    };
    let source = |vm: Option<&str>| ForkSource::Snapshot {
        snapshot: named(snapshot),
        vm: vm.map(named),
    };
    commands.extend([
        create,
        Command::DeleteVm {
            vm: named(vm),
            force: true,
        },
        Command::SuspendVm {
            operation: OperationId(world.id()),
            vm: named(vm),
            mode: CaptureMode::Auto,
            expires_at: 90_000,
        },
        reset(world, vm, None),
        reset(world, vm, Some((named(snapshot), None))),
        reset(world, "mine", Some((named(snapshot), None))),
        reset(world, "mine", Some((named(snapshot), Some(named(vm))))),
        world.capture_command(vm, Some("mine")),
        world.fork_command(ForkSource::Vm(named(vm)), 1, None),
        world.fork_command(source(None), 1, None),
        world.fork_command(source(Some(vm)), 1, None),
        Command::TagSnapshot {
            snapshot: named(snapshot),
            name: "mine".into(),
        },
        Command::WarmSnapshot {
            snapshot: named(snapshot),
            vm: None,
            count: 1,
        },
        Command::ReplicateSnapshot {
            snapshot: named(snapshot),
            vm: None,
            replicas: 1,
            candidates: online([1, 2]),
        },
        Command::ProtectVm {
            vm: named(vm),
            snapshots: Some(ScheduleChange::Stop),
            ha: None,
            candidates: Vec::new(),
        },
        Command::DeleteSnapshot {
            snapshot: named(snapshot),
        },
        Command::DeleteImage {
            image: named(image),
        },
        Command::CancelOperation {
            operation: named(operation),
        },
        Command::CancelMap {
            map: named(operation),
        },
        Command::DeleteMap {
            map: named(operation),
            force: true,
        },
        world.map_of(ForkSource::Vm(named(vm))),
        world.map_of(source(None)),
        world.map_of(source(Some(vm))),
        share(of_vm(named(vm))),
        share(ObjectName::Snapshot(named(snapshot))),
        share(ObjectName::Image(named(image))),
    ]);
    commands
}

#[test]
fn what_is_not_there_for_somebody_is_not_found_as_if_it_never_was() {
    let (mut world, vm, gold) = world();
    world.by(ann(), |world| {
        let own = world.image("own");
        world.ok(own);
    });
    let operation = world.state.snapshots[&gold].operation;
    let own = names::image(&world.state, &ann(), "own").unwrap().id;
    world.by(bob(), |world| world.running("mine"));
    // The same commands with ids that never were.
    let nothing = VmId(u128::MAX).to_string();
    let there = [
        [
            vm.to_string(),
            gold.to_string(),
            own.to_string(),
            operation.to_string(),
        ],
        [
            "ann/web".into(),
            "ann/gold".into(),
            "ann/own".into(),
            operation.to_string(),
        ],
        [
            "web".into(),
            "gold".into(),
            "own".into(),
            operation.to_string(),
        ],
    ];
    for [vm, snapshot, image, operation] in there {
        let theirs = naming(&mut world, &vm, &snapshot, &image, &operation);
        let never = naming(&mut world, &nothing, &nothing, &nothing, &nothing);
        let before = digest(&world.state);
        for (theirs, never) in theirs.into_iter().zip(never) {
            let shown = format!("{theirs:?}");
            let (refused, as_never) = world.by(bob(), |world| {
                (world.refused(theirs), world.refused(never).to_string())
            });
            assert!(
                matches!(refused, Rejection::NotFound { .. }),
                "{shown}: {refused}"
            );
            let names = [&vm, &snapshot, &image, &operation];
            let mut same = refused.to_string();
            for name in names {
                same = same.replace(name.as_str(), &nothing);
            }
            assert_eq!(same, as_never, "{shown}");
        }
        assert_eq!(digest(&world.state), before);
    }
    // An administrator finds all of it.
    for name in ["web", "ann/web", &vm.to_string()] {
        assert_eq!(
            names::vm(&world.state, &Actor::cluster(), name).unwrap().id,
            vm
        );
    }
    assert_eq!(names::vm(&world.state, &ann(), "web").unwrap().id, vm);
}

#[test]
fn names_are_each_owners_own() {
    let (mut world, of_ann, _) = world();
    let of_bob = world.by(bob(), |world| world.running("web"));
    let found = |world: &World, by: &Actor, name: &str| {
        let found = names::vm(&world.state, by, name);
        found.map(|vm| vm.id)
    };
    assert_eq!(found(&world, &ann(), "web"), Ok(of_ann));
    assert_eq!(found(&world, &bob(), "web"), Ok(of_bob));
    assert!(found(&world, &Actor::user("carl"), "web").is_err());
    let ambiguous = found(&world, &Actor::cluster(), "web").unwrap_err();
    let Rejection::Ambiguous { matches, .. } = ambiguous else {
        panic!("{ambiguous}")
    };
    assert_eq!(matches, ["ann/web", "bob/web"]);
    assert_eq!(found(&world, &Actor::cluster(), "bob/web"), Ok(of_bob));
    assert_eq!(found(&world, &Actor::admin("bob"), "web"), Ok(of_bob));
    // Free numbers are those of who forks.
    let child = world.by(bob(), |world| world.fork("web", 1, None).child(0));
    assert_eq!(world.state.vms[&child].name, "web-1");
    let child = world.by(ann(), |world| world.fork("web", 1, None).child(0));
    assert_eq!(world.state.vms[&child].name, "web-1");
    // The same of snapshots and images.
    world.by(bob(), |world| {
        let gold = world.capture("web", Some("gold"));
        world.ready(gold);
        let image = world.image("tiny");
        world.ok(image);
    });
    let again = world.by(bob(), |world| {
        let image = world.image("tiny");
        world.refused(image)
    });
    assert!(matches!(again, Rejection::NameTaken { .. }), "{again}");
}

#[test]
fn a_full_id_is_nobody_elses_name() {
    let (mut world, vm, _) = world();
    let name = vm.to_string().to_lowercase();
    let trap = world.by(bob(), |world| world.running(&name));
    let share = ObjectName::Vm(name.clone());
    world.by(bob(), |world| world.share(share, None, false).unwrap());
    assert_eq!(names::vm(&world.state, &ann(), &name).unwrap().id, vm);
    // For whom no object has this id it is a name.
    assert_eq!(
        names::vm(&world.state, &Actor::user("carl"), &name)
            .unwrap()
            .id,
        trap
    );
}

#[test]
fn who_it_is_shared_with_uses_it_and_no_more() {
    let (mut world, vm, gold) = world();
    let (web, moment) = (
        ObjectName::Vm("web".into()),
        ObjectName::Snapshot("gold".into()),
    );
    let operation = world.state.snapshots[&gold].operation.to_string();
    world.by(bob(), |world| {
        // Where the snapshot is.
        let mut mine = world.vm("mine");
        let Command::CreateVm { node, .. } = &mut mine else {
            panic!()
        };
        *node = Some("n1".into());
        world.ok(mine);
        let id = world.find("mine").id;
        world.report(id, Phase::Running);
    });
    world.by(ann(), |world| {
        world.share(web.clone(), Some("bob"), false).unwrap();
        world.share(moment, None, false).unwrap();
    });
    assert_eq!(names::vm(&world.state, &bob(), "web").unwrap().id, vm);
    assert!(names::vm(&world.state, &Actor::user("carl"), "web").is_err());
    assert!(names::snapshot(&world.state, &Actor::user("carl"), "gold").is_ok());

    // Each command either uses it or is refused as another's.
    let (mut used, mut refused) = (0, 0);
    for command in naming(&mut world, "web", "gold", "tiny", &operation) {
        let shown = format!("{command:?}");
        let uses = matches!(
            command,
            Command::CreateVm { .. }
                | Command::CreateSnapshot { .. }
                | Command::Fork { .. }
                | Command::StartMap { .. }
        ) || matches!(&command, Command::ResetVm { vm, .. } if vm == "mine");
        // Nobody shares these.
        let is_operation = matches!(
            command,
            Command::CancelOperation { .. } | Command::CancelMap { .. } | Command::DeleteMap { .. }
        );
        let before = world.state.clone();
        let outcome = world.by(bob(), |world| world.apply(command));
        match outcome {
            Ok(_) => {
                assert!(uses, "{shown}");
                used += 1;
            }
            Err(Rejection::NotOwner { .. }) => {
                assert!(!uses, "{shown}");
                refused += 1;
            }
            Err(Rejection::NotFound { .. }) if is_operation => {}
            Err(other) => panic!("{shown}: {other}"),
        }
        // Each by itself.
        world.state = before;
    }
    assert_eq!((used, refused), (10, 19));

    // What comes of it is who forks's, and does not name what that one may not see.
    let children = world.by(bob(), |world| {
        let forked = world.fork("web", 2, Some("fork"));
        world.ready(forked);
        world.children(forked, &[(0, ""), (1, "")]);
        forked
    });
    assert_eq!(world.state.vms[&children.child(0)].ownership.owner, "bob");
    assert_eq!(
        world.state.snapshots[&children.snapshot()].ownership.owner,
        "bob"
    );
    assert!(names::operation(&world.state, &ann(), &children.to_string()).is_err());
    let shown =
        |world: &World, by: &Actor| dependents_of_snapshot(&world.state, by, children.snapshot());
    assert_eq!(shown(&world, &bob()), ["VM fork-1", "VM fork-2"]);
    assert_eq!(shown(&world, &ann()), ["2 of other owners"]);
    let parent = world.state.vms[&children.child(0)].parent.clone().unwrap();
    assert!(parent.is_seen_by(&world.state, &bob()));
    world.by(ann(), |world| {
        world.share(web, Some("bob"), true).unwrap();
    });
    assert!(!parent.is_seen_by(&world.state, &bob()));
    assert!(names::vm(&world.state, &bob(), "web").is_err());
}

#[test]
fn forks_of_a_shared_snapshot_are_not_called_as_a_vm_that_is_hidden() {
    let (mut world, _, _) = world();
    let gold = ObjectName::Snapshot("gold".into());
    world.by(ann(), |world| {
        world.share(gold, Some("bob"), false).unwrap()
    });
    let source = || ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: None,
    };
    let child = world.by(bob(), |world| {
        let command = world.fork_command(source(), 1, None);
        world.begun(command).child(0)
    });
    assert_eq!(world.state.vms[&child].name, "gold-1");
    // Of the one that is not shared nothing can be said, by its name neither.
    let by_vm = world.by(bob(), |world| {
        let source = ForkSource::Snapshot {
            snapshot: "gold".into(),
            vm: Some("web".into()),
        };
        let command = world.fork_command(source, 1, None);
        world.refused(command)
    });
    assert!(matches!(by_vm, Rejection::NotFound { .. }), "{by_vm}");
    let own = world.by(ann(), |world| {
        let command = world.fork_command(source(), 1, None);
        world.begun(command).child(0)
    });
    assert_eq!(world.state.vms[&own].name, "web-1");
}

#[test]
fn what_a_node_was_removed_with_is_told_its_owner() {
    let (mut world, vm, _) = world();
    let node = world.state.vms[&vm].node;
    world.ok(Command::DeleteNode {
        node: node.to_string(),
        force: true,
    });
    let why = |by: Actor, name: &str| names::vm(&world.state, &by, name).unwrap_err();
    for name in ["web", "ann/web", &vm.to_string()] {
        assert!(matches!(why(bob(), name), Rejection::NotFound { .. }));
        assert!(matches!(
            why(Actor::cluster(), name),
            Rejection::GivenUp { .. }
        ));
    }
    assert!(matches!(why(ann(), "web"), Rejection::GivenUp { .. }));
}

#[test]
fn request_ids_are_each_owners_own() {
    let mut world = World::new();
    let mut ask = |by: Actor, name: &str, body| {
        let proposal = Proposal {
            request: Some(RequestKey {
                id: "r-1".into(),
                body: [body; 32],
            }),
            by,
            now: 1,
            command: world.vm(name),
        };
        apply(&mut world.state, &proposal)
    };
    let first = ask(Actor::cluster(), "a", 1).unwrap();
    assert_eq!(ask(Actor::cluster(), "a", 1), Ok(first.clone()));
    // Another's with the same id is neither answered with it nor told of it.
    let refused = ask(bob(), "a", 2).unwrap_err();
    assert!(matches!(refused, Rejection::NotFound { .. }), "{refused}");
    assert_eq!(ask(Actor::cluster(), "a", 1), Ok(first));
}

#[test]
fn what_others_guests_may_is_not_inherited() {
    let (mut world, _, _) = world();
    let (root, child) = world.by(ann(), |world| {
        let mut command = world.vm("self");
        let Command::CreateVm { self_fork, .. } = &mut command else {
            panic!()
        };
        *self_fork = 2;
        world.ok(command);
        let root = world.find("self").id;
        world.report(root, Phase::Running);
        let shared = ObjectName::Vm("self".into());
        world.share(shared, Some("bob"), false).unwrap();
        (root, world.fork("self", 1, None).child(0))
    });
    assert_eq!(world.state.vms[&child].family, Some(root));
    let theirs = world.by(bob(), |world| world.fork("self", 1, None).child(0));
    assert_eq!(world.state.vms[&theirs].family, Some(theirs));
}

#[test]
fn no_owner_is_called_as_all_are() {
    let (mut world, _, _) = world();
    let everyone = Some(EVERYONE);
    let web = ObjectName::Vm("ann/web".into());
    assert!(matches!(
        world.share(web, everyone, false),
        Err(Rejection::InvalidField { field, .. }) if field == "with"
    ));
    let create = world.vm("mine");
    world.by = Actor::admin(EVERYONE);
    assert_eq!(world.invalid(create), "owner");
    let certificate = Command::IssueCertificate {
        id: CertificateId(1),
        name: EVERYONE.into(),
        owner: EVERYONE.into(),
        role: Role::Operator,
        expires_at: u64::MAX,
        authority: [1; 32],
        replace: false,
    };
    assert_eq!(world.invalid(certificate), "owner");
}
