//! How long objects are kept.

use super::Millis;
use crate::state::ids::{LeaseId, MapId, SnapshotId, VmId};

/// How long an object is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// Until somebody deletes it.
    #[default]
    Unbounded,
    /// Until then.
    Until(Millis),
    /// As long as a lease.
    Leased(LeaseId),
}

/// What a client holds while it is there, and what it made goes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Whose it is.
    pub owner: String,
    /// How long it goes on after it was renewed.
    pub ttl: Millis,
    /// When it ends, unless it is renewed.
    pub expires_at: Millis,
    /// When it was made.
    pub created_at: Millis,
}

/// What has outlived its time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Leases.
    pub leases: Vec<LeaseId>,
    /// VMs.
    pub vms: Vec<VmId>,
    /// Snapshots.
    pub snapshots: Vec<SnapshotId>,
    /// Maps that ended and were kept for long enough.
    pub maps: Vec<MapId>,
}

impl Overdue {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        let kept = self.leases.is_empty() && self.maps.is_empty();
        kept && self.vms.is_empty() && self.snapshots.is_empty()
    }
}
