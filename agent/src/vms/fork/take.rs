//! Taking a VM over that another node gives away. What it is made of comes from there; a process is loaded with it under an id of its own, as
//! for a reset. Then the cluster is told that the VM lives here: that is the one step. Before it nothing here was ever the VM, and whoever finds
//! it throws it away. After it the operation is carried out to its end, also by an agent that comes later.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use qemu::{console::keep_before, failpoint, machine::Shape};
use raft::state::{
    CHILD_BYTES, ChildResult, Command as Change, Content, FileId, ObjectId, Operation, OperationId,
    Power, Snapshot, SnapshotId, Source, State, Vm, VmId,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::Instant,
};

use super::{
    Forks, Parts, Starting,
    run::{Run, check, destroy, failed, go_on, load_child, running},
};
use crate::{
    admission::Need,
    errors::chain,
    store::Way,
    transfer::{Goods, Stock, Until},
    vms::{
        VmHandle,
        command::{Command, Then},
        launch::{self, Child, Kind},
        vm_name,
    },
};

/// How long what an earlier stay of a VM has left may take to be cleared away.
const CLEARED_WITHIN: Duration = Duration::from_secs(20);
/// How long a moment may take to come.
const MOMENT_PATIENCE: Duration = Duration::from_secs(600);

/// What a node that gives a VM away has sent.
#[derive(Debug)]
pub struct Arrival {
    /// What it stands at; `None` when it has no process.
    pub content: Option<Content>,
    /// The layers of its disk, when it has none.
    pub disk: Option<Vec<FileId>>,
    /// Whether nothing follows.
    pub last: bool,
    /// Since when it stands still.
    pub stopped: Option<Instant>,
    /// What it has printed since what was sent of that before.
    pub printed: Bytes,
    /// Bytes of that.
    pub printed_before: u64,
}

/// The same, and who waits for it.
#[derive(Debug)]
pub struct Sent {
    /// What it is.
    pub arrival: Arrival,
    /// Answered when it is here.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// Has what is sent for an operation come to whoever carries it out, until it is dropped.
struct Expecting<'a> {
    forks: &'a Forks,
    operation: OperationId,
}

impl Drop for Expecting<'_> {
    fn drop(&mut self) {
        self.forks.expected().remove(&self.operation);
    }
}

impl Forks {
    fn expected(&self) -> MutexGuard<'_, BTreeMap<OperationId, mpsc::Sender<Sent>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, operation: OperationId) -> (Expecting<'_>, mpsc::Receiver<Sent>) {
        let (sender, receiver) = mpsc::channel(1);
        self.expected().insert(operation, sender);
        let forks = self;
        (Expecting { forks, operation }, receiver)
    }

    /// Who carries out the taking over of a VM; `None` while nobody does.
    pub fn taker(&self, operation: OperationId) -> Option<mpsc::Sender<Sent>> {
        self.expected().get(&operation).cloned()
    }
}

/// What there is of a VM that comes, before it is here.
#[derive(Default)]
struct Coming {
    stock: Stock,
    /// A process that waits for what is to be loaded.
    waiting: Option<VmHandle>,
    /// What it has printed where it was.
    printed: Vec<u8>,
}

impl Run {
    /// Takes a VM over.
    pub(super) async fn take(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        way: Way<'_>,
    ) -> Result<(), String> {
        let id = operation.vm.ok_or("it has no VM")?;
        // It is another node's turn.
        drop(way);
        if operation.has_arrived() {
            return self.finish(state, operation, snapshot).await;
        }
        let vm = state.vms.get(&id).ok_or("the VM was deleted meanwhile")?;
        self.cleared(id).await?;
        let image = self.node.fetch_image_disk(vm.spec.image);
        self.unless_cancelled(image).await??;
        if let (Power::Suspended, Source::Snapshot(moment)) = (vm.power, vm.source) {
            return self.take_moment(state, moment).await;
        }
        let node = Arc::clone(&self.node);
        let (_expecting, mut sent) = node.forks.expect(self.operation);
        let mut coming = Coming::default();
        let taken = self.take_all(vm, operation, &mut sent, &mut coming).await;
        if taken.is_err()
            && let Some(scrap) = self.node.vms.get(self.operation.child(0))
        {
            destroy(&scrap).await;
        }
        taken
    }

