//! Carrying out operations on the node of their VM: captures and forks, and VMs being reset, suspended or moved.
//!
//! An operation is begun when its intent is in the replicated state. What may be done before that is sure (flush, copy
//! ahead, start processes) is often under way by then: the node that took the request says so ahead ([`Forks::prepare`]).
//! `stop` and `cont` come only after the intent.

mod ahead;
mod give;
mod group;
mod reset;
mod run;
mod suspend;
mod take;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use qemu::{
    capture::Mode,
    record::{BaseName, LayerName, StreamName},
};
use raft::state::{
    CaptureMode, Command as Change, Content, FileId, OperationId, OperationState, SnapshotId,
    State, VmId,
};
use tokio::{
    sync::{OnceCell, Semaphore, SemaphorePermit, mpsc},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

pub use self::{
    ahead::start_new_child,
    take::{Arrival, Sent},
};
use self::{
    ahead::{prepare, start_child},
    run::Run,
};
use super::{Reserved, command::Command, launch, pool::Member};
use crate::{node::Node, store::Look};

/// How long the cluster's state is waited for before it is asked for again, and how long is waited in between.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(5);
/// See there.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(100);
/// How long something that was begun ahead waits for its intent.
const AHEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Operations of this node that are under way, and those that are prepared for.
#[derive(Debug)]
pub struct Forks {
    /// Set once this agent's state has been the cluster's.
    caught_up: OnceCell<()>,
    running: Mutex<BTreeMap<OperationId, CancellationToken>>,
    ahead: Mutex<BTreeMap<OperationId, Ahead>>,
    /// Where what is sent of VMs goes that come to this node.
    expected: Mutex<BTreeMap<OperationId, mpsc::Sender<Sent>>>,
    /// How many processes are started or loaded at once: more only get in each other's way.
    starts: Semaphore,
}

/// What is being done ahead of an operation.
#[derive(Debug)]
struct Ahead {
    begun: Instant,
    work: JoinHandle<Prepared>,
}

/// What was begun ahead.
#[derive(Debug, Default)]
struct Prepared {
    /// The VM that was prepared for its capture, and what its snapshot's files will be called.
    capture: Option<(VmId, StreamName)>,
    /// Children that were ready, of this snapshot.
    ready: Option<(SnapshotId, Vec<Member>)>,
    /// A process that is being started for a child whose parent is elsewhere, and the lineage that it may read.
    expected: Option<(JoinHandle<()>, Reserved)>,
    /// Children whose processes are being started, by number.
    starting: BTreeMap<u32, Starting>,
}

/// A child's process that is being started, to wait for its stream.
#[derive(Debug)]
struct Starting {
    parts: Parts,
    started: JoinHandle<Result<(), String>>,
}

/// What a child's process is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    base: BaseName,
    layers: Vec<LayerName>,
}

impl Parts {
    /// Of a snapshot.
    pub fn of(content: &Content) -> Self {
        Self {
            base: launch::base_name(content.base),
            layers: content
                .layers
                .iter()
                .copied()
                .map(launch::layer_name)
                .collect(),
        }
    }
}

/// What is forked, as far as preparing for it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A VM that will be captured.
    Vm(VmId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

impl Default for Forks {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            caught_up: OnceCell::new(),
            running: Mutex::default(),
            ahead: Mutex::default(),
            expected: Mutex::default(),
            starts: Semaphore::new(2 * processors),
        }
    }
}

impl Forks {
    fn running(&self) -> MutexGuard<'_, BTreeMap<OperationId, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ahead(&self) -> MutexGuard<'_, BTreeMap<OperationId, Ahead>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn to start or load a process, given back when dropped.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, String> {
        let turn = self.starts.acquire().await;
        turn.map_err(|error| error.to_string())
    }

    /// The operations that are being carried out.
    pub fn observe(&self) -> BTreeSet<OperationId> {
        self.running().keys().copied().collect()
    }

