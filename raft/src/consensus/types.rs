//! The types that openraft is instantiated with. Used by the log, the state machine and the transport.

use bytes::Bytes;
use openraft::EmptyNode;

/// What one log entry carries: proposals that were made at about the same time, in their order. They share an entry
/// because openraft writes and syncs one entry at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Batch(pub Vec<Bytes>);

/// What came of a [`Batch`], in its order; empty for entries that carry none.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Outcomes(pub Vec<Bytes>);

/// A whole snapshot of the state machine in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotBytes(pub Bytes);

openraft::declare_raft_types!(
    /// openraft's view of this crate.
    pub TypeConfig:
        D = Batch,
        R = Outcomes,
        NodeId = u64,
        Node = EmptyNode,
        SnapshotData = SnapshotBytes,
);

/// A position in the log.
pub type LogId = openraft::LogId<u64>;
/// What a node has voted for.
pub type Vote = openraft::Vote<u64>;
/// One entry of the log.
pub type Entry = openraft::Entry<TypeConfig>;
/// Who belongs to the consensus, and since when.
pub type StoredMembership = openraft::StoredMembership<u64, EmptyNode>;
/// Where a snapshot stands.
pub type SnapshotMeta = openraft::SnapshotMeta<u64, EmptyNode>;
/// openraft itself.
pub type Raft = openraft::Raft<TypeConfig>;
/// Why a store failed.
pub type StorageError = openraft::StorageError<u64>;
