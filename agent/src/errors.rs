//! How failures leave the API: one exhaustive map from what went wrong to a gRPC status with a machine-readable reason, the
//! offending field, and what to do about it (see `errors.proto`).

use std::{collections::HashMap, error::Error, time::Duration};

use guest::channel::mux::Broken;
use proto::v1::Reason;
use raft::{
    node::{ProposeError, ReadError},
    state::{BadPosition, Kind, NodeId, OperationId, Rejection},
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::guest::Unheard;

/// The domain of all reasons.
pub const DOMAIN: &str = "forkypig";

/// What to do about a position that cannot be gone on from.
const FROM_THE_OLDEST: &str = "begin with what is kept, --since oldest, and look at how things are now: what happened in between is not told";

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The replicated state refused it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// A field can never be right.
    #[error("{field}: {problem}")]
    InvalidField {
        /// Which, as the proto names it in lowerCamelCase.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// It could not be proposed.
    #[error("the change could not be made: {0}")]
    Propose(#[from] ProposeError),
    /// The state's latest version could not be had.
    #[error("the state cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The node that would do it cannot be reached.
    #[error("node {node} cannot be reached: {problem}")]
    NodeOffline {
        /// Its name.
        node: String,
        /// Why.
        problem: String,
    },
    /// The deadline came before the end; it goes on.
    #[error("{what} is still under way")]
    Pending {
        /// What.
        what: String,
        /// The operation, where it is one.
        operation: Option<OperationId>,
    },
    /// It was begun and failed.
    #[error("{0}")]
    WorkFailed(String),
    /// The guest did not come up.
    #[error("{0}")]
    BootTimeout(String),
    /// It was cancelled.
    #[error("the operation was cancelled")]
    Cancelled,
    /// The disk is full.
    #[error("{0}")]
    DiskFull(String),
    /// The host has too little memory free.
    #[error("{0}")]
    NoMemory(String),
    /// The host cannot do it.
    #[error("{problem}")]
    HostUnfit {
        /// What it lacks.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// This agent, or the guest, cannot do it at all.
    #[error("{0}")]
    Unsupported(String),
    /// A file is not what it should be.
    #[error("{0}")]
    BadImage(String),
    /// The guest's agent cannot be asked, or broke off.
    #[error("VM {vm:?}: {problem}")]
    Guest {
        /// The VM's name.
        vm: String,
        /// Why.
        problem: Unheard,
    },
    /// The caller may not.
    #[error("{0}")]
    NotAllowed(String),
    /// The calling node was removed.
    #[error("node {0} was removed from the cluster")]
    NodeRemoved(NodeId),
    /// The caller's certificate is of an authority that is trusted no more.
    #[error("{whose} is of an authority that was replaced")]
    AuthorityReplaced {
        /// Whose certificate.
        whose: String,
        /// What to do.
        hint: String,
    },
    /// Events cannot be told from this position on.
    #[error("{0}")]
    BadPosition(String),
    /// They could, but what comes next is not kept any more, or has not happened yet.
    #[error("{0}")]
    PositionOutOfRange(BadPosition),
    /// Something that should not happen.
    #[error("{0}")]
    Internal(String),
}

/// The parts of an answer.
struct Answer {
    code: Code,
    reason: Reason,
    field: Option<String>,
    hint: String,
    operation: Option<OperationId>,
}

impl Answer {
    fn new(code: Code, reason: Reason, hint: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            field: None,
            hint: hint.into(),
            operation: None,
        }
    }
}

impl ApiError {
    fn answer(&self) -> Answer {
        use Code::*;
        match self {
            Self::Rejected(rejection) => rejected(rejection),
            Self::InvalidField { field, .. } => Answer {
                field: Some((*field).to_owned()),
                ..Answer::new(
                    InvalidArgument,
                    Reason::InvalidField,
                    "correct the value and try again",
                )
            },
            Self::Propose(error) => proposed(error),
            Self::Read(_) => Answer::new(
                Unavailable,
                Reason::NoQuorum,
                "see `fpagent status`: most of the voters must run and reach each other",
            ),
            Self::NodeOffline { .. } => Answer::new(
                Unavailable,
                Reason::NodeOffline,
                "start its agent, or choose another node",
            ),
            Self::Pending { operation, .. } => Answer {
                operation: *operation,
                ..Answer::new(
                    DeadlineExceeded,
                    Reason::Pending,
                    match operation {
                        Some(operation) => format!("look at it with `fpagent op show {operation}`"),
                        None => {
                            "look at it again in a while, or ask with a longer --timeout".to_owned()
                        }
                    },
                )
            },
            Self::WorkFailed(_) => Answer::new(
                Aborted,
                Reason::WorkFailed,
                "look at `fpagent vm show` and the agent's log, then try again",
            ),
            Self::BootTimeout(_) => Answer::new(
                DeadlineExceeded,
                Reason::BootTimeout,
                "look at its console with `fpagent logs`; give the image a longer --boot-timeout if it only needs time",
            ),
            Self::Cancelled => Answer::new(Aborted, Reason::Cancelled, "nothing of it is left"),
            Self::DiskFull(_) => Answer::new(
                ResourceExhausted,
                Reason::DiskFull,
                "free room on the node's disk, or delete VMs and snapshots",
            ),
            Self::NoMemory(_) => Answer::new(
                ResourceExhausted,
                Reason::NoCapacity,
                "stop or delete VMs on the node, use another one, or give its agent a smaller --reserve-memory",
            ),
            Self::HostUnfit { hint, .. } => {
                Answer::new(FailedPrecondition, Reason::HostUnfit, *hint)
            }
            Self::Unsupported(_) => Answer::new(
                Unimplemented,
                Reason::NotSupported,
                "ask for something that it can do",
            ),
            Self::BadImage(_) => Answer::new(
                InvalidArgument,
                Reason::BadImage,
                "import a file that is what it is given as",
            ),
            Self::Guest { problem, .. } => match problem {
                Unheard::Silent => Answer::new(
                    FailedPrecondition,
                    Reason::GuestUnheard,
                    "is it running, and does its image have fpguest? See `fpagent vm show` and `fpagent logs`",
                ),
                Unheard::Unable(_) => Answer::new(
                    Unimplemented,
                    Reason::NotSupported,
                    "use an image with fpguest",
                ),
                Unheard::Unsound(_) => Answer::new(
                    FailedPrecondition,
                    Reason::GuestUnheard,
                    "use an image with the fpguest of this version",
                ),
                Unheard::Broken(Broken::Failed(_)) => {
                    Answer::new(FailedPrecondition, Reason::GuestUnheard, "")
                }
                Unheard::Broken(_) => Answer::new(
                    Aborted,
                    Reason::GuestUnheard,
                    "what was under way has ended; try again",
                ),
            },
            Self::NotAllowed(_) => Answer::new(
                PermissionDenied,
                Reason::NotAllowed,
                "use a certificate with the role that it needs (--certs); an administrator makes one with `fpagent cert create`",
            ),
            Self::NodeRemoved(_) => Answer::new(
                PermissionDenied,
                Reason::NodeRemoved,
                "its data directory can be used no more: join anew with a new token",
            ),
            Self::AuthorityReplaced { hint, .. } => {
                Answer::new(Unauthenticated, Reason::AuthorityReplaced, hint)
            }
            Self::BadPosition(_) => Answer {
                field: Some("since".to_owned()),
                ..Answer::new(InvalidArgument, Reason::BadPosition, FROM_THE_OLDEST)
            },
            Self::PositionOutOfRange(_) => Answer {
                field: Some("since".to_owned()),
                ..Answer::new(OutOfRange, Reason::BadPosition, FROM_THE_OLDEST)
            },
            Self::Internal(_) => {
                Answer::new(Internal, Reason::WorkFailed, "look at the agent's log")
            }
        }
    }
}

fn rejected(rejection: &Rejection) -> Answer {
    use Code::*;
    match rejection {
        Rejection::InvalidField { field, .. } => Answer {
            field: Some(field.clone()),
            ..Answer::new(
                InvalidArgument,
                Reason::InvalidField,
                "correct the value and try again",
            )
        },
        Rejection::NotFound { kind, .. } => Answer::new(
            NotFound,
            Reason::NotFound,
            format!("list what there is with `fpagent {}`", list_command(*kind)),
        ),
        Rejection::Ambiguous { .. } => Answer::new(
            InvalidArgument,
            Reason::Ambiguous,
            "give the name, with its owner as OWNER/NAME, or more of the id",
        ),
        Rejection::NameTaken { .. } => Answer {
            field: Some("name".to_owned()),
            ..Answer::new(AlreadyExists, Reason::NameTaken, "choose another name")
        },
        Rejection::NotOwner { .. } => Answer::new(
            PermissionDenied,
            Reason::NotAllowed,
            "fork it, or a snapshot of it, to have one of your own; or ask its owner",
        ),
        Rejection::OverQuota { owner, .. } => Answer::new(
            ResourceExhausted,
            Reason::OverQuota,
            format!(
                "stop or delete something (`fpagent quota show` tells what there is), or have an administrator allow more with \
                 `fpagent quota set {owner}`"
            ),
        ),
        Rejection::GivenUp { .. } => Answer::new(
            NotFound,
            Reason::NotFound,
            "nothing of it can be brought back here; its disk may still be on that host",
        ),
        Rejection::InUse {
            kind: Kind::Node, ..
        } => Answer::new(
            FailedPrecondition,
            Reason::InUse,
            "delete these first, or give them up with --force",
        ),
        Rejection::InUse {
            kind: Kind::Authority,
            ..
        } => Answer::new(
            FailedPrecondition,
            Reason::InUse,
            "start their agents, remove them with `fpagent node rm`, or give them up with --force",
        ),
        Rejection::InUse { .. } => {
            Answer::new(FailedPrecondition, Reason::InUse, "delete these first")
        }
        Rejection::WrongState { kind, .. } => Answer::new(
            FailedPrecondition,
            Reason::WrongState,
            format!("look at how it is with `fpagent {}`", list_command(*kind)),
        ),
        Rejection::NoCapacity { .. } => Answer::new(
            ResourceExhausted,
            Reason::NoCapacity,
            "ask for less, use --spread or other nodes, free room on these (they keep back --reserve-memory and --reserve-disk), or add one; \
             see `fpagent node ls -o wide`",
        ),
        Rejection::TooFewNodes { .. } => Answer::new(
            ResourceExhausted,
            Reason::NoCapacity,
            "ask for fewer copies, uncordon nodes or start their agents, or add one; see `fpagent node ls`",
        ),
        Rejection::RequestIdReused { .. } => Answer {
            field: Some("requestId".to_owned()),
            ..Answer::new(
                InvalidArgument,
                Reason::RequestIdReused,
                "use a new request id for a new request",
            )
        },
        Rejection::BadToken => Answer::new(
            PermissionDenied,
            Reason::NotAllowed,
            "make a new one with `fpagent token create`",
        ),
    }
}

fn list_command(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "node ls",
        Kind::Token => "token ls",
        Kind::Image => "image ls",
        Kind::Vm => "vm ls",
        Kind::Snapshot => "snapshot ls",
        Kind::Operation => "op ls",
        Kind::Certificate => "cert ls",
        Kind::Quota => "quota ls",
        Kind::Authority => "authority show",
        Kind::Lease => "lease ls",
        Kind::Group => "group ls",
        Kind::Map => "maps ls",
    }
}

fn proposed(error: &ProposeError) -> Answer {
    let hint = "see `fpagent status`: most of the voters must run and reach each other; it is safe to send the request again \
                under its request id";
    if error.is_deadline() {
        Answer::new(Code::DeadlineExceeded, Reason::Pending, hint)
    } else {
        Answer::new(Code::Unavailable, Reason::NoQuorum, hint)
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let Answer {
            code,
            reason,
            field,
            hint,
            operation,
        } = error.answer();
        let mut metadata = HashMap::new();
        metadata.insert("hint".to_owned(), hint);
        if let Some(field) = &field {
            metadata.insert("field".to_owned(), field.clone());
        }
        if let Some(operation) = operation {
            metadata.insert("operation".to_owned(), operation.to_string());
        }
        let message = chain(&error);
        let name = reason.as_str_name().trim_start_matches("REASON_");
        let mut details = ErrorDetails::with_error_info(name, DOMAIN, metadata);
        if let Some(field) = field {
            details.add_bad_request_violation(field, message.clone());
        }
        if code == Code::Unavailable {
            details.set_retry_info(Some(Duration::from_millis(200)));
        }
        Status::with_error_details(code, one_line(&message), details)
    }
}

/// A message that fits into one line of bounded length: it may quote what the caller sent.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 1000;
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST + 1)
        .collect();
    if line.chars().count() > LONGEST {
        line.pop();
        line.push('…');
    }
    line
}

/// An error with all its causes, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_to_do() {
        let status = Status::from(ApiError::Rejected(Rejection::NotFound {
            kind: Kind::Vm,
            name: "a\nb".into(),
        }));
        assert_eq!(status.code(), Code::NotFound);
        assert!(!status.message().contains('\n'));
        let info = status.get_details_error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("NOT_FOUND", DOMAIN)
        );
        assert!(info.metadata["hint"].contains("fpagent vm ls"));
    }

    #[test]
    fn a_long_message_is_cut() {
        let status = Status::from(ApiError::InvalidField {
            field: "name",
            problem: "x".repeat(5000),
        });
        assert!(status.message().chars().count() <= 1001);
        assert_eq!(
            status.get_details_error_info().unwrap().metadata["field"],
            "name"
        );
    }
}
