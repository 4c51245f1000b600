//! Files between nodes: what images and snapshots are made of. They never change, so that they can be had from whoever holds them, from several at
//! once, and gone on with from another when one is gone.
//!
//! Holes and zeros are left out, what travels is packed; of memory that is mostly what another base here has, only the pages that
//! differ come. A file is put together beside its place and gets its name when it is whole; forks use it before that (`arriving`). The node is noted as one that holds a
//! snapshot once all of its files are on the disk; until then they are kept for whoever asked for them.

mod difference;
mod early;
mod file;
mod lanes;
mod moving;
mod pace;
mod pack;
mod part;
mod queue;
mod quiet;
mod receive;
mod send;

pub use self::{
    moving::{Goods, Stock},
    receive::{Progress, Usable},
    send::{Parts, describe, read},
};

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::pending,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::future::try_join_all;
use qemu::{
    failpoint,
    write_back::{WriteBack, sync_folder},
};
use raft::state::{Blob, Command, Content, Image, NodeId, SnapshotId, State, VmId};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    file::{Expected, FileName},
    pace::Pace,
    quiet::Quiet,
    receive::{Readers, Unfetched, Wanted, fetch},
};
use crate::{
    admission::Need, arriving::Arriving, errors::chain, node::Node, reconcile::collect::Files,
    vms::Reserved,
};

/// Why what is fetched of a snapshot that was deleted is given up.
const GONE: &str = "the snapshot was deleted meanwhile";
/// How many parts are read for other nodes at once.
const SENDING: usize = 8;
/// How long files that an earlier life of the host left are waited for to be verified.
const DOUBT_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether files are being collected.
const COLLECTION_PAUSE: Duration = Duration::from_millis(5);
/// Between two looks whether a file that somebody else fetches can be used.
const SHOWN_PAUSE: Duration = Duration::from_millis(10);
/// Between two looks.
const DOUBT_PAUSE: Duration = Duration::from_millis(100);

/// How much of a snapshot must be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// All of it.
    Whole,
    /// Its stream, and of the rest what is read: that comes while it is used.
    Usable,
}

/// What comes from other nodes and goes to them.
#[derive(Debug)]
pub struct Transfers {
    /// Turns to read for another node.
    sending: Arc<Semaphore>,
    /// When what is sent may be.
    pace: Pace,
    /// Whether somebody here stands still for what comes.
    quiet: Quiet,
    /// Files that are being fetched: one at a time each.
    files: Mutex<BTreeMap<FileName, Arc<tokio::sync::Mutex<()>>>>,
    /// Files that are used while they come.
    pub arriving: Arriving,
    /// Snapshots whose files are being fetched, or are here and not told yet.
    snapshots: Mutex<BTreeMap<SnapshotId, Coming>>,
}

/// A snapshot that is being fetched.
#[derive(Debug)]
struct Coming {
    files: Files,
    progress: Arc<Progress>,
    /// How many want it.
    wanted_by: usize,
}

impl Transfers {
    /// With a bound for what is sent, bytes a second.
    pub fn new(rate: Option<u64>, arriving: Arriving) -> Self {
        Self {
            sending: Arc::new(Semaphore::new(SENDING)),
            pace: Pace::new(rate),
            quiet: Quiet::default(),
            files: Mutex::default(),
            arriving,
            snapshots: Mutex::default(),
        }
    }

    fn snapshots(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Coming>> {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of snapshots that are being fetched, or are here and not told yet: nobody else refers to them.
    pub fn wanted(&self) -> Files {
        let mut files = Files::default();
        for coming in self.snapshots().values() {
            files.add(&coming.files);
        }
        files
    }

    /// How far each snapshot that is being fetched has come.
    pub fn progress(&self) -> Vec<(SnapshotId, Arc<Progress>)> {
        let coming = self.snapshots();
        coming
            .iter()
            .map(|(id, coming)| (*id, Arc::clone(&coming.progress)))
            .collect()
    }

    /// The snapshots that are being fetched, or are here and not told yet.
    pub fn coming(&self) -> std::collections::BTreeSet<SnapshotId> {
        self.snapshots().keys().copied().collect()
    }

    /// Has one file be fetched by one at a time.
    fn turn(&self, file: FileName) -> Arc<tokio::sync::Mutex<()>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody has or awaits those.
        files.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(files.entry(file).or_default())
    }
}

/// A snapshot whose files are kept here though the state does not know it yet. See [`Node::obtain`].
#[derive(Debug)]
pub struct Kept {
    node: Arc<Node>,
    id: SnapshotId,
    progress: Arc<Progress>,
    /// Ends what is fetched beside its use when this is dropped.
    coming: Option<DropGuard>,
}

impl Kept {
    /// What was begun to be used goes on to come when this is dropped: VMs are made of it now.
    pub fn is_used(mut self) {
        if let Some(coming) = self.coming.take() {
            coming.disarm();
        }
    }

