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
    /// User and group it runs as: the group is its lineage's.
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
    /// Whether its guest was stopped to go on elsewhere, or later: it goes on here only for who knows that this did not come about.
    #[serde(default)]
    pub held: bool,
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

/// A process that became the VM, said before its guest runs and before the record says it: a record is written anew and put in the
/// place of the old one, which a file system writes out at once (ext4's `auto_da_alloc`), and somebody waits for the guest. It is worth
/// nothing after a reboot of the host, and need not be: then the process is gone.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The process.
    pub process: ProcessId,
    /// Which boot of the VM it is.
    pub boot: u64,
    /// Since when, milliseconds since the epoch.
    pub at: u64,
}

impl Claim {
    /// Writes it. It counts once this has returned.
    pub fn write(&self, dir: &VmDir) -> Result<(), RecordError> {
        Ok(fs::write(dir.claim(), serde_json::to_vec(self)?)?)
    }

    fn load(dir: &VmDir) -> io::Result<Option<Self>> {
        match fs::read(dir.claim()) {
            // In part, it was not yet made.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove(dir: &VmDir) -> io::Result<()> {
        match fs::remove_file(dir.claim()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
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
    /// The group of its lineage, which may read what its forks share with it.
    pub fn lineage(&self) -> Option<u32> {
        self.user.map(|(_, gid)| gid)
    }

    /// Reads a VM's record, with what was claimed since; `None` when it has none.
    pub fn load(dir: &VmDir) -> Result<Option<Self>, RecordError> {
        let mut record: Self = match fs::read(dir.record()) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if let Some(claim) = Claim::load(dir)?
            && record.stage == Stage::Preparing
            && record.process == Some(claim.process)
        {
            record.take(&claim);
        }
        Ok(Some(record))
    }

    /// The process is the VM now.
    pub(crate) fn take(&mut self, claim: &Claim) {
        self.stage = Stage::Running;
        self.boot = claim.boot;
        self.has_run = true;
        self.past.running_since = Some(claim.at);
    }

    /// Writes it. What was written survives the agent's end.
    pub fn save(&self, dir: &VmDir) -> Result<(), RecordError> {
        if self.stage == Stage::Preparing {
            Claim::remove(dir)?;
        }
        write_whole(&dir.record(), &serde_json::to_vec_pretty(self)?)?;
        Ok(Claim::remove(dir)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layout::Layout,
        spec::{Accelerator, MachineType},
    };

    fn record(process: ProcessId) -> VmRecord {
        VmRecord {
            version: RECORD_VERSION,
            boot: 1,
            stage: Stage::Preparing,
            has_run: false,
            process: Some(process),
            host_boot: "boot".to_owned(),
            user: None,
            hardware: Hardware {
                machine: MachineType::Microvm,
                accelerator: Accelerator::Tcg,
                cpu_model: "max".to_owned(),
                cpus: 1,
                memory_bytes: 1 << 28,
                devices: Vec::new(),
            },
            base: None,
            delta_base: None,
            layers: Vec::new(),
            next_layer: None,
            image_disk: None,
            merge: None,
            replaced: Vec::new(),
            held: false,
            merge_memory: false,
            past: Past::default(),
        }
    }

    #[test]
    fn a_claim_is_its_processs_own_and_ends_with_the_next_record() {
        let data = tempfile::tempdir().unwrap();
        let dir = Layout::create(data.path(), None)
            .unwrap()
            .vm(&VmName("vm".to_owned()));
        dir.create(None).unwrap();
        let load = || VmRecord::load(&dir).unwrap().unwrap();
        let process = ProcessId {
            pid: 7,
            started: 70,
        };
        let mut saved = record(process);
        saved.save(&dir).unwrap();

        let claim = |started| Claim {
            process: ProcessId { pid: 7, started },
            boot: 3,
            at: 5,
        };
        claim(71).write(&dir).unwrap();
        assert_eq!(load(), saved, "another process's");
        fs::write(dir.claim(), "{\"process\":").unwrap();
        assert_eq!(load(), saved, "half a claim");

        claim(70).write(&dir).unwrap();
        let claimed = load();
        saved.take(&claim(70));
        assert_eq!(claimed, saved);
        assert_eq!((saved.boot, &saved.stage), (3, &Stage::Running));

        saved.boot = 4;
        saved.save(&dir).unwrap();
        assert!(!dir.claim().exists());
        assert_eq!(load().boot, 4);
    }
}
