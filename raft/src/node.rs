//! A member of the cluster: the consensus over the replicated [`State`]. The agent's way to propose, to read and to follow.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::watch, time::Instant};

pub use crate::consensus::{
    AWAY, BeginError, Caller, Config, DialError, Dialer, InitializeError, Leading, ReadError,
    StartError, Status, offline::Position,
};
use crate::{
    codec::{self, CodecError},
    consensus::{self, App, AppError, Member, Members, offline},
    log::Identity,
    state::{ClusterId, Node, NodeId, Outcome, Proposal, State, apply},
};

/// The state after an applied batch: `view`, which includes the log up to `index`.
pub type Published = consensus::Published<Arc<State>>;

/// The service that the other members call.
pub type Service = proto::peer::raft_service_server::RaftServiceServer<consensus::Service>;

/// The replicated state as the consensus knows it: proposals and outcomes as records.
#[derive(Debug, Default)]
struct Replicated(Arc<State>);

fn unreadable(error: CodecError) -> AppError {
    AppError(Box::new(error))
}

impl App for Replicated {
    type View = Arc<State>;

    fn is_readable(proposal: &[u8]) -> bool {
        codec::decode_proposal(proposal).is_ok()
    }

    fn apply(&mut self, proposal: &[u8]) -> Result<Vec<u8>, AppError> {
        let proposal = codec::decode_proposal(proposal).map_err(unreadable)?;
        // Readers keep the version they have.
        let outcome = apply(Arc::make_mut(&mut self.0), &proposal);
        Ok(codec::encode_outcome(&outcome))
    }

    fn view(&self) -> Arc<State> {
        Arc::clone(&self.0)
    }

    fn snapshot(view: &Arc<State>) -> Vec<u8> {
        codec::encode_state(view)
    }

    fn restore(snapshot: &[u8]) -> Result<Self, AppError> {
        codec::decode_state(snapshot)
            .map(|state| Self(Arc::new(state)))
            .map_err(unreadable)
    }

    fn members(&self) -> Members {
        let member = |node: &Node| Member {
            zone: node.zone().to_owned(),
            is_expected: !node.has_started(),
        };
        let nodes = self.0.nodes.iter();
        nodes.map(|(id, node)| (*id, member(node))).collect()
    }
}

/// A proposal has no outcome to tell.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The consensus did not come to one.
    #[error(transparent)]
    Consensus(#[from] consensus::ProposeError),
    /// The leader's answer cannot be read: it is of a newer version.
    #[error("the leader's answer cannot be read")]
    Answer(#[from] CodecError),
}

impl ProposeError {
    /// Nobody leads whom the proposer has heard of; it was not sent.
    pub fn no_leader() -> Self {
        let maybe_applied = false;
        Self::Consensus(consensus::ProposeError::NoLeader { maybe_applied })
    }

    /// Whether the time was up, rather than that nobody leads.
    pub fn is_deadline(&self) -> bool {
        matches!(
            self,
            Self::Consensus(consensus::ProposeError::Deadline { .. })
        )
    }
}

/// A running member. Cheap to clone.
#[derive(Clone)]
pub struct Handle(consensus::Handle<Replicated>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.0.status()).finish()
    }
}

/// What the folder of a member that does not run holds.
pub type Held = offline::Held<Arc<State>>;

fn identity(node: NodeId, cluster: ClusterId) -> Identity {
    Identity {
        cluster_id: cluster.to_string(),
        node_id: node,
    }
}

/// Looks into the folder of a member that does not run. See [`offline::look`].
pub fn look(dir: &Path, node: NodeId, cluster: ClusterId) -> Result<Held, StartError> {
    let held = offline::look::<Replicated>(dir, &identity(node, cluster))?;
    Ok(Held {
        app: held.app.0,
        last: held.last,
        committed: held.committed,
        term: held.term,
        voters: held.voters,
        learners: held.learners,
    })
}

/// Makes the folder of a member that begins with this state, and is the only voter. See [`offline::begin`].
pub fn begin(
    dir: &Path,
    node: NodeId,
    cluster: ClusterId,
    after: Position,
    state: &State,
) -> Result<(), BeginError> {
    let state = codec::encode_state(state);
    offline::begin(dir, &identity(node, cluster), after, &state)
}

/// How a member is set up, with the times and sizes that are meant for use. `create`: whether the node is new, so that there
/// must be no log yet, rather than must be one.
pub fn config(node: NodeId, cluster: ClusterId, dir: PathBuf, create: bool) -> Config {
    Config {
        create,
        ..Config::new(node, cluster.to_string(), dir)
    }
}

/// Starts a member. Its service must be reachable for the others, and the dialer must reach theirs.
pub async fn start(config: Config, dialer: Arc<dyn Dialer>) -> Result<Handle, StartError> {
    consensus::start(config, dialer).await.map(Handle)
}

impl Handle {
    /// Proposes, wherever the leader is; returns the outcome once this node's state includes it. Attempts are repeated until
    /// the deadline, or until there has been no majority for two seconds: a proposal without a request id must be harmless
    /// when it is applied twice.
    pub async fn propose(
        &self,
        proposal: &Proposal,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        // What this node does not know of yet is only a newer form that could be written, too.
        let version = self.0.view().borrow().view.version;
        let proposed = self
            .0
            .propose(codec::encode_proposal(proposal, version), deadline)
            .await?;
        Ok(codec::decode_outcome(&proposed.outcome)?)
    }

    /// Proposes, once, if this node leads. What it comes to is not known when that ends while it is under way.
    pub async fn propose_leading(&self, proposal: &Proposal) -> Result<Outcome, ProposeError> {
        let version = self.0.view().borrow().view.version;
        let proposal = codec::encode_proposal(proposal, version);
        let proposed = self.0.propose_leading(proposal).await?;
        Ok(codec::decode_outcome(&proposed.outcome)?)
    }

    /// Asks a majority whether this node leads. `None` when it does not, or they do not answer soon.
    pub async fn confirm_leading(&self) -> Option<Leading> {
        self.0.confirm_leading().await
    }

    /// Returns once this node's state includes everything that was answered anywhere before the call.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<u64, ReadError> {
        self.0.read_barrier(deadline).await
    }

    /// The state after every applied batch.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.0.view()
    }

    /// The consensus, as this node sees it now.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Makes this node the first of a cluster. Does nothing when it is in one already.
    pub async fn initialize(&self) -> Result<(), InitializeError> {
        self.0.initialize().await
    }

    /// Returns once a node, this one, was removed and is not needed any more: the state does not have it, and the consensus has let
    /// it go.
    pub async fn removed(&self, node: NodeId) {
        let mut published = self.published();
        let gone = published.wait_for(|now| now.view.was_removed(node));
        if gone.await.is_err() {
            return std::future::pending().await;
        }
        self.0.let_go().await;
    }

    /// Has connections to the other members made anew: what this node shows of itself has changed.
    pub fn redial(&self) {
        self.0.redial();
    }

    /// What the other members call.
    pub fn service(&self) -> Service {
        self.0.service()
    }

    /// Returns when the consensus has failed, and why: the process must end then.
    pub async fn failed(&self) -> String {
        let mut fatal = self.0.fatal();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.as_deref().unwrap_or("unknown").to_owned(),
            Err(_) => "it ended".to_owned(),
        }
    }

    /// Stops the member; returns when its tasks have ended and the log is closed.
    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}
