//! Planning, doing what was planned, and planning again: it comes to rest, and what it comes to is what should be.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{prelude::*, sample::select};
use qemu::past::Cause;
use raft::state::{
    Accelerator, CaptureMode, CaptureReport, Captured, Checksums, Content, EndCause, Machine,
    Network, Operation, OperationKind, RestartPolicy, Snapshot, Tombstone, Unready, VmSpec,
};

use super::*;

const NODE: NodeId = 1;
const IMAGE: ImageId = ImageId(7);
/// When nothing waits any more.
const LATER: Millis = 1 << 40;

fn plan(state: &State, node: NodeId, now: Millis, observed: &Observed) -> Vec<Action> {
    let now = Now {
        cluster: now,
        host: now,
    };
    super::plan(state, node, now, observed)
}

/// What a node sees that has nothing, and whose state has been the cluster's.
fn looked() -> Observed {
    Observed {
        caught_up: true,
        ..Observed::default()
    }
}

fn vm(id: u128, power: Power, phase: Phase, boot: u64, reported: u64, source: Source) -> Vm {
    let spec = VmSpec {
        image: IMAGE,
        cpus: 1,
        memory_bytes: 256 << 20,
        disk_bytes: 1 << 30,
        machine: Machine::Microvm,
        accelerator: Accelerator::Auto,
        cpu_model: None,
        cmdline: String::new(),
        limits: raft::state::Limits::default(),
        restart: RestartPolicy::Never,
        network: Network::default(),
        publish: vec![],
        self_fork: 0,
        unready: Unready::default(),
    };
    Vm {
        power,
        boot,
        phase,
        reported_boot: reported,
        ..Vm::new(VmId(id), format!("vm{id}"), "ann", NODE, spec, source, 0)
    }
}

/// Carries actions out at once and without failing, and applies the reports, as the real parts do in the end.
fn fake(state: &mut State, observed: &mut Observed, actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::FetchImage(image) => drop(observed.images.insert(image)),
            Action::FetchSnapshot(snapshot) => {
                let found = Arc::make_mut(state.snapshots.get_mut(&snapshot).unwrap());
                found.nodes.insert(NODE);
                observed.snapshots.insert(snapshot, Files::Good);
            }
            Action::Boot { vm, boot } => set(observed, vm, Is::Running { boot }),
            Action::Restore {
                vm,
                boot,
                paused: false,
                ..
            } => set(observed, vm, Is::Running { boot }),
            Action::Restore {
                vm,
                boot,
                paused: true,
                ..
            } => set(observed, vm, Is::Paused { boot }),
            Action::Pause(vm) => change(observed, vm, |boot| Is::Paused { boot }),
            Action::Resume(vm) => change(observed, vm, |boot| Is::Running { boot }),
            Action::Stop(vm) | Action::Kill(vm) => {
                change(observed, vm, |boot| Is::Ended {
                    boot,
                    end: end(Cause::Stopped, 0),
                });
            }
            Action::Destroy(vm) => drop(observed.vms.remove(&vm)),
            Action::Plug(vm) => drop(observed.plugged.insert(vm)),
            Action::Run(operation) => drop(observed.operations.insert(operation)),
            Action::GiveUp { operation, .. } => {
                observed.operations.remove(&operation);
                state.operations.remove(&operation);
            }
            Action::Report(reports) => {
                for report in reports {
                    let changed = state.vms.change(&report.vm, |vm| {
                        vm.phase = report.phase;
                        vm.reason = report.reason;
                        vm.reported_boot = report.boot;
                        vm.ending = report.ending.or(vm.ending.take());
                        vm.restarts = report.restarts;
                        vm.next_start = report.next_start;
                        if vm.phase == Phase::Stopped {
                            vm.power = Power::Stopped { force: false };
                        }
                    });
                    changed.unwrap();
                }
            }
            Action::Secure(snapshot) => {
                let snapshot = Arc::make_mut(state.snapshots.get_mut(&snapshot).unwrap());
                let content = snapshot.content.as_mut().unwrap();
                content.safety = Safety::Disk(Checksums {
                    base: 1,
                    layers: vec![],
                });
            }
            Action::Verify(snapshot) => drop(observed.snapshots.insert(snapshot, Files::Good)),
            Action::ReportLost { snapshot, .. } => {
                Arc::make_mut(state.snapshots.get_mut(&snapshot).unwrap())
                    .nodes
                    .remove(&NODE);
            }
            Action::Collect(objects) => objects
                .iter()
                .for_each(|object| drop(state.tombstones.remove(object))),
        }
    }
}

