//! The cluster, host checks and join tokens.

use proto::v1;
use serde::Serialize;

use super::{Moment, age, memory::HostMemoryView, node::NodeView, time, time_text};
use crate::client::output::Row;

/// The cluster and the answering node as they are printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct StatusView {
    pub cluster_id: String,
    pub incarnation: String,
    pub node: Option<NodeView>,
    pub leader: String,
    pub quorum: bool,
    pub term: u64,
    pub applied_index: u64,
    pub nodes: Vec<NodeView>,
    pub vms: u32,
    pub snapshots: u32,
    pub images: u32,
    pub problems: Vec<String>,
    pub started_at: Option<Moment>,
    pub state_digest: String,
    pub memory: Option<HostMemoryView>,
    pub version: u32,
}

impl From<v1::GetStatusResponse> for StatusView {
    fn from(status: v1::GetStatusResponse) -> Self {
        Self {
            cluster_id: status.cluster_id,
            incarnation: status.incarnation,
            node: status.node.map(NodeView::from),
            leader: status.leader,
            quorum: status.quorum,
            term: status.term,
            applied_index: status.applied_index,
            nodes: status.nodes.into_iter().map(NodeView::from).collect(),
            vms: status.vms,
            snapshots: status.snapshots,
            images: status.images,
            problems: status.problems,
            started_at: time(status.started_at),
            state_digest: status.state_digest,
            memory: status.memory.map(HostMemoryView::from),
            version: status.version,
        }
    }
}

impl StatusView {
    /// For people: a line for each thing that matters.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let node = self.node.as_ref().map_or_else(String::new, |node| {
            let leads = if node.leader { ", leads" } else { "" };
            format!(
                "{} ({}, {}{leads}) at {}",
                node.name, node.state, node.role, node.address
            )
        });
        let online = self
            .nodes
            .iter()
            .filter(|node| node.state == "online")
            .count();
        let leader = if self.leader.is_empty() {
            "none"
        } else {
            &self.leader
        };
        let quorum = if self.quorum {
            "yes"
        } else {
            "no: nothing can be changed"
        };
        let mut lines = vec![
            ("cluster", self.cluster_id.clone()),
            ("node", node),
            ("up", age(self.started_at)),
            (
                "leader",
                format!(
                    "{leader} (term {}, applied {})",
                    self.term, self.applied_index
                ),
            ),
            ("quorum", quorum.to_owned()),
            ("nodes", format!("{online} of {} online", self.nodes.len())),
            ("version", self.version.to_string()),
            (
                "holds",
                format!(
                    "{} VMs, {} snapshots, {} images",
                    self.vms, self.snapshots, self.images
                ),
            ),
        ];
        if let Some(memory) = &self.memory {
            lines.extend(memory.lines());
        }
        if self.problems.is_empty() {
            lines.push(("problems", "none".to_owned()));
        }
        lines.extend(
            self.problems
                .iter()
                .map(|problem| ("problem", problem.clone())),
        );
        lines
    }
}

/// One check of a host.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct CheckView {
    pub name: String,
    pub result: &'static str,
    pub found: String,
    pub hint: String,
}

impl From<v1::HostCheck> for CheckView {
    fn from(check: v1::HostCheck) -> Self {
        let result = match check.result() {
            v1::HostCheckResult::Unspecified => "unknown",
            v1::HostCheckResult::Ok => "ok",
            v1::HostCheckResult::Warning => "warning",
            v1::HostCheckResult::Failed => "failed",
        };
        Self {
            name: check.name,
            result,
            found: check.found,
            hint: check.hint,
        }
    }
}

impl Row for CheckView {
    fn header(_wide: bool) -> Vec<&'static str> {
        vec!["CHECK", "RESULT", "FOUND", "HINT"]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        vec![
            self.name.clone(),
            self.result.to_owned(),
            self.found.clone(),
            self.hint.clone(),
        ]
    }
}

/// A token as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct TokenView {
    pub id: String,
    pub created_at: Option<Moment>,
    pub expires_at: Option<Moment>,
    pub authority: String,
}

impl From<v1::Token> for TokenView {
    fn from(token: v1::Token) -> Self {
        Self {
            id: token.id,
            created_at: time(token.created_at),
            expires_at: time(token.expires_at),
            authority: token.authority,
        }
    }
}

impl Row for TokenView {
    fn header(_wide: bool) -> Vec<&'static str> {
        vec!["ID", "AGE", "EXPIRES"]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        vec![
            self.id.clone(),
            age(self.created_at),
            time_text(self.expires_at),
        ]
    }
}

/// A certificate as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct CertificateView {
    pub id: String,
    pub name: String,
    pub owner: String,
    pub role: &'static str,
    pub created_at: Option<Moment>,
    pub expires_at: Option<Moment>,
    pub revoked_at: Option<Moment>,
    pub authority: String,
}

impl From<v1::Certificate> for CertificateView {
    fn from(certificate: v1::Certificate) -> Self {
        let role = match certificate.role() {
            v1::Role::Unspecified => "unknown",
            v1::Role::Viewer => "viewer",
            v1::Role::Operator => "operator",
            v1::Role::Admin => "admin",
        };
        Self {
            id: certificate.id,
            name: certificate.name,
            owner: certificate.owner,
            role,
            created_at: time(certificate.created_at),
            expires_at: time(certificate.expires_at),
            revoked_at: time(certificate.revoked_at),
            authority: certificate.authority,
        }
    }
}

impl Row for CertificateView {
    fn header(_wide: bool) -> Vec<&'static str> {
        vec![
            "ID",
            "NAME",
            "OWNER",
            "ROLE",
            "AGE",
            "EXPIRES",
            "REVOKED",
            "AUTHORITY",
        ]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        vec![
            self.id.clone(),
            self.name.clone(),
            self.owner.clone(),
            self.role.to_owned(),
            age(self.created_at),
            time_text(self.expires_at),
            time_text(self.revoked_at),
            // As much of it as `authority show` has at the beginning.
            self.authority.chars().take(16).collect(),
        ]
    }
}

/// A new token with its text.
#[derive(Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct NewTokenView {
    pub token: String,
    pub id: String,
    pub expires_at: Option<Moment>,
}

impl From<v1::CreateTokenResponse> for NewTokenView {
    fn from(created: v1::CreateTokenResponse) -> Self {
        Self {
            token: created.token,
            id: created.id,
            expires_at: time(created.expires_at),
        }
    }
}
