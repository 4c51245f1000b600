//! Nodes that leave, newcomers that never start, and what becomes of what they had.

use super::*;

/// Makes a VM that runs on a node.
fn running_on(world: &mut World, node: &str, name: &str) -> VmId {
    let mut command = world.vm(name);
    let Command::CreateVm { node: asked, .. } = &mut command else {
        panic!()
    };
    *asked = Some(node.into());
    world.ok(command);
    let id = world.find(name).id;
    world.report(id, Phase::Running);
    id
}

fn delete(node: &str, force: bool) -> Command {
    Command::DeleteNode {
        node: node.into(),
        force,
    }
}

fn token(world: &mut World, byte: u8, life: Millis) -> [u8; 32] {
    let (id, key_hash) = (TokenId(world.id()), [byte; 32]);
    world.ok(Command::CreateToken {
        id,
        key_hash,
        expires_at: world.now + life,
        authority: [1; 32],
    });
    key_hash
}

fn join(world: &World, key_hash: [u8; 32], name: &str) -> Command {
    Command::Join {
        key_hash,
        name: name.into(),
        address: format!("{name}:7000"),
        newest_version: 1,
        start_by: world.now + 100,
    }
}

#[test]
fn a_node_that_has_nothing_of_its_own_is_removed_and_its_number_never_comes_back() {
    let mut world = World::new();
    assert_eq!(world.ok(delete("n2", false)), Response::DeletedNode(2));
    assert_eq!(world.state.removed[&2].name, "n2");
    assert!(matches!(
        world.refused(delete("n2", false)),
        Rejection::NotFound {
            kind: Kind::Node,
            ..
        }
    ));
    assert_eq!(world.join("n2"), 3);
    let last = world.wrong_state(delete("n1", true));
    assert!(last.contains("last node"), "3 has never started: {last}");
}

#[test]
fn what_only_a_node_has_is_in_its_way() {
    let mut world = World::new();
    running_on(&mut world, "n1", "a");
    let operation = world.capture("a", Some("gold"));
    world.ready(operation);
    let in_use = |dependents: &[&str]| Rejection::InUse {
        kind: Kind::Node,
        name: "n1".into(),
        dependents: dependents.iter().map(|&text| text.to_owned()).collect(),
    };
    let all = ["VM a", "snapshot gold", "image tiny"];
    assert_eq!(world.refused(delete("n1", false)), in_use(&all));
    let image = names::image(&world.state, &world.by, "tiny").unwrap().id;
    world.ok(Command::ReportImage { image, node: 2 });
    assert_eq!(world.refused(delete("n1", false)), in_use(&all[..2]));
    world.delete("a");
    world.ok(Command::DeleteSnapshot {
        snapshot: "gold".into(),
    });
    world.ok(delete("1", false));
    assert!(world.buried().is_empty(), "nobody is left to delete them");
    assert_eq!(world.state.images[&image].nodes, [2].into());
}

#[test]
fn what_is_given_up_with_a_node_is_told() {
    let mut world = World::new();
    let vm = running_on(&mut world, "n2", "a");
    let named = world.capture("a", Some("gold"));
    world.ready(named);
    let fork = world.fork("a", 2, Some("c"));
    world.ready(fork);
    world.children(fork, &[(0, "")]);
    let mut image = world.image("other");
    let Command::ImportImage { node, .. } = &mut image else {
        panic!()
    };
    *node = 2;
    world.ok(image);
    world.ok(delete("n2", true));

    let removed = Arc::clone(&world.state.removed[&2]);
    let vms: Vec<&String> = removed.vms.values().map(|vm| &vm.name).collect();
    assert_eq!(vms, ["a", "c-1"], "the other child was never one");
    assert_eq!(removed.images.values().collect::<Vec<_>>(), ["other"]);
    assert_eq!(removed.snapshots[&named.snapshot()], "gold");
    assert!(world.state.vms.is_empty() && world.state.tombstones.is_empty());
    // Who looks for it is told; the named snapshot is still listed, as lost; the fork's own has gone.
    let given_up = |name: &str| Rejection::GivenUp {
        kind: Kind::Vm,
        name: name.into(),
        node: "n2".into(),
    };
    for name in ["a", "c-1", &vm.to_string()] {
        let found = names::vm(&world.state, &world.by, name);
        assert_eq!(found.unwrap_err(), given_up(name));
    }
    let gold = Arc::clone(names::snapshot(&world.state, &world.by, "a@gold").unwrap());
    assert!(gold.nodes.is_empty() && gold.lost.contains("node n2 was removed"));
    assert_eq!(world.state.snapshots.len(), 1);
    assert!(
        !world
            .state
            .images
            .values()
            .any(|image| image.name == "other")
    );
    let OperationState::Failed { reason, cancelled } = &world.state.operations[&fork].state else {
        panic!()
    };
    assert!(reason.contains("n2 was removed") && !cancelled, "{reason}");
    // The names are free.
    world.running("a");
    assert!(names::vm(&world.state, &world.by, "a").is_ok());
}