    /// Takes what is sent, until nothing follows.
    async fn take_all(
        &mut self,
        vm: &Arc<Vm>,
        operation: &Operation,
        sent: &mut mpsc::Receiver<Sent>,
        coming: &mut Coming,
    ) -> Result<(), String> {
        loop {
            let next = self.unless_cancelled(sent.recv()).await?;
            let Sent { arrival, done } = next.ok_or("nobody sends it")?;
            // Something may be sent a second time.
            coming.printed.truncate(arrival.printed_before as usize);
            coming.printed.extend_from_slice(&arrival.printed);
            let ready = self.get_ready(vm, operation, coming, &arrival);
            let ready = self.unless_cancelled(ready).await.flatten();
            let taken = match (ready, arrival.last) {
                (Ok(_), false) => Ok(()),
                (Ok(handle), true) => self.arrive(vm, operation, &arrival, handle).await,
                (Err(problem), _) => Err(problem),
            };
            // Whoever sent it may be gone.
            let _gone = done.send(taken.clone());
            if taken.is_err() || arrival.last {
                return taken;
            }
        }
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        tokio::select! {
            done = work => Ok(done),
            () = self.cancel.cancelled() => Err("it was cancelled".to_owned()),
        }
    }

    /// Waits until nothing is here of an earlier stay, and everybody knows that.
    async fn cleared(&self, vm: VmId) -> Result<(), String> {
        let here = self.node.id();
        let is_cleared = |state: &Arc<State>| {
            let left = state.tombstones.get(&ObjectId::Left(vm));
            let is_left = left.is_some_and(|left| left.nodes.contains(&here));
            (!is_left && self.node.vms.get(vm).is_none()).then_some(())
        };
        let deadline = Instant::now() + CLEARED_WITHIN;
        let cleared = self.unless_cancelled(self.node.wait_for(deadline, is_cleared));
        cleared.await?.ok_or_else(|| {
            "its new node has something of it from before that is not cleared away".to_owned()
        })
    }

    /// Has what was sent be here; of what stands still with its process, as a process that stands at that moment.
    async fn get_ready(
        &self,
        vm: &Arc<Vm>,
        operation: &Operation,
        coming: &mut Coming,
        arrival: &Arrival,
    ) -> Result<Option<VmHandle>, String> {
        let (from, id) = (operation.node, operation.snapshot);
        let stock = &mut coming.stock;
        let Some(content) = &arrival.content else {
            let goods = Goods::Disk(arrival.disk.as_deref().unwrap_or_default());
            let node = &self.node;
            node.stock_up(stock, id, vm.lineage, goods, from).await?;
            node.layers_on_disk(goods).await?;
            return Ok(None);
        };
        let hardware = launch::snapshot_hardware(&vm.spec, content, &self.node.fitness);
        let hardware = hardware.map_err(|unfit| unfit.to_string())?;
        if !arrival.last {
            let goods = Goods::Ahead(content);
            let node = &self.node;
            node.stock_up(stock, id, vm.lineage, goods, from).await?;
            node.layers_on_disk(goods).await?;
            self.note("what is sent ahead is here");
            failpoint::reached("move.ahead-here");
            if coming.waiting.is_none() {
                coming.waiting = Some(self.waiting(vm, content, hardware).await?);
            }
            return Ok(None);
        }
        let goods = Goods::Moment(content);
        self.node
            .stock_up(stock, id, vm.lineage, goods, from)
            .await?;
        self.note("its moment is here");
        failpoint::reached("move.moment-here");
        let starting = coming
            .waiting
            .take()
            .map(|handle| self.shape(vm, content, handle));
        let child = self.child(vm);
        let (node, parts) = (&self.node, Parts::of(content));
        let stream = check(node, launch::stream(content));
        let loading = load_child(node, &child, hardware, &parts, stream, starting);
        let (loaded, synced) = tokio::join!(loading, node.layers_on_disk(goods));
        synced?;
        self.note("loaded");
        let handle = loaded?;
        self.keep_printed(std::mem::take(&mut coming.printed)).await;
        Ok(Some(handle))
    }

