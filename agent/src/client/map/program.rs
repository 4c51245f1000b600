//! A program that runs in a fork, and what came of it.

use std::time::Duration;

use proto::v1::{
    ExecEnd, ExecRequest, ExecResponse, ExecStart, Reason, exec_end, exec_request::Part as In,
    exec_response::Part as Out,
};
use tokio::sync::mpsc;

use crate::client::{
    commands::exec::{BY_SIGNAL, NOT_STARTED, open},
    failure::{Failure, FailureKind},
    reach::Reach,
};

/// What is kept of each of a program's outputs where it is printed at once, bytes.
pub(super) const MOST_OUTPUT: usize = 16 << 20;
/// Input that is sent at once, bytes: what agents take.
const PIECE: usize = 64 << 10;

/// What is run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub argv: Vec<Vec<u8>>,
    /// NAME=VALUE.
    pub env: Vec<String>,
    pub user: String,
    /// How long it may take.
    pub limit: Option<Duration>,
    pub input: Option<Vec<u8>>,
    /// What is kept of each of its outputs, bytes.
    pub most_output: usize,
}

/// What came of a program.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ran {
    /// As a shell has it: the program's, 128 and a signal's number, 124 when it took too long, 127 when it was not started.
    pub code: u8,
    /// What that says not.
    pub error: String,
    pub output: Vec<u8>,
    pub errors: Vec<u8>,
    /// Whether there was more.
    pub is_cut: bool,
    pub took_us: u64,
}

/// A program of which nothing is known.
#[derive(Debug)]
pub(crate) enum Broken {
    /// For no fault of its own.
    Again(String),
    /// It would be so again.
    Final(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        match failure.reason {
            Reason::InvalidField | Reason::NotAllowed | Reason::NotSupported => {
                Self::Final(failure)
            }
            _ => Self::Again(failure.message().to_owned()),
        }
    }
}

impl Program {
    /// Runs it in a VM.
    pub async fn run(&self, reach: &Reach, vm: &str) -> Result<Ran, Broken> {
        let start = ExecStart {
            vm: vm.to_owned(),
            argv: self.argv.iter().cloned().map(Into::into).collect(),
            env: self.env.iter().cloned().map(Into::into).collect(),
            user: self.user.clone(),
            timeout_ms: self.limit.map_or(0, |limit| limit.as_millis() as u64),
            input: self.input.is_some(),
            ..ExecStart::default()
        };
        let (requests, mut answers) = open(reach, start).await?;
        let heard = async {
            let mut ran = Ran::default();
            loop {
                match answers.message().await {
                    Ok(Some(ExecResponse { part })) => {
                        if let Some(end) = ran.note(part, self.most_output) {
                            return ran.ended(end);
                        }
                    }
                    Ok(None) => {
                        let why = "the agent did not say how the program ended".to_owned();
                        return Err(Broken::Again(why));
                    }
                    Err(status) => return Err(Failure::from(status).into()),
                }
            }
        };
        tokio::select! {
            heard = heard => heard,
            // It ends with the answers only.
            never = self.feed(requests) => match never {},
        }
    }

    /// Gives the program what there is for it to read.
    async fn feed(&self, requests: mpsc::Sender<ExecRequest>) -> std::convert::Infallible {
        if let Some(input) = &self.input {
            let pieces = input
                .chunks(PIECE)
                .map(|piece| In::Input(piece.to_vec().into()));
            for part in pieces.chain([In::InputEnd(true)]) {
                // Where the call has ended its answers say why.
                if requests
                    .send(ExecRequest { part: Some(part) })
                    .await
                    .is_err()
                {
                    break;
                }
            }
        }
        // The call's other side stays open with this.
        let _open = requests;
        std::future::pending().await
    }
}

impl Ran {
    /// Notes what comes, and gives the end.
    fn note(&mut self, part: Option<Out>, most: usize) -> Option<ExecEnd> {
        match part {
            Some(Out::Output(bytes)) => self.is_cut |= keep(&mut self.output, &bytes, most),
            Some(Out::Errors(bytes)) => self.is_cut |= keep(&mut self.errors, &bytes, most),
            Some(Out::End(end)) => return Some(end),
            // Of a newer agent.
            None => {}
        }
        None
    }

    fn ended(mut self, end: ExecEnd) -> Result<Self, Broken> {
        self.took_us = end.took_us;
        (self.code, self.error) = match end.how {
            Some(exec_end::How::Code(code)) => {
                (u8::try_from(code).unwrap_or(u8::MAX), String::new())
            }
            Some(exec_end::How::Signal(signal)) => {
                let code = u8::try_from(BY_SIGNAL + signal).unwrap_or(u8::MAX);
                (code, format!("ended by signal {signal}"))
            }
            Some(exec_end::How::TimedOut(_)) => (
                FailureKind::TimedOut.exit_code(),
                "took longer than --timeout".to_owned(),
            ),
            Some(exec_end::How::NotStarted(why)) => (NOT_STARTED, format!("not started: {why}")),
            None => {
                let why = "the agent did not say how the program ended".to_owned();
                return Err(Broken::Again(why));
            }
        };
        Ok(self)
    }
}

/// Keeps as much as there is room for; whether that was not all.
fn keep(kept: &mut Vec<u8>, bytes: &[u8], most: usize) -> bool {
    let room = most.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
    room < bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_kept_as_far_as_there_is_room() {
        let mut ran = Ran::default();
        let piece = vec![b'x'; MOST_OUTPUT - 1];
        assert_eq!(ran.note(Some(Out::Output(piece.into())), MOST_OUTPUT), None);
        assert!(!ran.is_cut);
        assert_eq!(
            ran.note(Some(Out::Output(b"yz".as_slice().into())), MOST_OUTPUT),
            None
        );
        assert!(ran.is_cut);
        assert_eq!(ran.output.len(), MOST_OUTPUT);
        assert_eq!(ran.output.last(), Some(&b'y'));
    }

    #[test]
    fn ends_are_what_a_shell_says() {
        let code = |how| {
            let end = ExecEnd {
                took_us: 5,
                how: Some(how),
            };
            Ran::default().ended(end).unwrap().code
        };
        assert_eq!(code(exec_end::How::Code(3)), 3);
        assert_eq!(code(exec_end::How::Signal(9)), 137);
        assert_eq!(code(exec_end::How::TimedOut(true)), 124);
        assert_eq!(code(exec_end::How::NotStarted("x".into())), 127);
        let unsaid = ExecEnd {
            took_us: 5,
            how: None,
        };
        assert!(Ran::default().ended(unsaid).is_err());
    }
}
