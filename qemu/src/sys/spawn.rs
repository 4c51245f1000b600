//! Starting a process as another user, in a session of its own, with chosen descriptors and nothing else of ours.

use std::{
    ffi::{CStr, OsString},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixListener, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// What to start.
#[derive(Debug)]
pub struct Spawn {
    /// The program, looked up in `PATH` when it has no slash.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(&'static str, OsString)>,
    /// Its working directory, entered before the user is changed: what lies below it can be reached by relative paths
    /// even where the new user could not walk down to it.
    pub directory: PathBuf,
    /// Descriptors it gets: the first as number [`FIRST_FD`], and so on.
    pub fds: Vec<OwnedFd>,
    /// Where its standard output and error go.
    pub output: std::fs::File,
    /// User and group it runs as; `None` to stay as we are.
    pub user: Option<(u32, u32)>,
    /// The groups it is in besides that of its user. Of no account where the user stays.
    pub groups: Vec<u32>,
    /// How much it gives way to others, 0 to 19.
    pub nice: i32,
    /// Whether it may use transparent huge pages.
    pub huge_pages: bool,
    /// Whether the kernel may merge its pages with equal ones of other processes (from Linux 6.7 on; before, this is lost).
    pub merge_memory: bool,
    /// Whether its address space is laid out at random. Without, equal processes hold equal pointers, and so more equal pages.
    pub aslr: bool,
    /// How soon the kernel ends it when memory is short, -1000 to 1000; `None` as we are.
    pub oom_score: Option<i32>,
    /// `cgroup.procs` of the control group it runs in, open for writing; `None` for ours.
    pub group: Option<OwnedFd>,
}

/// The number of the first descriptor that a process is given.
pub const FIRST_FD: RawFd = 3;

impl Spawn {
    /// A program that is given nothing and spared nothing.
    pub fn new(program: impl Into<PathBuf>, args: &[&str], output: std::fs::File) -> Self {
        Self {
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: Vec::new(),
            directory: "/".into(),
            fds: Vec::new(),
            output,
            user: None,
            groups: Vec::new(),
            nice: 0,
            huge_pages: true,
            merge_memory: false,
            aslr: true,
            oom_score: None,
            group: None,
        }
    }
}

/// In a process that was started with a listening socket first of all: that socket. To be called once.
pub fn given_listener() -> io::Result<UnixListener> {
    // SAFETY: takes and changes no memory of ours.
    check(unsafe { libc::fcntl(FIRST_FD, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, whoever started us gave it to us, and nobody else here has it.
    Ok(unsafe { UnixListener::from_raw_fd(FIRST_FD) })
}

/// Has this process be another user's, in that one's group and no other, for good. To be called before it has threads.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: none of them takes memory but the first, which is told that there is none.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: as above.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: as above.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    Ok(())
}

/// Starts it. It has no groups but those that are named, and can gain no privileges.
pub fn spawn(what: Spawn) -> io::Result<Child> {
    let Spawn {
        program,
        args,
        env,
        directory,
        fds,
        output,
        user,
        groups,
        nice,
        huge_pages,
        merge_memory,
        aslr,
        oom_score,
        group,
    } = what;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir(directory);
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);

    // Above all targets, so that moving one into place cannot overwrite another that is still to be moved.
    let floor = FIRST_FD + fds.len() as RawFd;
    let sources = fds
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, floor))
        .collect::<Result<Vec<_>, _>>()?;
    let numbers: Vec<RawFd> = sources.iter().map(AsRawFd::as_raw_fd).collect();
    let oom_score = oom_score.map(|score| score.to_string());
    let group_nice = nice.to_string();
    // SAFETY: the closure runs in the new process between fork and exec and makes only async-signal-safe system calls on
    // data that was prepared before; it allocates nothing on the way that succeeds.
    unsafe {
        command.pre_exec(move || {
            // Before its numbers are given to others.
            if let Some(group) = &group {
                // 0 is whoever writes it.
                write_all(group.as_raw_fd(), b"0")?;
            }
            if let Some(score) = &oom_score {
                write_file(c"/proc/self/oom_score_adj", score.as_bytes())?;
            }
            for (i, from) in numbers.iter().enumerate() {
                check(libc::dup2(*from, FIRST_FD + i as RawFd))?;
            }
            // Whatever whoever started us left open: it is ours at most.
            let rest = (FIRST_FD as usize + numbers.len()) as libc::c_uint;
            let cloexec = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
            check(libc::close_range(rest, libc::c_uint::MAX, cloexec))?;
            check(libc::setsid())?;
            if !huge_pages {
                check(libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0))?;
            }
            if merge_memory {
                check(libc::prctl(libc::PR_SET_MEMORY_MERGE, 1, 0, 0, 0))?;
            }
            if !aslr {
                // In use from `exec` on. It gives what was set before.
                check(libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong))?;
            }
            // Always: the agent's own priority is not for others.
            check(libc::setpriority(libc::PRIO_PROCESS, 0, nice))?;
            // Not every kernel has it, and who is not privileged may change it ten times a second only: nothing to fail for. Whoever
            // adjusts it later ([`set_nice`]) tries again, and tells of it.
            let _not_now = write_file(OWN_AUTOGROUP, group_nice.as_bytes());
            libc::umask(0o077);
            if let Some((uid, gid)) = user {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setresgid(gid, gid, gid))?;
                check(libc::setresuid(uid, uid, uid))?;
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            Ok(())
        });
    }
    let child = command.spawn();
    drop(sources);
    child
}

