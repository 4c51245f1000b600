//! What the log reaches at least, kept apart from it. An engine takes a damage of its newest part for what a power cut left of a write
//! that nobody waited for, and goes on without it; by the mark it is known that somebody did.
//!
//! The mark follows the log: it never names what is not on the device, and is written beside what the log's thread does next, so that
//! nothing waits for it. Two things do: a vote, which is never given twice for want of a few milliseconds, and records that
//! are removed from the end, which the mark must have ceased to name first.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use super::{LogBackend, LogError, io::SharedBackend};
use crate::{
    codec,
    consensus::{
        records,
        types::{LogId, Vote},
    },
};

/// How long the thread rests after a mark: the log's syncs share its disk. Until the next one the mark may be behind by as much.
const REST: Duration = Duration::from_millis(10);

/// What a log reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The last entry, or what was purged.
    pub last: Option<LogId>,
    /// The last vote.
    pub vote: Option<Vote>,
}

impl Mark {
    /// The mark beside an engine; one that names nothing if there is none yet.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(backend: &impl LogBackend) -> Result<Self, LogError> {
        let record = backend.marked()?;
        if record.is_empty() {
            return Ok(Self::default());
        }
        codec::decode::<records::Mark>(&record, codec::NETWORK_LIMIT)
            .map(Into::into)
            .map_err(|e| LogError::Damaged(format!("its mark: {e}")))
    }

    pub(super) fn write(self, backend: &dyn LogBackend) -> Result<(), LogError> {
        backend.mark(&codec::encode(&records::Mark::from(self)))
    }

    /// Holds a log against it: what was purged of that, its vote, its last entry, and the one under the index that is named here.
    ///
    /// # Errors
    /// `Damaged` when something is missing that was there.
    pub(super) fn check(
        &self,
        found: &Self,
        purged: Option<LogId>,
        named: Option<LogId>,
    ) -> Result<(), LogError> {
        let damaged = |what: String| Err(LogError::Damaged(what));
        if let Some(id) = self.last
            && purged.map(|id| id.index) < Some(id.index)
        {
            let name = |id: Option<LogId>| match id {
                Some(id) => format!("entry {} of term {}", id.index, id.leader_id.term),
                None => "nothing".into(),
            };
            if found.last.map(|id| id.index) < Some(id.index) {
                return damaged(format!(
                    "its end is missing: it reached {}, and ends with {}",
                    name(self.last),
                    name(found.last)
                ));
            }
            if named != Some(id) {
                return damaged(format!(
                    "it has fallen back: it held {}, and has {} there",
                    name(self.last),
                    name(named)
                ));
            }
        }
        // Whether the one that is voted for was elected is not promised to anybody.
        let promised = |vote: Option<Vote>| vote.map(|vote| vote.leader_id);
        if promised(found.vote) >= promised(self.vote) {
            return Ok(());
        }
        let name = |vote: Option<Vote>| match vote.map(|vote| vote.leader_id) {
            Some(id) => format!("node {} in term {}", id.node_id, id.term),
            None => "nobody".into(),
        };
        damaged(format!(
            "its vote is missing: it voted for {}, and has a vote for {}",
            name(self.vote),
            name(found.vote)
        ))
    }
}

#[derive(Default)]
struct State {
    /// What is to be written next.
    next: Option<Mark>,
    /// Why nothing more will be.
    failed: Option<String>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held while a mark is written, so that an older one never follows a newer.
    writing: Mutex<()>,
}

/// Writes the mark. The log's thread has it; what was reached is written when it is dropped.
pub(super) struct Marker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Marker {
    /// Starts its thread.
    pub(super) fn start(backend: SharedBackend) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("raft-mark".into())
                .spawn(move || shared.run(&backend))?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The log reaches this on the device. It is marked soon.
    pub(super) fn reached(&self, mark: Mark) {
        lock(&self.shared.state).next = Some(mark);
        self.shared.changed.notify_one();
    }

    /// The same, and it is marked when this returns.
    pub(super) fn mark(&self, backend: &dyn LogBackend, mark: Mark) -> Result<(), LogError> {
        let _writing = lock(&self.shared.writing);
        lock(&self.shared.state).next = None;
        mark.write(backend)
    }

    /// Whether a mark could not be written.
    pub(super) fn check(&self) -> Result<(), LogError> {
        match &lock(&self.shared.state).failed {
            Some(reason) => Err(LogError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that marks the log's end panicked");
        }
    }
}

impl Shared {
    fn run(&self, backend: &SharedBackend) {
        loop {
            let idle = |state: &mut State| state.next.is_none() && !state.stop;
            let state = self.changed.wait_while(lock(&self.state), idle);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            if state.next.is_none() {
                return;
            }
            drop(state);
            if let Err(error) = self.write(backend) {
                let reason = error.chain();
                tracing::error!(error = reason, "the log's end cannot be marked");
                lock(&self.state).failed = Some(reason);
                return;
            }
            let running = |state: &mut State| !state.stop;
            let rested = self
                .changed
                .wait_timeout_while(lock(&self.state), REST, running);
            drop(rested.unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn write(&self, backend: &SharedBackend) -> Result<(), LogError> {
        let _writing = lock(&self.writing);
        let Some(mark) = lock(&self.state).next.take() else {
            return Ok(());
        };
        let guard = backend.read().unwrap_or_else(PoisonError::into_inner);
        mark.write(guard.as_deref().ok_or(LogError::Closed)?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
