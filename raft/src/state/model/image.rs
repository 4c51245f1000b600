//! Images.

use std::collections::BTreeSet;

use super::Millis;
use crate::state::{
    ids::{ImageId, NodeId},
    owners::Ownership,
};

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Unique among its owner's images.
    pub name: String,
    /// Whose it is.
    pub ownership: Ownership,
    /// The kernel, if it has one.
    pub kernel: Option<Blob>,
    /// The initial RAM file system, if it has one.
    pub initrd: Option<Blob>,
    /// The root disk, if it has one.
    pub disk: Option<DiskBlob>,
    /// The kernel's command line.
    pub cmdline: String,
    /// A line that the guest prints once it is up.
    pub ready_line: Option<String>,
    /// How long it may take until then, milliseconds.
    pub boot_timeout_ms: u64,
    /// Which program its guests answer with.
    pub guest_agent: GuestAgent,
    /// The nodes that hold its files.
    pub nodes: BTreeSet<NodeId>,
    /// When it was imported.
    pub created_at: Millis,
}

/// Which program an image's guests answer with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuestAgent {
    /// Ours, `fpguest`.
    #[default]
    ForkyPig,
    /// QEMU's, `qemu-ga`.
    Qemu,
    /// None that is known.
    None,
}

/// A file that is named by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// Its size, bytes.
    pub size_bytes: u64,
}

/// A qcow2 disk without a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBlob {
    /// The file.
    pub blob: Blob,
    /// The disk's size as the guest sees it, bytes.
    pub virtual_bytes: u64,
}
