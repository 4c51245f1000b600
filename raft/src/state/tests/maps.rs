//! Maps that are left to the cluster: who drives them, what counts, and what goes with them.

use super::*;

impl World {
    /// The command that begins a map of this.
    pub(super) fn map_of(&mut self, source: ForkSource) -> Command {
        self.map_command(source, map_job())
    }

    fn map_command(&mut self, source: ForkSource, job: MapJob) -> Command {
        Command::StartMap {
            id: MapId(self.id()),
            name: None,
            asker: None,
            source,
            job,
            operation: OperationId(self.id()),
            node: 2,
            candidates: online([1, 2]),
            kept_for: 5_000,
            expires_at: self.now + 60_000,
        }
    }

    /// Begins a map of a VM, whose moment is there.
    fn map(&mut self, vm: &str, job: MapJob) -> MapId {
        let command = self.map_command(ForkSource::Vm(vm.into()), job);
        let id = self.started(command);
        let capture = self.state.maps[&id].operation.unwrap();
        self.ready(capture);
        id
    }

    fn started(&mut self, command: Command) -> MapId {
        match self.ok(command) {
            Response::Map(id) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Has its driver begin, and gives the number of that drive.
    fn take(&mut self, map: MapId) -> u64 {
        let found = Arc::clone(&self.state.maps[&map]);
        let (node, epoch) = (found.driver.unwrap(), found.epoch);
        let lease = LeaseId(self.id());
        self.ok(Command::TakeMap {
            map,
            node,
            epoch,
            lease,
        });
        self.state.maps[&map].epoch
    }

    fn tell(&mut self, map: MapId, epoch: u64, results: Vec<MapResult>) {
        self.ok(Command::ReportMap {
            map,
            epoch,
            results,
            note: String::new(),
        });
    }

    fn finish(&mut self, map: MapId, epoch: u64) -> Outcome {
        self.apply(Command::EndMap {
            map,
            epoch,
            failure: None,
            reduced: None,
        })
    }

    /// Forks its moment, kept as its driver keeps it.
    fn fork_for(&mut self, map: MapId) -> VmId {
        let found = Arc::clone(&self.state.maps[&map]);
        let source = ForkSource::Snapshot {
            snapshot: found.snapshot.to_string(),
            vm: None,
        };
        let mut command = self.fork_command(source, 1, None);
        let Command::Fork { life, .. } = &mut command else {
            unreachable!("it is a fork")
        };
        *life = Life::Leased(found.lease.unwrap());
        let operation = self.begun(command);
        self.children(operation, &[(0, "")]);
        operation.child(0)
    }
}

fn done(index: u32, text: &str) -> MapResult {
    MapResult {
        index,
        exit_code: Some(0),
        stdout: text.into(),
        attempts: 1,
        ..MapResult::default()
    }
}

#[test]
fn each_item_has_one_result_and_nothing_is_left() {
    let mut world = World::new();
    world.running("a");
    let map = world.map("a", map_job());
    assert_eq!(world.state.maps[&map].driver, Some(2), "who was asked");
    let epoch = world.take(map);
    let child = world.fork_for(map);
    let moment = world.state.maps[&map].snapshot;
    let refused = world.refused(Command::DeleteSnapshot {
        snapshot: moment.to_string(),
    });
    assert!(refused.to_string().contains("map"), "{refused}");
    world.tell(map, epoch, vec![done(1, "x"), done(1, "y"), done(7, "z")]);
    world.tell(map, epoch, vec![done(1, "later"), done(0, "w")]);
    let known = &world.state.maps[&map].results;
    let known: Vec<_> = known
        .values()
        .map(|one| (one.index, &*one.stdout))
        .collect();
    assert_eq!(known, [(1, b"x".as_slice()), (0, b"w")]);
    assert!(world.finish(map, epoch).is_err(), "one is missing");
    world.tell(map, epoch, vec![done(2, "")]);
    world.finish(map, epoch).unwrap();
    let ended = Arc::clone(&world.state.maps[&map]);
    assert_eq!(ended.state, MapState::Finished);
    assert!(world.state.leases.is_empty());
    assert!(!world.state.vms.contains_key(&child));
    assert!(!world.state.snapshots.contains_key(&moment));
    // It is kept for a while.
    world.now += 4_999;
    world.ok(Command::Expire);
    assert!(world.state.maps.contains_key(&map));
    world.now += 1;
    world.ok(Command::Expire);
    assert!(world.state.maps.is_empty());
}

#[test]
fn who_does_not_drive_is_not_heard() {
    let mut world = World::new();
    world.running("a");
    let map = world.map("a", map_job());
    let first = world.take(map);
    let child = world.fork_for(map);
    world.tell(map, first, vec![done(0, "first")]);
    let lost = |node| node == 2;
    let (now, candidates) = (world.now, online([1]));
    let left = world.state.maps_to_place(now, &candidates, lost);
    assert_eq!(left, [(map, first)]);
    assert!(world.state.maps_to_place(now, &online([]), lost).is_empty());
    world.ok(Command::PlaceMap {
        map,
        epoch: first,
        candidates,
    });
    assert!(!world.state.vms.contains_key(&child), "what it made goes");
    assert_eq!(world.state.maps[&map].driver, Some(1));
    world.tell(map, first, vec![done(1, "late")]);
    world.finish(map, first).unwrap();
    assert!(world.state.maps[&map].is_running());
    // Nor is one that has not begun.
    let between = world.state.maps[&map].epoch;
    world.tell(map, between, vec![done(1, "early")]);
    let second = world.take(map);
    world.tell(map, second, vec![done(0, "again"), done(1, "second")]);
    let known = &world.state.maps[&map].results;
    let known: Vec<_> = known.values().map(|one| &*one.stdout).collect();
    assert_eq!(known, [b"first".as_slice(), b"second"]);
}

#[test]
fn one_whose_driver_let_go_is_driven_by_another() {
    let mut world = World::new();
    world.running("a");
    let map = world.map("a", map_job());
    let here = |_| false;
    let left = |world: &World| world.state.maps_to_place(world.now, &online([1, 2]), here);
    assert!(left(&world).is_empty());
    world.now += 60_000;
    assert_eq!(left(&world).len(), 1, "it has not begun");
    let epoch = world.take(map);
    assert!(left(&world).is_empty());
    world.now += 10_000;
    world.ok(Command::Expire);
    assert_eq!(left(&world), [(map, epoch)], "its lease has ended");
    // An agent that starts again takes it anew, under another number.
    let again = world.take(map);
    assert!(again > epoch && left(&world).is_empty());
    world.drain("n2");
    assert_eq!(left(&world), [(map, again)]);
    world.ok(Command::PlaceMap {
        map,
        epoch: again,
        candidates: online([1, 2]),
    });
    assert_eq!(world.state.maps[&map].driver, Some(1));
    world.ok(Command::DeleteNode {
        node: "n2".into(),
        force: true,
    });
    assert_eq!(world.state.maps[&map].driver, Some(1));
}

#[test]
fn what_ends_a_map_ends_all_of_it() {
    let mut world = World::new();
    world.running("a");
    let command = world.map_command(ForkSource::Vm("a".into()), map_job());
    // Before there is anything to fork.
    let map = world.started(command);
    let id = map.to_string();
    let delete = |force| Command::DeleteMap {
        map: id.clone(),
        force,
    };
    let problem = world.wrong_state(delete(false));
    assert!(problem.contains("running"), "{problem}");
    world.ok(Command::CancelMap { map: id.clone() });
    assert_eq!(world.state.maps[&map].state, MapState::Cancelled);
    assert!(world.state.snapshots.is_empty() && world.state.leases.is_empty());
    let problem = world.wrong_state(Command::CancelMap { map: id.clone() });
    assert_eq!(problem, "has ended");
    world.ok(delete(false));

    let map = world.map("a", map_job());
    let epoch = world.take(map);
    let child = world.fork_for(map);
    world.ok(Command::EndMap {
        map,
        epoch,
        failure: Some("no room".into()),
        reduced: None,
    });
    assert!(matches!(
        world.state.maps[&map].state,
        MapState::Failed { .. }
    ));
    assert!(!world.state.vms.contains_key(&child) && world.state.leases.is_empty());

    // The last one that runs on a moment without a name takes it along; a name keeps it.
    let gold = world.capture("a", Some("gold"));
    world.ready(gold);
    let source = ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: None,
    };
    let command = world.map_command(source, map_job());
    let map = world.started(command);
    world.take(map);
    world.ok(Command::DeleteMap {
        map: map.to_string(),
        force: true,
    });
    assert!(world.state.snapshots.contains_key(&gold.snapshot()));
    assert!(world.state.leases.is_empty());
}

#[test]
fn outputs_are_bounded() {
    let mut world = World::new();
    world.running("a");
    let count = 100;
    let map = world.map("a", MapJob { count, ..map_job() });
    let epoch = world.take(map);
    let large = |index| MapResult {
        stderr: vec![b'e'; MAP_ITEM_OUTPUT],
        ..done(index, &"x".repeat(MAP_ITEM_OUTPUT + 1))
    };
    world.tell(map, epoch, (0..count).map(large).collect());
    let found = Arc::clone(&world.state.maps[&map]);
    assert_eq!(found.results.len(), count as usize);
    assert_eq!(found.output_bytes, MAP_OUTPUT);
    assert!(found.results.values().all(|one| one.truncated));
    let first = &found.results[&0];
    let sizes = (first.stdout.len(), first.stderr.len());
    assert_eq!(sizes, (MAP_ITEM_OUTPUT, MAP_ITEM_OUTPUT));
    assert!(found.results[&99].stdout.is_empty());
    world.finish(map, epoch).unwrap();
}

#[test]
fn what_is_too_much_is_refused() {
    let mut world = World::new();
    world.running("a");
    let of = |world: &mut World, job| world.map_command(ForkSource::Vm("a".into()), job);
    let inputs = vec![vec![0; 200 << 10]; 3];
    for (job, field) in [
        (
            MapJob {
                count: 0,
                ..map_job()
            },
            "count",
        ),
        (
            MapJob {
                count: MAP_ITEMS + 1,
                ..map_job()
            },
            "count",
        ),
        (
            MapJob {
                argv: vec![],
                ..map_job()
            },
            "argv",
        ),
        (
            MapJob {
                inputs: vec![vec![]],
                ..map_job()
            },
            "inputs",
        ),
        (
            MapJob {
                inputs,
                ..map_job()
            },
            "inputs",
        ),
        (
            MapJob {
                lease_ttl: 1,
                ..map_job()
            },
            "leaseTtlMs",
        ),
        (
            MapJob {
                parallel: 1_001,
                ..map_job()
            },
            "parallel",
        ),
    ] {
        let command = of(&mut world, job);
        assert_eq!(world.invalid(command), field);
    }
    // What runs counts with what it may come to hold.
    let job = MapJob {
        count: 100,
        ..map_job()
    };
    let refused = loop {
        let command = of(&mut world, job.clone());
        match world.apply(command) {
            Ok(Response::Map(map)) => {
                let capture = world.state.maps[&map].operation.unwrap();
                world.ready(capture);
            }
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(refused, Rejection::OverQuota { .. }), "{refused}");
    assert_eq!(world.state.maps.len(), 7);
    let all: Vec<MapId> = world.state.maps.keys().copied().collect();
    for map in all {
        world.ok(Command::CancelMap {
            map: map.to_string(),
        });
    }
    let command = of(&mut world, job);
    world.ok(command);
}

#[test]
fn names_are_an_owners_own() {
    let mut world = World::new();
    world.running("a");
    let named = |world: &mut World| {
        let mut command = world.map_command(ForkSource::Vm("a".into()), map_job());
        let Command::StartMap { name, .. } = &mut command else {
            unreachable!("it is a map")
        };
        *name = Some("nightly".into());
        command
    };
    let command = named(&mut world);
    let map = world.started(command);
    let capture = world.state.maps[&map].operation.unwrap();
    world.ready(capture);
    let again = named(&mut world);
    let refused = world.refused(again);
    assert!(matches!(refused, Rejection::NameTaken { .. }), "{refused}");
    let ann = Actor::user("ann");
    let of = |by: &Actor, text: &str| names::map(&world.state, by, text).map(|map| map.id);
    assert_eq!(of(&world.by, "nightly"), Ok(map));
    assert!(of(&ann, "nightly").is_err() && of(&ann, &map.to_string()).is_err());
}
