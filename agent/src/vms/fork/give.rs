//! Giving a VM away to another node. It is captured while it runs and sent ahead; then it stands still, and what has changed since follows.
//! Until the cluster knows that it lives elsewhere, a failure lets it go on here: the reconciler does that as soon as the operation has ended.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::peer::ReceiveVmRequest;
use qemu::{
    capture::Afterwards,
    console::{Mark, read_log_since},
    failpoint,
    record::LayerName,
};
use raft::{
    codec,
    state::{
        Actor, Command as Change, Content, FileId, NodeId, Operation, OperationState, Power,
        Proposal, Snapshot, State, Vm, VmId,
    },
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};

use super::{fresh_file, release, run::Run};
use crate::{
    node::Node,
    reconcile::plan::Is,
    store::Way,
    vms::{command::Command, launch, vm_name},
};

/// How often a VM is sent ahead at most: each time less has changed since the time before.
const MOST_ROUNDS: u32 = 4;
/// What took no longer than this to send needs no other round: little has changed meanwhile.
const SHORT: Duration = Duration::from_secs(1);
/// How long a node that does not answer is waited for while the VM runs.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same while it stands still, and how long it does that at most for a node that answers.
const SILENT_PATIENCE: Duration = Duration::from_secs(5);
/// See there.
const STILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a suspended VM's moment may take to come to its new node's disk.
const MOMENT_PATIENCE: Duration = Duration::from_secs(600);
/// Before a node that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks whether an agent that is away has come back.
const LOOK: Duration = Duration::from_secs(1);

impl Run {
    /// Gives a VM of this node away.
    pub(super) async fn give(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        way: Way<'_>,
    ) -> Result<(), String> {
        let id = operation.vm.ok_or("it has no VM")?;
        let vm = state.vms.get(&id).ok_or("the VM was deleted meanwhile")?;
        let to = operation.to.ok_or("it goes nowhere")?;
        if vm.power != Power::Suspended && self.node.pid_of(id) != 0 {
            return self.give_running(state, operation, snapshot, way).await;
        }
        drop(way);
        match vm.power {
            // Its new node has its moment from whoever holds it.
            Power::Suspended => self.taken_over(MOMENT_PATIENCE).await,
            _ => self.give_disk(vm, to).await,
        }
    }

    async fn give_running(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        way: Way<'_>,
    ) -> Result<(), String> {
        let id = operation.vm.ok_or("it has no VM")?;
        let vm = state.vms.get(&id).ok_or("the VM was deleted meanwhile")?;
        let to = operation.to.ok_or("it goes nowhere")?;
        if vm.power == Power::Running && self.stands_still(id) {
            // What was taken of it may be on its way, and nobody knows how far that has come.
            return Err(
                "its node's agent was lost while it stood still; it goes on there".to_owned(),
            );
        }
        self.admit(operation, &[])?;
        let mut way = Some(way);
        let mut printed = Printed::of(&self.node, id);
        for _ in 0..MOST_ROUNDS {
            let begun = Instant::now();
            let content = self
                .capture(state, operation, Afterwards::GoOn, None)
                .await?;
            failpoint::reached("move.captured-ahead");
            way = None;
            let arrival = self.arrival(to, Some(content), None);
            printed.read_on().await;
            self.hand(to, arrival, None, PATIENCE, &printed).await?;
            failpoint::reached("move.sent-ahead");
            self.forget_capture().await;
            if begun.elapsed() < SHORT {
                break;
            }
        }
        drop(way);
        let node = Arc::clone(&self.node);
        let _way = node.store.give_way();
        let content = self
            .capture(state, operation, Afterwards::Hold, None)
            .await?;
        let captured = Instant::now();
        failpoint::reached("move.stopped");
        let before = content.report.agent_pause_us + content.report.write_us;
        let stopped = captured.checked_sub(Duration::from_micros(before));
        let stopped = stopped.filter(|_| vm.power == Power::Running);
        self.note("captured for good");
        tracing::debug!(snapshot = %snapshot.id, bytes = content.stream_bytes, "a VM stands still to be moved");
        let arrival = self.arrival(to, Some(content), None);
        let last = Some(stopped.unwrap_or(captured));
        printed.read_on().await;
        let over = async {
            self.hand(to, arrival, last, SILENT_PATIENCE, &printed)
                .await?;
            failpoint::reached("move.handed");
            self.taken_over(STILL_PATIENCE).await
        };
        let over = timeout(STILL_PATIENCE, over).await;
        over.unwrap_or_else(|_| Err(not_taken_over(STILL_PATIENCE)))
    }

    fn stands_still(&self, vm: VmId) -> bool {
        let seen = self.node.vms.get(vm).map(|handle| handle.seen().is);
        matches!(seen, Some(Is::Paused { .. }))
    }

