//! A host for machines under test: folders that go with it, the guest image, and a comparison of two guests' memory.
// Each test program uses a part of it.
#![allow(dead_code)]

pub mod echo;
pub mod planted;
pub mod random;
pub mod records;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use qemu::{
    TRACKING_LIBRARY,
    capture::{Afterwards, Captured, Expected, Mode},
    checksum::CheckedStream,
    console::Wire,
    disk::Overlays,
    groups::{Groups, Limits},
    layout::Layout,
    machine::{Engine, Launch, Machine},
    merge::Happened,
    past::Past,
    record::{HOST_BOOT, LayerName, StreamName, StreamRef, VmName, VmRecord, host_boot},
    spec::{Accelerator, Device, Hardware, MachineType, NetworkLine, Start, counter_words},
    stream::Block,
};
use tokio::time::{Instant, timeout_at};

pub const DISK: u64 = 1 << 30;

/// What kind of machine a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub machine: MachineType,
    pub cpus: u32,
}

impl From<u32> for Shape {
    /// A `microvm` with as many processors.
    fn from(cpus: u32) -> Self {
        Self {
            machine: MachineType::Microvm,
            cpus,
        }
    }
}
const GID: u32 = 1_879_048_192;

pub struct Host {
    pub engine: Arc<Engine>,
    /// The size of its guests' disks; the image's file system has [`DISK`] of it.
    pub disk: u64,
    /// The size of its guests' memory.
    pub memory: u64,
    /// Whether they have a serial port to the guest's programs.
    pub port: bool,
    pub cmdline: String,
    _data: tempfile::TempDir,
}

fn image_dir() -> PathBuf {
    std::env::var_os("FP_TEST_IMAGE")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local/image/tiny"))
}

impl Host {
    pub fn new() -> anyhow::Result<Self> {
        Self::with_tracking(true)
    }

    pub fn with_tracking(track_writes: bool) -> anyhow::Result<Self> {
        Self::with(track_writes, false)
    }

    /// Its guests' pages may be merged.
    pub fn merging(track_writes: bool) -> anyhow::Result<Self> {
        Self::with(track_writes, true)
    }

    fn with(track_writes: bool, merge_memory: bool) -> anyhow::Result<Self> {
        // On the disk, as a node's data directory is.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(target)?;
        let data = tempfile::tempdir_in(target)?;
        let layout = Layout::create(data.path(), Some(GID))?;
        layout.install_tracking_library(TRACKING_LIBRARY)?;
        let image = image_dir();
        for name in ["vmlinuz", "initrd", "disk.qcow2"] {
            let from = image.join(name);
            fs::copy(&from, layout.image(name)).with_context(|| {
                format!(
                    "{}: run deploy/build-image.sh tiny .local/image/tiny",
                    from.display()
                )
            })?;
            layout.share_image(&layout.image(name))?;
        }
        let env = fs::read_to_string(image.join("image.env"))?;
        let cmdline = env
            .split('"')
            .nth(1)
            .context("image.env has no CMDLINE")?
            .to_owned();
        let engine = Engine {
            overlays: Overlays::new(layout.clone(), "qemu-img".into()),
            layout,
            qemu: "qemu-system-x86_64".into(),
            track_writes,
            merge_memory,
            aslr: true,
            groups: Groups::none("tests set no limits"),
            priorities: Arc::default(),
            host_boot: host_boot(Path::new(HOST_BOOT))?,
            naming: RwLock::new(()),
        };
        let counter = qemu::host::tsc_khz().map(counter_words);
        let cmdline = format!("{cmdline} {}", counter.unwrap_or_default());
        Ok(Self {
            engine: Arc::new(engine),
            disk: DISK,
            memory: 256 << 20,
            port: false,
            cmdline,
            _data: data,
        })
    }

