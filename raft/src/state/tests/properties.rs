//! Any commands in any order.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

/// Few names and ids, so that commands meet each other's objects.
fn name() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        10 => select(&["a", "b", "c", "a-1", "a-2"][..]),
        1 => select(&["Bad", "", "n1", "tiny"][..]),
    ];
    text.prop_map(str::to_owned)
}

fn node() -> impl Strategy<Value = String> {
    select(&["n1", "n2", "1", "2", "3", "a"][..]).prop_map(str::to_owned)
}

fn image_name() -> impl Strategy<Value = String> {
    select(&["tiny", "tiny", "tiny", "a", "Bad"][..]).prop_map(str::to_owned)
}

fn operation() -> impl Strategy<Value = OperationId> {
    (1..5u128).prop_map(|n| OperationId(n * DERIVED_IDS))
}

fn vm_id() -> impl Strategy<Value = VmId> {
    prop_oneof![
        (1..6u128).prop_map(VmId),
        (operation(), 0..4u32).prop_map(|(id, index)| id.child(index))
    ]
}

fn snapshot_id() -> impl Strategy<Value = SnapshotId> {
    operation().prop_map(OperationId::snapshot)
}

/// A VM by name or id.
fn vm() -> impl Strategy<Value = String> {
    prop_oneof![3 => name(), 1 => vm_id().prop_map(|id| id.to_string())]
}

fn snapshot() -> impl Strategy<Value = String> {
    prop_oneof![3 => snapshot_id().prop_map(|id| id.to_string()), 1 => name()]
}

fn phase() -> impl Strategy<Value = Phase> {
    select(
        &[
            Phase::Running,
            Phase::Running,
            Phase::Paused,
            Phase::Stopped,
            Phase::Failed,
            Phase::Suspended,
            Phase::Restarting,
        ][..],
    )
}

fn restart() -> impl Strategy<Value = RestartPolicy> {
    use RestartPolicy::*;
    select(&[Never, OnFailure, Always][..])
}

fn ending() -> impl Strategy<Value = Option<Ending>> {
    let cause = select(&[EndCause::Panic, EndCause::Stopped, EndCause::Exited][..]);
    option::of((cause, 0..9u64).prop_map(|(cause, at)| Ending {
        exit_code: (cause == EndCause::Exited).then_some(at as i32),
        cause,
        detail: "it ended".into(),
        at,
    }))
}

fn action() -> impl Strategy<Value = PowerAction> {
    use PowerAction::*;
    select(&[Start, Stop, ForceStop, Pause, Resume, Restart][..])
}

fn image() -> impl Strategy<Value = Command> {
    (1..4u128, image_name(), 0..3u64, any::<bool>()).prop_map(|(id, name, node, kernel)| {
        Command::ImportImage {
            id: ImageId(id),
            name,
            kernel: kernel.then_some(Blob {
                sha256: [1; 32],
                size_bytes: 1,
            }),
            initrd: None,
            disk: Some(DiskBlob {
                blob: Blob {
                    sha256: [2; 32],
                    size_bytes: 1,
                },
                virtual_bytes: MIB,
            }),
            cmdline: String::new(),
            ready_line: None,
            boot_timeout_ms: 1,
            guest_agent: GuestAgent::default(),
            node,
        }
    })
}

fn network() -> impl Strategy<Value = Network> {
    use Network::*;
    select(&[None, User { egress: true }, User { egress: false }][..])
}

/// One label, so that VMs are apart from each other now and then.
fn vm_labels() -> impl Strategy<Value = Labels> {
    option::of(Just(("k".to_owned(), "v".to_owned()))).prop_map(|label| label.into_iter().collect())
}

fn constraints() -> impl Strategy<Value = Constraints> {
    let zone = option::weighted(0.1, Just((ZONE.to_owned(), "west".to_owned())));
    let apart = select(&["a", "k=v", "k=w"][..]).prop_map(str::to_owned);
    (zone, vec(apart, 0..2)).prop_map(|(zone, apart_from)| Constraints {
        node_labels: zone.into_iter().collect(),
        apart_from,
    })
}

/// Some with much room, some with little, some that have not said.
fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let room = (0..2000u32, 0..4u32).prop_map(|(memory_mib, disk_mib)| Room {
        memory_mib,
        disk_mib,
    });
    let candidate = (1..4u64, option::of(room));
    vec(
        candidate.prop_map(|(node, room)| Candidate { node, room }),
        0..5,
    )
}

