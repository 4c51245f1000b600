//! A QEMU process: started, found again after the agent was away, watched, ended. Held by a pidfd, so that a process id that
//! the kernel gave to another process meanwhile is never signalled.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::{
    readiness,
    spawn::{Spawn, spawn},
};

/// Names a process for all time: the kernel gives a process id again, but not with the same start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its process id.
    pub pid: u32,
    /// When it was started: clock ticks since the host's boot, field 22 of `/proc/PID/stat`.
    pub started: u64,
}

/// How a process ended, as far as that can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not our child (the agent was started anew since), so nobody told us.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => write!(f, "unknown exit status"),
        }
    }
}

/// A process that we started or found again. Dropping it leaves the process running.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts one.
    pub fn start(what: Spawn) -> io::Result<Self> {
        let child = spawn(what)?;
        let pid = child.id();
        // It is our child and not reaped, so the process id is still its.
        let pidfd = readiness::watch(open(pid)?)?;
        let started = start_time(pid)?;
        Ok(Self {
            id: ProcessId { pid, started },
            pidfd,
        })
    }

    /// Finds a process again; `None` when it is gone.
    pub fn adopt(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(held) = Held::open(id)? else {
            return Ok(None);
        };
        let pidfd = readiness::watch(held.pidfd)?;
        Ok(Some(Self { id, pidfd }))
    }

    /// Its name for all time.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        is_alive(self.id)
    }

    /// Ends it at once. Nothing when it has ended before.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended, and lets go of it in the process table.
    pub async fn wait(&self) -> io::Result<Exit> {
        // A pidfd becomes readable when its process ends.
        let _ready = self.pidfd.ready(Interest::READABLE).await?;
        match waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => Ok(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            }),
            // Not our child, or somebody waited for it before.
            Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(Exit::Unknown),
            Err(error) => Err(error.into()),
        }
    }
}

/// A process that somebody else started, held to be sent signals. Needs no runtime.
#[derive(Debug)]
pub struct Held {
    id: ProcessId,
    pidfd: OwnedFd,
}

impl Held {
    /// Holds a process; `None` when it is gone.
    pub fn open(id: ProcessId) -> io::Result<Option<Self>> {
        let pidfd = match open(id.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The start is read after the pidfd was opened: if it fits, the pidfd is of that process.
        match start_time(id.pid) {
            Ok(started) if started == id.started => {}
            Ok(_) => return Ok(None),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok((!is_zombie(id.pid)).then_some(Self { id, pidfd }))
    }

    /// Its name for all time.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        is_alive(self.id)
    }

    /// Sends it a signal. Nothing when it has ended before.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let raw = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("no process id"))?;
    Ok(pidfd_open(raw, PidfdFlags::NONBLOCK)?)
}

pub(crate) fn is_alive(id: ProcessId) -> bool {
    start_time(id.pid).is_ok_and(|started| started == id.started) && !is_zombie(id.pid)
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)). The name in field 2 may hold anything, so fields count from its end.
fn start_time(pid: u32) -> io::Result<u64> {
    stat_field(pid, 22)?.parse().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat has no start time"),
        )
    })
}

fn is_zombie(pid: u32) -> bool {
    stat_field(pid, 3).is_ok_and(|state| state == "Z" || state == "X")
}

fn stat_field(pid: u32, field: usize) -> io::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(field - 3))
        .map(str::to_owned)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat is cut off"),
            )
        })
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {

    use super::*;

    fn sleep() -> Process {
        let output = fs::File::open("/dev/null").unwrap();
        Process::start(Spawn::new("sleep", &["60"], output)).unwrap()
    }

    #[tokio::test]
    async fn a_process_is_found_again_until_it_has_ended() {
        let process = sleep();
        let again = Process::adopt(process.id()).unwrap().expect("it runs");
        assert!(again.is_alive());
        again.kill().unwrap();
        assert_eq!(process.wait().await.unwrap(), Exit::Signal(9));
        assert!(!again.is_alive());
        assert!(Process::adopt(process.id()).unwrap().is_none());
        again.kill().unwrap();
    }

    #[tokio::test]
    async fn a_process_with_another_start_is_another_process() {
        let process = sleep();
        let other = ProcessId {
            started: process.id().started + 1,
            ..process.id()
        };
        assert!(Process::adopt(other).unwrap().is_none());
        process.kill().unwrap();
        process.wait().await.unwrap();
    }
}
