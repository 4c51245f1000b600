//! One of everything that is stored.

use std::sync::Arc;

use raft::state::*;

fn labels() -> Labels {
    Labels::from([
        ("team".into(), "blue".into()),
        ("tier".into(), String::new()),
    ])
}

fn capacity() -> Capacity {
    Capacity {
        cpus: 8,
        memory_bytes: 16 << 30,
        qemu_version: "10.0.2".into(),
        accelerators: vec![Accelerator::Kvm, Accelerator::Tcg],
        agent_version: "0.1.0".into(),
        problems: vec!["no write tracking".into()],
    }
}

fn blob(byte: u8) -> Blob {
    Blob {
        sha256: [byte; 32],
        size_bytes: 1_000_000 + u64::from(byte),
    }
}

fn disk() -> DiskBlob {
    DiskBlob {
        blob: blob(3),
        virtual_bytes: 1 << 30,
    }
}

fn content() -> Content {
    Content {
        base: SnapshotId(0x51),
        layers: vec![0x51, 0x41, u128::MAX],
        accelerator: Accelerator::Tcg,
        cpu_model: "max".into(),
        qemu_version: "10.0.2".into(),
        machine: "microvm".into(),
        devices: vec!["virtio-blk".into(), "virtio-console".into()],
        base_bytes: 256 << 20,
        stream_bytes: 1_200_000,
        layer_bytes: 300_000,
        safety: Safety::Disk,
        report: CaptureReport {
            pause_us: 1,
            agent_pause_us: 2,
            ahead_us: 3,
            stop_us: 4,
            disk_us: 5,
            devices_us: 6,
            scan_us: 7,
            copy_us: 8,
            cont_us: 9,
            write_us: 10,
            rounds: 11,
            ahead_bytes: 12,
            paused_bytes: 13,
            new_base: true,
            live: false,
            note: "did not converge".into(),
        },
    }
}

fn spec() -> VmSpec {
    VmSpec {
        image: ImageId(0x31),
        cpus: 4,
        memory_bytes: 256 << 20,
        disk_bytes: 1 << 30,
        machine: Machine::Microvm,
        accelerator: Accelerator::Auto,
        cpu_model: Some("max,+x2apic".into()),
        cmdline: "fp.pulse".into(),
    }
}

/// Every command there is, in every shape, by name.
fn commands() -> Vec<(&'static str, Command)> {
    let operation = OperationId(7 * DERIVED_IDS);
    let mut commands = vec![
        (
            "found",
            Command::Found {
                cluster: ClusterId(0x11),
                name: "n1".into(),
                address: "h1:7000".into(),
            },
        ),
        (
            "create-token",
            Command::CreateToken {
                id: TokenId(0x21),
                key_hash: [9; 32],
                expires_at: 99,
            },
        ),
        ("revoke-token", Command::RevokeToken { id: "01ABC".into() }),
        (
            "join",
            Command::Join {
                key_hash: [9; 32],
                name: "n2".into(),
                address: "h2:7000".into(),
            },
        ),
        (
            "report-node",
            Command::ReportNode {
                node: 2,
                address: "h2:7001".into(),
                capacity: capacity(),
            },
        ),
        (
            "label-node",
            Command::LabelNode {
                node: "n1".into(),
                set: labels(),
                remove: vec!["old".into()],
            },
        ),
        (
            "cordon-node",
            Command::CordonNode {
                node: "n1".into(),
                schedulable: false,
            },
        ),
        (
            "report-image",
            Command::ReportImage {
                image: ImageId(0x31),
                node: 2,
            },
        ),
        (
            "delete-image",
            Command::DeleteImage {
                image: "tiny".into(),
            },
        ),
        (
            "delete-vm",
            Command::DeleteVm {
                vm: "a".into(),
                force: true,
            },
        ),
        (
            "fail",
            Command::FailOperation {
                operation,
                reason: "disk full".into(),
                cancelled: true,
            },
        ),
        (
            "cancel",
            Command::CancelOperation {
                operation: "01ABC".into(),
            },
        ),
        (
            "tag",
            Command::TagSnapshot {
                snapshot: "01ABC".into(),
                name: "gold".into(),
            },
        ),
        (
            "delete-snapshot",
            Command::DeleteSnapshot {
                snapshot: "a@gold".into(),
            },
        ),
        (
            "lost-snapshot",
            Command::LostSnapshot {
                snapshot: SnapshotId(0x51),
                node: 1,
            },
        ),
        (
            "snapshot-ready",
            Command::SnapshotReady {
                operation,
                content: content(),
            },
        ),
        (
            "purged",
            Command::Purged {
                node: 1,
                objects: vec![
                    ObjectId::Image(ImageId(0x31)),
                    ObjectId::Vm(VmId(0x41)),
                    ObjectId::Snapshot(SnapshotId(0x51)),
                ],
            },
        ),
        (
            "report-children",
            Command::ReportChildren {
                operation,
                results: vec![
                    (
                        0,
                        ChildResult {
                            running_us: 21_000,
                            error: String::new(),
                        },
                    ),
                    (
                        999,
                        ChildResult {
                            running_us: 0,
                            error: "no memory".into(),
                        },
                    ),
                ],
            },
        ),
    ];
    commands.extend(images_and_vms());
    commands.extend(captures(operation));
    commands
}

