//! The printed forms: golden JSON, as scripts read it.

use proto::v1;
use serde::Serialize;
use serde_json::json;

use super::{
    cluster::*, fork::*, group::*, image::*, node::*, operation::*, snapshot::*, vm::*, *,
};
use crate::client::output::Row;

const TIME: Timestamp = Timestamp {
    seconds: 1_700_000_000,
    nanos: 250_000_000,
};

/// Fields in their order, too: some scripts read line by line.
fn check(view: &impl Serialize, expected: &serde_json::Value) {
    assert_eq!(&serde_json::to_value(view).unwrap(), expected);
}

fn rows<T: Row>(view: &T) {
    for wide in [false, true] {
        assert_eq!(
            T::header(wide).len(),
            view.cells(wide).len(),
            "wide: {wide}"
        );
    }
}

#[test]
fn a_node_that_was_removed() {
    let removed = RemovedNodeView::from(v1::DeleteNodeResponse {
        id: 3,
        name: "host-c".into(),
        vms: vec!["web".into(), "db".into()],
        snapshots: vec![],
        images: vec!["tiny".into()],
    });
    assert_eq!(
        removed.lines(),
        [
            "host-c is no node of the cluster any more.",
            "  given up: VMs web, db",
            "  given up: images tiny",
        ]
    );
    check(
        &removed,
        &json!({"id": 3, "name": "host-c", "vms": ["web", "db"], "snapshots": [], "images": ["tiny"]}),
    );
}

#[test]
fn a_node() {
    let capacity = v1::NodeCapacity {
        cpus: 2,
        memory_bytes: 1 << 34,
        qemu_version: "10.0.2".into(),
        accelerators: vec!["tcg".into()],
        agent_version: "0.1.0".into(),
        newest_version: 1,
        processor: "a processor".into(),
        problems: vec![],
    };
    let node = NodeView::from(v1::Node {
        id: 2,
        name: "host-b".into(),
        address: "10.0.0.2:7400".into(),
        state: v1::NodeState::Online.into(),
        schedulable: true,
        role: v1::NodeRole::Voter.into(),
        leader: false,
        labels: [("rack".to_owned(), "7".to_owned())].into(),
        created_at: Some(TIME),
        capacity: Some(capacity),
        vms: 3,
        room: Some(v1::NodeRoom {
            free_memory_bytes: 1 << 33,
            free_disk_bytes: 1 << 35,
            promised_memory_bytes: 1 << 32,
        }),
        drain: Some(v1::NodeDrain {
            since: Some(TIME),
            moving: vec!["a".into()],
            stays: vec![v1::StayingVm {
                vm: "b".into(),
                reason: "no room".into(),
            }],
            snapshots: vec!["gold".into()],
            suspends: false,
            done: false,
        }),
    });
    check(
        &node,
        &json!({
            "id": 2, "name": "host-b", "address": "10.0.0.2:7400", "state": "online", "schedulable": true,
            "role": "voter", "leader": false, "labels": {"rack": "7"}, "createdAt": "2023-11-14T22:13:20.250Z", "vms": 3,
            "capacity": {"cpus": 2, "memoryBytes": 17_179_869_184_u64, "qemuVersion": "10.0.2", "accelerators": ["tcg"],
                         "agentVersion": "0.1.0", "newestVersion": 1, "processor": "a processor", "problems": []},
            "room": {"freeMemoryBytes": 8_589_934_592_u64, "freeDiskBytes": 34_359_738_368_u64, "promisedMemoryBytes": 4_294_967_296_u64},
            "drain": {"since": "2023-11-14T22:13:20.250Z", "moving": ["a"], "stays": [{"vm": "b", "reason": "no room"}],
                      "snapshots": ["gold"], "done": false, "suspends": false},
        }),
    );
    rows(&node);
    rows(&NodeView::from(v1::Node::default()));
}

