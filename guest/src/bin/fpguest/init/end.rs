//! A machine's orderly end: everybody is asked to end, then made to; the disk is left clean.

use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::sync;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use super::plan::{Ending, Process};
use super::reap;
use super::start::{STOP, or_tell, script};
use super::sys::Signals;

/// How long the image's own script may take.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long a process may take that was asked to end.
const GRACE: Duration = Duration::from_secs(2);
/// How long one may take that was made to: it may be waiting for a disk.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// Ends the machine. The shell is told by the end of its session: it does not heed what tells all others.
pub fn machine(ending: Ending, shell: Option<Process>, signals: &Signals) -> ! {
    if std::path::Path::new(STOP).exists()
        && let Some(stop) = script(STOP)
    {
        let mut runs = true;
        wait_until(STOP_PATIENCE, signals, || {
            reap(|ended| runs &= ended != stop);
            !runs
        });
    }
    // Where they fail there is nobody.
    let _none = kill_process_group(Pid::INIT, Signal::TERM);
    let _none = shell.map(|shell| kill_process(shell, Signal::HUP));
    wait_until(GRACE, signals, || !reap(|_| ()));
    let _none = kill_process_group(Pid::INIT, Signal::KILL);
    wait_until(KILL_PATIENCE, signals, || !reap(|_| ()));

    sync();
    let clean = mount_remount("/", MountFlags::RDONLY, "");
    or_tell("the disk is not left clean", clean);
    let command = match ending {
        Ending::PowerOff => RebootCommand::PowerOff,
        Ending::Halt => RebootCommand::Halt,
        Ending::Reboot => RebootCommand::Restart,
    };
    let switch = move || or_tell("the machine does not end", reboot(command));
    // A machine that cannot be switched off ends who asked for it, and who asked must not be the first process's only thread.
    if thread::Builder::new().spawn(switch).is_err() {
        switch();
    }
    loop {
        signals.wait(None);
    }
}

/// Waits for something that a signal tells of, at most so long.
fn wait_until(patience: Duration, signals: &Signals, mut reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !reached() {
        let Some(left) = patience.checked_sub(begun.elapsed()) else {
            return;
        };
        signals.wait(Some(left));
    }
}
