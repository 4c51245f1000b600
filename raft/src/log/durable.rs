//! How far the log is on disk, and what is not there yet.
//!
//! openraft takes what it appended for stored on its own node, and sends it on, as soon as it can be read: the node's disk and
//! the others' work side by side (Ongaro's dissertation, section 10.2.1). What it then counts as committed may be on its own
//! disk last. So nothing is applied, and no other member is told that it is committed or that it is here, before
//! [`Durable`] says that it is.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::LogError;

/// How long records may wait for the disk before it counts as standing still.
const STANDSTILL: Duration = Duration::from_secs(2);

/// Records that were appended and cannot be read from the engine yet.
pub(super) struct Tail {
    records: BTreeMap<u64, Bytes>,
    /// Since when the disk has made no progress with them.
    since: Option<Instant>,
    /// The indexes of all records, here or stored.
    all: Range<u64>,
    /// How often records were removed.
    removals: u64,
}

/// What there is of a range.
pub(super) struct View {
    /// The indexes in it under which there are records.
    pub(super) range: Range<u64>,
    /// Those that cannot be read from the engine yet.
    pub(super) unstored: Vec<(u64, Bytes)>,
    /// How often records had been removed.
    pub(super) removals: u64,
}

impl Tail {
    /// The records with these indexes are stored.
    pub(super) fn new(all: Range<u64>) -> Self {
        Self {
            records: BTreeMap::new(),
            since: None,
            all,
            removals: 0,
        }
    }

    pub(super) fn append(&mut self, records: &[(u64, Bytes)]) {
        if let Some((last, _)) = records.last() {
            self.all.end = last + 1;
            self.since.get_or_insert_with(Instant::now);
        }
        self.records.extend(records.iter().cloned());
    }

    pub(super) fn truncate(&mut self, from: u64) {
        self.all.end = self.all.end.min(from);
        self.removals += 1;
    }

    pub(super) fn purge(&mut self, upto: u64) {
        self.all.start = self.all.start.max(upto + 1);
        self.all.end = self.all.end.max(upto + 1);
        self.removals += 1;
    }

    /// The engine has these now.
    pub(super) fn stored(&mut self, indexes: impl Iterator<Item = u64>) {
        for index in indexes {
            self.records.remove(&index);
        }
        self.since = (!self.records.is_empty()).then(Instant::now);
    }

    /// What there is within a range.
    pub(super) fn view(&self, range: &Range<u64>) -> View {
        let start = range.start.max(self.all.start);
        let range = start..range.end.min(self.all.end).max(start);
        let found = self.records.range(range.clone());
        View {
            unstored: found.map(|(i, record)| (*i, record.clone())).collect(),
            range,
            removals: self.removals,
        }
    }

    pub(super) fn removals(&self) -> u64 {
        self.removals
    }
}

#[derive(Debug, Default)]
struct State {
    /// The index after the last record that is on disk.
    end: u64,
    /// Why nothing more will be.
    failed: Option<Arc<str>>,
}

/// How far the log is on disk.
#[derive(Clone)]
pub struct Durable {
    state: watch::Receiver<State>,
    tail: Arc<Mutex<Tail>>,
}

/// Says it; the log's thread has it.
pub(super) struct Progress(watch::Sender<State>);

impl Progress {
    pub(super) fn end(&self) -> u64 {
        self.0.borrow().end
    }

    pub(super) fn reached(&self, end: u64) {
        self.0.send_if_modified(|state| {
            let changed = state.end != end;
            state.end = end;
            changed
        });
    }

    pub(super) fn failed(&self, reason: &str) {
        self.0
            .send_modify(|state| state.failed = Some(reason.into()));
    }
}

impl Durable {
    pub(super) fn new(tail: Arc<Mutex<Tail>>) -> (Progress, Self) {
        let end = lock(&tail).all.end;
        let (progress, state) = watch::channel(State { end, failed: None });
        (Progress(progress), Self { state, tail })
    }

    /// Of a log that keeps nothing from its state machine.
    #[cfg(test)]
    pub(crate) fn of_everything() -> Self {
        let (progress, durable) = Self::new(Arc::new(Mutex::new(Tail::new(u64::MAX..u64::MAX))));
        std::mem::forget(progress);
        durable
    }

    /// Returns once the record with an index is on disk.
    pub async fn until(&self, index: u64) -> Result<(), LogError> {
        let mut state = self.state.clone();
        let reached = state.wait_for(|state| state.failed.is_some() || state.end > index);
        let reached = reached.await.map_err(|_| LogError::Closed)?;
        match &reached.failed {
            Some(reason) => Err(LogError::Poisoned(reason.to_string())),
            None => Ok(()),
        }
    }

    /// Returns once every record that was appended before the call is on disk.
    pub async fn all(&self) -> Result<(), LogError> {
        let end = lock(&self.tail).all.end;
        match end.checked_sub(1) {
            Some(last) => self.until(last).await,
            None => self.check(),
        }
    }

    /// Whether the disk has taken nothing for long, although there is something to write.
    pub fn stands_still(&self) -> bool {
        let since = lock(&self.tail).since;
        since.is_some_and(|since| since.elapsed() > STANDSTILL)
    }

    /// Returns when a write has failed: nothing more will be stored.
    pub async fn failed(&self) -> Arc<str> {
        let mut state = self.state.clone();
        let failed = state.wait_for(|state| state.failed.is_some()).await;
        let reason = failed.ok().and_then(|state| state.failed.clone());
        match reason {
            Some(reason) => reason,
            // It was closed in order.
            None => std::future::pending().await,
        }
    }

    pub(super) fn check(&self) -> Result<(), LogError> {
        match &self.state.borrow().failed {
            Some(reason) => Err(LogError::Poisoned(reason.to_string())),
            None => Ok(()),
        }
    }
}

fn lock(tail: &Mutex<Tail>) -> std::sync::MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}
