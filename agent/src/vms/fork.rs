//! Carrying out captures and forks on the node of the parent.
//!
//! An operation is begun when its intent is in the replicated state. What may be done before that is sure (flush, copy
//! ahead, start processes) is often under way by then: the node that took the request says so ahead ([`Forks::prepare`]).
//! `stop` and `cont` come only after the intent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use qemu::{
    capture::{Captured, Mode},
    record::{BaseName, LayerName, StreamName},
};
use raft::state::{
    Accelerator, CaptureMode, ChildResult, Command as Change, Content, Operation, OperationId,
    OperationKind, OperationState, Safety, Snapshot, SnapshotId, State, Vm, VmId,
};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{VmHandle, launch, task::Command};
use crate::{convert::capture_report, errors::chain, node::Node, reconcile::plan::Is};

/// How long something that was begun ahead waits for its intent.
const AHEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Operations of this node that are under way, and those that are prepared for.
#[derive(Debug)]
pub struct Forks {
    running: Mutex<BTreeMap<OperationId, CancellationToken>>,
    ahead: Mutex<BTreeMap<OperationId, Ahead>>,
    /// How many processes are started or loaded at once: more only get in each other's way.
    starts: Arc<Semaphore>,
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
struct Parts {
    base: BaseName,
    layers: Vec<LayerName>,
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
            running: Mutex::default(),
            ahead: Mutex::default(),
            starts: Arc::new(Semaphore::new(2 * processors)),
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

    /// The operations that are being carried out.
    pub fn observe(&self) -> BTreeSet<OperationId> {
        self.running().keys().copied().collect()
    }

    /// Operations whose files must be left alone: those that are under way, and those that may come.
    pub fn in_flight(&self) -> BTreeSet<OperationId> {
        self.running()
            .keys()
            .chain(self.ahead().keys())
            .copied()
            .collect()
    }

    /// Begins with what may be done before an operation is sure.
    pub fn prepare(
        &self,
        node: &Arc<Node>,
        operation: OperationId,
        source: Source,
        count: u32,
        mode: CaptureMode,
    ) {
        let mut ahead = self.ahead();
        if ahead.contains_key(&operation) || self.running().contains_key(&operation) {
            return;
        }
        let context = Arc::clone(node);
        let work = node.tasks.spawn(async move {
            let state = context.state();
            match prepare(&context, &state, operation, source, count, mode).await {
                Ok(prepared) => prepared,
                Err(problem) => {
                    // The operation itself will meet the same problem and report it.
                    tracing::debug!(%operation, problem, "nothing could be done ahead of an operation");
                    Prepared::default()
                }
            }
        });
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
            let ids: Vec<OperationId> = ahead
                .iter()
                .filter(|(id, ahead)| old(ahead.begun) && !state.operations.contains_key(id))
                .map(|(id, _)| *id)
                .collect();
            ids.into_iter()
                .filter_map(|id| Some((id, ahead.remove(&id)?)))
                .collect()
        };
        for (operation, ahead) in stale {
            let prepared = ahead.work.await.unwrap_or_default();
            for (number, starting) in prepared.starting {
                // However that went.
                let _started = starting.started.await;
                if let Some(child) = node.vms.get(operation.child(number)) {
                    child.act(Command::Destroy);
                }
            }
            for (_, vm) in node.vms.all() {
                // A VM that is gone has nothing prepared.
                let _gone = vm
                    .tell(Command::Unprepare(launch::stream_name(
                        operation.snapshot(),
                    )))
                    .await;
            }
        }
    }

    /// Carries an operation out.
    pub fn run(&self, node: &Arc<Node>, operation: OperationId) {
        let cancel = node.cancel.child_token();
        if self.running().insert(operation, cancel.clone()).is_some() {
            return;
        }
        let context = Arc::clone(node);
        let ahead = self.ahead().remove(&operation);
        node.tasks.spawn(async move {
            let begun = ahead
                .as_ref()
                .map_or_else(Instant::now, |ahead| ahead.begun);
            let prepared = match ahead {
                Some(ahead) => ahead.work.await.unwrap_or_default(),
                None => Prepared::default(),
            };
            let run = Run {
                node: Arc::clone(&context),
                operation,
                begun,
                prepared,
                cancel: cancel.clone(),
            };
            if let Err(problem) = run.carry_out().await
                && !context.cancel.is_cancelled()
            {
                let cancelled = cancel.is_cancelled();
                let reason = if cancelled {
                    "it was cancelled".to_owned()
                } else {
                    problem
                };
                context
                    .report(Change::FailOperation {
                        operation,
                        reason,
                        cancelled,
                    })
                    .await;
            }
            context.forks.running().remove(&operation);
            context.wake.notify_one();
        });
    }

