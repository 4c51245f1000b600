//! Disks: empty overlays, and what an imported file must be.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use serde::Deserialize;
use tokio::{
    process::Command,
    sync::{Mutex, Semaphore},
};

use crate::{
    layout::{self, Layout},
    merge,
    record::LayerName,
    spec::DiskNode,
};

/// Who may do what with a layer that nobody writes any more.
const FROZEN: u32 = 0o440;

/// A disk could not be made or is not one.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file could not be read or written.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `qemu-img` failed.
    #[error("qemu-img {what}: {message}")]
    QemuImg {
        /// What it was asked for.
        what: String,
        /// What it printed.
        message: String,
    },
    /// The file is no disk that can be used.
    #[error("{0}")]
    Unusable(String),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DiskError {
    let what = what.into();
    move |source| DiskError::Io { what, source }
}

/// What an imported disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Its size as the guest sees it, bytes.
    pub virtual_bytes: u64,
}

/// The part of `qemu-img info --output=json` that matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImgInfo {
    virtual_size: u64,
    format: String,
    backing_filename: Option<String>,
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    data: FormatData,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    data_file: Option<String>,
    encrypt: Option<serde_json::Value>,
    corrupt: Option<bool>,
}

/// Magic of a qcow2 file: "QFI" and 0xfb (docs/interop/qcow2.rst).
const QCOW2_MAGIC: [u8; 4] = [b'Q', b'F', b'I', 0xfb];

/// Looks at a file that someone wants to use as a disk: it must be qcow2 and stand alone. The file is hostile input: its
/// format is said, not probed, and the program that reads it runs as nobody in particular.
pub async fn inspect(
    qemu_img: &Path,
    file: &Path,
    user: Option<(u32, u32)>,
) -> Result<DiskInfo, DiskError> {
    let mut magic = [0; 4];
    let open = File::open(file).and_then(|mut file| file.read_exact(&mut magic));
    match open {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        other => other.map_err(io_error("cannot read the disk"))?,
    }
    if magic != QCOW2_MAGIC {
        return Err(DiskError::Unusable(
            "the disk is not in qcow2 form; convert it with `qemu-img convert -O qcow2 FROM TO`"
                .into(),
        ));
    }
    let mut command = Command::new(qemu_img);
    command
        .args(["info", "--output=json", "-f", "qcow2"])
        .arg("/dev/stdin")
        .env_clear();
    command.stdin(File::open(file).map_err(io_error("cannot read the disk"))?);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
        // It opens its standard input again by name, so that must be readable for it.
        fs::set_permissions(file, fs::Permissions::from_mode(0o640))
            .and_then(|()| chown(file, None, Some(gid)))
            .map_err(io_error("cannot hand the disk to qemu-img"))?;
    }
    let output = run(command, "info").await?;
    let info: ImgInfo = serde_json::from_slice(&output).map_err(|error| DiskError::QemuImg {
        what: "info".into(),
        message: error.to_string(),
    })?;
    check(&info)?;
    Ok(DiskInfo {
        virtual_bytes: info.virtual_size,
    })
}

fn check(info: &ImgInfo) -> Result<(), DiskError> {
    let refuse = |problem: &str| Err(DiskError::Unusable(problem.to_owned()));
    if info.format != "qcow2" {
        return refuse("the disk is not in qcow2 form");
    }
    if let Some(backing) = &info.backing_filename {
        return Err(DiskError::Unusable(format!(
            "the disk has a backing file ({backing:?}); flatten it with `qemu-img convert -O qcow2 FROM TO`"
        )));
    }
    if let Some(FormatSpecific { data }) = &info.format_specific {
        if data.data_file.is_some() {
            return refuse(
                "the disk keeps its data in another file; flatten it with `qemu-img convert -O qcow2 FROM TO`",
            );
        }
        if data.encrypt.is_some() {
            return refuse("the disk is encrypted; decrypt it with `qemu-img convert` first");
        }
        if data.corrupt == Some(true) {
            return refuse("the disk is marked as corrupt; repair it with `qemu-img check -r all`");
        }
    }
    if info.virtual_size == 0 {
        return refuse("the disk has a size of zero");
    }
    Ok(())
}

