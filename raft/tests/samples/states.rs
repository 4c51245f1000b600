//! A state with one of everything.

use std::{collections::BTreeSet, sync::Arc};

use raft::state::*;

use super::{
    authority, blob, capacity, content, disk, ending, labels, map_asker, map_job, map_result,
    proposals, quota, settings, spec, trust,
};

/// A state with one of everything.
pub fn state() -> State {
    let mut state = State::new();
    // The records of requests are made as they are in life: refusals without a text that may be reworded.
    let refused = ["revoke-token", "join", "label-node"];
    for (name, proposal) in proposals()
        .into_iter()
        .filter(|(name, _)| refused.contains(&&**name))
    {
        let request = Some(RequestKey {
            id: format!("r-{name}"),
            body: [name.len() as u8; 32],
        });
        let proposal = Proposal {
            request,
            ..proposal
        };
        assert!(apply(&mut state, &proposal).is_err(), "{name}");
    }
    state.cluster = Some(ClusterId(0x11));
    state.next_node = 4;
    state.forgotten = Some(Forgotten { from: 7, to: 9 });
    for (id, capacity) in [(1, Some(capacity())), (2, None)] {
        let node = Node {
            id,
            name: format!("n{id}"),
            address: format!("h{id}:7000"),
            schedulable: id == 1,
            labels: labels(),
            created_at: 10 + id,
            start_by: capacity.is_none().then_some(77),
            trust: capacity.is_some().then(trust),
            drain: capacity.is_none().then(|| Drain {
                how: DrainHow::Rest { schedulable: true },
                since: 12,
                stays: Default::default(),
            }),
            capacity,
        };
        state.nodes.insert(id, Arc::new(node));
    }
    let removed = RemovedNode {
        name: "n3".into(),
        removed_at: 50,
        vms: [(
            VmId(0x48),
            LostVm {
                name: "given-up".into(),
                owner: "bob".into(),
            },
        )]
        .into(),
        snapshots: [(SnapshotId(0x58), "moment".into())].into(),
        images: [(ImageId(0x38), "old".into())].into(),
    };
    state.removed.insert(3, Arc::new(removed));
    state.tokens.insert(
        TokenId(0x21),
        Token {
            key_hash: [9; 32],
            created_at: 20,
            expires_at: 99,
            node: Some(2),
            authority: [5; 32],
        },
    );
    for (id, role, revoked_at) in [
        (0x23, Role::Viewer, None),
        (0x24, Role::Operator, Some(25)),
        (0x25, Role::Admin, None),
    ] {
        let certificate = Certificate {
            name: format!("somebody-{id}"),
            owner: "team".into(),
            role,
            created_at: 20,
            expires_at: 99,
            revoked_at,
            authority: [id as u8; 32],
        };
        state.certificates.insert(CertificateId(id), certificate);
    }
    let replacement = Replacement {
        number: 3,
        phase: ReplacementPhase::Renewing,
        old: authority(5),
        new: authority(6),
        cross: vec![7, 8, 9],
        is_compromised: false,
        began_at: 21,
        finished_at: None,
    };
    state.replacement = Some(Arc::new(replacement));
    let image = Image {
        id: ImageId(0x31),
        name: "tiny".into(),
        ownership: shared("ann"),
        kernel: Some(blob(1)),
        initrd: Some(blob(2)),
        disk: Some(disk()),
        cmdline: "console=ttyS0".into(),
        ready_line: Some("ready".into()),
        boot_timeout_ms: 30_000,
        guest_agent: GuestAgent::None,
        nodes: [1, 2].into(),
        created_at: 30,
    };
    state.images.insert(image.id, Arc::new(image));
    state.quotas.insert("bob".into(), quota());
    let lease = Lease {
        owner: "ann".into(),
        ttl: 60_000,
        expires_at: 90_000,
        created_at: 30_000,
    };
    state.leases.insert(LeaseId(0x61), lease);
    add_vms(&mut state);
    add_operations(&mut state);
    let running = map();
    let ended = Map {
        id: MapId(0x72),
        name: None,
        driver: None,
        lease: None,
        reduced: Some(Arc::new(map_result())),
        state: MapState::Failed {
            reason: "its moment is gone".into(),
        },
        ended_at: Some(50),
        ..map()
    };
    for map in [running, ended] {
        state.maps.insert(map.id, Arc::new(map));
    }
    for (object, name) in [
        (ObjectId::Vm(VmId(0x49)), "gone"),
        (ObjectId::Snapshot(SnapshotId(0x59)), "gone"),
        (ObjectId::Image(ImageId(0x39)), "gone"),
        (ObjectId::Left(VmId(0x4a)), "moved"),
    ] {
        let tombstone = Tombstone {
            name: name.into(),
            nodes: [1].into(),
            created_at: 40,
        };
        state.tombstones.insert(object, tombstone);
    }
    state.events = events();
    check(&state).unwrap();
    state
}