    /// Has an operation that is under way end as soon as it can.
    pub fn cancel(&self, operation: OperationId) {
        if let Some(cancel) = self.running().get(&operation) {
            cancel.cancel();
        }
    }
}

/// What may be done ahead: prepare the capture, and start the children's processes with what it will refer to.
async fn prepare(
    node: &Arc<Node>,
    state: &State,
    operation: OperationId,
    source: Source,
    count: u32,
    mode: CaptureMode,
) -> Result<Prepared, String> {
    let (parts, hardware, template) = match source {
        Source::Vm(id) => {
            let vm = state.vms.get(&id).ok_or("the VM is not known here yet")?;
            let handle = node.vms.get(id).ok_or("the VM is not here")?;
            let stream = launch::stream_name(operation.snapshot());
            let (disk_bytes, mode) = (vm.spec.disk_bytes, engine_mode(mode));
            let asked = stream.clone();
            let expected = handle
                .ask(|done| Command::Expect {
                    stream: asked,
                    disk_bytes,
                    done,
                })
                .await
                .map_err(|error| error.to_string())?
                .map_err(|error| chain(&error))?;
            let hardware = launch::hardware(&vm.spec, &node.fitness);
            // Beside the starting of processes; the capture comes after it in the VM's queue, and meets whatever it met.
            handle
                .tell(Command::Prepare {
                    stream,
                    disk_bytes,
                    mode,
                })
                .await
                .map_err(|error| error.to_string())?;
            let parts = Parts {
                base: expected.base,
                layers: expected.layers,
            };
            (parts, hardware, Arc::clone(vm))
        }
        Source::Snapshot(id) => {
            let snapshot = state
                .snapshots
                .get(&id)
                .ok_or("the snapshot is not known here yet")?;
            let content = snapshot
                .content
                .as_ref()
                .ok_or("the snapshot is not ready")?;
            let hardware = launch::snapshot_hardware(&snapshot.spec, content, &node.fitness);
            (
                content_parts(content),
                hardware,
                Arc::new(pseudo_vm(snapshot)),
            )
        }
    };
    let hardware = hardware.map_err(|error| error.to_string())?;
    let start = |number| {
        let mut child = Vm::clone(&template);
        child.id = operation.child(number);
        child.boot = 1;
        let (context, parts, hardware) = (Arc::clone(node), parts.clone(), hardware.clone());
        let with = parts.clone();
        let started = node
            .tasks
            .spawn(async move { start_child(&context, &child, hardware, &with).await });
        (number, Starting { parts, started })
    };
    Ok(Prepared {
        starting: (0..count).map(start).collect(),
    })
}

/// A VM to start children of a snapshot by: only what it is made of matters.
fn pseudo_vm(snapshot: &Snapshot) -> Vm {
    use raft::state::{Phase, Power, Source};
    Vm {
        id: VmId(0),
        name: String::new(),
        node: 0,
        spec: snapshot.spec.clone(),
        source: Source::Snapshot(snapshot.id),
        parent: None,
        labels: BTreeMap::new(),
        power: Power::Running,
        generation: 1,
        boot: 1,
        phase: Phase::Pending,
        reason: String::new(),
        reported_boot: 0,
        operation: None,
        created_at: 0,
    }
}

/// Starts a child's process, which then waits for its stream.
async fn start_child(
    node: &Arc<Node>,
    child: &Vm,
    hardware: qemu::spec::Hardware,
    parts: &Parts,
) -> Result<(), String> {
    let _turn = node
        .forks
        .starts
        .acquire()
        .await
        .map_err(|error| error.to_string())?;
    let handle = node
        .vms
        .get_or_create(child.id)
        .map_err(|error| error.to_string())?;
    let place = handle.place();
    let state = node.state();
    let launch = launch::restore(
        &state,
        child,
        hardware,
        place,
        parts.base.clone(),
        &parts.layers,
    )
    .map_err(|error| error.to_string())?;
    handle
        .ask(|done| Command::Prestart {
            launch: Box::new(launch),
            done,
        })
        .await
        .map_err(|error| error.to_string())?
}

