//! A host for machines under test: folders that go with it, the guest image, and a comparison of two guests' memory.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use qemu::{
    TRACKING_LIBRARY,
    capture::{Afterwards, Captured, Expected, Mode},
    console::output_channel,
    disk::Overlays,
    layout::Layout,
    machine::{Engine, Launch, Machine},
    record::{LayerName, StreamName, VmName, VmRecord, host_boot},
    spec::{Accelerator, Device, Hardware, MachineType, Start},
};

pub const DISK: u64 = 1 << 30;
const GID: u32 = 1_879_048_192;

pub struct Host {
    pub engine: Arc<Engine>,
    pub cmdline: String,
    _dirs: [tempfile::TempDir; 2],
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
        // On the disk, as a node's data directory is; bases on tmpfs.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(target)?;
        let (data, memory) = (
            tempfile::tempdir_in(target)?,
            tempfile::tempdir_in("/dev/shm")?,
        );
        let layout = Layout::create(data.path(), memory.path(), Some(GID))?;
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
            layout.share(&layout.image(name))?;
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
            host_boot: host_boot()?,
        };
        Ok(Self {
            engine: Arc::new(engine),
            cmdline,
            _dirs: [data, memory],
        })
    }

    pub fn launch(&self, name: &str, cpus: u32) -> Launch {
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
            user: Some((uid, GID)),
            hardware: Hardware {
                machine: MachineType::Microvm,
                accelerator: Accelerator::Tcg,
                cpu_model: "max".into(),
                cpus,
                memory_bytes: 256 << 20,
                devices: vec![Device::Disk, Device::Rng],
            },
            base: None,
            start: Start::Incoming,
            layers: vec![LayerName(name.into())],
            disk_bytes: DISK,
            new_layer: true,
            image_disk: Some("disk.qcow2".into()),
            ready_line: None,
            console: output_channel(),
        }
    }

    pub async fn boot(&self, name: &str, cpus: u32, flag: &str) -> anyhow::Result<Machine> {
        for attempt in 1..=3 {
            let mut launch = self.launch(name, cpus);
            launch.start = Start::Boot {
                kernel: "images/vmlinuz".into(),
                initrd: Some("images/initrd".into()),
                cmdline: format!("{} {flag}", self.cmdline),
            };
            launch.new_layer = attempt == 1;
            launch.ready_line = Some("forkypig-guest ready".into());
            let mut machine = Machine::launch(&self.engine, launch).await?;
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
                DISK,
                mode,
                running,
                afterwards,
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
        };
        let mut child = self.wait(name, &expected, captured.hardware.cpus).await?;
        child.load(&StreamName(stream.into())).await?;
        Ok(child)
    }

    /// A process that waits for a stream.
    pub async fn wait(&self, name: &str, with: &Expected, cpus: u32) -> anyhow::Result<Machine> {
        let mut launch = self.launch(name, cpus);
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
        Ok(Machine::adopt(&self.engine, &vm, loaded, None, output_channel()).await?)
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