    pub fn launch(&self, name: &str, shape: Shape) -> Launch {
        // A user for each VM, by its name's bytes: good enough for a handful.
        let uid = GID
            + 1
            + name
                .bytes()
                .fold(0u32, |n, b| (n * 31 + u32::from(b)) % 60_000);
        Launch {
            vm: VmName(name.into()),
            boot: 1,
            has_run: false,
            past: Past::default(),
            user: Some((uid, GID)),
            hardware: Hardware {
                machine: shape.machine,
                accelerator: Accelerator::Tcg,
                cpu_model: "max".into(),
                cpus: shape.cpus,
                memory_bytes: self.memory,
                devices: [Device::Disk, Device::Rng]
                    .into_iter()
                    .chain(self.port.then_some(Device::Port))
                    .collect(),
            },
            limits: Limits::default(),
            base: None,
            start: Start::Incoming,
            layers: vec![LayerName(name.into())],
            disk_bytes: self.disk,
            new_layer: true,
            image_disk: Some("disk.qcow2".into()),
            ready_line: None,
            console: Wire::default(),
            network: NetworkLine {
                mac: [2, 0, 0, 0, 0, 1],
                egress: false,
                group_mac: [2, 0, 0, 0, 1, 1],
            },
            port: None,
        }
    }

    pub async fn boot(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        flag: &str,
    ) -> anyhow::Result<Machine> {
        let shape = shape.into();
        for attempt in 1..=3 {
            let mut machine = self.start(name, shape, flag, attempt == 1).await?;
            machine.resume().await?;
            let mut ready = machine.ready();
            // A cold boot under emulation hangs now and then; that is not what is tested here.
            if tokio::time::timeout(Duration::from_secs(40), ready.wait_for(|ready| *ready))
                .await
                .is_ok()
            {
                return Ok(machine);
            }
            machine.kill().await?;
        }
        anyhow::bail!("the guest did not boot three times")
    }

    /// A machine with a kernel whose guest has not run yet.
    pub async fn start(
        &self,
        name: &str,
        shape: Shape,
        flag: &str,
        new_layer: bool,
    ) -> anyhow::Result<Machine> {
        let mut launch = self.launch(name, shape);
        launch.start = Start::Boot {
            kernel: "images/vmlinuz".into(),
            initrd: Some("images/initrd".into()),
            cmdline: format!("{} {flag}", self.cmdline),
        };
        launch.new_layer = new_layer;
        launch.ready_line = Some("forkypig-guest ready".into());
        Ok(Machine::launch(&self.engine, launch).await?)
    }

    pub async fn capture(
        &self,
        machine: &mut Machine,
        name: &str,
        mode: Mode,
        running: bool,
        afterwards: Afterwards,
    ) -> Result<Captured, qemu::capture::CaptureError> {
        machine
            .capture(
                &StreamName(name.into()),
                &LayerName(format!("after-{name}")),
                self.disk,
                mode,
                running,
                afterwards,
                None,
            )
            .await
    }

    pub async fn load(
        &self,
        name: &str,
        captured: &Captured,
        stream: &str,
    ) -> anyhow::Result<Machine> {
        let expected = Expected {
            base: captured.base.clone(),
            layers: captured.layers.clone(),
            hardware: captured.hardware.clone(),
        };
        let shape = Shape {
            machine: captured.hardware.machine,
            cpus: captured.hardware.cpus,
        };
        let mut child = self.wait(name, &expected, shape).await?;
        let stream = self.checked(stream, captured).await?;
        child.load(&stream).await?;
        Ok(child)
    }

    /// A child of a stream that a test wrote or changed itself.
    pub async fn load_edited(
        &self,
        name: &str,
        captured: &Captured,
        stream: &str,
    ) -> anyhow::Result<Machine> {
        let path = self.engine.layout.stream(&StreamName(stream.into()));
        let edited = Captured {
            stream_checksum: crc32fast::hash(&fs::read(path)?),
            ..captured.clone()
        };
        self.load(name, &edited, stream).await
    }

    /// A stream that was compared with its checksum.
    pub async fn checked(
        &self,
        stream: &str,
        captured: &Captured,
    ) -> anyhow::Result<CheckedStream> {
        let reference = StreamRef {
            name: StreamName(stream.into()),
            checksum: captured.stream_checksum,
        };
        Ok(CheckedStream::check(&self.engine.layout, reference).await?)
    }

