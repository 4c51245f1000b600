//! When this node may stand for election. One that was away has missed the leader's heartbeats, and with a new term it would
//! unseat a leader whom all others hear; so it asks them first, and stands only if most of them do not hear one either. That is
//! the part of Raft's pre-vote (section 9.6 of its dissertation) that openraft 0.9 has not; which log is longer the vote itself
//! asks.
//!
//! openraft's own elections are off until this task allows them, and off again once a leader is heard.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use proto::peer::HearLeaderRequest;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{health::Health, peers::Peers, types::Raft};

/// How often it is looked whether a leader is heard.
const LOOK: Duration = Duration::from_millis(50);

/// How long the others may take to say whether they hear one. openraft's own timers go on meanwhile.
const ASK_LIMIT: Duration = Duration::from_millis(200);

/// The task that allows and forbids elections.
pub(super) struct Elections {
    pub(super) id: u64,
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) health: Arc<Health>,
    pub(super) stop: CancellationToken,
}

impl Elections {
    pub(super) async fn run(self) {
        // Nothing was heard before the node's start.
        let mut allowed = self.none_is_heard().await;
        loop {
            self.raft.runtime_config().elect(allowed);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(LOOK) => {}
            }
            allowed = match self.health.hears_leader() {
                true => false,
                false => allowed || self.none_is_heard().await,
            };
        }
    }

    /// Whether a majority says that it hears no leader, of both sets of voters while they change.
    async fn none_is_heard(&self) -> bool {
        let sets = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let membership = metrics.membership_config.membership();
            membership.get_joint_config().clone()
        };
        let others: BTreeSet<u64> = sets.iter().flatten().copied().collect();
        let asked = others.into_iter().filter(|node| *node != self.id);
        let answers = asked.map(|node| async move {
            let silent = self.is_silent_at(node).await;
            silent.then_some(node)
        });
        let mut silent: BTreeSet<u64> = join_all(answers).await.into_iter().flatten().collect();
        silent.insert(self.id);
        is_majority(&silent, &sets)
    }

    async fn is_silent_at(&self, node: u64) -> bool {
        let request = HearLeaderRequest {
            cluster_id: self.peers.cluster_id().into(),
            target: node,
        };
        let call = self.peers.call(node, ASK_LIMIT, |mut client| async move {
            client.hear_leader(request).await
        });
        call.await.is_ok_and(|answer| !answer.heard)
    }
}

/// Whether these are more than half of each set.
fn is_majority(these: &BTreeSet<u64>, sets: &[BTreeSet<u64>]) -> bool {
    sets.iter()
        .all(|set| set.intersection(these).count() > set.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_voters_change_it_takes_a_majority_of_both_sets() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        assert!(is_majority(&set(&[1, 2]), &[set(&[1, 2, 3])]));
        assert!(!is_majority(&set(&[1, 2]), &[set(&[1, 2, 3, 4])]));
        let both = [set(&[1, 2, 3]), set(&[3, 4, 5])];
        assert!(!is_majority(&set(&[1, 2]), &both));
        assert!(is_majority(&set(&[1, 3, 4]), &both));
    }
}
