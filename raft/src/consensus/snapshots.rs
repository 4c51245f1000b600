//! Snapshots of the state machine: one file each, of which the newest is kept. Written beside the name it will have,
//! synced and renamed, so that a file under its name is whole. Called by the state machine.
//!
//! A file is: version byte, length of the header, header (where the snapshot stands), length of the state, state, and
//! a CRC-32 of all before.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{
    records,
    types::{LogId, SnapshotMeta},
};
use crate::codec;

const VERSION: u8 = 1;
const SUFFIX: &str = "snapshot";

/// A snapshot could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The system refused.
    #[error("the snapshot {path} could not be {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "the snapshot {path} is damaged ({what}): remove the node from the cluster, empty its data folder, and let it \
         join again"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// The folder of snapshots.
pub struct Snapshots {
    dir: PathBuf,
    newest: Mutex<Option<(SnapshotMeta, PathBuf)>>,
}

impl Snapshots {
    /// Opens the folder, and makes it if there is none. Returns the newest snapshot too. Blocks.
    pub fn open(dir: &Path) -> Result<(Self, Option<(SnapshotMeta, Bytes)>), SnapshotError> {
        let failed = |source| SnapshotError::Io {
            doing: "opened",
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(failed)?;
        if let Some(parent) = dir.parent() {
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(failed)?;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            match position(&path) {
                Some(index) => found.push((index, path)),
                None => remove(&path)?,
            }
        }
        found.sort();
        let newest = match found.pop() {
            Some((_, path)) => {
                let (meta, state) = read(&path)?;
                Some((meta, state, path))
            }
            None => None,
        };
        for (_, path) in found {
            remove(&path)?;
        }
        let snapshots = Self {
            dir: dir.to_owned(),
            newest: Mutex::new(
                newest
                    .as_ref()
                    .map(|(meta, _, path)| (meta.clone(), path.clone())),
            ),
        };
        Ok((snapshots, newest.map(|(meta, state, _)| (meta, state))))
    }

    /// Keeps a snapshot, unless there is a newer one. Blocks until it is on the device.
    pub fn save(&self, meta: &SnapshotMeta, state: &[u8]) -> Result<(), SnapshotError> {
        let mut newest = self.lock();
        if let Some((there, _)) = &*newest
            && there.last_log_id > meta.last_log_id
        {
            return Ok(());
        }
        let path = self.dir.join(name(meta.last_log_id));
        let temporary = path.with_extension("tmp");
        let failed = |source| SnapshotError::Io {
            doing: "written",
            path: path.clone(),
            source,
        };
        write(&temporary, meta, state).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
        let before = newest.replace((meta.clone(), path.clone()));
        match before {
            Some((_, old)) if old != path => remove(&old),
            _ => Ok(()),
        }
    }

    /// The newest snapshot. Blocks.
    pub fn newest(&self) -> Result<Option<(SnapshotMeta, Bytes)>, SnapshotError> {
        match &*self.lock() {
            Some((_, path)) => read(path).map(Some),
            None => Ok(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(SnapshotMeta, PathBuf)>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file name: sorted by position.
fn name(last: Option<LogId>) -> String {
    let (index, term) = last.map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("{index:020}-{term:020}.{SUFFIX}")
}

/// The position that a file name tells; none for what is not a snapshot, or not a whole one.
fn position(path: &Path) -> Option<(u64, u64)> {
    if path.extension()? != SUFFIX {
        return None;
    }
    let (index, term) = path.file_stem()?.to_str()?.split_once('-')?;
    Some((index.parse().ok()?, term.parse().ok()?))
}

fn remove(path: &Path) -> Result<(), SnapshotError> {
    fs::remove_file(path).map_err(|source| SnapshotError::Io {
        doing: "removed",
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, meta: &SnapshotMeta, state: &[u8]) -> io::Result<()> {
    let header = codec::encode(&records::SnapshotMeta::from(meta.clone()));
    let header_length = u32::try_from(header.len()).map_err(io::Error::other)?;
    let state_length = u64::try_from(state.len()).map_err(io::Error::other)?;
    let mut head = vec![VERSION];
    head.extend_from_slice(&header_length.to_be_bytes());
    head.extend_from_slice(&header);
    head.extend_from_slice(&state_length.to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(state);
    let mut file = File::create(path)?;
    file.write_all(&head)?;
    file.write_all(state)?;
    file.write_all(&hasher.finalize().to_be_bytes())?;
    file.sync_all()
}

fn read(path: &Path) -> Result<(SnapshotMeta, Bytes), SnapshotError> {
    let damaged = |what: &str| SnapshotError::Damaged {
        path: path.to_owned(),
        what: what.into(),
    };
    let content = Bytes::from(fs::read(path).map_err(|source| SnapshotError::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    })?);
    let (body, crc) = content
        .split_last_chunk::<4>()
        .ok_or_else(|| damaged("it is cut short"))?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err(damaged("its checksum is wrong"));
    }
    // What follows is what was written: the checksum says so.
    let short = || damaged("its lengths do not fit");
    let (version, rest) = body.split_first().ok_or_else(short)?;
    if *version != VERSION {
        return Err(damaged("a newer agent wrote it"));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| short())?;
    let (header, rest) = rest.split_at_checked(length).ok_or_else(short)?;
    let (length, state) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    if u64::try_from(state.len()).ok() != Some(u64::from_be_bytes(*length)) {
        return Err(short());
    }
    let meta: records::SnapshotMeta =
        codec::decode(header, codec::NETWORK_LIMIT).map_err(|e| damaged(&e.to_string()))?;
    Ok((meta.into(), content.slice_ref(state)))
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(LogId::new(CommittedLeaderId::new(3, 1), index)),
            last_membership: super::super::types::StoredMembership::default(),
            snapshot_id: format!("at {index}"),
        }
    }

    #[test]
    fn the_newest_is_kept_and_a_damaged_one_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots");
        let (snapshots, none) = Snapshots::open(&path).unwrap();
        assert!(none.is_none());
        snapshots.save(&meta(10), b"ten").unwrap();
        snapshots.save(&meta(20), b"twenty").unwrap();
        snapshots.save(&meta(15), b"late").unwrap();
        fs::write(path.join("1-1.tmp"), b"left over").unwrap();

        let (snapshots, newest) = Snapshots::open(&path).unwrap();
        let (found, state) = newest.unwrap();
        assert_eq!((found, &state[..]), (meta(20), &b"twenty"[..]));
        let files: Vec<_> = fs::read_dir(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 1);

        let mut content = fs::read(files[0].path()).unwrap();
        content[30] ^= 1;
        fs::write(files[0].path(), content).unwrap();
        assert!(matches!(
            snapshots.newest(),
            Err(SnapshotError::Damaged { .. })
        ));
        assert!(matches!(
            Snapshots::open(&path),
            Err(SnapshotError::Damaged { .. })
        ));
    }
}
