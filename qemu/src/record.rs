//! What a node knows of a VM beyond the replicated state, kept in the VM's folder so that an agent that was away finds its
//! guests again: the process, its memory's base, its disk's chain, and how far it has come.

use std::{fmt, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    checksum::Checksum,
    layout::{VmDir, write_whole},
    past::Past,
    process::ProcessId,
    spec::Hardware,
};

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident,)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// A VM's folder: its id.
    VmName,
    /// A disk layer: the id of the VM it began with, or of the snapshot after which it was written.
    LayerName,
    /// A base: the id of the snapshot that made it.
    BaseName,
    /// A stream: the id of its snapshot.
    StreamName,
}

/// A stream and what it should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRef {
    /// Its name.
    pub name: StreamName,
    /// Its checksum.
    pub checksum: Checksum,
}

/// How far a VM's process has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "stage")]
pub enum Stage {
    /// Started, or about to be; its guest has not run yet. Such a process is thrown away by an agent that finds it.
    Preparing,
    /// Its guest runs, or ran, since `cont` was said or was about to be. From here on it is the VM.
    Running,
    /// Its process has ended: [`VmRecord::past`] says how.
    Ended,
}

/// A node's own record of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmRecord {
    /// The form of this record.
    pub version: u32,
    /// Which boot of the VM this process is.
    pub boot: u64,
    /// How far it has come.
    #[serde(flatten)]
    pub stage: Stage,
    /// Whether its guest ever ran: a fork that never did starts from its snapshot, any other VM from its disk.
    pub has_run: bool,
    /// The process.
    pub process: Option<ProcessId>,
    /// The host's boot (`/proc/sys/kernel/random/boot_id`) that the process belongs to.
    pub host_boot: String,
    /// User and group it runs as.
    pub user: Option<(u32, u32)>,
    /// The machine.
    pub hardware: Hardware,
    /// What its memory is a private mapping of; `None` for a guest that was booted.
    pub base: Option<BaseName>,
    /// What deltas are taken against: its own mapping's base, or a newer one that a capture made.
    pub delta_base: Option<BaseName>,
    /// The disk's layers, the writable one first; the image's disk lies below. Empty without a disk.
    pub layers: Vec<LayerName>,
    /// A layer that is being put on top: whether it is in use already only QEMU knows. It is empty if it is not, so a
    /// chain that has it is right in both cases.
    pub next_layer: Option<LayerName>,
    /// The image's disk: its SHA-256.
    pub image_disk: Option<String>,
    /// Layers that are being merged.
    #[serde(default)]
    pub merge: Option<Merge>,
    /// Layers that are not in the chain any more and may belong to a snapshot that is not known yet.
    #[serde(default)]
    pub replaced: Vec<LayerName>,
    /// Whether the kernel may merge its pages.
    #[serde(default)]
    pub merge_memory: bool,
    /// What became of its processes so far.
    #[serde(default)]
    pub past: Past,
}

/// A run of layers that are being made one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Merge {
    /// The layer that is being made. Nothing refers to it until it is in the chain.
    pub into: LayerName,
    /// What it will take the place of, newest first.
    pub layers: Vec<LayerName>,
}

/// The form of records that this version writes.
pub const RECORD_VERSION: u32 = 1;

/// A record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be read or written.
    #[error("the VM's record could not be read or written")]
    Io(#[from] io::Error),
    /// It is not a record of a form that is known here.
    #[error("the VM's record is damaged, or of a newer version")]
    Form(#[from] serde_json::Error),
}

impl VmRecord {
    /// Reads a VM's record; `None` when it has none.
    pub fn load(dir: &VmDir) -> Result<Option<Self>, RecordError> {
        match fs::read(dir.record()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes it. What was written survives the agent's end.
    pub fn save(&self, dir: &VmDir) -> Result<(), RecordError> {
        Ok(write_whole(
            &dir.record(),
            &serde_json::to_vec_pretty(self)?,
        )?)
    }

    /// All layers whose files must stay.
    pub fn layer_files(&self) -> impl Iterator<Item = LayerName> {
        let merge = self.merge.iter().map(|merge| merge.into.clone());
        self.layers_with_next()
            .into_iter()
            .chain(merge)
            .chain(self.replaced.clone())
    }

    /// The layers as they would be with the next one in use.
    pub fn layers_with_next(&self) -> Vec<LayerName> {
        self.next_layer
            .iter()
            .chain(&self.layers)
            .cloned()
            .collect()
    }
}

/// Where the kernel names the host's boot.
pub const HOST_BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The host's boot, as a file names it ([`HOST_BOOT`] but for tests): another one means that no process of before is left,
/// and that files which were not synced may have lost what was in them.
pub fn host_boot(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim().to_owned())
}
