//! Who takes part in the consensus, after who belongs to the cluster. Runs on every node; only the leader's acts, one
//! change at a time. It removes nobody for being away.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{ChangeMembers, EmptyNode, LogIdOptionExt as _, RaftMetrics};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{health::is_leader, peers::Peers, reads, types::Raft};

/// How often is looked whether something is to be done, beyond changes.
const LOOK: Duration = Duration::from_millis(250);

/// How long a change may take before it is looked at anew.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

/// How far behind the log's end a learner may be and become a voter, entries.
const LAG: u64 = 100;

/// Within which time a node must have answered to count as live.
const LIVE: Duration = Duration::from_secs(1);

type Ids = BTreeSet<u64>;

/// One step towards the membership there should be.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A change of the voters was begun and is to be ended.
    Finish(Ids),
    /// A member does not follow yet.
    AddLearner(u64),
    /// Other nodes are to vote. Those that no longer do, follow.
    SetVoters(Ids),
    /// These no longer belong to the cluster.
    Remove(Ids),
}

/// What a step is chosen by.
#[derive(Debug, Default)]
struct Situation {
    me: u64,
    /// Who votes; the newer set while they change.
    voters: Ids,
    /// Whether the voters are being changed.
    changing: bool,
    learners: Ids,
    /// Who belongs to the cluster.
    members: Ids,
    /// Learners that could vote now.
    ready: Ids,
    /// Nodes that have answered lately, this one included.
    live: Ids,
}

