//! Securing snapshots (bringing their files to the disk, so that they survive a restart of the host) and verifying them
//! after one. One snapshot at a time, in small pieces, giving way to operations between any two.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use qemu::{
    checksum::{self, Checksum, Sparse},
    failpoint, layout,
    write_back::{WriteBack, sync_folder},
};
use raft::state::{
    Checksums, Command as Change, Content, FileId, NodeId, Safety, SnapshotId, State,
};
use tokio::time::sleep;

use crate::{
    blocking::blocking,
    errors::chain,
    node::Node,
    vms::launch::{base_name, layer_name, stream_name},
};

/// After work that failed, before it is planned again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What is done to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Bring it to the disk and note its checksums.
    Secure,
    /// Compare it with them.
    Verify,
}

/// Something could not be done to a snapshot's file.
#[derive(Debug, thiserror::Error)]
#[error("{}", .path.display())]
struct WorkError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WorkError {
    let path = path.to_owned();
    move |source| WorkError { path, source }
}

/// Begins with a snapshot, unless another is under way.
pub fn begin(node: &Arc<Node>, state: &Arc<State>, work: Work, snapshot: SnapshotId) {
    let content = state.snapshots.get(&snapshot);
    let Some(content) = content.and_then(|found| found.content.clone()) else {
        return;
    };
    if node.store.busy.swap(true, Ordering::AcqRel) {
        return;
    }
    let (context, state) = (Arc::clone(node), Arc::clone(state));
    node.tasks.spawn(async move {
        let done = async {
            let done = match work {
                Work::Secure => secure(&context, &state, snapshot, &content).await,
                Work::Verify => verify(&context, &content).await,
            };
            let Err(error) = done else { return };
            if context.state().snapshots.contains_key(&snapshot) {
                tracing::warn!(%snapshot, ?work, error = %chain(&error), "a snapshot's files could not be worked on; trying again");
                sleep(RETRY_PAUSE).await;
            } else {
                tracing::debug!(%snapshot, "a snapshot was deleted while its files were worked on");
            }
        };
        tokio::select! {
            () = context.cancel.cancelled() => {}
            () = done => {}
        }
        context.store.busy.store(false, Ordering::Release);
        context.wake.notify_one();
    });
}

async fn secure(
    node: &Arc<Node>,
    state: &State,
    snapshot: SnapshotId,
    content: &Content,
) -> Result<(), WorkError> {
    let layout = &node.vms.engine().layout;
    let known = Known::of(state, node.id());
    let base = match known.bases.get(&content.base) {
        Some(known) => *known,
        None => keep(node, &layout.base(&base_name(content.base))).await?,
    };
    failpoint::reached("secure.base-kept");
    let mut layers = Vec::new();
    for layer in &content.layers {
        layers.push(match known.layers.get(layer) {
            Some(known) => *known,
            None => keep(node, &layout.layer(&layer_name(*layer))).await?,
        });
        failpoint::reached("secure.layer-kept");
    }
    write_back(node, &layout.stream(&stream_name(content.stream))).await?;
    failpoint::reached("secure.stream-kept");
    for folder in [layout.bases(), layout.layers(), layout.streams()] {
        let path = folder.clone();
        blocking(move || sync_folder(&path))
            .await
            .map_err(at(&folder))?;
    }
    failpoint::reached("secure.folders-synced");
    let checksums = Checksums { base, layers };
    node.report(Change::SecureSnapshot {
        snapshot,
        node: node.id(),
        checksums,
    })
    .await;
    failpoint::reached("secure.told");
    tracing::debug!(%snapshot, "a snapshot is on disk");
    Ok(())
}

/// Checksums of files that are on this node's disk already, since other snapshots have them too.
#[derive(Debug, Default)]
struct Known {
    bases: BTreeMap<FileId, Checksum>,
    layers: BTreeMap<FileId, Checksum>,
}

impl Known {
    fn of(state: &State, node: NodeId) -> Self {
        let mut known = Self::default();
        let ours = state
            .snapshots
            .values()
            .filter(|snapshot| snapshot.nodes.contains(&node));
        for content in ours.filter_map(|snapshot| snapshot.content.as_ref()) {
            if let Safety::Disk(sums) = &content.safety {
                known.bases.insert(content.base, sums.base);
                let layers = content.layers.iter().copied();
                known.layers.extend(layers.zip(sums.layers.iter().copied()));
            }
        }
        known
    }
}

/// Brings a file to the disk, and sums it up.
async fn keep(node: &Node, path: &Path) -> Result<Checksum, WorkError> {
    write_back(node, path).await?;
    sum(node, path).await
}

async fn write_back(node: &Node, path: &Path) -> Result<(), WorkError> {
    let opened = path.to_owned();
    let mut file = blocking(move || WriteBack::begin(&opened))
        .await
        .map_err(at(path))?;
    loop {
        node.store.way_is_free().await;
        let done;
        (file, done) = blocking(move || file.step().map(|done| (file, done)))
            .await
            .map_err(at(path))?;
        if done {
            return Ok(());
        }
    }
}

async fn sum(node: &Node, path: &Path) -> Result<Checksum, WorkError> {
    let opened = path.to_owned();
    let mut sparse = blocking(move || Sparse::begin(File::open(opened)?))
        .await
        .map_err(at(path))?;
    loop {
        node.store.way_is_free().await;
        let done;
        (sparse, done) = blocking(move || sparse.step().map(|done| (sparse, done)))
            .await
            .map_err(at(path))?;
        if let Some(sum) = done {
            return Ok(sum);
        }
    }
}

/// Compares the files of a snapshot that are in doubt with their checksums. What does not fit is noted; the next plan reports
/// the snapshots that have it.
async fn verify(node: &Arc<Node>, content: &Content) -> Result<(), WorkError> {
    let Safety::Disk(sums) = &content.safety else {
        return Ok(());
    };
    let layers = content.layers.iter().copied().map(layer_name);
    let shared = std::iter::once((layout::base(&base_name(content.base)), sums.base)).chain(
        layers
            .map(|layer| layout::layer(&layer))
            .zip(sums.layers.iter().copied()),
    );
    let root = node.vms.engine().layout.root();
    for (file, written) in shared {
        if node.store.is_unverified(&file) {
            let found = sum(node, &root.join(&file)).await?;
            compare(node, file, written, found)?;
        }
    }
    let stream = layout::stream(&stream_name(content.stream));
    if node.store.is_unverified(&stream) {
        let path = root.join(&stream);
        let read = path.clone();
        let found = blocking(move || checksum::of_file(&read))
            .await
            .map_err(at(&path))?;
        compare(node, stream, content.stream_checksum, found)?;
    }
    Ok(())
}

fn compare(node: &Node, file: String, written: Checksum, found: Checksum) -> Result<(), WorkError> {
    failpoint::reached("verify.summed");
    if found == written {
        let kept = node.store.note_verified(&file);
        failpoint::reached("verify.noted");
        return kept.map_err(at(&node.store.path));
    }
    let reason = format!(
        "the snapshot's file {file} is damaged: its checksum is {found:08x} and was {written:08x} when it was written"
    );
    node.store.note_damaged(file, reason);
    Ok(())
}
