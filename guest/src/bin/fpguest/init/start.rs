//! Starts what the first process starts, and says in the kernel's log what it could not.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, tcgetattr, tcsetattr,
};

use super::plan::{Process, Service};
use super::sys::lead_session;

/// The script that comes before everything.
pub const RC: &str = "/etc/init.d/rc";
/// The script that comes before a machine's orderly end, where an image has one.
pub const STOP: &str = "/etc/init.d/stop";

const PROGRAM: &str = "/bin/fpguest";
const SHELL: &str = "/bin/sh";
const TERMINAL: &str = "/dev/ttyS0";
/// What programs are started with, and nothing of the kernel's command line.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"),
    ("HOME", "/root"),
    ("SHELL", SHELL),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("TERM", "vt102"),
];

/// Has this process, and what it starts, speak to the console. The kernel opens none for it where `/dev` was empty.
pub fn take_console() {
    let opened = open("/dev/console").and_then(|console| {
        dup2_stdin(&console)?;
        dup2_stdout(&console)?;
        Ok(dup2_stderr(&console)?)
    });
    or_tell("the console", opened);
}

/// Starts a script that speaks to the console. No process: it could not be started.
pub fn script(path: &str) -> Option<Process> {
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    spawn(&mut command)
}

/// Starts a service. No process: it could not be started.
pub fn service(service: Service) -> Option<Process> {
    match service {
        Service::Agent => {
            let mut command = Command::new(PROGRAM);
            command.arg("agent").stdin(Stdio::null());
            // Bounded, on no disk, and not among what the console says.
            command.stdout(open_log().map_or_else(|_| Stdio::null(), Stdio::from));
            command.stderr(open_log().map_or_else(|_| Stdio::null(), Stdio::from));
            spawn(&mut command)
        }
        Service::Shell => {
            let mut command = Command::new(SHELL);
            command.arg0("-/bin/sh");
            or_tell(TERMINAL, attach(&mut command))?;
            spawn(&mut command)
        }
    }
}

/// Gives a program the terminal, as a person expects to find it.
fn attach(command: &mut Command) -> io::Result<()> {
    let terminal = open(TERMINAL)?;
    let mut mode = tcgetattr(&terminal)?;
    // Whoever was there before may have left it in another mode.
    mode.input_modes = InputModes::ICRNL | InputModes::IXON;
    mode.output_modes = OutputModes::OPOST | OutputModes::ONLCR;
    mode.control_modes |= ControlModes::CREAD | ControlModes::HUPCL | ControlModes::CLOCAL;
    mode.local_modes = LocalModes::ISIG
        | LocalModes::ICANON
        | LocalModes::ECHO
        | LocalModes::ECHOE
        | LocalModes::ECHOK
        | LocalModes::ECHOCTL
        | LocalModes::ECHOKE
        | LocalModes::IEXTEN;
    tcsetattr(&terminal, OptionalActions::Now, &mode)?;
    command.stdin(terminal.try_clone()?);
    command.stdout(terminal.try_clone()?);
    command.stderr(terminal);
    Ok(())
}

fn spawn(command: &mut Command) -> Option<Process> {
    command.env_clear().envs(ENVIRONMENT).current_dir("/");
    let started = lead_session(command).spawn();
    let child = or_tell(&command.get_program().to_string_lossy(), started)?;
    // It is reaped with all others.
    Process::from_raw(i32::try_from(child.id()).ok()?)
}

/// A terminal that is nobody's by being opened.
fn open(terminal: &str) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOCTTY.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.open(terminal)
}

/// What was made, or nothing, and then the kernel's log says why.
pub fn or_tell<T, E: Display>(what: &str, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| tell(what, &error)).ok()
}

fn tell(what: &str, error: &dyn Display) {
    // One write, one line of the log. Where there is no log nobody listens.
    let line = format!("fpguest init: {what}: {error}\n");
    if let Ok(mut log) = open_log() {
        let _full = log.write_all(line.as_bytes());
    }
}

fn open_log() -> io::Result<File> {
    OpenOptions::new().write(true).open("/dev/kmsg")
}
