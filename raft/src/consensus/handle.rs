//! The way to a running member: proposals and linearizable reads from any node, the published state, and what is known
//! of the consensus. Used by the crate's typed front.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{EmptyNode, error::RaftError};
use proto::peer::raft_service_server::RaftServiceServer;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::{
    app::{App, Published},
    core::{Attempt, Core, Unreadable},
    errors::{InitializeError, ProposeError, ReadError},
    health::Status,
    service::Service,
    wire::MESSAGE_LIMIT,
};
use crate::codec::PROPOSAL_LIMIT;

/// The first wait before an attempt is repeated, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// What came of a proposal. The local state includes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The log index it was applied at.
    pub index: u64,
    /// What the application answered.
    pub outcome: Vec<u8>,
}

/// A majority has said that a node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// When they were asked: no other was elected before that.
    pub since: Instant,
    /// In which term.
    pub term: u64,
    /// What was committed then, of earlier terms all.
    pub index: u64,
}

/// A running member of the consensus.
pub struct Handle<A: App> {
    pub(super) core: Arc<Core>,
    pub(super) published: watch::Receiver<Published<A::View>>,
}

impl<A: App> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
            published: self.published.clone(),
        }
    }
}

/// Why attempts were given up.
enum GivenUp {
    NoLeader,
    Deadline,
    Stopped,
}

impl<A: App> Handle<A> {
    /// Proposes, wherever the leader is, and returns the outcome once this node's state includes it. Attempts are
    /// repeated until the deadline, or until there has been no majority for a while; so it may be applied more than
    /// once, and must say inside what makes the second time harmless.
    pub async fn propose(
        &self,
        proposal: Vec<u8>,
        deadline: Instant,
    ) -> Result<Proposed, ProposeError> {
        let limit = usize::try_from(PROPOSAL_LIMIT).unwrap_or(usize::MAX);
        if proposal.len() > limit {
            return Err(ProposeError::TooLarge {
                size: proposal.len(),
                limit,
            });
        }
        let proposal = Bytes::from(proposal);
        let mut maybe_applied = false;
        let applied = self
            .repeat(deadline, &mut maybe_applied, || {
                self.core.propose(&proposal)
            })
            .await
            .map_err(|why| match why {
                GivenUp::NoLeader => ProposeError::NoLeader { maybe_applied },
                GivenUp::Deadline => ProposeError::Deadline { maybe_applied },
                GivenUp::Stopped => ProposeError::Stopped { maybe_applied },
            })?
            .map_err(|Unreadable| ProposeError::Unreadable)?;
        self.until_applied(applied.index, deadline)
            .await
            .map_err(|why| match why {
                GivenUp::Stopped => ProposeError::Stopped {
                    maybe_applied: true,
                },
                _ => ProposeError::Deadline {
                    maybe_applied: true,
                },
            })?;
        Ok(Proposed {
            index: applied.index,
            outcome: applied.outcome.into(),
        })
    }

    /// Proposes, once, if this node leads: to no other leader, and no second time.
    pub async fn propose_leading(&self, proposal: Vec<u8>) -> Result<Proposed, ProposeError> {
        let applied = match self.core.propose_here(Bytes::from(proposal)).await {
            Attempt::Done(applied) => applied.map_err(|Unreadable| ProposeError::Unreadable)?,
            Attempt::Again { maybe_applied } | Attempt::NoQuorum { maybe_applied } => {
                return Err(ProposeError::NoLeader { maybe_applied });
            }
            Attempt::Stopped { maybe_applied } => {
                return Err(ProposeError::Stopped { maybe_applied });
            }
        };
        // It is applied here: this node leads.
        let mut here = self.core.applied.clone();
        let reached = here.wait_for(|index| *index >= applied.index);
        if reached.await.is_err() {
            let maybe_applied = true;
            return Err(ProposeError::Stopped { maybe_applied });
        }
        Ok(Proposed {
            index: applied.index,
            outcome: applied.outcome.into(),
        })
    }

    /// Asks a majority whether this node leads. `None` when it does not, or they do not answer soon.
    pub async fn confirm_leading(&self) -> Option<Leading> {
        let since = Instant::now();
        let term = self.status().term;
        match self.core.read_index_here().await {
            Attempt::Done(index) if self.status().term == term => {
                Some(Leading { since, term, index })
            }
            _ => None,
        }
    }

