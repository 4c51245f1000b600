//! Where a node keeps what: the folders of its data directory, and who may enter them.
//!
//! QEMU processes have the data directory as their working directory and name everything by paths relative to it, so the
//! way down to it need not be open to them. Each runs as a user of its own, in the group of its lineage: a VM that was booted and
//! whatever was forked from it. What those share is readable by that group and writable by nobody but us. Images are readable by
//! a group that all of them are in. What the agent makes otherwise is its own: [`be_private`].

use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::Mode;

use crate::record::{BaseName, LayerName, StreamName, VmName};

/// The folders of one node.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    /// The group that all QEMU processes are in besides their own; `None` when users are not changed.
    readers: Option<u32>,
}

impl Layout {
    /// Makes the folders that are not there yet. `root` is the data directory, `readers` the group that may read images.
    pub fn create(root: &Path, readers: Option<u32>) -> io::Result<Self> {
        let layout = Self {
            root: root.to_owned(),
            readers,
        };
        make(root, 0o711)?;
        for shared in ["images", "bases", "layers", "streams"] {
            make(&root.join(shared), 0o711)?;
        }
        for own in ["vms", "run"] {
            make(&root.join(own), 0o711)?;
        }
        Ok(layout)
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A content-addressed file of an image.
    pub fn image(&self, sha256: &str) -> PathBuf {
        self.root.join(image(sha256))
    }

    /// The folder of images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// A disk layer.
    pub fn layer(&self, name: &LayerName) -> PathBuf {
        self.root.join(layer(name))
    }

    /// The folder of disk layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// A stream.
    pub fn stream(&self, name: &StreamName) -> PathBuf {
        self.root.join(stream(name))
    }

    /// The folder of streams.
    pub fn streams(&self) -> PathBuf {
        self.root.join("streams")
    }

    /// A base.
    pub fn base(&self, name: &BaseName) -> PathBuf {
        self.root.join(base(name))
    }

    /// The folder of bases.
    pub fn bases(&self) -> PathBuf {
        self.root.join("bases")
    }

    /// A VM's own folder.
    pub fn vm(&self, name: &VmName) -> VmDir {
        VmDir {
            path: self.root.join(vm(name)),
            relative: vm(name),
        }
    }

    /// The folder of VMs.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// A socket below the data directory, as [`VmDir::socket`] gives those of a VM.
    pub fn socket(&self, relative: &str) -> io::Result<SocketPath> {
        let path = self.root.join(relative);
        let name = path.file_name().unwrap_or_default();
        let folder = fs::File::open(path.parent().unwrap_or(&self.root))?;
        Ok(SocketPath {
            path: Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name),
            _folder: folder,
        })
    }

    /// The library that is preloaded into QEMU.
    pub fn tracking_library(&self) -> PathBuf {
        self.root.join(TRACKING_LIBRARY)
    }

    /// Writes out the library that is preloaded into QEMU. Processes that run keep the one they have.
    pub fn install_tracking_library(&self, library: &[u8]) -> io::Result<()> {
        let path = self.tracking_library();
        write_whole(&path, library)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
    }

    /// The group that may read images.
    pub fn readers(&self) -> Option<u32> {
        self.readers
    }

    /// Lets all QEMU processes read an image's file, which will not change any more.
    pub fn share_image(&self, file: &Path) -> io::Result<()> {
        share(file, self.readers)
    }

    /// The group of the lineage that a base belongs to, by its file.
    pub fn lineage_of(&self, base: &BaseName) -> io::Result<u32> {
        Ok(fs::metadata(self.base(base))?.gid())
    }

    /// The groups of all lineages that have files here.
    pub fn lineages(&self) -> io::Result<BTreeSet<u32>> {
        let mut groups = BTreeSet::new();
        for folder in [self.bases(), self.streams(), self.layers()] {
            for entry in fs::read_dir(folder)? {
                match entry?.metadata() {
                    Ok(file) => drop(groups.insert(file.gid())),
                    // It was removed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(groups)
    }
}

/// Lets a group read a file that only we write.
pub fn share(file: &Path, group: Option<u32>) -> io::Result<()> {
    if let Some(gid) = group {
        chown(file, None, Some(gid))?;
    }
    fs::set_permissions(file, fs::Permissions::from_mode(0o640))
}

/// Has whatever this process makes from now on be readable by nobody else, unless it says so: QEMU processes get through the data
/// directory.
pub fn be_private() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// The path, below the data directory, of the library that is preloaded into QEMU.
pub const TRACKING_LIBRARY: &str = "run/write_tracking.so";

/// The path of an image's file below the data directory.
pub fn image(sha256: &str) -> String {
    format!("images/{sha256}")
}

/// The path of a layer below the data directory.
pub fn layer(name: &LayerName) -> String {
    format!("layers/{}.qcow2", name.0)
}

/// The path of a base below the data directory.
pub fn base(name: &BaseName) -> String {
    format!("bases/{}", name.0)
}

/// The path of a stream below the data directory.
pub fn stream(name: &StreamName) -> String {
    format!("streams/{}", name.0)
}

/// The path of a VM's folder below the data directory.
pub fn vm(name: &VmName) -> String {
    format!("vms/{}", name.0)
}

/// The folder of one VM. It is ours: QEMU may pass through it, and write in [`VmDir::own`] alone.
#[derive(Debug, Clone)]
pub struct VmDir {
    path: PathBuf,
    relative: String,
}

impl VmDir {
    /// Makes it, for a process that will run as `owner` (user and group).
    pub fn create(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        make(&self.path, 0o711)?;
        make(&self.own(), 0o700)?;
        if let Some((uid, gid)) = owner {
            chown(self.own(), Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The VM's record.
    pub fn record(&self) -> PathBuf {
        self.path.join("vm.json")
    }

    /// Says that a process became the VM, until the record does.
    pub fn claim(&self) -> PathBuf {
        self.path.join("claim.json")
    }

    /// What QEMU itself printed.
    pub fn qemu_log(&self) -> PathBuf {
        self.path.join("qemu.log")
    }

    /// What the guest printed on its serial console.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The part of the folder that the QEMU process owns.
    pub fn own(&self) -> PathBuf {
        self.path.join("qemu")
    }

    /// Where QEMU writes device state during a capture, below the data directory.
    pub fn device_state(&self) -> String {
        format!("{}/qemu/devices", self.relative)
    }

    /// A socket of this VM. The path is valid while the result lives; it goes through a descriptor of the folder, since
    /// the name of a Unix socket has at most 107 bytes and data directories lie where users want them.
    pub fn socket(&self, name: &str) -> io::Result<SocketPath> {
        let folder = fs::File::open(&self.path)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}.sock", folder.as_raw_fd()));
        Ok(SocketPath {
            path,
            _folder: folder,
        })
    }
}

/// The path of a socket, however long the path of its folder is.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _folder: fs::File,
}

impl SocketPath {
    /// A path of a few bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a listening socket there, in the place of one that an earlier process left.
    pub fn listen(&self) -> io::Result<UnixListener> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(&self.path)
    }
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Writes a file so that it is there whole or not at all, whatever happens to the agent.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}