    /// Whether nothing is under way and nothing prepared.
    pub fn is_idle(&self) -> bool {
        self.ahead().is_empty() && self.running().is_empty()
    }

    /// Operations whose files must be left alone: those that are under way, and those that may come.
    pub fn in_flight(&self) -> BTreeSet<OperationId> {
        // In this order: one that begins meanwhile is under way before it is no longer ahead.
        let mut all: BTreeSet<_> = self.ahead().keys().copied().collect();
        all.extend(self.observe());
        all
    }

    /// Begins with what may be done before an operation is sure.
    pub fn prepare(
        &self,
        node: &Arc<Node>,
        operation: OperationId,
        source: Source,
        children: Vec<u32>,
        mode: CaptureMode,
    ) {
        let mut ahead = self.ahead();
        // Told too late, it is begun with, or was, without that.
        let is_known = node.state().operations.contains_key(&operation);
        if is_known || ahead.contains_key(&operation) || self.running().contains_key(&operation) {
            return;
        }
        let context = Arc::clone(node);
        let work = async move {
            let _way = context.store.give_way();
            if context.density.is_short() {
                return Prepared::default();
            }
            let state = context.state();
            match prepare(&context, &state, operation, source, children, mode).await {
                Ok(prepared) => prepared,
                Err(problem) => {
                    // The operation itself will meet the same problem and report it.
                    tracing::debug!(%operation, problem, "nothing could be done ahead of an operation");
                    Prepared::default()
                }
            }
        };
        // Asked for by whoever answers calls.
        let work = node.tasks.spawn_on(work, node.vms.threads());
        ahead.insert(
            operation,
            Ahead {
                begun: Instant::now(),
                work,
            },
        );
    }

    /// Throws away what was begun for operations that did not come.
    pub async fn forget_stale(&self, node: &Arc<Node>, state: &State) {
        let stale: Vec<(OperationId, Ahead)> = {
            let mut ahead = self.ahead();
            let old = |begun: Instant| begun.elapsed() > AHEAD_PATIENCE;
            // Of others that were chosen in the end nothing is to come.
            let is_to_come = |id: &OperationId| {
                let found = state.operations.get(id);
                found.is_some_and(|operation| {
                    operation.state == OperationState::Open && state.has_part(operation, node.id())
                })
            };
            let ids: Vec<OperationId> = ahead
                .iter()
                .filter(|(id, ahead)| old(ahead.begun) && !is_to_come(id))
                .map(|(id, _)| *id)
                .collect();
            ids.into_iter()
                .filter_map(|id| Some((id, ahead.remove(&id)?)))
                .collect()
        };
        for (operation, ahead) in stale {
            let mut prepared = ahead.work.await.unwrap_or_default();
            // What lives here is more than was begun ahead, whoever began it.
            prepared.starting.retain(|number, _| {
                let child = state.vms.get(&operation.child(*number));
                child.is_none_or(|child| child.node != node.id())
            });
            discard(node, operation, prepared).await;
        }
    }

    /// Returns once this agent's state has been the cluster's: an operation that looks open to an agent that was just started
    /// may have come further, or to its end, in entries that it has not applied yet.
    pub async fn catch_up(&self, node: &Node) {
        let caught_up = async || {
            while let Err(error) = node
                .raft
                .read_barrier(Instant::now() + CATCH_UP_PATIENCE)
                .await
            {
                tracing::debug!(%error, "the state may be behind; operations wait");
                sleep(CATCH_UP_PAUSE).await;
            }
        };
        tokio::select! {
            () = node.cancel.cancelled() => {}
            _ = self.caught_up.get_or_init(caught_up) => {}
        }
    }

    /// Whether it has been that.
    pub fn has_caught_up(&self) -> bool {
        self.caught_up.initialized()
    }

    /// Throws away what was begun for operations that had not come when the node ended.
    pub async fn close(&self, node: &Arc<Node>) {
        let all = std::mem::take(&mut *self.ahead());
        for (operation, ahead) in all {
            discard(node, operation, ahead.work.await.unwrap_or_default()).await;
        }
    }

