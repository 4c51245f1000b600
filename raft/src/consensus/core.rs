//! What all parts of a running member share, and one attempt at a proposal or a read: here if it leads, at the leader
//! if another does. [`super::Handle`] repeats attempts; [`super::service`] makes them for other members.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use openraft::LogIdOptionExt as _;
use proto::peer::ReadIndexRequest;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    health::{Health, Metrics, Status, is_leader, status},
    peers::{CallError, Peers},
    proposals::{self, Applied, Pending},
    reads,
    service::says_no_quorum,
    types::Raft,
    wire::ProposeReply,
};
use crate::{
    codec,
    log::{Durable, LogGuard},
};

/// How long the leader may take over one request. It refuses by itself, and sooner, when it has lost its majority.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// What came of an attempt.
pub(super) enum Attempt<T> {
    /// It succeeded.
    Done(T),
    /// It may succeed soon.
    Again { maybe_applied: bool },
    /// There is no majority.
    NoQuorum { maybe_applied: bool },
    /// The node is stopping, or has failed.
    Stopped { maybe_applied: bool },
}

/// The leader cannot decode a proposal.
pub(super) struct Unreadable;

/// What came of a proposal.
pub(super) type Outcome = Result<Applied, Unreadable>;

/// A running member.
pub(super) struct Core {
    pub(super) id: u64,
    /// [`super::App::is_readable`].
    pub(super) is_readable: fn(&[u8]) -> bool,
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) health: Arc<Health>,
    pub(super) applied: watch::Receiver<u64>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) fatal: watch::Receiver<Option<Arc<str>>>,
    pub(super) proposals: mpsc::Sender<Pending>,
    pub(super) reads: mpsc::Sender<reads::Waiting>,
    /// How far the log is on disk.
    pub(super) durable: Durable,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// Closes the log; after openraft has ended.
    pub(super) log: Mutex<Option<LogGuard>>,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Core {
    pub(super) fn metrics(&self) -> Metrics {
        self.raft.metrics()
    }

    pub(super) fn status(&self) -> Status {
        Status {
            // openraft learns of it a little later.
            applied: *self.applied.borrow(),
            ..status(&self.metrics().borrow(), self.health.is_fine())
        }
    }

    /// Whether the consensus does without this node: others vote, and that is sure.
    pub(super) fn is_let_go(&self) -> bool {
        let metrics = self.metrics();
        let metrics = metrics.borrow();
        let membership = &metrics.membership_config;
        let votes = membership.membership().voter_ids().any(|id| id == self.id);
        let is_sure = metrics.last_applied.index() >= membership.log_id().index();
        // One that led and steps down goes by its own name for the leader until it hears of another, which it need not.
        !votes && is_sure && !is_leader(&metrics)
    }

    /// Whether nothing will come of anything any more.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled() || self.fatal.borrow().is_some()
    }

    fn leader(&self) -> Option<u64> {
        self.metrics().borrow().current_leader
    }

    /// Returns when a node does not lead any more, or there is no majority, or this node stops.
    async fn unless_leads(&self, node: u64) {
        let mut metrics = self.metrics();
        tokio::select! {
            _ = metrics.wait_for(|now| now.current_leader != Some(node)) => {}
            () = self.health.lost() => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Proposes, at the leader.
    pub(super) async fn propose(&self, proposal: &Bytes) -> Attempt<Outcome> {
        if self.is_stopped() {
            return Attempt::Stopped {
                maybe_applied: false,
            };
        }
        if self.health.is_lost() {
            return Attempt::NoQuorum {
                maybe_applied: false,
            };
        }
        match self.leader() {
            Some(leader) if leader == self.id => self.propose_here(proposal.clone()).await,
            Some(leader) => self.propose_at(leader, proposal).await,
            None => Attempt::Again {
                maybe_applied: false,
            },
        }
    }

    /// Proposes if this node leads.
    pub(super) async fn propose_here(&self, proposal: Bytes) -> Attempt<Outcome> {
        if !is_leader(&self.metrics().borrow()) {
            return Attempt::Again {
                maybe_applied: false,
            };
        }
        if self.health.is_lost() {
            return Attempt::NoQuorum {
                maybe_applied: false,
            };
        }
        if !(self.is_readable)(&proposal) {
            return Attempt::Done(Err(Unreadable));
        }
        let (done, outcome) = oneshot::channel();
        let work = async {
            self.proposals
                .send(Pending { proposal, done })
                .await
                .map_err(|_| ())?;
            outcome.await.map_err(|_| ())
        };
        tokio::select! {
            biased;
            answer = work => match answer {
                Ok(Ok(applied)) => Attempt::Done(Ok(applied)),
                Ok(Err(proposals::Refused::NotLeader)) => Attempt::Again { maybe_applied: true },
                Ok(Err(proposals::Refused::Stopped)) | Err(()) => {
                    Attempt::Stopped { maybe_applied: true }
                }
            },
            () = self.health.lost() => Attempt::NoQuorum { maybe_applied: true },
            () = self.stop.cancelled() => Attempt::Stopped { maybe_applied: true },
        }
    }

    async fn propose_at(&self, leader: u64, proposal: &Bytes) -> Attempt<Outcome> {
        let payload = codec::encode(proposal);
        let call = self.peers.exchange(
            leader,
            CALL_LIMIT,
            payload,
            |mut client, message| async move { client.propose(message).await },
        );
        let answer: Result<ProposeReply, CallError> = tokio::select! {
            biased;
            answer = call => answer,
            () = self.unless_leads(leader) => return Attempt::Again { maybe_applied: true },
        };
        match answer {
            Ok(ProposeReply::Applied { index, outcome }) => {
                Attempt::Done(Ok(Applied { index, outcome }))
            }
            Ok(ProposeReply::Unreadable) => Attempt::Done(Err(Unreadable)),
            Ok(ProposeReply::NotLeader { maybe_applied }) => Attempt::Again { maybe_applied },
            Ok(ProposeReply::NoQuorum { maybe_applied }) => Attempt::NoQuorum { maybe_applied },
            Err(error) => {
                tracing::debug!(leader, %error, "a proposal could not be handed over");
                let maybe_applied = !matches!(error, CallError::Dial(_));
                Attempt::Again { maybe_applied }
            }
        }
    }

    /// The index that a linearizable read must have applied.
    pub(super) async fn read_index(&self) -> Attempt<u64> {
        if self.is_stopped() {
            return Attempt::Stopped {
                maybe_applied: false,
            };
        }
        if self.health.is_lost() {
            return Attempt::NoQuorum {
                maybe_applied: false,
            };
        }
        match self.leader() {
            Some(leader) if leader == self.id => self.read_index_here().await,
            Some(leader) => self.read_index_at(leader).await,
            None => Attempt::Again {
                maybe_applied: false,
            },
        }
    }

    /// The same, if this node leads.
    pub(super) async fn read_index_here(&self) -> Attempt<u64> {
        let again = Attempt::Again {
            maybe_applied: false,
        };
        let stopped = Attempt::Stopped {
            maybe_applied: false,
        };
        let (done, index) = oneshot::channel();
        if self.reads.send(done).await.is_err() {
            return stopped;
        }
        match index.await {
            Ok(Ok(index)) => Attempt::Done(index),
            Ok(Err(reads::Refused::NotLeader)) => again,
            // One round may fail on a busy machine.
            Ok(Err(reads::Refused::NoQuorum)) if !self.health.is_lost() => again,
            Ok(Err(reads::Refused::NoQuorum)) => Attempt::NoQuorum {
                maybe_applied: false,
            },
            Ok(Err(reads::Refused::Stopped)) | Err(_) => stopped,
        }
    }

    async fn read_index_at(&self, leader: u64) -> Attempt<u64> {
        let request = ReadIndexRequest {
            cluster_id: self.peers.cluster_id().into(),
            target: leader,
        };
        let call = self
            .peers
            .call(leader, CALL_LIMIT, |mut client| async move {
                client.read_index(request).await
            });
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            () = self.unless_leads(leader) => return Attempt::Again { maybe_applied: false },
        };
        match answer {
            Ok(answer) => Attempt::Done(answer.index),
            Err(CallError::Status { status, .. }) if says_no_quorum(&status) => Attempt::NoQuorum {
                maybe_applied: false,
            },
            Err(error) => {
                tracing::debug!(leader, %error, "the leader did not tell its index");
                Attempt::Again {
                    maybe_applied: false,
                }
            }
        }
    }

    /// Ends all tasks, then openraft, then the log.
    pub(super) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "the consensus did not end in order");
        }
        self.tasks.wait().await;
        let log = self
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Err(error) = spawn_blocking(move || drop(log)).await {
            tracing::error!(%error, "the log was not closed in order");
        }
    }
}
