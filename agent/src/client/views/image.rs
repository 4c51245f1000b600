//! An image.

use proto::v1;
use serde::Serialize;

use super::{Moment, age, owner::SharingView, time};
use crate::client::{output::Row, units};

/// An image as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct ImageView {
    pub id: String,
    pub name: String,
    pub owner: String,
    /// For its owner and administrators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<SharingView>,
    pub files: Vec<ImageFileView>,
    pub cmdline: String,
    pub ready_line: String,
    pub boot_timeout_ms: u64,
    pub nodes: Vec<String>,
    pub created_at: Option<Moment>,
    pub guest_agent: &'static str,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct ImageFileView {
    pub kind: &'static str,
    pub sha256: String,
    pub size_bytes: u64,
    pub virtual_bytes: u64,
}

impl From<v1::Image> for ImageView {
    fn from(image: v1::Image) -> Self {
        let guest_agent = guest_agent_word(image.guest_agent());
        Self {
            guest_agent,
            id: image.id,
            name: image.name,
            owner: image.owner,
            sharing: image.sharing.map(SharingView::from),
            files: image.files.into_iter().map(ImageFileView::from).collect(),
            cmdline: image.cmdline,
            ready_line: image.ready_line,
            boot_timeout_ms: image.boot_timeout_ms,
            nodes: image.nodes,
            created_at: time(image.created_at),
        }
    }
}

impl From<v1::ImageFile> for ImageFileView {
    fn from(file: v1::ImageFile) -> Self {
        Self {
            kind: file_kind_word(file.kind()),
            sha256: file.sha256,
            size_bytes: file.size_bytes,
            virtual_bytes: file.virtual_bytes,
        }
    }
}

impl Row for ImageView {
    fn owner(&self) -> Option<&str> {
        Some(&self.owner)
    }

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NAME", "FILES", "SIZE", "DISK", "NODES", "AGE"];
        if wide {
            header.extend(["ID", "CMDLINE", "READY LINE", "GUEST AGENT"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let disk: u64 = self.files.iter().map(|file| file.virtual_bytes).sum();
        let mut cells = vec![
            self.name.clone(),
            self.files
                .iter()
                .map(|file| file.kind)
                .collect::<Vec<_>>()
                .join(","),
            units::show_size(self.files.iter().map(|file| file.size_bytes).sum()),
            if disk == 0 {
                String::new()
            } else {
                units::show_size(disk)
            },
            self.nodes.join(","),
            age(self.created_at),
        ];
        if wide {
            cells.extend([
                self.id.clone(),
                self.cmdline.clone(),
                self.ready_line.clone(),
                self.guest_agent.to_owned(),
            ]);
        }
        cells
    }
}

/// The word for what a file is for.
pub fn file_kind_word(kind: v1::ImageFileKind) -> &'static str {
    match kind {
        v1::ImageFileKind::Unspecified => "unknown",
        v1::ImageFileKind::Kernel => "kernel",
        v1::ImageFileKind::Initrd => "initrd",
        v1::ImageFileKind::Disk => "disk",
    }
}

/// The word for the program that guests answer with.
pub fn guest_agent_word(agent: v1::GuestAgent) -> &'static str {
    match agent {
        v1::GuestAgent::Unspecified | v1::GuestAgent::Forkypig => "forkypig",
        v1::GuestAgent::Qemu => "qemu",
        v1::GuestAgent::None => "none",
    }
}