/// One operation that is being carried out.
struct Run {
    node: Arc<Node>,
    operation: OperationId,
    begun: Instant,
    prepared: Prepared,
    cancel: CancellationToken,
}

impl Run {
    async fn carry_out(mut self) -> Result<(), String> {
        let state = self.node.state();
        let Some(operation) = state.operations.get(&self.operation).cloned() else {
            return Ok(());
        };
        let snapshot = state
            .snapshots
            .get(&operation.snapshot)
            .ok_or("its snapshot is not known")?
            .clone();
        if operation.state != OperationState::Open {
            return Ok(());
        }
        self.note("its intent is here");
        let mut told = None;
        let content = match &snapshot.content {
            Some(content) => content.clone(),
            None => {
                let content = self.capture(&state, &operation).await?;
                let ready = Change::SnapshotReady {
                    operation: operation.id,
                    content: content.clone(),
                };
                if operation.kind == OperationKind::Snapshot {
                    self.node.report(ready).await;
                    return Ok(());
                }
                // Beside the loading: only the answer waits for it.
                let node = Arc::clone(&self.node);
                told = Some(
                    self.node
                        .tasks
                        .spawn(async move { node.report(ready).await }),
                );
                content
            }
        };
        self.note("captured");
        self.check_cancelled()?;
        let results = self
            .children(&state, &operation, &snapshot, &content)
            .await?;
        if let Some(told) = told {
            // The operation must not be complete before its snapshot is ready. A refusal means that it has ended.
            if let Some(Err(rejection)) = told.await.map_err(|panic| panic.to_string())? {
                return Err(rejection.to_string());
            }
        }
        self.node
            .report(Change::ReportChildren {
                operation: operation.id,
                results,
            })
            .await;
        Ok(())
    }

    /// Says in the log how far it has come, and how long that took since this node knew of it.
    fn note(&self, what: &'static str) {
        let ms = self.begun.elapsed().as_secs_f64() * 1e3;
        tracing::debug!(operation = %self.operation, ms, "{what}");
    }

    fn check_cancelled(&self) -> Result<(), String> {
        if self.cancel.is_cancelled() {
            Err("it was cancelled".to_owned())
        } else {
            Ok(())
        }
    }

    async fn capture(&self, state: &State, operation: &Operation) -> Result<Content, String> {
        self.check_cancelled()?;
        let id = operation.vm.ok_or("it has no VM to capture")?;
        let vm = state.vms.get(&id).ok_or("the VM was deleted meanwhile")?;
        let handle = self.node.vms.get(id).ok_or("the VM has no process")?;
        let stream = launch::stream_name(operation.snapshot);
        let (disk_bytes, mode) = (vm.spec.disk_bytes, engine_mode(operation.mode));
        let captured = handle
            .ask(|done| Command::Capture {
                stream,
                disk_bytes,
                mode,
                done,
            })
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| {
                if error.is_disk_full() {
                    format!("disk-full: {}", chain(&error))
                } else {
                    chain(&error)
                }
            })?;
        content_of(&captured)
            .ok_or_else(|| "the capture's files have names that are no ids".to_owned())
    }

    /// Starts what is not started, loads all, and lets them go on together: children that run compete with those that are
    /// still loading.
    async fn children(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        content: &Content,
    ) -> Result<Vec<(u32, ChildResult)>, String> {
        let parts = content_parts(content);
        let hardware = launch::snapshot_hardware(&snapshot.spec, content, &self.node.fitness);
        let mut loading = JoinSet::new();
        let mut results = Vec::new();
        for number in 0..operation.count {
            let Some(child) = state.vms.get(&operation.id.child(number)).cloned() else {
                results.push((
                    number,
                    failed("it was deleted while it was being made".to_owned()),
                ));
                continue;
            };
            let hardware = match &hardware {
                Ok(hardware) => hardware.clone(),
                Err(problem) => {
                    results.push((number, failed(problem.to_string())));
                    continue;
                }
            };
            let starting = self.prepared.starting.remove(&number);
            let (node, parts, stream) = (
                Arc::clone(&self.node),
                parts.clone(),
                launch::stream_name(snapshot.id),
            );
            loading.spawn(async move {
                let loaded = load_child(&node, &child, hardware, &parts, stream, starting).await;
                (number, child, loaded)
            });
        }
        let mut loaded = Vec::new();
        while let Some(result) = loading.join_next().await {
            let (number, child, result) = result.map_err(|panic| panic.to_string())?;
            match result {
                Ok(handle) => loaded.push((number, child, handle)),
                Err(problem) => results.push((number, failed(problem))),
            }
        }
        self.note("loaded");
        self.check_cancelled()?;
        loaded.sort_by_key(|(number, ..)| *number);
        for (number, child, handle) in loaded {
            let paused = child.power == raft::state::Power::Paused;
            let gone_on = match handle.seen().is {
                // It ran before an agent was lost in the middle of this.
                Is::Running { .. } | Is::Paused { .. } => Ok(Instant::now()),
                _ => handle
                    .ask(|done| Command::Go { paused, done })
                    .await
                    .unwrap_or_else(|error| Err(error.to_string())),
            };
            results.push((
                number,
                match gone_on {
                    Ok(at) => ChildResult {
                        running_us: (at - self.begun).as_micros() as u64,
                        error: String::new(),
                    },
                    Err(problem) => failed(problem),
                },
            ));
        }
        Ok(results)
    }
}

