//! Whether the consensus works, as this node sees it: who leads, since when nothing has been heard, and whether openraft
//! has died. One task follows openraft's metrics.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{EmptyNode, RaftMetrics, ServerState};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::types::LogId;
use crate::log::Durable;

/// How often the passing of time is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What openraft publishes.
pub(super) type Metrics = watch::Receiver<RaftMetrics<u64, EmptyNode>>;

/// The consensus, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: u64,
    /// The term it is in.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Who votes. While they change, both sets.
    pub voters: BTreeSet<u64>,
    /// Whether the voters are being changed: until that is done, it takes a majority of both sets.
    pub changing: bool,
    /// Who follows without a vote.
    pub learners: BTreeSet<u64>,
    /// The last log index that its state includes.
    pub applied: u64,
    /// The last index in its log.
    pub last_log: u64,
    /// Whether it has lately heard from the leader or, leading, from a majority.
    pub quorum_ok: bool,
}

impl Status {
    /// Whether a node takes part in the consensus, with a vote or without.
    pub fn takes_part(&self, node: u64) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// When the consensus last worked.
pub(super) struct Health {
    last_good: Mutex<Instant>,
    /// Whether it ever has, as far as this process knows.
    heard: AtomicBool,
    /// How long a leader counts as heard.
    lease: Duration,
    /// After how long without news things are no longer fine.
    fine: Duration,
    /// After how long without news requests are refused.
    patience: Duration,
}

impl Health {
    pub(super) fn new(lease: Duration, fine: Duration, patience: Duration) -> Self {
        Self {
            last_good: Mutex::new(Instant::now()),
            heard: AtomicBool::new(false),
            lease,
            fine,
            patience,
        }
    }

    /// The leader was heard now.
    pub(super) fn heard(&self) {
        self.good_at(Instant::now());
    }

    fn good_at(&self, at: Instant) {
        self.heard.store(true, Ordering::Relaxed);
        let mut last = self
            .last_good
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = (*last).max(at);
    }

    fn silence(&self) -> Duration {
        self.last_good
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    /// Whether the leader was heard just now, or, leading, a majority.
    pub(super) fn hears_leader(&self) -> bool {
        self.heard.load(Ordering::Relaxed) && self.silence() < self.lease
    }

    pub(super) fn is_fine(&self) -> bool {
        self.silence() < self.fine
    }

    /// Whether there has been no news for too long to let anybody wait.
    pub(super) fn is_lost(&self) -> bool {
        self.silence() >= self.patience
    }

    /// Returns when [`Health::is_lost`].
    pub(super) async fn lost(&self) {
        while let Some(left) = self.patience.checked_sub(self.silence()) {
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }
}

/// Whether a node leads, by its own account.
pub(super) fn is_leader(metrics: &RaftMetrics<u64, EmptyNode>) -> bool {
    metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id)
}

/// The status that a node's metrics tell.
pub(super) fn status(metrics: &RaftMetrics<u64, EmptyNode>, quorum_ok: bool) -> Status {
    let membership = metrics.membership_config.membership();
    Status {
        node: metrics.id,
        term: metrics.current_term,
        leader: metrics.current_leader,
        voters: membership.voter_ids().collect(),
        changing: membership.get_joint_config().len() > 1,
        learners: membership.learner_ids().collect(),
        applied: metrics.last_applied.map_or(0, |id| id.index),
        last_log: metrics.last_log_index.unwrap_or(0),
        quorum_ok: quorum_ok && metrics.current_leader.is_some(),
    }
}

/// Follows the metrics until the node stops.
pub(super) struct Observer {
    pub(super) metrics: Metrics,
    pub(super) health: Arc<Health>,
    pub(super) status: watch::Sender<Status>,
    pub(super) fatal: watch::Sender<Option<Arc<str>>>,
    /// Whether the log can be written.
    pub(super) durable: Durable,
    pub(super) stop: CancellationToken,
}

impl Observer {
    pub(super) async fn run(mut self) {
        let mut seen = None;
        let mut news = true;
        let mut unwritten = None;
        loop {
            if let Some(reason) = unwritten.take().or_else(|| self.look(&mut seen, news)) {
                if !self.stop.is_cancelled() {
                    tracing::error!(reason = &*reason, "the consensus has failed");
                    self.fatal.send_replace(Some(reason));
                }
                return;
            }
            let changed = tokio::select! {
                () = self.stop.cancelled() => return,
                reason = self.durable.failed() => {
                    unwritten = Some(reason);
                    continue;
                }
                changed = timeout(LOOK, self.metrics.changed()) => changed,
            };
            if matches!(changed, Ok(Err(_))) && !self.stop.is_cancelled() {
                self.fatal
                    .send_replace(Some("the consensus ended unexpectedly".into()));
                return;
            }
            news = changed.is_ok();
        }
    }

    /// Takes the metrics in; `news` says whether they are of now, so that ages in them count from now. Returns why openraft
    /// has died, if it has.
    fn look(&mut self, seen: &mut Option<Seen>, news: bool) -> Option<Arc<str>> {
        let metrics = self.metrics.borrow_and_update();
        if let Err(fatal) = &metrics.running_state {
            return Some(fatal.to_string().into());
        }
        if is_leader(&metrics)
            && let Some(age) = metrics.millis_since_quorum_ack
            && news
        {
            let age = Duration::from_millis(age);
            if let Some(at) = Instant::now().checked_sub(age) {
                self.health.good_at(at);
            }
        }
        let now = Seen {
            term: metrics.current_term,
            leader: metrics.current_leader,
            membership: *metrics.membership_config.log_id(),
            quorum_ok: self.health.is_fine(),
        };
        if seen.as_ref().map(|before| (before.term, before.leader)) != Some((now.term, now.leader))
        {
            tracing::info!(
                term = now.term,
                leader = now.leader,
                "who leads has changed"
            );
        }
        if seen.as_ref() != Some(&now) {
            self.status.send_replace(status(&metrics, now.quorum_ok));
            *seen = Some(now);
        }
        None
    }
}

/// What makes a status worth publishing.
#[derive(PartialEq, Eq)]
struct Seen {
    term: u64,
    leader: Option<u64>,
    membership: Option<LogId>,
    quorum_ok: bool,
}
