//! What a node knows of its snapshots' files: which may be used, which must be compared with their checksums first because the
//! host was restarted since they were made, and which are damaged. The reconciler plans by it; [`work`] acts.
//!
//! Files are named by their paths below the data directory. Which are in doubt is kept in a file there, together with the
//! host's boot it was written under: it may be lost, and then every file is in doubt.

pub mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use qemu::{
    checksum::StreamUnfit,
    layout::{self, Layout, write_whole},
};
use raft::state::{Content, SnapshotId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::vms::launch::{base_name, layer_name, stream_name};

/// Where it is kept, below the data directory.
const KEPT: &str = "unverified.json";

/// What is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    host_boot: String,
    unverified: BTreeSet<String>,
}

/// How a snapshot's files are, taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// They may be used.
    Good,
    /// Some must be compared with their checksums first.
    Unverified,
    /// One is not what was written: which, and how that shows.
    Damaged(String),
}

/// The files of this node's snapshots.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    kept: Mutex<Kept>,
    damaged: Mutex<BTreeMap<String, String>>,
    /// Whether a snapshot is being secured or verified: one at a time.
    busy: AtomicBool,
    /// How many operations are under way, to which everything here gives way.
    operations: watch::Sender<usize>,
}

/// An operation under way. See [`Store::give_way`].
#[derive(Debug)]
pub struct Way<'a>(&'a Store);

impl Drop for Way<'_> {
    fn drop(&mut self) {
        self.0.operations.send_modify(|count| *count -= 1);
    }
}

impl Store {
    /// Looks whether the host was restarted since the agent ran here last: then every file that is there is in doubt.
    pub fn open(layout: &Layout, host_boot: &str) -> io::Result<Self> {
        let path = layout.root().join(KEPT);
        let found = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Kept>(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error),
        };
        let kept = if found.host_boot == host_boot {
            found
        } else {
            let unverified = all_files(layout)?;
            tracing::info!(
                files = unverified.len(),
                "the host was restarted: files of before are verified before they are used"
            );
            Kept {
                host_boot: host_boot.to_owned(),
                unverified,
            }
        };
        let store = Self {
            path,
            kept: Mutex::new(kept),
            damaged: Mutex::default(),
            busy: AtomicBool::new(false),
            operations: watch::Sender::new(0),
        };
        store.save(&store.kept())?;
        Ok(store)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, kept: &Kept) -> io::Result<()> {
        write_whole(&self.path, &serde_json::to_vec_pretty(kept)?)
    }

    /// How a snapshot's files are. Whether they are there at all is not looked at.
    pub fn look(&self, content: &Content) -> Look {
        let files = files_of(content);
        let damaged = self.damaged();
        if let Some(reason) = files.iter().find_map(|file| damaged.get(file)) {
            return Look::Damaged(reason.clone());
        }
        let kept = self.kept();
        if files.iter().any(|file| kept.unverified.contains(file)) {
            Look::Unverified
        } else {
            Look::Good
        }
    }

    /// Refuses a snapshot whose files may not be used (yet).
    pub fn check_usable(&self, snapshot: SnapshotId, content: &Content) -> Result<(), String> {
        match self.look(content) {
            Look::Good => Ok(()),
            Look::Unverified => Err(format!(
                "the host was restarted and the files of snapshot {snapshot} are not verified yet"
            )),
            Look::Damaged(reason) => Err(reason),
        }
    }

    /// Refuses a file that may not be used (yet).
    pub fn check_file(&self, file: &str) -> Result<(), String> {
        if let Some(reason) = self.damaged().get(file) {
            return Err(reason.clone());
        }
        match self.is_unverified(file) {
            true => Err(format!(
                "the host was restarted and the file {file} is not verified yet"
            )),
            false => Ok(()),
        }
    }

    /// Forgets what is known of a file that is not here any more: another one will be.
    pub fn forget(&self, file: &str) -> io::Result<()> {
        self.damaged().remove(file);
        match self.is_unverified(file) {
            true => self.note_verified(file),
            false => Ok(()),
        }
    }

    fn is_unverified(&self, file: &str) -> bool {
        self.kept().unverified.contains(file)
    }

    /// Notes that a file is what was written.
    fn note_verified(&self, file: &str) -> io::Result<()> {
        let mut kept = self.kept();
        kept.unverified.remove(file);
        self.save(&kept)
    }

    /// Notes that a file is not what was written: no snapshot that has it is used any more.
    fn note_damaged(&self, file: String, reason: String) {
        tracing::error!(file, reason, "a snapshot's file is damaged");
        self.damaged().insert(file, reason);
    }

    /// Notes why a stream was not loaded, if that was the stream's fault.
    pub fn note_unfit(&self, unfit: &StreamUnfit) {
        if let StreamUnfit::Damaged { name, .. } = unfit {
            self.note_damaged(layout::stream(name), unfit.to_string());
        }
    }

    /// Whether a snapshot is being secured or verified.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Has everything here wait between two pieces of work until the result is dropped.
    pub fn give_way(&self) -> Way<'_> {
        self.operations.send_modify(|count| *count += 1);
        Way(self)
    }

    /// Waits until no operation is under way.
    pub async fn way_is_free(&self) {
        // The sender is ours: it is there.
        let mut operations = self.operations.subscribe();
        let _free = operations.wait_for(|count| *count == 0).await;
    }
}

/// The files of a snapshot: its base, its stream, its layers.
fn files_of(content: &Content) -> Vec<String> {
    let layers = content.layers.iter().copied().map(layer_name);
    [
        layout::base(&base_name(content.base)),
        layout::stream(&stream_name(content.stream)),
    ]
    .into_iter()
    .chain(layers.map(|layer| layout::layer(&layer)))
    .collect()
}

fn all_files(layout: &Layout) -> io::Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for folder in ["bases", "streams", "layers"] {
        for entry in fs::read_dir(layout.root().join(folder))? {
            if let Some(name) = entry?.file_name().to_str() {
                files.insert(format!("{folder}/{name}"));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use qemu::record::StreamName;

    use super::*;

    #[test]
    fn what_was_there_before_a_restart_of_the_host_is_in_doubt_until_it_is_verified() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path(), None).unwrap();
        let file = layout::stream(&StreamName("s".into()));
        let later = layout::stream(&StreamName("later".into()));
        fs::write(layout.root().join(&file), "x").unwrap();
        let doubts = |boot: &str, file: &str| {
            let store = Store::open(&layout, boot).unwrap();
            store.is_unverified(file)
        };
        // What was there before anything was kept may be older than this boot.
        assert!(doubts("one", &file));
        fs::write(layout.root().join(&later), "x").unwrap();
        assert!(doubts("one", &file) && !doubts("one", &later));
        Store::open(&layout, "one")
            .unwrap()
            .note_verified(&file)
            .unwrap();
        assert!(!doubts("one", &file));
        assert!(doubts("two", &file) && doubts("two", &later));
        fs::write(layout.root().join(KEPT), "not json").unwrap();
        assert!(doubts("two", &later));
    }

    #[tokio::test]
    async fn work_gives_way_to_every_operation() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path(), None).unwrap();
        let store = Store::open(&layout, "one").unwrap();
        let (one, other) = (store.give_way(), store.give_way());
        let mut waits = Box::pin(store.way_is_free());
        assert!(futures::poll!(&mut waits).is_pending());
        drop(one);
        assert!(futures::poll!(&mut waits).is_pending());
        drop(other);
        waits.await;
    }
}
