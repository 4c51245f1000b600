//! Starting a machine's process, and finding one again.

use std::{ffi::OsString, fs, path::PathBuf, sync::Arc, time::Duration};

use qapi::qmp::{self, Event};
use tokio::sync::mpsc;

use super::{
    Engine, Machine, MachineError, block_nodes, load::activate_disk, log_tail, network, system,
};
use crate::{
    console::{Console, Wire},
    disk, failpoint,
    groups::Limits,
    layout::{self, VmDir},
    merge::Merging,
    oom,
    past::Past,
    port::Line,
    process::Process,
    qmp::{Qmp, QmpError},
    record::{BaseName, LayerName, RECORD_VERSION, Stage, VmName, VmRecord},
    spec::{self, CommandLine, Descriptors, Hardware, NetworkLine, Start},
    sys::spawn::{FIRST_FD, GUEST_NICE, Spawn},
};

/// How long a new process may take until its control socket answers. An idle host needs a few dozen milliseconds; a hundred
/// forks at once on two processors need seconds.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The same for a process that ran before.
const ADOPT_PATIENCE: Duration = Duration::from_secs(5);

/// The name of the socket that is a machine's port.
const PORT_SOCKET: &str = "port";

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
    /// User and group of the process: the group is its lineage's.
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
    /// How its network is, where it has one.
    pub network: NetworkLine,
    /// Where the connection to its guest's agent goes. Without one, nobody is connected to its port.
    pub port: Option<Line>,
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
            held: false,
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
            Ok(session) => Ok(Self::of(engine, dir, record, process, session, group)),
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

    /// Ends a process that an earlier agent began to start, without a word to it: it may wait for something that only comes when this agent has
    /// looked at all of them.
    pub async fn end_unfinished(engine: &Engine, record: &VmRecord) -> Result<(), MachineError> {
        let id = record
            .process
            .filter(|_| record.host_boot == engine.host_boot);
        let Some(id) = id else { return Ok(()) };
        let found = Process::adopt(id).map_err(system("cannot look at a process"))?;
        let Some(process) = found else { return Ok(()) };
        let group = engine.groups.of(id.pid);
        process.kill().map_err(system("cannot end QEMU"))?;
        process
            .wait()
            .await
            .map_err(system("cannot wait for QEMU"))?;
        if let Some(group) = &group {
            engine.groups.remove(group);
        }
        Ok(())
    }

    /// Connects to a process that an earlier agent started; `None` when it is gone. Its guest is not touched.
    pub async fn adopt(
        engine: &Arc<Engine>,
        vm: &VmName,
        mut record: VmRecord,
        ready_line: Option<&str>,
        console: Wire,
        port: Option<&Line>,
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
        connect_port(&dir, &record.hardware, port).await?;
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
        let session = (console, (qmp, events));
        let mut machine = Self::of(engine, dir, record, process, session, group);
        machine.spare = spare;
        machine.fresh = false;
        machine.adopt_merge().await?;
        Ok(Some(machine))
    }

    /// One that was just started and is spoken to.
    fn of(
        engine: &Arc<Engine>,
        dir: VmDir,
        record: VmRecord,
        process: Process,
        (console, (qmp, events)): Session,
        group: Option<PathBuf>,
    ) -> Self {
        Self {
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
            comes_first: None,
            asked_to_end: false,
            fresh: true,
        }
    }
}

/// What a process is spoken to through.
type Session = (Console, (Qmp, mpsc::Receiver<Event>));

async fn connect(
    dir: &VmDir,
    [qmp, console]: [&layout::SocketPath; 2],
    launch: &Launch,
) -> Result<Session, MachineError> {
    let log = dir.console_log();
    let console = Console::open(
        console.path(),
        &log,
        launch.ready_line.as_deref(),
        launch.console.clone(),
    )
    .await
    .map_err(system("cannot open the console"))?;
    connect_port(dir, &launch.hardware, launch.port.as_ref()).await?;
    let (qmp, events) = Qmp::connect(qmp.path(), START_PATIENCE).await?;
    if launch.start == Start::Shapeless {
        activate_disk(&qmp).await?;
    }
    Ok((console, (qmp, events)))
}

/// Connects to the port of a process, where it has one and somebody speaks to its guest's agent.
async fn connect_port(
    dir: &VmDir,
    hardware: &Hardware,
    line: Option<&Line>,
) -> Result<(), MachineError> {
    let (true, Some(line)) = (hardware.has_port(), line) else {
        return Ok(());
    };
    let cannot = "cannot open the port to the guest's agent";
    let socket = dir.socket(PORT_SOCKET).map_err(system(cannot))?;
    line.connect_to(socket.path()).await.map_err(system(cannot))
}

fn start_process(
    engine: &Engine,
    dir: &VmDir,
    launch: &Launch,
    sockets: [&layout::SocketPath; 2],
) -> Result<(Process, Option<PathBuf>), MachineError> {
    let memory = match (&launch.base, &launch.start) {
        (_, Start::Shapeless) => spec::Memory::Later,
        (None, _) => spec::Memory::Anonymous,
        (Some(base), _) => spec::Memory::Base {
            path: layout::base(base),
        },
    };
    let chain = disk::chain(&launch.layers, launch.image_disk.as_deref());
    let port = match launch.hardware.has_port() {
        true => Some(
            dir.socket(PORT_SOCKET)
                .map_err(system("cannot make the VM's sockets"))?,
        ),
        false => None,
    };
    let pair = network::pair(&launch.hardware).map_err(system("cannot make a pair of sockets"))?;
    let arguments = spec::arguments(&CommandLine {
        name: &format!("fp-{}", launch.vm),
        hardware: &launch.hardware,
        memory,
        start: launch.start.clone(),
        disk: &chain,
        network: launch.network,
        fds: Descriptors {
            qmp: FIRST_FD,
            console: FIRST_FD + 1,
            port: port.is_some().then_some(FIRST_FD + 2),
            group: pair.is_some().then(|| network::card_end(&launch.hardware)),
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
    fds.extend(pair.into_iter().flatten());
    let mut env = Vec::new();
    if engine.track_writes {
        env.push(("LD_PRELOAD", layout::TRACKING_LIBRARY.into()));
    }
    let output = fs::File::options()
        .append(true)
        .open(dir.qemu_log())
        .map_err(system("cannot open QEMU's log"))?;
    let cannot_group = "cannot make a control group for the VM";
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
        groups: engine.layout.readers().into_iter().collect(),
        nice: GUEST_NICE,
        // A guest that was booted runs faster on them, and its memory is looked at faster. A fork's memory is a file's, which has
        // none in a private mapping; in the rest of the process they undo what copy-on-write saves.
        huge_pages: matches!(launch.start, Start::Boot { .. }),
        merge_memory: engine.merge_memory,
        aslr: engine.aslr,
        oom_score: Some(oom::WAITING),
        group: procs.transpose().map_err(system(cannot_group))?,
    })
    .inspect_err(|_| {
        if let Some(group) = &group {
            engine.groups.remove(&group.path);
        }
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
