//! Draining a node: its own agent has its VMs be moved to others, or suspended and later resumed, a few at a time. What there is to do follows from
//! the state alone, so that an agent that comes back goes on with it: [`next`] is pure.

use std::{collections::BTreeMap, fs, io, sync::Arc, time::Duration};

use qemu::layout::write_whole;
use raft::state::{
    Actor, CaptureMode, Command, DrainHow, Millis, Node as Member, NodeId, Operation, OperationId,
    OperationKind, OperationState, Power, Rejection, Source, State, Vm, VmId,
};
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use crate::node::Node;

/// How many VMs are moved, suspended or resumed at once: each is copied ahead, which takes of the disk and the network what those that run need, too.
const AT_ONCE: usize = 2;
/// How often a VM is tried.
const TRIES: usize = 2;
/// How long a VM that something is being done to is waited for, and one that finds no place.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);
/// See there.
const PLACE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks without news.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a proposal may take.
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a move may wait for the node that the VM goes to.
const MOVE_PATIENCE: Millis = 120_000;
/// Holds, below the data directory, in which boot of the host its VMs began to be suspended.
const RESTING: &str = "run/resting";

/// A VM whose move was refused.
#[derive(Debug, Clone)]
struct Refused {
    since: Instant,
    reason: Rejection,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Move(VmId),
    Suspend(VmId),
    Resume(VmId, Power),
    Stay(VmId, String),
}

/// Drains this node whenever that is wanted, until it ends.
pub async fn run(node: Arc<Node>) {
    let mut published = node.raft.published();
    let (mut refused, mut asked) = (BTreeMap::new(), None);
    loop {
        let state = Arc::clone(&published.borrow_and_update().view);
        let drain = member(&state, node.id()).and_then(|own| own.drain.as_ref());
        let since = drain.map(|drain| drain.since);
        let rests = drain.is_some_and(|drain| drain.how != DrainHow::Move);
        match was_restarted(&node, rests) {
            Ok(false) => {}
            Ok(true) => wake(&node).await,
            Err(error) => tracing::warn!(%error, "whether the host was restarted cannot be told"),
        }
        let is_busy = since.is_some() || to_resume(&state, node.id()).next().is_some();
        if asked != since {
            refused.clear();
            asked = since;
        }
        if is_busy {
            for step in next(&state, node.id(), &refused, Instant::now()) {
                carry_out(&node, &state, step, &mut refused).await;
            }
        }
        // What is refused may not be after a while, without news.
        tokio::select! {
            () = node.cancel.cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
            () = sleep(PAUSE), if is_busy => {}
        }
        if is_busy {
            sleep(PAUSE / 10).await;
        }
    }
}

fn member(state: &State, node: NodeId) -> Option<&Arc<Member>> {
    state.nodes.get(&node)
}

