//! One machine: a QEMU process with its control session, its console and its disk's chain. Whoever owns a [`Machine`] is the
//! only one that acts on it.

mod end;
mod load;
mod network;
mod rest;
mod start;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use qapi::qmp::{self, Event, RunState, ShutdownCause};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, timeout, timeout_at},
};

pub use self::{end::Ending, load::Shape, rest::freeze_disk, start::Launch};
use crate::{
    capture::Prepared,
    console::Console,
    disk::{DiskError, Overlays},
    groups::Groups,
    layout::{Layout, VmDir},
    memory::{MainMemory, Memory},
    merge::Merging,
    priority::{ComesFirst, Priorities},
    process::{Exit, Process, ProcessId},
    qmp::{Qmp, QmpError},
    record::{LayerName, RecordError, VmRecord},
};

/// How long after its control session a process is given to end.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);
/// How much of QEMU's own output goes into an error.
const LOG_TAIL: u64 = 600;

/// Something went wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// QEMU ended before it could be used.
    #[error("QEMU did not start ({exit}): {log}")]
    Start {
        /// How it ended.
        exit: Exit,
        /// What it printed last.
        log: String,
    },
    /// The stream did not load.
    #[error("the snapshot did not load: {0}")]
    Load(String),
    /// The machine's process ended in the middle of something.
    #[error("QEMU ended ({exit}) while it was asked for {what}{}{log}", if log.is_empty() { "" } else { ": " })]
    Ended {
        /// What was being done.
        what: &'static str,
        /// How it ended.
        exit: Exit,
        /// What it printed last.
        log: String,
    },
    /// QEMU took too long.
    #[error("QEMU did not finish in time with {0}")]
    TimedOut(&'static str),
    /// What is asked for needs something that is not there.
    #[error("{0}")]
    NotReady(&'static str),
    /// A control command failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// A disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Layers could not be merged.
    #[error("layers of the disk could not be merged: {0}")]
    Merge(String),
    /// The record could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The system refused something.
    #[error("{what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::System { what, source }
}

/// What all machines of a node have in common.
#[derive(Debug)]
pub struct Engine {
    /// Where things are.
    pub layout: Layout,
    /// Empty overlays.
    pub overlays: Overlays,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// Whether writes are to be tracked by the kernel, where it can.
    pub track_writes: bool,
    /// Whether the kernel may merge equal pages of processes that are started from now on.
    pub merge_memory: bool,
    /// Whether the address spaces of such processes are laid out at random.
    pub aslr: bool,
    /// Where processes with limits are put.
    pub groups: Groups,
    /// How much processes give way to others.
    pub priorities: Arc<Priorities>,
    /// The host's boot.
    pub host_boot: String,
    /// Held for writing while a VM's folder gets another name, for reading by who looks at all of them.
    pub naming: RwLock<()>,
}

/// A machine whose process runs.
pub struct Machine {
    pub(crate) engine: Arc<Engine>,
    pub(crate) dir: VmDir,
    pub(crate) record: VmRecord,
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) memory: Option<Arc<Mutex<Memory>>>,
    /// An overlay that is open in QEMU and not used yet.
    pub(crate) spare: Option<LayerName>,
    /// What was done ahead for a capture.
    pub(crate) prepared: Option<Prepared>,
    /// How far it is with merging its disk's layers.
    pub(crate) merging: Merging,
    console: Console,
    cause: Option<ShutdownCause>,
    /// The group of its own that it is in.
    group: Option<PathBuf>,
    /// While it is loaded, which somebody waits for.
    comes_first: Option<ComesFirst>,
    /// Whether we have ended it.
    asked_to_end: bool,
    /// Whether this process was never seen by an earlier agent.
    pub(crate) fresh: bool,
}

impl Machine {
    /// The VM's record as it is now.
    pub fn record(&self) -> &VmRecord {
        &self.record
    }

    /// The process.
    pub fn process(&self) -> ProcessId {
        self.process.id()
    }

    /// QEMU's version, such as "10.0.2".
    pub fn qemu_version(&self) -> &str {
        self.qmp.version()
    }