fn set(observed: &mut Observed, vm: VmId, is: Is) {
    observed.vms.insert(
        vm,
        Seen {
            busy: false,
            has_run: true,
            held: false,
            past: past(&is),
            has_group_card: false,
            is,
        },
    );
}

/// What boots is up. Whether anything did.
fn come_up(observed: &mut Observed) -> bool {
    let mut any = false;
    for seen in observed.vms.values_mut() {
        if let Is::Booting { boot } = seen.is {
            seen.is = Is::Running { boot };
            any = true;
        }
    }
    any
}

fn end(cause: Cause, at: Millis) -> End {
    End {
        cause,
        detail: "why".into(),
        at,
        exit_code: None,
    }
}

/// What a VM that is so has behind it.
fn past(is: &Is) -> Past {
    let mut past = Past::default();
    if let Is::Ended { boot, end } = is {
        past.end(*boot, end.clone());
    }
    past
}

fn change(observed: &mut Observed, vm: VmId, to: impl Fn(u64) -> Is) {
    if let Some(Seen {
        is:
            Is::Running { boot } | Is::Paused { boot } | Is::Booting { boot } | Is::Ended { boot, .. },
        ..
    }) = observed.vms.get(&vm).cloned()
    {
        set(observed, vm, to(boot));
    }
}

fn any_power() -> impl Strategy<Value = Power> {
    prop_oneof![
        Just(Power::Running),
        Just(Power::Paused),
        any::<bool>().prop_map(|force| Power::Stopped { force })
    ]
}

fn any_phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Pending),
        Just(Phase::Running),
        Just(Phase::Paused),
        Just(Phase::Stopped),
        Just(Phase::Failed),
        Just(Phase::Restarting)
    ]
}

fn any_is() -> impl Strategy<Value = Is> {
    let boot = 1u64..3;
    prop_oneof![
        Just(Is::Unknown),
        Just(Is::Absent),
        boot.clone().prop_map(|boot| Is::Running { boot }),
        boot.clone().prop_map(|boot| Is::Paused { boot }),
        boot.clone().prop_map(|boot| Is::Booting { boot }),
        (boot, any_cause(), 0u64..1_000).prop_map(|(boot, cause, at)| Is::Ended {
            boot,
            end: end(cause, at),
        }),
    ]
}

fn any_cause() -> impl Strategy<Value = Cause> {
    use Cause::*;
    select(
        &[
            Stopped, Poweroff, Reboot, Panic, Crash, BootFailed, Unseen, Exited,
        ][..],
    )
}

fn any_policy() -> impl Strategy<Value = RestartPolicy> {
    use RestartPolicy::*;
    select(&[Never, OnFailure, Always][..])
}

type OneVm = (
    Power,
    Phase,
    u64,
    bool,
    bool,
    Option<(Is, bool, bool)>,
    bool,
    RestartPolicy,
);

fn any_vm() -> impl Strategy<Value = OneVm> {
    let seen = proptest::option::of((any_is(), any::<bool>(), any::<bool>()));
    (
        any_power(),
        any_phase(),
        1u64..3,
        any::<bool>(),
        any::<bool>(),
        seen,
        any::<bool>(),
        any_policy(),
    )
}

fn world(vms: Vec<OneVm>) -> (State, Observed) {
    let (mut state, mut observed) = (State::new(), looked());
    for (i, (power, phase, boot, settled, fork, seen, known, restart)) in
        vms.into_iter().enumerate()
    {
        let id = i as u128 + 1;
        let source = if fork {
            Source::Snapshot(SnapshotId(99))
        } else {
            Source::Image
        };
        let reported = if settled { boot } else { boot - 1 };
        if known {
            let mut vm = vm(id, power, phase, boot, reported, source);
            vm.spec.restart = restart;
            state.vms.insert(VmId(id), Arc::new(vm));
        } else if settled {
            let tombstone = Tombstone {
                name: "gone".into(),
                nodes: [NODE].into(),
                created_at: 0,
            };
            state.tombstones.insert(ObjectId::Vm(VmId(id)), tombstone);
        }
        if let Some((is, busy, has_run)) = seen {
            let past = past(&is);
            observed.vms.insert(
                VmId(id),
                Seen {
                    busy,
                    has_run,
                    has_group_card: false,
                    held: false,
                    past,
                    is,
                },
            );
        }
    }
    (state, observed)
}

