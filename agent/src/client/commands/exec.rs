//! `fpagent exec`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::unix::ffi::OsStringExt as _,
};

use proto::v1::{
    ExecEnd, ExecRequest, ExecResponse, ExecStart, TerminalSize, exec_end,
    exec_request::Part as In, exec_response::Part as Out,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::client::{
    Context,
    args::work::ExecArgs,
    failure::{Failure, FailureKind},
    reach::{Reach, broken},
    terminal::{self, Raw},
};

/// Requests that are sent ahead of the guest.
const AHEAD: usize = 4;
/// What a shell says of a program that was ended by a signal: this and the signal's number.
pub(in crate::client) const BY_SIGNAL: i32 = 128;
/// And of one that could not be started.
pub(in crate::client) const NOT_STARTED: u8 = 127;

pub(crate) async fn run(context: &Context, args: ExecArgs) -> Result<(), Failure> {
    let (input, wants_terminal) = (args.interactive, args.terminal);
    if wants_terminal && !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "-t needs a terminal, and the standard input is none",
            "leave -t out",
        ));
    }
    // The limit is the guest's to keep; the call itself has none.
    let limit = context.global.timeout;
    let start = ExecStart {
        vm: args.vm,
        argv: args
            .command
            .into_iter()
            .map(|word| word.into_vec().into())
            .collect(),
        env: args
            .env
            .into_iter()
            .map(|(name, value)| format!("{name}={value}").into_bytes().into())
            .collect(),
        cwd: args
            .cwd
            .map(|folder| folder.into_os_string().into_vec().into())
            .unwrap_or_default(),
        user: args.user,
        terminal: wants_terminal.then(size),
        timeout_ms: limit.map_or(0, |limit| limit.as_millis() as u64),
        input,
    };
    let (requests, answers) = open(&context.reach()?, start).await?;
    let raw = wants_terminal.then(Raw::enter).transpose()?;
    let end = attend(requests, answers, input, wants_terminal).await?;
    drop(raw);
    outcome(end)
}

fn size() -> TerminalSize {
    let (rows, columns) = terminal::size();
    TerminalSize { rows, columns }
}

/// What became of the program, as this one ends.
fn outcome(end: ExecEnd) -> Result<(), Failure> {
    let as_guest = |code: i32| match u8::try_from(code) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::new(FailureKind::Guest(code), "", "")),
        Err(_) => Err(Failure::new(FailureKind::Guest(u8::MAX), "", "")),
    };
    match end.how {
        Some(exec_end::How::Code(code)) => as_guest(code),
        Some(exec_end::How::Signal(signal)) => as_guest(BY_SIGNAL + signal),
        Some(exec_end::How::TimedOut(_)) => Err(Failure::new(
            FailureKind::TimedOut,
            "the program took longer than --timeout and was ended",
            "",
        )),
        Some(exec_end::How::NotStarted(why)) => {
            let message = format!("the program was not started: {why}");
            eprintln!("{}", Failure::refused(message, "").line());
            Err(Failure::new(FailureKind::Guest(NOT_STARTED), "", ""))
        }
        None => Err(Failure::refused(
            "the agent did not say how the program ended",
            "",
        )),
    }
}

/// A program that was begun: where its input goes, and what it says.
pub(in crate::client) type Opened = (mpsc::Sender<ExecRequest>, Streaming<ExecResponse>);

/// Begins a program in a VM.
pub(in crate::client) async fn open(reach: &Reach, start: ExecStart) -> Result<Opened, Failure> {
    let opened = reach.call(async |attempt| {
        let (sender, inputs) = mpsc::channel(AHEAD);
        let first = ExecRequest {
            part: Some(In::Start(start.clone())),
        };
        // There is room for it.
        let _kept = sender.try_send(first);
        // Without a deadline: the call has no end of its own.
        let request = Request::new(ReceiverStream::new(inputs));
        let answer = attempt.guests().exec(request).await?;
        Ok(answer.map(|answers| (sender, answers)))
    });
    opened.await
}

/// Carries what goes in and out until the program has ended.
async fn attend(
    requests: mpsc::Sender<ExecRequest>,
    mut answers: Streaming<ExecResponse>,
    input: bool,
    has_terminal: bool,
) -> Result<ExecEnd, Failure> {
    let mut keys = input.then(terminal::input);
    let mut resized = signal(SignalKind::window_change())?;
    let (mut out, mut errors) = (io::stdout(), io::stderr());
    loop {
        let key = async {
            match &mut keys {
                Some(keys) => keys.recv().await,
                None => std::future::pending().await,
            }
        };
        let send = |part| {
            let requests = requests.clone();
            // Where the call has ended, its answers say why.
            async move { drop(requests.send(ExecRequest { part: Some(part) }).await) }
        };
        tokio::select! {
            answer = answers.message() => match answer {
                Ok(Some(ExecResponse { part: Some(Out::Output(bytes)) })) => {
                    out.write_all(&bytes)?;
                    out.flush()?;
                }
                Ok(Some(ExecResponse { part: Some(Out::Errors(bytes)) })) => errors.write_all(&bytes)?,
                Ok(Some(ExecResponse { part: Some(Out::End(end)) })) => return Ok(end),
                // Of a newer agent.
                Ok(Some(ExecResponse { part: None })) => {}
                Ok(None) => {
                    return Err(Failure::refused("the agent ended the call without saying how the program ended", ""));
                }
                Err(status) if std::error::Error::source(&status).is_some() => {
                    return Err(broken(&status, "the program has been ended, or is being ended"));
                }
                Err(status) => return Err(status.into()),
            },
            // Taken only where there is room: nothing else waits for it then.
            key = key, if requests.capacity() > 0 => match key.transpose()? {
                Some(bytes) => send(In::Input(bytes.into())).await,
                None => {
                    keys = None;
                    send(In::InputEnd(true)).await;
                }
            },
            () = room(&requests), if requests.capacity() == 0 => {}
            Some(()) = resized.recv(), if has_terminal => send(In::Size(size())).await,
        }
    }
}

/// Returns when another request can be sent.
async fn room(requests: &mpsc::Sender<ExecRequest>) {
    // Given back at once: this only waits. A call that has ended says so by its answers.
    if requests.reserve().await.is_err() {
        std::future::pending().await
    }
}