fn create() -> impl Strategy<Value = Command> {
    let group = option::weighted(0.4, name());
    let reach = (
        network(),
        vec(0..5u16, 0..3),
        0..4u32,
        life(),
        any::<bool>(),
        group,
    );
    (
        vm_id(),
        name(),
        option::weighted(0.2, node()),
        (constraints(), candidates(), vm_labels()),
        0..5u64,
        restart(),
        reach,
    )
        .prop_map(
            |(id, name, node, (constraints, candidates, labels), memory, restart, reach)| {
                let (network, publish, self_fork, life, ha, group) = reach;
                Command::CreateVm {
                    id,
                    name,
                    image: "tiny".into(),
                    node,
                    constraints,
                    candidates,
                    cpus: 1,
                    memory_bytes: memory * 1024 * MIB + 256 * MIB,
                    disk_bytes: 0,
                    machine: Machine::Microvm,
                    accelerator: Accelerator::Auto,
                    cpu_model: None,
                    cmdline: String::new(),
                    limits: Limits::default(),
                    restart,
                    labels,
                    network,
                    publish,
                    self_fork,
                    unready: Unready::default(),
                    life,
                    schedule: None,
                    ha: ha && group.is_none(),
                    group,
                }
            },
        )
}

fn lost_hosts() -> impl Strategy<Value = Command> {
    let protect = (vm(), option::of(any::<bool>()));
    let restore = (1..3u64, 1..4u64);
    prop_oneof![
        1 => protect.prop_map(|(vm, ha)| Command::ProtectVm {
            vm,
            snapshots: None,
            ha,
            candidates: online([1, 2]),
        }),
        1 => (1..3u64, vec(vm_id(), 0..3)).prop_map(|(node, vms)| Command::GuardVms { node, vms }),
        2 => restore.prop_map(|(node, last)| Command::RestoreVms {
            node,
            silent_for: 1,
            candidates: online(1..=last),
        }),
    ]
}

fn reports() -> impl Strategy<Value = Command> {
    let ending = (ending(), 0..3u32, option::of(0..9u64));
    let report = (vm_id(), 1..4u64, phase(), ending).prop_map(
        |(vm, boot, phase, (ending, restarts, next_start))| VmReport {
            ending,
            restarts,
            next_start,
            ..report(vm, boot, phase)
        },
    );
    (1..3u64, vec(report, 1..4)).prop_map(|(node, reports)| Command::ReportVms { node, reports })
}

fn fork() -> impl Strategy<Value = Command> {
    let source = prop_oneof![
        vm().prop_map(ForkSource::Vm),
        (snapshot(), option::of(vm()))
            .prop_map(|(snapshot, vm)| ForkSource::Snapshot { snapshot, vm }),
    ];
    (
        operation(),
        source,
        0..4u32,
        option::of(name()),
        any::<(bool, bool)>(),
        prop_oneof![
            Just(Placing::WithSource),
            Just(Placing::Spread),
            Just(Placing::Near),
            (1..3u64).prop_map(|node| Placing::On(node.to_string())),
        ],
        (constraints(), candidates(), vm_labels(), life()),
    )
        .prop_map(
            |(operation, source, count, name, (paused, by_guest), placing, given)| {
                let (constraints, candidates, labels, life) = given;
                Command::Fork {
                    operation,
                    source,
                    count,
                    name,
                    mode: CaptureMode::Auto,
                    paused,
                    labels,
                    settings: Labels::from([("k".into(), String::new())]),
                    by_guest,
                    has_secrets: paused,
                    placing,
                    constraints,
                    candidates,
                    life,
                    expires_at: 9,
                }
            },
        )
}

fn groups() -> impl Strategy<Value = Command> {
    let fork = (
        operation(),
        name(),
        0..3u32,
        option::weighted(0.3, name()),
        candidates(),
        life(),
    );
    let fork =
        fork.prop_map(
            |(operation, group, count, name, candidates, life)| Command::ForkGroup {
                operation,
                group,
                count,
                name,
                mode: CaptureMode::Auto,
                life,
                candidates,
                expires_at: 9,
            },
        );
    let parts = || (operation(), 0..4u32);
    let captured = parts().prop_map(|(first, count)| {
        let ids = (0..count).map(|index| first.part(index));
        Command::GroupCaptured {
            captured: ids.map(|id| (id, content(id))).collect(),
        }
    });
    let error = select(&["", "", "failed"][..]);
    let report = (parts(), 1..3u32, error).prop_map(|((first, count), children, error)| {
        let results = (0..children).map(|index| {
            let result = ChildResult {
                error: error.into(),
                ..ChildResult::default()
            };
            (index, result)
        });
        let results: Vec<_> = results.collect();
        let ids = (0..count).map(|index| first.part(index));
        Command::ReportGroup {
            results: ids.map(|id| (id, results.clone())).collect(),
        }
    });
    let delete = (name(), any::<bool>());
    prop_oneof![
        4 => fork,
        4 => captured,
        4 => report,
        1 => delete.prop_map(|(group, force)| Command::DeleteGroup { group, force }),
    ]
}

