//! Capturing a running machine: memory, devices and disk of one moment, for the price of a few milliseconds' pause.
//!
//! Everything that may be done before the stop is done before it ([`Machine::prepare`]): the next overlay is opened, the
//! disk is flushed, memory is copied and what the guest wrote meanwhile is copied again until little is left. In the stop
//! the disk moves on, the devices are saved, and the pages that were written since the last round are read. The stream is
//! written out after the guest goes on.

mod copier;
mod pause;
mod report;
mod sift;
mod together;

use std::{
    fs::{self, File},
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use qapi::qmp;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use self::{
    copier::{Copier, create_base},
    pause::Moment,
    report::explain,
    sift::sift,
    together::Stage,
};
pub use self::{
    report::Report,
    together::{Ticket, together},
};

use crate::{
    checksum::{self, Checksum},
    disk, failpoint,
    layout::share,
    machine::{Machine, MachineError, system},
    memory::{Memory, allocated_bytes, write_pieces},
    page_set::PageSet,
    qmp::BlockdevAdd,
    record::{BaseName, LayerName, StreamName},
    spec::{Hardware, overlay_node},
    stream::{self, Pages, StreamError},
    untrusted,
};

/// When this much differs from the base, a new one is made: every fork loads the whole delta, at about 3 GiB/s.
pub const NEW_BASE_BYTES: u64 = 32 << 20;

/// How long the processors are left to a guest that goes on, before its snapshot is written. Children's processes start meanwhile.
const GIVE_WAY: Duration = Duration::from_millis(2);

/// The most that the state of a machine's devices may take, bytes: ours have some hundred KiB.
const MOST_DEVICES: u64 = 64 << 20;

/// How a machine is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Live where writes are tracked, else paused.
    Auto,
    /// Stop first.
    Paused,
    /// Copy ahead, or fail.
    Live,
}

/// A capture did not succeed. The guest goes on, unless the machine itself is broken.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Live capture was asked for where writes are not tracked.
    #[error("this host cannot capture a VM while it runs: {0}")]
    NotTracked(&'static str),
    /// Guest memory could not be looked at.
    #[error("cannot {what}")]
    Memory {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The snapshot's files could not be written.
    #[error("cannot write the snapshot's {what}")]
    Write {
        /// Which file.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The stream could not be put together.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// It was to be captured together with others, one of which was not.
    #[error("another member of its group {0}")]
    Together(&'static str),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl CaptureError {
    /// Whether it failed because a file system is full.
    pub fn is_disk_full(&self) -> bool {
        let full =
            |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        match self {
            Self::Memory { source, .. } | Self::Write { source, .. } => full(source),
            Self::Machine(MachineError::System { source, .. }) => full(source),
            Self::Machine(MachineError::Disk(disk::DiskError::Io { source, .. })) => full(source),
            _ => false,
        }
    }
}

fn memory(what: &'static str) -> impl FnOnce(io::Error) -> CaptureError {
    move |source| CaptureError::Memory { what, source }
}

fn write(what: &'static str) -> impl FnOnce(io::Error) -> CaptureError {
    move |source| CaptureError::Write { what, source }
}

/// What was done ahead for one capture.
#[derive(Debug)]
pub struct Prepared {
    stream: StreamName,
    base: BaseName,
    new_base: Option<File>,
    /// Pages that were written to the new base since it was begun and are not in it: the delta against it.
    since_base: Option<PageSet>,
    pages: Pages,
    /// Pages that were read while the guest stood still: some may hold what the base holds.
    unsifted: Vec<Range<u32>>,
    report: Report,
}

/// What a capture will refer to, unless the guest does something meanwhile that makes it otherwise: forks may be started with
/// it before the capture, and must be checked against [`Captured`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The base.
    pub base: BaseName,
    /// The disk's layers, newest first.
    pub layers: Vec<LayerName>,
    /// The machine.
    pub hardware: Hardware,
}

/// A finished capture: what is in the snapshot.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The base that the stream's pages differ from.
    pub base: BaseName,
    /// The disk's layers, newest first.
    pub layers: Vec<LayerName>,
    /// The machine.
    pub hardware: Hardware,
    /// QEMU's version.
    pub qemu_version: String,
    /// Bytes that the base takes.
    pub base_bytes: u64,
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// The stream's checksum.
    pub stream_checksum: Checksum,
    /// Bytes of the newest layer; 0 when nothing was written to the disk since the capture before.
    pub layer_bytes: u64,
    /// How it went.
    pub report: Report,
}

/// What becomes of the guest after a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It goes on if it ran.
    GoOn,
    /// It stands still until someone lets it go on.
    Hold,
}

