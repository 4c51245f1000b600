//! One machine: a QEMU process with its control session, its console and its disk's chain. Whoever owns a [`Machine`] is the
//! only one that acts on it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use qapi::qmp::{self, Event, MigrationStatus, RunState, ShutdownCause};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    capture::Prepared,
    checksum::CheckedStream,
    console::{Console, Wire},
    disk::{self, DiskError, Overlays},
    failpoint,
    groups::{self, Groups, Limits},
    layout::{self, Layout, VmDir},
    memory::{MainMemory, Memory},
    merge::Merging,
    oom,
    past::Past,
    process::{Exit, Process, ProcessId},
    qmp::{BlockdevSetActive, Qmp, QmpError},
    record::{BaseName, LayerName, RECORD_VERSION, RecordError, Stage, VmName, VmRecord},
    spec::{self, CommandLine, Descriptors, Device, Hardware, Start},
    sys::spawn::{FIRST_FD, GUEST_NICE, Spawn, set_oom_score},
};

/// How long a new process may take until its control socket answers. An idle host needs a few dozen milliseconds; a hundred
/// forks at once on two processors need seconds.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The same for a process that ran before.
const ADOPT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a stream may take to load.
const LOAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long after its control session a process is given to end.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);
/// How much of QEMU's own output goes into an error.
const LOG_TAIL: usize = 600;

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
    /// The host's boot.
    pub host_boot: String,
    /// Held for writing while a VM's folder gets another name, for reading by who looks at all of them.
    pub naming: RwLock<()>,
}

/// How a machine is to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Its VM.
    pub vm: VmName,
    /// Which boot of the VM this is.
    pub boot: u64,
    /// Whether its guest ran in an earlier boot.
    pub has_run: bool,
    /// What became of its processes so far.
    pub past: Past,
    /// User and group of the process.
    pub user: Option<(u32, u32)>,
    /// The machine.
    pub hardware: Hardware,
    /// What its process may take at most.
    pub limits: Limits,
    /// The base that its memory is a private mapping of; `None` for anonymous memory.
    pub base: Option<BaseName>,
    /// What it begins with.
    pub start: Start,
    /// The disk's layers, the writable one first; empty without a disk.
    pub layers: Vec<LayerName>,
    /// The disk's size, bytes.
    pub disk_bytes: u64,
    /// Whether the first layer is new: then it is made, and taken away again when the start fails.
    pub new_layer: bool,
    /// The image's disk below them.
    pub image_disk: Option<String>,
    /// See [`Console::open`].
    pub ready_line: Option<String>,
    /// What leads from its console to those who read and write it.
    pub console: Wire,
}

/// How a machine ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// The process's exit.
    pub exit: Exit,
    /// What QEMU said about it before.
    pub cause: Option<ShutdownCause>,
    /// What it printed last.
    pub log: String,
    /// Whether it was the kernel that ended it, for want of memory.
    pub out_of_memory: Option<oom::Cause>,
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
    /// Whether we have ended it.
    asked_to_end: bool,
    /// Whether this process was never seen by an earlier agent.
    pub(crate) fresh: bool,
}

impl Machine {
    /// Starts a process and connects to it. Its guest does not run yet.
    pub async fn launch(engine: &Arc<Engine>, launch: Launch) -> Result<Self, MachineError> {
        let dir = engine.layout.vm(&launch.vm);
        dir.create(launch.user)
            .map_err(system("cannot make the VM's folder"))?;
        failpoint::reached("restore.folder-made");
        let mut record = VmRecord {
            version: RECORD_VERSION,
            boot: launch.boot,
            stage: Stage::Preparing,
            has_run: launch.has_run,
            process: None,
            host_boot: engine.host_boot.clone(),
            user: launch.user,
            hardware: launch.hardware.clone(),
            base: launch.base.clone(),
            delta_base: launch.base.clone(),
            layers: launch.layers.clone(),
            next_layer: None,
            image_disk: launch.image_disk.clone(),
            merge: None,
            replaced: Vec::new(),
            merge_memory: engine.merge_memory,
            past: launch.past.clone(),
        };
        record.save(&dir)?;
        failpoint::reached("restore.record-saved");
        if let (true, Some(layer)) = (launch.new_layer, launch.layers.first()) {
            engine.overlays.prepare(launch.disk_bytes).await?;
            engine
                .overlays
                .create(layer, launch.disk_bytes, launch.user)?;
            failpoint::reached("restore.overlay-made");
        }
        // What an earlier boot printed about itself must not explain this one's end.
        fs::write(dir.qemu_log(), b"").map_err(system("cannot make QEMU's log"))?;
        let qmp_socket = dir
            .socket("qmp")
            .map_err(system("cannot make the VM's sockets"))?;
        let console_socket = dir
            .socket("console")
            .map_err(system("cannot make the VM's sockets"))?;
        let (process, group) =
            start_process(engine, &dir, &launch, [&qmp_socket, &console_socket])?;
        let pid = process.id().pid;
        failpoint::reached_by("restore.process-started", pid);
        record.process = Some(process.id());
        record.save(&dir)?;
        failpoint::reached_by("restore.process-saved", pid);

        // Before anything is loaded: a guest that was captured with a full console waits for somebody to read it.
        let connected = connect(&dir, [&qmp_socket, &console_socket], &launch).await;
        failpoint::reached_by("restore.connected", pid);
        match connected {
            Ok((console, (qmp, events))) => Ok(Self {
                engine: Arc::clone(engine),
                dir,
                record,
                process,
                qmp,
                events,
                memory: None,
                spare: None,
                prepared: None,
                merging: Merging::default(),
                console,
                cause: None,
                group,
                asked_to_end: false,
                fresh: true,
            }),
            Err(error) => {
                process
                    .kill()
                    .map_err(system("cannot end a process that did not start"))?;
                let exit = process
                    .wait()
                    .await
                    .map_err(system("cannot wait for QEMU"))?;
                if let Some(group) = &group {
                    engine.groups.remove(group);
                }
                let log = log_tail(&dir);
                tracing::debug!(%error, "QEMU did not answer");
                Err(if log.is_empty() {
                    error
                } else {
                    MachineError::Start { exit, log }
                })
            }
        }
    }

