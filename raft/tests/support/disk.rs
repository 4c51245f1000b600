//! A disk that can be made to stand still, or to fail, below a member's log.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use bytes::Bytes;
use raft::log::{Key, LogBackend, LogError, sled::SledBackend};

/// What a disk does with what it is given.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Works,
    /// It keeps everybody waiting.
    StandsStill,
    Fails,
    /// Only the log's mark fails.
    ForgetsMarks,
    /// The last of what is read is missing, and nobody is told.
    ReadsShort,
}

/// A disk.
#[derive(Default)]
pub struct Disk {
    mood: Mutex<Mood>,
    changed: Condvar,
    asked: Mutex<Vec<&'static str>>,
}

impl Disk {
    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
        self.changed.notify_all();
    }

    /// What it was asked for since the last call of this, in order.
    pub fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn pass(&self, call: &'static str) -> Result<(), LogError> {
        self.asked.lock().unwrap().push(call);
        let mut mood = self.mood.lock().unwrap();
        while *mood == Mood::StandsStill {
            mood = self.changed.wait(mood).unwrap();
        }
        match *mood {
            Mood::Works | Mood::StandsStill | Mood::ReadsShort => Ok(()),
            Mood::ForgetsMarks if call != "mark" => Ok(()),
            Mood::Fails | Mood::ForgetsMarks => {
                Err(LogError::io("synced", std::io::Error::other("no disk")))
            }
        }
    }
}

/// The engine on such a disk.
pub struct Faulty(SledBackend, Arc<Disk>);

impl Faulty {
    pub fn open(path: &Path, create: bool, disk: &Arc<Disk>) -> Result<Self, LogError> {
        Ok(Self(SledBackend::open(path, create)?, Arc::clone(disk)))
    }
}

impl LogBackend for Faulty {
    fn append(&self, records: &[(u64, Bytes)]) -> Result<(), LogError> {
        self.1.pass("append")?;
        self.0.append(records)
    }

    fn read(&self, range: Range<u64>, max: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let mut records = self.0.read(range, max)?;
        if *self.1.mood.lock().unwrap() == Mood::ReadsShort {
            records.pop();
        }
        Ok(records)
    }

    fn truncate(&self, from: u64) -> Result<(), LogError> {
        self.1.pass("truncate")?;
        self.0.truncate(from)
    }

    fn remove_upto(&self, index: u64, limit: usize) -> Result<bool, LogError> {
        self.0.remove_upto(index, limit)
    }

    fn put(&self, key: Key, value: &[u8]) -> Result<(), LogError> {
        self.1.pass("put")?;
        self.0.put(key, value)
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, LogError> {
        self.0.get(key)
    }

    fn flush(&self) -> Result<(), LogError> {
        self.1.pass("flush")?;
        self.0.flush()
    }

    fn sync(&self) -> Result<(), LogError> {
        self.1.pass("sync")?;
        self.0.sync()
    }

    fn mark(&self, value: &[u8]) -> Result<(), LogError> {
        self.1.pass("mark")?;
        self.0.mark(value)
    }

    fn marked(&self) -> Result<Vec<u8>, LogError> {
        self.0.marked()
    }
}