fn reset() -> impl Strategy<Value = Command> {
    let to = option::weighted(0.7, (snapshot(), option::weighted(0.2, vm())));
    (operation(), vm(), to, any::<bool>()).prop_map(|(operation, vm, to, paused)| {
        Command::ResetVm {
            operation,
            vm,
            to,
            paused,
            expires_at: 9,
        }
    })
}

fn moving() -> impl Strategy<Value = Command> {
    let begin = (operation(), vm(), option::weighted(0.3, node()));
    let begin = begin.prop_map(|(operation, vm, node)| Command::MoveVm {
        operation,
        vm,
        node,
        candidates: online([1, 2]),
        expires_at: 9,
    });
    let arrive = (operation(), 1..3u64, any::<bool>());
    let arrive = arrive.prop_map(|(operation, node, runs)| Command::Arrive {
        operation,
        node,
        content: runs.then(|| content(operation)),
        disk: Some(vec![7]),
    });
    let stay = (1..3u64, vm_id()).prop_map(|(node, vm)| Command::StayOnNode {
        node,
        vm,
        reason: "no room".into(),
    });
    let drain = (
        node(),
        vec(1..4u64, 0..4),
        vec(1..4u64, 0..3),
        any::<bool>(),
        any::<bool>(),
    );
    let drain = drain.prop_map(|(node, voters, silent, force, rest)| Command::DrainNode {
        node,
        voters,
        silent,
        force,
        rest,
    });
    let wake = (1..4u64).prop_map(|node| Command::WakeNode { node });
    prop_oneof![
        3 => begin,
        4 => arrive,
        1 => drain,
        1 => wake,
        1 => stay,
    ]
}

fn results() -> impl Strategy<Value = Command> {
    let result = (0..4u32, select(&["", "", "failed"][..]), any::<bool>()).prop_map(
        |(index, error, gave_way)| {
            (
                index,
                ChildResult {
                    running_us: 1,
                    ready_us: 1,
                    error: error.into(),
                    gave_way,
                    failed_steps: vec!["clock: refused".into()],
                },
            )
        },
    );
    (operation(), vec(result, 1..5))
        .prop_map(|(operation, results)| Command::ReportChildren { operation, results })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Viewer), Just(Role::Operator), Just(Role::Admin)]
}

fn membership() -> impl Strategy<Value = Command> {
    let key = || (0..3u8).prop_map(|byte| [byte; 32]);
    prop_oneof![
        (1..3u128, name()).prop_map(|(cluster, name)| Command::Found {
            cluster: ClusterId(cluster),
            name,
            address: "h:1".into()
        }),
        (1..4u128, key(), 0..90u64).prop_map(|(id, key_hash, expires_at)| Command::CreateToken {
            id: TokenId(id),
            key_hash,
            expires_at,
            authority: [1; 32],
        }),
        (1..4u128).prop_map(|id| Command::RevokeToken {
            id: TokenId(id).to_string()
        }),
        (1..4u128, name(), role(), 0..90u64).prop_map(|(id, name, role, expires_at)| {
            Command::IssueCertificate {
                id: CertificateId(id),
                owner: name.clone(),
                name,
                role,
                expires_at,
                authority: [1; 32],
                replace: false,
            }
        }),
        name().prop_map(|certificate| Command::RevokeCertificate { certificate }),
        (1..4u128).prop_map(|id| Command::RevokeCertificate {
            certificate: CertificateId(id).to_string()
        }),
        (key(), name()).prop_map(|(key_hash, name)| Command::Join {
            key_hash,
            name,
            address: "h:1".into(),
            newest_version: 1,
            start_by: 50,
        }),
        key().prop_map(|key_hash| Command::WithdrawJoin { key_hash }),
        Just(Command::ForgetNewcomers),
        authority(),
        (1..5u64).prop_map(|node| Command::MoveNode {
            node,
            address: "h:3".into()
        }),
        (node(), any::<bool>()).prop_map(|(node, force)| Command::DeleteNode { node, force }),
        (1..5u64).prop_map(|node| Command::ReportNode {
            node,
            address: "h:2".into(),
            capacity: capacity()
        }),
        (0..3u32).prop_map(|to| Command::RaiseVersion { to }),
        (node(), any::<bool>())
            .prop_map(|(node, schedulable)| Command::CordonNode { node, schedulable }),
        node().prop_map(|node| Command::LabelNode {
            node,
            set: Labels::from([(ZONE.to_owned(), "west".to_owned())]),
            remove: Vec::new(),
        }),
    ]
}