    /// Connects to a process that an earlier agent started; `None` when it is gone. Its guest is not touched.
    pub async fn adopt(
        engine: &Arc<Engine>,
        vm: &VmName,
        mut record: VmRecord,
        ready_line: Option<&str>,
        console: Wire,
    ) -> Result<Option<Self>, MachineError> {
        let dir = engine.layout.vm(vm);
        let Some(id) = record
            .process
            .filter(|_| record.host_boot == engine.host_boot)
        else {
            return Ok(None);
        };
        let Some(process) = Process::adopt(id).map_err(system("cannot look at a process"))? else {
            return Ok(None);
        };
        let socket = dir
            .socket("console")
            .map_err(system("cannot find the VM's sockets"))?;
        let console = Console::open(socket.path(), &dir.console_log(), ready_line, console)
            .await
            .map_err(system("cannot open the console"))?;
        let socket = dir
            .socket("qmp")
            .map_err(system("cannot find the VM's sockets"))?;
        let (qmp, events) = Qmp::connect(socket.path(), ADOPT_PATIENCE).await?;

        let group = engine.groups.of(id.pid);
        let mut spare = None;
        if let Some(next) = record.next_layer.clone() {
            let node = disk::layer_node(&next).node;
            let top = top_node(&qmp).await?;
            if top.as_deref() == Some(&node) {
                record.layers = record.layers_with_next();
                record.next_layer = None;
                record.save(&dir)?;
            } else if block_nodes(&qmp).await?.contains(&node) {
                spare = Some(next);
            } else {
                record.next_layer = None;
                record.save(&dir)?;
            }
        }
        let mut machine = Self {
            engine: Arc::clone(engine),
            dir,
            record,
            process,
            qmp,
            events,
            memory: None,
            spare,
            prepared: None,
            merging: Merging::default(),
            console,
            cause: None,
            group,
            asked_to_end: false,
            fresh: false,
        };
        machine.adopt_merge().await?;
        Ok(Some(machine))
    }

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

    /// Loads a stream into a machine that was started for one.
    pub async fn load(&mut self, stream: &CheckedStream) -> Result<(), MachineError> {
        let loaded = self.load_stream(stream).await;
        self.explained(loaded, "a snapshot to load").await
    }

    async fn load_stream(&mut self, stream: &CheckedStream) -> Result<(), MachineError> {
        let events = qmp::MigrationCapabilityStatus {
            capability: qmp::MigrationCapability::events,
            state: true,
        };
        self.qmp
            .run(qmp::migrate_set_capabilities {
                capabilities: vec![events],
            })
            .await?;
        let uri = format!("file:{}", layout::stream(stream.name()));
        self.qmp
            .run(qmp::migrate_incoming {
                channels: None,
                exit_on_error: Some(false),
                uri: Some(uri),
            })
            .await?;
        failpoint::reached_by("restore.loading", self.process.id().pid);
        let deadline = Instant::now() + LOAD_PATIENCE;
        loop {
            match self.event(deadline, "a snapshot to load").await? {
                Event::MIGRATION { data, .. } => match data.status {
                    MigrationStatus::completed => {
                        failpoint::reached_by("restore.loaded", self.process.id().pid);
                        return self.activate_disk().await;
                    }
                    MigrationStatus::failed | MigrationStatus::cancelled => {
                        return Err(MachineError::Load(self.load_problem().await));
                    }
                    _ => {}
                },
                other => self.note(&other),
            }
        }
    }

