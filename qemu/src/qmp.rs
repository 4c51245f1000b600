//! One QMP session with a QEMU process: commands with a deadline, and its events.
//!
//! The `qapi` crate has the commands' and events' types; the session is our own, for two reasons. QEMU reads commands a byte at a time
//! (`monitor_can_read`, up to 10.0 at least), which takes it 4 µs each and is as much of a command's cost as what it does: so a command is
//! written without what may be left out. And it reads the next one while it carries out one: where several follow on each other
//! whatever becomes of the first, they are said together (`tokio::join!(biased; ...)`), carried out and answered in the order in which
//! they were said. The crate's session waits for each answer before it writes the next command. Ids tell the answers from those to
//! commands of a session before, which come to whoever is connected then.
//!
//! A process takes one session at a time, and the one who owns the machine has it.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt as _;
use qapi::{
    Command,
    qmp::{Event, QapiCapabilities, QmpCommand},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt as _,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::codec::{FramedRead, LinesCodec};

/// How long a command may take. Everything that takes longer is asked for and then waited for by its events.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// Events that nobody has looked at yet. QEMU sends a handful for each command.
const EVENTS: usize = 256;

/// The longest line that is read. The longest that QEMU sends is a list of some dozens of block nodes.
const LINE_BYTES: usize = 4 << 20;

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
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
    version: String,
    reader: JoinHandle<()>,
    /// The next command's id. A session begins where none before is likely to have been.
    next: AtomicU64,
    /// Whether a command was given up: nothing is known of the machine any more.
    is_broken: AtomicBool,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A command as it is written.
#[derive(Serialize)]
struct Said {
    execute: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<Value>,
    id: u64,
}

/// What a line is that came.
#[derive(Deserialize)]
struct Heard {
    event: Option<String>,
    id: Option<u64>,
    #[serde(rename = "return")]
    done: Option<Value>,
    error: Option<Refusal>,
}

/// Why QEMU refused a command.
#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

type Answer = Result<Value, Refusal>;

/// Those who wait, each for the answer to a command with this id, in the commands' order.
type Queue = VecDeque<(u64, oneshot::Sender<Answer>)>;

/// Who waits for an answer; `None` when the session has ended.
struct Waiting(Mutex<Option<Queue>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<Queue>> {
        // Changed by single insertions and removals.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: u64) -> Option<oneshot::Receiver<Answer>> {
        let (sender, receiver) = oneshot::channel();
        self.lock().as_mut()?.push_back((id, sender));
        Some(receiver)
    }

    /// Who waits for this answer; nobody when it is for a command of an earlier session, which QEMU was still carrying out.
    fn take(&self, id: Option<u64>) -> Option<oneshot::Sender<Answer>> {
        let next = self
            .lock()
            .as_mut()?
            .pop_front_if(|(next, _)| Some(*next) == id)?;
        Some(next.1)
    }

    fn end(&self) {
        *self.lock() = None;
    }
}

type Lines = FramedRead<OwnedReadHalf, LinesCodec>;

async fn next_line(lines: &mut Lines) -> io::Result<String> {
    match lines.next().await {
        Some(Ok(line)) => Ok(line),
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Hands out what QEMU says, until it says no more.
async fn read(
    mut lines: Lines,
    waiting: Arc<Waiting>,
    events: mpsc::Sender<Event>,
) -> io::Result<()> {
    loop {
        let line = next_line(&mut lines).await?;
        let heard: Heard = serde_json::from_str(&line)?;
        let answer = match (heard.event, heard.error) {
            (Some(name), _) => {
                match serde_json::from_str(&line) {
                    // A full channel means that nobody owns the machine any more; what it did is asked for then.
                    Ok(event) => drop(events.try_send(event)),
                    // A newer QEMU's.
                    Err(error) => tracing::debug!(name, %error, "an event of an unknown form"),
                }
                continue;
            }
            (None, Some(refusal)) => Err(refusal),
            (None, None) => Ok(heard.done.unwrap_or_default()),
        };
        match waiting.take(heard.id) {
            // Whoever gave up waiting does not want it.
            Some(waits) => drop(waits.send(answer)),
            None => tracing::debug!(id = ?heard.id, "an answer to an earlier session"),
        }
    }
}

fn first_id() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64 % 100_000_000)
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
        let greet = async {
            let (read, write) = UnixStream::connect(socket).await?.into_split();
            let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(LINE_BYTES));
            let greeting: QapiCapabilities = serde_json::from_str(&next_line(&mut lines).await?)?;
            io::Result::Ok((lines, write, greeting.QMP.version.qemu))
        };
        let (lines, write, version) = timeout(patience, greet)
            .await
            .map_err(|_| QmpError::TimedOut {
                command: "greeting",
                patience,
            })?
            .map_err(failed)?;
        let waiting = Arc::new(Waiting(Mutex::new(Some(VecDeque::new()))));
        let (sender, events) = mpsc::channel(EVENTS);
        let answers = Arc::clone(&waiting);
        let reader = tokio::spawn(async move {
            if let Err(error) = read(lines, Arc::clone(&answers), sender).await {
                tracing::debug!(%error, "QMP session ended");
            }
            answers.end();
        });
        let session = Self {
            write: tokio::sync::Mutex::new(write),
            waiting,
            version: format!("{}.{}.{}", version.major, version.minor, version.micro),
            reader,
            next: AtomicU64::new(first_id()),
            is_broken: AtomicBool::new(false),
        };
        session
            .run(qapi::qmp::qmp_capabilities { enable: None })
            .await?;
        Ok((session, events))
    }

    /// QEMU's version, such as "10.0.2".
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Carries out a command. Must not be given up half-way: it may be written in part. After a command that was not answered in time
    /// no other is carried out: the machine must be adopted anew.
    pub async fn run<C: Command + QmpCommand>(&self, command: C) -> Result<C::Ok, QmpError> {
        let failed = |source| QmpError::Connection {
            command: C::NAME,
            source,
        };
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(failed(io::Error::other(
                "an earlier command was not answered",
            )));
        }
        match timeout(COMMAND_TIMEOUT, self.say(&command)).await {
            Err(_) => {
                self.is_broken.store(true, Ordering::Relaxed);
                Err(QmpError::TimedOut {
                    command: C::NAME,
                    patience: COMMAND_TIMEOUT,
                })
            }
            Ok(Err(error)) => Err(failed(error)),
            Ok(Ok(Ok(value))) => serde_json::from_value(value)
                .map_err(io::Error::from)
                .map_err(failed),
            Ok(Ok(Err(refusal))) => Err(QmpError::Refused {
                command: C::NAME,
                reason: refusal.desc.trim_end().to_owned(),
            }),
        }
    }

    /// Writes a command and waits for its answer.
    async fn say<C: Command>(&self, command: &C) -> io::Result<Answer> {
        let arguments = serde_json::to_value(command)?;
        let has_any = arguments.as_object().is_some_and(|all| !all.is_empty());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Said {
            execute: C::NAME,
            arguments: has_any.then_some(arguments),
            id,
        })?;
        line.push(b'\n');
        let answer = {
            let mut write = self.write.lock().await;
            // While nobody else writes: answers come in the order of what was written.
            let answer = self.waiting.add(id).ok_or(io::ErrorKind::NotConnected)?;
            write.write_all(&line).await?;
            answer
        };
        answer
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

