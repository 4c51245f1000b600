//! What can be asked of a VM: the messages to its task.

use std::{os::fd::OwnedFd, time::Duration};

use qemu::{
    capture::{Afterwards, CaptureError, Captured, Expected, Mode, Ticket},
    checksum::CheckedStream,
    machine::{Launch, Shape},
    record::{LayerName, StreamName, StreamRef, VmName},
};
use tokio::{sync::oneshot, time::Instant};

/// What the guest of a loaded process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It stands still.
    Pause,
    /// It runs.
    Run,
    /// It runs, as it did on another node until it was held to come here.
    Arrive,
}

impl Then {
    /// Of one that is to stand still or not.
    pub fn unless_paused(paused: bool) -> Self {
        if paused { Self::Pause } else { Self::Run }
    }
}

/// Something that is asked of a VM.
#[derive(Debug)]
pub enum Command {
    /// Start it from its disk.
    Boot {
        /// How.
        launch: Box<Launch>,
        /// How long its guest may take until it says that it is ready.
        patience: Duration,
    },
    /// Take note that it could not be started.
    CannotStart {
        /// Which boot that was.
        boot: u64,
        /// Why.
        problem: String,
    },
    /// Start it from a snapshot.
    Restore {
        /// How.
        launch: Box<Launch>,
        /// The snapshot's stream.
        stream: StreamRef,
        /// Whether it stands still afterwards.
        paused: bool,
    },
    /// Let it stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// Press its power button, and end it when that does not help.
    Stop,
    /// End it at once.
    Kill,
    /// End it as its guest asks.
    Exit {
        /// The guest's code.
        code: i32,
        /// Answered when it has ended.
        done: oneshot::Sender<()>,
    },
    /// End it, and the task with it. What is left of it are files.
    Destroy,
    /// The same, for another process that takes the VM's place: it is answered as soon as nothing of this one can run any more and
    /// its folder is gone, while the process is still being taken down.
    MakeWay {
        /// Answered then.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// End it: its moment is kept elsewhere.
    PutAway {
        /// Answered when it has no process.
        done: oneshot::Sender<()>,
    },
    /// Have the layers of its disk not change any more. It has no process, and is not started meanwhile.
    FreezeDisk {
        /// What it writes to from then on: a name that was never used.
        layer: LayerName,
        /// Size of its disk, bytes.
        disk_bytes: u64,
        /// Answered with them, the newest first; with `None` when it has never run here.
        done: oneshot::Sender<Result<Option<Vec<LayerName>>, String>>,
    },
    /// Start a process that waits for a stream.
    Prestart {
        /// How.
        launch: Box<Launch>,
        /// Answered when it waits.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Give a process that was started without a shape its memory and its disk.
    Shape {
        /// Which.
        shape: Box<Shape>,
        /// Answered when it waits for its stream.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Load a stream into it.
    Load {
        /// Which.
        stream: CheckedStream,
        /// Answered when it is loaded.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Make a loaded process the VM of this name, and let it go on unless it is to stand still.
    Go {
        /// What it goes by from now on.
        name: VmName,
        /// Which boot of that VM it is.
        boot: u64,
        /// What its guest does.
        then: Then,
        /// Answered with the time at which it went on.
        done: oneshot::Sender<Result<Instant, String>>,
    },
    /// Give the end by which it is reached on its group's network.
    GroupEnd {
        /// Answered with that and the process.
        done: oneshot::Sender<Result<(OwnedFd, u32), String>>,
    },
    /// Say what a capture will refer to.
    Expect {
        /// The snapshot.
        stream: StreamName,
        /// Size of the VM's disk, bytes.
        disk_bytes: u64,
        /// Answered at once.
        done: oneshot::Sender<Result<Expected, CaptureError>>,
    },
    /// Do what can be done ahead of a capture.
    Prepare {
        /// The snapshot.
        stream: StreamName,
        /// The overlay that its disk goes on with: a name that was never used.
        layer: LayerName,
        /// Size of the VM's disk, bytes.
        disk_bytes: u64,
        /// How it will be captured.
        mode: Mode,
    },
    /// Forget what was done ahead for this snapshot.
    Unprepare(StreamName),
    /// Capture it.
    Capture {
        /// The snapshot.
        stream: StreamName,
        /// The overlay that its disk goes on with: a name that was never used.
        layer: LayerName,
        /// Size of its disk, bytes.
        disk_bytes: u64,
        /// How.
        mode: Mode,
        /// What becomes of its guest then.
        afterwards: Afterwards,
        /// Its part in a capture of several.
        with: Option<Ticket>,
        /// Answered when the snapshot's files are written.
        done: oneshot::Sender<Result<Captured, CaptureError>>,
    },
}
