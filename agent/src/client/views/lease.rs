//! Leases, as they are printed.

use proto::v1;
use serde::Serialize;

use super::{Moment, age, time, until};
use crate::client::{output::Row, units};

/// A lease.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct LeaseView {
    pub id: String,
    pub owner: String,
    pub ttl_ms: u64,
    pub expires_at: Option<Moment>,
    pub created_at: Option<Moment>,
    pub vms: u32,
}

impl From<v1::Lease> for LeaseView {
    fn from(lease: v1::Lease) -> Self {
        Self {
            id: lease.id,
            owner: lease.owner,
            ttl_ms: lease.ttl_ms,
            expires_at: time(lease.expires_at),
            created_at: time(lease.created_at),
            vms: lease.vms,
        }
    }
}

impl Row for LeaseView {
    fn owner(&self) -> Option<&str> {
        Some(&self.owner)
    }

    fn header(_wide: bool) -> Vec<&'static str> {
        vec!["ID", "TTL", "ENDS IN", "VMS", "AGE"]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        vec![
            self.id.clone(),
            units::show_seconds(self.ttl_ms / 1_000),
            until(self.expires_at),
            self.vms.to_string(),
            age(self.created_at),
        ]
    }
}

/// What became of what a lease kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct EndedLeaseView {
    pub vms: u32,
    pub pending: u32,
}

impl EndedLeaseView {
    /// The same in words.
    pub fn text(&self) -> String {
        let Self { vms, pending } = self;
        match pending {
            0 => format!("ended: {vms} VMs were deleted with it"),
            pending => format!(
                "ended: {vms} VMs are deleted with it, {pending} of them when their nodes are back"
            ),
        }
    }
}

impl From<v1::EndLeaseResponse> for EndedLeaseView {
    fn from(ended: v1::EndLeaseResponse) -> Self {
        Self {
            vms: ended.vms,
            pending: ended.pending,
        }
    }
}
