//! Merging layers of a running machine's disk, so that its chain stays short. The guest runs on, and captures go on.
//!
//! QEMU itself copies: a new layer is made above the newest of the run, and a job (`block-stream`) pulls into it what is above the
//! base. Nothing refers to it meanwhile. When it is whole it is closed for writing, and the layer above the run gets it as its
//! backing file. Both chains mean the same, so the one that the record has is right at every moment.
//!
//! Whoever owns the machine waits for [`Machine::happened`] and then says [`Machine::go_on_merging`].

mod plan;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    sync::Arc,
};

use qapi::qmp::{self, Event, JobStatus};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

pub use self::plan::plan_merge;
use crate::{
    disk, failpoint,
    machine::{Ending, Machine, MachineError, block_nodes, system},
    memory::allocated_bytes,
    qmp::{BlockdevAdd, BlockdevReopen, QmpError},
    record::{LayerName, Merge, Stage, StreamName, VmRecord},
    spec::{DiskNode, backed_node},
};

/// How many frozen layers a machine that was captured may have before some are merged: its forks get one more.
pub const OWN_LIMIT: usize = 4;
/// The same for one that has them all from its parent. More, since the parent is at merging them too, and a hundred children
/// need not copy the same bytes a hundred times.
pub const INHERITED_LIMIT: usize = 6;
/// How fast a merge copies, bytes a second: guests are not to feel it.
const SPEED: i64 = 64 << 20;

/// How far a machine is with merging.
#[derive(Debug, Default)]
pub(crate) struct Merging {
    phase: Phase,
    /// Held while a job runs: one machine of a node after the other.
    turn: Option<OwnedSemaphorePermit>,
    /// Whether the disk moved on: then it is this machine that makes the chain long.
    captured: bool,
    /// The chain that could not be merged: another try comes with another chain.
    failed: Vec<LayerName>,
    /// Captures whose snapshots nobody knows of yet.
    pinned: BTreeSet<StreamName>,
    /// Layers that were merged and may be part of such snapshots.
    replaced: Vec<(BTreeSet<StreamName>, Vec<LayerName>)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// For its turn.
    Waiting,
    /// The job is under way.
    Running,
    /// It has ended, however it went.
    Concluded,
}

/// What a machine's owner is told.
#[derive(Debug)]
pub enum Happened {
    /// Its process ended.
    Ended(Result<Ending, MachineError>),
    /// A merge can go on.
    Merge,
}

impl Merging {
    /// Looks at an event. `merge` is the one that is under way.
    pub(crate) fn note(&mut self, event: &Event, merge: Option<&Merge>) {
        if let (Event::JOB_STATUS_CHANGE { data, .. }, Some(merge)) = (event, merge)
            && data.status == JobStatus::concluded
            && data.id == job(&merge.into)
        {
            self.phase = Phase::Concluded;
        }
    }

    /// A capture was finished.
    pub(crate) fn captured(&mut self, stream: &StreamName, layer_moved: bool) {
        self.captured |= layer_moved;
        self.pinned.insert(stream.clone());
    }
}

impl Machine {
    /// Begins to wait for a turn if the chain is too long, unless a merge of it just failed. Takes no time.
    pub fn want_merge(&mut self) {
        if self.merging.phase == Phase::Idle
            && self.record.stage == Stage::Running
            && self.merging.failed != self.record.layers
            && self.frozen().len() > self.merge_limit()
        {
            self.merging.phase = Phase::Waiting;
        }
    }

    /// Whether a merge is under way, or waits for its turn.
    pub fn is_merging(&self) -> bool {
        self.merging.phase != Phase::Idle
    }

    fn merge_limit(&self) -> usize {
        if self.merging.captured {
            OWN_LIMIT
        } else {
            INHERITED_LIMIT
        }
    }

    fn frozen(&self) -> &[LayerName] {
        self.record.layers.get(1..).unwrap_or_default()
    }

