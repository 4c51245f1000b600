//! The thread that writes the log. Everything that changes it goes through here, in order; nothing else waits for the
//! disk. What has come meanwhile is written together and synced once. After a failed write it does no other: what a failed
//! sync left on the device is unknown.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Key, LogBackend, LogError, Mark,
    durable::{Durable, Progress, Tail},
    mark::Marker,
};

/// How many pieces of purged records are removed between two other jobs.
const REMOVE_STEP: usize = 256;

/// How long what need not be synced may lie in the engine's memory once the thread is idle.
const IDLE_FLUSH: Duration = Duration::from_millis(20);

/// The same, where records are acknowledged before they are flushed.
const LATE_FLUSH: Duration = Duration::from_millis(500);

/// A planted bug: what was handed to the engine counts as stored, and is flushed when there is time.
fn acknowledges_early() -> bool {
    planted::planted("log.before-flush")
}

/// Another: the mark names what is not on the device yet.
fn marks_early() -> bool {
    planted::planted("log.mark-first")
}

/// A write that takes longer is told of: whatever is proposed waits for it.
const SLOW: Duration = Duration::from_millis(250);

/// One change of the log that is waited for.
pub(super) enum Write {
    /// Removes the records from an index on.
    Truncate(u64),
    /// Sets a value.
    Put(Key, Vec<u8>),
    /// Records what was purged; the records up to the index are removed by and by.
    Purge(u64, Vec<u8>),
}

enum Job {
    /// Adds framed records. Nobody waits: see [`Durable`]. The mark is what the log reaches with them.
    Append(Vec<(u64, Bytes)>, Mark),
    Write(Write, Mark, Waiting),
    /// The committed index has changed.
    Committed,
    Stop,
}

/// The engine, until the log is closed.
pub(super) type SharedBackend = Arc<RwLock<Option<Box<dyn LogBackend>>>>;

/// A committed index, and how it is stored. One place: only the newest counts.
type Committed = Arc<Mutex<Option<(u64, Vec<u8>)>>>;

/// The way to the thread.
#[derive(Clone)]
pub(super) struct Writer {
    // Not bounded here: openraft waits for most, and for what it appends a leader waits by what it has in flight, a follower
    // by its answers.
    jobs: Sender<Job>,
    committed: Committed,
    tail: Arc<Mutex<Tail>>,
    durable: Durable,
}

impl Writer {
    /// Starts the thread. `mark` is what the log reaches, which is on the device and marked; `first` the
    /// index after what was purged, of which something may still be there.
    pub(super) fn start(
        backend: SharedBackend,
        mark: Mark,
        first: u64,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let end = mark.last.map_or(0, |id| id.index + 1);
        let marker = Marker::start(Arc::clone(&backend))?;
        let (jobs, queue) = channel();
        let committed = Committed::default();
        let tail = Arc::new(Mutex::new(Tail::new(first..end)));
        let (progress, durable) = Durable::new(Arc::clone(&tail));
        let thread = Thread {
            backend,
            committed: Arc::clone(&committed),
            tail: Arc::clone(&tail),
            progress,
            marker,
            reached: mark,
            poison: None,
            purged: first.checked_sub(1),
            dirty: false,
        };
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || thread.run(&queue))?;
        let writer = Self {
            jobs,
            committed,
            tail,
            durable,
        };
        Ok((writer, thread))
    }

    /// How far the log is on disk.
    pub(super) fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Adds records, with which the log reaches `mark`. They can be read when it returns, and are on the device when [`Durable`]
    /// says so.
    pub(super) fn append(&self, records: Vec<(u64, Bytes)>, mark: Mark) -> Result<(), LogError> {
        self.durable.check()?;
        self.lock_tail().append(&records);
        self.send(Job::Append(records, mark))
    }

    /// Makes a change, with which the log reaches `mark`, and returns when it is on the device.
    pub(super) async fn write(&self, write: Write, mark: Mark) -> Result<(), LogError> {
        match write {
            Write::Truncate(from) => self.lock_tail().truncate(from),
            Write::Purge(upto, _) => self.lock_tail().purge(upto),
            Write::Put(..) => {}
        }
        let (done, result) = oneshot::channel();
        self.send(Job::Write(write, mark, done))?;
        result.await.map_err(|_| LogError::Closed)?
    }

    /// Notes the committed index. It is written soon after its record, and not synced.
    pub(super) fn committed(&self, index: u64, record: Vec<u8>) -> Result<(), LogError> {
        *self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some((index, record));
        self.send(Job::Committed)
    }

    /// Ends the thread after what it has been given.
    pub(super) fn stop(&self) {
        // An error says that it has ended.
        let _ = self.jobs.send(Job::Stop);
    }

    /// What was appended and cannot be read from the engine yet.
    pub(super) fn lock_tail(&self) -> std::sync::MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, job: Job) -> Result<(), LogError> {
        self.jobs.send(job).map_err(|_| LogError::Closed)
    }
}

