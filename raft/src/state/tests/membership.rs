//! The cluster, its nodes, tokens and images.

use super::*;

#[test]
fn a_cluster_is_founded_once() {
    let mut world = World::new();
    let found = |cluster| Command::Found {
        cluster,
        name: "x".into(),
        address: "h:1".into(),
    };
    assert_eq!(world.ok(found(ClusterId(1))), Response::Done);
    world.wrong_state(found(ClusterId(2)));
    assert_eq!(world.state.nodes.len(), 2);
    assert_eq!(world.state.nodes[&1].name, "n1");
}

#[test]
fn a_token_lets_one_node_in_until_it_ends() {
    let mut world = World::new();
    let join = |token: u8, name: &str| Command::Join {
        key_hash: [token; 32],
        name: name.into(),
        address: "h3:1".into(),
        newest_version: 1,
        start_by: 0,
    };
    let token = |id: u8, expires_at| Command::CreateToken {
        id: TokenId(id.into()),
        key_hash: [id; 32],
        expires_at,
        authority: [1; 32],
    };
    assert_eq!(world.refused(join(7, "n3")), Rejection::BadToken);
    world.ok(token(7, world.now + 10));
    assert_eq!(
        world.refused(join(7, "n1")),
        Rejection::NameTaken {
            kind: Kind::Node,
            name: "n1".into()
        }
    );
    assert_eq!(world.invalid(join(7, "N3")), "name");
    assert_eq!(
        world.ok(join(7, "n3")),
        Response::Node(3),
        "a refused join did not use it up"
    );
    assert_eq!(world.refused(join(7, "n4")), Rejection::BadToken);

    world.ok(token(8, world.now + 10));
    world.now += 10;
    assert_eq!(
        world.refused(join(8, "n4")),
        Rejection::BadToken,
        "it has ended"
    );
    assert_eq!(world.invalid(token(9, world.now)), "ttlSeconds");

    world.ok(token(10, world.now + 10));
    assert_eq!(
        world.state.tokens.len(),
        1,
        "tokens that ended are forgotten"
    );
    world.ok(Command::RevokeToken {
        id: TokenId(10).to_string(),
    });
    assert!(world.state.tokens.is_empty());
}

#[test]
fn a_certificate_has_a_name_to_itself_until_it_is_revoked_or_ends() {
    let mut world = World::new();
    let issue = |id, name: &str, expires_at| Command::IssueCertificate {
        id: CertificateId(id),
        name: name.into(),
        owner: "team".into(),
        role: Role::Operator,
        expires_at,
        authority: [1; 32],
        replace: false,
    };
    let revoke = |certificate: &str| Command::RevokeCertificate {
        certificate: certificate.into(),
    };
    let end = world.now + 10;
    assert_eq!(world.invalid(issue(7, "Ann", end)), "name");
    assert_eq!(world.invalid(issue(7, "ann", world.now)), "ttlSeconds");
    let seven = Response::Certificate(CertificateId(7));
    assert_eq!(world.ok(issue(7, "ann", end)), seven);
    let taken = Rejection::NameTaken {
        kind: Kind::Certificate,
        name: "ann".into(),
    };
    assert_eq!(world.refused(issue(8, "ann", end)), taken);
    world.wrong_state(issue(7, "bob", end));

    // By its name, which is free then; once more, by its id, it stays as it was.
    let revoked = world.now;
    assert_eq!(world.ok(revoke("ann")), seven);
    world.now += 1;
    assert_eq!(world.ok(revoke(&CertificateId(7).to_string())), seven);
    let state = &world.state;
    assert_eq!(
        state.certificates[&CertificateId(7)].revoked_at,
        Some(revoked)
    );
    world.ok(issue(8, "ann", end));
    assert_eq!(
        world.ok(revoke("ann")),
        Response::Certificate(CertificateId(8))
    );
    assert!(matches!(
        world.refused(revoke("ann")),
        Rejection::NotFound { .. }
    ));

    // Those that have ended are forgotten: nobody lets them in.
    world.now = end;
    world.ok(issue(9, "ann", end + 10));
    assert_eq!(world.state.certificates.len(), 1);
}

