//! What should be: the replicated state, the commands that change it, and the pure function between them.
//!
//! Nothing here has a clock, randomness, I/O or an unordered map, so that every member comes to the same state from the
//! same commands. Called by the state machine; read by everybody.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

mod apply;
mod authority;
mod command;
mod digest;
mod events;
mod ids;
mod invariants;
mod limits;
mod loads;
mod model;
pub mod names;
mod owned_map;
mod owners;
mod parts;
mod placement;
mod put_back;
mod quotas;
mod requests;
mod response;
mod shared_map;
mod vms;

pub use apply::{Wanted, apply, dependents_of_image, dependents_of_snapshot, places_of_fork};
pub use authority::*;
pub use command::*;
pub use digest::digest;
pub use events::{Audience, BadPosition, Event, EventKind, Events, KEPT_EVENTS, Subject};
pub use ids::*;
pub use invariants::{Violation, check};
pub use limits::*;
pub use loads::{CHILD_BYTES, Load, QEMU_BYTES, memory_of_boot, memory_of_fork};
pub use model::*;
pub use owned_map::OwnedMap;
pub use owners::*;
pub use put_back::Users;
pub use quotas::*;
pub use requests::{RequestRecord, Requests};
pub use response::*;
pub use shared_map::SharedMap;
pub use vms::Vms;

use crate::version::FIRST;

/// How many requests' outcomes are kept, at least.
pub const KEPT_REQUESTS: usize = 10_000;

/// How many operations that ended are kept.
pub const KEPT_OPERATIONS: usize = 1_000;

/// Of how many nodes that were removed is kept what was given up with them.
pub const KEPT_REMOVED: usize = 32;

/// How many children a fork may have.
pub const MAX_CHILDREN: u32 = 1_000;

/// How many members a group may have.
pub const MAX_MEMBERS: u32 = 16;

impl Default for State {
    fn default() -> Self {
        Self {
            cluster: None,
            version: FIRST,
            next_node: 1,
            nodes: Default::default(),
            removed: Default::default(),
            tokens: Default::default(),
            certificates: Default::default(),
            quotas: Default::default(),
            leases: Default::default(),
            images: Default::default(),
            vms: Default::default(),
            snapshots: Default::default(),
            operations: Default::default(),
            maps: Default::default(),
            tombstones: Default::default(),
            requests: Default::default(),
            events: Default::default(),
            forgotten: None,
            replacement: None,
        }
    }
}

impl State {
    /// The state of a cluster that was not founded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a node belonged to the cluster and does not any more. One that this state has not heard of yet may belong to it.
    pub fn was_removed(&self, node: NodeId) -> bool {
        node < self.next_node && !self.nodes.contains_key(&node)
    }
}

#[cfg(test)]
mod tests;
