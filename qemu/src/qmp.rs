//! One QMP session with a QEMU process: commands with a deadline, and its events.
//!
//! The `qapi` crate has the protocol and the types; this adds what a machine needs of it. A process takes one session at a
//! time, and the one who owns the machine has it.
//!
//! QEMU reads commands a byte at a time (`monitor_can_read`, up to 10.0 at least), which takes it 4 µs each, and as long again for each
//! command: the words are part of what a command costs. It reads the next one while it carries out one. Where several follow on each
//! other whatever becomes of the first, they are said together (`tokio::join!(biased; ...)`): QEMU carries them out in the order in
//! which they were said.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use qapi::{
    Command, ExecuteError,
    futures::{QapiService, QmpStreamTokio},
    qmp::{Event, QmpCommand},
};
use serde::Serialize;
use tokio::{io::WriteHalf, net::UnixStream, sync::mpsc, task::JoinHandle, time::timeout};

type Writer = QmpStreamTokio<WriteHalf<UnixStream>>;

/// How long a command may take. Everything that takes longer is asked for and then waited for by its events.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// Events that nobody has looked at yet. QEMU sends a handful for each command.
const EVENTS: usize = 256;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket could not be opened, or it was closed.
    #[error("QMP {command}: the connection failed")]
    Connection {
        /// The command that was under way.
        command: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// QEMU refused it.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// It did not answer in time.
    #[error("QEMU did not answer {command} within {} s", patience.as_secs())]
    TimedOut {
        /// The command.
        command: &'static str,
        /// How long it was given.
        patience: Duration,
    },
}

/// A session. Ends when it is dropped.
pub struct Qmp {
    service: QapiService<Writer>,
    version: String,
    reader: JoinHandle<()>,
    /// Whether a command was given up: answers cannot be told apart any more.
    is_broken: AtomicBool,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Opens a session on the given socket, and gives its events. The greeting comes when QEMU's main loop runs.
    pub async fn connect(
        socket: &Path,
        patience: Duration,
    ) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        let failed = |source| QmpError::Connection {
            command: "greeting",
            source,
        };
        let negotiate = async {
            let (read, write) = tokio::io::split(UnixStream::connect(socket).await?);
            let greeting = QmpStreamTokio::open_split(read, write).await?;
            let version = greeting.capabilities.QMP.version.qemu.clone();
            let version = format!("{}.{}.{}", version.major, version.minor, version.micro);
            io::Result::Ok((greeting.negotiate().await?, version))
        };
        let (stream, version) = timeout(patience, negotiate)
            .await
            .map_err(|_| QmpError::TimedOut {
                command: "greeting",
                patience,
            })?
            .map_err(failed)?;
        let (service, mut messages) = stream.into_parts();
        let (sender, events) = mpsc::channel(EVENTS);
        let reader = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                match message {
                    // A full channel means that nobody owns the machine any more; what it did is asked for then.
                    Ok(event) => drop(sender.try_send(event)),
                    Err(error) => {
                        tracing::debug!(%error, "QMP session ended");
                        break;
                    }
                }
            }
        });
        Ok((
            Self {
                service,
                version,
                reader,
                is_broken: AtomicBool::new(false),
            },
            events,
        ))
    }

    /// QEMU's version, such as "10.0.2".
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Carries out a command. Must not be given up half-way: the session ends when an answer finds nobody. After a command that
    /// was not answered in time no other is carried out: the machine must be adopted anew.
    pub async fn run<C: Command + QmpCommand>(&self, command: C) -> Result<C::Ok, QmpError> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(QmpError::Connection {
                command: C::NAME,
                source: io::Error::other("an earlier command was not answered"),
            });
        }
        match timeout(COMMAND_TIMEOUT, self.service.execute(command)).await {
            Err(_) => {
                self.is_broken.store(true, Ordering::Relaxed);
                Err(QmpError::TimedOut {
                    command: C::NAME,
                    patience: COMMAND_TIMEOUT,
                })
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ExecuteError::Io(source))) => Err(QmpError::Connection {
                command: C::NAME,
                source,
            }),
            Ok(Err(ExecuteError::Qapi(error))) => Err(QmpError::Refused {
                command: C::NAME,
                reason: error.desc.trim_end().to_owned(),
            }),
        }
    }
}

/// `blockdev-add` with the options as the command line has them, so that a chain is described in one place.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub serde_json::Value);

/// `object-add` with the options as the command line has them.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct ObjectAdd(pub serde_json::Value);

impl QmpCommand for ObjectAdd {}
impl Command for ObjectAdd {
    const NAME: &'static str = "object-add";
    const ALLOW_OOB: bool = false;
    type Ok = qapi::Empty;
}

/// `blockdev-reopen` with the options as the command line has them.
#[derive(Debug, Clone, Serialize)]
pub struct BlockdevReopen {
    /// One set of options for each node.
    pub options: Vec<serde_json::Value>,
}

impl QmpCommand for BlockdevReopen {}
impl Command for BlockdevReopen {
    const NAME: &'static str = "blockdev-reopen";
    const ALLOW_OOB: bool = false;
    type Ok = qapi::Empty;
}

/// `blockdev-set-active`, from QEMU 10.0 on, for all nodes.
#[derive(Debug, Clone, Serialize)]
pub struct BlockdevSetActive {
    /// Whether they are used or left to another process.
    pub active: bool,
}

impl QmpCommand for BlockdevSetActive {}
impl Command for BlockdevSetActive {
    const NAME: &'static str = "blockdev-set-active";
    const ALLOW_OOB: bool = false;
    type Ok = qapi::Empty;
}

impl QmpCommand for BlockdevAdd {}
impl Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    const ALLOW_OOB: bool = false;
    type Ok = qapi::Empty;
}
