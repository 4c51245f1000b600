//! Running a program for the host. It goes when whoever asked for it goes; in a fork of the VM it goes on by itself, since it may be the
//! one that asked for the fork: what it says is then nobody's.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use fp_guest::channel::{
    link::Stream,
    message::{Exec, FromProgram, Size, ToProgram, program::End},
    mux::Broken,
};
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, kill_process_group},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{kernel, terminal::Terminal, users::User};

/// How long a program may take to end when it is asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// How long what others still hold open is read on after the program has ended.
const DRAIN: Duration = Duration::from_millis(100);
/// How much is read at once.
const READ: usize = 32 << 10;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it, and tells what became of it.
pub async fn run(stream: Stream, request: Exec) {
    let begun = Instant::now();
    let end = match start(&request) {
        Ok(program) => attend(&stream, program, &request).await,
        Err(error) => Some(End::NotStarted(error)),
    };
    // Nobody is there to be told otherwise.
    let Some(end) = end else { return };
    let told = FromProgram {
        end: Some(end),
        took_us: begun.elapsed().as_micros() as u64,
    };
    if stream.tell(&told).await.is_ok() {
        stream.close();
    }
}

/// A program that runs, and the ends of its streams.
struct Program {
    child: Child,
    group: Pid,
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    outputs: Vec<(u8, Box<dyn AsyncRead + Send + Unpin>)>,
    terminal: Option<Terminal>,
}

fn start(request: &Exec) -> Result<Program, String> {
    let (name, arguments) = request.argv.split_first().ok_or("there is no command")?;
    let user = User::find(&request.user)?;
    let mut command = std::process::Command::new(OsStr::from_bytes(name));
    command
        .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .env("SHELL", &user.shell);
    if request.terminal.is_some() {
        command.env("TERM", "xterm");
    }
    for setting in &request.env {
        let mut parts = setting.splitn(2, |byte| *byte == b'=');
        let (key, value) = (parts.next().unwrap_or_default(), parts.next());
        let value = value.filter(|_| !key.is_empty());
        let value = value.ok_or("an environment's setting is not NAME=VALUE")?;
        command.env(OsStr::from_bytes(key), OsStr::from_bytes(value));
    }
    match request.cwd.as_slice() {
        [] => command.current_dir(&user.home),
        folder => command.current_dir(OsStr::from_bytes(folder)),
    };
    user.apply(&mut command);
    let spawned = match request.terminal {
        Some(size) => with_terminal(command, size, &user),
        None => with_pipes(command, request.input),
    };
    spawned.map_err(|error| {
        let name = String::from_utf8_lossy(name);
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{name}: there is no such program, or no such folder to run it in")
            }
            _ => format!("{name}: {error}"),
        }
    })
}

fn with_pipes(mut command: std::process::Command, input: bool) -> io::Result<Program> {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
    let mut command = Command::from(command);
    let stdin = if input { Stdio::piped() } else { Stdio::null() };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut outputs: Vec<(u8, Box<dyn AsyncRead + Send + Unpin>)> = Vec::new();
    if let Some(output) = child.stdout.take() {
        outputs.push((1, Box::new(output)));
    }
    if let Some(errors) = child.stderr.take() {
        outputs.push((2, Box::new(errors)));
    }
    let input = child.stdin.take();
    Ok(Program {
        group: group_of(&child)?,
        input: input.map(|input| Box::new(input) as _),
        child,
        outputs,
        terminal: None,
    })
}

fn with_terminal(
    mut command: std::process::Command,
    size: Size,
    user: &User,
) -> io::Result<Program> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&controller)?;
    unlockpt(&controller)?;
    set_size(&controller, size)?;
    let name = ptsname(&controller, Vec::new())?;
    // Not this agent's own, which leads a session and has none: with the program it would be hung up on.
    let terminal = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits() as i32)
        .open(OsStr::from_bytes(name.to_bytes()))?;
    user.own(&terminal)?;
    command
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal);
    kernel::with_terminal(&mut command);
    let child = Command::from(command).spawn()?;
    let terminal = Terminal::new(controller)?;
    Ok(Program {
        group: group_of(&child)?,
        input: Some(Box::new(terminal.clone())),
        outputs: vec![(1, Box::new(terminal.clone()))],
        child,
        terminal: Some(terminal),
    })
}