/// Loads one child, its process started first if none waits. A child that runs already is left alone.
async fn load_child(
    node: &Arc<Node>,
    child: &Vm,
    hardware: qemu::spec::Hardware,
    parts: &Parts,
    stream: StreamName,
    starting: Option<Starting>,
) -> Result<VmHandle, String> {
    if let Some(handle) = node.vms.get(child.id)
        && matches!(handle.seen().is, Is::Running { .. } | Is::Paused { .. })
    {
        return Ok(handle);
    }
    let waits = match starting {
        Some(starting) => matches!(starting.started.await, Ok(Ok(()))) && starting.parts == *parts,
        None => false,
    };
    if !waits {
        node.fetch_image(child.spec.image).await?;
        start_child(node, child, hardware, parts).await?;
    }
    let handle = node
        .vms
        .get(child.id)
        .ok_or("it was deleted while it was being made")?;
    let _turn = node
        .forks
        .starts
        .acquire()
        .await
        .map_err(|error| error.to_string())?;
    handle
        .ask(|done| Command::Load { stream, done })
        .await
        .map_err(|error| error.to_string())??;
    Ok(handle)
}

fn failed(error: String) -> ChildResult {
    ChildResult {
        running_us: 0,
        error,
    }
}

fn engine_mode(mode: CaptureMode) -> Mode {
    match mode {
        CaptureMode::Auto => Mode::Auto,
        CaptureMode::Paused => Mode::Paused,
        CaptureMode::Live => Mode::Live,
    }
}

fn content_parts(content: &Content) -> Parts {
    Parts {
        base: launch::base_name(content.base),
        layers: content
            .layers
            .iter()
            .copied()
            .map(launch::layer_name)
            .collect(),
    }
}

fn content_of(captured: &Captured) -> Option<Content> {
    let hardware = &captured.hardware;
    Some(Content {
        base: captured.base.0.parse().ok()?,
        layers: captured
            .layers
            .iter()
            .map(|layer| layer.0.parse::<VmId>().map(|id| id.0))
            .collect::<Result<_, _>>()
            .ok()?,
        accelerator: match hardware.accelerator {
            qemu::spec::Accelerator::Kvm => Accelerator::Kvm,
            qemu::spec::Accelerator::Tcg => Accelerator::Tcg,
        },
        cpu_model: hardware.cpu_model.clone(),
        qemu_version: captured.qemu_version.clone(),
        machine: hardware.machine.name().to_owned(),
        devices: hardware
            .devices
            .iter()
            .map(|device| device.name().to_owned())
            .collect(),
        base_bytes: captured.base_bytes,
        stream_bytes: captured.stream_bytes,
        layer_bytes: captured.layer_bytes,
        safety: Safety::Memory,
        report: capture_report(&captured.report),
    })
}
