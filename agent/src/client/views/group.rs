//! Groups, and what became of their forks.

use proto::v1;
use serde::Serialize;

use super::{fork::ChildView, milliseconds, snapshot::CaptureView, vm::vm_state_word};
use crate::client::output::Row;

/// A group as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct GroupView {
    pub id: String,
    pub name: String,
    pub owner: String,
    pub node: String,
    pub members: Vec<MemberView>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct MemberView {
    pub number: u32,
    pub address: String,
    pub id: String,
    pub name: String,
    pub state: &'static str,
    pub reason: String,
}

impl From<v1::Group> for GroupView {
    fn from(group: v1::Group) -> Self {
        let member = |member: v1::GroupMember| MemberView {
            state: vm_state_word(member.state()),
            number: member.number,
            address: member.address,
            id: member.id,
            name: member.name,
            reason: member.reason,
        };
        Self {
            id: group.id,
            name: group.name,
            owner: group.owner,
            node: group.node,
            members: group.members.into_iter().map(member).collect(),
        }
    }
}

impl GroupView {
    /// How its members are, all of them together where they are alike.
    fn state(&self) -> String {
        let first = self.members.first().map_or("", |member| member.state);
        let running = self.members.iter();
        match running.filter(|member| member.state == "running").count() {
            _ if self.members.iter().all(|member| member.state == first) => first.to_owned(),
            running => format!("{running} of {} running", self.members.len()),
        }
    }
}

impl Row for GroupView {
    fn owner(&self) -> Option<&str> {
        Some(&self.owner)
    }

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NAME", "STATE", "NODE", "MEMBERS"];
        if wide {
            header.extend(["ID"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let names: Vec<&str> = self
            .members
            .iter()
            .map(|member| member.name.as_str())
            .collect();
        let mut cells = vec![
            self.name.clone(),
            self.state(),
            self.node.clone(),
            names.join(","),
        ];
        if wide {
            cells.push(self.id.clone());
        }
        cells
    }
}

impl Row for MemberView {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NUMBER", "NAME", "STATE", "ADDRESS", "REASON"];
        if wide {
            header.extend(["ID"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.number.to_string(),
            self.name.clone(),
            self.state.to_owned(),
            self.address.clone(),
            self.reason.clone(),
        ];
        if wide {
            cells.push(self.id.clone());
        }
        cells
    }
}

/// What became of a group's fork, as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct GroupForkView {
    pub operation: String,
    pub pause_ms: f64,
    pub members: Vec<CapturedView>,
    pub copies: Vec<CopyView>,
}

/// A member that was captured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct CapturedView {
    pub name: String,
    pub operation: String,
    pub snapshot: String,
    pub pause_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureView>,
}

/// A copy.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct CopyView {
    pub id: String,
    pub name: String,
    pub error: String,
    pub members: Vec<ChildView>,
}

impl From<v1::ForkGroupResponse> for GroupForkView {
    fn from(fork: v1::ForkGroupResponse) -> Self {
        let member = |member: v1::CapturedMember| CapturedView {
            name: member.name,
            operation: member.operation,
            snapshot: member.snapshot,
            pause_ms: milliseconds(member.pause_ms),
            // The pause stands beside it.
            capture: member.capture.map(|report| CaptureView {
                pause_ms: None,
                ..report.into()
            }),
        };
        let copy = |copy: v1::GroupCopy| CopyView {
            id: copy.id,
            name: copy.name,
            error: copy.error,
            members: copy.members.into_iter().map(ChildView::from).collect(),
        };
        Self {
            operation: fork.operation,
            pause_ms: milliseconds(fork.pause_ms),
            members: fork.members.into_iter().map(member).collect(),
            copies: fork.copies.into_iter().map(copy).collect(),
        }
    }
}

impl GroupForkView {
    /// How many copies failed.
    pub fn failed(&self) -> usize {
        let failed = self.copies.iter().filter(|copy| !copy.error.is_empty());
        failed.count()
    }

    /// Why a copy failed: of several, the first.
    pub fn why_failed(&self) -> Option<&str> {
        let mut errors = self.copies.iter().map(|copy| copy.error.as_str());
        errors.find(|error| !error.is_empty())
    }

    /// One line about all of it.
    pub fn summary(&self) -> String {
        let running = self.copies.len() - self.failed();
        let pauses: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{} {:.1} ms", member.name, member.pause_ms))
            .collect();
        format!(
            "{running} of {} copies running; the group stood still for {:.1} ms ({})",
            self.copies.len(),
            self.pause_ms,
            pauses.join(", ")
        )
    }
}

impl Row for CopyView {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NAME", "MEMBERS", "RUNNING", "ERROR"];
        if wide {
            header.extend(["READY", "ID"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let names: Vec<&str> = self
            .members
            .iter()
            .map(|member| member.name.as_str())
            .collect();
        let slowest = |of: fn(&ChildView) -> f64| {
            let slowest = self.members.iter().map(of).fold(0.0, f64::max);
            match self.error.is_empty() && slowest > 0.0 {
                true => format!("{slowest:.1}ms"),
                false => String::new(),
            }
        };
        let steps = self.members.iter().flat_map(|member| &member.failed_steps);
        let steps: Vec<&str> = steps.map(String::as_str).collect();
        let mut cells = vec![
            self.name.clone(),
            names.join(","),
            slowest(|member| member.running_ms),
            match self.error.as_str() {
                "" => steps.join("; "),
                error => error.to_owned(),
            },
        ];
        if wide {
            cells.extend([slowest(|member| member.ready_ms), self.id.clone()]);
        }
        cells
    }
}