/// How much a guest gives way to the host from its start on (nice(2)).
pub const GUEST_NICE: i32 = 5;

/// The priority of the session that a process is in. Where the kernel schedules by session (`CONFIG_SCHED_AUTOGROUP`, as Debian's
/// does for what is in no control group), a process's own says only how it stands to others of its session, and each machine
/// has a session of its own: see `sched(7)`.
const OWN_AUTOGROUP: &CStr = c"/proc/self/autogroup";

/// Whether a process leads its session: then what holds for the session is its own affair.
pub fn leads_session(pid: u32) -> io::Result<bool> {
    // Not rustix's: in a container the session's leader may be outside, where it has no number here, and rustix takes no 0.
    // SAFETY: takes and changes no memory of ours.
    let session = check(unsafe { libc::getsid(pid as libc::pid_t) })?;
    Ok(session as u32 == pid)
}

/// Changes how much every thread of a process gives way to others, and the session that it is in, if it leads that. Threads that are
/// gone meanwhile are passed over.
pub fn set_nice(pid: u32, nice: i32) -> io::Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(tid) = task?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<libc::id_t>().ok())
        else {
            continue;
        };
        // SAFETY: takes and changes no memory of ours.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, tid, nice) } < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ESRCH) {
                return Err(error);
            }
        }
    }
    if !leads_session(pid)? {
        return Ok(());
    }
    match std::fs::write(format!("/proc/{pid}/autogroup"), nice.to_string()) {
        // Not every kernel has it.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Changes how soon the kernel ends a process when memory is short.
pub fn set_oom_score(pid: u32, score: i32) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Async-signal-safe.
fn write_file(path: &CStr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the path is a C string, and the descriptor is closed by nobody else.
    unsafe {
        let file = check(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = write_all(file, bytes);
        check(libc::close(file))?;
        written
    }
}

/// Async-signal-safe. The kernel's own files take what is written in one go.
fn write_all(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `bytes`.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written == bytes.len() as isize {
        Ok(())
    } else if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::process::{Pid, getpriority_process};

    use super::*;

    /// The nice values of a process and, where sessions have one, of its session.
    fn nice_of(pid: u32) -> (i32, Option<i32>) {
        let own = getpriority_process(Pid::from_raw(pid as i32)).unwrap();
        // Such as `/autogroup-42 nice 5`.
        let session = fs::read_to_string(format!("/proc/{pid}/autogroup")).ok();
        let session = session.and_then(|line| line.trim().rsplit(' ').next()?.parse().ok());
        (own, session)
    }

    fn sleep() -> Spawn {
        Spawn::new(
            "/bin/sleep",
            &["60"],
            fs::File::create("/dev/null").unwrap(),
        )
    }

    /// Where a process's program, heap, libraries and stack lie.
    fn layout_of(aslr: bool) -> Vec<String> {
        let mut child = spawn(Spawn { aslr, ..sleep() }).unwrap();
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        let range = |line: &str| line.split(' ').next().map(str::to_owned);
        maps.unwrap().lines().filter_map(range).collect()
    }

    #[test]
    fn a_process_has_no_descriptors_but_those_it_is_given() {
        use std::os::fd::{FromRawFd as _, OwnedFd};
        let given = fs::File::open("/dev/null").unwrap();
        // As one that we were started with.
        let ours = fs::File::open("/dev/zero").unwrap();
        // SAFETY: the number is taken over by what closes it.
        let ours = unsafe { OwnedFd::from_raw_fd(libc::dup(ours.as_raw_fd())) };
        let mut child = spawn(Spawn {
            fds: vec![given.into()],
            ..sleep()
        })
        .unwrap();
        let numbers = fs::read_dir(format!("/proc/{}/fd", child.id())).map(|all| {
            let mut numbers: Vec<RawFd> = all
                .map(|entry| {
                    entry
                        .unwrap()
                        .file_name()
                        .to_str()
                        .unwrap()
                        .parse()
                        .unwrap()
                })
                .collect();
            numbers.sort_unstable();
            numbers
        });
        child.kill().unwrap();
        child.wait().unwrap();
        drop(ours);
        assert_eq!(numbers.unwrap(), [0, 1, 2, FIRST_FD]);
    }

    #[test]
    fn processes_are_laid_out_alike_only_where_that_is_asked_for() {
        assert_ne!(layout_of(true), layout_of(true));
        let program = |layout: &[String]| layout.first().cloned();
        let (one, other) = (layout_of(false), layout_of(false));
        assert!(program(&one).is_some());
        assert_eq!(program(&one), program(&other));
    }

    #[test]
    fn a_process_and_its_session_give_way_alike() {
        let has_sessions = std::path::Path::new("/proc/self/autogroup").exists();
        let mut child = spawn(Spawn {
            nice: GUEST_NICE,
            ..sleep()
        })
        .unwrap();
        let as_both = |nice: i32| (nice, has_sessions.then_some(nice));
        let started = nice_of(child.id());
        let changed = set_nice(child.id(), 15).map(|()| nice_of(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(started, as_both(GUEST_NICE));
        assert_eq!(changed.unwrap(), as_both(15));
    }
}
