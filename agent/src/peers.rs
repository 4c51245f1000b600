//! The other nodes: where they are, and channels to them. A node is dialled by its number; its address comes from the
//! replicated state, or, before there is one, from what was known when this node joined.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use proto::{peer::peer_service_client::PeerServiceClient, v1::Reason};
use raft::{
    node::{DialError, Dialer, Published},
    state::NodeId,
};
use rustls::ClientConfig;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::{
    client::failure::{Failure, reason_of},
    trust::{
        identity::Identity,
        tls::{
            connect::{STREAMS, Target, channel, channel_with, probe},
            node_server_name,
        },
    },
};

/// Says, in a node's calls, which incarnation of the cluster it is in: see [`Identity::incarnation`].
pub const INCARNATION: &str = "forkypig-incarnation";

/// Has calls say so.
#[derive(Debug, Clone)]
pub struct SayIncarnation(MetadataValue<Ascii>);

impl Interceptor for SayIncarnation {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(INCARNATION, self.0.clone());
        Ok(request)
    }
}

/// A client for what nodes ask of each other beside the consensus.
pub type PeerClient = PeerServiceClient<InterceptedService<Channel, SayIncarnation>>;

/// A node cannot be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It is not a member, as far as is known here.
    #[error("no node has the number {0}")]
    Unknown(NodeId),
}

/// Channels to the other nodes, made when they are first needed, and anew when a node's address has changed.
pub struct Peers {
    config: Arc<ClientConfig>,
    incarnation: SayIncarnation,
    members: BTreeMap<NodeId, String>,
    published: OnceLock<watch::Receiver<Published>>,
    /// Where each node was reached last.
    last: Mutex<BTreeMap<NodeId, String>>,
    channels: Mutex<BTreeMap<(NodeId, Use), (String, Channel)>>,
    /// Who has said that this node was removed.
    removed: watch::Sender<Option<NodeId>>,
    /// Who says that this node's certificate is of an authority that was replaced.
    outdated: Mutex<Option<Outdated>>,
}

/// Calls that were refused because of this node's certificate.
#[derive(Debug, Clone, Copy)]
struct Outdated {
    /// Who refused the last one.
    by: NodeId,
    /// When it began, and when the last one was.
    since: Instant,
    last: Instant,
    was_said: bool,
}

/// So long such refusals go on until they are believed: a connection may be older than the certificate, and is made anew.
const DOUBT: Duration = Duration::from_secs(3);
/// After so long without one they have ended.
const CALM: Duration = Duration::from_secs(10);

