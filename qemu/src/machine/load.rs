//! Loading a stream, and becoming the VM that runs.

use std::{
    fs,
    sync::PoisonError,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use qapi::qmp::{self, Event, MigrationStatus};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Machine, MachineError, log_tail, system};
use crate::{
    checksum::CheckedStream,
    disk, failpoint, layout, oom,
    qmp::{BlockdevAdd, BlockdevSetActive, ObjectAdd, Qmp, QmpError},
    record::{BaseName, Claim, LayerName, Stage, VmName},
    spec,
    sys::spawn::set_oom_score,
};

/// How long a stream may take to load.
const LOAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a guest that came from elsewhere comes before others once it runs.
const ARRIVAL: Duration = Duration::from_millis(300);

/// What a machine that was started without a shape is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The base that its memory is a private mapping of.
    pub base: BaseName,
    /// The disk's layers between its own and the image's disk.
    pub below: Vec<LayerName>,
    /// The disk's size, bytes.
    pub disk_bytes: u64,
}

impl Machine {
    /// Gives a machine that was started without a shape its memory and its disk, and makes its devices: it waits for its stream then.
    pub async fn shape(&mut self, shape: Shape) -> Result<(), MachineError> {
        let begun = Instant::now();
        self.comes_first = Some(self.come_first());
        let shaped = self.take_shape(shape).await;
        self.explained(shaped, "its memory and its disk").await?;
        tracing::debug!(dir = %self.dir.path().display(), took = ?begun.elapsed(), "it has memory, disk and devices");
        Ok(())
    }

    async fn take_shape(&mut self, shape: Shape) -> Result<(), MachineError> {
        self.record.base = Some(shape.base.clone());
        self.record.delta_base = Some(shape.base.clone());
        self.record.layers.extend(shape.below);
        // Before there is an overlay: whoever finds it knows by the record that nothing else has it.
        self.record.save(&self.dir)?;
        failpoint::reached("shape.saved");
        let memory = spec::Memory::Base {
            path: layout::base(&shape.base),
        };
        let object = spec::memory_object(&self.record.hardware, &memory)
            .ok_or(MachineError::NotReady("its memory is said later"))?;
        let chosen = qmp::qom_set {
            path: "/machine".to_owned(),
            property: "memory-backend".to_owned(),
            value: spec::MAIN_MEMORY.into(),
        };
        let memory = async {
            let (object, chosen) =
                tokio::join!(biased; self.qmp.run(ObjectAdd(object)), self.qmp.run(chosen));
            object?;
            chosen?;
            Ok::<_, MachineError>(())
        };
        let devices = async {
            let added = match self.record.layers.first() {
                Some(top) => Some(self.new_disk(top, shape.disk_bytes).await?),
                None => None,
            };
            let add = async {
                match added {
                    Some(chain) => self.qmp.run(BlockdevAdd(chain)).await.map(drop),
                    None => Ok(()),
                }
            };
            let (added, made) = tokio::join!(biased; add, self.qmp.run(qmp::x_exit_preconfig {}));
            added?;
            made?;
            Ok::<_, MachineError>(())
        };
        // Said in this order, and each read while QEMU is still at the one before; whatever fails first is what is wrong.
        let (memory, devices) = tokio::join!(biased; memory, devices);
        memory?;
        devices?;
        failpoint::reached("shape.taken");
        Ok(())
    }

    /// Makes the overlay that is a child's own. Returns its disk's chain.
    async fn new_disk(&self, top: &LayerName, bytes: u64) -> Result<Value, MachineError> {
        let overlays = &self.engine.overlays;
        overlays.prepare(bytes).await?;
        overlays.create(top, bytes, self.record.user)?;
        failpoint::reached("shape.overlay-made");
        let image = disk::image_node(self.record.image_disk.as_deref());
        let below = image.as_ref().map(|image| image.node.as_str());
        Ok(spec::disk_chain(
            &disk::layer_nodes(&self.record.layers),
            below,
        ))
    }

    /// Loads a stream into a machine that was started for one.
    pub async fn load(&mut self, stream: &CheckedStream) -> Result<(), MachineError> {
        let begun = Instant::now();
        self.comes_first = Some(self.come_first());
        let loaded = self.load_stream(stream).await;
        self.explained(loaded, "a snapshot to load").await?;
        tracing::debug!(dir = %self.dir.path().display(), took = ?begun.elapsed(), "its stream is loaded");
        Ok(())
    }

    async fn load_stream(&mut self, stream: &CheckedStream) -> Result<(), MachineError> {
        let uri = format!("file:{}", layout::stream(stream.name()));
        self.qmp
            .run(qmp::migrate_incoming {
                channels: None,
                exit_on_error: Some(false),
                uri: Some(uri),
            })
            .await?;
        failpoint::reached_by("restore.loading", self.process.id().pid);
        let deadline = Instant::now() + LOAD_PATIENCE;
        loop {
            match self.event(deadline, "a snapshot to load").await? {
                Event::MIGRATION { data, .. } => match data.status {
                    MigrationStatus::completed => {
                        failpoint::reached_by("restore.loaded", self.process.id().pid);
                        if !self.record.layers.is_empty() {
                            activate_disk(&self.qmp).await?;
                        }
                        return Ok(());
                    }
                    MigrationStatus::failed | MigrationStatus::cancelled => {
                        return Err(MachineError::Load(self.load_problem().await));
                    }
                    _ => {}
                },
                other => self.note(&other),
            }
        }
    }

