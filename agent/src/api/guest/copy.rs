//! Files on their way into guests and out of them.

use std::sync::Arc;

use guest::{
    channel::{
        link::Stream,
        message::{self, request},
        mux::Broken,
    },
    files::{
        Reply, Said,
        check::{self, Malformed},
        wire,
    },
};
use proto::v1::{
    CopyInRequest, CopyInResponse, CopyInStart, CopyOutRequest, CopyOutResponse, CopyOutStart,
    copy_in_request::Part as In, copy_out_request::Part as Back,
};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, Streaming};

use super::{
    super::carry::{Answers, Found},
    copy_qemu,
};
use crate::{
    convert::files,
    errors::ApiError,
    guest::{Contact, Guest},
    node::Node,
};

/// The longest path that a kernel takes, with the zero byte at its end.
const MAX_PATH: usize = 4096;

fn check_path(field: &'static str, path: &[u8]) -> Result<(), ApiError> {
    let problem = if path.contains(&0) {
        "must not hold a zero byte"
    } else if path.len() >= MAX_PATH {
        "is longer than a path can be"
    } else {
        return Ok(());
    };
    Err(ApiError::InvalidField {
        field,
        problem: problem.to_owned(),
    })
}

/// What the first message of `CopyIn` asks for.
pub(super) fn start_in(first: CopyInRequest) -> Result<CopyInStart, ApiError> {
    let Some(In::Start(start)) = first.part else {
        return Err(ApiError::InvalidField {
            field: "start",
            problem: "the first message says where files go".to_owned(),
        });
    };
    check_path("path", &start.path)?;
    if !start.name.is_empty() && !check::is_name(&start.name) {
        return Err(ApiError::InvalidField {
            field: "name",
            problem: "is no name of a file".to_owned(),
        });
    }
    Ok(start)
}

/// What the first message of `CopyOut` asks for.
pub(super) fn start_out(first: CopyOutRequest) -> Result<CopyOutStart, ApiError> {
    let Some(Back::Start(start)) = first.part else {
        return Err(ApiError::InvalidField {
            field: "start",
            problem: "the first message says which files are taken".to_owned(),
        });
    };
    check_path("path", &start.path)?;
    Ok(start)
}

/// Brings files into a VM of this node.
pub(super) async fn open_in(
    node: &Arc<Node>,
    found: &Found,
    start: CopyInStart,
    inputs: Streaming<CopyInRequest>,
    deadline: Instant,
) -> Result<Answers<CopyInResponse>, ApiError> {
    let guest = super::guest(node, found, deadline).await?;
    if let Contact::Qemu(qemu) = guest.contact() {
        return Ok(copy_qemu::open_in(node, found, qemu, start, inputs));
    }
    let what = request::What::Receive(message::Receive {
        path: start.path.into(),
        name: start.name.into(),
    });
    open(
        node,
        found,
        &guest,
        what,
        move |stream, answers| async move { copy_in(&stream, inputs, &answers).await },
    )
}

/// Takes files out of a VM of this node.
pub(super) async fn open_out(
    node: &Arc<Node>,
    found: &Found,
    start: CopyOutStart,
    inputs: Streaming<CopyOutRequest>,
    deadline: Instant,
) -> Result<Answers<CopyOutResponse>, ApiError> {
    let guest = super::guest(node, found, deadline).await?;
    if let Contact::Qemu(qemu) = guest.contact() {
        return Ok(copy_qemu::open_out(node, found, qemu, start, inputs));
    }
    let what = request::What::Send(message::Send {
        path: start.path.into(),
    });
    open(
        node,
        found,
        &guest,
        what,
        move |stream, answers| async move { copy_out(&stream, inputs, &answers).await },
    )
}

/// Begins a stream, which ends with the caller and with this node.
fn open<A, F>(
    node: &Arc<Node>,
    found: &Found,
    guest: &Guest,
    what: request::What,
    attend: impl FnOnce(Stream, Answer<A>) -> F,
) -> Result<Answers<A>, ApiError>
where
    A: Send + 'static,
    F: Future<Output = Result<(), Broken>> + Send + 'static,
{
    let stream = guest.open(what).map_err(|problem| found.unheard(problem))?;
    Ok(super::attended(node, found, |answers| {
        let attending = attend(stream, answers);
        async move { Ok(attending.await?) }
    }))
}

type Answer<A> = mpsc::Sender<Result<A, Status>>;

/// What one side says is passed on only as what it may be.
fn check_said(said: &Said) -> Result<(), Malformed> {
    match said {
        Said::Piece(piece) => check::piece(piece).map(drop),
        Said::Content(content) => check::content(content),
        Said::End(_) => Ok(()),
    }
}

