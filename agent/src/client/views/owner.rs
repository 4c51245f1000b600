//! With whom objects are shared, and what owners have and may have.

use proto::v1;
use serde::Serialize;

use crate::client::{output::Row, units};

/// With whom an object is shared, as it is printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct SharingView {
    pub everyone: bool,
    pub owners: Vec<String>,
}

impl From<v1::Sharing> for SharingView {
    fn from(sharing: v1::Sharing) -> Self {
        Self {
            everyone: sharing.everyone,
            owners: sharing.owners,
        }
    }
}

impl SharingView {
    /// The same in words.
    pub fn text(&self) -> String {
        match (self.everyone, self.owners.as_slice()) {
            (true, _) => "shared with everyone".to_owned(),
            (false, []) => "shared with nobody".to_owned(),
            (false, owners) => format!("shared with {}", owners.join(", ")),
        }
    }
}

/// How much of each, as it is printed; of a quota `null` for as much as there is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct AmountsView {
    pub vms: Option<u64>,
    pub cpus: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub snapshots: Option<u64>,
    pub images: Option<u64>,
}

impl From<v1::Quota> for AmountsView {
    fn from(quota: v1::Quota) -> Self {
        Self {
            vms: quota.vms,
            cpus: quota.cpus,
            memory_bytes: quota.memory_bytes,
            disk_bytes: quota.disk_bytes,
            snapshots: quota.snapshots,
            images: quota.images,
        }
    }
}

impl From<v1::Usage> for AmountsView {
    fn from(used: v1::Usage) -> Self {
        Self {
            vms: Some(used.vms),
            cpus: Some(used.cpus),
            memory_bytes: Some(used.memory_bytes),
            disk_bytes: Some(used.disk_bytes),
            snapshots: Some(used.snapshots),
            images: Some(used.images),
        }
    }
}

/// What an owner has and may have, as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct QuotaView {
    pub owner: String,
    pub used: AmountsView,
    pub quota: AmountsView,
}

impl From<v1::OwnerQuota> for QuotaView {
    fn from(quota: v1::OwnerQuota) -> Self {
        Self {
            owner: quota.owner,
            used: quota.used.unwrap_or_default().into(),
            quota: quota.quota.unwrap_or_default().into(),
        }
    }
}

impl Row for QuotaView {
    fn header(_wide: bool) -> Vec<&'static str> {
        vec![
            "OWNER",
            "VMS",
            "CPUS",
            "MEMORY",
            "DISK",
            "SNAPSHOTS",
            "IMAGES",
        ]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        let (used, quota) = (&self.used, &self.quota);
        let of = |used: Option<u64>, allowed: Option<u64>, show: fn(u64) -> String| {
            let used = show(used.unwrap_or_default());
            match allowed {
                Some(allowed) => format!("{used} of {}", show(allowed)),
                None => used,
            }
        };
        let number: fn(u64) -> String = |number| number.to_string();
        vec![
            self.owner.clone(),
            of(used.vms, quota.vms, number),
            of(used.cpus, quota.cpus, number),
            of(used.memory_bytes, quota.memory_bytes, units::show_size),
            of(used.disk_bytes, quota.disk_bytes, units::show_size),
            of(used.snapshots, quota.snapshots, number),
            of(used.images, quota.images, number),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_says_what_is_used_of_what_is_allowed() {
        let view = QuotaView::from(v1::OwnerQuota {
            owner: "ann".into(),
            quota: Some(v1::Quota {
                vms: Some(3),
                memory_bytes: Some(1 << 30),
                ..Default::default()
            }),
            used: Some(v1::Usage {
                vms: 2,
                memory_bytes: 512 << 20,
                images: 1,
                ..Default::default()
            }),
        });
        assert_eq!(
            view.cells(false),
            ["ann", "2 of 3", "0", "512M of 1G", "0", "0", "1"]
        );
        assert_eq!(QuotaView::header(false).len(), 7);
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["quota"]["cpus"], serde_json::Value::Null);
        assert_eq!(json["used"]["vms"], 2);
    }
}