/// What a connection is for. Streams that stand still must not hold up what keeps the cluster together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Questions and answers.
    Calls,
    /// Streams of people's work.
    Streams,
    /// Files: as much as the network takes.
    Files,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers")
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// With this node's client configuration, and the members it knows of old.
    #[allow(clippy::expect_used)] // As said there.
    pub fn new(config: Arc<ClientConfig>, identity: &Identity) -> Self {
        let incarnation = identity.incarnation.to_string();
        let incarnation = incarnation.parse().expect("a ULID is letters and digits");
        let members = identity
            .members
            .iter()
            .map(|member| (member.id, member.address.clone()))
            .collect();
        Self {
            config,
            incarnation: SayIncarnation(incarnation),
            members,
            published: OnceLock::new(),
            last: Mutex::default(),
            channels: Mutex::default(),
            removed: watch::Sender::new(None),
            outdated: Mutex::default(),
        }
    }

    /// From here on addresses come from the replicated state.
    pub fn follow(&self, published: watch::Receiver<Published>) {
        // Called once, by whoever started the consensus.
        let _first = self.published.set(published);
    }

    /// The other nodes, as far as is known here.
    pub fn others(&self, own: NodeId) -> Vec<NodeId> {
        let replicated = self.published.get().map(|published| {
            let state = &published.borrow().view;
            state.nodes.keys().copied().collect::<Vec<_>>()
        });
        let known = replicated.filter(|nodes| !nodes.is_empty());
        let mut nodes = known.unwrap_or_else(|| self.members.keys().copied().collect());
        nodes.retain(|node| *node != own);
        nodes
    }

    /// Takes note of what a node answered instead of doing what it was asked: it may have said that this node was removed. It is one of
    /// the cluster, which it has proved.
    pub fn note_refusal(&self, by: NodeId, status: &Status) {
        match reason_of(status) {
            Reason::NodeRemoved => {
                self.removed.send_replace(Some(by));
            }
            Reason::AuthorityReplaced => self.note_outdated(by, status),
            _ => {}
        }
    }

    fn note_outdated(&self, by: NodeId, status: &Status) {
        let now = Instant::now();
        let mut outdated = self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        let before = outdated.filter(|before| before.last.elapsed() < CALM);
        let mut refused = Outdated {
            by,
            since: before.map_or(now, |before| before.since),
            last: now,
            was_said: before.is_some_and(|before| before.was_said),
        };
        if !refused.was_said && refused.since.elapsed() >= DOUBT {
            refused.was_said = true;
            tracing::error!(by, "{}", Failure::from(status.clone()).message());
        }
        *outdated = Some(refused);
        drop(outdated);
        self.redial();
    }

    /// Who says that this node's certificate counts no more.
    pub fn outdated(&self) -> Option<NodeId> {
        let refused = *self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = refused.filter(|one| one.was_said && one.last.elapsed() < CALM);
        refused.map(|one| one.by)
    }

    /// Has connections made anew when they are needed next.
    pub fn redial(&self) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.clear();
    }

    /// Who has said that this node was removed, if anybody has.
    pub fn removed(&self) -> watch::Receiver<Option<NodeId>> {
        self.removed.subscribe()
    }

    fn address(&self, node: NodeId) -> Option<String> {
        let replicated = self.published.get().and_then(|published| {
            published
                .borrow()
                .view
                .nodes
                .get(&node)
                .map(|node| node.address.clone())
        });
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match replicated.or_else(|| self.members.get(&node).cloned()) {
            Some(address) => {
                last.insert(node, address.clone());
                Some(address)
            }
            // One that was removed is where it was, while the consensus has not let it go.
            None => last.get(&node).cloned(),
        }
    }

    /// A channel to a node. It connects when it is used.
    pub fn channel(&self, node: NodeId) -> Result<Channel, PeerError> {
        self.channel_for(node, Use::Calls)
    }

    fn channel_for(&self, node: NodeId, what: Use) -> Result<Channel, PeerError> {
        let address = self.address(node).ok_or(PeerError::Unknown(node))?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(&(node, what))
            && *known == address
        {
            return Ok(channel.clone());
        }
        let target = self.target(node, address.clone());
        let made = match what {
            Use::Calls | Use::Files => channel(target),
            Use::Streams => channel_with(target, STREAMS),
        };
        channels.insert((node, what), (address, made.clone()));
        Ok(made)
    }

    fn target(&self, node: NodeId, address: String) -> Target {
        Target::Tls {
            address,
            server_name: node_server_name(node),
            config: Arc::clone(&self.config),
        }
    }

    /// Whether a node proves within this time that it is there, on a connection of its own.
    pub async fn is_there(&self, node: NodeId, within: Duration) -> bool {
        let Some(address) = self.address(node) else {
            return false;
        };
        let target = self.target(node, address);
        matches!(timeout(within, probe(&target)).await, Ok(Ok(())))
    }

    /// A client for calls that are streams of people's work.
    pub fn stream_client(&self, node: NodeId) -> Result<PeerClient, PeerError> {
        Ok(self.client_over(self.channel_for(node, Use::Streams)?))
    }

    /// A client for calls that bring files.
    pub fn file_client(&self, node: NodeId) -> Result<PeerClient, PeerError> {
        Ok(self.client_over(self.channel_for(node, Use::Files)?))
    }

    fn client_over(&self, channel: Channel) -> PeerClient {
        PeerServiceClient::with_interceptor(channel, self.incarnation.clone())
    }

    /// A client for a node's peer calls.
    pub async fn client(&self, node: NodeId) -> Result<PeerClient, PeerError> {
        Ok(self
            .client_over(self.channel(node)?)
            .max_decoding_message_size(8 << 20))
    }
}

#[async_trait]
impl Dialer for Peers {
    // One of its own each time. The consensus asks again when the one it has is silent: the kernel may wait seconds before it
    // sends again what a cut link has lost, also when the link has long been back.
    async fn channel(&self, node: NodeId) -> Result<Channel, DialError> {
        let address = self.address(node).ok_or_else(|| DialError {
            node,
            source: Box::new(PeerError::Unknown(node)),
        })?;
        Ok(channel(self.target(node, address)))
    }

    fn refused(&self, node: NodeId, status: &Status) {
        self.note_refusal(node, status);
    }
}
