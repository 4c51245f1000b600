//! How a VM's process ends, and what is kept of that.

use qemu::{
    console, failpoint,
    machine::{Ending, Machine, MachineError},
    past::{Cause, End},
    record::{LayerName, Stage, VmRecord},
};
use tokio::sync::oneshot;

use super::{Next, VmTask, answer};
use crate::{clock, errors::chain, reconcile::plan::Is, vms::ending};

impl VmTask {
    pub(super) async fn ended(&mut self, ending: Result<Ending, MachineError>) {
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
                at: clock::of_host(),
                exit_code: None,
            };
            return self.publish(Is::Ended { boot, end });
        }
        self.has_ended(boot, cause, detail);
    }

    /// What its guest printed, as far as it is kept.
    pub(super) fn console_log(&self) -> Vec<u8> {
        let path = self.engine.layout.vm(&self.name).console_log();
        console::read_log(&path).unwrap_or_else(|error| {
            tracing::debug!(vm = %self.name, %error, "a console's output cannot be read");
            Vec::new()
        })
    }

    pub(super) async fn kill(&mut self, reason: &str) {
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

    /// Its guest has done what it was for.
    pub(super) async fn exit(&mut self, code: i32) {
        let Some(machine) = &self.machine else { return };
        let boot = machine.record().boot;
        self.boot = None;
        self.end_process().await;
        self.has_ended_with(
            boot,
            End {
                cause: Cause::Exited,
                detail: format!("its guest ended it with the code {code}"),
                at: clock::of_host(),
                exit_code: Some(code),
            },
        );
    }

    pub(super) async fn destroy(&mut self) -> Next {
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

    pub(super) async fn make_way(&mut self, done: oneshot::Sender<Result<(), String>>) -> Next {
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
    pub(super) fn unused_layer(&self) -> Option<LayerName> {
        let record = self.machine.as_ref()?.record();
        (!record.has_run)
            .then(|| record.layers.first().cloned())
            .flatten()
    }

    pub(super) async fn end_process(&mut self) {
        self.stopping = None;
        if let Some(machine) = &mut self.machine
            && let Err(error) = machine.kill().await
        {
            tracing::warn!(vm = %self.name, error = %chain(&error), "a VM's process could not be ended");
        }
        self.drop_machine();
    }
    /// It has no process any more. Keeps why, so that an agent that comes later knows, and says so.
    pub(super) fn has_ended(&self, boot: u64, cause: Cause, detail: String) {
        let end = End {
            cause,
            detail,
            at: clock::of_host(),
            exit_code: None,
        };
        self.has_ended_with(boot, end);
    }

    fn has_ended_with(&self, boot: u64, end: End) {
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
    pub(super) fn keep_none(&self) {
        self.keep(|record| record.stage = Stage::Preparing);
    }

    /// Keeps in the VM's record, if it has one, that it has no process, and what else there is to say.
    pub(super) fn keep(&self, change: impl FnOnce(&mut VmRecord)) {
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
}