    /// Has what it printed where it was come before what it prints here. Nothing to fail for: it stands still.
    async fn keep_printed(&self, printed: Vec<u8>) {
        let layout = &self.node.vms.engine().layout;
        let log = layout.vm(&vm_name(self.operation.child(0))).console_log();
        let kept = spawn_blocking(move || keep_before(&log, &printed)).await;
        if let Err(error) = kept.map_err(io::Error::other).flatten() {
            tracing::warn!(operation = %self.operation, %error, "what a VM printed on its old node is lost");
        }
    }

    fn child(&self, vm: &Vm) -> Child {
        Child {
            id: self.operation.child(0),
            boot: vm.boot,
            spec: vm.spec.clone(),
        }
    }

    /// A process that waits for what it is to be: its start is no part of how long the VM stands still.
    async fn waiting(
        &self,
        vm: &Vm,
        content: &Content,
        hardware: qemu::spec::Hardware,
    ) -> Result<VmHandle, String> {
        let node = &self.node;
        node.admit(Need {
            memory: CHILD_BYTES,
            disk: 0,
        })?;
        let base = launch::base_name(content.base);
        let lineage = node.vms.lineage_of(&base).map_err(|error| chain(&error))?;
        let kind = Kind::of(&node.state(), &vm.spec, hardware, lineage);
        let kind = kind.map_err(|unfit| unfit.to_string())?;
        let id = self.operation.child(0);
        let handle = node.vms.get_or_create(id, lineage);
        let handle = handle.map_err(|error| chain(&error))?;
        let launch = launch::shapeless(id, kind, handle.place());
        let started = handle.ask(|done| Command::Prestart {
            launch: Box::new(launch),
            done,
        });
        started.await.map_err(|error| error.to_string())??;
        self.note("a process waits for it");
        Ok(handle)
    }

    /// Has that process be one that waits for its stream.
    fn shape(&self, vm: &Vm, content: &Content, handle: VmHandle) -> Starting {
        let parts = Parts::of(content);
        let shape = Shape {
            base: parts.base.clone(),
            below: parts.layers.clone(),
            disk_bytes: vm.spec.disk_bytes,
        };
        let started = self.node.tasks.spawn(async move {
            let shaped = handle.ask(|done| Command::Shape {
                shape: Box::new(shape),
                done,
            });
            shaped.await.map_err(|error| error.to_string())?
        });
        Starting { parts, started }
    }

    /// Has the cluster know that the VM lives here, and lets it go on.
    async fn arrive(
        &self,
        vm: &Arc<Vm>,
        operation: &Operation,
        arrival: &Arrival,
        handle: Option<VmHandle>,
    ) -> Result<(), String> {
        failpoint::reached("move.ready");
        let told = self.node.report(Change::Arrive {
            operation: self.operation,
            node: self.node.id(),
            content: arrival.content.clone(),
            disk: arrival.disk.clone(),
        });
        match told.await {
            Some(Ok(())) => {}
            Some(Err(refused)) => return Err(refused.to_string()),
            None => return Err("its agent ends".to_owned()),
        }
        self.note("it lives here");
        failpoint::reached("move.arrived");
        if let Some(handle) = handle {
            let result = self
                .go_on_here(vm, operation, &handle, arrival.stopped)
                .await;
            self.report(vec![(0, result)]).await;
        }
        Ok(())
    }

