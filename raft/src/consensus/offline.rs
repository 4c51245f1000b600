//! A member's folder while the member does not run: what is in it, and a new one that begins with a state of the caller's. For when a
//! majority of the voters is lost for good, or everything is.
//!
//! The log of a member is never rewritten. Whoever goes on alone gets a folder of its own, under another name for the consensus, by which
//! members of before and after do not talk to each other. Which of the two folders counts is the caller's to switch, in one step.

use std::{collections::BTreeSet, path::Path};

use openraft::{CommittedLeaderId, EmptyNode, EntryPayload, Membership};

use super::{
    app::App,
    errors::{BeginError, StartError},
    node::{LOG, SNAPSHOTS, check_gap},
    snapshots::Snapshots,
    types::{Entry, LogId, SnapshotMeta, StoredMembership},
};
use crate::log::{
    Contents, Identity, LogBackend, LogError, begin_after, read_after, sled::SledBackend,
};

/// A position in a log. Of two nodes of one consensus the one with the greater has all that the other has, as far as it was committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The term of its entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

impl From<LogId> for Position {
    fn from(id: LogId) -> Self {
        Self {
            term: id.leader_id.term,
            index: id.index,
        }
    }
}

/// What a member's folder holds.
#[derive(Debug)]
pub struct Held<A> {
    /// The state with all entries of the log applied, those that are not known to be committed, too.
    pub app: A,
    /// The last of them.
    pub last: Position,
    /// Up to which index they are known to be committed.
    pub committed: u64,
    /// The term that the node has voted in.
    pub term: u64,
    /// Who votes by the last entry that says so; while that changes, both sets.
    pub voters: BTreeSet<u64>,
    /// Who follows without a vote.
    pub learners: BTreeSet<u64>,
}

/// Looks into the folder of a member that does not run.
///
/// # Errors
/// What would also keep it from being started: there is no log, it is damaged or in use.
pub fn look<A: App>(dir: &Path, identity: &Identity) -> Result<Held<A>, StartError> {
    let log = SledBackend::open(&dir.join(LOG), false)?;
    let contents = Contents::read(&log, identity)?;
    let (_, newest) = Snapshots::open(&dir.join(SNAPSHOTS))?;
    let (mut app, included, mut members) = match newest {
        None => (A::default(), None, Membership::default()),
        Some((meta, state)) => (
            A::restore(&state).map_err(StartError::Restore)?,
            meta.last_log_id,
            meta.last_membership.membership().clone(),
        ),
    };
    check_gap(contents.purged, included)?;
    let last = read_after(&log, included, |entry| {
        apply(&mut app, &mut members, entry).map_err(StartError::Restore)
    })?;
    let last = last.max(included).max(contents.last);
    Ok(Held {
        app,
        last: last.map(Position::from).unwrap_or_default(),
        committed: contents
            .committed
            .max(included)
            .map_or(0, |committed| committed.index),
        term: contents.vote.map_or(0, |vote| vote.leader_id.term),
        voters: members.voter_ids().collect(),
        learners: members.learner_ids().collect(),
    })
}

fn apply<A: App>(
    app: &mut A,
    members: &mut Membership<u64, EmptyNode>,
    entry: Entry,
) -> Result<(), super::app::AppError> {
    match entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(changed) => *members = changed,
        EntryPayload::Normal(batch) => {
            for proposal in &batch.0 {
                app.apply(proposal)?;
            }
        }
    }
    Ok(())
}

/// Makes the folder of a member that begins with this state, and is the only voter. It goes on after `after`, in a term of its own. Durable
/// when it returns.
///
/// # Errors
/// It cannot be written, or is there already.
pub fn begin(
    dir: &Path,
    identity: &Identity,
    after: Position,
    state: &[u8],
) -> Result<(), BeginError> {
    begin_on(dir, identity, after, state, |path| {
        SledBackend::open(path, true)
    })
}

/// The same with a storage engine of the caller's, which `engine` makes in a folder.
pub fn begin_on<B: LogBackend>(
    dir: &Path,
    identity: &Identity,
    after: Position,
    state: &[u8],
    engine: impl FnOnce(&Path) -> Result<B, LogError>,
) -> Result<(), BeginError> {
    let me = identity.node_id;
    let leader = CommittedLeaderId::new(after.term + 1, me);
    let last = LogId::new(leader, after.index + 1);
    let only_me = Membership::new(vec![BTreeSet::from([me])], None);
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), only_me),
        snapshot_id: last.to_string(),
    };
    let log = engine(&dir.join(LOG))?;
    let (snapshots, _) = Snapshots::open(&dir.join(SNAPSHOTS))?;
    snapshots.save(&meta, state)?;
    Ok(begin_after(&log, identity, last)?)
}
