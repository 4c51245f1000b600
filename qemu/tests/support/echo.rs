//! A witness outside of guest and QEMU: it sends a line every millisecond through the guest's serial port, a program in the
//! guest (`fp.echo`) sends it back, and the time from one answer to the next shows when the guest stood still.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use qemu::record::VmName;
use tokio::{
    net::UnixStream,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::Host;

/// How long an answer may take. The guest shares its processor with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A time without an answer.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub from: Instant,
    pub to: Instant,
}

impl Gap {
    pub fn length(&self) -> Duration {
        self.to - self.from
    }
}

/// Sends and listens until it is ended.
pub struct Witness {
    end: oneshot::Sender<()>,
    last: watch::Receiver<Option<Instant>>,
    task: JoinHandle<anyhow::Result<Vec<Gap>>>,
}

impl Witness {
    /// Begins at a machine's port. `tag` is this witness's own: a fork still answers its parent's.
    pub async fn start(host: &Host, vm: &str, tag: &'static str) -> anyhow::Result<Self> {
        let socket = host.engine.layout.vm(&VmName(vm.into())).socket("port")?;
        let stream = UnixStream::connect(socket.path()).await?;
        let (end, ended) = oneshot::channel();
        let (answered, last) = watch::channel(None);
        let talk = Talk {
            stream,
            tag,
            sent: 0,
            received: None,
            text: Vec::new(),
        };
        let task = tokio::spawn(talk.until(ended, answered));
        Ok(Self { end, last, task })
    }

    /// Waits for an answer that comes after `since`.
    pub async fn answered(&mut self, since: Instant) -> anyhow::Result<()> {
        let later = self
            .last
            .wait_for(|last| last.is_some_and(|last| last > since));
        match timeout(PATIENCE, later).await.context("no answer")? {
            Ok(_) => Ok(()),
            // What ended it is said by `end`.
            Err(closed) => Err(closed).context("the witness has ended"),
        }
    }

    /// Ends it. The gaps, the longest first.
    pub async fn end(self) -> anyhow::Result<Vec<Gap>> {
        // It may have failed before: then the task says why.
        let _failed = self.end.send(());
        let mut gaps = self.task.await??;
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.length()));
        Ok(gaps)
    }
}

struct Talk {
    stream: UnixStream,
    tag: &'static str,
    sent: u64,
    /// The last answer's number.
    received: Option<u64>,
    text: Vec<u8>,
}

impl Talk {
    async fn until(
        mut self,
        mut ended: oneshot::Receiver<()>,
        answered: watch::Sender<Option<Instant>>,
    ) -> anyhow::Result<Vec<Gap>> {
        let mut tick = interval(Duration::from_millis(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut gaps = Vec::new();
        loop {
            tokio::select! {
                _ = &mut ended => return Ok(gaps),
                _ = tick.tick() => self.send()?,
                readable = self.stream.readable() => {
                    readable?;
                    if self.receive()? {
                        let to = Instant::now();
                        if let Some(from) = answered.send_replace(Some(to)) {
                            gaps.push(Gap { from, to });
                        }
                    }
                }
            }
        }
    }

    /// Sends the next number, or none while the way is full.
    fn send(&mut self) -> anyhow::Result<()> {
        let line = format!("{}:{}\n", self.tag, self.sent + 1);
        match self.stream.try_write(line.as_bytes()) {
            Ok(count) => anyhow::ensure!(count == line.len(), "a line was sent in part"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.sent += 1;
        Ok(())
    }

    /// Takes what there is. Whether an answer was in it; they must come in order, each once.
    fn receive(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [0; 4096];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => anyhow::bail!("the port is closed"),
            Ok(count) => self.text.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let mut heard = false;
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).into_owned();
            // Another witness's, or the rest of what the guest lost before it listened.
            let own = line
                .strip_prefix(self.tag)
                .and_then(|l| l.strip_prefix(':'));
            let Some(number) = own.and_then(|number| number.trim_end().parse().ok()) else {
                anyhow::ensure!(self.received.is_none(), "{line:?} is no answer");
                continue;
            };
            if let Some(before) = self.received {
                anyhow::ensure!(number == before + 1, "{number} came after {before}");
            }
            self.received = Some(number);
            heard = true;
        }
        Ok(heard)
    }
}
