//! What the consensus knows of what it replicates. Implemented by the crate's typed front and by tests.

use std::{collections::BTreeMap, error::Error};

/// A state machine: the same proposals in the same order give the same state and outcomes on every node. It starts from
/// its default.
pub trait App: Default + Send + Sync + 'static {
    /// What readers see: cheap to clone, and never changed once published.
    type View: Clone + Send + Sync + 'static;

    /// Whether a proposal can be decoded. Asked by the leader: one that cannot must not get into the log, where it would
    /// stop every member, and again at every start.
    fn is_readable(proposal: &[u8]) -> bool;

    /// Applies one proposal and returns its outcome. A refusal is an outcome; an error stops the node for good.
    fn apply(&mut self, proposal: &[u8]) -> Result<Vec<u8>, AppError>;

    /// The state as it is now.
    fn view(&self) -> Self::View;

    /// The whole of a state, for [`App::restore`]. It may take its time: the state machine goes on meanwhile.
    fn snapshot(view: &Self::View) -> Vec<u8>;

    /// A state from a snapshot.
    fn restore(snapshot: &[u8]) -> Result<Self, AppError>;

    /// The nodes that belong to the cluster, by their ids. While it is empty, the membership stays as it is.
    fn members(&self) -> Members;
}

/// Nodes that belong to the cluster, by their ids.
pub type Members = BTreeMap<u64, Member>;

/// A node that belongs to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// What fails together with it; empty where that is not known. Those without a zone count as of one.
    pub zone: String,
    /// Whether it has never been there yet: it is let in, and counts for nothing else.
    pub is_expected: bool,
}

/// A proposal or snapshot that cannot be decoded. Going on would let this node's state differ from the others', so the
/// node stops.
#[derive(Debug, thiserror::Error)]
#[error("the replicated state cannot go on")]
pub struct AppError(#[source] pub Box<dyn Error + Send + Sync>);

/// What is published after every applied batch.
#[derive(Clone, Debug)]
pub struct Published<V> {
    /// The log index that the view includes.
    pub index: u64,
    /// The state there.
    pub view: V,
}