fn set_size(terminal: &OwnedFd, size: Size) -> io::Result<()> {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Ok(tcsetwinsize(
        terminal,
        Winsize {
            ws_row: cells(size.rows),
            ws_col: cells(size.columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?)
}

fn group_of(child: &Child) -> io::Result<Pid> {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    pid.and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("it has no process id"))
}

/// Moves what goes in and out until it has ended; `None` when nobody wants to know how.
async fn attend(stream: &Stream, program: Program, request: &Exec) -> Option<End> {
    let Program {
        mut child,
        group,
        input,
        outputs,
        terminal,
    } = program;
    let feeding = tokio::spawn(feed(stream.clone(), input));
    let mut reading: Vec<_> = outputs
        .into_iter()
        .map(|(lane, output)| tokio::spawn(read(stream.clone(), lane, output)))
        .collect();
    let limit = match request.timeout_ms {
        0 => Duration::MAX,
        ms => Duration::from_millis(ms),
    };
    let mut timed_out = false;
    let status = tokio::select! {
        status = child.wait() => status,
        broken = obey(stream, group, terminal) => {
            if broken == Broken::Forked {
                // Its output is read on, so that it does not stand still; it ends when it does.
                feeding.abort();
                tokio::spawn(async move { drop(child.wait().await) });
                return None;
            }
            let _nobody_asks_how = end(&mut child, group).await;
            feeding.abort();
            reading.iter().for_each(tokio::task::JoinHandle::abort);
            return None;
        }
        () = sleep(limit) => {
            timed_out = true;
            end(&mut child, group).await
        }
    };
    feeding.abort();
    for task in &mut reading {
        // What a program left behind may hold them open for as long as it likes; whoever reads slowly may take as long as they like.
        while timeout(DRAIN, &mut *task).await.is_err() {
            if stream.is_through(1) && stream.is_through(2) {
                task.abort();
                break;
            }
        }
    }
    stream.end(1);
    stream.end(2);
    Some(match status {
        _ if timed_out => End::TimedOut(true),
        Ok(status) => how(status),
        Err(error) => End::NotStarted(format!("how it ended cannot be told: {error}")),
    })
}

fn how(status: ExitStatus) -> End {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Code(code),
        (None, signal) => End::Signal(signal.unwrap_or_default()),
    }
}

/// Ends a program and what it started, politely first.
async fn end(child: &mut Child, group: Pid) -> io::Result<ExitStatus> {
    // What has ended by itself cannot be signalled, and need not be.
    let _ended = kill_process_group(group, Signal::TERM);
    if let Ok(status) = timeout(GRACE, child.wait()).await {
        let _ended = kill_process_group(group, Signal::KILL);
        return status;
    }
    let _ended = kill_process_group(group, Signal::KILL);
    child.wait().await
}

/// Does to a program what the host asks for, until nobody is there to ask.
async fn obey(stream: &Stream, group: Pid, terminal: Option<Terminal>) -> Broken {
    loop {
        let asked = match stream.hear::<ToProgram>().await {
            Ok(Some(asked)) => asked,
            Ok(None) => return Broken::Closed,
            Err(broken) => return broken,
        };
        if let (Some(size), Some(terminal)) = (asked.size, &terminal) {
            // One that is gone has no size.
            let _gone = set_size(terminal.as_fd(), size);
        }
        let signal = i32::try_from(asked.signal)
            .ok()
            .and_then(Signal::from_named_raw);
        if let Some(signal) = signal {
            // One that has ended is not signalled.
            let _ended = kill_process_group(group, signal);
        }
    }
}

/// Gives a program its input.
async fn feed(stream: Stream, input: Option<Box<dyn AsyncWrite + Send + Unpin>>) {
    let Some(mut input) = input else { return };
    // A program that does not read any more has had enough: the rest goes nowhere.
    let mut reads = true;
    while let Ok(Some(bytes)) = stream.take(0).await {
        reads = reads && input.write_all(&bytes).await.is_ok();
    }
    // Dropped here, which is its end.
}

/// Passes a program's output on. What nobody wants any more is read all the same: the program must not stand still.
async fn read(stream: Stream, lane: u8, mut output: Box<dyn AsyncRead + Send + Unpin>) {
    let mut wanted = true;
    let mut buffer = vec![0; READ];
    // The end of a terminal is an error.
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        wanted = wanted && stream.send(lane, buffer[..count].to_vec()).await.is_ok();
    }
}