fn authority() -> impl Strategy<Value = Command> {
    let certificate = || {
        (1..4u8).prop_map(|byte| AuthorityCertificate {
            fingerprint: [byte; 32],
            der: vec![byte],
            expires_at: 99,
        })
    };
    let fingerprint = || (1..4u8).prop_map(|byte| [byte; 32]);
    prop_oneof![
        (certificate(), certificate(), any::<bool>()).prop_map(|(old, new, is_compromised)| {
            Command::ReplaceAuthority {
                old,
                new,
                cross: Vec::new(),
                is_compromised,
            }
        }),
        (0..4u64, vec(1..4u64, 0..3))
            .prop_map(|(number, absent)| Command::SignWithNewAuthority { number, absent }),
        any::<bool>().prop_map(|force| Command::FinishAuthority { force }),
        (1..4u64, fingerprint(), fingerprint()).prop_map(|(node, authority, holds)| {
            Command::ReportTrust {
                node,
                trust: NodeTrust {
                    key: [node as u8; 32],
                    authority,
                    holds,
                },
            }
        }),
    ]
}

fn purged() -> impl Strategy<Value = Command> {
    let object = prop_oneof![
        (1..4u128).prop_map(|id| ObjectId::Image(ImageId(id))),
        vm_id().prop_map(ObjectId::Vm),
        snapshot_id().prop_map(ObjectId::Snapshot),
        vm_id().prop_map(ObjectId::Left),
    ];
    (1..3u64, vec(object, 1..5)).prop_map(|(node, objects)| Command::Purged { node, objects })
}

fn owner() -> impl Strategy<Value = String> {
    select(&["admin", "ann", "bob"][..]).prop_map(str::to_owned)
}

/// Somebody of three owners, or an administrator.
fn actor() -> impl Strategy<Value = Actor> {
    (owner(), option::weighted(0.3, Just(()))).prop_map(|(owner, is_admin)| Actor {
        is_admin: is_admin.is_some() || owner == LOCAL_OWNER,
        owner,
    })
}

fn share() -> impl Strategy<Value = Command> {
    let object = prop_oneof![
        vm().prop_map(ObjectName::Vm),
        snapshot().prop_map(ObjectName::Snapshot),
        image_name().prop_map(ObjectName::Image),
    ];
    let with = option::weighted(0.7, owner());
    (object, with, option::weighted(0.3, Just(()))).prop_map(|(object, with, stop)| {
        Command::Share {
            object,
            with,
            stop: stop.is_some(),
        }
    })
}

fn quotas() -> impl Strategy<Value = Command> {
    let limit = || option::weighted(0.3, 0..4u64);
    let quota = (limit(), limit(), limit(), limit(), limit(), limit());
    let set = (owner(), quota).prop_map(|(owner, limits)| {
        let (vms, cpus, memory, disk, snapshots, images) = limits;
        let quota = Quota {
            vms,
            cpus,
            memory_bytes: memory.map(|number| number * 256 * MIB),
            disk_bytes: disk.map(|number| number * 64 * MIB),
            snapshots,
            images,
        };
        Command::SetQuota { owner, quota }
    });
    let delete = owner().prop_map(|owner| Command::DeleteQuota { owner });
    prop_oneof![3 => set, 1 => delete]
}

fn lease() -> impl Strategy<Value = LeaseId> {
    (1..4u128).prop_map(LeaseId)
}

fn life() -> impl Strategy<Value = Life> {
    prop_oneof![
        3 => Just(Life::Unbounded),
        1 => (1..100u64).prop_map(Life::Until),
        1 => lease().prop_map(Life::Leased),
    ]
}

fn lives() -> impl Strategy<Value = Command> {
    let object = prop_oneof![
        vm().prop_map(ObjectName::Vm),
        snapshot().prop_map(ObjectName::Snapshot),
        image_name().prop_map(ObjectName::Image),
    ];
    prop_oneof![
        3 => (lease(), 9_999..10_002u64).prop_map(|(id, ttl)| Command::CreateLease { id, ttl }),
        1 => lease().prop_map(|lease| Command::RenewLease { lease: lease.to_string() }),
        1 => lease().prop_map(|lease| Command::EndLease { lease: lease.to_string() }),
        2 => (object, life()).prop_map(|(object, life)| Command::SetLife { object, life }),
        2 => Just(Command::Expire),
    ]
}

fn map() -> impl Strategy<Value = MapId> {
    (1..4u128).prop_map(MapId)
}