    /// Begins with the operations that were prepared for and whose intent has come. One whose snapshot is still to be verified is
    /// left to the reconciler, which has that done first.
    fn run_prepared(&self, node: &Arc<Node>, state: &State) {
        let in_doubt = |snapshot: &SnapshotId| {
            let content = state.snapshots.get(snapshot);
            content
                .and_then(|snapshot| snapshot.content.as_ref())
                .is_some_and(|content| node.store.look(content) == Look::Unverified)
        };
        let came = |id: &OperationId| {
            state.operations.get(id).is_some_and(|operation| {
                state.has_part(operation, node.id())
                    && operation.state == OperationState::Open
                    && !operation.cancel_requested
                    && !in_doubt(&operation.snapshot)
            })
        };
        let came: Vec<OperationId> = self.ahead().keys().copied().filter(came).collect();
        for operation in came {
            self.run(node, operation);
        }
    }

    /// Carries an operation out. Of those that fork a group all are, together.
    pub fn run(&self, node: &Arc<Node>, operation: OperationId) {
        let state = node.state();
        let group = state.operations.get(&operation).and_then(|one| one.group);
        if let Some(first) = group {
            return self.run_group(node, first, state.parts_of_group(group));
        }
        let cancel = node.cancel.child_token();
        if self.running().insert(operation, cancel.clone()).is_some() {
            return;
        }
        let context = Arc::clone(node);
        let ahead = self.ahead().remove(&operation);
        let work = async move {
            let way = context.store.give_way();
            context.forks.catch_up(&context).await;
            let begun = ahead
                .as_ref()
                .map_or_else(Instant::now, |ahead| ahead.begun);
            let prepared = match ahead {
                Some(ahead) => ahead.work.await.unwrap_or_default(),
                None => Prepared::default(),
            };
            let mut run = Run {
                node: Arc::clone(&context),
                operation,
                begun,
                prepared,
                cancel: cancel.clone(),
            };
            let outcome = run.carry_out(way).await;
            let failed = outcome.is_err();
            let own_failures = match &outcome {
                Err(problem) => run.own_failures(problem),
                Ok(()) => None,
            };
            let capture = run.prepared.capture.take();
            // What was started ahead and is of no use any more.
            discard(&context, operation, run.prepared).await;
            if let Err(problem) = outcome
                && !context.cancel.is_cancelled()
            {
                let cancelled = cancel.is_cancelled();
                let reason = if cancelled {
                    "it was cancelled".to_owned()
                } else {
                    problem
                };
                let change = match own_failures {
                    Some(results) => Change::ReportChildren { operation, results },
                    None => Change::FailOperation {
                        operation,
                        reason,
                        cancelled,
                    },
                };
                context.report(change).await;
            }
            if let Some(capture) = capture {
                release(&context, capture).await;
            }
            context.forks.running().remove(&operation);
            if failed {
                // What was fetched for it.
                context.left_over.notify_one();
            }
            context.pool.look_again();
            context.wake.notify_one();
        };
        node.tasks.spawn_on(work, node.vms.threads());
    }

