//! What members send each other, as records of [`crate::codec`]. Used by both ends of the transport.

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use super::{
    records::{Entry, LogId, SnapshotMeta, Vote},
    types::TypeConfig,
};

/// The largest message, bytes.
pub const MESSAGE_LIMIT: usize = 32 << 20;

/// The most of a snapshot in one message, bytes.
pub const CHUNK: usize = 1 << 20;

/// The largest snapshot, bytes.
pub const SNAPSHOT_LIMIT: u64 = 1 << 30;

/// A leader hands over entries, or only says that it is there.
#[derive(Debug, Serialize, Deserialize)]
pub struct Append {
    vote: Vote,
    prev: Option<LogId>,
    entries: Vec<Entry>,
    commit: Option<LogId>,
}

impl Append {
    /// The leader.
    pub fn leader(&self) -> u64 {
        self.vote.node()
    }
}

impl From<AppendEntriesRequest<TypeConfig>> for Append {
    fn from(request: AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: request.vote.into(),
            prev: request.prev_log_id.map(Into::into),
            entries: request.entries.into_iter().map(Into::into).collect(),
            commit: request.leader_commit.map(Into::into),
        }
    }
}

impl From<Append> for AppendEntriesRequest<TypeConfig> {
    fn from(append: Append) -> Self {
        Self {
            vote: append.vote.into(),
            prev_log_id: append.prev.map(Into::into),
            entries: append.entries.into_iter().map(Into::into).collect(),
            leader_commit: append.commit.map(Into::into),
        }
    }
}

/// The answer to [`Append`].
#[derive(Debug, Serialize, Deserialize)]
pub enum AppendReply {
    /// All is stored.
    Success,
    /// What is stored ends here.
    Partial(Option<LogId>),
    /// The entry before is not there.
    Conflict,
    /// There is a newer leader.
    HigherVote(Vote),
}

impl From<AppendEntriesResponse<u64>> for AppendReply {
    fn from(response: AppendEntriesResponse<u64>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Success,
            AppendEntriesResponse::PartialSuccess(id) => Self::Partial(id.map(Into::into)),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

impl From<AppendReply> for AppendEntriesResponse<u64> {
    fn from(reply: AppendReply) -> Self {
        match reply {
            AppendReply::Success => Self::Success,
            AppendReply::Partial(id) => Self::PartialSuccess(id.map(Into::into)),
            AppendReply::Conflict => Self::Conflict,
            AppendReply::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

/// A candidate asks for a vote.
#[derive(Debug, Serialize, Deserialize)]
pub struct AskVote {
    vote: Vote,
    last: Option<LogId>,
}

impl AskVote {
    /// The candidate.
    pub fn candidate(&self) -> u64 {
        self.vote.node()
    }
}

impl From<VoteRequest<u64>> for AskVote {
    fn from(request: VoteRequest<u64>) -> Self {
        Self {
            vote: request.vote.into(),
            last: request.last_log_id.map(Into::into),
        }
    }
}

impl From<AskVote> for VoteRequest<u64> {
    fn from(ask: AskVote) -> Self {
        Self::new(ask.vote.into(), ask.last.map(Into::into))
    }
}

/// The answer to [`AskVote`].
#[derive(Debug, Serialize, Deserialize)]
pub struct VoteReply {
    vote: Vote,
    granted: bool,
    last: Option<LogId>,
}

impl From<VoteResponse<u64>> for VoteReply {
    fn from(response: VoteResponse<u64>) -> Self {
        Self {
            vote: response.vote.into(),
            granted: response.vote_granted,
            last: response.last_log_id.map(Into::into),
        }
    }
}

impl From<VoteReply> for VoteResponse<u64> {
    fn from(reply: VoteReply) -> Self {
        Self {
            vote: reply.vote.into(),
            vote_granted: reply.granted,
            last_log_id: reply.last.map(Into::into),
        }
    }
}

/// What comes before the bytes of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// The leader's vote.
    pub vote: Vote,
    /// Where the snapshot stands.
    pub meta: SnapshotMeta,
    /// How many bytes follow.
    pub length: u64,
    /// Their CRC-32.
    pub crc: u32,
}

/// The answer to a snapshot: the receiver's vote.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// When it is higher than the leader's, the snapshot was refused.
    pub vote: Vote,
}

/// The answer to a proposal that was handed to another node.
#[derive(Debug, Serialize, Deserialize)]
pub enum ProposeReply {
    /// It is applied.
    Applied {
        /// At which index.
        index: u64,
        /// What came of it.
        outcome: Bytes,
    },
    /// The node does not lead, or did not until the end.
    NotLeader {
        /// Whether the proposal may yet be applied.
        maybe_applied: bool,
    },
    /// The node leads, and has not heard from a majority for too long.
    NoQuorum {
        /// Whether the proposal may yet be applied.
        maybe_applied: bool,
    },
    /// The node leads, and cannot decode the proposal.
    Unreadable,
}
