//! Hosts, and who may come in: tokens and certificates.

use std::collections::BTreeMap;

use super::{Accelerator, Labels, Millis};
use crate::state::{
    authority::{Fingerprint, NodeTrust},
    ids::{ImageId, NodeId, SnapshotId, VmId},
};

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Unique in the cluster.
    pub name: String,
    /// HOST:PORT.
    pub address: String,
    /// Whether new VMs may be placed there.
    pub schedulable: bool,
    /// Labels.
    pub labels: Labels,
    /// When it joined.
    pub created_at: Millis,
    /// What it reported when its agent started last; `None` before it did.
    pub capacity: Option<Capacity>,
    /// Of a newcomer whose agent has not started yet: until when it must have. `None` once it has.
    pub start_by: Option<Millis>,
    /// What it said of its certificates last; `None` before it did.
    pub trust: Option<NodeTrust>,
    /// Since it is being drained: its VMs are moved to other nodes.
    pub drain: Option<Drain>,
}

/// What is done with the VMs of a node that is to be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainHow {
    /// They are moved to others. It is over when somebody says so, and done when none is left.
    Move,
    /// They are suspended where they are, and resumed when their host was restarted, or somebody says so.
    Rest {
        /// Whether new VMs were placed there before.
        schedulable: bool,
    },
}

/// A node is to be switched off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// What is done with its VMs.
    pub how: DrainHow,
    /// When that was asked for last.
    pub since: Millis,
    /// VMs that could not be moved, or suspended, with the reasons. They are not tried again before somebody asks for it.
    pub stays: BTreeMap<VmId, String>,
}

impl Node {
    /// Whether its agent has ever started. One that has not is a member only in that it is let in.
    pub fn has_started(&self) -> bool {
        self.start_by.is_none()
    }

    /// Its zone, by its label; empty where it has none.
    pub fn zone(&self) -> &str {
        self.labels.get(ZONE).map_or("", String::as_str)
    }
}

/// The label that says in which zone a node is: what fails together.
pub const ZONE: &str = "zone";

/// A host that was removed, and what was given up with it, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedNode {
    /// Its name.
    pub name: String,
    /// When it was removed.
    pub removed_at: Millis,
    /// VMs that lived there. Their processes are to be ended: it stands for their tombstones.
    pub vms: BTreeMap<VmId, LostVm>,
    /// Snapshots whose files only it had.
    pub snapshots: BTreeMap<SnapshotId, String>,
    /// Images whose files only it had.
    pub images: BTreeMap<ImageId, String>,
}

/// A VM that was given up with its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostVm {
    /// Its name.
    pub name: String,
    /// Whose it was.
    pub owner: String,
}

/// What a host has to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// QEMU's version; empty where no usable one is.
    pub qemu_version: String,
    /// What `auto` chooses from, best first.
    pub accelerators: Vec<Accelerator>,
    /// The processor as guests see it under KVM: its name and stepping, and which of its features there are.
    pub processor: String,
    /// The agent's version.
    pub agent_version: String,
    /// The newest form of commands and records that it understands.
    pub newest_version: u32,
    /// What keeps the host from being fully used.
    pub problems: Vec<String>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER) that the token's holder can prove to own.
    pub key_hash: [u8; 32],
    /// When it was made.
    pub created_at: Millis,
    /// When it ends.
    pub expires_at: Millis,
    /// The newcomer that it let in, while that has not started yet: it lets nobody else in, and is forgotten when it has.
    pub node: Option<NodeId>,
    /// The authority that it pins.
    pub authority: Fingerprint,
}

/// What somebody may do. Each may do what the ones before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Viewer,
    /// Work with images, VMs, snapshots and forks.
    Operator,
    /// Everything: also who belongs to the cluster, and who may do what in it.
    Admin,
}

/// A certificate of somebody who uses the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose. Unique among those that are neither revoked nor expired.
    pub name: String,
    /// Whose objects are there for it: several certificates may have one owner.
    pub owner: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Millis,
    /// When it ends.
    pub expires_at: Millis,
    /// When it was made useless before that, if it was.
    pub revoked_at: Option<Millis>,
    /// The authority that signed it.
    pub authority: Fingerprint,
}
