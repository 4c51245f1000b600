//! openraft's view of the network: its calls of other members, over gRPC.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use openraft::{
    EmptyNode, OptionalSend, RaftNetwork, RaftNetworkFactory, Snapshot,
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, RPCTypes},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};
use proto::peer::SnapshotChunk;

use tokio::time::timeout;

use super::{
    peers::{CallError, Peers},
    types::{TypeConfig, Vote},
    wire,
};
use crate::{
    codec,
    log::{Durable, LogError},
};

/// How long to leave a node alone that cannot be reached. Shorter than an election's time-out: a node that comes back
/// must hear of its leader before it becomes a candidate.
const BACKOFF: Duration = Duration::from_millis(200);

/// How long a message waits for what it says to be committed to be on this node's disk. Less than a heartbeat: others must not
/// take a slow disk for a node that is gone.
const SOON: Duration = Duration::from_millis(30);

/// The least rate at which a snapshot must get through, bytes a second, beyond a fixed time.
const SNAPSHOT_RATE: u64 = 1 << 20;
const SNAPSHOT_LEAST: Duration = Duration::from_secs(15);

/// Makes [`Network`]s.
pub(super) struct Factory {
    me: u64,
    peers: Arc<Peers>,
    durable: Durable,
}

impl Factory {
    pub(super) fn new(me: u64, peers: Arc<Peers>, durable: Durable) -> Self {
        Self { me, peers, durable }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Network {
        Network {
            me: self.me,
            target,
            peers: Arc::clone(&self.peers),
            durable: self.durable.clone(),
        }
    }
}

/// Calls one other member.
pub(super) struct Network {
    me: u64,
    target: u64,
    peers: Arc<Peers>,
    durable: Durable,
}

impl Network {
    /// Has a message not say of anything that it is committed which is not on this node's disk: openraft counts it as that from the
    /// moment that it was appended. A leader whose disk stands still says nothing at all, so that another is elected.
    async fn hold_back(&self, rpc: &mut AppendEntriesRequest<TypeConfig>) -> Result<(), LogError> {
        if self.durable.stands_still() {
            self.durable.all().await?;
        }
        if let Some(committed) = rpc.leader_commit {
            match timeout(SOON, self.durable.until(committed.index)).await {
                Ok(reached) => reached?,
                // A later message says so.
                Err(_) => rpc.leader_commit = None,
            }
        }
        Ok(())
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<u64> {
        Timeout {
            action,
            id: self.me,
            target: self.target,
            timeout,
        }
    }

    fn failed(
        &self,
        action: RPCTypes,
        error: &CallError,
    ) -> RPCError<u64, EmptyNode, RaftError<u64>> {
        match error {
            CallError::Timeout { limit, .. } => self.timeout(action, *limit).into(),
            error => Unreachable::new(error).into(),
        }
    }
}

impl RaftNetwork<TypeConfig> for Network {
    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, EmptyNode, RaftError<u64>>> {
        self.hold_back(&mut rpc)
            .await
            .map_err(|e| Unreachable::new(&e))?;
        let payload = codec::encode(&wire::Append::from(rpc));
        let reply: Result<wire::AppendReply, _> = self
            .peers
            .exchange(
                self.target,
                option.hard_ttl(),
                payload,
                |mut client, message| async move { client.append_entries(message).await },
            )
            .await;
        reply
            .map(Into::into)
            .map_err(|e| self.failed(RPCTypes::AppendEntries, &e))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, EmptyNode, RaftError<u64>>> {
        let payload = codec::encode(&wire::AskVote::from(rpc));
        let reply: Result<wire::VoteReply, _> = self
            .peers
            .exchange(
                self.target,
                option.hard_ttl(),
                payload,
                |mut client, message| async move { client.vote(message).await },
            )
            .await;
        reply
            .map(Into::into)
            .map_err(|e| self.failed(RPCTypes::Vote, &e))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let length = u64::try_from(snapshot.snapshot.0.len()).unwrap_or(u64::MAX);
        let limit = SNAPSHOT_LEAST + Duration::from_secs(length / SNAPSHOT_RATE);
        let chunks = chunks(self.peers.cluster_id(), self.target, vote, snapshot);
        let sent = self
            .peers
            .call(self.target, limit, |mut client| async move {
                client.install_snapshot(stream::iter(chunks)).await
            });
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = sent => answer,
        };
        let reply = answer.and_then(|answer| {
            codec::decode::<wire::SnapshotReply>(&answer.payload, codec::NETWORK_LIMIT).map_err(
                |source| CallError::Answer {
                    node: self.target,
                    source,
                },
            )
        });
        match reply {
            Ok(reply) => Ok(SnapshotResponse::new(reply.vote.into())),
            Err(CallError::Timeout { limit, .. }) => Err(StreamingError::Timeout(
                self.timeout(RPCTypes::InstallSnapshot, limit),
            )),
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// The messages that make up a snapshot. The bytes are not copied.
fn chunks(
    cluster_id: &str,
    target: u64,
    vote: Vote,
    snapshot: Snapshot<TypeConfig>,
) -> impl Iterator<Item = SnapshotChunk> + Send + 'static {
    let state = snapshot.snapshot.0;
    let header = codec::encode(&wire::SnapshotHeader {
        vote: vote.into(),
        meta: snapshot.meta.into(),
        length: u64::try_from(state.len()).unwrap_or(u64::MAX),
        crc: crc32fast::hash(&state),
    });
    let message = SnapshotChunk {
        cluster_id: cluster_id.into(),
        target,
        header: Bytes::new(),
        data: Bytes::new(),
    };
    let first = SnapshotChunk {
        header: header.into(),
        ..message.clone()
    };
    let parts = (0..state.len())
        .step_by(wire::CHUNK)
        .map(move |start| SnapshotChunk {
            data: state.slice(start..state.len().min(start + wire::CHUNK)),
            ..message.clone()
        });
    std::iter::once(first).chain(parts)
}