    fn run_group(&self, node: &Arc<Node>, first: OperationId, parts: Vec<OperationId>) {
        let cancel = node.cancel.child_token();
        {
            let mut running = self.running();
            if parts.iter().any(|part| running.contains_key(part)) {
                return;
            }
            running.extend(parts.iter().map(|part| (*part, cancel.clone())));
        }
        let context = Arc::clone(node);
        let work = async move {
            let way = context.store.give_way();
            context.forks.catch_up(&context).await;
            let part = |operation: &OperationId| Run {
                node: Arc::clone(&context),
                operation: *operation,
                begun: Instant::now(),
                prepared: Prepared::default(),
                cancel: cancel.clone(),
            };
            let mut runs: Vec<Run> = parts.iter().map(part).collect();
            let outcome = group::carry_out(&context, &mut runs, &cancel).await;
            drop(way);
            let failed = outcome.is_err();
            let mut captures = Vec::new();
            for mut run in runs {
                captures.extend(run.prepared.capture.take());
                discard(&context, run.operation, run.prepared).await;
            }
            if let Err(problem) = outcome
                && !context.cancel.is_cancelled()
            {
                let cancelled = cancel.is_cancelled();
                let reason = match cancelled {
                    true => "it was cancelled".to_owned(),
                    false => problem,
                };
                // With this one all of them fail.
                let change = Change::FailOperation {
                    operation: first,
                    reason,
                    cancelled,
                };
                context.report(change).await;
            }
            for capture in captures {
                release(&context, capture).await;
            }
            context
                .forks
                .running()
                .retain(|operation, _| !parts.contains(operation));
            if failed {
                context.left_over.notify_one();
            }
            context.pool.look_again();
            context.wake.notify_one();
        };
        node.tasks.spawn_on(work, node.vms.threads());
    }

    /// Has an operation that is under way end as soon as it can.
    pub fn cancel(&self, operation: OperationId) {
        if let Some(cancel) = self.running().get(&operation) {
            cancel.cancel();
        }
    }
}

/// Tells the captured VM that its snapshot is known to all, or will not be.
async fn release(node: &Node, (vm, stream): (VmId, StreamName)) {
    if let Some(vm) = node.vms.get(vm) {
        // One that is gone has nothing prepared, and refers to nothing.
        let _gone = vm.tell(Command::Unprepare(stream)).await;
    }
}

/// Has the reconciler know when this agent's state has been the cluster's.
pub async fn catch_up(node: Arc<Node>) {
    node.forks.catch_up(&node).await;
    node.wake.notify_one();
}

/// Begins with operations as soon as their intent is applied, until the node ends. The reconciler begins with every operation,
/// but after a look at all VMs and files of the node; those that were prepared for need not wait for it. It runs
/// beside what keeps the state, which then wakes no other thread; operations run on those that work for machines.
pub async fn follow(node: Arc<Node>) {
    let mut published = node.raft.published();
    loop {
        let state = Arc::clone(&published.borrow_and_update().view);
        node.forks.run_prepared(&node, &state);
        tokio::select! {
            () = node.cancel.cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}

/// Throws away what was begun: forgets what was copied ahead, gives back the children that were ready, and ends the processes
/// that were started ahead for children that will not be, also those that are still being started.
async fn discard(node: &Arc<Node>, operation: OperationId, prepared: Prepared) {
    if let Some(capture) = prepared.capture {
        release(node, capture).await;
    }
    if let Some((snapshot, unused)) = prepared.ready {
        node.pool.give_back(snapshot, unused);
    }
    for (number, starting) in prepared.starting {
        starting.started.abort();
        let _however_it_went = starting.started.await;
        if let Some(child) = node.vms.get(operation.child(number)) {
            // After what its task is at; one that is gone has nothing left.
            let _gone = child.tell(Command::Destroy).await;
        }
    }
}

/// A name for files of a capture: its base and its stream, or the overlay that the disk goes on with. Derived from the operation, so
/// that they are not collected while that is under way, and never the same: two captures of one VM may be prepared at once,
/// and a capture that an agent was lost in is begun again while what came of it may be on its way into the state.
fn fresh_file(operation: OperationId) -> FileId {
    // Begun at random: an agent that was lost may have got further with the same operation.
    static COUNT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(Ulid::new().0 as u16));
    // Above the ids of the snapshot and of all children.
    let place = 0x4000 | (COUNT.fetch_add(1, Ordering::Relaxed) & 0x3fff);
    operation.0 + u128::from(place)
}

fn engine_mode(mode: CaptureMode) -> Mode {
    match mode {
        CaptureMode::Auto => Mode::Auto,
        CaptureMode::Paused => Mode::Paused,
        CaptureMode::Live => Mode::Live,
    }
}
