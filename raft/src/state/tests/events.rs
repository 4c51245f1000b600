//! What is told of what happens, and to whom.

use super::*;

impl World {
    /// What happened after a position, as somebody is told: the words, with the names.
    fn told_to(&self, by: &Actor, after: u64) -> Vec<String> {
        let events = self.state.events.after(after).unwrap();
        let seen = events.filter(|(_, event)| self.state.shows_event(event, by));
        seen.map(|(_, event)| {
            format!("{} {}", event.kind, event.name)
                .trim_end()
                .to_owned()
        })
        .collect()
    }

    fn told(&self, after: u64) -> Vec<String> {
        self.told_to(&Actor::cluster(), after)
    }

    fn position(&self) -> u64 {
        self.state.events.newest()
    }

    fn share_vm(&mut self, vm: &str, with: &str, stop: bool) {
        self.ok(Command::Share {
            object: ObjectName::Vm(vm.into()),
            with: Some(with.into()),
            stop,
        });
    }
}

#[test]
fn a_cluster_and_a_fork_are_told_from_the_beginning() {
    let mut world = World::new();
    assert_eq!(
        world.told(0)[..9],
        [
            "cluster.founded",
            "node.joined n1",
            "token.created",
            "token.used",
            "node.joined n2",
            "node.started n1",
            "token.ended",
            "node.moved n2",
            "node.started n2",
        ]
    );
    let position = world.position();
    world.running("a");
    let fork = world.fork("a", 2, Some("b"));
    world.ready(fork);
    world.children(fork, &[(0, ""), (1, "no memory")]);
    world.delete("b-1");
    assert_eq!(
        world.told(position),
        [
            "vm.created a",
            "vm.running a",
            "operation.begun",
            "snapshot.begun",
            "vm.created b-1",
            "vm.created b-2",
            "snapshot.ready",
            "vm.running b-1",
            "vm.failed b-2",
            "operation.complete",
            "vm.deleted b-1",
        ]
    );
    let failed = world.state.events.iter().map(|(_, event)| event);
    let failed = failed.filter(|event| event.kind == EventKind::VmFailed);
    assert_eq!(failed.last().unwrap().detail, "no memory");
}

#[test]
fn what_somebody_wants_and_what_comes_of_it_are_two_events() {
    let mut world = World::new();
    let id = world.running("a");
    let position = world.position();
    world.power("a", PowerAction::Stop).unwrap();
    world.report(id, Phase::Stopped);
    world.report(id, Phase::Stopped);
    world.power("a", PowerAction::Start).unwrap();
    world.report(id, Phase::Running);
    assert_eq!(
        world.told(position),
        [
            "vm.wanted a",
            "vm.stopped a",
            "vm.wanted a",
            "vm.starting a",
            "vm.running a"
        ]
    );
}

#[test]
fn a_drained_node_is_told_when_nothing_is_left_there() {
    let mut world = World::new();
    let position = world.position();
    world.drain("n2");
    world.ok(Command::CordonNode {
        node: "n2".into(),
        schedulable: true,
    });
    let mut create = world.vm("a");
    if let Command::CreateVm { node, .. } = &mut create {
        *node = Some("n2".into());
    }
    world.ok(create);
    world.drain("n2");
    world.delete("a");
    assert_eq!(
        world.told(position),
        [
            "node.draining n2",
            "node.drained n2",
            "node.uncordoned n2",
            "vm.created a",
            "node.draining n2",
            "vm.deleted a",
            "node.drained n2",
        ]
    );
}

