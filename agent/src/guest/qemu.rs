//! QEMU's own guest agent, where an image has no other: a JSON object in a line each way, one question at a time (QEMU's
//! documentation, `interop/qemu-ga-ref`). It runs programs and tells of them when they have ended, reads and writes files, and sets the
//! clock.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use ulid::Ulid;

use super::{Contact, Introduction, Unheard, clock::Bounds, now_ns, session::Identities, shown};
use guest::channel::mux::Broken;

/// Questions that wait for their turn.
const WAITING: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the first may take, before it is asked for again; twice as long each time.
const FIRST_PATIENCE: Duration = Duration::from_millis(200);
/// And at most so long.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer: what the agent keeps of a program's output, encoded, twice, and more.
const LONGEST_ANSWER: u64 = 48 << 20;
/// The most input that a program is given at its start.
pub const MOST_INPUT: usize = 1 << 20;
/// Between two looks whether a program has ended; half as long again each time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// And at most so long.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How often the clock is set at most until it is known to be right, and looked at each time: the host may be too busy to know, or
/// the agent lie.
const CLOCK_SETTINGS: usize = 8;
const CLOCK_LOOKS: usize = 8;
/// What comes before the answer that is waited for, as the agent's documentation has it.
const DELIMITER: u8 = 0xff;
/// The most that is shown of what it says, characters.
const LONGEST_SHOWN: usize = 300;

/// An agent that answers.
#[derive(Debug)]
pub struct Qemu {
    /// Which incarnation of the VM it is in.
    pub incarnation: String,
    /// Since when it answers.
    pub since: Instant,
    /// Its version.
    pub version: String,
    /// What failed that was asked of it at once.
    pub failed: Vec<String>,
    asked: mpsc::Sender<Asked>,
}

/// What waits for its turn.
#[derive(Debug)]
enum Asked {
    Question(Question),
    /// To have the clock set.
    Clock,
}

#[derive(Debug)]
struct Question {
    command: &'static str,
    arguments: Value,
    answer: oneshot::Sender<Result<Value, Unheard>>,
}

/// What became of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code, where it has one.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it printed.
    pub out: Vec<u8>,
    /// What it complained of.
    pub err: Vec<u8>,
}

impl Qemu {
    async fn ask(&self, command: &'static str, arguments: Value) -> Result<Value, Unheard> {
        let (answer, answered) = oneshot::channel();
        let question = Question {
            command,
            arguments,
            answer,
        };
        self.asked
            .send(Asked::Question(question))
            .await
            .map_err(|_| Unheard::Silent)?;
        answered.await.map_err(|_| Unheard::Silent)?
    }

    /// Asks for something, when its turn comes, without waiting for what becomes of it.
    fn tell(&self, command: &'static str, arguments: Value) {
        let (answer, _nobody_waits) = oneshot::channel();
        let question = Question {
            command,
            arguments,
            answer,
        };
        if self.asked.try_send(Asked::Question(question)).is_err() {
            tracing::debug!(command, "too much is asked of a guest's agent");
        }
    }

    /// Sets the clock, when its turn comes.
    pub fn tell_time(&self) {
        if self.asked.try_send(Asked::Clock).is_err() {
            tracing::debug!("too much is asked of a guest's agent to set its clock");
        }
    }

    /// Runs a program with this input, and waits for its end. It goes on when nobody waits any more: the agent cannot end it.
    pub async fn exec(
        &self,
        argv: &[String],
        env: &[String],
        input: &[u8],
    ) -> Result<Ran, Unheard> {
        let (path, arguments) = argv
            .split_first()
            .ok_or(Unheard::Unable("there is no command"))?;
        let started = self
            .ask(
                "guest-exec",
                json!({
                    "path": path,
                    "arg": arguments,
                    "env": env,
                    "input-data": STANDARD.encode(input),
                    "capture-output": true,
                }),
            )
            .await?;
        let pid = &started["pid"];
        let mut pause = FIRST_PAUSE;
        loop {
            let status = self.ask("guest-exec-status", json!({ "pid": pid })).await?;
            if status["exited"] == true {
                return ran(&status);
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }
}

/// A file in a guest that is open. It is closed when this is dropped, without anybody knowing whether that worked.
#[derive(Debug)]
pub struct OpenFile<'a> {
    qemu: &'a Qemu,
    /// The agent's number for it, until it is closed.
    handle: Value,
}

impl Qemu {
    /// Opens a file as fopen(3) does, in a mode such as "r" or "w".
    pub async fn open(&self, path: &str, mode: &str) -> Result<OpenFile<'_>, Unheard> {
        let open = json!({ "path": path, "mode": mode });
        let handle = self.ask("guest-file-open", open).await?;
        Ok(OpenFile { qemu: self, handle })
    }
}

