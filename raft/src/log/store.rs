//! openraft's view of the log. Opening it reads and checks every record; later reads check what they read.

use std::{
    fmt::Debug,
    ops::{Bound, Range, RangeBounds},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use openraft::{
    AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Durable, Key, LogBackend, LogError, Mark, described,
    durable::View,
    frame,
    io::{SharedBackend, Write, Writer},
};
use crate::{
    codec,
    consensus::{
        records,
        types::{Entry, LogId, StorageError, TypeConfig, Vote},
    },
};

/// The most that is sent to another member at once, bytes, unless one entry alone is larger.
const READ_LIMIT: usize = 4 << 20;

/// How much is read at once while the log is checked, bytes.
const CHECK_STEP: usize = 16 << 20;

/// Whose log it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: String,
    /// The node's id.
    pub node_id: u64,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} of cluster {}", self.node_id, self.cluster_id)
    }
}

struct Shared {
    backend: SharedBackend,
    /// Whether gaps are refused. Always, but under openraft's suite, which makes some.
    strict: AtomicBool,
    writer: Writer,
}

/// The log, for openraft's core.
pub struct LogStore {
    reader: LogReader,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The last entry, or what was purged.
    last: Option<LogId>,
}

/// Reads entries; for openraft's replication tasks.
#[derive(Clone)]
pub struct LogReader(Arc<Shared>);

/// Ends the log's thread and closes the engine when dropped. It blocks until what was begun is on disk.
pub struct LogGuard {
    backend: SharedBackend,
    writer: Writer,
    thread: Option<JoinHandle<()>>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.writer.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
        self.backend
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

impl LogStore {
    /// Checks what is in the engine and makes it ready. Blocks.
    pub fn open(
        backend: impl LogBackend,
        identity: &Identity,
    ) -> Result<(Self, LogGuard), LogError> {
        let found = Contents::read(&backend, identity)?;
        if found.is_new {
            backend.put(Key::Identity, &framed(identity))?;
        }
        // An agent that was killed may have left what is in the system's memory only.
        backend.sync()?;
        let mark = found.mark();
        mark.write(&backend)?;
        let first = found.purged.map_or(0, |id| id.index + 1);
        let backend: SharedBackend = Arc::new(RwLock::new(Some(Box::new(backend))));
        let (writer, thread) = Writer::start(Arc::clone(&backend), mark, first)
            .map_err(|e| LogError::io("opened", e))?;
        let shared = Shared {
            backend: Arc::clone(&backend),
            strict: AtomicBool::new(true),
            writer: writer.clone(),
        };
        let store = Self {
            reader: LogReader(Arc::new(shared)),
            vote: found.vote,
            committed: found.committed,
            purged: found.purged,
            last: found.last,
        };
        let guard = LogGuard {
            backend,
            writer,
            thread: Some(thread),
        };
        Ok((store, guard))
    }

    /// Takes entries with gaps between them.
    #[cfg(test)]
    pub(crate) fn allow_gaps(&self) {
        self.reader.0.strict.store(false, Ordering::Relaxed);
    }

    fn writer(&self) -> &Writer {
        &self.reader.0.writer
    }

    /// What the log reaches.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            last: self.last,
            vote: self.vote,
        }
    }

    /// How far the log is on disk.
    pub fn durable(&self) -> Durable {
        self.writer().durable().clone()
    }

    /// The last entry that was purged: the state up to there must come from a snapshot.
    pub fn purged(&self) -> Option<LogId> {
        self.purged
    }
}

/// The way to the log's thread, for tests of what it wrote.
#[cfg(test)]
pub(super) fn writer(log: &LogStore) -> &Writer {
    log.writer()
}

/// What a log holds.
#[derive(Debug)]
pub struct Contents {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last entry that is known to be committed.
    pub committed: Option<LogId>,
    /// What was purged: the state up to there must come from a snapshot.
    pub purged: Option<LogId>,
    /// The last entry, or what was purged.
    pub last: Option<LogId>,
    /// Whether nothing was ever written to it.
    is_new: bool,
}

impl Contents {
    /// Reads and checks a whole log, and changes nothing.
    pub fn read(backend: &impl LogBackend, identity: &Identity) -> Result<Self, LogError> {
        // What an engine makes of damage need not be an error.
        catch_unwind(AssertUnwindSafe(|| Self::checked(backend, identity))).unwrap_or_else(
            |panic| {
                let told = described(&*panic);
                Err(LogError::Damaged(format!("it cannot be read ({told})")))
            },
        )
    }

