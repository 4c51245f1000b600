//! The task that owns one VM's machine. Nothing else touches it: whoever wants something of a VM sends a [`Command`], and
//! whoever wants to know how it is looks at its [`Seen`].

use std::{future::pending, sync::Arc, time::Duration};

use qemu::{
    capture::{Afterwards, CaptureError, Captured, Mode},
    checksum::CheckedStream,
    console::{self, Wire},
    failpoint,
    machine::{Ending, Engine, Launch, Machine, MachineError},
    merge::Happened,
    past::{Cause, End},
    record::{LayerName, Stage, StreamName, StreamRef, VmName, VmRecord},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use ulid::Ulid;

use super::{command::Command, ending, launch};
use crate::{
    errors::chain,
    node::now,
    reconcile::plan::{Is, Seen},
};

/// How long a guest has after its power button was pressed.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// How often a boot is tried: under emulation on a busy host a guest hangs early in its kernel now and then.
const BOOT_ATTEMPTS: u32 = 2;
/// How long until a process that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A boot that is under way.
#[derive(Debug)]
struct Boot {
    launch: Launch,
    patience: Duration,
    attempt: u32,
    deadline: Instant,
    ready: watch::Receiver<bool>,
}

/// The task's own state.
pub struct VmTask {
    engine: Arc<Engine>,
    name: VmName,
    machine: Option<Machine>,
    boot: Option<Boot>,
    stopping: Option<Instant>,
    /// A process that is there and did not answer, and when to ask it again.
    silent: Option<Instant>,
    seen: Arc<watch::Sender<Seen>>,
    pid: Arc<watch::Sender<u32>>,
    console: Wire,
}

/// What goes on after a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// There is still a VM to own.
    Stay,
    /// Nothing is left of it.
    Leave,
}

impl VmTask {
    /// A task for a VM that has no process.
    pub fn new(
        engine: Arc<Engine>,
        name: VmName,
        seen: Arc<watch::Sender<Seen>>,
        pid: Arc<watch::Sender<u32>>,
        console: Wire,
    ) -> Self {
        let (machine, boot, stopping, silent) = (None, None, None, None);
        Self {
            engine,
            name,
            machine,
            boot,
            stopping,
            silent,
            seen,
            pid,
            console,
        }
    }