#[test]
fn what_is_anothers_did_not_happen() {
    let mut world = World::new();
    let (ann, bob) = (Actor::user("ann"), Actor::user("bob"));
    world.share_image();
    world.by = ann.clone();
    let position = world.position();
    let vm = world.running("web");
    assert_eq!(world.told_to(&bob, position), [""; 0]);
    assert!(world.state.vm_of_events(&bob, &vm.to_string()).is_err());
    assert_eq!(world.state.vm_of_events(&ann, "web"), Ok(vm));

    // From when on it is shared, and not what was before; and with whom else is not told.
    world.share_vm("web", "bob", false);
    world.share_vm("web", "carl", false);
    world.power("web", PowerAction::Pause).unwrap();
    let own = ["vm.created web", "vm.running web"];
    let shared = ["vm.shared web", "vm.shared web", "vm.wanted web"];
    assert_eq!(world.told_to(&ann, position), [&own[..], &shared].concat());
    assert_eq!(world.told_to(&bob, position), shared);
    let with = |by: &Actor| {
        let events = world.state.events.iter().map(|(_, event)| event);
        let shared = events.filter(|event| event.kind == EventKind::VmShared);
        shared
            .map(|event| event.detail_for(by).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(with(&ann), ["bob", "carl"]);
    assert_eq!(with(&bob), ["", ""]);

    // What he could see he cannot see any more.
    world.share_vm("web", "bob", true);
    assert_eq!(world.told_to(&bob, position), [""; 0]);
    world.share_vm("web", "bob", false);
    assert_eq!(world.told_to(&bob, position).len(), 4);
    // And what became of what is gone is its owner's.
    world.delete("web");
    assert_eq!(world.told_to(&bob, position), [""; 0]);
    assert_eq!(
        world.told_to(&ann, position).last().unwrap(),
        "vm.deleted web"
    );
    assert_eq!(world.state.vm_of_events(&ann, "web"), Ok(vm));
    assert!(world.state.vm_of_events(&bob, "ann/web").is_err());
    // Who may come in is administrators' to know.
    let by_all = world.told_to(&bob, 0);
    assert!(!by_all.iter().any(|told| told.starts_with("token.")));
}

impl World {
    fn share_image(&mut self) {
        self.ok(Command::Share {
            object: ObjectName::Image("tiny".into()),
            with: None,
            stop: false,
        });
    }
}

#[test]
fn the_newest_are_kept_and_a_position_before_them_is_refused() {
    let mut world = World::new();
    let label = |number: usize| Command::LabelNode {
        node: "n1".into(),
        set: Labels::from([("n".into(), number.to_string())]),
        remove: Vec::new(),
    };
    for number in 0..KEPT_EVENTS + 1_000 {
        let proposal = Proposal {
            request: None,
            by: Actor::cluster(),
            now: 1,
            command: label(number),
        };
        apply(&mut world.state, &proposal).unwrap();
        assert!(world.state.events.is_sound());
    }
    let events = &world.state.events;
    let (oldest, newest) = (events.before_oldest() + 1, events.newest());
    assert!(newest > (KEPT_EVENTS + 1_000) as u64 && events.len() >= KEPT_EVENTS);
    assert_eq!(events.after(oldest - 1).unwrap().next().unwrap().0, oldest);
    assert_eq!(events.after(newest - 1).unwrap().count(), 1);
    assert_eq!(events.after(newest).unwrap().count(), 0);
    let position = oldest - 2;
    assert_eq!(
        events.after(position).map(Iterator::count),
        Err(BadPosition::TooOld { position, oldest })
    );
    let position = newest + 1;
    assert_eq!(
        events.after(position).map(Iterator::count),
        Err(BadPosition::NotYet { position, newest })
    );
    let restored = crate::codec::decode_state(&crate::codec::encode_state(&world.state)).unwrap();
    assert_eq!(restored, world.state);
}

#[test]
fn words_are_one_for_each_kind_and_are_filtered_by_what_they_are_about() {
    let words: std::collections::BTreeSet<_> =
        EventKind::ALL.iter().map(|kind| kind.word()).collect();
    assert_eq!(words.len(), EventKind::ALL.len());
    assert!(EventKind::VmFailed.is_meant_by("vm") && EventKind::VmFailed.is_meant_by("vm.failed"));
    assert!(!EventKind::VmFailed.is_meant_by("vm.") && !EventKind::VmFailed.is_meant_by("v"));
}