impl OpenFile<'_> {
    /// Reads on, so many bytes at most; none at its end.
    pub async fn read(&self, most: usize) -> Result<Vec<u8>, Unheard> {
        let read = json!({ "handle": self.handle, "count": most });
        let answer = self.qemu.ask("guest-file-read", read).await?;
        let bytes = decoded(&answer, "buf-b64")?;
        if bytes.len() > most || (bytes.is_empty() && answer["eof"] != true) {
            return Err(Unheard::Unsound(
                "it read more of a file than it was asked for, or nothing".to_owned(),
            ));
        }
        Ok(bytes)
    }

    /// Writes on.
    pub async fn write(&self, mut bytes: &[u8]) -> Result<(), Unheard> {
        while !bytes.is_empty() {
            let write = json!({ "handle": self.handle, "buf-b64": STANDARD.encode(bytes) });
            let answer = self.qemu.ask("guest-file-write", write).await?;
            let count = answer["count"]
                .as_u64()
                .and_then(|count| usize::try_from(count).ok());
            bytes = match count.and_then(|count| bytes.get(count..)) {
                Some(rest) if rest.len() < bytes.len() => rest,
                _ => {
                    return Err(Unheard::Unsound(
                        "it wrote nothing of what it was given, or more".to_owned(),
                    ));
                }
            };
        }
        Ok(())
    }

    /// Closes it, with which all that was written is in the file.
    pub async fn close(mut self) -> Result<(), Unheard> {
        let close = json!({ "handle": self.handle.take() });
        self.qemu.ask("guest-file-close", close).await.map(drop)
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            let close = json!({ "handle": self.handle.take() });
            self.qemu.tell("guest-file-close", close);
        }
    }
}

fn decoded(answer: &Value, field: &str) -> Result<Vec<u8>, Unheard> {
    let text = answer[field].as_str().unwrap_or_default();
    STANDARD
        .decode(text)
        .map_err(|_| Unheard::Unsound(format!("{field} is not base64")))
}

fn ran(status: &Value) -> Result<Ran, Unheard> {
    let number = |field: &str| {
        status[field]
            .as_i64()
            .and_then(|number| i32::try_from(number).ok())
    };
    if status["out-truncated"] == true || status["err-truncated"] == true {
        return Err(Unheard::Unable(
            "it keeps no more than 16 MiB of a program's output",
        ));
    }
    Ok(Ran {
        code: number("exitcode"),
        signal: number("signal"),
        out: decoded(status, "out-data")?,
        err: decoded(status, "err-data")?,
    })
}

/// Speaks to it until the connection ends, or the VM is another.
pub(super) async fn speak(
    identities: &mut Identities,
    contact: &watch::Sender<Contact>,
    connection: UnixStream,
    mut known: Arc<Introduction>,
) {
    let mut wire = BufReader::new(connection);
    loop {
        let speaking = serve(&mut wire, contact, &known);
        let ended = tokio::select! {
            ended = speaking => Some(ended),
            _changed = identities.changed() => None,
        };
        contact.send_replace(Contact::Silent);
        match (ended, identities.borrow_and_update().clone()) {
            (Some(Err(error)), _) => {
                tracing::debug!(%error, "the connection to a guest's agent ended");
                return;
            }
            (_, Some(another)) => known = another,
            (_, None) => return,
        }
    }
}

type Wire = BufReader<UnixStream>;

