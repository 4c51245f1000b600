//! Failpoints that act.

use std::{env, fs, io, path::PathBuf, process::abort, sync::OnceLock};

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::{END, FULL, KILL, REACHED, STOP, VARIABLE};

/// A step that was done. The agent may be killed here.
pub fn reached(name: &'static str) {
    act(name, None);
}

/// The same, of a machine with this process, which may be stopped or ended here.
pub fn reached_by(name: &'static str, pid: u32) {
    act(name, Some(pid));
}

/// The same, of something that is written: there may be no room for it.
pub fn write(name: &'static str) -> io::Result<()> {
    if act(name, None) {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    Ok(())
}

/// Does what is armed here. `true` when it is an error, which is the caller's to give.
fn act(name: &str, pid: Option<u32>) -> bool {
    let Some(action) = take(name) else {
        return false;
    };
    eprintln!("failpoint {name}: {action}");
    match (action.as_str(), pid) {
        (KILL, _) => signal(Some(getpid()), Signal::KILL),
        (STOP, Some(pid)) => signal(Pid::from_raw(pid as i32), Signal::STOP),
        (END, Some(pid)) => signal(Pid::from_raw(pid as i32), Signal::KILL),
        (FULL, None) => return true,
        // A test that asks for what cannot be is to fail here, and not to pass for nothing.
        _ => abort(),
    }
    false
}

fn signal(pid: Option<Pid>, signal: Signal) {
    if pid
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| kill_process(pid, signal))
        .is_err()
    {
        abort();
    }
}

/// The action that is armed for a failpoint. Of two that get there at once, the one that renames the file has it.
fn take(name: &str) -> Option<String> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE
        .get_or_init(|| env::var_os(VARIABLE).map(PathBuf::from))
        .as_ref()?;
    // No file means that nothing is armed.
    let text = fs::read_to_string(file).ok()?;
    let (armed, action) = text.trim().split_once(' ')?;
    if armed != name {
        return None;
    }
    let reached = file.with_extension(REACHED);
    let noted = match action {
        // A disk stays full.
        FULL => fs::copy(file, reached).map(drop),
        _ => fs::rename(file, reached),
    };
    noted.ok()?;
    Some(action.to_owned())
}