#[test]
fn what_others_depend_on_stays_listed() {
    let mut world = World::new();
    let vm = running_on(&mut world, "n2", "a");
    let moment = world.capture("a", None);
    world.ready(moment);
    let fork = world.fork("a", 1, Some("b"));
    world.ready(fork);
    world.children(fork, &[(0, "")]);
    // As if the child had been taken elsewhere.
    let child = world.find("b").id;
    let mut moved = world.state.vms.remove(&child).unwrap();
    Arc::make_mut(&mut moved).node = 1;
    world.state.vms.insert(child, moved);
    let image = world.state.vms[&vm].spec.image;
    Arc::make_mut(world.state.images.get_mut(&image).unwrap()).nodes = [2].into();
    world.ok(delete("n2", true));
    assert_eq!(
        world.find("b").source,
        Source::Snapshot(fork.snapshot()),
        "the child stays what it is"
    );
    assert!(world.state.snapshots[&fork.snapshot()].nodes.is_empty());
    assert!(world.state.images[&image].nodes.is_empty());
    let command = world.vm("c");
    let lost = world.wrong_state(command);
    assert!(lost.contains("is lost"), "{lost}");
    world.delete("b");
    world.ok(Command::DeleteImage {
        image: "tiny".into(),
    });
}

#[test]
fn the_records_of_removed_nodes_are_bounded() {
    let mut world = World::new();
    for number in 0..KEPT_REMOVED as u64 + 5 {
        let node = world.join("n3");
        assert_eq!(node, number + 3);
        world.ok(delete("n3", false));
    }
    assert_eq!(world.state.removed.len(), KEPT_REMOVED);
}

#[test]
fn a_newcomer_that_tries_again_gets_another_number_until_it_has_started() {
    let mut world = World::new();
    let key = token(&mut world, 9, 500);
    let first = join(&world, key, "n3");
    assert_eq!(world.ok(first), Response::Node(3));
    // Its answer got lost. The token is for nobody else.
    let other = join(&world, key, "n4");
    assert_eq!(world.refused(other), Rejection::BadToken);
    let again = join(&world, key, "n3");
    assert_eq!(world.ok(again.clone()), Response::Node(4));
    assert!(!world.state.nodes.contains_key(&3));
    assert_eq!(world.state.nodes[&4].start_by, Some(world.now + 500));
    let report = |node| Command::ReportNode {
        node,
        address: "h4:1".into(),
        capacity: capacity(),
    };
    // Whoever has the first number is late; who has the second one is in, and the token of no more use.
    world.ok(report(3));
    assert!(!world.state.nodes.contains_key(&3));
    world.ok(report(4));
    assert!(world.state.nodes[&4].has_started());
    assert!(world.state.tokens.is_empty());
    assert_eq!(world.refused(again), Rejection::BadToken);
}

#[test]
fn a_newcomer_that_never_starts_is_forgotten() {
    let mut world = World::new();
    let key = token(&mut world, 9, 50);
    let command = join(&world, key, "n3");
    world.ok(command);
    world.ok(Command::ForgetNewcomers);
    assert!(world.state.nodes.contains_key(&3), "its time is not over");
    world.now += 100;
    world.ok(Command::ForgetNewcomers);
    assert!(!world.state.nodes.contains_key(&3));
    assert_eq!(world.join("n3"), 4, "its name is free");
    assert!(world.state.removed.is_empty(), "it had nothing");

    // The others have started: their time is not limited.
    world.now += 1_000_000;
    world.ok(Command::ForgetNewcomers);
    assert_eq!(world.state.nodes.keys().collect::<Vec<_>>(), [&1, &2]);
}

#[test]
fn a_join_that_is_withdrawn_gives_the_token_back() {
    let mut world = World::new();
    let key = token(&mut world, 9, 500);
    world.ok(Command::WithdrawJoin { key_hash: key });
    let command = join(&world, key, "n3");
    world.ok(command);
    world.ok(Command::WithdrawJoin { key_hash: key });
    assert_eq!(world.state.nodes.len(), 2);
    let other = join(&world, key, "n4");
    assert_eq!(world.ok(other), Response::Node(4), "under any name");
    world.ok(delete("n4", false));
    let gone = join(&world, key, "n4");
    assert_eq!(
        world.refused(gone),
        Rejection::BadToken,
        "who was removed does not come back by itself"
    );
}

#[test]
fn a_node_says_where_it_is() {
    let mut world = World::new();
    let at = |node, address: &str| Command::MoveNode {
        node,
        address: address.into(),
    };
    world.ok(at(2, "elsewhere:7001"));
    assert_eq!(world.state.nodes[&2].address, "elsewhere:7001");
    world.ok(at(2, "nowhere"));
    world.ok(at(9, "h:1"));
    assert_eq!(world.state.nodes[&2].address, "elsewhere:7001");
}
