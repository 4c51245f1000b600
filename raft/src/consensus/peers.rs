//! The other members: how they are called. Connections are made when needed, kept while they answer, and made anew
//! through the [`Dialer`] when they do not, because a node may have come back elsewhere.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture, future::Shared};
use proto::peer::{RaftMessage, raft_service_client::RaftServiceClient};
use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Response, Status, transport::Channel};

use super::wire::MESSAGE_LIMIT;

/// How long making a connection may take.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// A connection over which nothing was answered for this long is replaced.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);

/// Makes connections to other nodes. Implemented by the agent, which knows their addresses and certificates.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// A connection to a node; it need not be up yet. Called again when one has gone silent.
    async fn channel(&self, node: u64) -> Result<Channel, DialError>;

    /// Told what a node answered instead of doing what it was asked.
    fn refused(&self, node: u64, status: &Status) {
        let _of_no_interest = (node, status);
    }
}

/// A node cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("node {node} cannot be dialled")]
pub struct DialError {
    /// Which.
    pub node: u64,
    /// Why.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// A call of another member failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// There is no connection: nothing was sent.
    #[error("{0}")]
    Dial(Arc<str>),
    /// It took too long.
    #[error("node {node} did not answer within {limit:?}")]
    Timeout { node: u64, limit: Duration },
    /// The node, or the connection, refused it.
    #[error("node {node} answered {}: {}", status.code(), status.message())]
    Status { node: u64, status: Box<Status> },
    /// The answer makes no sense.
    #[error("node {node}'s answer cannot be read: {source}")]
    Answer {
        node: u64,
        source: crate::codec::CodecError,
    },
}

pub(super) type Client = RaftServiceClient<Channel>;

/// A dial that several calls wait for. It goes on when a call gives up.
type Dial = Shared<BoxFuture<'static, Result<Channel, Arc<str>>>>;

#[derive(Default)]
struct Peer {
    dial: Option<Dial>,
    /// The first call since the last answer.
    asked: Option<Instant>,
    answered: Option<Instant>,
    /// It has been said that it cannot be reached.
    reported: bool,
}

/// All other members.
pub(super) struct Peers {
    cluster_id: String,
    dialer: Arc<dyn Dialer>,
    tasks: TaskTracker,
    stop: CancellationToken,
    peers: Mutex<BTreeMap<u64, Peer>>,
}

impl Peers {
    pub(super) fn new(
        cluster_id: String,
        dialer: Arc<dyn Dialer>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            cluster_id,
            dialer,
            tasks,
            stop,
            peers: Mutex::default(),
        }
    }

    pub(super) fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// A record for a node.
    pub(super) fn message(&self, target: u64, payload: Vec<u8>) -> RaftMessage {
        RaftMessage {
            cluster_id: self.cluster_id.clone(),
            target,
            payload: Bytes::from(payload),
        }
    }

    /// Calls a node.
    pub(super) async fn call<T, F, Fut>(
        &self,
        node: u64,
        limit: Duration,
        call: F,
    ) -> Result<T, CallError>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let work = async {
            let channel = self.channel(node).await.map_err(CallError::Dial)?;
            let client = RaftServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT);
            match call(client).await {
                Ok(response) => {
                    self.answered(node);
                    Ok(response.into_inner())
                }
                Err(status) => {
                    self.dialer.refused(node, &status);
                    self.refused(node, &status);
                    Err(CallError::Status {
                        node,
                        status: Box::new(status),
                    })
                }
            }
        };
        let result = match timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout { node, limit }),
        };
        if let Err(error) = &result {
            self.report(node, error);
        }
        result
    }

    /// Calls a node with a record, and reads the record it answers with.
    pub(super) async fn exchange<T, F, Fut>(
        &self,
        node: u64,
        limit: Duration,
        payload: Vec<u8>,
        call: F,
    ) -> Result<T, CallError>
    where
        T: serde::de::DeserializeOwned,
        F: FnOnce(Client, RaftMessage) -> Fut,
        Fut: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let message = self.message(node, payload);
        let answer = self
            .call(node, limit, |client| call(client, message))
            .await?;
        crate::codec::decode(&answer.payload, crate::codec::NETWORK_LIMIT)
            .map_err(|source| CallError::Answer { node, source })
    }

    /// When a node answered last.
    pub(super) fn answered_at(&self, node: u64) -> Option<Instant> {
        self.lock().get(&node).and_then(|peer| peer.answered)
    }

    async fn channel(&self, node: u64) -> Result<Channel, Arc<str>> {
        let dial = {
            let mut peers = self.lock();
            let peer = peers.entry(node).or_default();
            let asked = *peer.asked.get_or_insert_with(Instant::now);
            if asked.elapsed() > SILENCE_LIMIT {
                peer.asked = Some(Instant::now());
                peer.dial = None;
            }
            peer.dial.get_or_insert_with(|| self.dial(node)).clone()
        };
        let dialled = dial.clone().await;
        if dialled.is_err() {
            self.forget(node, &dial);
        }
        dialled
    }

    /// Dials in a task of its own: heartbeats, which give up soon, would else never see it through.
    fn dial(&self, node: u64) -> Dial {
        let dialer = Arc::clone(&self.dialer);
        let stop = self.stop.clone();
        let task = self.tasks.spawn(async move {
            let dialled = tokio::select! {
                () = stop.cancelled() => return Err("the node is stopping".into()),
                dialled = timeout(DIAL_LIMIT, dialer.channel(node)) => dialled,
            };
            match dialled {
                Ok(Ok(channel)) => Ok(channel),
                Ok(Err(error)) => Err(format!("{error}: {}", error.source).into()),
                Err(_) => Err(format!("node {node} was not connected in {DIAL_LIMIT:?}").into()),
            }
        });
        task.map(|result| result.unwrap_or_else(|e| Err(e.to_string().into())))
            .boxed()
            .shared()
    }

    /// Has all connections made anew when they are next needed: what this node shows of itself has changed. Calls that are under way are
    /// not broken off.
    pub(super) fn redial(&self) {
        for peer in self.lock().values_mut() {
            peer.dial = None;
        }
    }

    fn forget(&self, node: u64, dial: &Dial) {
        if let Some(peer) = self.lock().get_mut(&node)
            && peer.dial.as_ref().is_some_and(|there| there.ptr_eq(dial))
        {
            peer.dial = None;
        }
    }

    fn answered(&self, node: u64) {
        if let Some(peer) = self.lock().get_mut(&node) {
            peer.answered = Some(Instant::now());
            peer.asked = None;
            if std::mem::take(&mut peer.reported) {
                tracing::info!(node, "another member is reached again");
            }
        }
    }

    /// Says once that a node has not answered for a while. openraft says it at every heartbeat.
    fn report(&self, node: u64, error: &CallError) {
        if let Some(peer) = self.lock().get_mut(&node)
            && !peer.reported
            && peer.answered.is_none_or(|at| at.elapsed() > SILENCE_LIMIT)
            && !self.stop.is_cancelled()
        {
            peer.reported = true;
            tracing::warn!(node, %error, "another member cannot be reached");
        }
    }

    fn refused(&self, node: u64, status: &Status) {
        // The node is gone, another one has its address, or the connection is of a certificate that counts no more.
        if matches!(
            status.code(),
            tonic::Code::Unavailable
                | tonic::Code::FailedPrecondition
                | tonic::Code::Unknown
                | tonic::Code::Unauthenticated
        ) && let Some(peer) = self.lock().get_mut(&node)
        {
            peer.dial = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