/// The parts of copying memory.
#[derive(Debug, Clone, Copy)]
enum Step {
    Begin,
    CatchUp,
    Last,
}

impl Machine {
    /// Does what may be done before it is certain that the capture is wanted. `stream` names the snapshot, `layer` the overlay that the
    /// disk goes on with: a name that was never used. Doing it again
    /// for the same snapshot does nothing.
    pub async fn prepare(
        &mut self,
        stream: &StreamName,
        layer: &LayerName,
        disk_bytes: u64,
        mode: Mode,
    ) -> Result<(), CaptureError> {
        if self
            .prepared
            .as_ref()
            .is_some_and(|prepared| prepared.stream == *stream)
        {
            return Ok(());
        }
        self.prepared = None;
        let begun = Instant::now();
        let tracked = self.open_memory().await?;
        if mode == Mode::Live && !tracked {
            return Err(CaptureError::NotTracked(
                "its kernel is older than Linux 6.7, or write tracking is off",
            ));
        }
        let live = tracked && mode != Mode::Paused;
        self.open_spare(layer, disk_bytes).await?;
        self.flush_disk().await?;
        failpoint::reached("capture.flushed");

        let mut prepared = Prepared {
            stream: stream.clone(),
            base: BaseName(stream.0.clone()),
            new_base: None,
            since_base: None,
            pages: Pages::default(),
            unsifted: Vec::new(),
            report: Report {
                live,
                ..Report::default()
            },
        };
        if live {
            prepared = self.copy(prepared, Step::Begin)?.await?;
        }
        failpoint::reached_by("capture.prepared", self.process.id().pid);
        prepared.report.ahead = begun.elapsed();
        self.prepared = Some(prepared);
        Ok(())
    }

    /// What a capture will refer to, if nothing unforeseen happens: the base of the one before, or a new one if there was none,
    /// whose file is made here so that it can be mapped. Takes no time.
    pub fn expect(&self, stream: &StreamName, disk_bytes: u64) -> Result<Expected, CaptureError> {
        let layout = &self.engine.layout;
        let old = self
            .record
            .delta_base
            .clone()
            .filter(|base| layout.base(base).exists());
        let base = match old {
            Some(base) => base,
            None => {
                let base = BaseName(stream.0.clone());
                let bytes = self.record.hardware.memory_bytes;
                create_base(layout, &base, bytes, self.record.lineage()).map_err(write("base"))?;
                base
            }
        };
        let layers = if self.disk_is_untouched(disk_bytes)? {
            self.record.layers[1..].to_vec()
        } else {
            if let Some(top) = self.record.layers.first() {
                let shared = self.engine.overlays.share(top);
                shared.map_err(memory("share the VM's disk"))?;
            }
            self.record.layers.clone()
        };
        let hardware = self.record.hardware.clone();
        Ok(Expected {
            base,
            layers,
            hardware,
        })
    }

    /// Whether nothing was written to the topmost layer, so that it need not become part of a snapshot.
    fn disk_is_untouched(&self, disk_bytes: u64) -> Result<bool, CaptureError> {
        let Some(top) = self.record.layers.first() else {
            return Ok(false);
        };
        let something_below = self.record.layers.len() > 1 || self.record.image_disk.is_some();
        Ok(something_below
            && self
                .engine
                .overlays
                .is_untouched(top, disk_bytes)
                .map_err(memory("look at the VM's disk"))?)
    }

