//! How starting, proposing and reading may fail.

use super::{app::AppError, snapshots::SnapshotError};
use crate::log::LogError;

/// The node cannot start. None of these goes away by itself.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshots cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The snapshot's content cannot be read: it was written by a newer agent, or is damaged.
    #[error("the snapshot of the replicated state cannot be restored")]
    Restore(#[source] AppError),
    /// The log begins after the snapshot ends.
    #[error(
        "the state of this node is damaged: its log begins after {purged}, its snapshot ends at {snapshot}. Remove the \
         node from the cluster, empty its data folder, and let it join again"
    )]
    Gap {
        /// The last index that the log no longer has.
        purged: u64,
        /// The last index that the snapshot includes; 0 without one.
        snapshot: u64,
    },
    /// The times do not fit each other.
    #[error("the consensus is not configured soundly")]
    Config(#[source] Box<openraft::ConfigError>),
    /// openraft did not start.
    #[error("the consensus did not start")]
    Raft(#[source] Box<openraft::error::Fatal<u64>>),
    /// A task of the start panicked.
    #[error("the start was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// A member's folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshot cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// A node could not become the first of a cluster.
#[derive(Debug, thiserror::Error)]
#[error("the cluster could not be initialized")]
pub struct InitializeError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A proposal has no outcome to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// There has been no leader with a majority for a while.
    #[error("the cluster has no leader: a majority of its voters is needed")]
    NoLeader {
        /// Whether it may yet be applied. When not, it never will.
        maybe_applied: bool,
    },
    /// The time is up.
    #[error("the cluster did not answer in time")]
    Deadline {
        /// Whether it is applied, or may yet be.
        maybe_applied: bool,
    },
    /// It is larger than [`crate::codec::PROPOSAL_LIMIT`].
    #[error("the request takes {size} bytes, of at most {limit}")]
    TooLarge {
        /// Its size, bytes.
        size: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// The leader cannot decode it: nothing was applied.
    #[error("the leader cannot read the request: its agent is of another version")]
    Unreadable,
    /// The node is being stopped, or has failed.
    #[error("the node is stopping")]
    Stopped {
        /// Whether it may yet be applied.
        maybe_applied: bool,
    },
}

/// A linearizable read is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There has been no leader with a majority for a while.
    #[error("the cluster has no leader: a majority of its voters is needed")]
    NoLeader,
    /// The time is up.
    #[error("the cluster did not answer in time")]
    Deadline,
    /// The node is being stopped, or has failed.
    #[error("the node is stopping")]
    Stopped,
}
