//! The index that a linearizable read must have applied, on the leader. It takes a round of the quorum to learn; reads
//! that come in during one share the next.

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{health::is_leader, types::Raft};

/// Reads that may wait.
pub(super) const QUEUE: usize = 1024;

/// How long one round may take. openraft itself gives each member one heartbeat's time.
const ROUND_LIMIT: Duration = Duration::from_secs(1);

/// A round gave no index.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    /// The node does not lead.
    NotLeader,
    /// No majority answered in time.
    NoQuorum,
    /// openraft has ended.
    Stopped,
}

/// A read that waits.
pub(super) type Waiting = oneshot::Sender<Result<u64, Refused>>;

/// The task that makes rounds.
pub(super) struct Rounds {
    pub(super) raft: Raft,
    pub(super) queue: mpsc::Receiver<Waiting>,
    pub(super) stop: CancellationToken,
}

impl Rounds {
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::new();
        loop {
            let count = tokio::select! {
                () = self.stop.cancelled() => return,
                count = self.queue.recv_many(&mut waiting, QUEUE) => count,
            };
            if count == 0 {
                return;
            }
            let result = tokio::select! {
                () = self.stop.cancelled() => Err(Refused::Stopped),
                result = round(&self.raft) => result,
            };
            for read in waiting.drain(..) {
                // Whoever has given up does not need it.
                let _ = read.send(result);
            }
        }
    }
}

async fn round(raft: &Raft) -> Result<u64, Refused> {
    if !is_leader(&raft.metrics().borrow()) {
        return Err(Refused::NotLeader);
    }
    match timeout(ROUND_LIMIT, raft.get_read_log_id()).await {
        Ok(Ok((id, _applied))) => Ok(id.map_or(0, |id| id.index)),
        Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_)))) => {
            Err(Refused::NotLeader)
        }
        Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) | Err(_) => {
            Err(Refused::NoQuorum)
        }
        Ok(Err(RaftError::Fatal(_))) => Err(Refused::Stopped),
    }
}