/// Until the connection ends.
async fn serve(
    wire: &mut Wire,
    contact: &watch::Sender<Contact>,
    known: &Introduction,
) -> io::Result<()> {
    synchronize(wire).await?;
    let mut failed = Vec::new();
    if let Err(problem) = set_clock(wire).await? {
        failed.push(shown(&format!("clock: {problem}"), LONGEST_SHOWN));
    }
    let info = question(wire, "guest-info", &json!({})).await?;
    let version = info
        .ok()
        .and_then(|info| Some(info["version"].as_str()?.to_owned()));
    let (ask, mut asked) = mpsc::channel(WAITING);
    contact.send_replace(Contact::Qemu(Arc::new(Qemu {
        incarnation: known.identity.incarnation.clone(),
        since: Instant::now(),
        version: shown(&version.unwrap_or_default(), LONGEST_SHOWN),
        failed,
        asked: ask,
    })));
    while let Some(asked) = asked.recv().await {
        match asked {
            Asked::Question(question) => answer(wire, question).await?,
            Asked::Clock => set_clock_again(wire).await?,
        }
    }
    Ok(())
}

/// Asks what somebody waits for.
async fn answer(wire: &mut Wire, asked: Question) -> io::Result<()> {
    let asking = question(wire, asked.command, &asked.arguments);
    let answered = match timeout(PATIENCE, asking).await {
        Ok(answered) => answered?
            .map_err(|problem| Unheard::Broken(Broken::Failed(shown(&problem, LONGEST_SHOWN)))),
        Err(_) => {
            synchronize(wire).await?;
            Err(Unheard::Broken(Broken::Failed(format!(
                "the guest's agent did not answer within {} s",
                PATIENCE.as_secs()
            ))))
        }
    };
    // Whoever asked may be gone.
    let _gone = asked.answer.send(answered);
    Ok(())
}

/// Sets the clock of a guest that stood still. Nobody waits for it.
async fn set_clock_again(wire: &mut Wire) -> io::Result<()> {
    match timeout(PATIENCE, set_clock(wire)).await {
        Ok(set) => {
            if let Err(problem) = set? {
                let problem = shown(&problem, LONGEST_SHOWN);
                tracing::warn!(problem, "a guest's clock cannot be set");
            }
        }
        Err(_) => {
            tracing::warn!("a guest's clock was not set: its agent does not answer");
            synchronize(wire).await?;
        }
    }
    Ok(())
}

/// Sets the clock, and looks at it afterwards: what it is told takes its time to arrive on a busy host, so that it is told a later time
/// until what it shows is known to be little off. Gives what the agent has against it.
async fn set_clock(wire: &mut Wire) -> io::Result<Result<(), String>> {
    let mut ahead: i64 = 0;
    for _ in 0..CLOCK_SETTINGS {
        let time = json!({ "time": now_ns().saturating_add_signed(ahead) });
        if let Err(problem) = question(wire, "guest-set-time", &time).await? {
            return Ok(Err(problem));
        }
        let mut known = Bounds::default();
        for _ in 0..CLOCK_LOOKS {
            let before = now_ns();
            let shown = match question(wire, "guest-get-time", &json!({})).await? {
                Ok(shown) => shown,
                Err(problem) => return Ok(Err(problem)),
            };
            let Some(shown) = shown.as_u64() else {
                return Ok(Err("it does not say what time it is".to_owned()));
            };
            known.narrow(shown, before, now_ns());
            if known.is_right() {
                return Ok(Ok(()));
            }
            if let Some(shift) = known.shift() {
                ahead = ahead.saturating_add(shift);
                break;
            }
        }
    }
    tracing::debug!("it is not known whether a guest's clock is right: its host is busy");
    Ok(Ok(()))
}

/// Asks until the agent answers that, and nothing that was owed to somebody before is left.
async fn synchronize(wire: &mut Wire) -> io::Result<()> {
    let mut patience = FIRST_PATIENCE;
    loop {
        let id = (Ulid::new().0 as u32) >> 1;
        let ask = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        wire.write_all(&[DELIMITER]).await?;
        wire.write_all(format!("{ask}\n").as_bytes()).await?;
        let answered = async {
            loop {
                pass_delimiter(wire).await?;
                let line = line(wire).await?;
                let answer: Value = serde_json::from_slice(&line).unwrap_or_default();
                if answer["return"] == id {
                    return io::Result::Ok(());
                }
            }
        };
        match timeout(patience, answered).await {
            Ok(answered) => return answered,
            Err(_) => patience = (patience * 2).min(LONGEST_PATIENCE),
        }
    }
}