    fn checked(backend: &impl LogBackend, identity: &Identity) -> Result<Self, LogError> {
        let vote: Option<records::Vote> = get(backend, Key::Vote)?;
        let committed: Option<records::LogId> = get(backend, Key::Committed)?;
        let purged: Option<records::LogId> = get(backend, Key::Purged)?;
        let mut found = Self {
            vote: vote.map(|vote| no_leader(vote.into(), identity.node_id)),
            committed: committed.map(Into::into),
            purged: purged.map(Into::into),
            last: purged.map(Into::into),
            is_new: false,
        };
        let mark = Mark::read(backend)?;
        let mut named = None;
        let each = |entry: Entry| {
            if mark.last.map(|id| id.index) == Some(entry.log_id.index) {
                named = Some(entry.log_id);
            }
            Ok(())
        };
        found.last = read_after(backend, found.purged, each)?.or(found.last);
        match get::<Identity>(backend, Key::Identity)? {
            Some(owner) if owner != *identity => {
                return Err(LogError::Foreign {
                    found: owner.to_string(),
                    expected: identity.to_string(),
                });
            }
            Some(_) => {}
            None if found.vote.is_some() || found.last.is_some() => {
                return Err(LogError::Damaged("it does not say whose it is".into()));
            }
            None => found.is_new = true,
        }
        // Only the entry that founds a cluster comes before the first vote.
        if found.vote.is_none() && found.last.is_some_and(|id| id.index > 0) {
            return Err(LogError::Damaged("its vote is missing".into()));
        }
        // It is written after the entries are on disk.
        if found.committed.map(|id| id.index) > found.last.map(|id| id.index) {
            return Err(LogError::Damaged(format!(
                "entries up to {} were committed, those after {} are missing",
                found.committed.map_or(0, |id| id.index),
                found
                    .last
                    .map_or_else(|| "the start".into(), |id| id.index.to_string()),
            )));
        }
        mark.check(&found.mark(), found.purged, named)?;
        Ok(found)
    }

    fn mark(&self) -> Mark {
        Mark {
            last: self.last,
            vote: self.vote,
        }
    }
}

/// Gives the entries after one, or all, in their order. The last one's position, if there is any.
pub fn read_after<E: From<LogError>>(
    backend: &impl LogBackend,
    before: Option<LogId>,
    mut each: impl FnMut(Entry) -> Result<(), E>,
) -> Result<Option<LogId>, E> {
    let mut next = before.map_or(0, |id| id.index + 1);
    let mut last = None;
    loop {
        let found = backend.read(next..u64::MAX, CHECK_STEP)?;
        if found.is_empty() {
            return Ok(last);
        }
        for (index, record) in found {
            if index != next {
                let missing = format!("records {next} to {} are missing", index - 1);
                return Err(LogError::Damaged(missing).into());
            }
            let entry = entry(index, &record)?;
            last = Some(entry.log_id);
            each(entry)?;
            next += 1;
        }
    }
}

/// Begins a log in an engine that is empty: it goes on after a snapshot that ends at `last`, by a node that has voted for itself since.
pub fn begin_after(
    backend: &impl LogBackend,
    identity: &Identity,
    last: LogId,
) -> Result<(), LogError> {
    let vote = Vote::new(last.leader_id.term, identity.node_id);
    backend.put(Key::Identity, &framed(identity))?;
    backend.put(Key::Vote, &framed(&records::Vote::from(vote)))?;
    backend.put(Key::Purged, &framed(&records::LogId::from(last)))?;
    backend.sync()?;
    let mark = Mark {
        last: Some(last),
        vote: Some(vote),
    };
    mark.write(backend)
}

/// The vote of a node that does not lead when it starts. openraft would have one that was stopped as the leader lead on in the same
/// term, and answer reads by the committed index that it finds on its disk, which may be older than what it had answered. What
/// it has promised with that vote, it still has: nobody else has a vote of the same term and node.
fn no_leader(vote: Vote, me: u64) -> Vote {
    match vote.leader_id.node_id == me {
        true => Vote::new(vote.leader_id.term, me),
        false => vote,
    }
}

fn get<T: DeserializeOwned>(backend: &impl LogBackend, key: Key) -> Result<Option<T>, LogError> {
    let Some(record) = backend.get(key)? else {
        return Ok(None);
    };
    let body = frame::unframe(0, &record)?;
    codec::decode(body, codec::NETWORK_LIMIT)
        .map(Some)
        .map_err(|e| LogError::Damaged(format!("{key:?}: {e}")))
}

fn framed<T: Serialize>(value: &T) -> Vec<u8> {
    frame::frame(0, &codec::encode(value))
}

fn entry(index: u64, record: &[u8]) -> Result<Entry, LogError> {
    let body = frame::unframe(index, record)?;
    let entry: records::Entry = codec::decode(body, codec::NETWORK_LIMIT)
        .map_err(|e| LogError::Damaged(format!("record {index}: {e}")))?;
    let entry = Entry::from(entry);
    match entry.log_id.index == index {
        true => Ok(entry),
        false => Err(LogError::Damaged(format!(
            "record {index} holds entry {}",
            entry.log_id.index
        ))),
    }
}

fn read_failed(error: &LogError) -> StorageError {
    StorageIOError::read_logs(AnyError::new(error)).into()
}

fn write_failed(error: &LogError) -> StorageError {
    StorageIOError::write_logs(AnyError::new(error)).into()
}

impl LogReader {
    fn is_strict(&self) -> bool {
        self.0.strict.load(Ordering::Relaxed)
    }

