//! The cluster's authority.

use proto::v1;
use rustls::pki_types::CertificateDer;
use serde::Serialize;

use super::{Moment, time, time_text};
use crate::trust::authority::certificate_pem;

/// The authority and its replacement as they are printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct AuthorityView {
    pub signing: Option<AuthorityCertificateView>,
    pub phase: &'static str,
    pub other: Option<AuthorityCertificateView>,
    pub compromised: bool,
    pub began_at: Option<Moment>,
    pub finished_at: Option<Moment>,
    pub nodes: Vec<NodeAuthorityView>,
}

/// An authority's certificate.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct AuthorityCertificateView {
    pub fingerprint: String,
    pub expires_at: Option<Moment>,
    pub pem: String,
}

/// What a node has of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct NodeAuthorityView {
    pub node: String,
    pub certificate: String,
    pub holds: String,
    pub online: bool,
}

impl From<v1::AuthorityCertificate> for AuthorityCertificateView {
    fn from(one: v1::AuthorityCertificate) -> Self {
        Self {
            fingerprint: one.fingerprint,
            expires_at: time(one.expires_at),
            pem: certificate_pem(&CertificateDer::from(one.der.to_vec())),
        }
    }
}

impl AuthorityCertificateView {
    /// As much of its fingerprint as people need.
    pub fn short(&self) -> &str {
        short(&self.fingerprint)
    }
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

impl From<v1::Authority> for AuthorityView {
    fn from(authority: v1::Authority) -> Self {
        let phase = match authority.phase() {
            v1::AuthorityPhase::Unspecified => "unknown",
            v1::AuthorityPhase::First => "first",
            v1::AuthorityPhase::Spreading => "spreading",
            v1::AuthorityPhase::Renewing => "renewing",
            v1::AuthorityPhase::Finished => "finished",
        };
        let node = |one: v1::NodeAuthority| NodeAuthorityView {
            node: one.node,
            certificate: one.certificate,
            holds: one.holds,
            online: one.online,
        };
        Self {
            signing: authority.signing.map(AuthorityCertificateView::from),
            phase,
            other: authority.other.map(AuthorityCertificateView::from),
            compromised: authority.compromised,
            began_at: time(authority.began_at),
            finished_at: time(authority.finished_at),
            nodes: authority.nodes.into_iter().map(node).collect(),
        }
    }
}

impl AuthorityView {
    /// The nodes whose certificates are not of the authority that signs.
    pub fn behind(&self) -> impl Iterator<Item = &str> {
        let signing = self.signing.as_ref().map(|one| one.fingerprint.as_str());
        let nodes = self.nodes.iter();
        nodes
            .filter(move |node| Some(node.certificate.as_str()) != signing)
            .map(|node| node.node.as_str())
    }

    /// For people: a line for each thing that matters.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let certificate = |one: &AuthorityCertificateView| {
            let ends = time_text(one.expires_at);
            format!("{} until {ends}", one.fingerprint)
        };
        let mut lines = Vec::new();
        lines.extend(self.signing.iter().map(|one| ("signs", certificate(one))));
        let phase = match self.phase {
            "first" => "it was never replaced",
            "spreading" => "spreading: the old one signs, and the new one goes to all nodes",
            "renewing" => "renewing: the new one signs, both are trusted, nodes are renewed",
            "finished" => "finished: only this one is trusted",
            other => other,
        };
        lines.push(("phase", phase.to_owned()));
        let other = match self.phase {
            "spreading" => "new",
            _ => "old",
        };
        lines.extend(self.other.iter().map(|one| (other, certificate(one))));
        if self.compromised {
            let said = "yes: what the old one signed counts for the known nodes only";
            lines.push(("leaked", said.to_owned()));
        }
        for node in &self.nodes {
            let or_none = |text: &str| match short(text) {
                "" => "unknown".to_owned(),
                text => text.to_owned(),
            };
            let state = if node.online { "online" } else { "offline" };
            let text = format!(
                "{} ({state}) has a certificate of {}, and holds {}",
                node.node,
                or_none(&node.certificate),
                or_none(&node.holds)
            );
            lines.push(("node", text));
        }
        lines
    }
}