fn images_and_vms() -> Vec<(&'static str, Command)> {
    let image = |kernel, initrd, disk, ready_line| Command::ImportImage {
        id: ImageId(0x31),
        name: "tiny".into(),
        kernel,
        initrd,
        disk,
        cmdline: "console=ttyS0".into(),
        ready_line,
        boot_timeout_ms: 30_000,
        node: 1,
    };
    let vm = |node, cpu_model, accelerator| Command::CreateVm {
        id: VmId(0x41),
        name: "a".into(),
        image: "tiny".into(),
        node,
        candidates: vec![1, 2, 300],
        cpus: 4,
        memory_bytes: 256 << 20,
        disk_bytes: 0,
        accelerator,
        cpu_model,
        cmdline: "quiet".into(),
        labels: labels(),
    };
    let phases = [
        Phase::Pending,
        Phase::Running,
        Phase::Paused,
        Phase::Stopped,
        Phase::Failed,
    ];
    let report = |phase| VmReport {
        vm: VmId(0x41),
        boot: 3,
        phase,
        reason: "because".into(),
    };
    let power = |action| Command::SetPower {
        vm: "a".into(),
        action,
    };
    vec![
        (
            "import-full",
            image(
                Some(blob(1)),
                Some(blob(2)),
                Some(disk()),
                Some("ready".into()),
            ),
        ),
        ("import-bare", image(Some(blob(1)), None, None, None)),
        (
            "create-vm-full",
            vm(Some("n1".into()), Some("max".into()), Accelerator::Kvm),
        ),
        ("create-vm-bare", vm(None, None, Accelerator::Auto)),
        ("create-vm-tcg", vm(None, None, Accelerator::Tcg)),
        ("power-start", power(PowerAction::Start)),
        ("power-stop", power(PowerAction::Stop)),
        ("power-force-stop", power(PowerAction::ForceStop)),
        ("power-pause", power(PowerAction::Pause)),
        ("power-resume", power(PowerAction::Resume)),
        ("power-restart", power(PowerAction::Restart)),
        (
            "report-vms",
            Command::ReportVms {
                node: 1,
                reports: phases.map(report).into(),
            },
        ),
    ]
}

fn captures(operation: OperationId) -> Vec<(&'static str, Command)> {
    let capture = |name: Option<&str>, mode| Command::CreateSnapshot {
        operation,
        vm: "a".into(),
        name: name.map(Into::into),
        mode,
        expires_at: 9_000,
    };
    let fork = |source, name: Option<&str>, paused| Command::Fork {
        operation,
        source,
        count: 1_000,
        name: name.map(Into::into),
        mode: CaptureMode::Live,
        paused,
        labels: labels(),
        expires_at: 9_000,
    };
    let snapshot = |vm: Option<&str>| ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: vm.map(Into::into),
    };
    vec![
        ("capture-named", capture(Some("gold"), CaptureMode::Auto)),
        ("capture-paused", capture(None, CaptureMode::Paused)),
        ("fork-vm", fork(ForkSource::Vm("a".into()), Some("c"), true)),
        ("fork-snapshot", fork(snapshot(None), None, false)),
        (
            "fork-vm-and-snapshot",
            fork(snapshot(Some("a")), None, false),
        ),
    ]
}

/// A proposal for every command, one of them with a request.
pub fn proposals() -> Vec<(String, Proposal)> {
    let propose = |(name, command): (&str, Command)| {
        let request = name.starts_with("fork").then(|| RequestKey {
            id: "r-1".into(),
            body: [5; 32],
        });
        (
            name.to_owned(),
            Proposal {
                request,
                now: 1_700_000_000_000,
                command,
            },
        )
    };
    commands().into_iter().map(propose).collect()
}

