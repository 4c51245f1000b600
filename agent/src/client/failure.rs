//! How a command can fail, what is printed then, and its exit code.

use std::{fmt::Display, io};

use proto::v1::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    recovery::RecoveryError,
    trust::{TrustError, tls::connect::ConnectError},
};

/// A command that did not do what was asked.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which way it failed.
    pub kind: FailureKind,
    /// Why, as the agent said it for programs.
    pub reason: Reason,
    /// What is wrong, and after a semicolon what to do about it.
    message: String,
}

/// The ways to fail; each has its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Refused or failed: 1.
    Refused,
    /// Wrong usage: 2.
    Usage,
    /// The cluster is not reachable: 3.
    Unreachable,
    /// Timed out: 124.
    TimedOut,
    /// Nobody reads the output any more: ends silently with 0.
    NoReader,
    /// A guest, or a program in it, ended with this code, and so does the command: silently, that was said by the guest.
    Guest(u8),
}

impl FailureKind {
    /// The exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NoReader => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::TimedOut => 124,
            Self::Guest(code) => code,
        }
    }

    /// Whether nothing is printed of it.
    pub fn is_silent(self) -> bool {
        matches!(self, Self::NoReader | Self::Guest(_))
    }
}

impl Failure {
    /// A failure with what is wrong and what to do about it, which may be empty.
    pub fn new(kind: FailureKind, message: impl Display, hint: &str) -> Self {
        let message = if hint.is_empty() {
            message.to_string()
        } else {
            format!("{message}; {hint}")
        };
        let reason = Reason::Unspecified;
        Self {
            kind,
            reason,
            message,
        }
    }

    /// Something was refused or failed.
    pub fn refused(message: impl Display, hint: &str) -> Self {
        Self::new(FailureKind::Refused, message, hint)
    }

    /// The command was called in a way that cannot work.
    pub fn usage(message: impl Display, hint: &str) -> Self {
        Self::new(FailureKind::Usage, message, hint)
    }

    /// The same with something more to say.
    pub fn and(mut self, more: &str) -> Self {
        self.message = format!("{}; {more}", self.message);
        self
    }

    /// What is wrong, and what to do about it.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The line for standard error.
    pub fn line(&self) -> String {
        // What comes from elsewhere must neither break the line nor command the terminal.
        let text: String = self
            .message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("fpagent: {text}")
    }
}

/// The reason in a status's details; `Unspecified` without one that is known.
pub fn reason_of(status: &Status) -> Reason {
    status
        .get_details_error_info()
        .and_then(|info| Reason::from_str_name(&format!("REASON_{}", info.reason)))
        .unwrap_or(Reason::Unspecified)
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(error) = ConnectError::within(&status) {
            return error.clone().into();
        }
        let info = status.get_details_error_info();
        let detail = |key: &str| {
            info.as_ref()
                .and_then(|info| info.metadata.get(key))
                .cloned()
                .unwrap_or_default()
        };
        let kind = match (status.code(), reason_of(&status)) {
            (Code::DeadlineExceeded, Reason::BootTimeout)
            | (Code::Unavailable, Reason::NodeOffline) => FailureKind::Refused,
            (Code::DeadlineExceeded, _) => FailureKind::TimedOut,
            (Code::Unavailable, _) => FailureKind::Unreachable,
            _ => FailureKind::Refused,
        };
        let mut message = match status.message() {
            "" => format!("the agent answered {}", status.code()),
            message => message.to_owned(),
        };
        let field = detail("field");
        if !field.is_empty() && !message.contains(&field) {
            message = format!("{field}: {message}");
        }
        let mut hint = detail("hint");
        let operation = detail("operation");
        if hint.is_empty() {
            hint = default_hint(status.code(), &operation);
        }
        if !operation.is_empty() && !hint.contains(&operation) && !message.contains(&operation) {
            message = format!("{message} (operation {operation})");
        }
        Self {
            reason: reason_of(&status),
            ..Self::new(kind, message, &hint)
        }
    }
}