    /// Waits until the process has ended, or a merge can go on. Can be given up and called again.
    pub async fn happened(&mut self) -> Happened {
        loop {
            // While a capture is prepared, children may wait on the chain as it is.
            if self.merging.phase == Phase::Concluded && self.prepared.is_none() {
                return Happened::Merge;
            }
            let waiting = self.merging.phase == Phase::Waiting;
            let turns = self.engine.overlays.turns();
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.note(&event),
                    // The session ends when the process does.
                    None => return Happened::Ended(self.ended().await),
                },
                turn = Arc::clone(&turns).acquire_owned(), if waiting => {
                    // The semaphore is never closed.
                    self.merging.turn = turn.ok();
                    return Happened::Merge;
                }
            }
        }
    }

    /// Does what is next of a merge: begins it, or puts what it made into the chain. `name` is for a new layer, one that was never
    /// used. After a failure the old chain goes on; the error is to be told.
    pub async fn go_on_merging(&mut self, name: LayerName) -> Result<(), MachineError> {
        let result = match self.merging.phase {
            Phase::Idle | Phase::Running => return Ok(()),
            Phase::Waiting => self.begin_merge(name).await,
            Phase::Concluded => self.finish_merge().await,
        };
        match result {
            Ok(true) => self.merging.phase = Phase::Running,
            Ok(false) => self.rest(),
            // Nothing is known of it: whoever adopts the machine sees how far it has come.
            Err(
                error @ MachineError::Qmp(QmpError::Connection { .. } | QmpError::TimedOut { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => {
                self.merging.failed = self.record.layers.clone();
                self.rest();
                self.drop_merge().await?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn rest(&mut self) {
        self.merging.phase = Phase::Idle;
        self.merging.turn = None;
    }

    /// Starts the job, if the chain is still too long.
    async fn begin_merge(&mut self, name: LayerName) -> Result<bool, MachineError> {
        let Some(range) = self.plan()? else {
            return Ok(false);
        };
        if self.engine.layout.layer(&name).exists() {
            return Err(MachineError::NotReady(
                "a merged layer's name was used before",
            ));
        }
        let bytes = self.disk_bytes().await?;
        let run = self.frozen()[range.clone()].to_vec();
        let above_base = self.frozen().get(range.end).map(disk::layer_node);
        let image = disk::image_node(self.record.image_disk.as_deref());
        let base = above_base.or(image).map(|disk| disk.node);
        let newest = disk::layer_node(&run[0]).node;
        tracing::debug!(vm = %self.dir.path().display(), layers = run.len(), into = %name, "merging layers");

        self.engine.overlays.prepare(bytes).await?;
        // Before the file is there: it is nobody's layer, and must not be collected.
        self.record.merge = Some(Merge {
            into: name.clone(),
            layers: run,
        });
        self.record.save(&self.dir)?;
        failpoint::reached("merge.saved");
        self.engine
            .overlays
            .create(&name, bytes, self.record.user)?;
        failpoint::reached("merge.layer-made");
        let node = disk::layer_node(&name);
        self.qmp
            .run(BlockdevAdd(backed_node(&node, true, Some(&newest))))
            .await?;
        failpoint::reached("merge.layer-open");
        self.qmp
            .run(qmp::block_stream {
                auto_dismiss: Some(false),
                auto_finalize: None,
                // No backing path in the file: the chain comes from the record.
                backing_file: base.as_ref().map(|_| String::new()),
                backing_mask_protocol: None,
                base: None,
                base_node: base,
                bottom: None,
                filter_node_name: None,
                job_id: Some(job(&name)),
                on_error: None,
                speed: Some(SPEED),
                device: node.node,
            })
            .await?;
        failpoint::reached("merge.job-begun");
        Ok(true)
    }

    fn plan(&self) -> Result<Option<Range<usize>>, MachineError> {
        let sizes = self
            .frozen()
            .iter()
            .map(|layer| {
                Ok(allocated_bytes(&fs::metadata(
                    self.engine.layout.layer(layer),
                )?))
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(system("cannot look at the disk's layers"))?;
        Ok(plan_merge(&sizes, self.merge_limit()))
    }

    /// The disk's size as the guest sees it.
    async fn disk_bytes(&self) -> Result<u64, MachineError> {
        let devices = self.qmp.run(qmp::query_block {}).await?;
        devices
            .into_iter()
            .find_map(|device| u64::try_from(device.inserted?.image.base.virtual_size).ok())
            .ok_or(MachineError::NotReady("the machine has no disk"))
    }

    /// Puts a merged layer in the place of those it was made of.
    async fn finish_merge(&mut self) -> Result<bool, MachineError> {
        let Some(merge) = self.record.merge.clone() else {
            return Ok(false);
        };
        failpoint::reached("merge.job-ended");
        let id = job(&merge.into);
        let jobs = self.qmp.run(qmp::query_jobs {}).await?;
        match jobs.into_iter().find(|known| known.id == id) {
            Some(known) if known.status != JobStatus::concluded => return Ok(true),
            Some(qmp::JobInfo {
                error: Some(reason),
                ..
            }) => return Err(MachineError::Merge(reason)),
            Some(_) => {}
            None => return Err(MachineError::NotReady("the merge's job is gone")),
        }
        let at = position(&self.record.layers, &merge.layers)
            .filter(|at| *at > 0)
            .ok_or(MachineError::NotReady(
                "the merged layers are not in the chain",
            ))?;
        let end = at + merge.layers.len();
        let below = self
            .record
            .layers
            .get(end)
            .map(disk::layer_node)
            .or_else(|| disk::image_node(self.record.image_disk.as_deref()));
        let (merged, above) = (
            disk::layer_node(&merge.into),
            disk::layer_node(&self.record.layers[at - 1]),
        );
        self.reopen(&merged, false, below.as_ref()).await?;
        failpoint::reached("merge.layer-reopened");
        self.close_for_writing(&merge.into).await?;
        failpoint::reached("merge.layer-closed");
        self.reopen(&above, at == 1, Some(&merged)).await?;
        failpoint::reached("merge.in-chain");

        self.record.layers.splice(at..end, [merge.into.clone()]);
        self.record.merge = None;
        if !self.merging.pinned.is_empty() {
            let pinned = self.merging.pinned.clone();
            self.merging.replaced.push((pinned, merge.layers.clone()));
        }
        self.record.replaced = replaced(&self.merging.replaced);
        self.record.save(&self.dir)?;
        failpoint::reached("merge.chain-saved");
        tracing::debug!(vm = %self.dir.path().display(), layers = self.record.layers.len(), "layers were merged");

        self.qmp.run(qmp::job_dismiss { id }).await?;
        failpoint::reached("merge.job-dismissed");
        self.remove_nodes(
            merge
                .layers
                .iter()
                .map(|layer| disk::layer_node(layer).node)
                .collect(),
        )
        .await?;
        failpoint::reached("merge.layers-closed");
        Ok(false)
    }

    async fn reopen(
        &self,
        disk: &DiskNode,
        writable: bool,
        backing: Option<&DiskNode>,
    ) -> Result<(), MachineError> {
        let backing = backing.map(|disk| disk.node.as_str());
        let options = vec![backed_node(disk, writable, backing)];
        self.qmp.run(BlockdevReopen { options }).await?;
        Ok(())
    }

    async fn close_for_writing(&self, name: &LayerName) -> Result<(), MachineError> {
        let (overlays, name) = (self.engine.overlays.clone(), name.clone());
        let path = self.engine.layout.layer(&name);
        let closed = spawn_blocking(move || {
            File::open(&path)?.sync_all()?;
            overlays.freeze(&name)
        });
        closed
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(system("cannot close a merged layer"))
    }

    /// Throws away a merge that did not come to its end: nothing refers to its layer.
    async fn drop_merge(&mut self) -> Result<(), MachineError> {
        let Some(merge) = self.record.merge.take() else {
            return Ok(());
        };
        let id = job(&merge.into);
        let jobs = self.qmp.run(qmp::query_jobs {}).await?;
        if jobs.iter().any(|known| known.id == id) {
            self.qmp.run(qmp::job_dismiss { id }).await?;
        }
        self.remove_nodes(vec![disk::layer_node(&merge.into).node])
            .await?;
        match fs::remove_file(self.engine.layout.layer(&merge.into)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, layer = %merge.into, "a layer that was not finished stays until the next collection");
            }
            _ => {}
        }
        Ok(self.record.save(&self.dir)?)
    }

    /// Lets QEMU close nodes that nothing is above of, those that are there. Nodes that came nested in another's options go with
    /// that; what is refused stays open and does no harm.
    async fn remove_nodes(&self, names: Vec<String>) -> Result<(), MachineError> {
        let mut names = names;
        let mut progress = true;
        while progress && !names.is_empty() {
            let there = self.nodes().await?;
            names.retain(|name| there.contains(name));
            let before = names.len();
            let mut refused = Vec::new();
            for node_name in names {
                let command = qmp::blockdev_del {
                    node_name: node_name.clone(),
                };
                match self.qmp.run(command).await {
                    Ok(_) => {}
                    Err(QmpError::Refused { reason, .. }) => {
                        tracing::debug!(node_name, reason, "a block node stays open");
                        refused.push(node_name);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            progress = refused.len() < before;
            names = refused;
        }
        Ok(())
    }

    /// The names of the disk's nodes.
    async fn nodes(&self) -> Result<BTreeSet<String>, MachineError> {
        let mut nodes = block_nodes(&self.qmp).await?;
        nodes.retain(|name| name.starts_with(disk::NODE_PREFIX));
        Ok(nodes)
    }

    /// Takes up what an earlier agent was at: its job runs on, has ended, or never began.
    pub(crate) async fn adopt_merge(&mut self) -> Result<(), MachineError> {
        // Captures that were not made known are made anew.
        let changed = !self.record.replaced.is_empty();
        self.record.replaced.clear();
        if changed {
            self.record.save(&self.dir)?;
        }
        let ours = self.record.merge.as_ref().map(|merge| job(&merge.into));
        let mut phase = None;
        for known in self.qmp.run(qmp::query_jobs {}).await? {
            let concluded = known.status == JobStatus::concluded;
            if Some(&known.id) == ours.as_ref() {
                phase = Some(if concluded {
                    Phase::Concluded
                } else {
                    Phase::Running
                });
            } else if concluded {
                self.qmp.run(qmp::job_dismiss { id: known.id }).await?;
            }
        }
        match phase {
            Some(phase) => self.merging.phase = phase,
            None => self.drop_merge().await?,
        }
        let wanted = wanted_nodes(&self.record);
        let strays = self.nodes().await?.difference(&wanted).cloned().collect();
        self.remove_nodes(strays).await
    }

    /// Says that a capture's snapshot is known, or will never be: what it refers to is not this machine's matter any more.
    pub fn release(&mut self, stream: &StreamName) -> Result<(), MachineError> {
        self.forget_prepared(stream);
        self.merging.pinned.remove(stream);
        for (pinned, _) in &mut self.merging.replaced {
            pinned.remove(stream);
        }
        self.merging
            .replaced
            .retain(|(pinned, _)| !pinned.is_empty());
        let left = replaced(&self.merging.replaced);
        if left != self.record.replaced {
            self.record.replaced = left;
            self.record.save(&self.dir)?;
        }
        Ok(())
    }
}

/// Turns for the machines of a node: one merges at a time.
pub(crate) fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

fn replaced(all: &[(BTreeSet<StreamName>, Vec<LayerName>)]) -> Vec<LayerName> {
    all.iter().flat_map(|(_, layers)| layers).cloned().collect()
}

fn wanted_nodes(record: &VmRecord) -> BTreeSet<String> {
    let disk = record.layers_with_next();
    let merge = record.merge.iter().map(|merge| &merge.into);
    disk.iter()
        .chain(merge)
        .map(disk::layer_node)
        .chain(disk::image_node(record.image_disk.as_deref()))
        .map(|disk| disk.node)
        .collect()
}

/// The job that makes a layer.
fn job(into: &LayerName) -> String {
    format!("merge-{into}")
}

/// Where a run begins in a chain.
fn position(layers: &[LayerName], run: &[LayerName]) -> Option<usize> {
    layers
        .windows(run.len().max(1))
        .position(|part| part == run)
}
