//! One operation that is being carried out: capture, load, go.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt as _, Shared, join_all};
use qemu::{
    capture::{Afterwards, Captured, Ticket},
    checksum::{CheckedStream, StreamUnfit},
    failpoint,
    record::{StreamName, StreamRef},
};
use raft::state::{
    Accelerator, CHILD_BYTES, ChildResult, Command as Change, Content, Operation, OperationId,
    OperationKind, OperationState, Power, Safety, Snapshot, State, VmId,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Parts, Prepared, Starting, engine_mode, fresh_file, start_child};
use crate::{
    admission::Need,
    convert::capture_report,
    errors::chain,
    guest::{
        becoming::{self, One},
        identity,
    },
    metrics,
    node::Node,
    reconcile::plan::Is,
    store::Way,
    transfer::{Kept, Until},
    vms::{
        VmHandle,
        command::{Command, Then},
        launch::{self, Child},
        vm_name,
    },
};

/// How long another node's capture is waited for at a time.
const CAPTURE_LOOK: Duration = Duration::from_secs(60);

/// One operation that is being carried out.
pub(super) struct Run {
    pub(super) node: Arc<Node>,
    pub(super) operation: OperationId,
    pub(super) begun: Instant,
    pub(super) prepared: Prepared,
    pub(super) cancel: CancellationToken,
}

impl Run {
    /// Carries it out. What works on files in the background gives way until `way` is dropped.
    pub(super) async fn carry_out(&mut self, way: Way<'_>) -> Result<(), String> {
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
        failpoint::reached("operation.begun");
        match operation.kind {
            OperationKind::Snapshot | OperationKind::Fork => {
                self.fork(&state, &operation, &snapshot, way).await
            }
            OperationKind::Reset => self.reset(&state, &operation, &snapshot).await,
            OperationKind::Suspend => self.suspend(&state, &operation, &snapshot, way).await,
            OperationKind::Move if operation.to == Some(self.node.id()) => {
                self.take(&state, &operation, &snapshot, way).await
            }
            OperationKind::Move => self.give(&state, &operation, &snapshot, way).await,
        }
    }

    async fn fork(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        way: Way<'_>,
    ) -> Result<(), String> {
        let node = Arc::clone(&self.node);
        // Given up while others are waited for.
        let mut way = Some(way);
        let numbers = self.numbers(state, operation);
        self.admit(operation, &numbers)?;
        let mut told = None;
        let content = match &snapshot.content {
            Some(content) => content.clone(),
            None if operation.node != node.id() => {
                way = None;
                self.captured_elsewhere().await?
            }
            None => {
                let content = self
                    .capture(state, operation, Afterwards::GoOn, None)
                    .await?;
                failpoint::reached("operation.captured");
                let ready = Change::SnapshotReady {
                    operation: operation.id,
                    content: content.clone(),
                };
                if operation.kind == OperationKind::Snapshot {
                    self.node.report(ready).await;
                    failpoint::reached("operation.snapshot-told");
                    return Ok(());
                }
                // Beside the loading: only the answer waits for it.
                let node = Arc::clone(&self.node);
                told = Some(self.node.tasks.spawn(async move {
                    let told = node.report(ready).await;
                    failpoint::reached("operation.fork-told");
                    told
                }));
                content
            }
        };
        let kept = match told.is_none() && !numbers.is_empty() {
            true => {
                way = way.filter(|_| snapshot.nodes.contains(&node.id()));
                self.obtain(snapshot, &content).await?
            }
            false => None,
        };
        let _way = way.unwrap_or_else(|| node.store.give_way());
        if operation.vm.is_none() && self.prepared.ready.is_none() {
            // Nobody told this node ahead.
            let missing = numbers.len().saturating_sub(self.prepared.starting.len()) as u32;
            let ready = self.node.pool.take(snapshot.id, missing);
            self.prepared.ready = Some((snapshot.id, ready));
        }
        self.note("captured");
        self.check_cancelled()?;
        let results = self
            .children(state, operation, snapshot, &content, numbers)
            .await?;
        // The children refer to what was fetched.
        if let Some(kept) = kept
            && results.iter().any(|(_, result)| result.error.is_empty())
        {
            kept.is_used();
        }
        if let Some(told) = told {
            // The operation must not be complete before its snapshot is ready. A refusal means that it has ended.
            if let Some(Err(rejection)) = told.await.map_err(|panic| panic.to_string())? {
                return Err(rejection.to_string());
            }
        }
        failpoint::reached("operation.children-run");
        if !results.is_empty() {
            self.report(results).await;
        }
        Ok(())
    }

