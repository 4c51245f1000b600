//! The kernel's out-of-memory killer: in which order it takes processes, and whether it was what ended one.
//!
//! A process that was killed does not say by whom. Its group counts kills over its own limit; for all others the kernel's log
//! names the process. Where neither can be read, nothing is claimed.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
};

use rustix::time::{ClockId, clock_gettime};

/// The agent: last of all. Added to the share of memory that a process uses, in thousandths of what there is.
pub const AGENT: i32 = -900;
/// A VM that was booted: what it holds is nowhere else.
pub const BOOTED: i32 = 200;
/// A fork: its snapshot can be forked again.
pub const FORK: i32 = 500;
/// A process whose guest has not run yet: nothing is lost with it.
pub const WAITING: i32 = 900;

/// Whether the kernel's log says that it killed this process for want of memory, since it was started (`started` clock ticks after
/// the host's boot). Fails where the log cannot be read.
pub fn killed(pid: u32, started: u64) -> io::Result<Option<Cause>> {
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let started_us =
        (started * 1_000_000 / rustix::param::clock_ticks_per_second()).saturating_sub(slept_us());
    // Larger than any record.
    let mut record = [0; 8192];
    let mut found = None;
    loop {
        let length = match log.read(&mut record) {
            Ok(0) => return Ok(found),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(found),
            // Overwritten while it was read: the next read gives the oldest that is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&record[..length]);
        if let Some(cause) = names(&text, pid, started_us) {
            found = Some(cause);
        }
    }
}

/// How long the host has slept since its boot: a process's start counts that, the log does not.
fn slept_us() -> u64 {
    let us = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
    };
    us(ClockId::Boottime).saturating_sub(us(ClockId::Monotonic))
}

/// Why the kernel killed a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The host had no memory left.
    Host,
    /// A group that it was in had none left.
    Group,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => "out-of-memory: the kernel ended it because the host had no memory left",
            Self::Group => {
                "out-of-memory: the kernel ended it because its memory limit, or that of a group around it, was reached"
            }
        })
    }
}

/// Whether a record of the log (its form: Documentation/ABI/testing/dev-kmsg) is of the end of this process.
fn names(record: &str, pid: u32, not_before_us: u64) -> Option<Cause> {
    let (head, text) = record.split_once(';')?;
    let at: u64 = head.split(',').nth(2)?.parse().ok()?;
    // The two clocks are not set by each other.
    if at + 1_000_000 < not_before_us {
        return None;
    }
    let (before, rest) = text.split_once("illed process ")?;
    let number: u32 = rest.split(' ').next()?.parse().ok()?;
    (number == pid).then(|| {
        if before.contains("emory cgroup") {
            Cause::Group
        } else {
            Cause::Host
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let host =
            "3,100,50000000,-;Out of memory: Killed process 123 (qemu-system-x86) total-vm:1kB\n";
        assert_eq!(names(host, 123, 40_000_000), Some(Cause::Host));
        assert_eq!(names(host, 12, 0), None);
        assert_eq!(names(host, 123, 52_000_000), None, "an earlier process");
        let group = "3,1,5,-;Memory cgroup out of memory: Killed process 7 (q) total-vm:1kB";
        assert_eq!(names(group, 7, 0), Some(Cause::Group));
        assert_eq!(names("6,1,5,-;usb 1-1: new device", 7, 0), None);
        assert_eq!(names("Killed process 7 (q)", 7, 0), None);
    }

    #[test]
    fn this_process_was_not_killed() {
        match killed(std::process::id(), 0) {
            Ok(cause) => assert_eq!(cause, None),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