/// Whether the host was restarted since its VMs began to be suspended for that; keeps when that was.
fn was_restarted(node: &Node, rests: bool) -> io::Result<bool> {
    let engine = node.vms.engine();
    let file = engine.layout.root().join(RESTING);
    let then = match fs::read_to_string(&file) {
        Ok(boot) => Some(boot),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match (then, rests) {
        (None, false) => Ok(false),
        (Some(_), false) => fs::remove_file(&file).map(|()| false),
        (None, true) => write_whole(&file, engine.host_boot.as_bytes()).map(|()| false),
        (Some(then), true) => Ok(then != engine.host_boot),
    }
}

/// Has this node's VMs go on that were suspended while its host was restarted.
async fn wake(node: &Node) {
    let command = Command::WakeNode { node: node.id() };
    let deadline = Instant::now() + PROPOSAL_PATIENCE;
    match node.propose(None, command, deadline).await {
        Ok(_) => {
            tracing::info!("the host was restarted: the VMs that were suspended for that go on")
        }
        Err(error) => tracing::debug!(%error, "the VMs do not go on yet"),
    }
}

/// The VMs that were suspended while their node rested, which it does not any more.
fn to_resume(state: &State, node: NodeId) -> impl Iterator<Item = (&Arc<Vm>, Power)> {
    let rests = member(state, node).is_none_or(|own| own.drain.is_some());
    let here = state.vms.of(node).filter(move |_| !rests);
    here.filter_map(|vm| {
        let power = vm.rests_from?;
        (vm.power == Power::Suspended).then_some((vm, power))
    })
}

/// Those of a kind on a node: the VMs of the open ones, and the failed ones of each VM that count.
fn course(
    state: &State,
    node: NodeId,
    kind: OperationKind,
    counts: impl Fn(&Operation) -> bool,
) -> (Vec<VmId>, BTreeMap<VmId, Vec<&Arc<Operation>>>) {
    let mut failures: BTreeMap<VmId, Vec<&Arc<Operation>>> = BTreeMap::new();
    let mut under_way = Vec::new();
    let all = state.operations.values();
    for one in all.filter(|one| one.kind == kind && one.node == node) {
        let Some(vm) = one.vm else { continue };
        match &one.state {
            OperationState::Open if !one.has_arrived() => under_way.push(vm),
            OperationState::Failed { .. } if counts(one) => {
                failures.entry(vm).or_default().push(one);
            }
            OperationState::Open | OperationState::Failed { .. } | OperationState::Complete => {}
        }
    }
    (under_way, failures)
}

/// What is to be done next.
fn next(state: &State, node: NodeId, refused: &BTreeMap<VmId, Refused>, now: Instant) -> Vec<Step> {
    let Some(drain) = member(state, node).and_then(|own| own.drain.as_ref()) else {
        return resumes(state, node);
    };
    let kind = match drain.how {
        DrainHow::Move => OperationKind::Move,
        DrainHow::Rest { .. } => OperationKind::Suspend,
    };
    let counts = |one: &Operation| one.created_at >= drain.since;
    let (under_way, failures) = course(state, node, kind, counts);
    let mut room = AT_ONCE.saturating_sub(under_way.len());
    let mut steps = Vec::new();
    let here = state.vms.of(node);
    let here = here.filter(|vm| drain.how == DrainHow::Move || vm.may_run());
    for one in here.filter(|vm| !drain.stays.contains_key(&vm.id) && !under_way.contains(&vm.id)) {
        let vm = one.id;
        if let (Some(group), DrainHow::Move) = (&one.group, drain.how) {
            // Nothing that is waited for would change that.
            let reason = format!("VM {:?} {}", one.name, group.why_it_stays());
            steps.push(Step::Stay(vm, reason));
            continue;
        }
        let failed = failures.get(&vm).map_or(&[][..], Vec::as_slice);
        if let (true, Some(last)) = (failed.len() >= TRIES, failed.last()) {
            steps.push(Step::Stay(vm, reason_of(last)));
        } else if let Some(reason) = refused.get(&vm).and_then(|one| gives_up(one, now)) {
            steps.push(Step::Stay(vm, reason));
        } else if room > 0 {
            room -= 1;
            steps.push(match drain.how {
                DrainHow::Move => Step::Move(vm),
                DrainHow::Rest { .. } => Step::Suspend(vm),
            });
        }
    }
    steps
}

/// Those to be resumed next. One that failed twice stays suspended, for its owner to resume or to start.
fn resumes(state: &State, node: NodeId) -> Vec<Step> {
    let begun = |vm: &Vm| match vm.source {
        Source::Snapshot(moment) => state.snapshots.get(&moment).map(|one| one.created_at),
        Source::Image => None,
    };
    let counts = |one: &Operation| {
        let vm = one.vm.and_then(|vm| state.vms.get(&vm));
        vm.and_then(|vm| begun(vm))
            .is_some_and(|since| one.created_at >= since)
    };
    let (under_way, failures) = course(state, node, OperationKind::Reset, counts);
    let waits = |vm: &VmId| {
        !under_way.contains(vm) && failures.get(vm).is_none_or(|failed| failed.len() < TRIES)
    };
    let room = AT_ONCE.saturating_sub(under_way.len());
    let all = to_resume(state, node).filter(|(vm, _)| waits(&vm.id));
    let all = all.map(|(vm, power)| Step::Resume(vm.id, power));
    all.take(room).collect()
}

fn reason_of(failed: &Operation) -> String {
    match &failed.state {
        OperationState::Failed { reason, .. } => reason.clone(),
        OperationState::Open | OperationState::Complete => String::new(),
    }
}

/// Why a VM that was refused is not tried again.
fn gives_up(refused: &Refused, now: Instant) -> Option<String> {
    let patience = match &refused.reason {
        Rejection::WrongState { .. } => BUSY_PATIENCE,
        _ => PLACE_PATIENCE,
    };
    (now.saturating_duration_since(refused.since) >= patience).then(|| refused.reason.to_string())
}

async fn carry_out(
    node: &Arc<Node>,
    state: &State,
    step: Step,
    refused: &mut BTreeMap<VmId, Refused>,
) {
    let (vm, command) = match step {
        Step::Move(vm) => {
            let operation = OperationId::from_ulid(Ulid::new().0);
            let command = Command::MoveVm {
                operation,
                vm: vm.to_string(),
                node: None,
                candidates: node.candidates(),
                expires_at: node.now() + MOVE_PATIENCE,
            };
            (vm, command)
        }
        Step::Suspend(vm) => {
            let command = Command::SuspendVm {
                operation: OperationId::from_ulid(Ulid::new().0),
                vm: vm.to_string(),
                mode: CaptureMode::Auto,
                expires_at: node.now() + MOVE_PATIENCE,
            };
            (vm, command)
        }
        Step::Resume(vm, power) => {
            let command = Command::ResetVm {
                operation: OperationId::from_ulid(Ulid::new().0),
                vm: vm.to_string(),
                to: None,
                paused: power == Power::Paused,
                expires_at: node.now() + MOVE_PATIENCE,
            };
            (vm, command)
        }
        Step::Stay(vm, reason) => {
            let name = state.vms.get(&vm).map(|vm| vm.name.clone());
            tracing::warn!(%vm, name, reason, "a VM cannot be moved from this node, or suspended there, which is drained");
            let node = node.id();
            (vm, Command::StayOnNode { node, vm, reason })
        }
    };
    let deadline = Instant::now() + PROPOSAL_PATIENCE;
    match node
        .propose_for(&Actor::cluster(), None, command, deadline)
        .await
    {
        Ok(Ok(_)) => drop(refused.remove(&vm)),
        Ok(Err(reason)) => {
            let since = Instant::now();
            let known = refused.entry(vm).or_insert(Refused {
                since,
                reason: reason.clone(),
            });
            known.reason = reason;
        }
        Err(error) => {
            tracing::debug!(%error, "a step of draining this node did not get through yet")
        }
    }
}

#[cfg(test)]
mod tests {
    use raft::state::{
        Accelerator, CaptureMode, Drain, ImageId, Kind, Labels, Limits, Machine, Network,
        RestartPolicy, Source, Unready, Vm, VmSpec,
    };

    use super::*;

    const NODE: NodeId = 1;

    /// A node that is drained since 10, with this many VMs.
    fn state(vms: u128) -> State {
        let mut state = State::new();
        let own = Member {
            id: NODE,
            name: "n1".into(),
            address: "h:1".into(),
            schedulable: false,
            labels: Labels::new(),
            created_at: 0,
            capacity: None,
            start_by: None,
            trust: None,
            drain: Some(Drain {
                how: DrainHow::Move,
                since: 10,
                stays: BTreeMap::new(),
            }),
        };
        state.nodes.insert(NODE, Arc::new(own));
        for id in 1..=vms {
            let spec = VmSpec {
                image: ImageId(1),
                cpus: 1,
                memory_bytes: 1 << 28,
                disk_bytes: 0,
                machine: Machine::Microvm,
                accelerator: Accelerator::Auto,
                cpu_model: None,
                cmdline: String::new(),
                limits: Limits::default(),
                restart: RestartPolicy::default(),
                network: Network::default(),
                publish: Vec::new(),
                self_fork: 0,
                unready: Unready::default(),
            };
            let name = format!("vm{id}");
            let vm = Vm::new(VmId(id), name, "ann", NODE, spec, Source::Image, 0);
            state.vms.insert(vm.id, Arc::new(vm));
        }
        state
    }

    fn add_move(state: &mut State, number: u128, vm: u128, created_at: Millis, failed: bool) {
        let id = OperationId(number << 16);
        let how = match failed {
            true => OperationState::Failed {
                reason: format!("no room {number}"),
                cancelled: false,
            },
            false => OperationState::Open,
        };
        let operation = Operation {
            id,
            owner: "ann".into(),
            kind: OperationKind::Move,
            state: how,
            vm: Some(VmId(vm)),
            snapshot: id.snapshot(),
            mode: CaptureMode::Auto,
            count: 1,
            paused: false,
            results: BTreeMap::new(),
            node: NODE,
            to: Some(2),
            created_at,
            expires_at: 99,
            ended_at: failed.then_some(created_at),
            cancel_requested: false,
            group: None,
        };
        state.operations.insert(id, Arc::new(operation));
    }

    fn moves(vms: &[u128]) -> Vec<Step> {
        vms.iter().map(|vm| Step::Move(VmId(*vm))).collect()
    }

    #[test]
    fn members_of_a_group_stay_at_once_and_hold_up_nobody() {
        let mut state = state(4);
        for id in [1, 2] {
            state.vms.change(&VmId(id), |vm| {
                vm.group = Some(raft::state::InGroup {
                    id: VmId(1),
                    name: "app".into(),
                    number: id as u32,
                });
            });
        }
        let steps = next(&state, NODE, &BTreeMap::new(), Instant::now());
        assert_eq!(steps[2..], moves(&[3, 4]));
        let [Step::Stay(VmId(1), reason), Step::Stay(VmId(2), _)] = &steps[..2] else {
            panic!("{steps:?}")
        };
        assert!(reason.contains("group \"app\""), "{reason}");
    }

    #[test]
    fn a_few_are_moved_at_once_and_those_that_failed_twice_stay() {
        let steps = |state: &State| next(state, NODE, &BTreeMap::new(), Instant::now());
        let mut state = state(4);
        assert_eq!(steps(&state), moves(&[1, 2]));
        add_move(&mut state, 1, 1, 11, false);
        assert_eq!(steps(&state), moves(&[2]));
        add_move(&mut state, 2, 2, 12, false);
        assert_eq!(steps(&state), []);
        // What failed before it was asked for does not count.
        for (number, at) in [(3, 5), (4, 6), (2, 12)] {
            add_move(&mut state, number, 2, at, true);
        }
        assert_eq!(steps(&state), moves(&[2]), "again");
        add_move(&mut state, 5, 2, 13, true);
        let stays = Step::Stay(VmId(2), "no room 5".into());
        assert_eq!(steps(&state), [&[stays][..], &moves(&[3])].concat());
        let own = Arc::make_mut(state.nodes.get_mut(&NODE).unwrap());
        own.drain = None;
        assert_eq!(steps(&state), [], "nobody wants it any more");
    }

    #[test]
    fn a_few_are_suspended_at_once_and_resumed_when_that_is_over() {
        let steps = |state: &State| next(state, NODE, &BTreeMap::new(), Instant::now());
        let mut state = state(4);
        let own = |state: &mut State, how: Option<DrainHow>| {
            let node = Arc::make_mut(state.nodes.get_mut(&NODE).unwrap());
            node.drain = how.map(|how| Drain {
                how,
                since: 10,
                stays: BTreeMap::new(),
            });
        };
        own(&mut state, Some(DrainHow::Rest { schedulable: true }));
        let suspends =
            |vms: &[u128]| -> Vec<Step> { vms.iter().map(|vm| Step::Suspend(VmId(*vm))).collect() };
        assert_eq!(steps(&state), suspends(&[1, 2]));
        let is_suspended = |vm: &mut Vm| {
            vm.phase = raft::state::Phase::Suspended;
            vm.rests_from = Some(vm.power);
            vm.power = Power::Suspended;
        };
        state.vms.change(&VmId(1), is_suspended);
        state
            .vms
            .change(&VmId(2), |vm| vm.phase = raft::state::Phase::Stopped);
        assert_eq!(steps(&state), suspends(&[3, 4]));
        state.vms.change(&VmId(4), |vm| {
            vm.power = Power::Paused;
            is_suspended(vm);
        });
        own(&mut state, None);
        let resume = |vm, power| Step::Resume(VmId(vm), power);
        let all = [resume(1, Power::Running), resume(4, Power::Paused)];
        assert_eq!(steps(&state), all);
    }

    #[test]
    fn what_is_refused_is_waited_for_a_while() {
        let now = Instant::now();
        let state = state(1);
        let steps = |reason: Rejection, waited: Duration| {
            let refused = Refused { since: now, reason };
            next(&state, NODE, &[(VmId(1), refused)].into(), now + waited)
        };
        let busy = Rejection::WrongState {
            kind: Kind::Vm,
            name: "vm1".into(),
            problem: "is being captured".into(),
        };
        let full = Rejection::NoCapacity {
            short: 1,
            wanted: 1,
            reasons: vec!["n2 is cordoned".into()],
        };
        assert_eq!(steps(busy.clone(), PLACE_PATIENCE), moves(&[1]));
        assert_eq!(steps(full.clone(), PLACE_PATIENCE / 2), moves(&[1]));
        for (reason, patience) in [(busy, BUSY_PATIENCE), (full, PLACE_PATIENCE)] {
            let stays = Step::Stay(VmId(1), reason.to_string());
            assert_eq!(steps(reason, patience), [stays]);
        }
    }
}
