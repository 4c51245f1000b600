//! What a node that does not run has, and what a backup has.

use raft::{
    node::Held,
    state::{Millis, State},
};
use serde::Serialize;
use ulid::Ulid;

use super::{Moment, time, time_text};
use crate::{backup::Backup, convert, trust::identity::Identity};

/// What a node that does not run has of its cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldView {
    /// The cluster's id.
    pub cluster_id: String,
    /// The incarnation that the node is in.
    pub incarnation: String,
    /// Its number.
    pub node_id: u64,
    /// Its name.
    pub name: String,
    /// The term of the last entry of its log.
    pub term: u64,
    /// The index of that.
    pub index: u64,
    /// Up to which index it knows that entries are committed.
    pub committed: u64,
    /// The newest moment that its state tells of.
    pub newest: Option<Moment>,
    /// The nodes that it knows of.
    pub nodes: Vec<MemberView>,
    /// How many VMs, snapshots and images its state has.
    pub vms: usize,
    /// See there.
    pub snapshots: usize,
    /// See there.
    pub images: usize,
}

/// A node that another one knows of.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it was reached.
    pub address: String,
    /// `voter`, `learner`, or nothing.
    pub role: &'static str,
    /// How many VMs are on it.
    pub vms: usize,
}

fn when(millis: Millis) -> Option<Moment> {
    time((millis > 0).then(|| convert::timestamp(millis)))
}

fn members(state: &State, role: impl Fn(u64) -> &'static str) -> Vec<MemberView> {
    let on = |id| state.vms.values().filter(|vm| vm.node == id).count();
    state
        .nodes
        .values()
        .map(|node| MemberView {
            id: node.id,
            name: node.name.clone(),
            address: node.address.clone(),
            role: role(node.id),
            vms: on(node.id),
        })
        .collect()
}

impl HeldView {
    /// Of a node.
    pub fn new(identity: &Identity, held: &Held) -> Self {
        let state = &held.app;
        Self {
            cluster_id: identity.cluster.to_string(),
            incarnation: identity.incarnation.to_string(),
            node_id: identity.node,
            name: identity.name.clone(),
            term: held.last.term,
            index: held.last.index,
            committed: held.committed,
            newest: when(state.newest()),
            nodes: members(state, |id| match () {
                () if held.voters.contains(&id) => "voter",
                () if held.learners.contains(&id) => "learner",
                () => "",
            }),
            vms: state.vms.len(),
            snapshots: state.snapshots.len(),
            images: state.images.len(),
        }
    }

    /// For people: a line for each thing that matters.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("cluster", self.cluster_id.clone()),
            ("node", format!("{} ({})", self.name, self.node_id)),
            (
                "log",
                format!(
                    "ends at term {}, index {}; known to be committed up to {}",
                    self.term, self.index, self.committed
                ),
            ),
            ("newest", time_text(self.newest)),
            (
                "holds",
                format!(
                    "{} VMs, {} snapshots, {} images",
                    self.vms, self.snapshots, self.images
                ),
            ),
        ];
        lines.extend(self.nodes.iter().map(|node| ("member", node.line())));
        lines
    }
}

impl MemberView {
    fn line(&self) -> String {
        let role = match self.role {
            "" => String::new(),
            role => format!("{role}, "),
        };
        format!("{} ({role}{} VMs) at {}", self.name, self.vms, self.address)
    }
}

/// What a backup has.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupView {
    /// The cluster's id.
    pub cluster_id: String,
    /// The incarnation that it is of.
    pub incarnation: String,
    /// The node that wrote it.
    pub node: String,
    /// When.
    pub taken_at: Option<Moment>,
    /// The log's term then.
    pub term: u64,
    /// The last log entry that is in it.
    pub index: u64,
    /// The agent's version.
    pub agent_version: String,
    /// Whether the authority's private key is in it.
    pub with_authority: bool,
    /// The nodes that it knows of.
    pub nodes: Vec<MemberView>,
    /// How many VMs, snapshots, images and certificates it has.
    pub vms: usize,
    /// See there.
    pub snapshots: usize,
    /// See there.
    pub images: usize,
    /// See there.
    pub certificates: usize,
    /// Bytes.
    pub size_bytes: usize,
}

impl BackupView {
    /// Of a backup that is so large.
    pub fn new(backup: &Backup, size_bytes: usize) -> Self {
        let (about, state) = (&backup.about, &backup.state);
        Self {
            cluster_id: Ulid(about.cluster).to_string(),
            incarnation: Ulid(about.incarnation).to_string(),
            node: about.node.clone(),
            taken_at: when(about.taken_at),
            term: about.term,
            index: about.index,
            agent_version: about.agent_version.clone(),
            with_authority: backup.authority_key.is_some(),
            nodes: members(state, |_| ""),
            vms: state.vms.len(),
            snapshots: state.snapshots.len(),
            images: state.images.len(),
            certificates: state.certificates.len(),
            size_bytes,
        }
    }

    /// For people: a line for each thing that matters.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let key = match self.with_authority {
            true => "in it: whoever has this file is let in as anybody",
            false => "not in it",
        };
        let mut lines = vec![
            ("cluster", self.cluster_id.clone()),
            (
                "taken",
                format!(
                    "{} by {} (term {}, index {}, fpagent {})",
                    time_text(self.taken_at),
                    self.node,
                    self.term,
                    self.index,
                    self.agent_version
                ),
            ),
            (
                "holds",
                format!(
                    "{} VMs, {} snapshots, {} images, {} certificates",
                    self.vms, self.snapshots, self.images, self.certificates
                ),
            ),
            ("authority", format!("its private key is {key}")),
        ];
        lines.extend(self.nodes.iter().map(|node| ("node", node.line())));
        lines
    }
}