#[test]
fn a_group_and_its_fork() {
    let member = |number: u32, state: v1::VmState| v1::GroupMember {
        number,
        address: format!("10.87.0.{number}"),
        id: format!("01{number}"),
        name: format!("m{number}"),
        state: state.into(),
        reason: String::new(),
    };
    let group = GroupView::from(v1::Group {
        id: "011".into(),
        name: "app".into(),
        owner: "ann".into(),
        node: "host-a".into(),
        members: vec![
            member(1, v1::VmState::Running),
            member(2, v1::VmState::Paused),
        ],
    });
    rows(&group);
    rows(&group.members[0]);
    assert_eq!(
        group.cells(false),
        ["app", "1 of 2 running", "host-a", "m1,m2"]
    );
    let child = |name: &str, error: &str| v1::ForkedVm {
        name: name.into(),
        error: error.into(),
        running_ms: 81.2,
        ..Default::default()
    };
    let copy = |name: &str, error: &str| v1::GroupCopy {
        id: "013".into(),
        name: name.into(),
        members: vec![child("m1-1", error), child("m2-1", error)],
        error: error.into(),
    };
    let captured = v1::CapturedMember {
        name: "m1".into(),
        operation: "014".into(),
        snapshot: "015".into(),
        pause_ms: 4.25,
        capture: None,
    };
    let fork = GroupForkView::from(v1::ForkGroupResponse {
        operation: "014".into(),
        pause_ms: 5.5,
        members: vec![captured],
        copies: vec![copy("app-1", ""), copy("app-2", "no memory")],
    });
    fork.copies.iter().for_each(rows);
    assert_eq!(
        fork.copies[0].cells(false),
        ["app-1", "m1-1,m2-1", "81.2ms", ""]
    );
    assert_eq!(fork.copies[1].cells(false)[3], "no memory");
    assert_eq!((fork.failed(), fork.why_failed()), (1, Some("no memory")));
    assert_eq!(
        fork.summary(),
        "1 of 2 copies running; the group stood still for 5.5 ms (m1 4.2 ms)"
    );
}