    fn begin(node: &Arc<Node>, id: SnapshotId, files: &Files) -> Self {
        let mut snapshots = node.transfers.snapshots();
        let coming = snapshots.entry(id).or_insert_with(|| Coming {
            files: Files::default(),
            progress: Arc::default(),
            wanted_by: 0,
        });
        coming.files.add(files);
        coming.wanted_by += 1;
        let progress = Arc::clone(&coming.progress);
        drop(snapshots);
        Self {
            node: Arc::clone(node),
            id,
            progress,
            coming: None,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut snapshots = self.node.transfers.snapshots();
        if let Some(coming) = snapshots.get_mut(&self.id) {
            coming.wanted_by -= 1;
            if coming.wanted_by == 0 {
                snapshots.remove(&self.id);
                drop(snapshots);
                self.node.left_over.notify_one();
                self.node.wake.notify_one();
            }
        }
    }
}

/// Says of a file that somebody else fetches that it can be used, once it can.
async fn shown_meanwhile(wanted: &Wanted, path: &Path) -> Infallible {
    if let Some(usable) = &wanted.early {
        while !(path.is_symlink() && path.exists()) {
            tokio::time::sleep(SHOWN_PAUSE).await;
        }
        usable.add(wanted.file);
    }
    pending().await
}

impl Node {
    /// Makes sure that what a snapshot is made of is here, from other nodes where it is not, and that it can be used. It stays while the
    /// result is kept, and is brought to the disk and told to all meanwhile. What is used before it is whole comes while the result is kept,
    /// or on after [`Kept::is_used`].
    pub async fn obtain(
        self: &Arc<Self>,
        id: SnapshotId,
        content: &Content,
        until: Until,
    ) -> Result<Option<Kept>, String> {
        let state = self.state();
        let is_held = |state: &State| {
            let snapshot = state.snapshots.get(&id);
            snapshot.is_some_and(|snapshot| snapshot.nodes.contains(&self.id()))
        };
        if is_held(&state) {
            return self.store.check_usable(id, content).map(|()| None);
        }
        let mut files = Files::default();
        files.add_content(content);
        let mut kept = Kept::begin(self, id, &files);
        let lineage = state.snapshots.get(&id).map(|snapshot| snapshot.lineage);
        let lineage = lineage.ok_or(GONE)?;
        let reserved = self.reserve_lineage(&state, lineage)?;
        self.until_collected().await;
        let base = FileName::Base(content.base).path(&self.vms.engine().layout);
        self.admit(Need {
            memory: 0,
            disk: match base.exists() {
                true => 0,
                false => content.base_bytes,
            } + content.stream_bytes,
        })?;
        let similar = self.similar_base(&state, lineage, content);
        let wanted = file::of_snapshot(content);
        let (count, usable) = (wanted.len(), Arc::<Usable>::default());
        let early = (until == Until::Usable).then(|| Arc::clone(&usable));
        let (whole, outcome) = oneshot::channel();
        let (given_up, fetching) = (CancellationToken::new(), Kept::begin(self, id, &files));
        let (node, cancelled) = (Arc::clone(self), given_up.clone());
        self.tasks.spawn(async move {
            let begun = Instant::now();
            let sources = || node.holders(id);
            let all = node.have_all(
                wanted.clone(),
                &reserved,
                similar,
                sources,
                &fetching,
                early,
            );
            let fetched = tokio::select! {
                fetched = all => fetched,
                () = node.cancel.cancelled() => return,
                () = cancelled.cancelled() => Err("nobody wants it any more".to_owned()),
                () = node.until_gone(id) => Err(GONE.to_owned()),
            };
            let failed = fetched.as_ref().err().cloned();
            // Whoever asked may have begun to use it.
            let _begun = whole.send(fetched);
            match failed {
                None => {
                    failpoint::reached("transfer.snapshot-here");
                    tracing::info!(
                        snapshot = %id,
                        bytes = fetching.progress.moved.load(Ordering::Relaxed),
                        ms = begun.elapsed().as_millis(),
                        "a snapshot was fetched"
                    );
                    tokio::select! {
                        () = node.cancel.cancelled() => {}
                        () = node.hold(fetching, wanted, reserved) => {}
                    }
                }
                Some(problem) => {
                    drop(fetching);
                    node.give_up(&wanted, &problem).await;
                }
            }
        });
        kept.coming = Some(given_up.drop_guard());
        let whole = async {
            outcome
                .await
                .unwrap_or_else(|_| Err("the agent ends".to_owned()))
        };
        match until {
            Until::Whole => whole.await?,
            Until::Usable => tokio::select! {
                biased;
                fetched = whole => fetched?,
                () = usable.until(count) => {}
            },
        }
        Ok(Some(kept))
    }

