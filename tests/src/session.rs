//! A session at a VM's console, as a user has it, or of another command that goes on.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::Context as _;

use crate::{
    cluster::{Cluster, PATIENCE},
    fpagent, wait_for,
};

/// A command of `fpagent` that runs.
#[derive(Debug)]
pub struct Session {
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
    problems: Problems,
    reading: Option<JoinHandle<()>>,
}

/// What a command has said besides its output.
type Problems = Arc<Mutex<String>>;

impl Session {
    /// Opens a VM's console through a node.
    pub fn open(cluster: &Cluster, through: usize, vm: &str) -> anyhow::Result<Self> {
        Self::of(&["console", vm, "--addr", &cluster.node(through).address()])
    }

    /// Runs a command.
    pub fn of(args: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(fpagent::binary())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut out = child.stdout.take().context("no output")?;
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let errors = child.stderr.take().context("no errors")?;
        let problems = Problems::default();
        let said = Arc::clone(&problems);
        let reading = thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.push_str(&line);
                said.push('\n');
            }
        });
        Ok(Self {
            child,
            output,
            seen: String::new(),
            problems,
            reading: Some(reading),
        })
    }

    /// The command's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types.
    pub fn send(&mut self, text: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().context("no input")?;
        input.write_all(text.as_bytes())?;
        Ok(input.flush()?)
    }

    /// Waits until it, or the guest, has printed this, since the session began.
    pub fn wait_for(&mut self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let chunk = self.output.recv_timeout(left);
            let chunk = chunk.with_context(|| format!("no {text:?} in {:?}", self.seen))?;
            self.seen.push_str(&String::from_utf8_lossy(&chunk));
        }
        Ok(())
    }

    /// Waits until it has said this besides its output.
    pub fn wait_said(&self, text: &str) -> anyhow::Result<()> {
        wait_for(&format!("it to say {text:?}"), PATIENCE, || {
            Ok(self.problems().contains(text).then_some(()))
        })
    }

    fn problems(&self) -> String {
        let problems = self.problems.lock();
        problems.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the guest's shell say a word. The terminal echoes it in two parts, so what is found is the answer.
    pub fn ask(&mut self, word: &str) -> anyhow::Result<()> {
        let (head, tail) = word.split_at(1);
        self.send(&format!("echo {head}''{tail}\n"))?;
        self.wait_for(word)
    }

    /// What was printed, as far as it was waited for.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// Ends what can be typed.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Its exit code and what it complained of, at its own end.
    pub fn end(mut self) -> anyhow::Result<(Option<i32>, String)> {
        let status = wait_for("the command to end", PATIENCE, || {
            Ok(self.child.try_wait()?)
        })?;
        if let Some(reading) = self.reading.take() {
            reading
                .join()
                .ok()
                .context("who read its errors panicked")?;
        }
        Ok((status.code(), self.problems()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