    /// Gives away what there is of a VM that has no process.
    async fn give_disk(&mut self, vm: &Vm, to: NodeId) -> Result<(), String> {
        let disk = match self.node.vms.get(vm.id) {
            Some(handle) => {
                let layer = launch::layer_name(fresh_file(self.operation));
                let disk_bytes = vm.spec.disk_bytes;
                let frozen = handle.ask(|done| Command::FreezeDisk {
                    layer,
                    disk_bytes,
                    done,
                });
                frozen.await.map_err(|error| error.to_string())??
            }
            None => None,
        };
        failpoint::reached("move.disk-frozen");
        let disk = match disk {
            Some(layers) => Some(ids(&layers)?),
            // It came here without a process, and never had one.
            None => vm.disk.clone(),
        };
        let arrival = self.arrival(to, None, disk);
        let printed = Printed::of(&self.node, vm.id);
        self.hand(to, arrival, Some(Instant::now()), PATIENCE, &printed)
            .await?;
        self.taken_over(PATIENCE).await
    }

    /// What its new node will have the cluster know.
    fn arrival(&self, node: NodeId, content: Option<Content>, disk: Option<Vec<FileId>>) -> Change {
        Change::Arrive {
            operation: self.operation,
            node,
            content,
            disk,
        }
    }

    /// What was captured was given away, or is of no use: the next capture is another one.
    async fn forget_capture(&mut self) {
        if let Some(capture) = self.prepared.capture.take() {
            release(&self.node, capture).await;
        }
    }

    /// Has the new node take what there is. `last`: since when the VM stands still, when nothing follows.
    async fn hand(
        &self,
        to: NodeId,
        arrival: Change,
        last: Option<Instant>,
        patience: Duration,
        printed: &Printed,
    ) -> Result<(), String> {
        let state = self.node.state();
        let proposal = Proposal {
            request: None,
            by: Actor::cluster(),
            now: self.node.now(),
            command: arrival,
        };
        let arrival = codec::encode_proposal(&proposal, state.version);
        let mut silent_since = None;
        loop {
            let request = ReceiveVmRequest {
                operation: self.operation.to_string(),
                arrival: arrival.clone().into(),
                last: last.is_some(),
                stopped_us: last.map_or(0, |since| since.elapsed().as_micros() as u64),
                printed: printed.new.clone(),
                printed_before: printed.before,
            };
            let handed = tokio::select! {
                handed = self.handed_once(to, request) => handed,
                () = self.is_over() => return Ok(()),
                () = self.cancel.cancelled() => return Err("it was cancelled".to_owned()),
            };
            let refused = match handed {
                Ok(()) => return Ok(()),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    return Err(status.message().to_owned());
                }
                Err(status) => status,
            };
            let since = *silent_since.get_or_insert_with(Instant::now);
            if since.elapsed() > patience {
                let name = state.nodes.get(&to).map_or("?", |node| node.name.as_str());
                return Err(format!(
                    "node {name} does not take it: {}",
                    refused.message()
                ));
            }
            sleep(PAUSE).await;
        }
    }

    async fn handed_once(&self, to: NodeId, request: ReceiveVmRequest) -> Result<(), Status> {
        let client = self.node.peers.client(to).await;
        let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
        client.receive_vm(request).await.map(drop)
    }

    /// Returns once the operation has ended, or is another node's.
    async fn is_over(&self) {
        while self.taken_over(LOOK).await.is_err() {
            if self.cancel.is_cancelled() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the operation has ended, or the VM lives elsewhere.
    async fn taken_over(&self, patience: Duration) -> Result<(), String> {
        let is_over = |state: &Arc<State>| {
            let found = state.operations.get(&self.operation);
            let goes_on = found.is_some_and(|operation| {
                operation.state == OperationState::Open && !operation.has_arrived()
            });
            (!goes_on).then_some(())
        };
        let over = self.node.wait_for(Instant::now() + patience, is_over);
        let over = tokio::select! {
            over = over => over,
            () = self.cancel.cancelled() => return Err("it was cancelled".to_owned()),
        };
        over.ok_or_else(|| not_taken_over(patience))
    }
}

/// What a VM prints on its console, as it is sent.
struct Printed {
    log: PathBuf,
    mark: Mark,
    before: u64,
    new: Bytes,
}

impl Printed {
    fn of(node: &Node, vm: VmId) -> Self {
        let layout = &node.vms.engine().layout;
        Self {
            log: layout.vm(&vm_name(vm)).console_log(),
            mark: Mark::default(),
            before: 0,
            new: Bytes::new(),
        }
    }

    /// Has what came since the last time be sent next. Nothing to fail for.
    async fn read_on(&mut self) {
        self.before += self.new.len() as u64;
        let (log, mut mark) = (self.log.clone(), self.mark);
        let read = spawn_blocking(move || read_log_since(&log, &mut mark).map(|new| (new, mark)));
        match read.await.map_err(io::Error::other).flatten() {
            Ok((new, mark)) => (self.new, self.mark) = (new.into(), mark),
            Err(error) => {
                self.new.clear();
                tracing::warn!(log = %self.log.display(), %error, "what a VM printed does not go with it");
            }
        }
    }
}

fn not_taken_over(patience: Duration) -> String {
    format!(
        "its new node did not take it over within {} s",
        patience.as_secs()
    )
}

fn ids(layers: &[LayerName]) -> Result<Vec<FileId>, String> {
    let id = |layer: &LayerName| layer.0.parse::<VmId>().map(|id| id.0);
    let ids: Result<Vec<FileId>, _> = layers.iter().map(id).collect();
    ids.map_err(|error| error.to_string())
}
