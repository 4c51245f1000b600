//! What is done while the guest stands still: the disk moves on, the devices are saved, and the last of memory is read.

use std::{path::PathBuf, time::Duration};

use qapi::qmp::{self, BlockdevSnapshot, Event};
use tokio::{sync::oneshot, time::Instant};

use super::{CaptureError, Prepared, Step, blocking, lock, memory};
use crate::{
    disk, failpoint,
    machine::{Machine, MachineError},
    record::LayerName,
    stream::Block,
};

/// What was taken while the guest stood still.
pub(super) struct Moment {
    /// Where the devices' state lies, until the next capture.
    pub(super) devices: PathBuf,
    pub(super) others: Vec<(Block, Vec<u8>)>,
    pub(super) layers: Vec<LayerName>,
    pub(super) layer_moved: bool,
}

/// What became of disk and devices while the guest stood still.
struct Saved {
    moved_on: Result<bool, CaptureError>,
    disk_at: Instant,
    devices: Result<Instant, CaptureError>,
}

impl Machine {
    /// From `stop` on: the guest stands still when this returns, whether it succeeded or not.
    pub(super) async fn take(
        &mut self,
        mut prepared: Prepared,
        disk_bytes: u64,
    ) -> Result<(Prepared, Moment), CaptureError> {
        let begun = Instant::now();
        // What is certain to follow is said along with `stop`: QEMU reads it meanwhile.
        let certain = !self.record.layers.is_empty() && !self.disk_is_untouched(disk_bytes)?;
        let copying = self.copy(prepared, Step::Last)?;
        let memory_ref = self.memory_ref()?;
        let (tell_stopped, stopped) = oneshot::channel();
        let stopping = async {
            let result = self.qmp.run(qmp::stop {}).await;
            let at = Instant::now();
            failpoint::reached("capture.stopped");
            // Nobody listens where it was certain what follows.
            let _unheard = tell_stopped.send(());
            result.map_err(MachineError::from)?;
            // Nothing writes main memory any more, so it is looked at beside the rest.
            let reading = blocking(move || {
                lock(&memory_ref)
                    .read_others()
                    .map_err(memory("read the guest's firmware"))
            });
            let (copied, others) = tokio::join!(copying, reading);
            failpoint::reached("capture.memory-read");
            Ok::<_, CaptureError>((copied?, others?, at))
        };
        let state = self.dir.device_state();
        let saving = async {
            if !certain {
                // It is told even when `stop` failed; then the rest fails as well.
                let _told = stopped.await;
            }
            self.save(disk_bytes, &state).await
        };
        // All to their ends, also when one fails: the guest must not go on while it is read. In this order: `stop` is said first.
        let (stopped, saved) = tokio::join!(biased; stopping, saving);
        let Saved {
            moved_on,
            disk_at,
            devices,
        } = saved;
        // It has moved on even if something failed after that.
        let layers = match moved_on {
            Ok(true) => {
                let layers = self.record.layers.clone();
                self.record.layers = self.record.layers_with_next();
                self.record.next_layer = None;
                self.spare = None;
                Ok((layers, true))
            }
            Ok(false) => Ok((
                self.record.layers.get(1..).unwrap_or_default().to_vec(),
                false,
            )),
            Err(error) => Err(error),
        };
        let (copied, others, stopped_at) = stopped?;
        let (layers, layer_moved) = layers?;
        let devices_at = devices?;
        prepared = copied;
        prepared.report.stop = stopped_at - begun;
        prepared.report.disk = disk_at.saturating_duration_since(stopped_at);
        prepared.report.devices = devices_at.saturating_duration_since(disk_at.max(stopped_at));
        Ok((
            prepared,
            Moment {
                devices: self.engine.layout.root().join(state),
                others,
                layers,
                layer_moved,
            },
        ))
    }

    /// QEMU's own account of the pause.
    pub(super) async fn pause_by_events(&mut self) -> Result<Duration, MachineError> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut stopped = None;
        loop {
            match self.event(deadline, "a capture").await? {
                Event::STOP { timestamp, .. } => stopped = Some(since_epoch(&timestamp)),
                Event::RESUME { timestamp, .. } => {
                    let resumed = since_epoch(&timestamp);
                    return Ok(stopped
                        .and_then(|stopped| resumed.checked_sub(stopped))
                        .unwrap_or_default());
                }
                other => self.note(&other),
            }
        }
    }

    /// Puts the spare overlay on top of the disk, unless nothing was written to the one that is there, and saves the devices' state.
    async fn save(&self, disk_bytes: u64, state: &str) -> Saved {
        let devices = async {
            self.qmp
                .run(qmp::xen_save_devices_state {
                    live: Some(false),
                    filename: state.to_owned(),
                })
                .await
                .map_err(MachineError::from)?;
            failpoint::reached("capture.devices-saved");
            Ok::<_, CaptureError>(Instant::now())
        };
        let disk = async {
            let moved_on = self.move_disk_on(disk_bytes).await;
            failpoint::reached("capture.disk-moved");
            (moved_on, Instant::now())
        };
        // The disk first, and the devices are said along with it.
        let ((moved_on, disk_at), devices) = tokio::join!(biased; disk, devices);
        Saved {
            moved_on,
            disk_at,
            devices,
        }
    }

    /// Whether the disk moved on to the spare overlay. The guest stands still, or it is certain that it has written.
    async fn move_disk_on(&self, disk_bytes: u64) -> Result<bool, CaptureError> {
        let Some(top) = self.record.layers.first() else {
            return Ok(false);
        };
        if self.disk_is_untouched(disk_bytes)? {
            return Ok(false);
        }
        let Some(next) = &self.spare else {
            return Err(MachineError::NotReady("no overlay was prepared").into());
        };
        let snapshot = BlockdevSnapshot {
            node: disk::layer_node(top).node,
            overlay: disk::layer_node(next).node,
        };
        self.qmp
            .run(qmp::blockdev_snapshot(snapshot))
            .await
            .map_err(MachineError::from)?;
        Ok(true)
    }
}

/// QEMU's timestamps are seconds and microseconds since the epoch; the type keeps its fields to itself.
fn since_epoch(timestamp: &impl serde::Serialize) -> Duration {
    let value = serde_json::to_value(timestamp).unwrap_or_default();
    let field = |name: &str| {
        value
            .get(name)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_default()
    };
    Duration::new(
        field("seconds"),
        (field("microseconds") % 1_000_000) as u32 * 1000,
    )
}
