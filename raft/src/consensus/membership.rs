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

/// Within which time a learner must have answered to become a voter.
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
    // This node first, since it leads; then those that vote already; then those that could.
    let mut order: Vec<u64> = stay.chain(join).collect();
    order.sort_by_key(|id| *id != now.me);
    let all_stay = now.voters.is_subset(&now.members);
    let possible = order.len().min(wanted);
    let count = match possible {
        // As long as nobody is to go and nobody too many votes, an even number is not made odd by sending a voter away.
        count if all_stay && now.voters.len() <= wanted && count <= now.voters.len() => {
            return now.voters.clone();
        }
        count if count % 2 == 0 => count.saturating_sub(1),
        count => count,
    };
    order.truncate(count);
    order.into_iter().collect()
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
        let ready = membership
            .learner_ids()
            .filter(|id| self.is_ready(metrics, *id))
            .collect();
        Situation {
            me: metrics.id,
            voters,
            changing: configs.len() > 1,
            learners: membership.learner_ids().collect(),
            members: self.members.borrow().clone(),
            ready,
        }
    }

    fn is_ready(&self, metrics: &RaftMetrics<u64, EmptyNode>, id: u64) -> bool {
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|replication| replication.get(&id).copied().flatten());
        let end = metrics.last_log_index.unwrap_or(0);
        matched.is_some()
            && matched.next_index().saturating_add(LAG) > end
            && self.peers.is_live(id, LIVE)
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
