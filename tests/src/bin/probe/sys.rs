//! What the probe asks of the kernel directly.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open, test_kill_process,
};

fn pid(number: u32) -> io::Result<Pid> {
    let raw = i32::try_from(number).ok().and_then(Pid::from_raw);
    raw.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

pub fn signal(number: u32) -> io::Result<()> {
    Ok(test_kill_process(pid(number)?)?)
}

pub fn take_descriptor(number: u32) -> io::Result<()> {
    let process = pidfd_open(pid(number)?, PidfdFlags::empty())?;
    pidfd_getfd(process, 0, PidfdGetfdFlags::empty())?;
    Ok(())
}

/// Its tracer's end lets it go.
pub fn trace(number: u32) -> io::Result<()> {
    in_a_child(move || {
        // SAFETY: no memory of ours is touched.
        let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, number as libc::pid_t, 0, 0) };
        match traced {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// Does something in a process that ends then.
pub fn in_a_child(work: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> io::Result<()> {
    let mut child = Command::new("/bin/true");
    // SAFETY: it makes a system call, and allocates nothing.
    unsafe { child.pre_exec(work) };
    child.status().map(drop)
}

/// Makes this process the root of a user namespace, without a name for anybody outside.
pub fn own_user_namespace() -> io::Result<()> {
    // SAFETY: the process has one thread, and no memory of it is touched.
    match unsafe { libc::unshare(libc::CLONE_NEWUSER) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
