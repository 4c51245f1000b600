//! What other members ask of this one, over gRPC.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use openraft::{
    Snapshot,
    raft::{AppendEntriesResponse, SnapshotResponse},
};
use proto::peer::{
    HearLeaderRequest, HearLeaderResponse, RaftMessage, ReadIndexRequest, ReadIndexResponse,
    SnapshotChunk, raft_service_server::RaftService,
};
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{
    core::{Attempt, Core, Unreadable},
    types::{SnapshotBytes, TypeConfig, Vote},
    wire::{self, ProposeReply},
};
use crate::codec;

/// Set on the status of a leader that has lost its majority.
const NO_QUORUM: &str = "forkypig-no-quorum";

/// The member that makes a call, in the request's extensions: whoever serves the calls knows it by what the caller proved. It speaks for
/// itself only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller(pub u64);

/// Refuses a call in which a member speaks for another.
fn speaks_for(caller: Option<Caller>, node: u64) -> Result<(), Status> {
    match caller {
        Some(Caller(caller)) if caller != node => Err(Status::permission_denied(format!(
            "node {caller} does not speak for node {node}"
        ))),
        _ => Ok(()),
    }
}

/// The service of one member.
#[derive(Clone)]
pub struct Service(pub(super) Arc<Core>);

impl Service {
    fn check(&self, cluster_id: &str, target: u64) -> Result<(), Status> {
        if cluster_id != self.0.peers.cluster_id() {
            return Err(Status::failed_precondition(
                "this is another cluster, or this one before or after it was recovered or restored",
            ));
        }
        if target != self.0.id {
            return Err(Status::failed_precondition(format!(
                "this is node {}, not {target}",
                self.0.id
            )));
        }
        Ok(())
    }

    fn open<T: DeserializeOwned>(&self, request: Request<RaftMessage>) -> Result<T, Status> {
        let message = request.into_inner();
        self.check(&message.cluster_id, message.target)?;
        codec::decode(&message.payload, codec::NETWORK_LIMIT)
            .map_err(|e| Status::invalid_argument(e.to_string()))
    }

    fn reply(payload: Vec<u8>) -> Response<RaftMessage> {
        Response::new(RaftMessage {
            cluster_id: String::new(),
            target: 0,
            payload: payload.into(),
        })
    }

    fn ended(error: impl std::fmt::Display) -> Status {
        Status::unavailable(error.to_string())
    }

    async fn vote_now(&self) -> Result<Vote, Status> {
        self.0
            .raft
            .with_raft_state(|state| *state.vote_ref())
            .await
            .map_err(Self::ended)
    }
}

#[tonic::async_trait]
impl RaftService for Service {
    async fn append_entries(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let caller = request.extensions().get().copied();
        let append: wire::Append = self.open(request)?;
        speaks_for(caller, append.leader())?;
        let response = self
            .0
            .raft
            .append_entries(append.into())
            .await
            .map_err(Self::ended)?;
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.0.health.heard();
        }
        // The answer says that what came before is on this node's disk.
        self.0.durable.all().await.map_err(Self::ended)?;
        Ok(Self::reply(codec::encode(&wire::AppendReply::from(
            response,
        ))))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let caller = request.extensions().get().copied();
        let ask: wire::AskVote = self.open(request)?;
        speaks_for(caller, ask.candidate())?;
        let response = self.0.raft.vote(ask.into()).await.map_err(Self::ended)?;
        Ok(Self::reply(codec::encode(&wire::VoteReply::from(response))))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let caller = request.extensions().get().copied();
        let mut chunks = request.into_inner();
        let first = chunks
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("the snapshot has no header"))?;
        self.check(&first.cluster_id, first.target)?;
        let header: wire::SnapshotHeader = codec::decode(&first.header, codec::NETWORK_LIMIT)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        speaks_for(caller, header.vote.node())?;
        let vote = Vote::from(header.vote);
        let mine = self.vote_now().await?;
        let response = if vote < mine {
            SnapshotResponse::new(mine)
        } else {
            let state = receive(&mut chunks, first.data, &header).await?;
            let snapshot = Snapshot::<TypeConfig> {
                meta: header.meta.into(),
                snapshot: Box::new(SnapshotBytes(state)),
            };
            let installed = self.0.raft.install_full_snapshot(vote, snapshot).await;
            installed.map_err(Self::ended)?
        };
        if response.vote <= vote {
            self.0.health.heard();
        }
        Ok(Self::reply(codec::encode(&wire::SnapshotReply {
            vote: response.vote.into(),
        })))
    }

    async fn propose(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let proposal: Bytes = self.open(request)?;
        let reply = match self.0.propose_here(proposal).await {
            Attempt::Done(Err(Unreadable)) => ProposeReply::Unreadable,
            Attempt::Done(Ok(applied)) => ProposeReply::Applied {
                index: applied.index,
                outcome: applied.outcome,
            },
            Attempt::Again { maybe_applied } | Attempt::Stopped { maybe_applied } => {
                ProposeReply::NotLeader { maybe_applied }
            }
            Attempt::NoQuorum { maybe_applied } => ProposeReply::NoQuorum { maybe_applied },
        };
        Ok(Self::reply(codec::encode(&reply)))
    }

    async fn hear_leader(
        &self,
        request: Request<HearLeaderRequest>,
    ) -> Result<Response<HearLeaderResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.cluster_id, request.target)?;
        let heard = self.0.health.hears_leader();
        Ok(Response::new(HearLeaderResponse { heard }))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.cluster_id, request.target)?;
        match self.0.read_index_here().await {
            Attempt::Done(index) => Ok(Response::new(ReadIndexResponse { index })),
            Attempt::Again { .. } => Err(Status::aborted("not now: ask again")),
            Attempt::NoQuorum { .. } => Err(no_quorum()),
            Attempt::Stopped { .. } => Err(Status::unavailable("the node is stopping")),
        }
    }
}

/// What [`says_no_quorum`] recognises.
fn no_quorum() -> Status {
    let mut status = Status::unavailable("no majority answers");
    status
        .metadata_mut()
        .insert(NO_QUORUM, MetadataValue::from_static("1"));
    status
}

/// Whether a leader answered that it has lost its majority.
pub(super) fn says_no_quorum(status: &Status) -> bool {
    status.metadata().contains_key(NO_QUORUM)
}

/// Collects a snapshot's bytes.
async fn receive(
    chunks: &mut Streaming<SnapshotChunk>,
    first: Bytes,
    header: &wire::SnapshotHeader,
) -> Result<Bytes, Status> {
    if header.length > wire::SNAPSHOT_LIMIT {
        return Err(Status::invalid_argument("the snapshot is too large"));
    }
    let wrong = || Status::data_loss("the snapshot is not what was announced");
    let length = usize::try_from(header.length).map_err(|_| wrong())?;
    let mut state = BytesMut::from(&first[..]);
    while let Some(chunk) = chunks.message().await? {
        if chunk.data.len() > length.saturating_sub(state.len()) {
            return Err(wrong());
        }
        state.extend_from_slice(&chunk.data);
    }
    match state.len() == length && crc32fast::hash(&state) == header.crc {
        true => Ok(state.freeze()),
        false => Err(wrong()),
    }
}