    /// The children that this node says of what became of them, and has not said.
    pub(super) fn numbers(&self, state: &State, operation: &Operation) -> Vec<u32> {
        let here = self.node.id();
        let is_here = |number: &u32| {
            operation.kind == OperationKind::Fork
                && !operation.results.contains_key(number)
                && state.node_of_child(operation, *number) == here
        };
        (0..operation.count).filter(is_here).collect()
    }

    /// What becomes of this node's children when it cannot make them, where that leaves others' alone; `None` where the operation fails.
    pub(super) fn own_failures(&self, reason: &str) -> Option<Vec<(u32, ChildResult)>> {
        let state = self.node.state();
        let operation = state.operations.get(&self.operation)?;
        if operation.kind == OperationKind::Move {
            return None;
        }
        let snapshot = state.snapshots.get(&operation.snapshot)?;
        let is_elsewhere = |number| state.node_of_child(operation, number) != self.node.id();
        let is_shared = snapshot.content.is_some() && (0..operation.count).any(is_elsewhere);
        if operation.node == self.node.id() && (!is_shared || self.cancel.is_cancelled()) {
            return None;
        }
        let numbers = self.numbers(&state, operation).into_iter();
        Some(
            numbers
                .map(|number| (number, failed(reason.to_owned())))
                .collect(),
        )
    }

    /// Waits until another node has captured what is forked.
    async fn captured_elsewhere(&self) -> Result<Content, String> {
        let id = self.operation;
        let captured = |state: &Arc<State>| {
            let open = state.operations.get(&id);
            let Some(open) = open.filter(|found| found.state == OperationState::Open) else {
                return Some(Err("it ended without this node".to_owned()));
            };
            let snapshot = state.snapshots.get(&open.snapshot)?;
            snapshot.content.clone().map(Ok)
        };
        loop {
            // For as long as it is open: its node may be away.
            let deadline = Instant::now() + CAPTURE_LOOK;
            tokio::select! {
                found = self.node.wait_for(deadline, captured) => if let Some(content) = found {
                    return content;
                },
                () = self.cancel.cancelled() => return Err("it was cancelled".to_owned()),
            }
        }
    }

    /// Has what a snapshot is made of be here, and its image.
    pub(super) async fn obtain(
        &self,
        snapshot: &Snapshot,
        content: &Content,
    ) -> Result<Option<Kept>, String> {
        let both = async {
            let image = self.node.fetch_image_disk(snapshot.spec.image);
            let (kept, ()) =
                tokio::try_join!(self.node.obtain(snapshot.id, content, Until::Usable), image)?;
            Ok(kept)
        };
        tokio::select! {
            obtained = both => obtained,
            () = self.cancel.cancelled() => Err("it was cancelled".to_owned()),
        }
    }

    /// Says what became of children, or of the VM.
    pub(super) async fn report(&self, results: Vec<(u32, ChildResult)>) {
        measure(&results);
        self.node
            .report(Change::ReportChildren {
                operation: self.operation,
                results,
            })
            .await;
        failpoint::reached("operation.children-told");
    }

    /// Refuses what does not fit on this host: a base of all that is the captured process's own, and the children that do not
    /// run yet.
    pub(super) fn admit(&self, operation: &Operation, numbers: &[u32]) -> Result<(), String> {
        self.node.admit(self.need(operation, numbers))
    }

    /// What it needs of this host: see [`Run::admit`].
    pub(super) fn need(&self, operation: &Operation, numbers: &[u32]) -> Need {
        let captured = operation.vm.filter(|_| operation.node == self.node.id());
        let pid = captured.map_or(0, |vm| self.node.pid_of(vm));
        // A process that is gone fails the capture, with a better reason.
        let disk = match pid {
            0 => 0,
            pid => qemu::host::own_memory(pid).unwrap_or_default(),
        };
        let runs = |number: &u32| {
            let child = self.node.vms.get(operation.id.child(*number));
            child.is_some_and(|child| {
                matches!(child.seen().is, Is::Running { .. } | Is::Paused { .. })
            })
        };
        let children = match operation.kind {
            OperationKind::Fork => numbers.iter().filter(|number| !runs(number)).count(),
            OperationKind::Snapshot
            | OperationKind::Reset
            | OperationKind::Suspend
            | OperationKind::Move => 0,
        };
        Need {
            memory: children as u64 * CHILD_BYTES,
            disk,
        }
    }