#[test]
fn a_vm() {
    let vm = VmView::from(v1::Vm {
        id: "01A".into(),
        name: "demo-1".into(),
        node: "host-b".into(),
        state: v1::VmState::Failed.into(),
        reason: "QEMU was killed".into(),
        image: "tiny".into(),
        parent: "01B".into(),
        parent_name: "demo".into(),
        snapshot: "01C".into(),
        pid: 42,
        memory_bytes: 1 << 28,
        cpus: 1,
        disk_bytes: 1 << 31,
        accelerator: v1::Accelerator::Tcg.into(),
        cpu_model: "max".into(),
        machine: "microvm".into(),
        labels: Default::default(),
        created_at: Some(TIME),
        expires_at: Some(TIME),
        lease: String::new(),
        generation: 4,
        power: v1::PowerState::Running.into(),
        warnings: vec!["no user of its own".into()],
        group: "app".into(),
        group_number: 2,
        group_address: "10.87.0.2".into(),
        limits: Some(v1::Limits {
            cpu_percent: 150,
            memory_bytes: 1 << 29,
            pids: 0,
        }),
        memory_use: Some(v1::MemoryUse {
            private_bytes: 3,
            shared_bytes: 2,
            merged_bytes: 1,
            merge_profit_bytes: -1,
        }),
        restart: v1::RestartPolicy::OnFailure.into(),
        ending: Some(v1::Ending {
            cause: v1::EndCause::OutOfMemory.into(),
            detail: "it was killed".into(),
            at: Some(TIME),
            exit_code: None,
        }),
        restarts: 2,
        next_start_at: Some(TIME),
        network: Some(v1::Network {
            kind: v1::NetworkKind::User.into(),
            no_egress: true,
        }),
        publish: vec![22, 80],
        self_fork: 9,
        unready: v1::Unready::Hold.into(),
        settings: [("role".to_owned(), "db".to_owned())].into(),
        index: 0,
        count: 3,
        failed_steps: vec!["clock: refused".into()],
        guest: Some(v1::GuestInfo {
            agent: v1::GuestAgent::Forkypig.into(),
            agent_version: "0.1.0".into(),
            os: "tiny".into(),
            kernel: "6.12".into(),
            hostname: "demo-1".into(),
            addresses: vec!["10.0.2.15".into()],
            memory_bytes: 9,
            available_bytes: 8,
        }),
        ports: vec![v1::PublishedPort {
            guest_port: 80,
            address: "10.0.0.2".into(),
            port: 40_001,
        }],
        family: "01B".into(),
        by_guest: true,
        snapshots: Some(v1::SnapshotSchedule {
            every_ms: 300_000,
            keep: 3,
            replicas: 2,
            next_at: None,
        }),
        on_host_loss: v1::OnHostLoss::Restore.into(),
        restore_point: "01D".into(),
        restore_point_at: Some(TIME),
        restored: Some(v1::Restored {
            from: "host-a".into(),
            snapshot: "01C".into(),
            captured_at: Some(TIME),
            heard_at: Some(TIME),
            restored_at: Some(TIME),
            lost_ms: 12_000,
        }),
        owner: "ann".into(),
        sharing: Some(v1::Sharing {
            everyone: false,
            owners: vec!["bob".into()],
        }),
        parent_hidden: false,
    });
    // In two parts: one is too long for the macro.
    let mut expected = json!({
            "id": "01A", "name": "demo-1", "node": "host-b", "state": "failed", "reason": "QEMU was killed", "image": "tiny",
            "parent": "01B", "parentName": "demo", "snapshot": "01C", "pid": 42, "memoryBytes": 268_435_456, "cpus": 1,
            "diskBytes": 2_147_483_648_u64, "accelerator": "tcg", "cpuModel": "max", "machine": "microvm", "labels": {},
            "createdAt": "2023-11-14T22:13:20.250Z", "expiresAt": "2023-11-14T22:13:20.250Z", "lease": "", "generation": 4, "power": "running",
            "warnings": ["no user of its own"],
            "limits": {"cpuPercent": 150, "memoryBytes": 536_870_912, "pids": 0},
            "memoryUse": {"privateBytes": 3, "sharedBytes": 2, "mergedBytes": 1, "mergeProfitBytes": -1},
            "restart": "on-failure",
            "ending": {"cause": "out-of-memory", "detail": "it was killed", "at": "2023-11-14T22:13:20.250Z", "exitCode": null},
            "restarts": 2, "nextStartAt": "2023-11-14T22:13:20.250Z",
    });
    let guest = json!({
            "network": {"kind": "user", "noEgress": true}, "publish": [22, 80], "selfFork": 9, "unready": "hold",
            "settings": {"role": "db"}, "index": 0, "count": 3, "failedSteps": ["clock: refused"],
            "guest": {"agent": "forkypig", "agentVersion": "0.1.0", "os": "tiny", "kernel": "6.12", "hostname": "demo-1",
                      "addresses": ["10.0.2.15"], "memoryBytes": 9, "availableBytes": 8},
            "ports": [{"guestPort": 80, "address": "10.0.0.2", "port": 40_001}],
            "family": "01B", "byGuest": true, "snapshots": {"everyMs": 300_000, "keep": 3, "replicas": 2, "nextAt": null},
            "group": "app", "groupNumber": 2, "groupAddress": "10.87.0.2",
            "owner": "ann", "sharing": {"everyone": false, "owners": ["bob"]}, "parentHidden": false,
            "ha": "restore", "restorePoint": "01D", "restorePointAt": "2023-11-14T22:13:20.250Z",
            "restored": {"from": "host-a", "snapshot": "01C", "capturedAt": "2023-11-14T22:13:20.250Z", "heardAt": "2023-11-14T22:13:20.250Z", "restoredAt": "2023-11-14T22:13:20.250Z", "lostMs": 12_000},
    });
    let fields = expected.as_object_mut().unwrap();
    fields.extend(guest.as_object().unwrap().clone());
    check(&vm, &expected);
    rows(&vm);
    let wide = vm.cells(true);
    for cell in [
        "user,no-egress,22,80",
        "was on host-a, which was lost with 12 s of it",
        "0 of 3",
        "role=db",
        "clock: refused",
    ] {
        assert!(
            wide.iter().any(|found| found.contains(cell)),
            "{cell} in {wide:?}"
        );
    }
    rows(&VmView::from(v1::Vm::default()));
}

