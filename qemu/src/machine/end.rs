//! How a machine ends, by itself or by us.

use qapi::qmp::ShutdownCause;

use super::{Machine, MachineError, log_tail, system};
use crate::{groups, oom, process::Exit};

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

impl Machine {
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
        if self.group.as_deref().is_some_and(groups::ran_out_of_memory) {
            return Some(oom::Cause::Group);
        }
        let id = self.process.id();
        oom::killed(id.pid, id.started).unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel's log cannot be read: it may have been out of memory");
            None
        })
    }
}