fn map_result() -> impl Strategy<Value = MapResult> {
    let code = option::of(select(&[0, 0, 3][..]));
    (0..4u32, code, 0..3usize, any::<bool>()).prop_map(|(index, exit_code, large, truncated)| {
        MapResult {
            index,
            exit_code,
            stdout: vec![b'x'; large * (MAP_ITEM_OUTPUT - 1)],
            truncated,
            ..MapResult::default()
        }
    })
}

fn maps() -> impl Strategy<Value = Command> {
    let source = prop_oneof![
        2 => vm().prop_map(ForkSource::Vm),
        1 => snapshot().prop_map(|snapshot| ForkSource::Snapshot { snapshot, vm: None }),
    ];
    let job = (
        0..4u32,
        option::of(Just("wc".to_owned())),
        vec(Just(vec![b'a']), 0..3),
    );
    let start = (
        map(),
        option::of(name()),
        source,
        job,
        operation(),
        1..4u64,
        1..4u64,
    );
    let start = start.prop_map(
        |(id, name, source, (count, reduce, inputs), operation, node, last)| Command::StartMap {
            id,
            name,
            asker: None,
            source,
            job: MapJob {
                count,
                reduce,
                inputs,
                ..map_job()
            },
            operation,
            node,
            candidates: online(1..=last),
            kept_for: 20,
            expires_at: 9,
        },
    );
    let epoch = || 1..5u64;
    let named = || prop_oneof![map().prop_map(|id| id.to_string()), name()];
    prop_oneof![
        4 => start,
        2 => (map(), epoch(), 1..4u64).prop_map(|(map, epoch, last)| Command::PlaceMap {
            map,
            epoch,
            candidates: online(1..=last),
        }),
        4 => (map(), 1..3u64, epoch(), lease()).prop_map(|(map, node, epoch, lease)| Command::TakeMap {
            map,
            node,
            epoch,
            lease,
        }),
        6 => (map(), epoch(), vec(map_result(), 0..4)).prop_map(|(map, epoch, results)| Command::ReportMap {
            map,
            epoch,
            results,
            note: "waits".into(),
        }),
        2 => (map(), epoch(), option::of(Just("x".to_owned())), option::of(map_result())).prop_map(
            |(map, epoch, failure, reduced)| Command::EndMap { map, epoch, failure, reduced }
        ),
        1 => named().prop_map(|map| Command::CancelMap { map }),
        1 => (named(), any::<bool>()).prop_map(|(map, force)| Command::DeleteMap { map, force }),
    ]
}