    /// Has a loaded process be the VM.
    async fn go_on_here(
        &self,
        vm: &Arc<Vm>,
        operation: &Operation,
        handle: &VmHandle,
        stopped: Option<Instant>,
    ) -> ChildResult {
        if !self.node.vms.rename(self.operation.child(0), vm.id) {
            destroy(handle).await;
            return lost("there is something of it here already");
        }
        let then = match operation.paused {
            true => Then::Pause,
            false => Then::Arrive,
        };
        match go_on(handle, vm.id, vm.boot, then).await {
            Ok(at) => {
                failpoint::reached("move.went-on");
                self.node.introduce(&self.node.state(), vm, vm.boot);
                if !self.node.state().vms.contains_key(&vm.id) {
                    // Deleted meanwhile, perhaps when there was nothing of it here.
                    destroy(handle).await;
                }
                running(stopped.map_or(Duration::ZERO, |stopped| at - stopped))
            }
            Err(problem) => {
                destroy(handle).await;
                lost(&problem)
            }
        }
    }

    /// Carries on with a VM that lives here, of which an agent was lost before it went on, or before it said so.
    async fn finish(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
    ) -> Result<(), String> {
        let id = operation.vm.ok_or("it has no VM")?;
        let result = match (state.vms.get(&id), &snapshot.content) {
            (None, _) => failed("it was deleted".to_owned()),
            (Some(_), _) if self.node.vms.get(id).is_some() => running(Duration::ZERO),
            (Some(vm), Some(content)) => {
                let loaded = self.load_again(vm, snapshot, content).await;
                match loaded {
                    Ok(handle) => self.go_on_here(vm, operation, &handle, None).await,
                    Err(_) if self.node.cancel.is_cancelled() => return Ok(()),
                    Err(problem) => lost(&problem),
                }
            }
            (Some(_), None) => lost("its moment is not known"),
        };
        self.report(vec![(0, result)]).await;
        Ok(())
    }

    async fn load_again(
        &self,
        vm: &Vm,
        snapshot: &Snapshot,
        content: &Content,
    ) -> Result<VmHandle, String> {
        let node = &self.node;
        let hardware = launch::snapshot_hardware(&vm.spec, content, &node.fitness);
        let hardware = hardware.map_err(|unfit| unfit.to_string())?;
        let obtained = self.unless_cancelled(node.obtain(snapshot.id, content, Until::Whole));
        let _kept = obtained.await??;
        node.layers_on_disk(Goods::Moment(content)).await?;
        let stream = check(node, launch::stream(content));
        let (child, parts) = (self.child(vm), Parts::of(content));
        load_child(node, &child, hardware, &parts, stream, None).await
    }

    /// Takes a suspended VM over: its moment is a snapshot, which is to be here for good.
    async fn take_moment(&self, state: &Arc<State>, moment: SnapshotId) -> Result<(), String> {
        let snapshot = state.snapshots.get(&moment).ok_or("its moment is gone")?;
        let content = snapshot.content.as_ref().ok_or("its moment is not ready")?;
        let hardware = launch::snapshot_hardware(&snapshot.spec, content, &self.node.fitness);
        hardware.map_err(|unfit| unfit.to_string())?;
        let obtained = self.unless_cancelled(self.node.obtain(moment, content, Until::Whole));
        let _kept = obtained.await??;
        let here = self.node.id();
        let is_held = |state: &Arc<State>| {
            let found = state.snapshots.get(&moment);
            found
                .is_some_and(|found| found.nodes.contains(&here))
                .then_some(())
        };
        let held = self
            .node
            .wait_for(Instant::now() + MOMENT_PATIENCE, is_held);
        self.unless_cancelled(held)
            .await?
            .ok_or("its moment did not come to its new node's disk")?;
        failpoint::reached("move.moment-held");
        let told = self.node.report(Change::Arrive {
            operation: self.operation,
            node: here,
            content: None,
            disk: Some(content.layers.clone()),
        });
        match told.await {
            Some(Err(refused)) => Err(refused.to_string()),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

/// A move that failed when the VM had left its node.
fn lost(problem: &str) -> ChildResult {
    ChildResult {
        gave_way: true,
        ..failed(format!(
            "it was moved, and did not go on there ({problem}); starting it tries again"
        ))
    }
}