    /// Throws away what was done ahead for a snapshot. Scans are never lost by it: the delta knows of them. A base that was begun
    /// stays, since children that wait for the same snapshot may map it: another capture may have come between, and a file
    /// made anew under its name would be another than theirs. The collector removes it when nobody wants it.
    pub fn forget_prepared(&mut self, stream: &StreamName) {
        self.prepared.take_if(|prepared| prepared.stream == *stream);
    }

    /// Removes the files of a capture that failed: its operation fails with it, and so do the children that wait for it.
    fn discard(&self, stream: &StreamName) {
        let layout = &self.engine.layout;
        for path in [
            layout.base(&BaseName(stream.0.clone())),
            layout.stream(stream),
        ] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "a file of a capture that failed stays until the next collection");
                }
                _ => {}
            }
        }
    }

    /// Captures the machine. `running` says whether its guest runs now; then it goes on afterwards, unless it is held. `with`: its part in a
    /// capture of several, which then are captured at one instant, or none of them is.
    #[allow(clippy::too_many_arguments)] // Each is another matter.
    pub async fn capture(
        &mut self,
        stream: &StreamName,
        layer: &LayerName,
        disk_bytes: u64,
        mode: Mode,
        running: bool,
        afterwards: Afterwards,
        with: Option<Ticket>,
    ) -> Result<Captured, CaptureError> {
        self.prepare(stream, layer, disk_bytes, mode).await?;
        come_to(with.as_ref(), Stage::Prepared).await?;
        let Some(prepared) = self.prepared.take() else {
            return Err(CaptureError::Machine(MachineError::NotReady(
                "the capture was given up",
            )));
        };
        if afterwards == Afterwards::Hold {
            self.record.held = true;
            self.record.save(&self.dir).map_err(MachineError::from)?;
        }
        let result = self
            .stopped(prepared, disk_bytes, running, afterwards, with)
            .await;
        if let Ok(captured) = &result {
            self.merging.captured(stream, captured.layer_bytes > 0);
        }
        if result.is_err() {
            self.discard(stream);
            // The disk may have moved on all the same.
            self.record.save(&self.dir).map_err(MachineError::from)?;
        }
        result
    }

    async fn stopped(
        &mut self,
        mut prepared: Prepared,
        disk_bytes: u64,
        running: bool,
        afterwards: Afterwards,
        with: Option<Ticket>,
    ) -> Result<Captured, CaptureError> {
        let begun = Instant::now();
        self.flush_disk().await?;
        if prepared.report.live {
            prepared = self.copy(prepared, Step::CatchUp)?.await?;
        }
        let devices = self.engine.layout.root().join(self.dir.device_state());
        // Not to be written over: a file system writes out what replaces a file's content as soon as it is closed.
        match fs::remove_file(&devices) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(write("devices' state")(error));
            }
            _ => {}
        }
        prepared.report.ahead += begun.elapsed();
        come_to(with.as_ref(), Stage::Ready).await?;
        while let Ok(event) = self.events.try_recv() {
            self.note(&event);
        }
        let comes_first = self.come_first();
        let begun = Instant::now();
        let go_on = running && afterwards == Afterwards::GoOn;
        let taken = self.take(prepared, disk_bytes).await;
        let before_others = Instant::now();
        let all_taken = match &taken {
            Ok(_) => come_to(with.as_ref(), Stage::Taken).await,
            Err(_) => Ok(()),
        };
        // The others are to know at once when it was not.
        drop(with);
        failpoint::reached("capture.all-taken");
        let before_cont = Instant::now();
        // Also after a failure: whatever happened, the guest goes on.
        let went_on = match go_on {
            true => self.cont().await,
            false => Ok(()),
        };
        drop(comes_first);
        failpoint::reached("capture.went-on");
        // The first failure says more.
        let (mut prepared, moment) = taken?;
        all_taken?;
        went_on?;
        prepared.report.others = before_cont - before_others;
        prepared.report.cont = before_cont.elapsed();
        prepared.report.agent_pause = begun.elapsed();
        if go_on {
            prepared.report.pause = self.pause_by_events().await?;
            // Whoever waits for the guest comes first: without this its first answer came up to 5 ms after `cont`, with it within 2.
            sleep(GIVE_WAY).await;
        }
        self.write_out(prepared, moment).await
    }

    /// Opens an overlay in QEMU for when the disk moves on.
    async fn open_spare(&mut self, name: &LayerName, disk_bytes: u64) -> Result<(), MachineError> {
        if self.record.layers.is_empty() || self.spare.is_some() {
            return Ok(());
        }
        if self.engine.layout.layer(name).exists() {
            // Another capture's overlay may be in use under the name it was prepared with.
            return Err(MachineError::NotReady(
                "the next overlay's name was used before",
            ));
        }
        self.engine.overlays.prepare(disk_bytes).await?;
        self.engine
            .overlays
            .create(name, disk_bytes, self.record.user)?;
        failpoint::write("capture.overlay-made")
            .map_err(system("cannot make the disk's next overlay"))?;
        // Before it can be in use: whoever finds this VM without its process puts the overlay on top, which is right
        // whether it was used or is still empty.
        self.record.next_layer = Some(name.clone());
        self.record.save(&self.dir)?;
        failpoint::reached("capture.overlay-saved");
        self.qmp
            .run(BlockdevAdd(overlay_node(&disk::layer_node(name))))
            .await?;
        self.spare = Some(name.clone());
        failpoint::reached("capture.overlay-open");
        Ok(())
    }

    /// Writes out what the disk's file has in the page cache: otherwise `stop` does, while the guest stands still.
    async fn flush_disk(&self) -> Result<(), CaptureError> {
        let Some(top) = self.record.layers.first() else {
            return Ok(());
        };
        let path = self.engine.layout.layer(top);
        blocking(move || {
            File::open(&path)
                .and_then(|file| file.sync_data())
                .map_err(memory("flush the VM's disk"))
        })
        .await
    }

    /// Finds the guest's memory, once for a process. Returns whether its writes are tracked.
    async fn open_memory(&mut self) -> Result<bool, CaptureError> {
        if self.memory.is_none() {
            let blocks = self
                .qmp
                .run(qmp::x_query_ramblock {})
                .await
                .map_err(MachineError::from)?;
            let opened = Memory::open(
                &self.process,
                &blocks.human_readable_text,
                self.engine.track_writes,
                self.record.merge_memory,
                self.fresh,
            )
            .map_err(memory("find the guest's memory"))?;
            if opened.main().used != self.record.hardware.memory_bytes {
                let other = io::Error::other("QEMU says that it has another size");
                return Err(memory("find the guest's memory")(other));
            }
            self.memory = Some(Arc::new(Mutex::new(opened)));
        }
        Ok(lock(&*self.memory_ref()?).is_tracked())
    }

    fn memory_ref(&self) -> Result<Arc<Mutex<Memory>>, CaptureError> {
        self.memory
            .clone()
            .ok_or(CaptureError::Machine(MachineError::NotReady(
                "the guest's memory was not looked at",
            )))
    }

    /// Copies memory, away from the runtime's threads.
    fn copy(
        &self,
        prepared: Prepared,
        step: Step,
    ) -> Result<impl Future<Output = Result<Prepared, CaptureError>> + use<>, CaptureError> {
        let guest = self.memory_ref()?;
        let layout = self.engine.layout.clone();
        let old_base = self.record.delta_base.clone();
        let lineage = self.record.lineage();
        Ok(blocking(move || {
            let mut guest = lock(&guest);
            let mut copier = Copier {
                guest: &mut guest,
                layout: &layout,
                lineage,
                old_base,
                prepared,
            };
            match step {
                Step::Begin => copier.begin()?,
                Step::CatchUp => copier.catch_up()?,
                Step::Last => copier.last()?,
            }
            Ok(copier.prepared)
        }))
    }

    /// Writes the stream, and lets others read what will not change any more.
    async fn write_out(
        &mut self,
        prepared: Prepared,
        moment: Moment,
    ) -> Result<Captured, CaptureError> {
        let begun = Instant::now();
        let Prepared {
            stream,
            base,
            new_base,
            mut since_base,
            mut pages,
            unsifted,
            mut report,
        } = prepared;
        let guest = self.memory_ref()?;
        let (layout, hardware) = (self.engine.layout.clone(), self.record.hardware.clone());
        let (stream_name, base_name) = (stream.clone(), base.clone());
        // All of them: a capture that came no further left a layer behind that only its own process may read.
        let (overlays, frozen) = (self.engine.overlays.clone(), moment.layers.clone());
        let layer_moved = moment.layer_moved;
        let lineage = self.record.lineage();
        let owner = self.record.user.map(|(uid, _)| uid);
        let is_new = new_base.is_some();
        let (written, base_bytes, layer_bytes, since_base) = blocking(move || {
            let main = {
                let mut guest = lock(&guest);
                if guest.is_merged() {
                    let base =
                        File::open(layout.base(&base_name)).map_err(memory("open the base"))?;
                    sift(&base, &mut pages, &unsifted, &mut since_base, &mut guest)?;
                }
                guest.main().clone()
            };
            let devices = untrusted::read(&moment.devices, owner, MOST_DEVICES)
                .map_err(memory("read the devices' state"))?;
            let stream = stream::assemble(
                hardware.machine.name(),
                &main,
                &pages,
                &moment.others,
                &devices,
            )?;
            let path = layout.stream(&stream_name);
            let checksum = write_stream(&path, &stream).map_err(write("stream"))?;
            failpoint::write("capture.stream-written").map_err(write("stream"))?;
            share(&path, lineage).map_err(write("stream"))?;
            failpoint::reached("capture.stream-shared");
            for layer in &frozen {
                overlays.freeze(layer).map_err(write("disk layer"))?;
            }
            failpoint::write("capture.layers-frozen").map_err(write("disk layer"))?;
            let layer_bytes = match (layer_moved, frozen.first()) {
                (true, Some(layer)) => allocated_bytes(
                    &fs::metadata(layout.layer(layer)).map_err(write("disk layer"))?,
                ),
                _ => 0,
            };
            let base_bytes =
                allocated_bytes(&fs::metadata(layout.base(&base_name)).map_err(write("base"))?);
            Ok((
                (stream.len(), checksum),
                base_bytes,
                layer_bytes,
                since_base,
            ))
        })
        .await?;

        if is_new {
            self.record.delta_base = Some(base.clone());
            lock(&*self.memory_ref()?).set_delta(since_base.unwrap_or_default());
        }
        self.record.save(&self.dir).map_err(MachineError::from)?;
        failpoint::reached("capture.saved");
        report.write = begun.elapsed();
        report.note = explain(&report);
        Ok(Captured {
            base,
            layers: moment.layers,
            hardware: self.record.hardware.clone(),
            qemu_version: self.qemu_version().to_owned(),
            base_bytes,
            stream_bytes: written.0,
            stream_checksum: written.1,
            layer_bytes,
            report,
        })
    }
}

/// Waits for the other machines that this one is captured together with.
async fn come_to(with: Option<&Ticket>, stage: Stage) -> Result<(), CaptureError> {
    match with {
        Some(ticket) => ticket.come_to(stage).await,
        None => Ok(()),
    }
}

/// Writes a stream out, and sums it up from the same memory: what the file must give back.
fn write_stream(path: &std::path::Path, stream: &stream::Stream<'_>) -> io::Result<Checksum> {
    let file = File::create(path)?;
    let mut at = 0;
    for part in stream.parts() {
        write_pieces(&file, &part, at)?;
        at += part.len() as u64;
    }
    Ok(checksum::of_parts(&stream.parts()))
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    // A panic while it was held leaves a delta that is too large at worst.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work that blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, CaptureError> {
    spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(CaptureError::Machine(system("the capture's thread ended")(
            io::Error::other(panic),
        )))
    })
}