/// One of each kind, of each subject and for each audience.
fn events() -> Events {
    let subjects = [
        Subject::Cluster,
        Subject::Node(1),
        Subject::Token(TokenId(0x21)),
        Subject::Certificate(CertificateId(0x23)),
        Subject::Quota,
        Subject::Lease(LeaseId(0x61)),
        Subject::Image(ImageId(0x31)),
        Subject::Vm(VmId(0x41)),
        Subject::Snapshot(OperationId(DERIVED_IDS).snapshot()),
        Subject::Map(MapId(0x71)),
        Subject::Operation(OperationId(DERIVED_IDS)),
    ];
    let event = |(number, kind): (usize, &EventKind)| {
        let event = Event {
            at: 80 + number as u64,
            kind: *kind,
            subject: subjects[number % subjects.len()],
            name: "a".into(),
            node: "n1".into(),
            detail: "because".into(),
            audience: match number % 3 {
                0 => Audience::Everybody,
                1 => Audience::Administrators,
                _ => Audience::Of(shared("bob")),
            },
            vm: (number % 2 == 0).then(captured),
        };
        (900 + number as u64, Arc::new(event))
    };
    EventKind::ALL.iter().enumerate().map(event).collect()
}

fn shared(owner: &str) -> Ownership {
    Ownership {
        owner: owner.into(),
        everyone: owner == "bob",
        shared_with: ["carl".into(), "dora".into()].into(),
    }
}

fn captured() -> Captured {
    Captured {
        vm: VmId(0x41),
        name: "a".into(),
        owner: "bob".into(),
    }
}

fn add_vms(state: &mut State) {
    let snapshot = OperationId(DERIVED_IDS).snapshot();
    let vm = |id, name: &str, source, power, phase| Vm {
        id: VmId(id),
        name: name.into(),
        ownership: shared("bob"),
        node: 1,
        spec: spec(),
        source,
        parent: (source != Source::Image).then(captured),
        labels: labels(),
        power,
        is_going_back: false,
        generation: 5,
        boot: 2,
        phase,
        reason: "because".into(),
        reported_boot: 1,
        ending: (source != Source::Image).then(|| ending(EndCause::Panic)),
        restarts: 3,
        next_start: (phase == Phase::Restarting).then_some(60),
        operation: (source != Source::Image).then_some(OperationId(DERIVED_IDS)),
        created_at: 50,
        settings: match source {
            Source::Image => Labels::new(),
            Source::Snapshot(_) => settings(),
        },
        place: (source != Source::Image).then_some(Place {
            index: 1,
            count: 300,
        }),
        family: Some(VmId(0x41)),
        by_guest: source != Source::Image,
        has_secrets: source != Source::Image,
        failed_steps: vec!["hook 10-keys: it ended with 1".into()],
        lineage: VmId(0x40),
        life: match source {
            Source::Image => Life::Until(500),
            Source::Snapshot(_) => Life::Unbounded,
        },
        own_bytes: 17 << 20,
        schedule: Some(super::schedule()),
        next_snapshot: 90,
        rests_from: Some(Power::Running),
        ha: Ha::Restore,
        restored: Some(Restored {
            from: 1,
            snapshot: SnapshotId(0x42),
            captured_at: 70,
            heard_at: 80,
            at: 90,
        }),
        disk: (power == Power::Suspended).then(|| vec![0x77, 0x78]),
        group: (source == Source::Image).then(|| InGroup {
            id: VmId(0x41),
            name: "app".into(),
            number: 16,
        }),
    };
    let fork = Source::Snapshot(snapshot);
    for vm in [
        vm(0x41, "a", Source::Image, Power::Running, Phase::Running),
        vm(0x42, "b", fork, Power::Paused, Phase::Paused),
        vm(
            0x43,
            "c",
            fork,
            Power::Stopped { force: false },
            Phase::Stopped,
        ),
        vm(
            0x44,
            "d",
            fork,
            Power::Stopped { force: true },
            Phase::Failed,
        ),
        vm(0x45, "e", fork, Power::Running, Phase::Pending),
        vm(0x46, "f", fork, Power::Suspended, Phase::Suspended),
        vm(0x47, "g", fork, Power::Running, Phase::Restarting),
    ] {
        state.vms.insert(vm.id, Arc::new(vm));
    }
}