#[test]
fn nobody_joins_before_the_founding() {
    let mut state = State::new();
    let command = Command::CreateToken {
        id: TokenId(7),
        key_hash: [9; 32],
        expires_at: 99,
        authority: [1; 32],
    };
    let outcome = apply(
        &mut state,
        &Proposal {
            request: None,
            by: Actor::cluster(),
            now: 1,
            command,
        },
    );
    assert!(matches!(
        outcome,
        Err(Rejection::WrongState {
            kind: Kind::Token,
            ..
        })
    ));
    assert_eq!(state, State::new());
}

#[test]
fn addresses_are_hosts_with_ports() {
    let mut world = World::new();
    world.ok(Command::CreateToken {
        id: TokenId(7),
        key_hash: [9; 32],
        expires_at: world.now + 10,
        authority: [1; 32],
    });
    for address in ["", "host", "host:", ":1", "host:0", "host:70000", "a b:1"] {
        let join = Command::Join {
            key_hash: [9; 32],
            name: "n3".into(),
            address: address.into(),
            newest_version: 1,
            start_by: 0,
        };
        assert_eq!(world.invalid(join), "address", "{address}");
    }
    world.ok(Command::Join {
        key_hash: [9; 32],
        name: "n3".into(),
        address: "[::1]:7000".into(),
        newest_version: 1,
        start_by: 0,
    });
}

#[test]
fn reports_about_what_is_gone_do_nothing() {
    let mut world = World::new();
    let before = world.state.clone();
    let (vm, snapshot, operation) = (VmId(5), SnapshotId(6), OperationId(DERIVED_IDS));
    let report = report(vm, 1, Phase::Running);
    for command in [
        Command::ReportNode {
            node: 9,
            address: "h:1".into(),
            capacity: capacity(),
        },
        Command::ReportImage {
            image: ImageId(4),
            node: 1,
        },
        Command::ReportVms {
            node: 1,
            reports: vec![report],
        },
        Command::ReportChildren {
            operation,
            results: Vec::new(),
        },
        Command::FailOperation {
            operation,
            reason: "x".into(),
            cancelled: false,
        },
        Command::LostSnapshot {
            snapshot,
            node: 1,
            reason: String::new(),
        },
        Command::Purged {
            node: 1,
            objects: vec![ObjectId::Vm(vm), ObjectId::Snapshot(snapshot)],
        },
    ] {
        assert_eq!(world.ok(command), Response::Done);
    }
    assert_eq!(world.state, before);
}

#[test]
fn nodes_are_labelled_and_cordoned() {
    let mut world = World::new();
    let set = |key: &str| Labels::from([(key.to_owned(), "1".to_owned())]);
    world.ok(Command::LabelNode {
        node: "n1".into(),
        set: set("a"),
        remove: vec![],
    });
    world.ok(Command::LabelNode {
        node: "1".into(),
        set: set("b"),
        remove: vec!["a".into()],
    });
    assert_eq!(world.state.nodes[&1].labels, set("b"));
    let label = |set| Command::LabelNode {
        node: "n1".into(),
        set,
        remove: vec![],
    };
    assert_eq!(world.invalid(label(set("a\nb"))), "labels");
    assert_eq!(world.invalid(label(set(&"k".repeat(64)))), "labels");
    let many = (0..65).map(|i| (format!("k{i}"), String::new())).collect();
    assert_eq!(world.invalid(label(many)), "labels");

    world.ok(Command::CordonNode {
        node: "n1".into(),
        schedulable: false,
    });
    assert!(!world.state.nodes[&1].schedulable);
}