    async fn load_problem(&self) -> String {
        let said = match self.qmp.run(qmp::query_migrate {}).await {
            Ok(info) => info.error_desc,
            Err(error) => Some(error.to_string()),
        };
        said.filter(|text| !text.is_empty())
            .unwrap_or_else(|| log_tail(&self.dir))
    }

    /// Has the machine go by another name from now on: a process that waited becomes a VM. Its folder moves; QEMU was given its
    /// sockets open, and nothing else by that path.
    pub fn rename(&mut self, vm: &VmName) -> Result<(), MachineError> {
        let dir = self.engine.layout.vm(vm);
        let _nobody_looks = self
            .engine
            .naming
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        fs::rename(self.dir.path(), dir.path()).map_err(system("cannot name a VM's folder"))?;
        failpoint::reached("restore.folder-renamed");
        self.dir = dir;
        Ok(())
    }

    /// Has a process that waited be this boot of its VM; kept when it is claimed.
    pub fn set_boot(&mut self, boot: u64) {
        self.record.boot = boot;
    }

    /// Lets the guest run. From here on the process is the VM, and an agent that finds it keeps it. Returns since when it runs.
    pub async fn resume(&mut self) -> Result<Instant, MachineError> {
        let runs = self.go_on().await;
        self.comes_first = None;
        runs
    }

    /// The same for a guest that ran elsewhere until it was held: it comes before others for a moment longer, since whoever waits for it
    /// waits until it has done something.
    pub async fn arrive(&mut self) -> Result<Instant, MachineError> {
        let runs = self.go_on().await?;
        if let Some(comes_first) = self.comes_first.take() {
            comes_first.for_longer(ARRIVAL);
        }
        Ok(runs)
    }

    async fn go_on(&mut self) -> Result<Instant, MachineError> {
        let begun = Instant::now();
        let claim = self.new_claim();
        if let Some(claim) = &claim {
            claim.write(&self.dir)?;
            failpoint::reached_by("restore.claimed", self.process.id().pid);
        }
        let claimed = Instant::now();
        let went_on = self.cont().await;
        let runs = Instant::now();
        self.explained(went_on, "cont").await?;
        failpoint::reached("restore.went-on");
        tracing::debug!(dir = %self.dir.path().display(), claim = ?claimed - begun, cont = ?runs - claimed, "the guest goes on");
        let was_held = std::mem::take(&mut self.record.held);
        if let Some(claim) = claim {
            self.record_claim(&claim)?;
            failpoint::reached("restore.recorded");
        } else if was_held {
            self.record.save(&self.dir)?;
        }
        Ok(runs)
    }

    /// Makes the process the VM, without letting its guest run yet.
    pub fn claim(&mut self) -> Result<(), MachineError> {
        self.comes_first = None;
        match self.new_claim() {
            Some(claim) => self.record_claim(&claim),
            None => Ok(()),
        }
    }

    /// What is to be said of a process that is not the VM yet.
    fn new_claim(&self) -> Option<Claim> {
        (self.record.stage != Stage::Running).then(|| Claim {
            process: self.process.id(),
            boot: self.record.boot,
            at: now_ms(),
        })
    }

    fn record_claim(&mut self, claim: &Claim) -> Result<(), MachineError> {
        self.record.take(claim);
        self.record.save(&self.dir)?;
        let score = match self.record.base {
            None => oom::BOOTED,
            Some(_) => oom::FORK,
        };
        set_oom_score(claim.process.pid, score).map_err(system("cannot say how dear a process is"))
    }

    /// `cont`. Right after a load QEMU may refuse it for a moment, until it has tidied up.
    pub(crate) async fn cont(&self) -> Result<(), MachineError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match self.qmp.run(qmp::cont {}).await {
                Ok(_) => return Ok(()),
                Err(QmpError::Refused { reason, .. })
                    if Instant::now() < deadline && reason.contains("not finalized") =>
                {
                    sleep(Duration::from_micros(200)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Has QEMU open for use what is there of the disk's chain: all of it once a stream is loaded, the image in a process that waits for
/// a shape. It would do that in `cont` otherwise, where somebody waits: reading every layer's header and tables takes 2 ms of it on a
/// busy host. Before 10.0 it does so at the end of a load by itself.
pub(super) async fn activate_disk(qmp: &Qmp) -> Result<(), QmpError> {
    let major = qmp.version().split('.').next();
    let leaves_it = major.and_then(|major| major.parse().ok()) >= Some(10_u32);
    if leaves_it {
        qmp.run(BlockdevSetActive { active: true }).await?;
        failpoint::reached("restore.disk-active");
    }
    Ok(())
}

/// The host's clock, milliseconds since the epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock that stands before the epoch is as good as none.
    since.map_or(0, |since| since.as_millis() as u64)
}