    /// Waits until nobody looks for what can be removed: one that looked before something was wanted may take it for nobody's.
    async fn until_collected(&self) {
        while self.collecting.load(Ordering::Acquire) {
            tokio::time::sleep(COLLECTION_PAUSE).await;
        }
    }

    /// Makes sure that files of a lineage are here.
    async fn have_all(
        self: &Arc<Self>,
        files: Vec<(FileName, Expected)>,
        reserved: &Reserved,
        similar: Option<PathBuf>,
        sources: impl Fn() -> Vec<NodeId>,
        kept: &Kept,
        early: Option<Arc<Usable>>,
    ) -> Result<(), String> {
        let sources = &sources;
        let all = files.into_iter().map(|(file, expected)| {
            let wanted = Wanted {
                file,
                expected,
                readers: Readers::Lineage(reserved.group()),
                similar: match file {
                    FileName::Base(_) => similar.clone(),
                    _ => None,
                },
                // Nothing runs without it.
                urgent: early.is_some() && matches!(file, FileName::Stream(_)),
                early: match file {
                    // It is read as a whole before it is loaded.
                    FileName::Stream(_) => None,
                    _ => early.clone(),
                },
            };
            let early = early.clone();
            async move {
                self.have(&wanted, sources, &kept.progress).await?;
                if let Some(usable) = early {
                    usable.add(file);
                }
                Ok(())
            }
        });
        try_join_all(all).await.map(drop)
    }

