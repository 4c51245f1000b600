//! One of every command.

use raft::state::*;

use super::{
    authority, blob, capacity, content, disk, ending, labels, map_asker, map_job, map_result,
    quota, settings, trust,
};

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
                authority: [5; 32],
            },
        ),
        ("revoke-token", Command::RevokeToken { id: "01ABC".into() }),
        (
            "issue-certificate",
            Command::IssueCertificate {
                id: CertificateId(0x23),
                name: "ann".into(),
                owner: "team".into(),
                role: Role::Operator,
                expires_at: 99,
                authority: [5; 32],
                replace: true,
            },
        ),
        (
            "replace-authority",
            Command::ReplaceAuthority {
                old: authority(5),
                new: authority(6),
                cross: vec![7, 8, 9],
                is_compromised: true,
            },
        ),
        (
            "sign-with-new-authority",
            Command::SignWithNewAuthority {
                number: 3,
                absent: vec![2],
            },
        ),
        ("finish-authority", Command::FinishAuthority { force: true }),
        (
            "report-trust",
            Command::ReportTrust {
                node: 2,
                trust: trust(),
            },
        ),
        (
            "revoke-certificate",
            Command::RevokeCertificate {
                certificate: "01ABC".into(),
            },
        ),
        (
            "join",
            Command::Join {
                key_hash: [9; 32],
                name: "n2".into(),
                address: "h2:7000".into(),
                newest_version: 1,
                start_by: 98,
            },
        ),
        ("withdraw-join", Command::WithdrawJoin { key_hash: [9; 32] }),
        ("forget-newcomers", Command::ForgetNewcomers),
        (
            "move-node",
            Command::MoveNode {
                node: 2,
                address: "h2:7002".into(),
            },
        ),
        (
            "delete-node",
            Command::DeleteNode {
                node: "n2".into(),
                force: true,
            },
        ),
        ("raise-version", Command::RaiseVersion { to: 2 }),
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
            "drain-node",
            Command::DrainNode {
                node: "n1".into(),
                voters: vec![1, 2, 3],
                silent: vec![3],
                force: true,
                rest: true,
            },
        ),
        ("wake-node", Command::WakeNode { node: 2 }),
        (
            "stay-on-node",
            Command::StayOnNode {
                node: 1,
                vm: VmId(0x41),
                reason: "no room".into(),
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
            "reset",
            Command::ResetVm {
                operation,
                vm: "a".into(),
                to: Some(("gold".into(), Some("a".into()))),
                paused: true,
                expires_at: 70,
            },
        ),
        (
            "resume-suspended",
            Command::ResetVm {
                operation,
                vm: "a".into(),
                to: None,
                paused: false,
                expires_at: 70,
            },
        ),
        (
            "suspend",
            Command::SuspendVm {
                operation,
                vm: "a".into(),
                mode: CaptureMode::Auto,
                expires_at: 70,
            },
        ),
        (
            "move",
            Command::MoveVm {
                operation,
                vm: "a".into(),
                node: Some("n2".into()),
                candidates: candidates(),
                expires_at: 70,
            },
        ),
        (
            "arrive",
            Command::Arrive {
                operation,
                node: 2,
                content: Some(content()),
                disk: Some(vec![0x77]),
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
            "warm",
            Command::WarmSnapshot {
                snapshot: "gold".into(),
                vm: Some("a".into()),
                count: 10,
            },
        ),
        (
            "replicate-snapshot",
            Command::ReplicateSnapshot {
                snapshot: "gold".into(),
                vm: Some("a".into()),
                replicas: 2,
                candidates: candidates(),
            },
        ),
        (
            "protect",
            Command::ProtectVm {
                vm: "a".into(),
                snapshots: Some(ScheduleChange::Follow(super::schedule())),
                ha: Some(true),
                candidates: candidates(),
            },
        ),
        (
            "guard",
            Command::GuardVms {
                node: 2,
                vms: vec![VmId(0x41), VmId(0x42)],
            },
        ),
        (
            "restore",
            Command::RestoreVms {
                node: 2,
                silent_for: 6_600,
                candidates: candidates(),
            },
        ),
        (
            "take-scheduled",
            Command::TakeScheduled {
                operation,
                vm: VmId(0x41),
                node: 2,
                candidates: candidates(),
                expires_at: 9_000,
            },
        ),
        (
            "place-copies",
            Command::PlaceCopies {
                candidates: candidates(),
                lost: vec![2],
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
                reason: "its host was restarted".into(),
            },
        ),
        (
            "hold-snapshot",
            Command::HoldSnapshot {
                snapshot: SnapshotId(0x51),
                node: 2,
            },
        ),
        (
            "secure-snapshot",
            Command::SecureSnapshot {
                snapshot: SnapshotId(0x51),
                node: 1,
                checksums: Checksums {
                    base: 7,
                    layers: vec![u32::MAX, 0],
                },
            },
        ),
        (
            "share-vm",
            Command::Share {
                object: ObjectName::Vm("a".into()),
                with: Some("bob".into()),
                stop: false,
            },
        ),
        (
            "share-image",
            Command::Share {
                object: ObjectName::Image("tiny".into()),
                with: None,
                stop: false,
            },
        ),
        (
            "share-snapshot",
            Command::Share {
                object: ObjectName::Snapshot("a@gold".into()),
                with: None,
                stop: true,
            },
        ),
        (
            "create-lease",
            Command::CreateLease {
                id: LeaseId(0x61),
                ttl: 60_000,
            },
        ),
        (
            "renew-lease",
            Command::RenewLease {
                lease: LeaseId(0x61).to_string(),
            },
        ),
        (
            "end-lease",
            Command::EndLease {
                lease: LeaseId(0x61).to_string(),
            },
        ),
        (
            "set-life",
            Command::SetLife {
                object: ObjectName::Vm("a".into()),
                life: Life::Until(1_700_000_060_000),
            },
        ),
        ("expire", Command::Expire),
        (
            "start-map",
            Command::StartMap {
                id: MapId(0x71),
                name: Some("nightly".into()),
                asker: Some(map_asker()),
                source: ForkSource::Vm("a".into()),
                job: map_job(),
                operation,
                node: 1,
                candidates: vec![Candidate {
                    node: 1,
                    room: None,
                }],
                kept_for: 86_400_000,
                expires_at: 1_700_000_060_000,
            },
        ),
        (
            "place-map",
            Command::PlaceMap {
                map: MapId(0x71),
                epoch: 1,
                candidates: Vec::new(),
            },
        ),
        (
            "take-map",
            Command::TakeMap {
                map: MapId(0x71),
                node: 1,
                epoch: 1,
                lease: LeaseId(0x62),
            },
        ),
        (
            "report-map",
            Command::ReportMap {
                map: MapId(0x71),
                epoch: 2,
                results: vec![map_result()],
                note: "there is no room".into(),
            },
        ),
        (
            "end-map",
            Command::EndMap {
                map: MapId(0x71),
                epoch: 2,
                failure: Some("its moment is gone".into()),
                reduced: Some(map_result()),
            },
        ),
        (
            "cancel-map",
            Command::CancelMap {
                map: "nightly".into(),
            },
        ),
        (
            "delete-map",
            Command::DeleteMap {
                map: "nightly".into(),
                force: true,
            },
        ),
        (
            "close-parts",
            Command::CloseParts {
                node: 2,
                reason: "silent".into(),
            },
        ),
        (
            "set-quota",
            Command::SetQuota {
                owner: "bob".into(),
                quota: quota(),
            },
        ),
        (
            "delete-quota",
            Command::DeleteQuota {
                owner: "bob".into(),
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
            "group-captured",
            Command::GroupCaptured {
                captured: vec![(operation, content()), (operation.part(1), content())],
            },
        ),
        (
            "report-group",
            Command::ReportGroup {
                results: vec![(operation, vec![(0, ChildResult::default())])],
            },
        ),
        (
            "delete-group",
            Command::DeleteGroup {
                group: "app".into(),
                force: true,
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
                            ready_us: 24_000,
                            error: String::new(),
                            gave_way: false,
                            failed_steps: vec!["clock: refused".into()],
                        },
                    ),
                    (
                        999,
                        ChildResult {
                            running_us: 0,
                            ready_us: 0,
                            error: "no memory".into(),
                            gave_way: false,
                            failed_steps: Vec::new(),
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

fn constraints() -> Constraints {
    Constraints {
        node_labels: labels(),
        apart_from: vec!["db".into(), "tier=db".into()],
    }
}

fn candidates() -> Vec<Candidate> {
    let candidate = |node, room| Candidate { node, room };
    let room = |memory_mib, disk_mib| {
        Some(Room {
            memory_mib,
            disk_mib,
        })
    };
    vec![
        candidate(1, None),
        candidate(3, room(22_000, 2_000_000)),
        candidate(300, room(0, u32::MAX)),
    ]
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
        guest_agent: GuestAgent::Qemu,
        node: 1,
    };
    let vm = |node, cpu_model, accelerator, machine, restart, network| Command::CreateVm {
        id: VmId(0x41),
        name: "a".into(),
        image: "tiny".into(),
        node,
        constraints: constraints(),
        candidates: candidates(),
        cpus: 4,
        memory_bytes: 256 << 20,
        disk_bytes: 0,
        machine,
        accelerator,
        cpu_model,
        cmdline: "quiet".into(),
        limits: Limits {
            memory_bytes: Some(512 << 20),
            ..Limits::default()
        },
        restart,
        labels: labels(),
        network,
        publish: match network {
            Network::None => Vec::new(),
            Network::User { .. } => vec![22, 65_535],
        },
        self_fork: 1_000,
        unready: Unready::Hold,
        life: Life::Unbounded,
        schedule: Some(super::schedule()),
        ha: true,
        group: Some("app".into()),
    };
    let phases = [
        Phase::Pending,
        Phase::Running,
        Phase::Paused,
        Phase::Stopped,
        Phase::Failed,
        Phase::Restarting,
    ];
    let report = |phase| VmReport {
        vm: VmId(0x41),
        boot: 3,
        phase,
        reason: "because".into(),
        ending: None,
        restarts: 0,
        next_start: None,
    };
    let causes = [
        EndCause::Stopped,
        EndCause::Poweroff,
        EndCause::Reboot,
        EndCause::Panic,
        EndCause::Crash,
        EndCause::OutOfMemory,
        EndCause::BootFailed,
        EndCause::StartFailed,
        EndCause::HostLost,
        EndCause::Unseen,
        EndCause::Exited,
    ];
    let ended = |cause| VmReport {
        ending: Some(ending(cause)),
        restarts: 300,
        next_start: Some(1_700_000_001_000),
        ..report(Phase::Restarting)
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
            vm(
                Some("n1".into()),
                Some("max".into()),
                Accelerator::Kvm,
                Machine::Q35,
                RestartPolicy::Always,
                Network::User { egress: false },
            ),
        ),
        (
            "create-vm-bare",
            vm(
                None,
                None,
                Accelerator::Auto,
                Machine::Microvm,
                RestartPolicy::Never,
                Network::None,
            ),
        ),
        (
            "create-vm-tcg",
            vm(
                None,
                None,
                Accelerator::Tcg,
                Machine::Microvm,
                RestartPolicy::OnFailure,
                Network::User { egress: true },
            ),
        ),
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
        (
            "report-endings",
            Command::ReportVms {
                node: 1,
                reports: causes.map(ended).into(),
            },
        ),
        (
            "report-steps",
            Command::ReportSteps {
                vm: VmId(0x41),
                boot: 3,
                failed: vec!["hook 10-keys: it ended with 1".into()],
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
        life: Life::Unbounded,
        replicas: 2,
        candidates: candidates(),
        expires_at: 9_000,
    };
    let fork = |source, name: Option<&str>, by_guest, placing| Command::Fork {
        operation,
        source,
        count: 1_000,
        name: name.map(Into::into),
        mode: CaptureMode::Live,
        paused: by_guest,
        labels: labels(),
        settings: settings(),
        by_guest,
        has_secrets: by_guest,
        placing,
        life: match by_guest {
            true => Life::Unbounded,
            false => Life::Leased(LeaseId(0x61)),
        },
        constraints: constraints(),
        candidates: candidates(),
        expires_at: 9_000,
    };
    let snapshot = |vm: Option<&str>| ForkSource::Snapshot {
        snapshot: "gold".into(),
        vm: vm.map(Into::into),
    };
    let group = |name: Option<&str>| Command::ForkGroup {
        operation,
        group: "app".into(),
        count: 3,
        name: name.map(Into::into),
        mode: CaptureMode::Auto,
        life: Life::Until(9_000),
        candidates: candidates(),
        expires_at: 9_000,
    };
    vec![
        ("fork-group", group(None)),
        ("fork-group-named", group(Some("try"))),
        ("capture-named", capture(Some("gold"), CaptureMode::Auto)),
        ("capture-paused", capture(None, CaptureMode::Paused)),
        (
            "fork-vm",
            fork(
                ForkSource::Vm("a".into()),
                Some("c"),
                true,
                Placing::WithSource,
            ),
        ),
        (
            "fork-snapshot",
            fork(snapshot(None), None, false, Placing::Spread),
        ),
        (
            "fork-near",
            fork(snapshot(None), None, false, Placing::Near),
        ),
        (
            "fork-vm-and-snapshot",
            fork(
                snapshot(Some("a")),
                None,
                false,
                Placing::On("node2".into()),
            ),
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
                by: match name.starts_with("create") {
                    true => Actor::user("ann"),
                    false => Actor::cluster(),
                },
                now: 1_700_000_000_000,
                command,
            },
        )
    };
    commands().into_iter().map(propose).collect()
}