/// Every response and every rejection, by name.
pub fn outcomes() -> Vec<(String, Outcome)> {
    let id = 0x0192_3456_789a_bcde_f012_3456_789a_bcde;
    let kinds = [
        Kind::Node,
        Kind::Token,
        Kind::Image,
        Kind::Vm,
        Kind::Snapshot,
        Kind::Operation,
    ];
    let mut outcomes: Vec<(String, Outcome)> = vec![
        ("done".into(), Ok(Response::Done)),
        ("node".into(), Ok(Response::Node(3))),
        ("image".into(), Ok(Response::Image(ImageId(id)))),
        ("vm".into(), Ok(Response::Vm(VmId(id)))),
        ("deleted-vm".into(), Ok(Response::DeletedVm(VmId(id)))),
        ("snapshot".into(), Ok(Response::Snapshot(SnapshotId(id)))),
        (
            "deleted-snapshot".into(),
            Ok(Response::DeletedSnapshot(SnapshotId(id))),
        ),
        ("operation".into(), Ok(Response::Operation(OperationId(id)))),
        ("bad-token".into(), Err(Rejection::BadToken)),
        (
            "reused".into(),
            Err(Rejection::RequestIdReused { id: "r".into() }),
        ),
        (
            "no-capacity".into(),
            Err(Rejection::NoCapacity {
                reasons: vec!["node n1 is offline".into()],
            }),
        ),
        (
            "invalid".into(),
            Err(Rejection::InvalidField {
                field: "cpus".into(),
                problem: "too many".into(),
            }),
        ),
    ];
    let (name, some) = (|| "a".to_owned(), || vec!["b".to_owned(), "c".to_owned()]);
    outcomes.extend(kinds.map(|kind| {
        (
            format!("not-found-{kind:?}"),
            Err(Rejection::NotFound { kind, name: name() }),
        )
    }));
    let kind = Kind::Vm;
    outcomes.extend([
        (
            "ambiguous".to_owned(),
            Err(Rejection::Ambiguous {
                kind,
                name: name(),
                matches: some(),
            }),
        ),
        (
            "name-taken".to_owned(),
            Err(Rejection::NameTaken { kind, name: name() }),
        ),
        (
            "in-use".to_owned(),
            Err(Rejection::InUse {
                kind,
                name: name(),
                dependents: some(),
            }),
        ),
        (
            "wrong-state".to_owned(),
            Err(Rejection::WrongState {
                kind,
                name: name(),
                problem: "is off".into(),
            }),
        ),
    ]);
    outcomes
}

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
    state.next_node = 3;
    for (id, capacity) in [(1, Some(capacity())), (2, None)] {
        let node = Node {
            id,
            name: format!("n{id}"),
            address: format!("h{id}:7000"),
            schedulable: id == 1,
            labels: labels(),
            created_at: 10 + id,
            capacity,
        };
        state.nodes.insert(id, Arc::new(node));
    }
    state.tokens.insert(
        TokenId(0x21),
        Token {
            key_hash: [9; 32],
            created_at: 20,
            expires_at: 99,
        },
    );
    let image = Image {
        id: ImageId(0x31),
        name: "tiny".into(),
        kernel: Some(blob(1)),
        initrd: Some(blob(2)),
        disk: Some(disk()),
        cmdline: "console=ttyS0".into(),
        ready_line: Some("ready".into()),
        boot_timeout_ms: 30_000,
        nodes: [1, 2].into(),
        created_at: 30,
    };
    state.images.insert(image.id, Arc::new(image));
    add_vms(&mut state);
    add_operations(&mut state);
    for (object, name) in [
        (ObjectId::Vm(VmId(0x49)), "gone"),
        (ObjectId::Snapshot(SnapshotId(0x59)), "gone"),
        (ObjectId::Image(ImageId(0x39)), "gone"),
    ] {
        let tombstone = Tombstone {
            name: name.into(),
            nodes: [1].into(),
            created_at: 40,
        };
        state.tombstones.insert(object, tombstone);
    }
    check(&state).unwrap();
    state
}

fn add_vms(state: &mut State) {
    let snapshot = OperationId(DERIVED_IDS).snapshot();
    let vm = |id, name: &str, source, power, phase| Vm {
        id: VmId(id),
        name: name.into(),
        node: 1,
        spec: spec(),
        source,
        parent: (source != Source::Image).then(|| (VmId(0x41), "a".into())),
        labels: labels(),
        power,
        generation: 5,
        boot: 2,
        phase,
        reason: "because".into(),
        reported_boot: 1,
        operation: (source != Source::Image).then_some(OperationId(DERIVED_IDS)),
        created_at: 50,
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
    ] {
        state.vms.insert(vm.id, Arc::new(vm));
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
    ] {
        let id = OperationId(number * DERIVED_IDS);
        let count = if kind == OperationKind::Fork { 2 } else { 0 };
        let results = [
            (
                0,
                ChildResult {
                    running_us: 21_000,
                    error: String::new(),
                },
            ),
            (
                1,
                ChildResult {
                    running_us: 0,
                    error: "no memory".into(),
                },
            ),
        ];
        let operation = Operation {
            id,
            kind,
            vm: Some(VmId(0x41)),
            snapshot: id.snapshot(),
            mode: CaptureMode::Live,
            count,
            results: results.into_iter().take(count as usize).collect(),
            node: 1,
            created_at: 60,
            expires_at: 70,
            ended_at: (how != OperationState::Open).then_some(65),
            cancel_requested: how != OperationState::Complete,
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
            vm: (VmId(0x41), "a".into()),
            parent: (number == 2).then(|| OperationId(DERIVED_IDS).snapshot()),
            nodes: content.iter().map(|_| 1).collect(),
            spec: spec(),
            operation,
            content,
            created_at: 60,
        };
        state.snapshots.insert(snapshot.id, Arc::new(snapshot));
    }
}