    /// Says in the log how far it has come, and how long that took since this node knew of it.
    pub(super) fn note(&self, what: &'static str) {
        let ms = self.begun.elapsed().as_secs_f64() * 1e3;
        tracing::debug!(operation = %self.operation, ms, "{what}");
    }

    pub(super) fn check_cancelled(&self) -> Result<(), String> {
        if self.cancel.is_cancelled() {
            Err("it was cancelled".to_owned())
        } else {
            Ok(())
        }
    }

    pub(super) async fn capture(
        &mut self,
        state: &State,
        operation: &Operation,
        afterwards: Afterwards,
        with: Option<Ticket>,
    ) -> Result<Content, String> {
        self.check_cancelled()?;
        let id = operation.vm.ok_or("it has no VM to capture")?;
        let vm = state.vms.get(&id).ok_or("the VM was deleted meanwhile")?;
        let handle = self.node.vms.get(id).ok_or("the VM has no process")?;
        let (_, stream) = self
            .prepared
            .capture
            .get_or_insert_with(|| (id, launch::stream_name(fresh_file(self.operation))))
            .clone();
        let asked = stream.clone();
        let (disk_bytes, mode) = (vm.spec.disk_bytes, engine_mode(operation.mode));
        let captured = handle
            .ask(|done| Command::Capture {
                stream: asked,
                layer: launch::layer_name(fresh_file(self.operation)),
                disk_bytes,
                mode,
                afterwards,
                with,
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
        metrics::capture(&captured.report);
        let agent = handle.guest().answers();
        let processor = self.node.fitness.processor.clone();
        content_of(&captured, &stream, agent, processor)
            .ok_or_else(|| "the capture's files have names that are no ids".to_owned())
    }

    /// Takes what is ready, starts what is not started, and loads all. Gives those that are loaded, and what became of the others.
    pub(super) async fn load(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        content: &Content,
        numbers: Vec<u32>,
    ) -> Result<(Vec<Loaded>, Vec<(u32, ChildResult)>), String> {
        let hardware = launch::snapshot_hardware(&snapshot.spec, content, &self.node.fitness);
        let mut loading = JoinSet::new();
        let (mut loaded, mut results) = (Vec::new(), Vec::new());
        if let Some((waits, _lineage)) = self.prepared.expected.take() {
            // Whatever became of it, the children's own starts tell.
            let _however_it_went = waits.await;
        }
        let stream = check(&self.node, launch::stream(content));
        // From the last on: processes are started ahead for the first, as many as there are not ready.
        for number in numbers.into_iter().rev() {
            let Some(child) = state.vms.get(&operation.id.child(number)) else {
                let deleted = "it was deleted while it was being made".to_owned();
                results.push((number, failed(deleted)));
                continue;
            };
            let paused = child.power == Power::Paused;
            if let Some(handle) = self.take_ready(child.id) {
                loaded.push((number, child.id, paused, handle));
                continue;
            }
            let hardware = match &hardware {
                Ok(hardware) => hardware.clone(),
                Err(problem) => {
                    results.push((number, failed(problem.to_string())));
                    continue;
                }
            };
            let starting = self.prepared.starting.remove(&number);
            let (node, child) = (Arc::clone(&self.node), Child::of(child));
            let (parts, stream) = (Parts::of(content), stream.clone());
            loading.spawn(async move {
                let loaded = load_child(&node, &child, hardware, &parts, stream, starting).await;
                (number, child.id, paused, loaded)
            });
        }
        // What each of them may take, from its turn on, is bounded by its machine: one that hangs ends with an error.
        loop {
            let next = tokio::select! {
                next = loading.join_next() => next,
                () = self.cancel.cancelled() => break,
            };
            let Some(result) = next else { break };
            let (number, id, paused, result) = result.map_err(|panic| panic.to_string())?;
            match result {
                Ok(handle) => loaded.push((number, id, paused, handle)),
                Err(problem) => results.push((number, failed(problem))),
            }
        }
        Ok((loaded, results))
    }

    /// Loads all, and lets them go on together: children that run compete with those that are still loading.
    async fn children(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        content: &Content,
        numbers: Vec<u32>,
    ) -> Result<Vec<(u32, ChildResult)>, String> {
        let (loaded, mut results) = self
            .load(state, operation, snapshot, content, numbers)
            .await?;
        self.note("loaded");
        failpoint::reached("operation.children-loaded");
        self.check_cancelled()?;
        let run = &*self;
        let going_on = loaded.into_iter().map(|(number, id, paused, handle)| {
            // All of them count before the first goes on.
            let one = run.node.vms.becoming().one();
            async move {
                let child = state.vms.get(&id);
                let result = match go_on(&handle, id, 1, Then::unless_paused(paused)).await {
                    Ok(at) => {
                        let became = match child {
                            Some(child) if content.agent && !paused => {
                                run.node.introduce(state, child, 1);
                                became(&handle, id, 1, one).await
                            }
                            _ => Became::default(),
                        };
                        run.went_on(at, became)
                    }
                    Err(problem) => {
                        destroy(&handle).await;
                        failed(problem)
                    }
                };
                (number, result)
            }
        });
        results.extend(join_all(going_on).await);
        Ok(results)
    }

    /// The result of one that runs since `at`.
    pub(super) fn went_on(&self, at: Instant, became: Became) -> ChildResult {
        ChildResult {
            ready_us: became
                .at
                .map_or(0, |at| (at - self.begun).as_micros() as u64),
            failed_steps: became.failed_steps,
            ..running(at - self.begun)
        }
    }

    /// One of the children that are ready, under the id of a child that has nothing here yet.
    pub(super) fn take_ready(&mut self, child: VmId) -> Option<VmHandle> {
        let (snapshot, ready) = self.prepared.ready.as_mut()?;
        let member = ready.pop()?;
        if self.node.vms.rename(member.id, child) {
            failpoint::reached("pool.taken");
            return Some(member.handle);
        }
        // An agent that was lost had come further with this child.
        self.node.pool.give_back(*snapshot, vec![member]);
        None
    }
}

/// A child that is loaded: its number, its id, whether it is to stand still, and its process.
pub(super) type Loaded = (u32, VmId, bool, VmHandle);

/// Whether and when a child has become itself.
#[derive(Debug, Default)]
pub(super) struct Became {
    at: Option<Instant>,
    failed_steps: Vec<String>,
}

/// Waits until a child that was told who it is has become that, which it goes on with also when nobody waits any more. It counts for as long as one that is becoming.
pub(super) async fn became(handle: &VmHandle, id: VmId, boot: u64, one: One) -> Became {
    let incarnation = identity::incarnation(id, boot);
    let deadline = Instant::now() + becoming::PATIENCE;
    let became = handle.guest().became(&incarnation, deadline).await;
    drop(one);
    match became {
        Some((at, failed_steps)) => Became {
            at: Some(at),
            failed_steps,
        },
        None => Became {
            at: None,
            failed_steps: vec![format!(
                "agent: the guest's agent did not answer within {} s after it went on",
                becoming::PATIENCE.as_secs()
            )],
        },
    }
}

/// Lets a loaded child go on as this boot of a VM, or stand as it does.
pub(super) async fn go_on(
    handle: &VmHandle,
    id: VmId,
    boot: u64,
    then: Then,
) -> Result<Instant, String> {
    if matches!(handle.seen().is, Is::Running { .. } | Is::Paused { .. }) {
        // It ran before an agent was lost in the middle of this.
        return Ok(Instant::now());
    }
    let name = vm_name(id);
    handle
        .ask(|done| Command::Go {
            name,
            boot,
            then,
            done,
        })
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

/// A stream that is being checked, once for all children that will load it.
pub(super) type Checking = Shared<BoxFuture<'static, Result<CheckedStream, Arc<StreamUnfit>>>>;

/// Checks a stream as soon as somebody waits for it.
pub(super) fn check(node: &Arc<Node>, stream: StreamRef) -> Checking {
    let node = Arc::clone(node);
    let check = async move {
        let checked = CheckedStream::check(&node.vms.engine().layout, stream).await;
        checked.map_err(|unfit| {
            node.store.note_unfit(&unfit);
            Arc::new(unfit)
        })
    };
    check.boxed().shared()
}

/// Loads one child, its process started first if none waits. A child that runs already is left alone.
pub(super) async fn load_child(
    node: &Arc<Node>,
    child: &Child,
    hardware: qemu::spec::Hardware,
    parts: &Parts,
    check: Checking,
    starting: Option<Starting>,
) -> Result<VmHandle, String> {
    if let Some(handle) = node.vms.get(child.id)
        && matches!(handle.seen().is, Is::Running { .. } | Is::Paused { .. })
    {
        return Ok(handle);
    }
    let waits = match starting {
        Some(starting) if starting.parts == *parts => matches!(starting.started.await, Ok(Ok(()))),
        Some(starting) => {
            // The guest made it otherwise meanwhile: what was started ahead is of no use.
            tracing::debug!(vm = %child.id, expected = ?starting.parts, captured = ?parts, "starting a child anew");
            let _ended_in_vain = starting.started.await;
            false
        }
        None => false,
    };
    let start = async {
        if !waits {
            node.fetch_image_disk(child.spec.image).await?;
            start_child(node, child, hardware, parts).await?;
        }
        Ok::<_, String>(())
    };
    let (checked, started) = tokio::join!(check, start);
    started?;
    let stream = match checked {
        Ok(stream) => stream,
        Err(unfit) => {
            // Its process waits for a stream that it will never get.
            if let Some(handle) = node.vms.get(child.id) {
                destroy(&handle).await;
            }
            return Err(chain(unfit.as_ref()));
        }
    };
    let handle = node
        .vms
        .get(child.id)
        .ok_or("it was deleted while it was being made")?;
    let _turn = node.forks.turn().await?;
    let loaded = handle.ask(|done| Command::Load { stream, done }).await;
    if let Err(problem) = loaded.map_err(|error| error.to_string()).flatten() {
        destroy(&handle).await;
        return Err(problem);
    }
    Ok(handle)
}

/// Counts what became of children.
pub(super) fn measure(results: &[(u32, ChildResult)]) {
    for (_, result) in results {
        metrics::child(
            Duration::from_micros(result.running_us),
            Duration::from_micros(result.ready_us),
            !result.error.is_empty(),
        );
    }
}

pub(super) fn running(since: Duration) -> ChildResult {
    ChildResult {
        running_us: since.as_micros() as u64,
        ready_us: 0,
        error: String::new(),
        gave_way: false,
        failed_steps: vec![],
    }
}

/// Has the process of a child that failed ended, whatever it is at, and what is here of it deleted: started anew, it begins with its
/// snapshot.
pub(super) async fn destroy(child: &VmHandle) {
    // One that is gone has nothing left.
    let _gone = child.tell(Command::Destroy).await;
}

pub(super) fn failed(error: String) -> ChildResult {
    ChildResult {
        running_us: 0,
        ready_us: 0,
        error,
        gave_way: false,
        failed_steps: vec![],
    }
}

fn content_of(
    captured: &Captured,
    stream: &StreamName,
    agent: bool,
    processor: String,
) -> Option<Content> {
    let hardware = &captured.hardware;
    let file = |name: &str| name.parse::<VmId>().ok().map(|id| id.0);
    Some(Content {
        base: file(&captured.base.0)?,
        stream: file(&stream.0)?,
        layers: captured
            .layers
            .iter()
            .map(|layer| file(&layer.0))
            .collect::<Option<_>>()?,
        accelerator: match hardware.accelerator {
            qemu::spec::Accelerator::Kvm => Accelerator::Kvm,
            qemu::spec::Accelerator::Tcg => Accelerator::Tcg,
        },
        cpu_model: hardware.cpu_model.clone(),
        processor,
        qemu_version: captured.qemu_version.clone(),
        machine: hardware.machine.name().to_owned(),
        devices: hardware
            .devices
            .iter()
            .map(|device| device.name().to_owned())
            .collect(),
        agent,
        base_bytes: captured.base_bytes,
        stream_bytes: captured.stream_bytes,
        stream_checksum: captured.stream_checksum,
        layer_bytes: captured.layer_bytes,
        safety: Safety::Memory,
        report: capture_report(&captured.report),
    })
}
