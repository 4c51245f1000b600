//! What is replicated: the desired state of the cluster and the rare facts about it.
//!
//! Everything is in ordered maps of shared values, and what there may be many of in maps that share their parts, so that a clone
//! of the state costs little and readers keep theirs while the next command is applied.

mod image;
mod life;
mod map;
mod node;
mod operation;
mod snapshot;
mod vm;

pub use image::*;
pub use life::*;
pub use map::*;
pub use node::*;
pub use operation::*;
pub use snapshot::*;
pub use vm::*;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    authority::Replacement,
    events::Events,
    ids::{
        CertificateId, ClusterId, ImageId, LeaseId, MapId, NodeId, OperationId, SnapshotId,
        TokenId, VmId,
    },
    owned_map::OwnedMap,
    quotas::Quota,
    requests::Requests,
    shared_map::SharedMap,
    vms::Vms,
};

/// A point in time as the proposer's clock had it: milliseconds since the Unix epoch.
pub type Millis = u64;

/// Labels: what users note about an object.
pub type Labels = BTreeMap<String, String>;

/// The replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The cluster; `None` before its first command.
    pub cluster: Option<ClusterId>,
    /// Which form of commands and records all members understand, and all write: see [`crate::version`]. It only grows.
    pub version: u32,
    /// The number that the next node gets.
    pub next_node: NodeId,
    /// The hosts.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// The last [`crate::state::KEPT_REMOVED`] hosts that were removed.
    pub removed: BTreeMap<NodeId, Arc<RemovedNode>>,
    /// Join tokens that can still be used.
    pub tokens: BTreeMap<TokenId, Token>,
    /// Certificates of those who use the cluster that have not expired, revoked ones included.
    pub certificates: BTreeMap<CertificateId, Certificate>,
    /// How much owners may have; of those that are not in it, as much as there is.
    pub quotas: BTreeMap<String, Quota>,
    /// What clients hold while they are there.
    pub leases: BTreeMap<LeaseId, Lease>,
    /// Images.
    pub images: OwnedMap<ImageId, Image>,
    /// Virtual machines.
    pub vms: Vms,
    /// Snapshots, those that are being captured included.
    pub snapshots: OwnedMap<SnapshotId, Snapshot>,
    /// Operations: all open ones, and the last [`crate::state::KEPT_OPERATIONS`] that ended.
    pub operations: SharedMap<OperationId, Arc<Operation>>,
    /// Maps that are left to the cluster: those that run, and those that ended and are kept for a while.
    pub maps: OwnedMap<MapId, Map>,
    /// Objects that are gone for the users and not yet deleted by their nodes.
    pub tombstones: SharedMap<ObjectId, Tombstone>,
    /// What became of requests: the last [`crate::state::KEPT_REQUESTS`].
    pub requests: Requests,
    /// What happened: the last [`crate::state::KEPT_EVENTS`].
    pub events: Events,
    /// The time of which nothing is known, once the state was put back.
    pub forgotten: Option<Forgotten>,
    /// The authority's replacement that is under way, or the last one; `None` while there was none.
    pub replacement: Option<Arc<Replacement>>,
}

/// The time of which a state that was put back knows nothing. What was made in it may be there all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// From what was the newest in the state, a little less: clocks differ.
    pub from: Millis,
    /// Until the state was put back.
    pub to: Millis,
}

/// An object of any kind that leaves a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectId {
    /// An image.
    Image(ImageId),
    /// A VM.
    Vm(VmId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// What nodes have left of a VM that was moved away from them. The VM itself lives elsewhere, or is gone.
    Left(VmId),
}

/// An object that is gone for the users while nodes still hold something of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Its name, for messages.
    pub name: String,
    /// The nodes that have not reported its deletion.
    pub nodes: BTreeSet<NodeId>,
    /// When it was deleted.
    pub created_at: Millis,
}