fn default_hint(code: Code, operation: &str) -> String {
    match code {
        Code::DeadlineExceeded if !operation.is_empty() => {
            format!("`fpagent op show {operation}` tells how it goes on")
        }
        Code::Unavailable => "try again, and see `fpagent status`".to_owned(),
        Code::Unimplemented => {
            "the agent is older than this fpagent: use the cluster's version".to_owned()
        }
        Code::Internal | Code::Unknown => "the agent's log says more".to_owned(),
        _ => String::new(),
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let (kind, hint) = match &error {
            ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. } => (
                FailureKind::Unreachable,
                "is its agent running? Another one can be named with --addr or FPAGENT_ADDR",
            ),
            ConnectError::Untrusted { .. } => (
                FailureKind::Refused,
                "it may be another cluster's, or the cluster's authority was replaced: check the address, and have the certificate \
                 (fpagent cert create) or the token (fpagent token create) made anew",
            ),
            ConnectError::Refused { .. } => (
                FailureKind::Refused,
                "use a certificate of this cluster with --certs, or a join token that is unused and has not expired",
            ),
        };
        Self::new(kind, causes(&error), hint)
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        let (kind, hint) = match &error {
            TrustError::Name(_) | TrustError::Token(_) => (FailureKind::Usage, ""),
            TrustError::OtherCluster { .. }
            | TrustError::OtherNode { .. }
            | TrustError::NotEmpty { .. } => (FailureKind::Refused, "choose another --data-dir"),
            TrustError::NoNode { .. } => (
                FailureKind::Refused,
                "prepare it with `fpagent init` or `fpagent join`",
            ),
            TrustError::Removed { .. } => (
                FailureKind::Refused,
                "take what you need out of it and empty it, or choose another --data-dir, and join with a new token",
            ),
            TrustError::Locked { .. } => (
                FailureKind::Refused,
                "end that one first, or choose another --data-dir",
            ),
            TrustError::File { .. }
            | TrustError::Damaged { .. }
            | TrustError::Certificate(_)
            | TrustError::NoRandomness
            | TrustError::Malformed { .. }
            | TrustError::Tls(_) => (FailureKind::Refused, ""),
        };
        Self::new(kind, causes(&error), hint)
    }
}

impl From<RecoveryError> for Failure {
    fn from(error: RecoveryError) -> Self {
        let hint = match error {
            RecoveryError::Trust(error) => return error.into(),
            RecoveryError::NeverRan(_) | RecoveryError::Unfounded(_) => {
                "choose a node that has been part of the cluster"
            }
            RecoveryError::Log { .. } => "choose another node, or restore a backup",
            RecoveryError::Removed(_) => {
                "its identity must not come back: choose another node, or restore a backup"
            }
            RecoveryError::AlreadyAlone(_) => "start it with `fpagent run`",
            RecoveryError::AlreadyThere { .. } => "nothing needs to be done",
            RecoveryError::OtherCluster { .. } => "choose the cluster's backup, or its directory",
            RecoveryError::OtherAuthority => {
                "use the authority of the time of the backup or, where it was replaced once since, the folder certs of a node that is left"
            }
            RecoveryError::Refused(_) => "choose another --name",
            RecoveryError::Begin(_) => "nothing was changed: mend the disk, and try again",
            RecoveryError::Audit(_) => "mend the disk before the agent is started",
        };
        Self::refused(causes(&error), hint)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(FailureKind::NoReader, error, ""),
            _ => Self::refused(format!("cannot write the output: {error}"), ""),
        }
    }
}

/// An error with its causes, each told once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    fn status(code: Code, message: &str, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<String, String> = metadata
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Status::with_error_details(
            code,
            message,
            ErrorDetails::with_error_info(reason, "forkypig", metadata),
        )
    }

    #[test]
    fn statuses_become_one_line_and_an_exit_code() {
        let cases = [
            (
                status(
                    Code::InvalidArgument,
                    "must not be 0",
                    "INVALID_FIELD",
                    &[("field", "count"), ("hint", "ask for 1 to 1,000")],
                ),
                1,
                "fpagent: count: must not be 0; ask for 1 to 1,000",
            ),
            (
                status(
                    Code::DeadlineExceeded,
                    "not done yet",
                    "PENDING",
                    &[("operation", "01A")],
                ),
                124,
                "fpagent: not done yet; `fpagent op show 01A` tells how it goes on",
            ),
            (
                status(
                    Code::DeadlineExceeded,
                    "the guest did not boot",
                    "BOOT_TIMEOUT",
                    &[],
                ),
                1,
                "fpagent: the guest did not boot",
            ),
            (
                status(Code::Unavailable, "no leader", "NO_QUORUM", &[]),
                3,
                "fpagent: no leader; try again, and see `fpagent status`",
            ),
            (
                status(
                    Code::Unavailable,
                    "host-b is away",
                    "NODE_OFFLINE",
                    &[("hint", "wait")],
                ),
                1,
                "fpagent: host-b is away; wait",
            ),
            (
                status(
                    Code::NotFound,
                    "there is no VM \"a\nb\x1b[2J\"",
                    "NEW_REASON",
                    &[],
                ),
                1,
                "fpagent: there is no VM \"a b [2J\"",
            ),
            (
                Status::permission_denied(""),
                1,
                "fpagent: the agent answered The caller does not have permission to execute the specified operation",
            ),
        ];
        for (status, code, line) in cases {
            let failure = Failure::from(status);
            assert_eq!(
                (failure.kind.exit_code(), failure.line().as_str()),
                (code, line)
            );
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert_eq!(
            Failure::from(io::Error::from(io::ErrorKind::BrokenPipe))
                .kind
                .exit_code(),
            0
        );
    }
}