struct Thread {
    backend: SharedBackend,
    committed: Committed,
    tail: Arc<Mutex<Tail>>,
    progress: Progress,
    marker: Marker,
    /// What the log reaches on the device.
    reached: Mark,
    poison: Option<String>,
    /// Records up to here are to be removed.
    purged: Option<u64>,
    /// Something was written that is not flushed.
    dirty: bool,
}

/// What is written together.
#[derive(Default)]
struct Batch {
    changes: Vec<Asked>,
    stop: bool,
}

/// A change, what the log reaches with it, and who waits for it.
struct Asked {
    change: Change,
    mark: Mark,
    done: Option<Waiting>,
}

/// Whoever waits for a change.
type Waiting = oneshot::Sender<Result<(), LogError>>;

enum Change {
    Append(Vec<(u64, Bytes)>),
    Other(Write),
}

impl Batch {
    fn add(&mut self, job: Job) {
        match job {
            Job::Append(records, mark) => self.changes.push(Asked {
                change: Change::Append(records),
                mark,
                done: None,
            }),
            Job::Write(write, mark, done) => self.changes.push(Asked {
                change: Change::Other(write),
                mark,
                done: Some(done),
            }),
            Job::Committed => {}
            Job::Stop => self.stop = true,
        }
    }
}

impl Thread {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            let Some(job) = self.next(queue) else {
                self.idle();
                continue;
            };
            let mut batch = Batch::default();
            batch.add(job);
            while !batch.stop
                && let Ok(job) = queue.try_recv()
            {
                batch.add(job);
            }
            if !batch.changes.is_empty() {
                self.write_all(batch.changes);
            }
            self.write_committed();
            if batch.stop {
                break;
            }
        }
        if self.dirty {
            self.flush();
        }
    }

    /// The next job, or none when there is time for what can wait.
    fn next(&self, queue: &Receiver<Job>) -> Option<Job> {
        if self.purged.is_some() && self.poison.is_none() {
            return match queue.try_recv() {
                Ok(job) => Some(job),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Job::Stop),
            };
        }
        if self.dirty && self.poison.is_none() {
            let idle = match acknowledges_early() {
                true => LATE_FLUSH,
                false => IDLE_FLUSH,
            };
            return match queue.recv_timeout(idle) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Job::Stop),
            };
        }
        Some(queue.recv().unwrap_or(Job::Stop))
    }

    fn idle(&mut self) {
        match self.purged {
            Some(upto) => {
                let left = self.guarded(|_, backend| backend.remove_upto(upto, REMOVE_STEP));
                match left {
                    Ok(true) => {}
                    Ok(false) => self.purged = None,
                    Err(error) => log_failure(&error),
                }
                self.dirty = true;
            }
            None => self.flush(),
        }
    }

    fn flush(&mut self) {
        match self.guarded(|_, backend| backend.flush()) {
            Ok(()) => self.dirty = false,
            Err(error) => log_failure(&error),
        }
    }

    /// Writes the committed index once its record is on the device: it must not be found without.
    fn write_committed(&mut self) {
        let end = self.progress.end();
        let waiting = self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(|(index, _)| *index < end);
        if let Some((_, record)) = waiting {
            match self.guarded(|_, backend| backend.put(Key::Committed, &record)) {
                Ok(()) => self.dirty = true,
                Err(error) => log_failure(&error),
            }
        }
    }

    /// Writes all, in order, and syncs once.
    fn write_all(&mut self, changes: Vec<Asked>) {
        let begun = Instant::now();
        let mut end = self.progress.end();
        let mut result = self.guarded(|this, backend| {
            this.marker.check()?;
            for asked in &changes {
                end = this.write(backend, asked, end)?;
            }
            if marks_early() {
                this.synced(backend, &changes)?;
                this.marker.mark(backend, this.reached)?;
            }
            match acknowledges_early() {
                true => Ok(()),
                false => backend.sync().and_then(|()| this.synced(backend, &changes)),
            }
        });
        let took = begun.elapsed();
        if took > SLOW {
            tracing::warn!(
                ?took,
                "the log's disk is slow: what is proposed waits for it"
            );
        }
        match &result {
            Ok(()) => {
                let appended = changes.iter().filter_map(|asked| match &asked.change {
                    Change::Append(records) => Some(records),
                    Change::Other(_) => None,
                });
                self.tail
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .stored(appended.flatten().map(|(index, _)| *index));
                self.dirty = acknowledges_early();
                self.progress.reached(end);
            }
            Err(error) => {
                log_failure(error);
                self.progress.failed(&error.chain());
            }
        }
        for done in changes.into_iter().filter_map(|asked| asked.done) {
            let told = match &self.poison {
                None => Ok(()),
                // What went wrong for the first, for the others that something did.
                Some(reason) => {
                    let poisoned = Err(LogError::Poisoned(reason.clone()));
                    std::mem::replace(&mut result, poisoned)
                }
            };
            // Nobody waits when openraft is being stopped.
            let _ = done.send(told);
        }
    }

    /// Makes a change. Gives the index after the last record, which was `end`.
    fn write(
        &mut self,
        backend: &dyn LogBackend,
        asked: &Asked,
        end: u64,
    ) -> Result<u64, LogError> {
        match &asked.change {
            Change::Append(records) => {
                backend.append(records)?;
                Ok(records.last().map_or(end, |(last, _)| last + 1))
            }
            Change::Other(Write::Truncate(from)) => {
                self.give_up(backend, *from, asked.mark)?;
                backend.truncate(*from)?;
                Ok(end.min(*from))
            }
            Change::Other(Write::Put(key, value)) => {
                backend.put(*key, value)?;
                Ok(end)
            }
            Change::Other(Write::Purge(upto, record)) => {
                backend.put(Key::Purged, record)?;
                self.purged = Some(*upto);
                Ok(end.max(upto + 1))
            }
        }
    }

    /// Has the mark name nothing from an index on, before the records go. `after` is what the log reaches without them, some of
    /// which may not be on the device.
    fn give_up(
        &mut self,
        backend: &dyn LogBackend,
        from: u64,
        after: Mark,
    ) -> Result<(), LogError> {
        if self.reached.last.is_none_or(|last| last.index < from) {
            return Ok(());
        }
        // What is before those on the device is there, too.
        self.reached.last = after.last;
        self.marker.mark(backend, self.reached)
    }

    /// Marks what is on the device now.
    fn synced(&mut self, backend: &dyn LogBackend, changes: &[Asked]) -> Result<(), LogError> {
        let Some(last) = changes.last() else {
            return Ok(());
        };
        self.reached = last.mark;
        let is_vote =
            |asked: &Asked| matches!(asked.change, Change::Other(Write::Put(Key::Vote, _)));
        match changes.iter().any(is_vote) {
            true => self.marker.mark(backend, self.reached),
            false => {
                self.marker.reached(self.reached);
                Ok(())
            }
        }
    }

    /// Does something with the engine unless something failed before.
    fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self, &dyn LogBackend) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        if let Some(reason) = &self.poison {
            return Err(LogError::Poisoned(reason.clone()));
        }
        let shared = Arc::clone(&self.backend);
        let guard = shared.read().unwrap_or_else(PoisonError::into_inner);
        let backend = guard.as_deref().ok_or(LogError::Closed)?;
        let result = work(self, backend);
        if let Err(error) = &result {
            self.poison = Some(error.chain());
        }
        result
    }
}

/// For failures that nobody waits for: the next write reports them.
fn log_failure(error: &LogError) {
    tracing::error!(error = error.chain(), "the log cannot be written");
}
