//! The thread that writes the log. Everything that changes it goes through here, in order; nothing else blocks on the
//! disk. After a failed write it does no other: what a failed sync left on the device is unknown.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Key, LogBackend, LogError};

/// Jobs that may wait. openraft waits for each of its writes, so this is never reached.
const QUEUE: usize = 64;

/// How many pieces of purged records are removed between two other jobs.
const REMOVE_STEP: usize = 256;

/// How long what need not be synced may lie in the engine's memory once the thread is idle.
const IDLE_FLUSH: Duration = Duration::from_millis(20);

/// A write that takes longer is told of: openraft waits for it, and hears and says nothing meanwhile.
const SLOW: Duration = Duration::from_millis(250);

/// One change of the log.
pub(super) enum Write {
    /// Adds framed records.
    Append(Vec<(u64, Vec<u8>)>),
    /// Removes the records from an index on.
    Truncate(u64),
    /// Sets a value, on the device.
    Put(Key, Vec<u8>),
    /// Records what was purged, on the device; the records up to the index are removed by and by.
    Purge(u64, Vec<u8>),
}

enum Job {
    Write(Write, oneshot::Sender<Result<(), LogError>>),
    /// The committed index has changed.
    Committed,
    Stop,
}

/// The engine, until the log is closed.
pub(super) type SharedBackend = Arc<RwLock<Option<Box<dyn LogBackend>>>>;

/// The way to the thread.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: SyncSender<Job>,
    /// The committed index that is not yet written. One place: only the newest counts.
    committed: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Writer {
    /// Starts the thread. `leftover` is an index up to which purged records may still be there.
    pub(super) fn start(
        backend: SharedBackend,
        leftover: Option<u64>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = sync_channel(QUEUE);
        let committed = Arc::new(Mutex::new(None));
        let thread = Thread {
            backend,
            committed: Arc::clone(&committed),
            poison: None,
            purged: leftover,
            dirty: false,
        };
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || thread.run(&queue))?;
        Ok((Self { jobs, committed }, thread))
    }

    /// Makes a change, and returns when it is on the device.
    pub(super) async fn write(&self, write: Write) -> Result<(), LogError> {
        let (done, result) = oneshot::channel();
        self.jobs
            .send(Job::Write(write, done))
            .map_err(|_| LogError::Closed)?;
        result.await.map_err(|_| LogError::Closed)?
    }

    /// Notes the committed index. It is written soon, and not synced.
    pub(super) fn committed(&self, record: Vec<u8>) -> Result<(), LogError> {
        *self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(record);
        match self.jobs.try_send(Job::Committed) {
            // When the queue is full, the thread looks after the job it has.
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => Err(LogError::Closed),
        }
    }

    /// Ends the thread after what it has been given.
    pub(super) fn stop(&self) {
        // An error says that it has ended.
        let _ = self.jobs.send(Job::Stop);
    }
}

struct Thread {
    backend: SharedBackend,
    committed: Arc<Mutex<Option<Vec<u8>>>>,
    poison: Option<String>,
    /// Records up to here are to be removed.
    purged: Option<u64>,
    /// Something was written that is not flushed.
    dirty: bool,
}

impl Thread {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            match self.next(queue) {
                Some(Job::Write(write, done)) => {
                    let begun = Instant::now();
                    let result = self.guarded(|this, backend| this.write(backend, write));
                    let took = begun.elapsed();
                    if took > SLOW {
                        tracing::warn!(
                            ?took,
                            "the log's disk is slow; others may take this node for lost"
                        );
                    }
                    // Nobody waits when openraft is being stopped.
                    let _ = done.send(result);
                }
                Some(Job::Committed) => {}
                Some(Job::Stop) => break,
                None => self.idle(),
            }
            self.write_committed();
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
            return match queue.recv_timeout(IDLE_FLUSH) {
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

    fn write_committed(&mut self) {
        let waiting = self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(record) = waiting {
            match self.guarded(|_, backend| backend.put(Key::Committed, &record, false)) {
                Ok(()) => self.dirty = true,
                Err(error) => log_failure(&error),
            }
        }
    }

    fn write(&mut self, backend: &dyn LogBackend, write: Write) -> Result<(), LogError> {
        match write {
            Write::Append(records) => backend.append(&records)?,
            Write::Truncate(from) => backend.truncate(from)?,
            Write::Put(key, value) => backend.put(key, &value, true)?,
            Write::Purge(upto, record) => {
                backend.put(Key::Purged, &record, true)?;
                self.purged = Some(upto);
            }
        }
        self.dirty = false;
        Ok(())
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