fn schedules() -> impl Strategy<Value = Command> {
    let schedule = (9_999..10_002u64, 0..3u32, 1..3u32);
    let schedule = schedule.prop_map(|(every, keep, replicas)| Schedule {
        every,
        keep,
        replicas,
    });
    let protect = (vm(), option::weighted(0.9, schedule), 1..3u64);
    let take = (operation(), vm_id(), 1..3u64);
    prop_oneof![
        1 => protect.prop_map(|(vm, schedule, last)| Command::ProtectVm {
            vm,
            snapshots: Some(schedule.map_or(ScheduleChange::Stop, ScheduleChange::Follow)),
            ha: None,
            candidates: online(1..=last),
        }),
        1 => take.prop_map(|(operation, vm, node)| Command::TakeScheduled {
            operation,
            vm,
            node,
            candidates: online([1, 2]),
            expires_at: 9,
        }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => membership(),
        1 => image(),
        1 => (1..4u128, 1..4u64).prop_map(|(id, node)| Command::ReportImage { image: ImageId(id), node }),
        1 => image_name().prop_map(|image| Command::DeleteImage { image }),
        3 => create(),
        2 => (vm(), action()).prop_map(|(vm, action)| Command::SetPower { vm, action }),
        2 => (vm(), any::<bool>()).prop_map(|(vm, force)| Command::DeleteVm { vm, force }),
        4 => reports(),
        1 => (vm_id(), 1..4u64, any::<bool>()).prop_map(|(vm, boot, failed)| Command::ReportSteps {
            vm,
            boot,
            failed: failed.then(|| "hook".to_owned()).into_iter().collect(),
        }),
        2 => (operation(), vm(), option::of(name()), life(), 0..3u32).prop_map(|(operation, vm, name, life, replicas)| Command::CreateSnapshot {
            operation,
            vm,
            name,
            mode: CaptureMode::Auto,
            life,
            replicas,
            candidates: online([1, 2]),
            expires_at: 9,
        }),
        4 => fork(),
        6 => groups(),
        2 => reset(),
        2 => (operation(), vm()).prop_map(|(operation, vm)| Command::SuspendVm {
            operation,
            vm,
            mode: CaptureMode::Auto,
            expires_at: 9,
        }),
        3 => moving(),
        4 => operation().prop_map(|id| Command::SnapshotReady { operation: id, content: content(id) }),
        4 => results(),
        1 => (operation(), any::<bool>()).prop_map(|(operation, cancelled)| Command::FailOperation {
            operation,
            reason: "x".into(),
            cancelled,
        }),
        1 => (1..3u64).prop_map(|node| Command::CloseParts { node, reason: "silent".into() }),
        1 => operation().prop_map(|id| Command::CancelOperation { operation: id.to_string() }),
        1 => (snapshot(), name()).prop_map(|(snapshot, name)| Command::TagSnapshot { snapshot, name }),
        1 => (snapshot(), 0..5_u32).prop_map(|(snapshot, count)| Command::WarmSnapshot { snapshot, vm: None, count }),
        2 => (snapshot(), 0..4u32, 1..4u64).prop_map(|(snapshot, replicas, last)| Command::ReplicateSnapshot {
            snapshot,
            vm: None,
            replicas,
            candidates: online(1..=last),
        }),
        3 => schedules(),
        6 => maps(),
        3 => lost_hosts(),
        2 => (1..4u64, 1..4u64).prop_map(|(lost, last)| Command::PlaceCopies { candidates: online(1..=last), lost: vec![lost] }),
        1 => snapshot().prop_map(|snapshot| Command::DeleteSnapshot { snapshot }),
        1 => (snapshot_id(), 1..3u64).prop_map(|(snapshot, node)| Command::LostSnapshot { snapshot, node, reason: String::new() }),
        1 => (snapshot_id(), 1..3u64).prop_map(|(snapshot, node)| Command::HoldSnapshot { snapshot, node }),
        2 => (snapshot_id(), 1..3u64, any::<u32>(), vec(any::<u32>(), 0..3)).prop_map(|(snapshot, node, base, layers)| Command::SecureSnapshot { snapshot, node, checksums: Checksums { base, layers } }),
        1 => purged(),
        2 => share(),
        1 => quotas(),
        3 => lives(),
    ]
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let request = (0..40u8, 0..10u8).prop_map(|(id, body)| RequestKey {
        id: format!("r{id}"),
        // Now and then another body.
        body: [u8::from(body == 0); 32],
    });
    let request = option::weighted(0.3, request);
    // Now and then after the leases' end.
    let now = prop_oneof![9 => 0..100u64, 1 => 20_000..40_000u64];
    (request, actor(), now, command()).prop_map(|(request, by, now, command)| Proposal {
        request,
        by,
        now,
        command,
    })
}

/// What a state holds apart from the records of requests.
fn without_requests(state: &State) -> State {
    State {
        requests: Requests::default(),
        ..state.clone()
    }
}

/// What nothing has to be told of when it changes: see `events::tell`. Of a lease that is renewed only when it ends changes.
fn without_silent(state: &State) -> State {
    let mut state = State {
        events: Events::default(),
        tombstones: Default::default(),
        removed: Default::default(),
        next_node: 0,
        ..without_requests(state)
    };
    let going_back = state.vms.values().filter(|vm| vm.is_going_back);
    for id in going_back.map(|vm| vm.id).collect::<Vec<_>>() {
        state.vms.change(&id, |vm| vm.is_going_back = false);
    }
    for lease in state.leases.values_mut() {
        lease.expires_at = 0;
    }
    let ids: Vec<MapId> = state.maps.keys().copied().collect();
    for map in ids {
        if let Some(map) = state.maps.get_mut(&map).map(Arc::make_mut) {
            let progress = (&mut map.results, &mut map.done);
            (*progress.0, *progress.1) = Default::default();
            (map.output_bytes, map.epoch, map.placed_at) = (0, 0, 0);
            (map.note, map.driver, map.lease) = Default::default();
        }
    }
    state
}

/// Whether it is nodes that say this, of whatever they have, or administrators.
fn is_of_users(command: &Command) -> bool {
    match command {
        Command::CreateVm { .. }
        | Command::SetPower { .. }
        | Command::DeleteVm { .. }
        | Command::ImportImage { .. }
        | Command::DeleteImage { .. }
        | Command::CreateSnapshot { .. }
        | Command::ResetVm { .. }
        | Command::SuspendVm { .. }
        | Command::MoveVm { .. }
        | Command::ForkGroup { .. }
        | Command::DeleteGroup { .. }
        | Command::CancelOperation { .. }
        | Command::TagSnapshot { .. }
        | Command::WarmSnapshot { .. }
        | Command::ReplicateSnapshot { .. }
        | Command::ProtectVm { .. }
        | Command::DeleteSnapshot { .. }
        | Command::CreateLease { .. }
        | Command::RenewLease { .. }
        | Command::EndLease { .. }
        | Command::StartMap { .. }
        | Command::CancelMap { .. }
        | Command::DeleteMap { .. }
        | Command::SetLife { .. }
        | Command::Share { .. } => true,
        // What a guest asks for is its owner's.
        Command::Fork { by_guest, .. } => !by_guest,
        _ => false,
    }
}

/// What owners have that one is not.
fn of_others(state: &State, owner: &str) -> State {
    let mut others = State::new();
    let not_own = |ownership: &Ownership| ownership.owner != owner;
    let vms = state.vms.iter().filter(|(_, vm)| not_own(&vm.ownership));
    others.vms = vms.map(|(id, vm)| (*id, Arc::clone(vm))).collect();
    let images = state.images.iter();
    let images = images.filter(|(_, image)| not_own(&image.ownership));
    others.images = images.map(|(id, one)| (*id, Arc::clone(one))).collect();
    // What nobody named goes with the last that came from it, whoever had that.
    let snapshots = state.snapshots.iter();
    let snapshots = snapshots.filter(|(_, one)| one.name.is_some() && not_own(&one.ownership));
    others.snapshots = snapshots.map(|(id, one)| (*id, Arc::clone(one))).collect();
    let maps = state.maps.iter().filter(|(_, map)| not_own(&map.ownership));
    others.maps = maps.map(|(id, one)| (*id, Arc::clone(one))).collect();
    others
}

/// An owner has more of something than before, and than it may.
fn outgrown(before: &State, after: &State) -> Option<String> {
    for (owner, quota) in &after.quotas {
        let (was, is) = (before.used_by(owner), after.used_by(owner));
        for (allowed, was, is) in [
            (quota.vms, was.vms, is.vms),
            (quota.cpus, was.cpus, is.cpus),
            (quota.memory_bytes, was.memory_bytes, is.memory_bytes),
            (quota.disk_bytes, was.disk_bytes, is.disk_bytes),
            (quota.snapshots, was.snapshots, is.snapshots),
            (quota.images, was.images, is.images),
        ] {
            if is > was && allowed.is_some_and(|allowed| is > allowed) {
                return Some(format!(
                    "{owner} may {quota:?} and has {is}, where it had {was}"
                ));
            }
        }
    }
    None
}

/// A result of a map became another one, or was told by who does not drive it.
fn mistaken(before: &State, after: &State, proposal: &Proposal) -> Option<String> {
    for (id, map) in &after.maps {
        let Some(then) = before
            .maps
            .get(id)
            .filter(|then| then.created_at == map.created_at)
        else {
            continue;
        };
        let kept = then
            .results
            .iter()
            .all(|(place, one)| map.results.get(place) == Some(one));
        if !kept || map.epoch < then.epoch {
            return Some(format!("{then:?} became {map:?}"));
        }
        let news = map.results.len() > then.results.len();
        let heard = match &proposal.command {
            Command::ReportMap { map: of, epoch, .. } => {
                of == id && *epoch == then.epoch && then.is_running() && then.lease.is_some()
            }
            _ => false,
        };
        if news && !heard {
            return Some(format!("{map:?} has a result"));
        }
        let drive = |map: &Map| (map.driver, map.lease);
        if map.is_running() && map.epoch == then.epoch && drive(map) != drive(then) {
            // Nobody drives what a removed node drove.
            let left = map.driver.is_none() && map.lease == then.lease;
            if !left {
                return Some(format!("{map:?} is driven otherwise under the same number"));
            }
        }
    }
    None
}

/// A VM that was made is on a node that should not have taken it.
fn misplaced(before: &State, after: &State, proposal: &Proposal) -> Option<String> {
    let (constraints, candidates, waits) = match &proposal.command {
        Command::CreateVm {
            constraints,
            candidates,
            ..
        } => (constraints, candidates, false),
        Command::Fork {
            constraints,
            candidates,
            placing,
            ..
        } => (constraints, candidates, *placing == Placing::WithSource),
        Command::ForkGroup { candidates, .. } => (&Constraints::default(), candidates, true),
        _ => return None,
    };
    let is_new = |vm: &&Arc<Vm>| !before.vms.contains_key(&vm.id);
    let mut taken: BTreeMap<NodeId, u64> = BTreeMap::new();
    for vm in after.vms.values().filter(is_new) {
        let node = &after.nodes[&vm.node];
        let said = candidates.iter().rfind(|one| one.node == vm.node);
        let has_labels = constraints
            .node_labels
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value));
        if !node.schedulable || (said.is_none() && !waits) || !has_labels {
            return Some(format!("{} is on {node:?}", vm.name));
        }
        for what in &constraints.apart_from {
            let is_it = |vm: &&Arc<Vm>| match what.split_once('=') {
                Some((key, value)) => {
                    let sees = proposal.by.is_admin || vm.ownership.owner == proposal.by.owner;
                    sees && vm.labels.get(key).is_some_and(|has| has == value)
                }
                None => names::vm(before, &proposal.by, what).is_ok_and(|one| one.id == vm.id),
            };
            if before.vms.of(vm.node).any(|vm| is_it(&vm)) {
                return Some(format!("{} is not apart from {what}", vm.name));
            }
        }
        let taken = taken.entry(vm.node).or_default();
        *taken += vm.own_bytes;
        let unseen = before.vms.load_of(vm.node).unseen_bytes;
        let free = said
            .and_then(|said| said.room)
            .map(|room| u64::from(room.memory_mib) * MIB);
        let memory = node.capacity.as_ref().map(|capacity| capacity.memory_bytes);
        let promised = after.vms.load_of(vm.node).promised_bytes();
        if free.is_some_and(|free| *taken + unseen > free)
            || memory.is_some_and(|memory| promised > memory)
        {
            return Some(format!("{} takes what is not there", vm.name));
        }
    }
    None
}