#[test]
fn an_exit_code_is_shown() {
    let vm = VmView::from(v1::Vm {
        ending: Some(v1::Ending {
            cause: v1::EndCause::Exited.into(),
            exit_code: Some(3),
            ..Default::default()
        }),
        ..Default::default()
    });
    assert_eq!(vm.ending.as_ref().unwrap().exit_code, Some(3));
    assert!(vm.cells(true).contains(&"exited 3".to_owned()));
}

#[test]
fn every_state_has_its_word() {
    let words: Vec<_> = (0..=7)
        .map(|state| vm_state_word(state.try_into().unwrap()))
        .collect();
    assert_eq!(
        words,
        [
            "unknown", "pending", "starting", "running", "paused", "stopped", "failed", "unknown"
        ]
    );
    let unknown = v1::Vm {
        state: 99,
        ..Default::default()
    };
    assert_eq!(
        VmView::from(unknown).state,
        "unknown",
        "a state of a newer agent"
    );
}

#[test]
fn a_snapshot() {
    let capture = v1::CaptureReport {
        pause_ms: 4.500_4,
        rounds: 2,
        mode: v1::CaptureMode::Live.into(),
        ..Default::default()
    };
    let snapshot = SnapshotView::from(v1::Snapshot {
        id: "01C".into(),
        name: "golden".into(),
        vm: "01B".into(),
        vm_name: "demo".into(),
        parent: String::new(),
        nodes: vec!["host-b".into()],
        state: v1::SnapshotState::Ready.into(),
        safety: v1::SnapshotSafety::Memory.into(),
        created_at: None,
        expires_at: None,
        lease: "01L".into(),
        base_bytes: 1,
        stream_bytes: 2,
        layer_bytes: 3,
        dependents: vec!["demo-1".into()],
        image: "tiny".into(),
        qemu_version: "10.0.2".into(),
        capture: Some(capture),
        warm: 2,
        ready: 1,
        replicas: 2,
        scheduled: true,
        copies_on_disk: 1,
        copies: vec!["host-b".into(), "host-c".into()],
        reason: String::new(),
        owner: "ann".into(),
        sharing: None,
        vm_hidden: false,
    });
    check(
        &snapshot,
        &json!({
            "id": "01C", "name": "golden", "owner": "ann", "vmHidden": false, "vm": "01B", "vmName": "demo", "parent": "", "nodes": ["host-b"], "state": "ready", "reason": "",
            "safety": "memory", "createdAt": null, "expiresAt": null, "lease": "01L", "baseBytes": 1, "streamBytes": 2, "layerBytes": 3,
            "dependents": ["demo-1"], "image": "tiny", "qemuVersion": "10.0.2",
            "capture": {"pauseMs": 4.5, "agentPauseMs": 0.0, "aheadMs": 0.0, "stopMs": 0.0, "diskMs": 0.0, "devicesMs": 0.0,
                        "scanMs": 0.0, "copyMs": 0.0, "contMs": 0.0, "writeMs": 0.0, "rounds": 2, "aheadBytes": 0,
                        "pausedBytes": 0, "newBase": false, "mode": "live", "note": ""},
            "warm": 2, "ready": 1, "replicas": 2, "copiesOnDisk": 1, "scheduled": true, "copies": ["host-b", "host-c"],
        }),
    );
    rows(&snapshot);
}