proptest! {
    #[test]
    fn it_comes_to_rest_and_to_what_should_be(vms in proptest::collection::vec(any_vm(), 0..6)) {
        let (mut state, mut observed) = world(vms);
        for seen in observed.vms.values_mut() {
            seen.busy = false;
        }
        let mut rounds = 0;
        loop {
            let actions = plan(&state, NODE, LATER, &observed);
            if actions.is_empty() && !come_up(&mut observed) {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < 12, "it does not come to rest: {:?}", actions);
            fake(&mut state, &mut observed, actions);
        }
        for vm in state.vms.values() {
            let is = observed.vms.get(&vm.id).map(|seen| &seen.is);
            match (is, vm.power) {
                (Some(Is::Unknown), _) => {}
                (Some(Is::Running { boot }), Power::Running) | (Some(Is::Paused { boot }), Power::Paused) => {
                    prop_assert_eq!(*boot, vm.boot.max(*boot));
                }
                (None | Some(Is::Absent | Is::Ended { .. }), Power::Stopped { .. }) => {
                    prop_assert_eq!(vm.phase, Phase::Stopped);
                }
                (None | Some(Is::Absent | Is::Ended { .. }), _) => prop_assert_eq!(vm.phase, Phase::Failed),
                other => prop_assert!(false, "{:?} {:?}", other, vm),
            }
        }
        prop_assert!(state.tombstones.keys().all(|object| matches!(
            object,
            ObjectId::Vm(id) if observed.vms.get(id).is_some_and(|seen| seen.is == Is::Unknown)
        )));
    }

    #[test]
    fn nothing_is_done_to_what_is_busy_or_unknown(vms in proptest::collection::vec(any_vm(), 0..6)) {
        let (state, observed) = world(vms);
        for action in plan(&state, NODE, 0, &observed) {
            let about = match action {
                Action::Boot { vm, .. } | Action::Restore { vm, .. } => Some(vm),
                Action::Pause(vm) | Action::Resume(vm) | Action::Stop(vm) | Action::Kill(vm) => Some(vm),
                Action::Destroy(vm) => {
                    prop_assert!(state.tombstones.contains_key(&ObjectId::Vm(vm)), "only a tombstone destroys");
                    Some(vm)
                }
                _ => None,
            };
            let seen = about.and_then(|vm| observed.vms.get(&vm));
            prop_assert!(seen.is_none_or(|seen| !seen.busy && seen.is != Is::Unknown));
        }
    }
}

/// A VM that crashed at 1,000 and is to be started again.
fn crashed(source: Source, has_run: bool) -> (State, Observed) {
    let (mut state, mut observed) = (State::new(), looked());
    let mut vm = vm(1, Power::Running, Phase::Running, 1, 1, source);
    vm.spec.restart = RestartPolicy::OnFailure;
    state.vms.insert(vm.id, Arc::new(vm));
    let is = Is::Ended {
        boot: 1,
        end: end(Cause::Crash, 1_000),
    };
    let seen = Seen {
        busy: false,
        has_run,
        held: false,
        past: past(&is),
        has_group_card: false,
        is,
    };
    observed.vms.insert(VmId(1), seen);
    observed.images.insert(IMAGE);
    (state, observed)
}