/// A world in which commands find something: nodes, an image, VMs that run.
fn start() -> State {
    let mut world = World::new();
    for (id, name) in [(1, "a"), (2, "b"), (6, "c")] {
        let mut command = world.vm(name);
        let Command::CreateVm {
            id: vm,
            self_fork,
            group,
            ..
        } = &mut command
        else {
            panic!()
        };
        *group = (id > 1).then(|| "a".to_owned());
        // The first may fork itself.
        (*vm, *self_fork) = (VmId(id), if id == 1 { 3 } else { 0 });
        world.ok(command);
        world.report(VmId(id), Phase::Running);
    }
    world.state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_commands_keep_the_invariants(from_nothing: bool, proposals in vec(proposal(), 1..80)) {
        let first = if from_nothing { State::new() } else { start() };
        let mut state = first.clone();
        for proposal in &proposals {
            let before = state.clone();
            let outcome = apply(&mut state, proposal);
            if outcome.is_err() {
                prop_assert_eq!(without_requests(&state), without_requests(&before), "{:?}", proposal);
            }
            if !proposal.by.is_admin && is_of_users(&proposal.command) {
                let owner = &proposal.by.owner;
                prop_assert_eq!(of_others(&state, owner), of_others(&before, owner), "{:?}", proposal);
            }
            prop_assert_eq!(outgrown(&before, &state), None, "{:?}", proposal);
            if state.events == before.events {
                prop_assert_eq!(without_silent(&state), without_silent(&before), "told nothing: {:?}", proposal);
            } else {
                prop_assert_ne!(without_requests(&state), State { events: state.events.clone(), ..without_requests(&before) }, "told, and nothing changed: {:?}", proposal);
            }
            prop_assert_eq!(misplaced(&before, &state, proposal), None, "{:?}", proposal);
            prop_assert_eq!(mistaken(&before, &state, proposal), None, "{:?}", proposal);
            let held = check(&state);
            prop_assert!(held.is_ok(), "{:?} after {:?}", held, proposal);

            if proposal.request.is_some() {
                let after = state.clone();
                prop_assert_eq!(&apply(&mut state, proposal), &outcome);
                prop_assert_eq!(&state, &after, "done twice: {:?}", proposal);
            } else if proposal.command.is_repeatable() {
                // The same report again changes nothing, and a success is still one.
                let after = without_requests(&state);
                let again = apply(&mut state, proposal);
                prop_assert_eq!(without_requests(&state), after, "done twice: {:?}", proposal);
let gone = match &proposal.command {
                    Command::SnapshotReady { operation, .. } => {
                        !state.snapshots.contains_key(&operation.snapshot())
                    }
                    Command::GroupCaptured { captured } => {
                        let mut ids = captured.iter().map(|(id, _)| id.snapshot());
                        ids.any(|id| !state.snapshots.contains_key(&id))
                    }
                    _ => false,
                };
                prop_assert!(gone || again.is_ok() == outcome.is_ok(), "{:?}", proposal);
            }
        }
        // Another member, by way of the stored forms.
        let mut other = first;
        for proposal in &proposals {
            let record = crate::codec::encode_proposal(proposal, 1);
            // Twice in the first one: what was repeated did nothing.
            let _ = apply(&mut other, &crate::codec::decode_proposal(&record).unwrap());
        }
        prop_assert_eq!(digest(&other), digest(&state));
        let record = crate::codec::encode_state(&state);
        prop_assert_eq!(crate::codec::decode_state(&record).unwrap(), state);
    }
}