    /// Becomes true when the guest printed its ready line.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.console.ready()
    }

    /// What the guest prints from now on.
    pub fn follow_console(&self) -> broadcast::Receiver<Vec<u8>> {
        self.console.follow()
    }

    /// Lets the guest stand still.
    pub async fn pause(&self) -> Result<(), MachineError> {
        self.qmp.run(qmp::stop {}).await?;
        Ok(())
    }

    /// Whether the guest runs.
    pub async fn is_running(&self) -> Result<bool, MachineError> {
        Ok(self.qmp.run(qmp::query_status {}).await?.status == RunState::running)
    }

    /// Presses the power button.
    pub async fn press_power_button(&self) -> Result<(), MachineError> {
        self.qmp.run(qmp::system_powerdown {}).await?;
        Ok(())
    }

    /// Whether the control session is still there. Without it, the machine must be adopted anew.
    pub fn is_connected(&self) -> bool {
        !self.events.is_closed()
    }

    /// The guest's main memory, to look at. Pages that the guest never touched are read as its base has them.
    pub async fn main_memory(&self) -> Result<MainMemory, MachineError> {
        let blocks = self.qmp.run(qmp::x_query_ramblock {}).await?;
        MainMemory::open(&self.process, &blocks.human_readable_text)
            .map_err(system("cannot find the guest's memory"))
    }

    /// Has the process come before those of other guests until that is dropped.
    pub(crate) fn come_first(&self) -> ComesFirst {
        let group = self.group.as_deref();
        self.engine.priorities.first(self.process.id(), group)
    }

    /// Changes the record and keeps it.
    pub fn update_record(
        &mut self,
        change: impl FnOnce(&mut VmRecord),
    ) -> Result<(), MachineError> {
        change(&mut self.record);
        Ok(self.record.save(&self.dir)?)
    }

    /// The next event, or an error when the process ends or the time is up.
    pub(crate) async fn event(
        &mut self,
        deadline: Instant,
        what: &'static str,
    ) -> Result<Event, MachineError> {
        let next = async {
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => Ok(event),
                    // The session ends when the process does.
                    None => Err(self.process.wait().await),
                },
                exit = self.process.wait() => Err(exit),
            }
        };
        match timeout_at(deadline, next).await {
            Err(_) => Err(MachineError::TimedOut(what)),
            Ok(Ok(event)) => Ok(event),
            Ok(Err(exit)) => {
                let exit = exit.map_err(system("cannot wait for QEMU"))?;
                Err(MachineError::Ended {
                    what,
                    exit,
                    log: log_tail(&self.dir),
                })
            }
        }
    }

    /// Where a session failed because the process ended, that is the error.
    async fn explained<T>(
        &self,
        result: Result<T, MachineError>,
        what: &'static str,
    ) -> Result<T, MachineError> {
        let Err(MachineError::Qmp(QmpError::Connection { .. })) = &result else {
            return result;
        };
        match timeout(ENDING_PATIENCE, self.process.wait()).await {
            Ok(Ok(exit)) => Err(MachineError::Ended {
                what,
                exit,
                log: log_tail(&self.dir),
            }),
            // It is there and its session is not, or nobody knows.
            Ok(Err(_)) | Err(_) => result,
        }
    }

    pub(crate) fn note(&mut self, event: &Event) {
        if let Event::SHUTDOWN { data, .. } = event {
            self.cause = Some(data.reason);
        }
        self.merging.note(event, self.record.merge.as_ref());
    }
}

/// The names of all block nodes. Taken from their statistics: `query-named-block-nodes` crashes QEMU 10.0 while a `block-stream`
/// that has ended is not dismissed yet, since its filter has nothing below it any more.
pub(crate) async fn block_nodes(qmp: &Qmp) -> Result<BTreeSet<String>, QmpError> {
    let query_nodes = Some(true);
    let nodes = qmp.run(qmp::query_blockstats { query_nodes }).await?;
    Ok(nodes
        .into_iter()
        .filter_map(|node| node.node_name)
        .collect())
}

/// The end of what QEMU printed, on one line.
fn log_tail(dir: &VmDir) -> String {
    // A log that cannot be read leaves an error with less to say. It may be long: nothing keeps QEMU from writing.
    let tail = || -> io::Result<Vec<u8>> {
        let mut log = File::open(dir.qemu_log())?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        log.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&tail().unwrap_or_default()).into_owned();
    text.trim()
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join("; ")
}