    /// The entries of a range that there are: openraft asks beyond both ends. As many as have `max_bytes`, or one.
    fn read(&self, range: &Range<u64>, max_bytes: usize) -> Result<Vec<Entry>, LogError> {
        loop {
            let (view, records) = self.records(range, max_bytes)?;
            if self.0.writer.lock_tail().removals() != view.removals {
                continue;
            }
            if self.is_strict() {
                complete(&view.range, &records, max_bytes == usize::MAX)?;
            }
            let entries = records.iter();
            return entries
                .map(|(index, record)| entry(*index, record))
                .collect();
        }
    }

    /// What there was of a range, and the records that were found of it.
    fn records(
        &self,
        range: &Range<u64>,
        max_bytes: usize,
    ) -> Result<(View, Vec<(u64, Bytes)>), LogError> {
        // Before the engine is asked: what leaves the tail is there.
        let mut view = self.0.writer.lock_tail().view(range);
        let Range { start, end } = view.range;
        let unstored = std::mem::take(&mut view.unstored);
        let guard = self
            .0
            .backend
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let backend = guard.as_deref().ok_or(LogError::Closed)?;
        let stored = unstored.first().map_or(end, |(index, _)| *index);
        let mut records = match start < stored {
            true => backend.read(start..stored, max_bytes)?,
            false => Vec::new(),
        };
        let mut bytes: usize = records.iter().map(|(_, record)| record.len()).sum();
        let whole = records.last().map_or(start, |(last, _)| last + 1) == stored;
        for (index, record) in unstored
            .into_iter()
            .take_while(|_| whole || !self.is_strict())
        {
            bytes = bytes.saturating_add(record.len());
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.push((index, record));
        }
        Ok((view, records))
    }
}

/// Whether no record is missing from a beginning of a range, or from all of it. An engine was seen to give a beginning, and no error,
/// of what the disk had damaged.
fn complete(range: &Range<u64>, records: &[(u64, Bytes)], all: bool) -> Result<(), LogError> {
    let missing = |index: u64| Err(LogError::Damaged(format!("record {index} is missing")));
    for (expected, (index, _)) in (range.start..).zip(records) {
        if *index != expected {
            return missing(expected);
        }
    }
    let next = records.last().map_or(range.start, |(last, _)| last + 1);
    match next < range.end && (all || records.is_empty()) {
        true => missing(next),
        false => Ok(()),
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(&(start..end), usize::MAX)
            .map_err(|e| read_failed(&e))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(&(start..end), READ_LIMIT)
            .map_err(|e| read_failed(&e))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.reader.try_get_log_entries(range).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        Ok(LogState {
            last_purged_log_id: self.purged,
            last_log_id: self.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let record = framed(&records::Vote::from(*vote));
        let mark = Mark {
            vote: Some(*vote),
            ..self.mark()
        };
        self.writer()
            .write(Write::Put(Key::Vote, record), mark)
            .await
            .map_err(|e| StorageIOError::write_vote(AnyError::new(&e)))?;
        self.vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.committed = committed;
        match committed {
            Some(id) => self
                .writer()
                .committed(id.index, framed(&records::LogId::from(id)))
                .map_err(|e| write_failed(&e)),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed)
    }

    // openraft's core waits for the callback before it does anything else, also before it sends the entries on. So it is told as
    // soon as they can be read; what follows from their being on disk waits for that itself: see `durable`.
    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut last = self.last;
        let mut records = Vec::new();
        for entry in entries {
            let id = entry.log_id;
            if let Some(before) = last
                && id.index != before.index + 1
                && self.reader.is_strict()
            {
                let error = AnyError::error(format!("entry {id} does not follow {before}"));
                return Err(StorageIOError::write_logs(error).into());
            }
            let record = frame::frame(id.index, &codec::encode(&records::Entry::from(entry)));
            records.push((id.index, Bytes::from(record)));
            last = Some(id);
        }
        let mark = Mark {
            last,
            ..self.mark()
        };
        match self.writer().append(records, mark) {
            Ok(()) => {
                self.last = last;
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.chain())));
                Err(write_failed(&error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let before = match log_id.index.checked_sub(1) {
            Some(index) => self
                .reader
                .read(&(index..log_id.index), usize::MAX)
                .map_err(|e| read_failed(&e))?
                .pop()
                .map(|entry| entry.log_id),
            None => None,
        };
        let mark = Mark {
            last: before.or(self.purged),
            ..self.mark()
        };
        self.writer()
            .write(Write::Truncate(log_id.index), mark)
            .await
            .map_err(|e| write_failed(&e))?;
        self.last = mark.last;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let record = framed(&records::LogId::from(log_id));
        let last = self.last.filter(|id| id.index >= log_id.index);
        let mark = Mark {
            last: last.or(Some(log_id)),
            ..self.mark()
        };
        self.writer()
            .write(Write::Purge(log_id.index, record), mark)
            .await
            .map_err(|e| write_failed(&e))?;
        self.purged = Some(log_id);
        self.last = mark.last;
        Ok(())
    }
}
