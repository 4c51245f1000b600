//! Who takes part in the consensus, after who belongs to the cluster. Runs on every node; only the leader's acts, one
//! change at a time. Who votes is chosen in [`super::voters`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{ChangeMembers, EmptyNode, LogIdOptionExt as _, RaftMetrics};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    app::Members,
    health::is_leader,
    peers::Peers,
    reads,
    types::Raft,
    voters::{self, Ids, Situation},
};

/// How often is looked whether something is to be done, beyond changes.
const LOOK: Duration = Duration::from_millis(250);

/// How long a change may take before it is looked at anew.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

/// How far behind the log's end a learner may be and become a voter, entries.
const LAG: u64 = 100;

/// Within which time a node must have answered to count as live.
const LIVE: Duration = Duration::from_secs(1);

/// How long a node that was removed is still told what is new, so that it hears of its removal.
const FAREWELL: Duration = Duration::from_secs(1);

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

fn next_step(now: &Situation) -> Option<Step> {
    if now.changing {
        return Some(Step::Finish(now.voters.clone()));
    }
    // A state that names nobody has not been told yet.
    if now.members.is_empty() {
        return None;
    }
    let follows = |id: &&u64| now.voters.contains(id) || now.learners.contains(id);
    if let Some(newcomer) = now.members.keys().find(|id| !follows(id)) {
        return Some(Step::AddLearner(*newcomer));
    }
    let target = voters::choose(now);
    if !target.is_empty() && target != now.voters {
        return Some(Step::SetVoters(target));
    }
    let is_gone = |id: &&u64| !now.members.contains_key(id) && !now.parting.contains(id);
    let gone: Ids = now.learners.iter().filter(is_gone).copied().collect();
    match gone.is_empty() {
        true => None,
        false => Some(Step::Remove(gone)),
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

/// What a leader remembers, as long as it leads.
#[derive(Default)]
pub(super) struct Past {
    /// Its term, and since when it leads in that: what it did not hear before then says nothing.
    term: Option<(u64, Instant)>,
    /// Since when learners do not belong to the cluster any more.
    parting: BTreeMap<u64, Instant>,
}

impl Past {
    /// Since when this node leads.
    fn leading_since(&mut self, term: u64) -> Instant {
        match self.term {
            Some((known, since)) if known == term => since,
            _ => {
                let since = Instant::now();
                *self = Self {
                    term: Some((term, since)),
                    parting: BTreeMap::new(),
                };
                since
            }
        }
    }

    /// Learners that have not been told for long enough that they are gone.
    fn parting(&mut self, learners: &Ids, members: &Members) -> Ids {
        let gone = learners.iter().filter(|id| !members.contains_key(id));
        self.parting = gone
            .map(|id| {
                (
                    *id,
                    self.parting.get(id).copied().unwrap_or_else(Instant::now),
                )
            })
            .collect();
        let untold = self
            .parting
            .iter()
            .filter(|(_, since)| since.elapsed() < FAREWELL);
        untold.map(|(id, _)| *id).collect()
    }
}

/// The task.
pub(super) struct Membership {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) applied: watch::Receiver<u64>,
    pub(super) members: watch::Receiver<Members>,
    pub(super) reads: mpsc::Sender<reads::Waiting>,
    pub(super) stop: CancellationToken,
    /// [`super::Config::away`].
    pub(super) away: Duration,
    pub(super) past: Past,
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
    async fn steps(&mut self) {
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

    fn next_step(&mut self) -> Option<Step> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if !is_leader(&metrics) {
            return None;
        }
        next_step(&self.situation(&metrics))
    }

    fn situation(&mut self, metrics: &RaftMetrics<u64, EmptyNode>) -> Situation {
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config();
        let members = self.members.borrow().clone();
        let learners: Ids = membership.learner_ids().collect();
        let leading_since = self.past.leading_since(metrics.current_term);
        let heard = |id: &u64| self.peers.answered_at(*id);
        let is_live = |id: &u64| {
            *id == metrics.id || heard(id).is_some_and(|answered| answered.elapsed() < LIVE)
        };
        let is_away = |id: &u64| {
            let last = heard(id).unwrap_or(leading_since).max(leading_since);
            *id != metrics.id && last.elapsed() > self.away
        };
        let all = || membership.nodes().map(|(id, _)| *id);
        let is_ready = |id: &u64| is_live(id) && is_caught_up(metrics, *id);
        Situation {
            me: metrics.id,
            voters: configs.last().cloned().unwrap_or_default(),
            changing: configs.len() > 1,
            ready: learners.iter().copied().filter(is_ready).collect(),
            live: all().filter(is_live).collect(),
            away: all().filter(is_away).collect(),
            // Who is not there hears nothing.
            parting: self
                .past
                .parting(&learners, &members)
                .into_iter()
                .filter(is_live)
                .collect(),
            learners,
            members,
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
#[path = "membership_tests.rs"]
mod tests;
