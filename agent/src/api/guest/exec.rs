//! Programs that are run in guests.

use std::sync::Arc;

use guest::channel::{
    link::Stream,
    message::{self, FromProgram, ToProgram, program, request},
    mux::Broken,
};
use proto::v1::{
    ExecEnd, ExecRequest, ExecResponse, ExecStart, TerminalSize, exec_end,
    exec_request::Part as In, exec_response::Part as Out,
};
use tokio::time::{Duration, Instant, sleep};
use tonic::Streaming;

use super::{
    super::carry::{Answers, Found},
    exec_qemu,
};
use crate::{errors::ApiError, guest::Contact, node::Node};

/// Input that is taken at once, bytes.
const MOST_INPUT: usize = 64 << 10;
/// How much later than it should a guest may say that a program took too long.
const LATE: Duration = Duration::from_secs(5);
/// The longest name of a user that is handed to a guest, bytes; Linux's own tools make none above 32.
const LONGEST_USER: usize = 256;

/// What the first message asks for.
pub(super) fn start(first: ExecRequest) -> Result<ExecStart, ApiError> {
    let invalid = |field, problem: &str| ApiError::InvalidField {
        field,
        problem: problem.to_owned(),
    };
    let Some(In::Start(start)) = first.part else {
        return Err(invalid(
            "start",
            "the first message says what is run, and where",
        ));
    };
    if start.argv.first().is_none_or(|name| name.is_empty()) {
        return Err(invalid("argv", "name the program that is to be run"));
    }
    if start
        .argv
        .iter()
        .chain(&start.env)
        .any(|text| text.contains(&0))
    {
        return Err(invalid("argv", "must not hold a zero byte"));
    }
    if start.user.len() > LONGEST_USER || start.user.chars().any(char::is_control) {
        return Err(invalid("user", "is no name of a user"));
    }
    Ok(start)
}

/// Runs a program in a VM of this node.
pub(super) async fn open(
    node: &Arc<Node>,
    found: &Found,
    start: ExecStart,
    inputs: Streaming<ExecRequest>,
    deadline: Instant,
) -> Result<Answers<ExecResponse>, ApiError> {
    let guest = super::guest(node, found, deadline).await?;
    if let Contact::Qemu(qemu) = guest.contact() {
        return Ok(exec_qemu::open(node, found, qemu, start, inputs));
    }
    let exec = message::Exec {
        argv: start.argv.iter().map(|part| part.to_vec()).collect(),
        env: start.env.iter().map(|part| part.to_vec()).collect(),
        cwd: start.cwd.to_vec(),
        user: start.user,
        terminal: start.terminal.map(size),
        timeout_ms: start.timeout_ms,
        input: start.input,
    };
    let limit = start.timeout_ms;
    let stream = guest
        .open(request::What::Exec(exec))
        .map_err(|problem| found.unheard(problem))?;
    Ok(super::attended(node, found, |answers| async move {
        let attended = tokio::select! {
            attended = attend(&stream, inputs, &answers) => attended,
            late = overdue(limit) => Err(late),
        };
        Ok(attended?)
    }))
}

/// The time limit is the guest's to keep. Returns when it has not.
async fn overdue(limit_ms: u64) -> Broken {
    if limit_ms == 0 {
        return std::future::pending().await;
    }
    sleep(Duration::from_millis(limit_ms).saturating_add(LATE)).await;
    Broken::Failed("the guest's agent did not end the program in time".to_owned())
}

fn size(size: TerminalSize) -> message::Size {
    message::Size {
        rows: size.rows,
        columns: size.columns,
    }
}

type Answer = super::Answer<ExecResponse>;

/// Moves what goes in and out, until the program has ended.
async fn attend(
    stream: &Stream,
    inputs: Streaming<ExecRequest>,
    answers: &Answer,
) -> Result<(), Broken> {
    let outputs = async {
        tokio::try_join!(
            output(stream, 1, Out::Output, answers),
            output(stream, 2, Out::Errors, answers)
        )?;
        let told = stream.hear::<FromProgram>().await?;
        told.ok_or_else(|| {
            Broken::Failed("the guest's agent did not say how the program ended".to_owned())
        })
    };
    let told = tokio::select! {
        told = outputs => told?,
        // It never ends by itself but with the caller.
        broken = input(stream, inputs) => return broken,
    };
    let end = ExecEnd {
        took_us: told.took_us,
        how: told.end.map(|end| match end {
            program::End::Code(code) => exec_end::How::Code(code),
            program::End::Signal(signal) => exec_end::How::Signal(signal),
            program::End::TimedOut(_) => exec_end::How::TimedOut(true),
            program::End::NotStarted(why) => exec_end::How::NotStarted(why),
        }),
    };
    let last = ExecResponse {
        part: Some(Out::End(end)),
    };
    // Whoever called may be gone.
    let _gone = answers.send(Ok(last)).await;
    stream.close();
    Ok(())
}

async fn output(
    stream: &Stream,
    lane: u8,
    part: fn(bytes::Bytes) -> Out,
    answers: &Answer,
) -> Result<(), Broken> {
    while let Some(bytes) = stream.take(lane).await? {
        let answer = ExecResponse {
            part: Some(part(bytes)),
        };
        if answers.send(Ok(answer)).await.is_err() {
            return Err(Broken::Cancelled);
        }
    }
    Ok(())
}

/// Gives the program what the caller has for it. Returns when the caller is gone, or does not keep to the rules.
async fn input(stream: &Stream, mut inputs: Streaming<ExecRequest>) -> Result<(), Broken> {
    let wrong = |what: &str| Broken::Failed(what.to_owned());
    loop {
        let next = match inputs.message().await {
            Ok(Some(next)) => next,
            // The end of the requests is no end of the call: what the program says still comes.
            Ok(None) => {
                stream.end(0);
                return std::future::pending().await;
            }
            Err(_) => return Err(Broken::Cancelled),
        };
        match next.part {
            Some(In::Input(bytes)) if bytes.len() > MOST_INPUT => {
                return Err(wrong("more than 64 KiB of input came at once"));
            }
            // A program that takes no more input has not ended by that.
            Some(In::Input(bytes)) => drop(stream.send(0, bytes).await),
            Some(In::InputEnd(_)) => stream.end(0),
            Some(In::Size(new)) => {
                let told = ToProgram {
                    size: Some(size(new)),
                    signal: 0,
                };
                drop(stream.tell(&told).await);
            }
            Some(In::Signal(signal)) => {
                let told = ToProgram { size: None, signal };
                drop(stream.tell(&told).await);
            }
            Some(In::Start(_)) => return Err(wrong("a second program came in one call")),
            // Of a newer client.
            None => {}
        }
    }
}