fn failed(why: impl ToString) -> Broken {
    Broken::Failed(why.to_string())
}

/// Passes what the caller says on, and what the guest answers, until the guest has everything.
async fn copy_in(
    stream: &Stream,
    mut inputs: Streaming<CopyInRequest>,
    answers: &Answer<CopyInResponse>,
) -> Result<(), Broken> {
    let inward = async {
        let mut at_end = false;
        loop {
            let part = match inputs.message().await {
                Ok(Some(CopyInRequest { part: Some(part) })) => part,
                // Of a newer client.
                Ok(Some(CopyInRequest { part: None })) => continue,
                // The guest still answers.
                Ok(None) if at_end => return std::future::pending::<Broken>().await,
                Ok(None) | Err(_) => return Broken::Cancelled,
            };
            let said = match part {
                In::Piece(piece) => Said::Piece(files::piece(piece)),
                In::Content(content) => Said::Content(files::content(content)),
                In::End(end) => Said::End(files::end(end)),
                In::Failed(why) => {
                    stream.fail(why.clone());
                    return Broken::Failed(why);
                }
                In::Start(_) => return failed("a second copy came in one call"),
            };
            if let Err(malformed) = check_said(&said) {
                return failed(malformed);
            }
            at_end |= matches!(said, Said::End(_));
            if let Err(broken) = wire::say(stream, said).await {
                return broken;
            }
        }
    };
    let outward = async {
        loop {
            let reply = wire::hear_answer(stream).await?;
            let done = matches!(reply, Reply::Done(_));
            let answer = CopyInResponse {
                part: Some(files::copy_in_reply(reply)),
            };
            let sent = answers.send(Ok(answer)).await;
            sent.map_err(|_| Broken::Cancelled)?;
            if done {
                return Ok(());
            }
        }
    };
    tokio::select! {
        outcome = outward => outcome?,
        broken = inward => return Err(broken),
    }
    stream.close();
    Ok(())
}

/// Passes what the guest says on, and what the caller answers, until the caller has everything.
async fn copy_out(
    stream: &Stream,
    mut inputs: Streaming<CopyOutRequest>,
    answers: &Answer<CopyOutResponse>,
) -> Result<(), Broken> {
    let inward = async {
        loop {
            let part = match inputs.message().await {
                Ok(Some(CopyOutRequest { part: Some(part) })) => part,
                // Of a newer client.
                Ok(Some(CopyOutRequest { part: None })) => continue,
                Ok(None) | Err(_) => return Err(Broken::Cancelled),
            };
            match part {
                Back::Wanted(wanted) => {
                    let reply = Reply::Wanted(files::wanted(wanted));
                    wire::answer(stream, reply).await?;
                }
                Back::Done(done) => {
                    return wire::answer(stream, Reply::Done(files::done(done))).await;
                }
                Back::Start(_) => return Err(failed("a second copy came in one call")),
            }
        }
    };
    let outward = async {
        let mut hearing = wire::Hearing::default();
        loop {
            let said = match hearing.next(stream).await {
                Ok(said) => said,
                Err(broken) => return broken,
            };
            if let Err(malformed) = check_said(&said) {
                return failed(format!("the guest's agent is not sound: {malformed}"));
            }
            let answer = CopyOutResponse {
                part: Some(files::copy_out(said)),
            };
            if answers.send(Ok(answer)).await.is_err() {
                return Broken::Cancelled;
            }
        }
    };
    tokio::select! {
        outcome = inward => outcome?,
        broken = outward => return Err(broken),
    }
    stream.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_none_are_refused_before_a_guest_hears_of_them() {
        let start = |path: &'static [u8], name: &'static [u8]| {
            start_in(CopyInRequest {
                part: Some(In::Start(CopyInStart {
                    vm: "v".to_owned(),
                    path: path.into(),
                    name: name.into(),
                })),
            })
        };
        assert!(start(b"/a", b"b").is_ok() && start(b"", b"").is_ok());
        for (path, name) in [
            (&b"a\0b"[..], &b"b"[..]),
            (&[b'x'; 5000], b"b"),
            (b"/a", b".."),
            (b"/a", b"b/c"),
        ] {
            assert!(start(path, name).is_err(), "{path:?} {name:?}");
        }
        assert!(start_in(CopyInRequest { part: None }).is_err());
        let out = CopyOutRequest {
            part: Some(Back::Start(CopyOutStart {
                vm: "v".to_owned(),
                path: vec![0].into(),
            })),
        };
        assert!(start_out(out).is_err());
    }
}