#[test]
fn an_image_in_use_stays() {
    let mut world = World::new();
    world.running("a");
    let delete = || Command::DeleteImage {
        image: "tiny".into(),
    };
    let used = Rejection::InUse {
        kind: Kind::Image,
        name: "tiny".into(),
        dependents: vec!["VM a".into()],
    };
    assert_eq!(world.refused(delete()), used);
    world.delete("a");
    let image = names::image(&world.state, &world.by, "tiny").unwrap().id;
    world.ok(Command::ReportImage { image, node: 2 });
    world.ok(delete());
    let object = ObjectId::Image(image);
    assert_eq!(world.state.tombstones[&object].nodes, [1, 2].into());
    world.ok(Command::Purged {
        node: 1,
        objects: vec![object],
    });
    world.ok(Command::Purged {
        node: 2,
        objects: vec![object],
    });
    assert!(!world.state.tombstones.contains_key(&object));
}

#[test]
fn an_image_fetched_while_it_is_deleted_is_deleted_there_too() {
    let mut world = World::new();
    let image = names::image(&world.state, &world.by, "tiny").unwrap().id;
    world.ok(Command::DeleteImage {
        image: "tiny".into(),
    });
    world.ok(Command::ReportImage { image, node: 2 });
    assert_eq!(
        world.state.tombstones[&ObjectId::Image(image)].nodes,
        [1, 2].into()
    );
}

#[test]
fn bad_images_are_refused() {
    let mut world = World::new();
    let mut alter = |change: fn(&mut Command)| {
        let mut command = world.image("other");
        change(&mut command);
        world.refused(command)
    };
    macro_rules! field {
        ($($field:ident = $value:expr),*) => {
            alter(|command| {
                let Command::ImportImage { $($field),*, .. } = command else { panic!() };
                $(*$field = $value;)*
            })
        };
    }
    assert!(matches!(
        field!(name = "tiny".into()),
        Rejection::NameTaken { .. }
    ));
    assert!(matches!(
        field!(node = 7),
        Rejection::NotFound {
            kind: Kind::Node,
            ..
        }
    ));
    for refused in [
        field!(name = "a/b".into()),
        field!(kernel = None, disk = None),
        field!(cmdline = "a\nb".into()),
        field!(cmdline = "x".repeat(5_000)),
        field!(ready_line = Some(String::new())),
    ] {
        assert!(
            matches!(refused, Rejection::InvalidField { .. }),
            "{refused}"
        );
    }
}

#[test]
fn the_oldest_agent_says_what_is_used() {
    let mut world = World::new();
    let raise = |to| Command::RaiseVersion { to };
    let report = |node, newest_version| Command::ReportNode {
        node,
        address: "h:1".into(),
        capacity: Capacity {
            newest_version,
            ..capacity()
        },
    };
    assert_eq!(world.state.version, 1);
    let nobody = Proposal {
        request: None,
        by: Actor::cluster(),
        now: 0,
        command: raise(2),
    };
    apply(&mut State::new(), &nobody).unwrap_err();
    world.ok(report(1, 3));
    let refused = world.wrong_state(raise(2));
    assert!(refused.contains("version 2"), "{refused}");
    world.ok(report(2, 2));
    world.wrong_state(raise(3));
    world.ok(raise(2));
    assert_eq!(world.state.version, 2);
    // It only grows.
    world.ok(raise(1));
    assert_eq!(world.state.version, 2);

    // Whoever is older does not get in, and has used up nothing.
    let join = |newest_version| Command::Join {
        key_hash: [9; 32],
        name: "n3".into(),
        address: "h3:1".into(),
        newest_version,
        start_by: 0,
    };
    world.ok(Command::CreateToken {
        id: TokenId(7),
        key_hash: [9; 32],
        expires_at: world.now + 10,
        authority: [1; 32],
    });
    let refused = world.wrong_state(join(1));
    assert!(refused.contains("cannot join"), "{refused}");
    assert_eq!(world.ok(join(2)), Response::Node(3));
    // One that has not reported keeps the version where it is.
    world.ok(report(1, 3));
    world.ok(report(2, 3));
    world.wrong_state(raise(3));
}