fn fork() -> v1::ForkResponse {
    let child = |name: &str, error: &str| v1::ForkedVm {
        id: format!("id-{name}"),
        name: name.into(),
        node: "host-b".into(),
        state: if error.is_empty() {
            v1::VmState::Running
        } else {
            v1::VmState::Failed
        }
        .into(),
        running_ms: if error.is_empty() { 81.234_56 } else { 0.0 },
        ready_ms: if error.is_empty() { 81.234_56 } else { 0.0 },
        error: error.into(),
        failed_steps: vec![],
    };
    v1::ForkResponse {
        operation: "01O".into(),
        snapshot: "01C".into(),
        pause_ms: 5.25,
        children: vec![child("demo-1", ""), child("demo-2", "no memory")],
        capture: None,
    }
}

#[test]
fn a_fork() {
    let view = ForkView::from(fork());
    check(
        &view,
        &json!({
            "operation": "01O", "snapshot": "01C", "pauseMs": 5.25,
            "children": [
                {"id": "id-demo-1", "name": "demo-1", "node": "host-b", "state": "running", "runningMs": 81.235,
                 "readyMs": 81.235, "error": "", "failedSteps": []},
                {"id": "id-demo-2", "name": "demo-2", "node": "host-b", "state": "failed", "runningMs": 0.0,
                 "readyMs": 0.0, "error": "no memory", "failedSteps": []},
            ],
        }),
    );
    assert_eq!(view.failed(), 1);
    assert_eq!(
        view.summary(),
        "1 of 2 running after 81.2 ms; the parent stood still for 5.2 ms"
    );
    view.children.iter().for_each(rows);
}

#[test]
fn a_fork_that_has_not_wholly_become_itself() {
    let mut fork = fork();
    fork.children[0].failed_steps = vec!["clock: refused".into(), "hook x: 1".into()];
    let view = ForkView::from(fork);
    assert_eq!(view.failed(), 1, "it runs all the same");
    assert!(
        view.summary().contains("; steps failed in 1;"),
        "{}",
        view.summary()
    );
    let cells = view.children[0].cells(false);
    assert!(
        cells.contains(&"clock: refused; hook x: 1".to_owned()),
        "{cells:?}"
    );
}