/// Reads on to what follows a delimiter.
async fn pass_delimiter(wire: &mut Wire) -> io::Result<()> {
    loop {
        let bytes = wire.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let found = bytes.iter().position(|byte| *byte == DELIMITER);
        let passed = found.map_or(bytes.len(), |at| at + 1);
        wire.consume(passed);
        if found.is_some() {
            return Ok(());
        }
    }
}

async fn line(wire: &mut Wire) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let count = wire
        .take(LONGEST_ANSWER)
        .read_until(b'\n', &mut line)
        .await?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if count as u64 == LONGEST_ANSWER {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an answer of the guest's agent has no end",
        ));
    }
    Ok(line)
}

/// Asks, and gives the answer, or what the agent has against the question.
async fn question(
    wire: &mut Wire,
    command: &str,
    arguments: &Value,
) -> io::Result<Result<Value, String>> {
    let ask = json!({"execute": command, "arguments": arguments});
    wire.write_all(format!("{ask}\n").as_bytes()).await?;
    let line = line(wire).await?;
    let mut answer: Value = serde_json::from_slice(&line)?;
    Ok(match answer.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(answer["error"]["desc"]
            .as_str()
            .unwrap_or("it gave no reason")
            .to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::iter;

    use tokio::task::JoinSet;

    use super::*;

    /// An agent that answers what it is asked for, one line after the other.
    async fn agent(mut socket: UnixStream, answers: Vec<(&'static str, Value)>) {
        // What a parent's agent was owed.
        socket.write_all(b"{\"return\": 7}\n{\"ret").await.unwrap();
        let mut wire = BufReader::new(socket);
        let mut answers = answers.into_iter();
        loop {
            let mut text = Vec::new();
            if wire.read_until(b'\n', &mut text).await.unwrap() == 0 {
                return;
            }
            let text: Vec<u8> = text.into_iter().filter(|byte| *byte != DELIMITER).collect();
            let ask: Value = serde_json::from_slice(&text).unwrap();
            let answer = match ask["execute"].as_str().unwrap() {
                "guest-sync-delimited" => {
                    wire.write_all(&[DELIMITER]).await.unwrap();
                    json!({"return": ask["arguments"]["id"]})
                }
                command => {
                    let (expected, answer) = answers.next().unwrap();
                    assert_eq!(command, expected);
                    answer
                }
            };
            wire.write_all(format!("{answer}\n").as_bytes())
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_program_is_run_and_its_end_is_told() {
        let (near, far) = UnixStream::pair().unwrap();
        let done = json!({"return": {"exited": true, "exitcode": 3, "out-data": STANDARD.encode("out"), "err-data": STANDARD.encode("err")}});
        let fake = tokio::spawn(agent(
            far,
            vec![
                ("guest-set-time", json!({"error": {"desc": "no clock"}})),
                ("guest-info", json!({"return": {"version": "7.2"}})),
                ("guest-exec", json!({"return": {"pid": 5}})),
                ("guest-exec-status", json!({"return": {"exited": false}})),
                ("guest-exec-status", done),
            ],
        ));
        let (qemu, _speaking) = heard(near).await;
        assert_eq!(
            (qemu.version.as_str(), &qemu.failed[..]),
            ("7.2", &["clock: no clock".to_owned()][..])
        );
        let ran = qemu.exec(&["sh".to_owned()], &[], b"in").await.unwrap();
        let expected = Ran {
            code: Some(3),
            signal: None,
            out: b"out".to_vec(),
            err: b"err".to_vec(),
        };
        assert_eq!(ran, expected);
        fake.abort();
    }

    #[tokio::test]
    async fn files_are_read_and_written_by_pieces_and_what_cannot_be_is_not_believed() {
        let (near, far) = UnixStream::pair().unwrap();
        let fake = tokio::spawn(agent(
            far,
            vec![
                ("guest-set-time", json!({"error": {"desc": "no clock"}})),
                ("guest-info", json!({"return": {"version": "7.2"}})),
                ("guest-file-open", json!({"return": 9})),
                (
                    "guest-file-write",
                    json!({"return": {"count": 2, "eof": false}}),
                ),
                (
                    "guest-file-write",
                    json!({"return": {"count": 1, "eof": false}}),
                ),
                (
                    "guest-file-read",
                    json!({"return": {"count": 1, "buf-b64": STANDARD.encode("x"), "eof": false}}),
                ),
                (
                    "guest-file-read",
                    json!({"return": {"count": 0, "buf-b64": "", "eof": true}}),
                ),
                (
                    "guest-file-read",
                    json!({"return": {"count": 0, "buf-b64": "", "eof": false}}),
                ),
                (
                    "guest-file-write",
                    json!({"return": {"count": 7, "eof": false}}),
                ),
                ("guest-file-close", json!({"return": {}})),
                (
                    "guest-file-open",
                    json!({"error": {"desc": "no such file"}}),
                ),
            ],
        ));
        let (qemu, _speaking) = heard(near).await;
        let file = qemu.open("/a", "r+").await.unwrap();
        file.write(b"abc").await.unwrap();
        assert_eq!(file.read(4).await.unwrap(), b"x");
        assert_eq!(file.read(4).await.unwrap(), b"");
        for unsound in [file.read(4).await.map(drop), file.write(b"abc").await] {
            assert!(matches!(unsound, Err(Unheard::Unsound(_))), "{unsound:?}");
        }
        file.close().await.unwrap();
        let refused = qemu.open("/b", "r").await.unwrap_err();
        assert!(refused.to_string().contains("no such file"), "{refused}");
        fake.abort();
    }

    /// An agent with a clock that is late by what it takes it to hear of the time.
    async fn slow_clock(socket: UnixStream, takes: Duration, ahead: watch::Sender<i64>) {
        let mut wire = BufReader::new(socket);
        loop {
            let mut text = String::new();
            if wire.read_line(&mut text).await.unwrap() == 0 {
                return;
            }
            let ask: Value = serde_json::from_str(&text).unwrap();
            let answer = match ask["execute"].as_str().unwrap() {
                "guest-set-time" => {
                    sleep(takes).await;
                    let time = ask["arguments"]["time"].as_u64().unwrap();
                    ahead.send_replace(time as i64 - now_ns() as i64);
                    json!({})
                }
                "guest-get-time" => json!(now_ns().saturating_add_signed(*ahead.borrow())),
                other => panic!("it is asked for {other}"),
            };
            let line = format!("{}\n", json!({ "return": answer }));
            wire.write_all(line.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_clock_is_right_however_long_it_takes_to_tell_it() {
        let (near, far) = UnixStream::pair().unwrap();
        let (ahead, known) = watch::channel(0);
        let mut fake = JoinSet::new();
        fake.spawn(slow_clock(far, Duration::from_millis(300), ahead));
        let mut wire = BufReader::new(near);
        set_clock(&mut wire).await.unwrap().unwrap();
        let off = known.borrow().abs();
        assert!(off < 50_000_000, "it is off by {off} ns");
    }

    #[tokio::test]
    async fn a_clock_that_shows_what_it_likes_is_left_to_itself() {
        let (near, far) = UnixStream::pair().unwrap();
        let lie = json!({ "return": u64::MAX });
        let pair = [
            ("guest-set-time", json!({ "return": {} })),
            ("guest-get-time", lie),
        ];
        let mut fake = JoinSet::new();
        let answers = iter::repeat_n(pair, CLOCK_SETTINGS).flatten().collect();
        fake.spawn(agent(far, answers));
        let mut wire = BufReader::new(near);
        // What a parent's agent was owed.
        synchronize(&mut wire).await.unwrap();
        set_clock(&mut wire).await.unwrap().unwrap();
    }

    /// Speaks to an agent that is at the other end: until what is given beside it is dropped.
    async fn heard(near: UnixStream) -> (Arc<Qemu>, JoinSet<()>) {
        let known = Arc::new(Introduction {
            identity: guest::channel::message::Identity {
                incarnation: "vm.1".to_owned(),
                ..Default::default()
            },
            is_qemu: true,
        });
        let (identity, mut identities) = watch::channel(None);
        let contact = watch::Sender::new(Contact::Silent);
        let mut seen = contact.subscribe();
        let mut speaking = JoinSet::new();
        speaking.spawn(async move {
            let _goes_on_with_this = identity;
            speak(&mut identities, &contact, near, known).await;
        });
        let heard = seen.wait_for(|contact| matches!(contact, Contact::Qemu(_)));
        let heard = timeout(PATIENCE, heard).await.unwrap().unwrap().clone();
        match heard {
            Contact::Qemu(qemu) => (qemu, speaking),
            other => panic!("it is {other:?}"),
        }
    }
}
