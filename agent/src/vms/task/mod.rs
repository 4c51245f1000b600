//! The task that owns one VM's machine. Nothing else touches it: whoever wants something of a VM sends a [`Command`], and
//! whoever wants to know how it is looks at its [`Seen`].

mod end;
mod start;

use std::{future::pending, sync::Arc, time::Duration};

use qemu::{
    capture::{Afterwards, CaptureError, Captured, Mode, Ticket},
    console::Wire,
    machine::{Engine, Machine, MachineError, freeze_disk},
    merge::Happened,
    past::Cause,
    process::ProcessId,
    record::{LayerName, StreamName, VmName},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use ulid::Ulid;

use self::start::Boot;
use super::{command::Command, launch};
use crate::{
    clock,
    errors::chain,
    fence::Fence,
    guest::Guest,
    reconcile::plan::{Is, Seen},
};

/// How long a guest has after its power button was pressed.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// How long until a process that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
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
    process: Arc<watch::Sender<Option<ProcessId>>>,
    console: Wire,
    guest: Guest,
    fence: Arc<Fence>,
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
        process: Arc<watch::Sender<Option<ProcessId>>>,
        console: Wire,
        guest: Guest,
        fence: Arc<Fence>,
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
            process,
            console,
            guest,
            fence,
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
            Command::Exit { code, done } => {
                self.exit(code).await;
                answer(done, ());
                return Next::Stay;
            }
            Command::Destroy => return self.destroy().await,
            Command::MakeWay { done } => return self.make_way(done).await,
            Command::PutAway { done } => {
                self.kill("it is suspended").await;
                answer(done, ());
                return Next::Stay;
            }
            Command::FreezeDisk {
                layer,
                disk_bytes,
                done,
            } => {
                let frozen = match self.machine {
                    Some(_) => Err("it has a process".to_owned()),
                    None => freeze_disk(&self.engine, &self.name, &layer, disk_bytes)
                        .await
                        .map_err(|error| chain(&error)),
                };
                answer(done, frozen);
                return Next::Stay;
            }
            Command::Prestart { launch, done } => {
                answer(done, self.prestart(*launch).await);
                return Next::Stay;
            }
            Command::Shape { shape, done } => {
                let result = self
                    .with_machine(async |machine| machine.shape(*shape).await)
                    .await;
                answer(done, result);
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
                then,
                done,
            } => {
                answer(done, self.go(name, boot, then).await);
                return Next::Stay;
            }
            Command::GroupEnd { done } => {
                let result = self
                    .with_machine(async |machine| Ok((machine.group_end()?, machine.process().pid)))
                    .await;
                answer(done, result);
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
                with,
                done,
            } => {
                let captured = self.capture(stream, layer, disk_bytes, mode, afterwards, with);
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
        if let Err(problem) = self.fence.admit(&self.name, machine.process()).await {
            // The next plan asks again.
            tracing::warn!(vm = %self.name, problem, "a VM does not go on yet");
            return Ok(());
        }
        machine.resume().await?;
        self.guest.tell_time();
        self.seen.send_modify(|seen| seen.held = false);
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
        with: Option<Ticket>,
    ) -> Result<Captured, CaptureError> {
        let running = matches!(self.seen.borrow().is, Is::Running { .. });
        let machine = self.machine.as_mut().ok_or_else(no_process)?;
        if afterwards == Afterwards::Hold {
            self.seen.send_modify(|seen| seen.held = true);
        }
        let result = machine
            .capture(&stream, &layer, disk_bytes, mode, running, afterwards, with)
            .await;
        let boot = machine.record().boot;
        if running && afterwards == Afterwards::GoOn {
            self.guest.tell_time();
        }
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

    fn take_machine(&mut self, machine: Machine) {
        self.process.send_replace(Some(machine.process()));
        let has_group_card = machine.has_group_card();
        self.seen
            .send_modify(|seen| seen.has_group_card = has_group_card);
        self.machine = Some(machine);
        self.stopping = None;
    }

    fn drop_machine(&mut self) {
        self.process.send_replace(None);
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
                seen.past.running_since.get_or_insert_with(clock::of_host);
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