    /// Has QEMU open the disk's chain for use. It would do that in `cont` otherwise, where somebody waits: reading every layer's
    /// header and tables takes 2 ms of it on a busy host. Before 10.0 it does so at the end of a load by itself.
    async fn activate_disk(&self) -> Result<(), MachineError> {
        let major = self.qmp.version().split('.').next();
        let leaves_it = major.and_then(|major| major.parse().ok()) >= Some(10_u32);
        if leaves_it && !self.record.layers.is_empty() {
            self.qmp.run(BlockdevSetActive { active: true }).await?;
            failpoint::reached("restore.disk-active");
        }
        Ok(())
    }

    async fn load_problem(&self) -> String {
        let said = match self.qmp.run(qmp::query_migrate {}).await {
            Ok(info) => info.error_desc,
            Err(error) => Some(error.to_string()),
        };
        said.filter(|text| !text.is_empty())
            .unwrap_or_else(|| log_tail(&self.dir))
    }

    /// Has the machine go by another name from now on: a process that waited becomes a VM. Its folder moves; QEMU was given its
    /// sockets open, and nothing else by that path.
    pub fn rename(&mut self, vm: &VmName) -> Result<(), MachineError> {
        let dir = self.engine.layout.vm(vm);
        let _nobody_looks = self
            .engine
            .naming
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        fs::rename(self.dir.path(), dir.path()).map_err(system("cannot name a VM's folder"))?;
        failpoint::reached("restore.folder-renamed");
        self.dir = dir;
        Ok(())
    }

    /// Has a process that waited be this boot of its VM; kept when it is claimed.
    pub fn set_boot(&mut self, boot: u64) {
        self.record.boot = boot;
    }

    /// Lets the guest run. From here on the process is the VM, and an agent that finds it keeps it.
    pub async fn resume(&mut self) -> Result<(), MachineError> {
        let begun = Instant::now();
        self.claim()?;
        let claimed = Instant::now();
        let went_on = self.cont().await;
        self.explained(went_on, "cont").await?;
        failpoint::reached("restore.went-on");
        let (claim, cont) = (claimed - begun, claimed.elapsed());
        tracing::debug!(dir = %self.dir.path().display(), ?claim, ?cont, "the guest goes on");
        Ok(())
    }

    /// Makes the process the VM, without letting its guest run yet.
    pub fn claim(&mut self) -> Result<(), MachineError> {
        if self.record.stage != Stage::Running {
            self.record.stage = Stage::Running;
            self.record.has_run = true;
            self.record.past.running_since = Some(now_ms());
            self.record.save(&self.dir)?;
            let pid = self.process.id().pid;
            failpoint::reached_by("restore.claimed", pid);
            let score = match self.record.base {
                None => oom::BOOTED,
                Some(_) => oom::FORK,
            };
            set_oom_score(pid, score).map_err(system("cannot say how dear a process is"))?;
        }
        Ok(())
    }