async fn run(mut command: Command, what: &str) -> Result<Vec<u8>, DiskError> {
    command
        .kill_on_drop(true)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let output = command
        .output()
        .await
        .map_err(io_error(format!("cannot run qemu-img {what}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(DiskError::QemuImg {
        what: what.to_owned(),
        message: message.trim().replace('\n', "; "),
    })
}

/// Makes empty overlays. `qemu-img` is asked once for each size of disk; after that its file is copied, which takes a
/// fraction of a millisecond.
#[derive(Debug, Clone)]
pub struct Overlays {
    layout: Layout,
    qemu_img: PathBuf,
    turns: Arc<Semaphore>,
    /// Held while a file that overlays are copied from is being made: two VMs that are created at once need the same one.
    making: Arc<Mutex<()>>,
}

impl Overlays {
    /// For the layers of a node.
    pub fn new(layout: Layout, qemu_img: PathBuf) -> Self {
        Self {
            layout,
            qemu_img,
            turns: merge::turns(),
            making: Arc::default(),
        }
    }

    /// Whose turn it is to merge layers.
    pub(crate) fn turns(&self) -> Arc<Semaphore> {
        Arc::clone(&self.turns)
    }

    fn template_path(&self, bytes: u64) -> PathBuf {
        self.layout
            .root()
            .join(format!("run/overlay-{bytes}.qcow2"))
    }

    /// Makes the file that overlays of this size are copied from. Called before there is any hurry.
    pub async fn prepare(&self, bytes: u64) -> Result<(), DiskError> {
        let path = self.template_path(bytes);
        let _one_at_a_time = self.making.lock().await;
        if path.exists() {
            return Ok(());
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let temporary = PathBuf::from(name);
        let mut command = Command::new(&self.qemu_img);
        command
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&temporary)
            .arg(bytes.to_string());
        command.stdin(Stdio::null());
        run(command, "create").await?;
        fs::rename(&temporary, &path).map_err(io_error("cannot keep an empty overlay"))
    }

    /// Makes an overlay for a process of the given user, which alone may read and write it.
    pub fn create(
        &self,
        name: &LayerName,
        bytes: u64,
        user: Option<(u32, u32)>,
    ) -> Result<(), DiskError> {
        let path = self.layout.layer(name);
        let made = fs::copy(self.template_path(bytes), &path)
            .and_then(|_| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
            .and_then(|()| match user {
                Some((uid, gid)) => chown(&path, Some(uid), Some(gid)),
                None => Ok(()),
            });
        made.map_err(|source| {
            // What is half made must not be taken for a layer. If it cannot be removed either, the first error says more.
            drop(fs::remove_file(&path));
            DiskError::Io {
                what: format!("cannot make the overlay {name}"),
                source,
            }
        })
    }

    /// Whether anything was written to an overlay since it was made. Its disk must stand still and be flushed: then any
    /// write has at least taken a cluster for the table that refers to it, and the file has grown.
    pub fn is_untouched(&self, name: &LayerName, bytes: u64) -> io::Result<bool> {
        Ok(fs::metadata(self.layout.layer(name))?.len()
            == fs::metadata(self.template_path(bytes))?.len())
    }

    /// Lets the forks that will have a layer as a backing file read it, while it is still written.
    pub fn share(&self, name: &LayerName) -> io::Result<()> {
        fs::set_permissions(self.layout.layer(name), fs::Permissions::from_mode(0o640))
    }

    /// Takes a layer out of the hands of the process that wrote it: nobody writes it any more. Doing it again does nothing.
    pub fn freeze(&self, name: &LayerName) -> io::Result<()> {
        let path = self.layout.layer(name);
        let (ours, now) = (rustix::process::geteuid().as_raw(), fs::metadata(&path)?);
        if now.uid() == ours && now.mode() & 0o7777 == FROZEN {
            return Ok(());
        }
        chown(&path, Some(ours), None)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(FROZEN))
    }
}

/// A disk's chain of block nodes, from its layers (the writable one first) and the image's disk below them.
pub fn chain(layers: &[LayerName], image_disk: Option<&str>) -> Vec<DiskNode> {
    let mut chain = layer_nodes(layers);
    if !chain.is_empty() {
        chain.extend(image_node(image_disk));
    }
    chain
}

/// The block nodes of layers.
pub fn layer_nodes(layers: &[LayerName]) -> Vec<DiskNode> {
    layers.iter().map(layer_node).collect()
}

/// What the names of a disk's nodes begin with.
pub const NODE_PREFIX: &str = "d-";

/// The block node of the image's disk.
pub fn image_node(image_disk: Option<&str>) -> Option<DiskNode> {
    image_disk.map(|sha256| DiskNode {
        node: format!("{NODE_PREFIX}image"),
        path: layout::image(sha256),
    })
}

/// The block node of one layer.
pub fn layer_node(name: &LayerName) -> DiskNode {
    DiskNode {
        node: format!("{NODE_PREFIX}{name}"),
        path: layout::layer(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu_img(args: &[&str]) {
        let status = std::process::Command::new("qemu-img")
            .args(args)
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[tokio::test]
    async fn only_disks_that_stand_alone_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        qemu_img(&["create", "-q", "-f", "qcow2", &path("good"), "64M"]);
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            &path("good"),
            &path("backed"),
        ]);
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &format!("data_file={}", path("raw")),
            &path("split"),
            "1M",
        ]);
        fs::write(path("text"), "hello").unwrap();
        fs::write(path("cut"), [&QCOW2_MAGIC[..], &[0, 0, 0, 3, 1]].concat()).unwrap();

        let look = |name: &str| {
            let file = PathBuf::from(path(name));
            async move { inspect(Path::new("qemu-img"), &file, None).await }
        };
        assert_eq!(
            look("good").await.unwrap(),
            DiskInfo {
                virtual_bytes: 64 << 20
            }
        );
        for (name, words) in [
            ("backed", "backing file"),
            ("text", "not in qcow2 form"),
            ("split", "another file"),
        ] {
            let error = look(name).await.unwrap_err();
            assert!(
                matches!(&error, DiskError::Unusable(text) if text.contains(words)),
                "{name}: {error}"
            );
        }
        assert!(matches!(
            look("cut").await.unwrap_err(),
            DiskError::QemuImg { .. }
        ));
        assert!(matches!(
            look("absent").await.unwrap_err(),
            DiskError::Io { .. }
        ));
    }

    #[test]
    fn a_chain_ends_with_the_image() {
        let layers = [LayerName("B".into()), LayerName("A".into())];
        let nodes: Vec<_> = chain(&layers, Some("abc"))
            .into_iter()
            .map(|node| node.node)
            .collect();
        assert_eq!(nodes, ["d-B", "d-A", "d-image"]);
        assert!(chain(&[], Some("abc")).is_empty());
    }
}