fn reported(actions: &[Action]) -> (Phase, Option<Millis>, &str) {
    match actions {
        [Action::Report(reports)] => (reports[0].phase, reports[0].next_start, &reports[0].reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vm_that_crashed_says_that_it_waits_and_is_started_when_it_is_due() {
    let (mut state, mut observed) = crashed(Source::Image, true);
    let waits = plan(&state, NODE, 1_500, &observed);
    assert_eq!(
        reported(&waits),
        (
            Phase::Restarting,
            Some(2_000),
            "why; starting again 1 s after that (restart 1)"
        )
    );
    fake(&mut state, &mut observed, waits);
    assert_eq!(plan(&state, NODE, 1_900, &observed), [], "it was said");
    let boot = |boot| Action::Boot { vm: VmId(1), boot };
    assert_eq!(plan(&state, NODE, 2_000, &observed), [boot(1)]);

    let change = |state: &mut State, change: fn(&mut Vm)| {
        state.vms.change(&VmId(1), change).unwrap();
    };
    let mut stopped = state.clone();
    change(&mut stopped, |vm| {
        vm.power = Power::Stopped { force: false }
    });
    let actions = plan(&stopped, NODE, 2_000, &observed);
    assert_eq!(reported(&actions), (Phase::Stopped, None, "why"));
    change(&mut state, |vm| (vm.boot, vm.phase) = (2, Phase::Pending));
    assert_eq!(plan(&state, NODE, 1_500, &observed), [boot(2)], "at once");
}

#[test]
fn a_guest_that_exits_is_stopped_with_0_and_failed_with_anything_else() {
    let exited = |code, policy| {
        let (mut state, mut observed) = crashed(Source::Image, true);
        let set = state.vms.change(&VmId(1), |vm| vm.spec.restart = policy);
        set.unwrap();
        let seen = observed.vms.get_mut(&VmId(1)).unwrap();
        let end = End {
            exit_code: Some(code),
            ..end(Cause::Exited, 1_000)
        };
        seen.is = Is::Ended { boot: 1, end };
        seen.past = past(&seen.is);
        plan(&state, NODE, 1_500, &observed)
    };
    for (code, policy, phase) in [
        (0, RestartPolicy::Never, Phase::Stopped),
        (0, RestartPolicy::OnFailure, Phase::Stopped),
        (0, RestartPolicy::Always, Phase::Restarting),
        (3, RestartPolicy::Never, Phase::Failed),
        (3, RestartPolicy::OnFailure, Phase::Restarting),
        (3, RestartPolicy::Always, Phase::Restarting),
    ] {
        let actions = exited(code, policy);
        assert_eq!(reported(&actions).0, phase, "{code} {policy:?}");
        let [Action::Report(reports)] = &actions[..] else {
            panic!("{actions:?}")
        };
        let told = reports[0].ending.as_ref().unwrap();
        assert_eq!((told.cause, told.exit_code), (EndCause::Exited, Some(code)));
    }
}

#[test]
fn a_fork_that_never_ran_is_not_started_again() {
    let (state, observed) = crashed(Source::Snapshot(SnapshotId(9)), false);
    for now in [1_500, LATER] {
        let actions = plan(&state, NODE, now, &observed);
        assert_eq!(reported(&actions), (Phase::Failed, None, "why"));
    }
}

#[test]
fn a_vm_that_ran_and_of_which_nothing_is_left_is_not_begun_anew() {
    for (phase, reported, fails) in [
        (Phase::Running, 1, true),
        (Phase::Paused, 1, true),
        // Somebody asked for another start, or it never ran.
        (Phase::Running, 0, false),
        (Phase::Pending, 0, false),
    ] {
        let (mut state, mut observed) = (State::new(), looked());
        let lost = vm(1, Power::Running, phase, 1, reported, Source::Image);
        state.vms.insert(lost.id, Arc::new(lost));
        observed.images.insert(IMAGE);
        let actions = plan(&state, NODE, LATER, &observed);
        match fails {
            true => assert_eq!(
                self::reported(&actions),
                (Phase::Failed, None, NOTHING_LEFT)
            ),
            false => assert!(matches!(actions[..], [Action::Boot { .. }]), "{actions:?}"),
        }
        fake(&mut state, &mut observed, actions);
        if fails {
            assert_eq!(plan(&state, NODE, LATER, &observed), [], "it stays so");
        }
    }
}

fn operation(id: OperationId, expires_at: Millis) -> Operation {
    Operation {
        id,
        owner: "ann".into(),
        kind: OperationKind::Fork,
        state: OperationState::Open,
        vm: Some(VmId(1)),
        snapshot: id.snapshot(),
        mode: CaptureMode::Auto,
        count: 1,
        paused: false,
        results: BTreeMap::new(),
        node: NODE,
        to: None,
        created_at: 0,
        expires_at,
        ended_at: None,
        cancel_requested: false,
        group: None,
    }
}

#[test]
fn an_operation_is_begun_once_and_given_up_when_it_is_too_late() {
    let id = OperationId(1 << 20);
    let (mut state, mut observed) = (State::new(), looked());
    state.operations.insert(id, Arc::new(operation(id, 100)));
    assert_eq!(plan(&state, NODE, 50, &observed), [Action::Run(id)]);
    assert_eq!(plan(&state, 2, 50, &observed), [], "it is another node's");
    assert!(matches!(
        plan(&state, NODE, 101, &observed)[..],
        [Action::GiveUp { running: false, .. }]
    ));
    observed.operations.insert(id);
    assert_eq!(plan(&state, NODE, 101, &observed), [], "it is under way");
    Arc::make_mut(state.operations.get_mut(&id).unwrap()).cancel_requested = true;
    assert!(matches!(
        plan(&state, NODE, 50, &observed)[..],
        [Action::GiveUp {
            running: true,
            cancelled: true,
            ..
        }]
    ));
}

/// A fork of another node's VM: its one child lives here.
#[test]
fn a_part_of_anothers_operation_is_begun_and_never_given_up_here() {
    let id = OperationId(1 << 20);
    let (mut state, mut observed) = (State::new(), looked());
    let mut far = operation(id, 100);
    far.node = NODE + 1;
    state.operations.insert(id, Arc::new(far.clone()));
    assert_eq!(
        plan(&state, NODE, 50, &observed),
        [],
        "nothing is here of it"
    );
    let child = id.child(0);
    let moment = Source::Snapshot(id.snapshot());
    let mut here = vm(child.0, Power::Running, Phase::Pending, 1, 0, moment);
    here.operation = Some(id);
    state.vms.insert(child, Arc::new(here));
    assert_eq!(plan(&state, NODE, 50, &observed), [Action::Run(id)]);
    // Its node says when it is too late, or cancelled.
    far.cancel_requested = true;
    state.operations.insert(id, Arc::new(far.clone()));
    assert_eq!(plan(&state, NODE, 101, &observed), [Action::Run(id)]);
    observed.operations.insert(id);
    assert_eq!(plan(&state, NODE, 101, &observed), []);
    // Once that is known it ends here, too.
    far.state = OperationState::Complete;
    state.operations.insert(id, Arc::new(far));
    let actions = plan(&state, NODE, 50, &observed);
    let gives_up = |action: &Action| matches!(action, Action::GiveUp { running: true, .. });
    assert!(actions.iter().any(gives_up), "{actions:?}");
}

#[test]
fn what_only_others_hold_is_fetched_before_anything_starts_from_it() {
    let (mut state, mut observed) = (State::new(), looked());
    let mut far = snapshot(9, on_disk());
    far.nodes = [NODE + 1].into();
    let fork = vm(
        5,
        Power::Running,
        Phase::Pending,
        1,
        0,
        Source::Snapshot(far.id),
    );
    observed.images.insert(fork.spec.image);
    state.snapshots.insert(far.id, Arc::new(far.clone()));
    state.vms.insert(fork.id, Arc::new(fork));
    assert_eq!(
        plan(&state, NODE, 0, &observed),
        [Action::FetchSnapshot(far.id)]
    );
    observed.coming.insert(far.id);
    assert_eq!(plan(&state, NODE, 0, &observed), [], "it is on its way");
    far.nodes.insert(NODE);
    state.snapshots.insert(far.id, Arc::new(far));
    let actions = plan(&state, NODE, 0, &observed);
    assert!(matches!(actions[0], Action::Restore { .. }), "{actions:?}");
}

#[test]
fn a_child_of_a_fork_under_way_is_left_to_its_operation() {
    let id = OperationId(1 << 20);
    let (mut state, observed) = (
        State::new(),
        Observed {
            operations: [id].into(),
            ..looked()
        },
    );
    state.operations.insert(id, Arc::new(operation(id, 100)));
    let mut child = vm(
        id.child(0).0,
        Power::Running,
        Phase::Pending,
        1,
        0,
        Source::Snapshot(id.snapshot()),
    );
    child.operation = Some(id);
    state.vms.insert(child.id, Arc::new(child));
    assert_eq!(plan(&state, NODE, 50, &observed), []);
}

#[test]
fn files_that_a_fork_which_is_ready_has_open_are_not_collected() {
    let id = OperationId(1 << 20).snapshot();
    let (mut state, mut observed) = (State::new(), looked());
    let tombstone = Tombstone {
        nodes: [NODE].into(),
        name: "gone".into(),
        created_at: 0,
    };
    state.tombstones.insert(ObjectId::Snapshot(id), tombstone);
    observed.held.insert(id);
    assert_eq!(plan(&state, NODE, 50, &observed), []);
    observed.held.clear();
    let collect = Action::Collect(vec![ObjectId::Snapshot(id)]);
    assert_eq!(plan(&state, NODE, 50, &observed), [collect]);
}

/// A snapshot of this node.
fn snapshot(id: u128, safety: Safety) -> Snapshot {
    let report = CaptureReport {
        pause_us: 0,
        agent_pause_us: 0,
        ahead_us: 0,
        stop_us: 0,
        disk_us: 0,
        devices_us: 0,
        scan_us: 0,
        copy_us: 0,
        cont_us: 0,
        write_us: 0,
        rounds: 0,
        ahead_bytes: 0,
        paused_bytes: 0,
        new_base: true,
        live: true,
        note: String::new(),
    };
    let content = Content {
        processor: String::new(),
        base: id,
        stream: id,
        layers: vec![],
        accelerator: Accelerator::Tcg,
        cpu_model: "max".into(),
        qemu_version: "10.0.2".into(),
        machine: "microvm".into(),
        devices: vec![],
        agent: false,
        base_bytes: 0,
        stream_bytes: 0,
        stream_checksum: 0,
        layer_bytes: 0,
        safety,
        report,
    };
    let owner = vm(1, Power::Running, Phase::Running, 1, 1, Source::Image);
    Snapshot {
        id: SnapshotId(id),
        name: None,
        ownership: owner.ownership.clone(),
        vm: Captured::of(&owner),
        parent: None,
        nodes: [NODE].into(),
        spec: owner.spec,
        family: None,
        member: None,
        lineage: VmId(1),
        operation: OperationId(0),
        content: Some(content),
        lost: String::new(),
        warm: 0,
        replicas: 0,
        copies: BTreeSet::new(),
        is_scheduled: false,
        life: Default::default(),
        created_at: 0,
    }
}

#[test]
fn a_copy_is_fetched_when_its_files_are_summed_up_and_its_image_is_here() {
    let mut state = State::new();
    let mut copies: Vec<Snapshot> = (1..=6).map(|id| snapshot(id, on_disk())).collect();
    for copy in &mut copies {
        (copy.nodes, copy.copies) = ([2].into(), [NODE, 2].into());
    }
    // Nobody has it, nobody asked for it, or it is not on a disk yet.
    copies[0].nodes.clear();
    copies[1].copies = [2, 3].into();
    copies[2].content.as_mut().unwrap().safety = Safety::Memory;
    for copy in copies {
        state.snapshots.insert(copy.id, Arc::new(copy));
    }
    let mut observed = looked();
    let image = Action::FetchImage(IMAGE);
    assert_eq!(plan(&state, NODE, 50, &observed), [image]);
    observed.images.insert(IMAGE);
    let fetched = |id| Action::FetchSnapshot(SnapshotId(id));
    let all = [4, 5, 6].map(fetched);
    assert_eq!(plan(&state, NODE, 50, &observed), all);
    observed.coming.insert(SnapshotId(5));
    let others = [4, 6].map(fetched);
    assert_eq!(plan(&state, NODE, 50, &observed), others);
    let actions = plan(&state, NODE, 50, &observed);
    observed.coming.clear();
    fake(&mut state, &mut observed, actions);
    assert_eq!(plan(&state, NODE, 50, &observed), [fetched(5)]);
}

fn on_disk() -> Safety {
    Safety::Disk(Checksums {
        base: 1,
        layers: vec![],
    })
}

fn any_files() -> impl Strategy<Value = Option<Files>> {
    prop_oneof![
        3 => Just(Some(Files::Good)),
        2 => Just(Some(Files::Unverified)),
        1 => Just(Some(Files::Damaged("a bit".into()))),
        1 => Just(Some(Files::Gone)),
        1 => Just(None),
    ]
}

proptest! {
    #[test]
    fn snapshots_come_to_be_on_disk_verified_or_lost(files in proptest::collection::vec((any_files(), any::<bool>()), 1..6)) {
        let (mut state, mut observed) = (State::new(), looked());
        for (id, (files, secured)) in (1u128..).zip(&files) {
            let safety = if *secured { on_disk() } else { Safety::Memory };
            state.snapshots.insert(SnapshotId(id), Arc::new(snapshot(id, safety)));
            if let Some(files) = files {
                observed.snapshots.insert(SnapshotId(id), files.clone());
            }
        }
        for _ in 0..20 {
            let actions = plan(&state, NODE, 0, &observed);
            let works = |action: &&Action| matches!(action, Action::Secure(_) | Action::Verify(_));
            prop_assert!(actions.iter().filter(works).count() <= 1, "one at a time");
            fake(&mut state, &mut observed, actions);
        }
        prop_assert_eq!(plan(&state, NODE, 0, &observed), vec![]);
        for (id, (files, secured)) in (1u128..).zip(files) {
            let found = &state.snapshots[&SnapshotId(id)];
            let safe = found.content.as_ref().unwrap().safety != Safety::Memory;
            match files {
                Some(Files::Good) => prop_assert!(safe && !found.nodes.is_empty()),
                // What was only in memory when the host went down is not trusted, whatever it looks like.
                Some(Files::Unverified) => prop_assert_eq!(found.nodes.is_empty(), !secured),
                Some(Files::Damaged(_) | Files::Gone) => prop_assert!(found.nodes.is_empty()),
                None => prop_assert_eq!(safe, secured, "nothing is known of it"),
            }
        }
    }
}

#[test]
fn nothing_starts_from_a_snapshot_before_it_is_verified() {
    let (mut state, mut observed) = (State::new(), looked());
    for id in [5, 6] {
        let files = (SnapshotId(id), Arc::new(snapshot(id, on_disk())));
        state.snapshots.insert(files.0, files.1);
        observed.snapshots.insert(SnapshotId(id), Files::Unverified);
    }
    let source = Source::Snapshot(SnapshotId(6));
    let fork = vm(3, Power::Running, Phase::Pending, 1, 0, source);
    state.vms.insert(fork.id, Arc::new(fork));
    observed.images.insert(IMAGE);
    let mut under_way = operation(OperationId(0), 10);
    under_way.vm = None;
    under_way.snapshot = SnapshotId(6);
    state
        .operations
        .insert(under_way.id, Arc::new(under_way.clone()));
    // What somebody waits for comes first.
    let verify = Action::Verify(SnapshotId(6));
    assert_eq!(plan(&state, NODE, 0, &observed), [verify]);
    observed.storing = true;
    assert_eq!(plan(&state, NODE, 0, &observed), []);
    observed.snapshots.insert(SnapshotId(6), Files::Good);
    let actions = plan(&state, NODE, 0, &observed);
    assert!(actions.contains(&Action::Run(under_way.id)), "{actions:?}");
    assert!(matches!(actions[0], Action::Restore { .. }), "{actions:?}");
}

/// A VM of this node that runs and is being moved to the next one.
fn moving() -> (State, Observed, OperationId) {
    let id = OperationId(1 << 20);
    let (mut state, mut observed) = (State::new(), looked());
    let one = vm(1, Power::Running, Phase::Running, 1, 1, Source::Image);
    state.vms.insert(one.id, Arc::new(one));
    let mut under_way = operation(id, 100);
    (under_way.kind, under_way.to) = (OperationKind::Move, Some(NODE + 1));
    state.operations.insert(id, Arc::new(under_way));
    observed.operations.insert(id);
    set(&mut observed, VmId(1), Is::Paused { boot: 1 });
    observed.vms.get_mut(&VmId(1)).unwrap().held = true;
    (state, observed, id)
}

fn alter(state: &mut State, id: OperationId, change: impl FnOnce(&mut Operation)) {
    change(Arc::make_mut(state.operations.get_mut(&id).unwrap()));
}

#[test]
fn a_vm_that_stands_still_to_be_moved_goes_on_here_only_when_that_failed() {
    let (mut state, mut observed, id) = moving();
    assert_eq!(
        plan(&state, NODE, 50, &observed),
        [],
        "it is its operation's"
    );
    // Both nodes carry it out.
    let nothing = looked();
    for node in [NODE, NODE + 1] {
        assert_eq!(plan(&state, node, 50, &nothing), [Action::Run(id)]);
    }
    assert_eq!(plan(&state, NODE + 2, 50, &nothing), []);
    alter(&mut state, id, |one| {
        one.state = OperationState::Failed {
            reason: "no room".into(),
            cancelled: false,
        };
    });
    observed.operations.clear();
    // What an agent begins with may be older than that it lives elsewhere.
    observed.caught_up = false;
    assert_eq!(plan(&state, NODE, 50, &observed), []);
    observed.caught_up = true;
    assert_eq!(plan(&state, NODE, 50, &observed), [Action::Resume(VmId(1))]);
    // One that was not stopped for a move needs no leave.
    observed.vms.get_mut(&VmId(1)).unwrap().held = false;
    observed.caught_up = false;
    assert_eq!(plan(&state, NODE, 50, &observed), [Action::Resume(VmId(1))]);
}

#[test]
fn what_a_moved_vm_leaves_is_cleared_away_and_only_its_new_node_has_it_go_on() {
    let (mut state, mut observed, id) = moving();
    let mut there = (*state.vms[&VmId(1)]).clone();
    there.node = NODE + 1;
    state.vms.insert(there.id, Arc::new(there));
    alter(&mut state, id, |one| one.node = NODE + 1);
    let gives_up = |action: &Action| matches!(action, Action::GiveUp { .. });
    // Nothing says yet that it may go from here.
    observed.operations.clear();
    assert_eq!(plan(&state, NODE, 50, &observed), []);
    let left = Tombstone {
        name: "vm1".into(),
        nodes: [NODE].into(),
        created_at: 0,
    };
    state.tombstones.insert(ObjectId::Left(VmId(1)), left);
    assert_eq!(
        plan(&state, NODE, 50, &observed),
        [Action::Destroy(VmId(1))]
    );
    observed.vms.clear();
    let collect = Action::Collect(vec![ObjectId::Left(VmId(1))]);
    assert_eq!(plan(&state, NODE, 50, &observed), [collect]);
    // There it is carried on with, however late it is, and whatever somebody asks for.
    alter(&mut state, id, |one| one.cancel_requested = true);
    assert_eq!(plan(&state, NODE + 1, 500, &looked()), [Action::Run(id)]);
    let mut begun = looked();
    begun.operations.insert(id);
    assert_eq!(plan(&state, NODE + 1, 500, &begun), []);
    assert!(!plan(&state, NODE + 1, 500, &begun).iter().any(gives_up));
}

#[test]
fn a_vm_that_came_without_a_process_starts_from_its_disk() {
    let source = Source::Snapshot(SnapshotId(9));
    let (mut state, mut observed) = (State::new(), looked());
    let mut came = vm(1, Power::Running, Phase::Pending, 2, 1, source);
    came.disk = Some(vec![7]);
    state.vms.insert(came.id, Arc::new(came));
    observed.images.insert(IMAGE);
    let boot = Action::Boot {
        vm: VmId(1),
        boot: 2,
    };
    assert_eq!(plan(&state, NODE, 0, &observed), [boot]);
    // Of an older state nobody knows whether it still lives here.
    observed.caught_up = false;
    assert_eq!(plan(&state, NODE, 0, &observed), []);
}

#[test]
fn what_has_a_card_for_a_group_is_plugged_in_while_it_has_a_process_that_is_not() {
    let mut state = State::new();
    let mut member = vm(1, Power::Running, Phase::Running, 1, 1, Source::Image);
    member.group = Some(raft::state::InGroup {
        id: VmId(1),
        name: "app".into(),
        number: 1,
    });
    let alone = vm(2, Power::Running, Phase::Running, 1, 1, Source::Image);
    for vm in [member, alone] {
        state.vms.insert(vm.id, Arc::new(vm));
    }
    let mut observed = Observed {
        caught_up: true,
        images: [ImageId(1)].into(),
        ..Observed::default()
    };
    let plugs = |observed: &Observed| {
        let actions = plan(&state, NODE, LATER, observed).into_iter();
        let plugs = actions.filter(|action| matches!(action, Action::Plug(_)));
        plugs.collect::<Vec<_>>()
    };
    for id in [1, 2] {
        set(&mut observed, VmId(id), Is::Absent);
    }
    assert!(plugs(&observed).is_empty(), "it has no process");
    for is in [
        Is::Booting { boot: 1 },
        Is::Running { boot: 1 },
        Is::Paused { boot: 1 },
    ] {
        for id in [1, 2] {
            set(&mut observed, VmId(id), is.clone());
        }
        let member = observed.vms.get_mut(&VmId(1)).unwrap();
        member.has_group_card = true;
        assert_eq!(plugs(&observed), [Action::Plug(VmId(1))]);
    }
    observed.plugged.insert(VmId(1));
    assert!(plugs(&observed).is_empty());
}