    /// `cont`. Right after a load QEMU may refuse it for a moment, until it has tidied up.
    pub(crate) async fn cont(&self) -> Result<(), MachineError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match self.qmp.run(qmp::cont {}).await {
                Ok(_) => return Ok(()),
                Err(QmpError::Refused { reason, .. })
                    if Instant::now() < deadline && reason.contains("not finalized") =>
                {
                    sleep(Duration::from_micros(200)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
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

    /// Ends the process at once and waits until it is gone.
    pub async fn kill(&mut self) -> Result<Ending, MachineError> {
        self.strike()?;
        self.ended().await
    }

    /// Ends the process at once: nothing of it runs any more when this returns, though the kernel may still be taking it down.
    pub fn strike(&mut self) -> Result<(), MachineError> {
        self.process.kill().map_err(system("cannot end QEMU"))?;
        self.asked_to_end = true;
        Ok(())
    }

    /// Keeps what its guest printed last, after the process has ended.
    pub async fn drain_console(&mut self) {
        self.console.drain().await;
    }

    /// Waits until the process has ended. Can be given up and called again.
    pub async fn ended(&mut self) -> Result<Ending, MachineError> {
        let mut open = true;
        let exit = loop {
            tokio::select! {
                event = self.events.recv(), if open => match event {
                    Some(event) => self.note(&event),
                    None => open = false,
                },
                exit = self.process.wait() => break exit.map_err(system("cannot wait for QEMU"))?,
            }
        };
        // Nothing below waits: given up here, the exit status would be lost.
        while let Ok(event) = self.events.try_recv() {
            self.note(&event);
        }
        let out_of_memory = self.out_of_memory(exit);
        if let Some(group) = &self.group {
            self.engine.groups.remove(group);
        }
        Ok(Ending {
            exit,
            cause: self.cause,
            log: log_tail(&self.dir),
            out_of_memory,
        })
    }

    /// Whether the kernel ended the process for want of memory, as far as that can be known.
    fn out_of_memory(&self, exit: Exit) -> Option<oom::Cause> {
        let killed = matches!(exit, Exit::Signal(libc::SIGKILL) | Exit::Unknown);
        if !killed || self.asked_to_end || self.cause.is_some() {
            return None;
        }
        if self
            .group
            .as_deref()
            .is_some_and(|group| groups::oom_kills(group) > 0)
        {
            return Some(oom::Cause::Group);
        }
        let id = self.process.id();
        oom::killed(id.pid, id.started).unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel's log cannot be read: it may have been out of memory");
            None
        })
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

async fn connect(
    dir: &VmDir,
    [qmp, console]: [&layout::SocketPath; 2],
    launch: &Launch,
) -> Result<(Console, (Qmp, mpsc::Receiver<Event>)), MachineError> {
    let log = dir.console_log();
    let console = Console::open(
        console.path(),
        &log,
        launch.ready_line.as_deref(),
        launch.console.clone(),
    )
    .await
    .map_err(system("cannot open the console"))?;
    Ok((console, Qmp::connect(qmp.path(), START_PATIENCE).await?))
}

fn start_process(
    engine: &Engine,
    dir: &VmDir,
    launch: &Launch,
    sockets: [&layout::SocketPath; 2],
) -> Result<(Process, Option<PathBuf>), MachineError> {
    let memory = match &launch.base {
        None => spec::Memory::Anonymous,
        Some(base) => spec::Memory::Base {
            path: layout::base(base),
        },
    };
    let chain = disk::chain(&launch.layers, launch.image_disk.as_deref());
    let port = match launch.hardware.devices.contains(&Device::Port) {
        true => Some(
            dir.socket("port")
                .map_err(system("cannot make the VM's sockets"))?,
        ),
        false => None,
    };
    let arguments = spec::arguments(&CommandLine {
        name: &format!("fp-{}", launch.vm),
        hardware: &launch.hardware,
        memory,
        start: launch.start.clone(),
        disk: &chain,
        fds: Descriptors {
            qmp: FIRST_FD,
            console: FIRST_FD + 1,
            port: port.is_some().then_some(FIRST_FD + 2),
        },
    });
    let listen = |socket: &layout::SocketPath| {
        socket
            .listen()
            .map_err(system("cannot make the VM's sockets"))
    };
    let mut fds = vec![listen(sockets[0])?.into(), listen(sockets[1])?.into()];
    if let Some(port) = &port {
        fds.push(listen(port)?.into());
    }
    let mut env = Vec::new();
    if engine.track_writes {
        env.push(("LD_PRELOAD", layout::TRACKING_LIBRARY.into()));
    }
    let output = fs::File::options()
        .append(true)
        .open(dir.qemu_log())
        .map_err(system("cannot open QEMU's log"))?;
    let cannot_group = "cannot make a control group for the VM's limits";
    let group = engine
        .groups
        .prepare(&launch.vm.0, &launch.limits)
        .map_err(system(cannot_group))?;
    let procs = group.as_ref().map(|group| group.procs.try_clone());
    let process = Process::start(Spawn {
        program: engine.qemu.clone(),
        args: arguments.into_iter().map(OsString::from).collect(),
        env,
        directory: engine.layout.root().to_owned(),
        fds,
        output,
        user: launch.user,
        nice: GUEST_NICE,
        // A guest that was booted runs faster on them, and its memory is looked at faster. A fork's memory is a file's, which has
        // none in a private mapping; in the rest of the process they undo what copy-on-write saves.
        huge_pages: launch.base.is_none(),
        merge_memory: engine.merge_memory,
        aslr: engine.aslr,
        oom_score: Some(oom::WAITING),
        group: procs.transpose().map_err(system(cannot_group))?,
    })
    .map_err(system("cannot start QEMU"))?;
    Ok((process, group.map(|group| group.path)))
}

/// The node that the disk device is connected to.
async fn top_node(qmp: &Qmp) -> Result<Option<String>, QmpError> {
    let devices = qmp.run(qmp::query_block {}).await?;
    Ok(devices
        .into_iter()
        .find_map(|device| device.inserted?.node_name))
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

/// The host's clock, milliseconds since the epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock that stands before the epoch is as good as none.
    since.map_or(0, |since| since.as_millis() as u64)
}

/// The end of what QEMU printed, on one line.
fn log_tail(dir: &VmDir) -> String {
    // A log that cannot be read leaves an error with less to say.
    let bytes = fs::read(dir.qemu_log()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL)..]).into_owned();
    text.trim()
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join("; ")
}
