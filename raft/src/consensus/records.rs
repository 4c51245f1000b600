//! The stored and sent forms of openraft's types. They are types of our own, so that another release of openraft
//! changes neither the disk nor the wire. Used by the log, the snapshot files and the transport.
//!
//! bincode has no notion of a missing field: a change here is a new version in [`crate::codec`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{CommittedLeaderId, EmptyNode, EntryPayload, Membership};
use serde::{Deserialize, Serialize};

use super::types::{self, Batch};
use crate::log;

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogId {
    term: u64,
    node: u64,
    index: u64,
}

impl From<types::LogId> for LogId {
    fn from(id: types::LogId) -> Self {
        Self {
            term: id.leader_id.term,
            node: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<LogId> for types::LogId {
    fn from(id: LogId) -> Self {
        types::LogId::new(CommittedLeaderId::new(id.term, id.node), id.index)
    }
}

/// What a node has voted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    term: u64,
    node: u64,
    committed: bool,
}

impl Vote {
    /// For whom it is.
    pub fn node(&self) -> u64 {
        self.node
    }
}

impl From<types::Vote> for Vote {
    fn from(vote: types::Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id,
            committed: vote.committed,
        }
    }
}

impl From<Vote> for types::Vote {
    fn from(vote: Vote) -> Self {
        match vote.committed {
            true => types::Vote::new_committed(vote.term, vote.node),
            false => types::Vote::new(vote.term, vote.node),
        }
    }
}

/// What a log reaches at least: its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    last: Option<LogId>,
    vote: Option<Vote>,
}

impl From<log::Mark> for Mark {
    fn from(mark: log::Mark) -> Self {
        Self {
            last: mark.last.map(Into::into),
            vote: mark.vote.map(Into::into),
        }
    }
}

impl From<Mark> for log::Mark {
    fn from(mark: Mark) -> Self {
        Self {
            last: mark.last.map(Into::into),
            vote: mark.vote.map(Into::into),
        }
    }
}

/// Who belongs to the consensus: one set of voters, or two while they change, and all nodes, learners included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    voters: Vec<BTreeSet<u64>>,
    nodes: BTreeSet<u64>,
}

impl From<Membership<u64, EmptyNode>> for Members {
    fn from(membership: Membership<u64, EmptyNode>) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, _)| *id).collect(),
        }
    }
}

impl From<Members> for Membership<u64, EmptyNode> {
    fn from(members: Members) -> Self {
        let nodes: BTreeMap<u64, EmptyNode> = members
            .nodes
            .into_iter()
            .map(|id| (id, EmptyNode {}))
            .collect();
        Membership::new(members.voters, nodes)
    }
}

/// What an entry of the log carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Payload {
    Blank,
    Proposals(Vec<Bytes>),
    Members(Members),
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    id: LogId,
    payload: Payload,
}

impl From<types::Entry> for Entry {
    fn from(entry: types::Entry) -> Self {
        let payload = match entry.payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Normal(Batch(proposals)) => Payload::Proposals(proposals),
            EntryPayload::Membership(membership) => Payload::Members(membership.into()),
        };
        Self {
            id: entry.log_id.into(),
            payload,
        }
    }
}

impl From<Entry> for types::Entry {
    fn from(entry: Entry) -> Self {
        let payload = match entry.payload {
            Payload::Blank => EntryPayload::Blank,
            Payload::Proposals(proposals) => EntryPayload::Normal(Batch(proposals)),
            Payload::Members(members) => EntryPayload::Membership(members.into()),
        };
        Self {
            log_id: entry.id.into(),
            payload,
        }
    }
}

/// Where a snapshot stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    last: Option<LogId>,
    members_since: Option<LogId>,
    members: Members,
    id: String,
}

impl From<types::SnapshotMeta> for SnapshotMeta {
    fn from(meta: types::SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(Into::into),
            members_since: meta.last_membership.log_id().map(Into::into),
            members: meta.last_membership.membership().clone().into(),
            id: meta.snapshot_id,
        }
    }
}

impl From<SnapshotMeta> for types::SnapshotMeta {
    fn from(meta: SnapshotMeta) -> Self {
        Self {
            last_log_id: meta.last.map(Into::into),
            last_membership: types::StoredMembership::new(
                meta.members_since.map(Into::into),
                meta.members.into(),
            ),
            snapshot_id: meta.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    /// What is on disks and wires already: a change of these bytes needs a new version in [`codec`].
    #[test]
    fn the_stored_forms_are_what_they_were() {
        let id = types::LogId::new(CommittedLeaderId::new(3, 2), 300);
        let members = Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 3])],
            BTreeSet::from([4]),
        );
        let entry = |payload| {
            Entry::from(types::Entry {
                log_id: id,
                payload,
            })
        };
        let batch = Batch(vec![Bytes::from_static(b"ab"), Bytes::new()]);
        let meta = SnapshotMeta::from(types::SnapshotMeta {
            last_log_id: Some(id),
            last_membership: types::StoredMembership::new(None, members.clone()),
            snapshot_id: "s".into(),
        });
        let cases = [
            (
                codec::encode(&Vote::from(types::Vote::new_committed(9, 1))),
                "01090101",
            ),
            (codec::encode(&entry(EntryPayload::Blank)), "010302fb2c0100"),
            (
                codec::encode(&Mark::from(log::Mark {
                    last: Some(id),
                    vote: Some(types::Vote::new_committed(9, 1)),
                })),
                "01010302fb2c0101090101",
            ),
            (
                codec::encode(&entry(EntryPayload::Normal(batch))),
                "010302fb2c01010202616200",
            ),
            (
                codec::encode(&entry(EntryPayload::Membership(members))),
                "010302fb2c0102020201020201030401020304",
            ),
            (
                codec::encode(&meta),
                "01010302fb2c01000202010202010304010203040173",
            ),
        ];
        for (record, expected) in cases {
            let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected);
        }
    }

    #[test]
    fn what_is_stored_comes_back() {
        let id = types::LogId::new(CommittedLeaderId::new(3, 2), 300);
        let members = Membership::new(vec![BTreeSet::from([1, 2])], BTreeSet::from([4]));
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Batch(vec![Bytes::from_static(b"ab")])),
            EntryPayload::Membership(members.clone()),
        ] {
            let entry = types::Entry {
                log_id: id,
                payload,
            };
            let stored = codec::encode(&Entry::from(entry.clone()));
            let back: Entry = codec::decode(&stored, codec::NETWORK_LIMIT).unwrap();
            assert_eq!(types::Entry::from(back), entry);
        }
        for vote in [types::Vote::new(4, 1), types::Vote::new_committed(4, 1)] {
            assert_eq!(types::Vote::from(Vote::from(vote)), vote);
        }
        let meta = types::SnapshotMeta {
            last_log_id: Some(id),
            last_membership: types::StoredMembership::new(Some(id), members),
            snapshot_id: "s".into(),
        };
        let stored = SnapshotMeta::from(meta.clone());
        assert_eq!(types::SnapshotMeta::from(stored), meta);
    }
}