    /// Owns the VM until it is destroyed or nobody can ask anything of it any more. Its process outlives the task.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let boot_deadline = self.boot.as_ref().map(|boot| boot.deadline);
            let (stopping, silent) = (self.stopping, self.silent);
            if let Some(machine) = &mut self.machine {
                machine.want_merge();
            }
            let next = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => return,
                },
                what = happened(self.machine.as_mut()) => {
                    match what {
                        Happened::Ended(ending) => self.ended(ending).await,
                        Happened::Merge => self.merge().await,
                    }
                    Next::Stay
                }
                () = ready(self.boot.as_mut()) => {
                    self.boot = None;
                    self.publish_running();
                    Next::Stay
                }
                () = at(boot_deadline) => {
                    self.boot_timed_out().await;
                    Next::Stay
                }
                () = at(stopping) => {
                    self.kill("its guest did not end within 30 s after its power button was pressed").await;
                    Next::Stay
                }
                () = at(silent) => self.adopt().await,
            };
            if next == Next::Leave {
                return;
            }
        }
    }

    async fn carry_out(&mut self, command: Command) -> Next {
        let result = match command {
            Command::Boot { launch, patience } => {
                let launch = self.begin(*launch);
                self.begin_boot(launch, patience, 1).await;
                Ok(())
            }
            Command::CannotStart { boot, problem } => {
                self.seen.send_modify(|seen| seen.past.begin(boot));
                self.has_ended(boot, Cause::StartFailed, problem);
                Ok(())
            }
            Command::Restore {
                launch,
                stream,
                paused,
            } => {
                let launch = self.begin(*launch);
                self.restore(launch, stream, paused).await;
                Ok(())
            }
            Command::Pause => self.pause().await,
            Command::Resume => self.resume().await,
            Command::Stop => self.stop().await,
            Command::Kill => {
                self.kill("it was stopped").await;
                Ok(())
            }
            Command::Destroy => return self.destroy().await,
            Command::MakeWay { done } => return self.make_way(done).await,
            Command::PutAway { done } => {
                self.kill("it is suspended").await;
                answer(done, ());
                return Next::Stay;
            }
            Command::Prestart { launch, done } => {
                answer(done, self.prestart(*launch).await);
                return Next::Stay;
            }
            Command::Load { stream, done } => {
                let result = self
                    .with_machine(async |machine| machine.load(&stream).await)
                    .await;
                answer(done, result);
                return Next::Stay;
            }
            Command::Go {
                name,
                boot,
                paused,
                done,
            } => {
                answer(done, self.go(name, boot, paused).await);
                return Next::Stay;
            }
            Command::Expect {
                stream,
                disk_bytes,
                done,
            } => {
                let machine = self.machine.as_ref().ok_or_else(no_process);
                answer(
                    done,
                    machine.and_then(|machine| machine.expect(&stream, disk_bytes)),
                );
                return Next::Stay;
            }
            Command::Prepare {
                stream,
                layer,
                disk_bytes,
                mode,
            } => {
                let prepared = match &mut self.machine {
                    Some(machine) => machine.prepare(&stream, &layer, disk_bytes, mode).await,
                    None => Err(no_process()),
                };
                if let Err(error) = prepared {
                    tracing::debug!(vm = %self.name, error = %chain(&error), "a capture could not be prepared");
                }
                return Next::Stay;
            }
            Command::Unprepare(stream) => {
                let released = self
                    .machine
                    .as_mut()
                    .map(|machine| machine.release(&stream));
                if let Some(Err(error)) = released {
                    tracing::warn!(vm = %self.name, error = %chain(&error), "a VM's record could not be kept");
                }
                return Next::Stay;
            }
            Command::Capture {
                stream,
                layer,
                disk_bytes,
                mode,
                afterwards,
                done,
            } => {
                let captured = self.capture(stream, layer, disk_bytes, mode, afterwards);
                answer(done, captured.await);
                return Next::Stay;
            }
        };
        if let Err(error) = result {
            tracing::warn!(vm = %self.name, error = %chain(&error), "a VM did not do as asked");
            self.lost_touch(&error);
        }
        self.not_busy();
        Next::Stay
    }

    // -- Starting ----------------------------------------------------------------------------------------------------

    /// Takes note that a process is to be started. What was before goes on in its record.
    fn begin(&self, mut launch: Launch) -> Launch {
        self.seen.send_modify(|seen| {
            seen.past.begin(launch.boot);
            launch.past = seen.past.clone();
        });
        launch
    }

    async fn begin_boot(&mut self, launch: Launch, patience: Duration, attempt: u32) {
        let boot = launch.boot;
        self.publish(Is::Booting { boot });
        let started = async {
            let mut machine = Machine::launch(&self.engine, launch.clone()).await?;
            machine.resume().await?;
            Ok::<_, MachineError>(machine)
        };
        match started.await {
            Ok(machine) => {
                let ready = machine.ready();
                self.take_machine(machine);
                let deadline = Instant::now() + patience;
                self.boot = Some(Boot {
                    launch,
                    patience,
                    attempt,
                    deadline,
                    ready,
                });
            }
            Err(error) => self.has_ended(boot, Cause::StartFailed, chain(&error)),
        }
    }

    async fn boot_timed_out(&mut self) {
        let Some(boot) = self.boot.take() else { return };
        let waited = boot.patience.as_secs_f64();
        self.end_process().await;
        let problem = format!("the guest did not say that it is ready within {waited} s");
        self.boot_failed(boot, Cause::BootFailed, &problem).await;
    }

    /// Tries again, or gives up.
    async fn boot_failed(&mut self, boot: Boot, cause: Cause, problem: &str) {
        if boot.attempt < BOOT_ATTEMPTS {
            tracing::warn!(vm = %self.name, problem, "booting again");
            let mut launch = boot.launch;
            launch.new_layer = false;
            launch.has_run = true;
            return self
                .begin_boot(launch, boot.patience, boot.attempt + 1)
                .await;
        }
        let (number, times) = (boot.launch.boot, boot.attempt);
        self.has_ended(
            number,
            cause,
            format!("boot-timeout: {problem}, {times} times"),
        );
    }

    async fn restore(&mut self, launch: Launch, stream: StreamRef, paused: bool) {
        let boot = launch.boot;
        let started = async {
            // Beside the start of the process.
            let checked = CheckedStream::check(&self.engine.layout, stream);
            let launched = Machine::launch(&self.engine, launch);
            let (checked, launched) = tokio::join!(checked, launched);
            let mut machine = launched?;
            let loaded = match &checked {
                Ok(stream) => machine.load(stream).await,
                Err(unfit) => Err(MachineError::Load(chain(unfit))),
            };
            if let Err(error) = loaded {
                machine.kill().await?;
                return Err(error);
            }
            if paused {
                machine.claim()?
            } else {
                machine.resume().await?
            }
            Ok(machine)
        };
        match started.await {
            Ok(machine) => {
                self.take_machine(machine);
                self.publish(if paused {
                    Is::Paused { boot }
                } else {
                    Is::Running { boot }
                });
            }
            Err(error) => self.has_ended(boot, Cause::StartFailed, chain(&error)),
        }
    }

    async fn prestart(&mut self, launch: Launch) -> Result<(), String> {
        let runs = |machine: &Machine| machine.record().stage == Stage::Running;
        if self.machine.as_ref().is_some_and(runs) {
            return Err("it runs already".to_owned());
        }
        if self.machine.is_some() {
            self.end_process().await;
        }
        match Machine::launch(&self.engine, launch).await {
            Ok(machine) => {
                self.take_machine(machine);
                Ok(())
            }
            Err(error) => Err(chain(&error)),
        }
    }

    async fn go(&mut self, name: VmName, boot: u64, paused: bool) -> Result<Instant, String> {
        if name != self.name {
            self.with_machine(async |machine| machine.rename(&name))
                .await?;
            self.name = name;
        }
        let result = self
            .with_machine(async |machine| {
                machine.set_boot(boot);
                if paused {
                    machine.claim()
                } else {
                    machine.resume().await
                }
            })
            .await;
        let now = Instant::now();
        result?;
        self.publish(if paused {
            Is::Paused { boot }
        } else {
            Is::Running { boot }
        });
        Ok(now)
    }

    /// Connects to the process that the VM's record names, if it is still there. Called at the agent's start, and again for a
    /// process that does not answer.
    pub async fn adopt(&mut self) -> Next {
        self.silent = None;
        let dir = self.engine.layout.vm(&self.name);
        let record = match VmRecord::load(&dir) {
            Ok(Some(record)) => record,
            // It was just made, or half deleted: either way nothing runs that has its name, and nobody may ever ask for it.
            Ok(None) => return self.destroy().await,
            Err(error) => {
                // Whatever it says, its process (if there is one) is not touched.
                tracing::error!(vm = %self.name, error = %chain(&error), "a VM's record cannot be read");
                return self.stay(Is::Unknown);
            }
        };
        self.seen.send_modify(|seen| {
            seen.has_run = record.has_run;
            seen.past = record.past.clone();
        });
        if record.stage == Stage::Ended {
            let end = record.past.last.unwrap_or_else(|| End {
                cause: Cause::Unseen,
                detail: "it ended".to_owned(),
                at: now(),
            });
            // A boot that could not be started has no process that the record could be of.
            let boot = record.boot.max(record.past.boot);
            return self.stay(Is::Ended { boot, end });
        }
        let other_host_boot = record.host_boot != self.engine.host_boot;
        let (boot, preparing) = (record.boot, record.stage == Stage::Preparing);
        let never_ran = preparing && !record.has_run;
        match Machine::adopt(&self.engine, &self.name, record, None, self.console.clone()).await {
            Ok(Some(mut machine)) if preparing => {
                // Nothing is lost by starting it afresh.
                if let Err(error) = machine.kill().await {
                    tracing::warn!(vm = %self.name, error = %chain(&error), "a process that was being started cannot be ended");
                }
                self.publish(Is::Absent);
            }
            Ok(Some(machine)) => {
                let running = machine.is_running().await;
                self.take_machine(machine);
                match running {
                    Ok(true) => self.publish(Is::Running { boot }),
                    Ok(false) => self.publish(Is::Paused { boot }),
                    Err(error) => self.lost_touch(&error),
                }
            }
            Ok(None) if preparing => self.publish(Is::Absent),
            Ok(None) => {
                let (cause, detail) = if other_host_boot {
                    (Cause::HostLost, "its host was restarted")
                } else {
                    (Cause::Unseen, "QEMU ended while the agent was away")
                };
                self.has_ended(boot, cause, detail.to_owned());
            }
            Err(error) => {
                tracing::warn!(vm = %self.name, error = %chain(&error), "a VM's process does not answer");
                self.publish(Is::Unknown);
                self.silent = Some(Instant::now() + ASK_AGAIN);
                return Next::Stay;
            }
        }
        if never_ran {
            // It may never have been anybody's: a process that waited for a fork. A VM that is wanted is begun again.
            return self.destroy().await;
        }
        Next::Stay
    }

    fn stay(&self, is: Is) -> Next {
        self.publish(is);
        Next::Stay
    }

    // -- Running -----------------------------------------------------------------------------------------------------

    async fn pause(&mut self) -> Result<(), MachineError> {
        let Some(machine) = &self.machine else {
            return Ok(());
        };
        machine.pause().await?;
        self.publish(Is::Paused {
            boot: machine.record().boot,
        });
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), MachineError> {
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        machine.resume().await?;
        self.publish_running();
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), MachineError> {
        if let (Some(machine), None) = (&self.machine, self.stopping) {
            machine.press_power_button().await?;
            self.stopping = Some(Instant::now() + STOP_GRACE);
        }
        Ok(())
    }

    async fn capture(
        &mut self,
        stream: StreamName,
        layer: LayerName,
        disk_bytes: u64,
        mode: Mode,
        afterwards: Afterwards,
    ) -> Result<Captured, CaptureError> {
        let running = matches!(self.seen.borrow().is, Is::Running { .. });
        let machine = self.machine.as_mut().ok_or_else(no_process)?;
        let result = machine
            .capture(&stream, &layer, disk_bytes, mode, running, afterwards)
            .await;
        let boot = machine.record().boot;
        if afterwards == Afterwards::Hold && result.is_ok() {
            self.publish(Is::Paused { boot });
        }
        if let Err(CaptureError::Machine(error)) = &result {
            self.lost_touch(error);
        }
        result
    }

    async fn merge(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let name = launch::layer_name(Ulid::new().0);
        if let Err(error) = machine.go_on_merging(name).await {
            tracing::warn!(vm = %self.name, error = %chain(&error), "layers of a VM's disk were not merged; its chain stays as it was");
            self.lost_touch(&error);
        }
    }

    // -- Ending ------------------------------------------------------------------------------------------------------

    async fn ended(&mut self, ending: Result<Ending, MachineError>) {
        let record = self.machine.as_ref().map(Machine::record);
        let boot = record.map_or(0, |record| record.boot);
        let preparing = record.is_some_and(|record| record.stage == Stage::Preparing);
        if let Some(machine) = &mut self.machine {
            machine.drain_console().await;
        }
        self.drop_machine();
        let stopping = self.stopping.take().is_some();
        let (cause, detail) = match ending {
            Ok(ending) => ending::explain(&ending, stopping, &self.console_log()),
            Err(error) => (Cause::Crash, chain(&error)),
        };
        if let Some(under_way) = self.boot.take()
            && !stopping
        {
            let problem = format!("{detail} before the guest was up");
            let cause = ending::of_boot(cause);
            return self.boot_failed(under_way, cause, &problem).await;
        }
        if preparing {
            // It was no VM yet: there is nothing to keep.
            self.keep_none();
            let end = End {
                cause,
                detail,
                at: now(),
            };
            return self.publish(Is::Ended { boot, end });
        }
        self.has_ended(boot, cause, detail);
    }

    /// What its guest printed, as far as it is kept.
    fn console_log(&self) -> Vec<u8> {
        let path = self.engine.layout.vm(&self.name).console_log();
        console::read_log(&path).unwrap_or_else(|error| {
            tracing::debug!(vm = %self.name, %error, "a console's output cannot be read");
            Vec::new()
        })
    }

    async fn kill(&mut self, reason: &str) {
        if self.machine.is_none() && matches!(self.seen.borrow().is, Is::Ended { .. }) {
            // It was quicker.
            return;
        }
        self.boot = None;
        let boot = self
            .machine
            .as_ref()
            .map_or(0, |machine| machine.record().boot);
        self.end_process().await;
        self.has_ended(boot, Cause::Stopped, reason.to_owned());
    }

    async fn destroy(&mut self) -> Next {
        self.boot = None;
        let scrap = self.unused_layer();
        self.end_process().await;
        failpoint::reached("remove.process-ended");
        if let Some(layer) = scrap
            && let Err(error) = std::fs::remove_file(self.engine.layout.layer(&layer))
        {
            tracing::debug!(vm = %self.name, %error, "an overlay that was never used stays until files are collected");
        }
        failpoint::reached("remove.overlay-deleted");
        let deleted = std::fs::remove_dir_all(self.engine.layout.vm(&self.name).path());
        failpoint::reached("remove.folder-deleted");
        match deleted {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(vm = %self.name, %error, "a VM's folder could not be deleted; trying again later");
                self.not_busy();
                Next::Stay
            }
            _ => Next::Leave,
        }
    }

    async fn make_way(&mut self, done: oneshot::Sender<Result<(), String>>) -> Next {
        self.boot = None;
        let struck = match &mut self.machine {
            Some(machine) => machine.strike().map_err(|error| chain(&error)),
            None => Ok(()),
        };
        failpoint::reached("reset.struck");
        let gone = struck.and_then(|()| {
            match std::fs::remove_dir_all(self.engine.layout.vm(&self.name).path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(format!("the VM's folder cannot be deleted: {error}"))
                }
                _ => Ok(()),
            }
        });
        let next = match gone {
            Ok(()) => Next::Leave,
            Err(_) => Next::Stay,
        };
        answer(done, gone);
        if next == Next::Leave {
            self.end_process().await;
        }
        next
    }

    /// The overlay of a process whose guest never ran: nothing can refer to it.
    fn unused_layer(&self) -> Option<LayerName> {
        let record = self.machine.as_ref()?.record();
        (!record.has_run)
            .then(|| record.layers.first().cloned())
            .flatten()
    }

    async fn end_process(&mut self) {
        self.stopping = None;
        if let Some(machine) = &mut self.machine
            && let Err(error) = machine.kill().await
        {
            tracing::warn!(vm = %self.name, error = %chain(&error), "a VM's process could not be ended");
        }
        self.drop_machine();
    }

    // -- Bookkeeping -------------------------------------------------------------------------------------------------

    fn take_machine(&mut self, machine: Machine) {
        self.pid.send_replace(machine.process().pid);
        self.machine = Some(machine);
        self.stopping = None;
    }

    fn drop_machine(&mut self) {
        self.pid.send_replace(0);
        self.machine = None;
    }

    async fn with_machine<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Machine) -> Result<T, MachineError>,
    ) -> Result<T, String> {
        match &mut self.machine {
            Some(machine) => work(machine).await.map_err(|error| chain(&error)),
            None => Err("it has no process".to_owned()),
        }
    }

    /// A process that does not answer is asked again: nothing is known of it until it does.
    fn lost_touch(&mut self, error: &MachineError) {
        if matches!(
            error,
            MachineError::Qmp(
                qemu::qmp::QmpError::Connection { .. } | qemu::qmp::QmpError::TimedOut { .. }
            )
        ) {
            self.drop_machine();
            self.silent = Some(Instant::now() + ASK_AGAIN);
            self.publish(Is::Unknown);
        }
    }

    /// It has no process any more. Keeps why, so that an agent that comes later knows, and says so.
    fn has_ended(&self, boot: u64, cause: Cause, detail: String) {
        let end = End {
            cause,
            detail,
            at: now(),
        };
        let mut past = self.seen.borrow().past.clone();
        past.end(boot, end.clone());
        self.keep(|record| {
            record.stage = Stage::Ended;
            record.past = past.clone();
        });
        self.seen.send_modify(|seen| seen.past = past);
        self.publish(Is::Ended { boot, end });
    }

    /// Keeps that a process which was no VM yet is gone.
    fn keep_none(&self) {
        self.keep(|record| record.stage = Stage::Preparing);
    }

    /// Keeps in the VM's record, if it has one, that it has no process, and what else there is to say.
    fn keep(&self, change: impl FnOnce(&mut VmRecord)) {
        let dir = self.engine.layout.vm(&self.name);
        let kept = VmRecord::load(&dir).and_then(|record| match record {
            Some(mut record) => {
                record.process = None;
                change(&mut record);
                record.save(&dir)
            }
            None => Ok(()),
        });
        if let Err(error) = kept {
            tracing::warn!(vm = %self.name, error = %chain(&error), "how a VM ended could not be kept");
        }
    }

    fn publish_running(&self) {
        let boot = self
            .machine
            .as_ref()
            .map_or(0, |machine| machine.record().boot);
        self.publish(Is::Running { boot });
    }

    fn publish(&self, is: Is) {
        let has_run = matches!(
            is,
            Is::Running { .. } | Is::Paused { .. } | Is::Booting { .. }
        );
        self.seen.send_modify(|seen| {
            seen.is = is;
            seen.busy = false;
            seen.has_run |= has_run;
            if has_run {
                // In its record its machine notes the same.
                seen.past.running_since.get_or_insert_with(now);
            }
        });
    }

    fn not_busy(&self) {
        self.seen.send_modify(|seen| seen.busy = false);
    }
}

fn no_process() -> CaptureError {
    CaptureError::Machine(MachineError::NotReady("it has no process"))
}

/// Answers whoever asked, if they still wait.
fn answer<T>(done: oneshot::Sender<T>, result: T) {
    drop(done.send(result));
}

async fn happened(machine: Option<&mut Machine>) -> Happened {
    match machine {
        Some(machine) => machine.happened().await,
        None => pending().await,
    }
}

async fn ready(boot: Option<&mut Boot>) {
    match boot {
        Some(boot) => {
            if boot.ready.wait_for(|ready| *ready).await.is_err() {
                // The console is gone: the process's end will say more.
                pending().await
            }
        }
        None => pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