    /// A process that waits for a stream.
    pub async fn wait(
        &self,
        name: &str,
        with: &Expected,
        shape: impl Into<Shape>,
    ) -> anyhow::Result<Machine> {
        let mut launch = self.launch(name, shape.into());
        launch.base = Some(with.base.clone());
        launch.layers = std::iter::once(LayerName(name.into()))
            .chain(with.layers.clone())
            .collect();
        Ok(Machine::launch(&self.engine, launch).await?)
    }

    pub async fn adopt(&self, name: &str, record: VmRecord) -> anyhow::Result<Option<Machine>> {
        let vm = VmName(name.into());
        let loaded = VmRecord::load(&self.engine.layout.vm(&vm))?.context("it has a record")?;
        assert_eq!(loaded, record);
        Ok(Machine::adopt(&self.engine, &vm, loaded, None, Wire::default(), None).await?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed leaves its guests: they must not outlive it.
        let root = self.engine.layout.root();
        for pid in qemu::host::processes_of(root).unwrap_or_default() {
            let raw = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(raw) = raw {
                // It may have ended by itself meanwhile.
                let _gone = rustix::process::kill_process(raw, rustix::process::Signal::KILL);
            }
        }
        drop(fs::set_permissions(root, fs::Permissions::from_mode(0o700)));
    }
}

/// How long a merge of a chain may take.
const MERGE_PATIENCE: Duration = Duration::from_secs(60);

/// Lets a machine do what its owner would have it do, until the time is up or, without one, nothing is left to merge. Returns how
/// many steps it took.
pub async fn merge(
    machine: &mut Machine,
    name: &mut u32,
    until: Option<Instant>,
) -> anyhow::Result<u32> {
    let deadline = until.unwrap_or_else(|| Instant::now() + MERGE_PATIENCE);
    let mut steps = 0;
    loop {
        machine.want_merge();
        if until.is_none() && !machine.is_merging() {
            return Ok(steps);
        }
        match timeout_at(deadline, machine.happened()).await {
            Ok(Happened::Merge) => {
                *name += 1;
                steps += 1;
                machine
                    .go_on_merging(LayerName(format!("merged{name}")))
                    .await?;
            }
            Ok(Happened::Ended(ending)) => anyhow::bail!("the machine ended: {ending:?}"),
            Err(_) if until.is_some() => return Ok(steps),
            Err(_) => anyhow::bail!("a merge did not come to its end"),
        }
    }
}

/// The pages of main memory in which two machines differ; both must stand still.
pub async fn compare(a: &mut Machine, b: &mut Machine) -> anyhow::Result<Vec<u32>> {
    assert!(!a.is_running().await? && !b.is_running().await?);
    let (left, right) = (a.main_memory().await?, b.main_memory().await?);
    anyhow::ensure!(left.len() == right.len());
    let mut wrong = Vec::new();
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..left.len()).step_by(1 << 20) {
        left.read(at, &mut one)?;
        right.read(at, &mut other)?;
        for (i, (x, y)) in one.chunks(4096).zip(other.chunks(4096)).enumerate() {
            if x != y {
                wrong.push((at / 4096) as u32 + i as u32);
            }
        }
    }
    Ok(wrong)
}

/// The blocks of firmware and tables in which two machines differ, by name; both must stand still.
pub async fn compare_firmware(a: &Machine, b: &Machine) -> anyhow::Result<Vec<String>> {
    let left = a.main_memory().await?.firmware()?;
    let right = b.main_memory().await?.firmware()?;
    let names = |blocks: &[(Block, Vec<u8>)]| -> BTreeSet<String> {
        blocks.iter().map(|(block, _)| block.name.clone()).collect()
    };
    anyhow::ensure!(!left.is_empty(), "a machine without firmware");
    let all = names(&left)
        .union(&names(&right))
        .cloned()
        .collect::<Vec<_>>();
    let find = |blocks: &[(Block, Vec<u8>)], name: &str| {
        blocks
            .iter()
            .find(|(block, _)| block.name == name)
            .map(|(_, bytes)| bytes.clone())
    };
    Ok(all
        .into_iter()
        .filter(|name| find(&left, name) != find(&right, name))
        .collect())
}