/// `blockdev-add` with the options as the command line has them, so that a chain is described in one place.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub Value);

/// `object-add` with the options as the command line has them.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct ObjectAdd(pub Value);

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
    pub options: Vec<Value>,
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt as _, BufReader},
        net::{UnixListener, unix::OwnedReadHalf},
    };

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#;

    /// Plays QEMU.
    struct Peer {
        lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
        write: OwnedWriteHalf,
    }

    impl Peer {
        async fn say(&mut self, line: &str) {
            self.write.write_all(line.as_bytes()).await.unwrap();
            self.write.write_all(b"\r\n").await.unwrap();
        }

        /// A command without its id, and that.
        async fn hear(&mut self) -> (String, u64) {
            let line = self.lines.next_line().await.unwrap().unwrap();
            let (command, id) = line.rsplit_once(",\"id\":").unwrap();
            (
                format!("{command}}}"),
                id.trim_end_matches('}').parse().unwrap(),
            )
        }

        async fn done(&mut self, id: u64) {
            self.say(&format!(r#"{{"return": {{}}, "id": {id}}}"#))
                .await;
        }
    }

    async fn session() -> (Qmp, mpsc::Receiver<Event>, Peer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let peer = async {
            let (read, write) = listener.accept().await.unwrap().0.into_split();
            let lines = BufReader::new(read).lines();
            let mut peer = Peer { lines, write };
            peer.say(GREETING).await;
            // What a killed agent had asked for.
            peer.done(200_000_000).await;
            let (command, id) = peer.hear().await;
            assert_eq!(command, r#"{"execute":"qmp_capabilities"}"#);
            peer.done(200_000_001).await;
            peer.done(id).await;
            peer
        };
        let connected = Qmp::connect(&path, COMMAND_TIMEOUT);
        let (connected, peer) = tokio::join!(connected, peer);
        let (qmp, events) = connected.unwrap();
        assert_eq!(qmp.version(), "10.0.2");
        (qmp, events, peer)
    }

    #[tokio::test]
    async fn commands_are_said_together_and_answered_in_their_order() {
        let (qmp, mut events, mut peer) = session().await;
        let add = BlockdevAdd(serde_json::json!({"driver": "null-co"}));
        let commands = async {
            tokio::join!(biased; qmp.run(qapi::qmp::stop {}), qmp.run(add), qmp.run(qapi::qmp::cont {}))
        };
        let qemu = async {
            // All three are there before the first is answered.
            let (stop, first) = peer.hear().await;
            assert_eq!(stop, r#"{"execute":"stop"}"#);
            let (add, second) = peer.hear().await;
            let wanted = r#"{"execute":"blockdev-add","arguments":{"driver":"null-co"}}"#;
            assert_eq!(add, wanted);
            let (cont, third) = peer.hear().await;
            assert_eq!(cont, r#"{"execute":"cont"}"#);
            peer.say(r#"{"event": "FROM_THE_FUTURE", "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}}"#)
                .await;
            peer.done(first).await;
            peer.say(r#"{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}"#)
                .await;
            peer.say(&format!(r#"{{"error": {{"class": "GenericError", "desc": "no such driver"}}, "id": {second}}}"#))
                .await;
            peer.done(third).await;
        };
        let ((stopped, added, went_on), ()) = tokio::join!(commands, qemu);
        stopped.unwrap();
        went_on.unwrap();
        let refused = added.unwrap_err().to_string();
        assert_eq!(refused, "QEMU refused blockdev-add: no such driver");
        assert!(matches!(events.recv().await, Some(Event::STOP { .. })));
    }

    #[tokio::test]
    async fn whoever_waits_when_the_process_ends_is_told() {
        let (qmp, mut events, mut peer) = session().await;
        let qemu = async {
            peer.hear().await;
            drop(peer);
        };
        let (ended, ()) = tokio::join!(qmp.run(qapi::qmp::cont {}), qemu);
        assert!(
            matches!(ended, Err(QmpError::Connection { .. })),
            "{ended:?}"
        );
        assert!(events.recv().await.is_none());
        let later = qmp.run(qapi::qmp::cont {}).await;
        assert!(
            matches!(later, Err(QmpError::Connection { .. })),
            "{later:?}"
        );
    }
}
