//! A node.

use std::collections::BTreeMap;

use proto::v1;
use serde::Serialize;

use super::{Moment, age, labels_text, time};
use crate::client::{output::Row, units};

/// A node as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct NodeView {
    pub id: u64,
    pub name: String,
    pub address: String,
    pub state: &'static str,
    pub schedulable: bool,
    pub role: &'static str,
    pub leader: bool,
    pub labels: BTreeMap<String, String>,
    pub created_at: Option<Moment>,
    pub vms: u32,
    pub capacity: Option<CapacityView>,
    pub room: Option<RoomView>,
    pub drain: Option<DrainView>,
}

/// What a host has room for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct RoomView {
    pub free_memory_bytes: u64,
    pub free_disk_bytes: u64,
    pub promised_memory_bytes: u64,
}

/// How far a node is drained.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct DrainView {
    pub since: Option<Moment>,
    pub moving: Vec<String>,
    pub stays: Vec<StayingView>,
    pub snapshots: Vec<String>,
    pub done: bool,
    pub suspends: bool,
}

/// A VM that could not be moved, or suspended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct StayingView {
    pub vm: String,
    pub reason: String,
}

impl From<v1::NodeDrain> for DrainView {
    fn from(drain: v1::NodeDrain) -> Self {
        let stays = drain.stays.into_iter().map(|one| StayingView {
            vm: one.vm,
            reason: one.reason,
        });
        Self {
            since: time(drain.since),
            moving: drain.moving,
            stays: stays.collect(),
            snapshots: drain.snapshots,
            done: drain.done,
            suspends: drain.suspends,
        }
    }
}

impl DrainView {
    /// For people: what is still there of a node's, and what to do about it.
    pub fn lines(&self, node: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if self.done && self.stays.is_empty() && self.suspends {
            lines.push(format!(
                "{node} is ready to be restarted: no VM runs there. They go on when its agent is back."
            ));
        } else if self.done && self.stays.is_empty() {
            lines.push(format!("{node} is drained: no VM lives there."));
        }
        for StayingView { vm, reason } in &self.stays {
            lines.push(format!("  stays: VM {vm}: {reason}"));
        }
        if !self.snapshots.is_empty() && !self.suspends {
            let all = self.snapshots.join(", ");
            lines.push(format!("  only there: snapshots {all}"));
        }
        lines
    }
}

/// What a host has to offer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct CapacityView {
    pub cpus: u32,
    pub memory_bytes: u64,
    pub qemu_version: String,
    pub accelerators: Vec<String>,
    pub agent_version: String,
    pub newest_version: u32,
    pub processor: String,
    pub problems: Vec<String>,
}

impl From<v1::Node> for NodeView {
    fn from(node: v1::Node) -> Self {
        let (state, role) = (state_word(node.state()), role_word(node.role()));
        Self {
            id: node.id,
            name: node.name,
            address: node.address,
            state,
            schedulable: node.schedulable,
            role,
            leader: node.leader,
            labels: node.labels.into_iter().collect(),
            created_at: time(node.created_at),
            vms: node.vms,
            capacity: node.capacity.map(CapacityView::from),
            room: node.room.map(RoomView::from),
            drain: node.drain.map(DrainView::from),
        }
    }
}

impl From<v1::NodeRoom> for RoomView {
    fn from(room: v1::NodeRoom) -> Self {
        Self {
            free_memory_bytes: room.free_memory_bytes,
            free_disk_bytes: room.free_disk_bytes,
            promised_memory_bytes: room.promised_memory_bytes,
        }
    }
}

impl From<v1::NodeCapacity> for CapacityView {
    fn from(capacity: v1::NodeCapacity) -> Self {
        Self {
            cpus: capacity.cpus,
            memory_bytes: capacity.memory_bytes,
            qemu_version: capacity.qemu_version,
            accelerators: capacity.accelerators,
            agent_version: capacity.agent_version,
            newest_version: capacity.newest_version,
            processor: capacity.processor,
            problems: capacity.problems,
        }
    }
}

/// A node that was removed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct RemovedNodeView {
    pub id: u64,
    pub name: String,
    pub vms: Vec<String>,
    pub snapshots: Vec<String>,
    pub images: Vec<String>,
}

impl From<v1::DeleteNodeResponse> for RemovedNodeView {
    fn from(removed: v1::DeleteNodeResponse) -> Self {
        Self {
            id: removed.id,
            name: removed.name,
            vms: removed.vms,
            snapshots: removed.snapshots,
            images: removed.images,
        }
    }
}

impl RemovedNodeView {
    /// For people: what is gone.
    pub fn lines(&self) -> Vec<String> {
        let given_up = |what: &str, names: &[String]| {
            (!names.is_empty()).then(|| format!("  given up: {what} {}", names.join(", ")))
        };
        let first = format!("{} is no node of the cluster any more.", self.name);
        [Some(first)]
            .into_iter()
            .chain([
                given_up("VMs", &self.vms),
                given_up("snapshots", &self.snapshots),
                given_up("images", &self.images),
            ])
            .flatten()
            .collect()
    }
}

impl Row for NodeView {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec![
            "NAME",
            "STATE",
            "ROLE",
            "LEADER",
            "SCHEDULABLE",
            "VMS",
            "ADDRESS",
            "AGE",
        ];
        if wide {
            header.extend([
                "ID",
                "CPUS",
                "MEMORY",
                "PROMISED",
                "FREE",
                "DISK FREE",
                "QEMU",
                "ACCELERATORS",
                "AGENT",
                "LABELS",
            ]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let mut cells = vec![
            self.name.clone(),
            self.state.to_owned(),
            self.role.to_owned(),
            yes(self.leader),
            yes(self.schedulable),
            self.vms.to_string(),
            self.address.clone(),
            age(self.created_at),
        ];
        if wide {
            cells.push(self.id.to_string());
            cells.extend(match &self.capacity {
                Some(capacity) => [
                    capacity.cpus.to_string(),
                    units::show_size(capacity.memory_bytes),
                ],
                None => [const { String::new() }; 2],
            });
            cells.extend(match &self.room {
                Some(room) => [
                    units::show_size(room.promised_memory_bytes),
                    units::show_size(room.free_memory_bytes),
                    units::show_size(room.free_disk_bytes),
                ],
                None => [const { String::new() }; 3],
            });
            cells.extend(match &self.capacity {
                Some(capacity) => [
                    capacity.qemu_version.clone(),
                    capacity.accelerators.join(","),
                    capacity.agent_version.clone(),
                ],
                None => [const { String::new() }; 3],
            });
            cells.push(labels_text(&self.labels));
        }
        cells
    }
}

fn state_word(state: v1::NodeState) -> &'static str {
    match state {
        v1::NodeState::Unspecified => "unknown",
        v1::NodeState::Online => "online",
        v1::NodeState::Offline => "offline",
        v1::NodeState::Draining => "draining",
        v1::NodeState::Drained => "drained",
    }
}

fn role_word(role: v1::NodeRole) -> &'static str {
    match role {
        // Joined and never started: nothing tells it from a learner but its state.
        v1::NodeRole::Unspecified | v1::NodeRole::Learner => "learner",
        v1::NodeRole::Voter => "voter",
    }
}
