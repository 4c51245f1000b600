//! Programs that are run in guests which have QEMU's agent only.

use std::sync::Arc;

use bytes::Bytes;
use guest::channel::mux::Broken;
use proto::v1::{
    ExecEnd, ExecRequest, ExecResponse, ExecStart, exec_end, exec_request::Part as In,
    exec_response::Part as Out,
};
use tokio::time::{Duration, Instant, timeout};
use tonic::Streaming;

use super::super::carry::{Answers, Found};
use crate::{
    guest::{self as agents, Qemu, Ran, Unheard},
    node::Node,
};

/// The longest piece of output in one answer, bytes.
const PIECE: usize = 64 << 10;

/// Runs a program through QEMU's agent: its input goes in first, and what it printed comes when it has ended.
pub(super) fn open(
    node: &Arc<Node>,
    found: &Found,
    qemu: Arc<Qemu>,
    start: ExecStart,
    inputs: Streaming<ExecRequest>,
) -> Answers<ExecResponse> {
    super::attended(node, found, |answers| async move {
        let (ran, took_us) = run(&qemu, &start, inputs).await?;
        for part in parts(&ran, took_us) {
            let answer = ExecResponse { part: Some(part) };
            if answers.send(Ok(answer)).await.is_err() {
                break;
            }
        }
        Ok(())
    })
}

/// What became of a program, as answers.
fn parts(ran: &Ran, took_us: u64) -> Vec<Out> {
    let how = match (ran.code, ran.signal) {
        (None, Some(signal)) => exec_end::How::Signal(signal),
        (code, _) => exec_end::How::Code(code.unwrap_or_default()),
    };
    let pieces = |bytes: &[u8], part: fn(Bytes) -> Out| {
        let piece = |piece: &[u8]| part(Bytes::copy_from_slice(piece));
        bytes.chunks(PIECE).map(piece).collect::<Vec<_>>()
    };
    let mut parts = pieces(&ran.out, Out::Output);
    parts.extend(pieces(&ran.err, Out::Errors));
    parts.push(Out::End(ExecEnd {
        took_us,
        how: Some(how),
    }));
    parts
}

async fn run(
    qemu: &Qemu,
    start: &ExecStart,
    mut inputs: Streaming<ExecRequest>,
) -> Result<(Ran, u64), Unheard> {
    if start.terminal.is_some() {
        return Err(Unheard::Unable("it has no terminals"));
    }
    if !start.cwd.is_empty() || !matches!(start.user.as_str(), "" | "root" | "0") {
        return Err(Unheard::Unable(
            "it runs programs as root and in one folder only",
        ));
    }
    let words = |all: &[Bytes]| {
        let word = |word: &Bytes| String::from_utf8(word.to_vec());
        let words: Result<Vec<String>, _> = all.iter().map(word).collect();
        words.map_err(|_| Unheard::Unable("it takes words in UTF-8 only"))
    };
    let (argv, env) = (words(&start.argv)?, words(&start.env)?);
    let input = match start.input {
        true => whole_input(&mut inputs).await?,
        false => Vec::new(),
    };
    let begun = Instant::now();
    let running = qemu.exec(&argv, &env, &input);
    let ran = match start.timeout_ms {
        0 => running.await?,
        ms => match timeout(Duration::from_millis(ms), running).await {
            Ok(ran) => ran?,
            Err(_) => {
                return Err(Unheard::Unable(
                    "the time is over, and it cannot end a program: it goes on",
                ));
            }
        },
    };
    Ok((ran, begun.elapsed().as_micros() as u64))
}

/// All that a caller has for a program to read.
async fn whole_input(inputs: &mut Streaming<ExecRequest>) -> Result<Vec<u8>, Unheard> {
    let mut input = Vec::new();
    loop {
        let next = inputs.message().await;
        let next = next.map_err(|_| Unheard::Broken(Broken::Cancelled))?;
        match next.map(|next| next.part) {
            Some(Some(In::Input(bytes))) => input.extend_from_slice(&bytes),
            Some(Some(In::InputEnd(_))) | None => return Ok(input),
            Some(_) => {}
        }
        if input.len() > agents::MOST_INPUT {
            return Err(Unheard::Unable("it gives a program 1 MiB of input at most"));
        }
    }
}
