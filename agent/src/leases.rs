//! Who is there: every agent renews its lease with the leader, and says what it has free; the leader tells it how long it has not heard of
//! the others, and what they had free then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use raft::state::{Candidate, NodeId, Room};
use tokio::time::Instant;

/// How often a lease is renewed.
pub const RENEWAL: Duration = Duration::from_millis(500);
/// After this long without a renewal a node counts as offline.
pub const LEASE: Duration = Duration::from_secs(3);

/// After this long nobody needs to know when a node was heard of last: it has been removed, or is away.
const FORGOTTEN: Duration = Duration::from_secs(10 * 60);

/// What this node knows of the others' leases.
#[derive(Debug, Default)]
pub struct Leases {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Renewals that this node received as the leader, and what came with them.
    renewed: BTreeMap<NodeId, (Instant, Option<Room>)>,
    /// When each node was last heard of, by the leader's latest answer, and what it had free.
    heard: BTreeMap<NodeId, (Instant, Option<Room>)>,
    /// When that answer came.
    answered: Option<Instant>,
}

/// What the leader tells of a node: how long it has not heard of it, and what it had free then.
pub type Told = (Duration, Option<Room>);

impl Leases {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a renewal, as the leader, and gives what is known of everyone's last one, also of those that were an earlier leader's to hear.
    pub fn renew(&self, node: NodeId, room: Option<Room>) -> BTreeMap<NodeId, Told> {
        let mut inner = self.inner();
        inner.renewed.insert(node, (Instant::now(), room));
        let mut newest = inner.heard.clone();
        hear(&mut newest, inner.renewed.clone());
        newest
            .into_iter()
            .map(|(node, (at, room))| (node, (at.elapsed(), room)))
            .collect()
    }

    /// How long a node has been silent towards this one, which has led since then.
    pub fn silent_for(&self, node: NodeId, since: Instant) -> Duration {
        let renewed = self.inner().renewed.get(&node).copied();
        renewed
            .map_or(since, |(renewed, _)| renewed.max(since))
            .elapsed()
    }

    /// For how long nobody has told this node of another; `None` when nobody ever did.
    pub fn unheard_for(&self, node: NodeId) -> Option<Duration> {
        let inner = self.inner();
        let renewed = inner.renewed.get(&node).map(|(at, _)| *at);
        let heard = inner.heard.get(&node).map(|(at, _)| *at);
        renewed.max(heard).map(|at| at.elapsed())
    }

    /// Notes the leader's answer. One that has just been elected knows less than the one before it: what was heard of a node stays true.
    pub fn learn(&self, told: BTreeMap<NodeId, Told>) {
        let now = Instant::now();
        let mut inner = self.inner();
        let told = told.into_iter();
        let told =
            told.filter_map(|(node, (age, room))| Some((node, (now.checked_sub(age)?, room))));
        hear(&mut inner.heard, told);
        inner
            .heard
            .retain(|_, (at, _)| now.duration_since(*at) < FORGOTTEN);
        inner.answered = Some(now);
    }

    /// The nodes that are online; `None` when no leader answered for a while, so that nothing is known.
    pub fn online(&self) -> Option<BTreeSet<NodeId>> {
        let candidates = self.candidates()?.into_iter();
        Some(candidates.map(|candidate| candidate.node).collect())
    }

    /// The same, with what they had free when they were heard of last.
    ///
    /// What counts is how long the leader had not heard of a node when it answered: a node that waits for its next answer knows nothing of
    /// the others' silence, least of all when it stood still itself.
    pub fn candidates(&self) -> Option<Vec<Candidate>> {
        let inner = self.inner();
        let answered = inner.answered.filter(|at| at.elapsed() < LEASE)?;
        let heard = inner.heard.iter();
        let online = heard.filter(|(_, (at, _))| answered.saturating_duration_since(*at) < LEASE);
        let online = online.map(|(node, (_, room))| Candidate {
            node: *node,
            room: *room,
        });
        Some(online.collect())
    }
}

/// Takes in when nodes were heard of, where that is news.
fn hear(
    heard: &mut BTreeMap<NodeId, (Instant, Option<Room>)>,
    news: impl IntoIterator<Item = (NodeId, (Instant, Option<Room>))>,
) {
    for (node, (at, room)) in news {
        let known = heard.entry(node).or_insert((at, room));
        if known.0 < at {
            *known = (at, room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_when_it_could_be_heard() {
        let leader = Leases::default();
        leader.renew(1, None);
        tokio::time::advance(Duration::from_secs(60)).await;
        let since = Instant::now();
        let silent = |node| leader.silent_for(node, since);
        assert_eq!((silent(1), silent(2)), (Duration::ZERO, Duration::ZERO));
        tokio::time::advance(Duration::from_secs(5)).await;
        leader.renew(1, None);
        tokio::time::advance(Duration::from_secs(2)).await;
        let seconds = Duration::from_secs;
        assert_eq!((silent(1), silent(2)), (seconds(2), seconds(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_renew_goes_offline() {
        let (leader, follower) = (Leases::default(), Leases::default());
        let room = Some(Room {
            memory_mib: 7,
            disk_mib: 8,
        });
        leader.renew(1, None);
        follower.learn(leader.renew(2, room));
        assert_eq!(follower.online(), Some([1, 2].into()));
        let of = |node, room| Candidate { node, room };
        let all = vec![of(1, None), of(2, room)];
        assert_eq!(follower.candidates(), Some(all));
        tokio::time::advance(Duration::from_secs(2)).await;
        follower.learn(leader.renew(2, room));
        tokio::time::advance(Duration::from_secs(2)).await;
        follower.learn(leader.renew(2, room));
        assert_eq!(follower.online(), Some([2].into()));
        tokio::time::advance(LEASE).await;
        assert_eq!(follower.online(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_makes_nobody_offline() {
        let (first, second, follower) = (Leases::default(), Leases::default(), Leases::default());
        for node in [1, 2, 3] {
            second.learn(first.renew(node, None));
            follower.learn(first.renew(node, None));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        // Nobody else has told it anything as the leader.
        follower.learn(second.renew(3, None));
        assert_eq!(follower.online(), Some([1, 2, 3].into()));
        let newcomer = Leases::default();
        newcomer.learn(second.renew(4, None));
        assert_eq!(newcomer.online(), Some([1, 2, 3, 4].into()));
        tokio::time::advance(Duration::from_secs(2)).await;
        follower.learn(second.renew(3, None));
        assert_eq!(follower.online(), Some([3, 4].into()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_stood_still_takes_nobody_for_offline() {
        let (leader, follower) = (Leases::default(), Leases::default());
        leader.renew(1, None);
        tokio::time::advance(Duration::from_secs(1)).await;
        follower.learn(leader.renew(2, None));
        tokio::time::advance(LEASE - Duration::from_millis(500)).await;
        assert_eq!(follower.online(), Some([1, 2].into()));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(follower.online(), None);
    }
}
