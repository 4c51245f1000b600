//! Who is there: every agent renews its lease with the leader, which tells it how long it has not heard of the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use raft::state::NodeId;
use tokio::time::Instant;

/// How often a lease is renewed.
pub const RENEWAL: Duration = Duration::from_millis(500);
/// After this long without a renewal a node counts as offline.
pub const LEASE: Duration = Duration::from_secs(3);

/// What this node knows of the others' leases.
#[derive(Debug, Default)]
pub struct Leases {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Renewals that this node received as the leader.
    renewed: BTreeMap<NodeId, Instant>,
    /// When each node was last heard of, by the leader's latest answer.
    heard: BTreeMap<NodeId, Instant>,
    /// When that answer came.
    answered: Option<Instant>,
}

impl Leases {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a renewal, as the leader, and gives how old everyone's last one is.
    pub fn renew(&self, node: NodeId) -> BTreeMap<NodeId, Duration> {
        let mut inner = self.inner();
        inner.renewed.insert(node, Instant::now());
        inner
            .renewed
            .iter()
            .map(|(node, at)| (*node, at.elapsed()))
            .collect()
    }

    /// How long a node has been silent towards this one, which has led since then.
    pub fn silent_for(&self, node: NodeId, since: Instant) -> Duration {
        let renewed = self.inner().renewed.get(&node).copied();
        renewed
            .map_or(since, |renewed| renewed.max(since))
            .elapsed()
    }

    /// Notes the leader's answer.
    pub fn learn(&self, ages: BTreeMap<NodeId, Duration>) {
        let now = Instant::now();
        let mut inner = self.inner();
        inner.heard = ages
            .into_iter()
            .filter_map(|(node, age)| Some((node, now.checked_sub(age)?)))
            .collect();
        inner.answered = Some(now);
    }

    /// The nodes that are online; `None` when no leader answered for a while, so that nothing is known.
    pub fn online(&self) -> Option<BTreeSet<NodeId>> {
        let inner = self.inner();
        let known = inner.answered.is_some_and(|at| at.elapsed() < LEASE);
        known.then(|| {
            inner
                .heard
                .iter()
                .filter(|(_, at)| at.elapsed() < LEASE)
                .map(|(node, _)| *node)
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_when_it_could_be_heard() {
        let leader = Leases::default();
        leader.renew(1);
        tokio::time::advance(Duration::from_secs(60)).await;
        let since = Instant::now();
        let silent = |node| leader.silent_for(node, since);
        assert_eq!((silent(1), silent(2)), (Duration::ZERO, Duration::ZERO));
        tokio::time::advance(Duration::from_secs(5)).await;
        leader.renew(1);
        tokio::time::advance(Duration::from_secs(2)).await;
        let seconds = Duration::from_secs;
        assert_eq!((silent(1), silent(2)), (seconds(2), seconds(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_renew_goes_offline() {
        let (leader, follower) = (Leases::default(), Leases::default());
        leader.renew(1);
        follower.learn(leader.renew(2));
        assert_eq!(follower.online(), Some([1, 2].into()));
        tokio::time::advance(Duration::from_secs(2)).await;
        follower.learn(leader.renew(2));
        tokio::time::advance(Duration::from_secs(2)).await;
        follower.learn(leader.renew(2));
        assert_eq!(follower.online(), Some([2].into()));
        tokio::time::advance(LEASE).await;
        assert_eq!(follower.online(), None);
    }
}
