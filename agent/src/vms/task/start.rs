//! How a VM gets a process: by booting, from a snapshot, or by finding the one that an earlier agent left.

use std::time::Duration;

use qemu::{
    checksum::CheckedStream,
    machine::{Launch, Machine, MachineError},
    past::{Cause, End},
    record::{Stage, StreamRef, VmName, VmRecord},
};
use tokio::{sync::watch, time::Instant};

use super::{ASK_AGAIN, Next, VmTask};
use crate::{clock, errors::chain, reconcile::plan::Is, vms::command::Then};

/// How often a boot is tried: under emulation on a busy host a guest hangs early in its kernel now and then.
const BOOT_ATTEMPTS: u32 = 2;

/// A VM's process is there, and its guest does not run.
#[derive(Debug, thiserror::Error)]
enum CannotRun {
    /// It did not do as asked.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It may not.
    #[error("it may not run here now: {0}")]
    Fenced(String),
}

/// A boot that is under way.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) launch: Launch,
    pub(super) patience: Duration,
    pub(super) attempt: u32,
    pub(super) deadline: Instant,
    pub(super) ready: watch::Receiver<bool>,
}

impl VmTask {
    /// Takes note that a process is to be started. What was before goes on in its record.
    pub(super) fn begin(&self, mut launch: Launch) -> Launch {
        self.seen.send_modify(|seen| {
            seen.past.begin(launch.boot);
            launch.past = seen.past.clone();
        });
        launch
    }

    /// Lets the guest of a process run that was just started. Of one that may not nothing stays.
    async fn let_run(&self, machine: &mut Machine) -> Result<(), CannotRun> {
        if let Err(problem) = self.fence.admit(&self.name, machine.process()).await {
            machine.kill().await?;
            return Err(CannotRun::Fenced(problem));
        }
        machine.resume().await?;
        Ok(())
    }

    pub(super) async fn begin_boot(&mut self, launch: Launch, patience: Duration, attempt: u32) {
        let boot = launch.boot;
        self.publish(Is::Booting { boot });
        let started = async {
            let mut machine = Machine::launch(&self.engine, launch.clone()).await?;
            self.let_run(&mut machine).await?;
            Ok::<_, CannotRun>(machine)
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

    pub(super) async fn boot_timed_out(&mut self) {
        let Some(boot) = self.boot.take() else { return };
        let waited = boot.patience.as_secs_f64();
        self.end_process().await;
        let problem = format!("the guest did not say that it is ready within {waited} s");
        self.boot_failed(boot, Cause::BootFailed, &problem).await;
    }

    /// Tries again, or gives up.
    pub(super) async fn boot_failed(&mut self, boot: Boot, cause: Cause, problem: &str) {
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

    pub(super) async fn restore(&mut self, launch: Launch, stream: StreamRef, paused: bool) {
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
                return Err(error.into());
            }
            if paused {
                machine.claim()?;
            } else {
                self.let_run(&mut machine).await?;
            }
            Ok::<_, CannotRun>(machine)
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

    pub(super) async fn prestart(&mut self, launch: Launch) -> Result<(), String> {
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

    pub(super) async fn go(
        &mut self,
        name: VmName,
        boot: u64,
        then: Then,
    ) -> Result<Instant, String> {
        if name != self.name {
            self.with_machine(async |machine| machine.rename(&name))
                .await?;
            self.name = name;
        }
        if then != Then::Pause
            && let Some(machine) = &self.machine
        {
            self.fence.admit(&self.name, machine.process()).await?;
        }
        let since = self
            .with_machine(async |machine| {
                machine.set_boot(boot);
                match then {
                    Then::Pause => machine.claim().map(|()| Instant::now()),
                    Then::Run => machine.resume().await,
                    Then::Arrive => machine.arrive().await,
                }
            })
            .await?;
        self.publish(match then {
            Then::Pause => Is::Paused { boot },
            Then::Run | Then::Arrive => Is::Running { boot },
        });
        Ok(since)
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
            seen.held = record.held;
            seen.past = record.past.clone();
        });
        if record.stage == Stage::Ended {
            let end = record.past.last.unwrap_or_else(|| End {
                cause: Cause::Unseen,
                detail: "it ended".to_owned(),
                at: clock::of_host(),
                exit_code: None,
            });
            // A boot that could not be started has no process that the record could be of.
            let boot = record.boot.max(record.past.boot);
            return self.stay(Is::Ended { boot, end });
        }
        let (boot, has_run) = (record.boot, record.has_run);
        if record.stage == Stage::Preparing {
            // Nothing is lost by starting it afresh.
            if let Err(error) = Machine::end_unfinished(&self.engine, &record).await {
                tracing::warn!(vm = %self.name, error = %chain(&error), "a process that was being started cannot be ended");
            }
            self.publish(Is::Absent);
            return match has_run {
                true => Next::Stay,
                // It may never have been anybody's: a process that waited for a fork. A VM that is wanted is begun again.
                false => self.destroy().await,
            };
        }
        let other_host_boot = record.host_boot != self.engine.host_boot;
        let line = self.guest.line();
        let console = self.console.clone();
        let adopted = Machine::adopt(&self.engine, &self.name, record, None, console, Some(&line));
        match adopted.await {
            Ok(Some(machine)) => {
                let running = machine.is_running().await;
                self.take_machine(machine);
                match running {
                    Ok(true) => self.publish(Is::Running { boot }),
                    Ok(false) => self.publish(Is::Paused { boot }),
                    Err(error) => self.lost_touch(&error),
                }
            }
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
            }
        }
        Next::Stay
    }

    pub(super) fn stay(&self, is: Is) -> Next {
        self.publish(is);
        Next::Stay
    }
}
