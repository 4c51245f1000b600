//! What the first process needs of the kernel and nothing safe gives: signals to wait for, sessions. All its unsafe code.

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::stdio::stdin;

/// What is waited for: the end of a child, and what asks for the machine's end.
const AWAITED: [i32; 5] = [
    libc::SIGCHLD,
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Signals that wait until they are asked for.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them, so that none is lost from here on.
    pub fn block() -> Self {
        let mut set = no_signals();
        for signal in AWAITED {
            // SAFETY: a set that was made above, and signals that exist.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: as above; what was blocked before is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        Self(set)
    }

    /// The next that comes; none when `at_most` is over first, or for no reason.
    pub fn wait(&self, at_most: Option<Duration>) -> Option<i32> {
        let timeout = at_most.map(|time| libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the set is one, nothing is to be told of the signal, and the time lives to the end of the call or is null.
        let signal = unsafe { libc::sigtimedwait(&raw const self.0, ptr::null_mut(), timeout) };
        (signal > 0).then_some(signal)
    }
}

fn no_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset makes a set of the memory that it is given, and fails for no valid pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Has the program begin a session with no signal blocked, and take its standard input for the session's terminal if it is one.
pub fn lead_session(command: &mut Command) -> &mut Command {
    let none = no_signals();
    let in_child = move || {
        // SAFETY: the set is one, and what was blocked before is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
        setsid()?;
        // One that has a session already, or is none, does without.
        let _none = ioctl_tiocsctty(stdin());
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls and touches no memory that is shared.
    unsafe { command.pre_exec(in_child) }
}
