//! Proposals on the leader: gathered into entries, because openraft writes and syncs one entry at a time.

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use openraft::error::ClientWriteError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    health::is_leader,
    types::{Batch, Raft},
};

/// Proposals that may wait.
pub(super) const QUEUE: usize = 1024;

/// The most proposals in one entry.
const MOST: usize = 256;

/// The most bytes in one entry, unless one proposal alone is larger.
const MOST_BYTES: usize = 1 << 20;

/// Entries on their way at once. While they are, what comes in makes up the next.
const ENTRIES: usize = 2;

/// A proposal that waits, and where its outcome goes.
pub(super) struct Pending {
    pub(super) proposal: Bytes,
    pub(super) done: oneshot::Sender<Result<Applied, Refused>>,
}

/// A proposal was applied.
pub(super) struct Applied {
    pub(super) index: u64,
    pub(super) outcome: Bytes,
}

/// A proposal was handed to openraft, and nothing is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    /// The node does not lead, or no longer.
    NotLeader,
    /// openraft has ended.
    Stopped,
}

/// The task that writes entries.
pub(super) struct Batcher {
    pub(super) raft: Raft,
    pub(super) queue: mpsc::Receiver<Pending>,
    pub(super) stop: CancellationToken,
}

impl Batcher {
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::new();
        let mut entries = FuturesUnordered::new();
        loop {
            while !waiting.is_empty() && entries.len() < ENTRIES {
                let batch = take(&mut waiting);
                if !batch.is_empty() {
                    entries.push(write(self.raft.clone(), batch));
                }
            }
            let idle = waiting.is_empty() && entries.len() < ENTRIES;
            tokio::select! {
                () = self.stop.cancelled() => return,
                Some(()) = entries.next() => {}
                count = self.queue.recv_many(&mut waiting, MOST), if idle => {
                    if count == 0 {
                        return;
                    }
                }
            }
        }
    }
}

/// Takes what fits into one entry, without what nobody waits for any more.
fn take(waiting: &mut Vec<Pending>) -> Vec<Pending> {
    waiting.retain(|pending| !pending.done.is_closed());
    let mut bytes = 0;
    let fitting = waiting
        .iter()
        .take_while(|pending| {
            bytes += pending.proposal.len();
            bytes <= MOST_BYTES
        })
        .count();
    let count = fitting.max(1).min(waiting.len());
    waiting.drain(..count).collect()
}

/// Writes one entry and hands its outcomes out.
async fn write(raft: Raft, batch: Vec<Pending>) {
    let (proposals, waiting): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|pending| (pending.proposal, pending.done))
        .unzip();
    match commit(&raft, proposals).await {
        Ok((index, outcomes)) => {
            for (done, outcome) in waiting.into_iter().zip(outcomes) {
                // Whoever has given up will ask again.
                let _ = done.send(Ok(Applied { index, outcome }));
            }
        }
        Err(refused) => {
            for done in waiting {
                let _ = done.send(Err(refused));
            }
        }
    }
}

async fn commit(raft: &Raft, proposals: Vec<Bytes>) -> Result<(u64, Vec<Bytes>), Refused> {
    let mut metrics = raft.metrics();
    let term = metrics.borrow().current_term;
    let answer = raft
        .client_write_ff(Batch(proposals))
        .await
        .map_err(|_| Refused::Stopped)?;
    // openraft does not answer for an entry that a snapshot has overtaken, so this does not wait for it alone.
    let deposed = metrics.wait_for(|now| now.current_term != term || !is_leader(now));
    let answer = tokio::select! {
        biased;
        answer = answer => answer.map_err(|_| Refused::Stopped)?,
        _ = deposed => return Err(Refused::NotLeader),
    };
    match answer {
        Ok(written) => Ok((written.log_id.index, written.data.0)),
        Err(ClientWriteError::ForwardToLeader(_)) => Err(Refused::NotLeader),
        Err(ClientWriteError::ChangeMembershipError(error)) => {
            tracing::error!(%error, "a proposal was taken for a change of the membership");
            Err(Refused::Stopped)
        }
    }
}
