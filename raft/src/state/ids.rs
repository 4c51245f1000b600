//! Identifiers. A node is a number, everything else a ULID; each kind is a type of its own.

use std::{fmt, str::FromStr};

/// How many ids may be derived from one operation's: its snapshot and its children. Operation ids are multiples of it.
pub const DERIVED_IDS: u128 = 1 << 16;

/// A node's number in the cluster, also openraft's node id. Never used again.
pub type NodeId = u64;

/// The text is not a ULID of 26 letters and digits in Crockford's alphabet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a ULID")]
pub struct NotAUlid(pub String);

macro_rules! ulid_types {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&ulid::Ulid(self.0).to_string())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self)
            }
        }

        impl FromStr for $name {
            type Err = NotAUlid;
            fn from_str(text: &str) -> Result<Self, NotAUlid> {
                ulid::Ulid::from_string(text).map(|id| Self(id.0)).map_err(|_| NotAUlid(text.to_owned()))
            }
        }
    )*};
}

ulid_types! {
    /// A cluster.
    ClusterId,
    /// An image.
    ImageId,
    /// A virtual machine.
    VmId,
    /// A snapshot; also names its files and the disk overlay that its VM goes on with.
    SnapshotId,
    /// An operation. A multiple of [`DERIVED_IDS`].
    OperationId,
    /// A join token.
    TokenId,
    /// A client's lease.
    LeaseId,
    /// A map that is left to the cluster.
    MapId,
    /// A certificate of somebody who uses the cluster: also its serial number.
    CertificateId,
}

impl OperationId {
    /// Makes an id from any ULID by clearing the part that derived ids use.
    pub fn from_ulid(ulid: u128) -> Self {
        Self(ulid & !(DERIVED_IDS - 1))
    }

    /// The id of the snapshot that this operation makes.
    pub fn snapshot(self) -> SnapshotId {
        SnapshotId(self.0 + 1)
    }

    /// The id of the operation that forks a group's member with this place in the list of its members, where this is the first's.
    pub fn part(self, index: u32) -> Self {
        Self(self.0.saturating_add(DERIVED_IDS * u128::from(index)))
    }

    /// The id of the child with the given number, counted from 0.
    pub fn child(self, index: u32) -> VmId {
        VmId(self.0 + 2 + u128::from(index))
    }
}