    /// Returns once this node's state includes every proposal that was answered anywhere before the call, and the
    /// index that it had to reach.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<u64, ReadError> {
        if planted::planted("reads.stale") {
            return Ok(*self.core.applied.borrow());
        }
        let failed = |why| match why {
            GivenUp::NoLeader => ReadError::NoLeader,
            GivenUp::Deadline => ReadError::Deadline,
            GivenUp::Stopped => ReadError::Stopped,
        };
        let index = self
            .repeat(deadline, &mut false, || self.core.read_index())
            .await
            .map_err(failed)?;
        self.until_applied(index, deadline).await.map_err(failed)?;
        Ok(index)
    }

    async fn repeat<T, Fut: Future<Output = Attempt<T>>>(
        &self,
        deadline: Instant,
        maybe_applied: &mut bool,
        attempt: impl Fn() -> Fut,
    ) -> Result<T, GivenUp> {
        let mut wait = BACKOFF.0;
        let mut status = self.core.status.clone();
        loop {
            let Ok(attempted) = timeout_at(deadline, attempt()).await else {
                *maybe_applied = true;
                return Err(GivenUp::Deadline);
            };
            match attempted {
                Attempt::Done(value) => return Ok(value),
                Attempt::Again {
                    maybe_applied: maybe,
                } => *maybe_applied |= maybe,
                Attempt::NoQuorum {
                    maybe_applied: maybe,
                } => {
                    *maybe_applied |= maybe;
                    return Err(GivenUp::NoLeader);
                }
                Attempt::Stopped {
                    maybe_applied: maybe,
                } => {
                    *maybe_applied |= maybe;
                    return Err(GivenUp::Stopped);
                }
            }
            let news = async {
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = status.changed() => {}
                }
            };
            if timeout_at(deadline, news).await.is_err() {
                return Err(GivenUp::Deadline);
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    async fn until_applied(&self, index: u64, deadline: Instant) -> Result<(), GivenUp> {
        let mut applied = self.core.applied.clone();
        tokio::select! {
            biased;
            reached = applied.wait_for(|applied| *applied >= index) => match reached {
                Ok(_) => Ok(()),
                Err(_) => Err(GivenUp::Stopped),
            },
            () = self.core.stop.cancelled() => Err(GivenUp::Stopped),
            () = tokio::time::sleep_until(deadline) => Err(GivenUp::Deadline),
        }
    }

    /// The state after every applied batch.
    pub fn view(&self) -> watch::Receiver<Published<A::View>> {
        self.published.clone()
    }

    /// The consensus, as this node sees it now.
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// The same whenever something but the log's indices has changed.
    pub fn metrics_changed(&self) -> watch::Receiver<Status> {
        self.core.status.clone()
    }

    /// Returns once the consensus does without this node: others vote, and that is sure.
    pub async fn let_go(&self) {
        let mut metrics = self.core.metrics();
        while !self.core.is_let_go() {
            if metrics.changed().await.is_err() {
                return pending().await;
            }
        }
    }

    /// Makes this node the first of a cluster. Does nothing when it is in one already.
    pub async fn initialize(&self) -> Result<(), InitializeError> {
        let members = BTreeMap::from([(self.core.id, EmptyNode {})]);
        match self.core.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(openraft::error::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(InitializeError(error.into())),
        }
    }

    /// What the other members call. Limits on message sizes are set.
    pub fn service(&self) -> RaftServiceServer<Service> {
        RaftServiceServer::new(Service(Arc::clone(&self.core)))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// Why the consensus has failed, once it has: the process must end then. The log or the state cannot be written, or
    /// an entry cannot be applied.
    pub fn fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.core.fatal.clone()
    }

    /// Has all connections to other members made anew when they are next needed: what this node shows of itself has changed.
    pub fn redial(&self) {
        self.core.peers.redial();
    }

    /// Stops the member, and returns when its tasks have ended and the log is closed.
    pub async fn shutdown(&self) {
        self.core.shutdown().await;
    }
}