    /// Fetches what a snapshot is made of beside everything else, unless that is under way.
    pub fn begin_obtaining(self: &Arc<Self>, id: SnapshotId) {
        let state = self.state();
        let content = state
            .snapshots
            .get(&id)
            .and_then(|found| found.content.clone());
        let Some(content) = content.filter(|_| !self.transfers.snapshots().contains_key(&id))
        else {
            return;
        };
        // From now on it is under way.
        let mut files = Files::default();
        files.add_content(&content);
        let kept = Kept::begin(self, id, &files);
        let node = Arc::clone(self);
        self.tasks.spawn(async move {
            let _kept = kept;
            tokio::select! {
                () = node.cancel.cancelled() => {}
                obtained = node.obtain(id, &content, Until::Whole) => if let Err(problem) = obtained {
                    tracing::warn!(snapshot = %id, problem, "a snapshot could not be fetched; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        });
    }

    /// Brings what was fetched of a snapshot to the disk, and tells it.
    async fn hold(
        self: &Arc<Self>,
        kept: Kept,
        files: Vec<(FileName, Expected)>,
        _lineage: Reserved,
    ) {
        for (file, _) in files {
            if let Err(error) = self.to_disk(file).await {
                tracing::warn!(
                    snapshot = %kept.id,
                    %error,
                    "a snapshot that was fetched cannot be brought to the disk; it is not kept here"
                );
                return;
            }
        }
        failpoint::reached("transfer.on-disk");
        self.report(Command::HoldSnapshot {
            snapshot: kept.id,
            node: self.id(),
        })
        .await;
        failpoint::reached("transfer.told");
    }

    /// Brings a file that was fetched to the disk, giving way to operations.
    async fn to_disk(&self, file: FileName) -> std::io::Result<()> {
        let path = file.path(&self.vms.engine().layout);
        let folder = path.parent().map(PathBuf::from);
        let mut writing = WriteBack::begin(&path)?;
        loop {
            self.store.way_is_free().await;
            let step =
                tokio::task::spawn_blocking(move || writing.step().map(|done| (writing, done)));
            let done;
            (writing, done) = step.await.map_err(std::io::Error::other)??;
            if done {
                break;
            }
        }
        match folder {
            Some(folder) => sync_folder(&folder),
            None => Ok(()),
        }
    }

    /// Makes sure that a file is here.
    async fn have(
        self: &Arc<Self>,
        wanted: &Wanted,
        sources: impl Fn() -> Vec<NodeId>,
        progress: &Progress,
    ) -> Result<(), String> {
        let path = wanted.file.path(&self.vms.engine().layout);
        let turn = self.transfers.turn(wanted.file);
        let _turn = tokio::select! {
            turn = turn.lock() => turn,
            // While somebody else fetches it, it may be shown already.
            never = shown_meanwhile(wanted, &path) => match never {},
        };
        let relative = wanted.file.relative();
        let deadline = Instant::now() + DOUBT_PATIENCE;
        // A link leads to what is not whole.
        while path.exists() && !path.is_symlink() {
            match self.store.check_file(&relative) {
                Ok(()) => return Ok(()),
                // What is in doubt belongs to a snapshot that is held, or goes: either shows soon.
                Err(problem) if Instant::now() > deadline => return Err(problem),
                Err(_) => tokio::time::sleep(DOUBT_PAUSE).await,
            }
        }
        self.store
            .forget(&relative)
            .map_err(|error| error.to_string())?;
        let fetched = fetch(self, wanted, sources, progress).await;
        fetched.map_err(|error: Unfetched| chain(&error))
    }

    /// The nodes that hold a snapshot, those that are there first.
    fn holders(&self, id: SnapshotId) -> Vec<NodeId> {
        let state = self.state();
        let mut holders: Vec<NodeId> = state
            .snapshots
            .get(&id)
            .map(|snapshot| snapshot.nodes.iter().copied().collect())
            .unwrap_or_default();
        self.best_first(&mut holders);
        holders
    }

    fn best_first(&self, nodes: &mut Vec<NodeId>) {
        let online = self.leases.online().unwrap_or_default();
        nodes.retain(|node| *node != self.id());
        nodes.sort_by_key(|node| !online.contains(node));
    }

    /// A base that may be mostly the same as a snapshot's: the newest one here of its lineage.
    fn similar_base(&self, state: &State, lineage: VmId, content: &Content) -> Option<PathBuf> {
        let layout = &self.vms.engine().layout;
        let bases = state
            .snapshots
            .values()
            .filter(|snapshot| snapshot.lineage == lineage)
            .filter_map(|snapshot| Some(snapshot.content.as_ref()?.base))
            .filter(|base| *base != content.base);
        let here = bases.map(FileName::Base).filter(|file| {
            let path = file.path(layout);
            // One that comes itself is no help.
            let is_whole = path.exists() && !path.is_symlink();
            is_whole && self.store.check_file(&file.relative()).is_ok()
        });
        here.max().map(|file| file.path(layout))
    }

    /// The group of a lineage on this host.
    pub fn reserve_lineage(&self, state: &State, lineage: VmId) -> Result<Reserved, String> {
        let layout = &self.vms.engine().layout;
        let contents = state
            .snapshots
            .values()
            .filter(|snapshot| snapshot.lineage == lineage)
            .filter_map(|snapshot| snapshot.content.as_ref());
        let vms = || state.vms.of(self.id()).filter(|vm| vm.lineage == lineage);
        let disks = vms().flat_map(|vm| vm.disk.iter().flatten().copied());
        let files = contents
            .flat_map(file::of_snapshot)
            .map(|(file, _)| file)
            .chain(disks.map(FileName::Layer))
            .map(|file| file.path(layout));
        let reserved = self
            .vms
            .reserve_lineage(lineage, files, vms().map(|vm| vm.id));
        reserved.map_err(|error| chain(&error))
    }

    /// Makes sure that an image's file is here, on the disk.
    pub async fn have_blob(
        self: &Arc<Self>,
        image: &Image,
        blob: &Blob,
        early: Option<Arc<Usable>>,
    ) -> Result<(), String> {
        let wanted = Wanted {
            file: FileName::Image(blob.sha256),
            expected: Expected::Name,
            readers: Readers::All,
            similar: None,
            urgent: false,
            early,
        };
        let sources = || {
            let state = self.state();
            let nodes = state.images.get(&image.id).map(|image| image.nodes.clone());
            let mut nodes: Vec<NodeId> = nodes.unwrap_or_default().into_iter().collect();
            self.best_first(&mut nodes);
            nodes
        };
        let had = async {
            self.have(&wanted, sources, &Progress::default()).await?;
            let synced = sync_folder(&self.vms.engine().layout.images());
            synced.map_err(|error| error.to_string())
        };
        had.await
            .map_err(|problem| format!("image {:?}: {problem}", image.name))
    }
}