#[test]
fn a_forks_pause_is_printed_once_and_first() {
    let capture = Some(v1::CaptureReport {
        pause_ms: 5.25,
        note: "wrote too fast".into(),
        ..Default::default()
    });
    let view = ForkView::from(v1::ForkResponse {
        capture,
        children: vec![],
        ..fork()
    });
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(text.matches("\"pauseMs\"").count(), 1, "{text}");
    assert!(
        text.starts_with(r#"{"operation":"01O","snapshot":"01C","pauseMs":5.25,"children":"#),
        "{text}"
    );
    assert!(view.summary().ends_with("(wrote too fast)"));
}

#[test]
fn an_image() {
    let file = v1::ImageFile {
        kind: v1::ImageFileKind::Disk.into(),
        sha256: "ab".into(),
        size_bytes: 5,
        virtual_bytes: 1 << 30,
    };
    let image = ImageView::from(v1::Image {
        id: "01I".into(),
        name: "tiny".into(),
        files: vec![file],
        cmdline: "quiet".into(),
        ready_line: "ready".into(),
        boot_timeout_ms: 60_000,
        nodes: vec!["host-a".into()],
        created_at: Some(TIME),
        guest_agent: v1::GuestAgent::Qemu.into(),
        owner: "ann".into(),
        sharing: Some(v1::Sharing {
            everyone: true,
            owners: vec![],
        }),
    });
    check(
        &image,
        &json!({
            "id": "01I", "name": "tiny", "owner": "ann", "sharing": {"everyone": true, "owners": []},
            "files": [{"kind": "disk", "sha256": "ab", "sizeBytes": 5, "virtualBytes": 1_073_741_824}],
            "cmdline": "quiet", "readyLine": "ready", "bootTimeoutMs": 60_000, "nodes": ["host-a"],
            "createdAt": "2023-11-14T22:13:20.250Z", "guestAgent": "qemu",
        }),
    );
    rows(&image);
}

#[test]
fn an_operation() {
    let operation = OperationView::from(v1::Operation {
        id: "01O".into(),
        kind: v1::OperationKind::Fork.into(),
        state: v1::OperationState::Open.into(),
        source: "01B".into(),
        snapshot: "01C".into(),
        vms: vec!["01D".into()],
        node: "host-b".into(),
        created_at: Some(TIME),
        ended_at: None,
        error: String::new(),
        cancel_requested: false,
        done: 1,
        total: 2,
        owner: "ann".into(),
        transfers: vec![v1::Transfer {
            node: "host-c".into(),
            done_bytes: 3 << 20,
            total_bytes: 4 << 20,
            moved_bytes: 1000,
        }],
        to: String::new(),
        pause_ms: 0.0,
    });
    check(
        &operation,
        &json!({
            "id": "01O", "owner": "ann", "kind": "fork", "state": "open", "source": "01B", "snapshot": "01C", "vms": ["01D"],
            "node": "host-b", "createdAt": "2023-11-14T22:13:20.250Z", "endedAt": null, "error": "",
            "cancelRequested": false, "done": 1, "total": 2,
            "transfers": [{"node": "host-c", "doneBytes": 3_145_728, "totalBytes": 4_194_304, "movedBytes": 1000}],
            "to": "", "pauseMs": 0.0,
        }),
    );
    let cells = operation.cells(false);
    assert!(
        cells.contains(&"host-c fetches 3M of 4M".to_owned()),
        "{cells:?}"
    );
    rows(&operation);
}

#[test]
fn the_cluster() {
    let status = StatusView::from(v1::GetStatusResponse {
        cluster_id: "01X".into(),
        incarnation: "01Y".into(),
        leader: "host-a".into(),
        quorum: false,
        term: 3,
        version: 1,
        applied_index: 9,
        problems: vec!["host-b is offline".into()],
        memory: Some(v1::HostMemory {
            total_bytes: 4,
            available_bytes: 3,
            pressure: v1::MemoryPressure::Some.into(),
            processes: 2,
            ..Default::default()
        }),
        ..Default::default()
    });
    check(
        &status,
        &json!({
            "clusterId": "01X", "incarnation": "01Y", "node": null, "leader": "host-a", "quorum": false, "term": 3, "appliedIndex": 9, "nodes": [],
            "vms": 0, "snapshots": 0, "images": 0, "problems": ["host-b is offline"], "startedAt": null, "stateDigest": "",
            "memory": {"totalBytes": 4, "availableBytes": 3, "pressure": "some", "processes": 2,
                       "guests": {"privateBytes": 0, "sharedBytes": 0, "mergedBytes": 0, "mergeProfitBytes": 0},
                       "merging": {"setting": "", "running": false, "reason": "", "scannerSeconds": 0.0, "scannerPercent": 0.0}},
            "version": 1,
        }),
    );
    assert!(
        status
            .lines()
            .contains(&("problem", "host-b is offline".to_owned()))
    );
    let check_view = CheckView::from(v1::HostCheck {
        name: "qemu".into(),
        result: 3,
        ..Default::default()
    });
    check(
        &check_view,
        &json!({"name": "qemu", "result": "failed", "found": "", "hint": ""}),
    );
    rows(&check_view);
    let token = NewTokenView::from(v1::CreateTokenResponse {
        token: "fpjoin1.x".into(),
        id: "01T".into(),
        expires_at: Some(TIME),
    });
    check(
        &token,
        &json!({"token": "fpjoin1.x", "id": "01T", "expiresAt": "2023-11-14T22:13:20.250Z"}),
    );
    rows(&TokenView::from(v1::Token::default()));
}

#[test]
fn ages() {
    assert_eq!(age(None), "");
    let at = |time: &str| time.parse().ok().map(Moment);
    assert!(age(at("2023-11-14T22:13:20Z")).ends_with('d'));
    assert_eq!(
        age(at("2999-01-01T00:00:00Z")),
        "0s",
        "a clock that is ahead"
    );
}