/// How many of a number of members vote: an odd number, at most five. Two voters are worse than one, since the loss of
/// either stops them.
fn voters_of(members: usize) -> usize {
    match members {
        0 => 0,
        1 | 2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

fn next_step(now: &Situation) -> Option<Step> {
    if now.changing {
        return Some(Step::Finish(now.voters.clone()));
    }
    // A state that names nobody has not been told yet.
    if now.members.is_empty() {
        return None;
    }
    let follows = |id: &&u64| now.voters.contains(id) || now.learners.contains(id);
    if let Some(newcomer) = now.members.iter().find(|id| !follows(id)) {
        return Some(Step::AddLearner(*newcomer));
    }
    let target = target(now);
    if !target.is_empty() && target != now.voters {
        return Some(Step::SetVoters(target));
    }
    let gone: Ids = now.learners.difference(&now.members).copied().collect();
    match gone.is_empty() {
        true => None,
        false => Some(Step::Remove(gone)),
    }
}

/// Who should vote, of those who can.
fn target(now: &Situation) -> Ids {
    let wanted = voters_of(now.members.len());
    let stay = now.voters.intersection(&now.members).copied();
    let join = now.ready.intersection(&now.members).copied();
    // This node first, since it leads; then those that vote already, live ones first; then those that could.
    let rank = |id: &u64| match () {
        () if *id == now.me => 0,
        () if !now.voters.contains(id) => 3,
        () if now.live.contains(id) => 1,
        () => 2,
    };
    let mut order: Vec<u64> = stay.chain(join).collect();
    order.sort_by_key(rank);
    let possible = order.len().min(wanted);
    let nobody_goes = now.voters.is_subset(&now.members) && now.voters.len() <= wanted;
    if nobody_goes && possible <= now.voters.len() {
        return now.voters.clone();
    }
    order.truncate(match possible.is_multiple_of(2) {
        true => possible.saturating_sub(1),
        false => possible,
    });
    let target: Ids = order.into_iter().collect();
    // A majority that may be gone could never agree to have become one.
    match target.intersection(&now.live).count() * 2 > target.len() {
        true => target,
        false => now.voters.clone(),
    }
}

/// Whether a learner has nearly all that the leader has.
fn is_caught_up(metrics: &RaftMetrics<u64, EmptyNode>, id: u64) -> bool {
    let matched = metrics
        .replication
        .as_ref()
        .and_then(|replication| replication.get(&id).copied().flatten());
    let end = metrics.last_log_index.unwrap_or(0);
    matched.is_some() && matched.next_index().saturating_add(LAG) > end
}

/// The task.
pub(super) struct Membership {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) applied: watch::Receiver<u64>,
    pub(super) members: watch::Receiver<Ids>,
    pub(super) reads: mpsc::Sender<reads::Waiting>,
    pub(super) stop: CancellationToken,
}

impl Membership {
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            let pause = async {
                tokio::select! {
                    () = sleep(LOOK) => {}
                    Ok(()) = self.members.changed() => {}
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.steps() => {}
            }
        }
    }

    /// Takes steps as long as there are any.
    async fn steps(&self) {
        while let Some(step) = self.next_step() {
            if !self.is_current().await {
                return;
            }
            // What has been learned in the meantime counts.
            if self.next_step().as_ref() != Some(&step) {
                continue;
            }
            tracing::info!(?step, "the membership of the consensus changes");
            match timeout(CHANGE_LIMIT, self.take(step)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the membership could not be changed");
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn next_step(&self) -> Option<Step> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if !is_leader(&metrics) {
            return None;
        }
        next_step(&self.situation(&metrics))
    }

    fn situation(&self, metrics: &RaftMetrics<u64, EmptyNode>) -> Situation {
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config();
        let voters = configs.last().cloned().unwrap_or_default();
        let is_live = |id: &u64| *id == metrics.id || self.peers.is_live(*id, LIVE);
        let ready = membership
            .learner_ids()
            .filter(|id| is_live(id) && is_caught_up(metrics, *id))
            .collect();
        Situation {
            me: metrics.id,
            voters,
            changing: configs.len() > 1,
            learners: membership.learner_ids().collect(),
            members: self.members.borrow().clone(),
            ready,
            live: membership
                .nodes()
                .map(|(id, _)| *id)
                .filter(is_live)
                .collect(),
        }
    }

    /// Whether this node leads and its state is as new as any: what the state does not name is really gone.
    async fn is_current(&self) -> bool {
        let (done, index) = oneshot::channel();
        if self.reads.send(done).await.is_err() {
            return false;
        }
        let Ok(Ok(index)) = index.await else {
            return false;
        };
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|applied| *applied >= index);
        matches!(timeout(CHANGE_LIMIT, reached).await, Ok(Ok(_)))
    }

    async fn take(&self, step: Step) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let change = match step {
            Step::AddLearner(id) => ChangeMembers::AddNodes(BTreeMap::from([(id, EmptyNode {})])),
            Step::SetVoters(voters) | Step::Finish(voters) => {
                ChangeMembers::ReplaceAllVoters(voters)
            }
            Step::Remove(gone) => ChangeMembers::RemoveNodes(gone),
        };
        self.raft.change_membership(change, true).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids<const N: usize>(ids: [u64; N]) -> Ids {
        Ids::from(ids)
    }

    /// Node 1 leads, and all are live.
    fn situation<const V: usize, const L: usize, const M: usize>(
        voters: [u64; V],
        learners: [u64; L],
        members: [u64; M],
    ) -> Situation {
        Situation {
            me: 1,
            voters: ids(voters),
            changing: false,
            learners: ids(learners),
            members: ids(members),
            ready: ids(learners),
            live: ids(voters).union(&ids(learners)).copied().collect(),
        }
    }

    /// Takes steps until there are none, and returns who votes and who learns then.
    fn settle(mut now: Situation) -> (Ids, Ids) {
        for _ in 0..20 {
            match next_step(&now) {
                None => return (now.voters, now.learners),
                Some(Step::Finish(_)) => now.changing = false,
                Some(Step::AddLearner(id)) => {
                    now.learners.insert(id);
                    now.ready.insert(id);
                    now.live.insert(id);
                }
                Some(Step::SetVoters(voters)) => {
                    let all: Ids = now.voters.union(&now.learners).copied().collect();
                    now.learners = all.difference(&voters).copied().collect();
                    now.ready = now.learners.intersection(&now.live).copied().collect();
                    now.voters = voters;
                    now.changing = true;
                }
                Some(Step::Remove(gone)) => {
                    now.learners.retain(|id| !gone.contains(id));
                    now.ready.retain(|id| !gone.contains(id));
                }
            }
        }
        panic!("it does not settle: {now:?}");
    }

    #[test]
    fn an_odd_number_votes() {
        let alone = || situation([1], [], [1]);
        let with = |members: &[u64]| Situation {
            members: members.iter().copied().collect(),
            ..alone()
        };
        assert_eq!(settle(with(&[])), (ids([1]), ids([])));
        assert_eq!(settle(with(&[1])), (ids([1]), ids([])));
        assert_eq!(settle(with(&[1, 2])), (ids([1]), ids([2])));
        assert_eq!(settle(with(&[1, 2, 3])), (ids([1, 2, 3]), ids([])));
        assert_eq!(settle(with(&[1, 2, 3, 4])), (ids([1, 2, 3]), ids([4])));
        let seven = with(&[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(settle(seven), (ids([1, 2, 3, 4, 5]), ids([6, 7])));
    }

    #[test]
    fn who_is_gone_is_replaced_or_removed() {
        let replaced = situation([1, 2, 3], [4], [1, 3, 4]);
        assert_eq!(settle(replaced), (ids([1, 3, 4]), ids([])));
        let two_left = situation([1, 2, 3], [], [1, 3]);
        assert_eq!(settle(two_left), (ids([1]), ids([3])));
        let leader_gone = situation([1, 2, 3], [4], [2, 3, 4]);
        assert_eq!(settle(leader_gone), (ids([2, 3, 4]), ids([])));
    }

    #[test]
    fn nobody_votes_who_is_behind_or_away() {
        let behind = Situation {
            ready: ids([2]),
            ..situation([1], [2, 3], [1, 2, 3])
        };
        assert_eq!(next_step(&behind), None);
        let away = Situation {
            live: ids([1, 2]),
            ..situation([1, 2, 3], [4], [1, 2, 3, 4])
        };
        assert_eq!(next_step(&away), None, "being away removes nobody");
        let shrinking = Situation {
            live: ids([1, 4]),
            ..situation([1, 2, 3, 4, 5], [], [1, 2, 3, 4])
        };
        // Two of three are live; 3, which is away, keeps its vote only for want of others.
        assert_eq!(next_step(&shrinking), Some(Step::SetVoters(ids([1, 2, 4]))));
        let hopeless = Situation {
            live: ids([1]),
            ..situation([1, 2, 3], [], [2, 3])
        };
        assert_eq!(next_step(&hopeless), None, "2 and 3 are away, 1 is to go");
    }

    #[test]
    fn a_change_that_was_begun_is_ended_first() {
        let changing = Situation {
            changing: true,
            ..situation([1, 2, 3], [], [1])
        };
        assert_eq!(next_step(&changing), Some(Step::Finish(ids([1, 2, 3]))));
    }
}