fn map() -> Map {
    Map {
        id: MapId(0x71),
        name: Some("nightly".into()),
        ownership: Ownership::of("ann"),
        asker: Some(map_asker()),
        job: Arc::new(map_job()),
        snapshot: OperationId(DERIVED_IDS).snapshot(),
        operation: Some(OperationId(DERIVED_IDS)),
        driver: Some(1),
        epoch: 2,
        drives: 1,
        placed_at: 30,
        lease: Some(LeaseId(0x61)),
        results: [(0, Arc::new(map_result()))].into_iter().collect(),
        done: [(1, 0)].into_iter().collect(),
        output_bytes: map_result().output_bytes(),
        reduced: None,
        state: MapState::Running,
        note: "there is no room".into(),
        kept_for: 86_400_000,
        created_at: 20,
        ended_at: None,
    }
}

fn add_operations(state: &mut State) {
    let failed = OperationState::Failed {
        reason: "disk full".into(),
        cancelled: true,
    };
    for (number, kind, how) in [
        (1, OperationKind::Fork, OperationState::Complete),
        (2, OperationKind::Snapshot, OperationState::Open),
        (3, OperationKind::Fork, failed),
        (4, OperationKind::Reset, OperationState::Complete),
        (5, OperationKind::Suspend, OperationState::Complete),
        (6, OperationKind::Move, OperationState::Complete),
    ] {
        let id = OperationId(number * DERIVED_IDS);
        let count = match kind {
            OperationKind::Fork => 2,
            OperationKind::Snapshot => 0,
            OperationKind::Reset | OperationKind::Suspend | OperationKind::Move => 1,
        };
        let results = [
            (
                0,
                ChildResult {
                    running_us: 21_000,
                    ready_us: 24_000,
                    error: String::new(),
                    gave_way: false,
                    failed_steps: vec!["clock: refused".into()],
                },
            ),
            (
                1,
                ChildResult {
                    running_us: 0,
                    ready_us: 0,
                    error: "no memory".into(),
                    gave_way: true,
                    failed_steps: Vec::new(),
                },
            ),
        ];
        let operation = Operation {
            id,
            owner: "ann".into(),
            kind,
            vm: Some(VmId(0x41)),
            snapshot: id.snapshot(),
            mode: CaptureMode::Live,
            count,
            paused: number == 3,
            results: results.into_iter().take(count as usize).collect(),
            node: 1,
            to: (kind == OperationKind::Move).then_some(2),
            created_at: 60,
            expires_at: 70,
            ended_at: (how != OperationState::Open).then_some(65),
            cancel_requested: how != OperationState::Complete,
            group: (number == 3).then_some(id),
            state: how,
        };
        state.operations.insert(id, Arc::new(operation));
    }
    for (number, name, content) in [
        (1, Some("gold".to_owned()), Some(content())),
        (2, None, None),
    ] {
        let operation = OperationId(number * DERIVED_IDS);
        let snapshot = Snapshot {
            id: operation.snapshot(),
            name,
            ownership: Ownership::of("ann"),
            vm: captured(),
            parent: (number == 2).then(|| OperationId(DERIVED_IDS).snapshot()),
            nodes: content.iter().map(|_| 1).collect(),
            spec: spec(),
            family: Some(VmId(0x41)),
            member: Some(16),
            lineage: VmId(0x40),
            life: match number {
                1 => Life::Leased(LeaseId(0x61)),
                _ => Life::Unbounded,
            },
            operation,
            warm: number as u32,
            replicas: 2,
            copies: BTreeSet::from([1]),
            is_scheduled: number == 2,
            content,
            lost: "its host was restarted".into(),
            created_at: 60,
        };
        state.snapshots.insert(snapshot.id, Arc::new(snapshot));
    }
}
