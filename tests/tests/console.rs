//! A VM's console, read and written through any node.

use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    fpagent,
    lineage::fork,
};

/// A `fpagent console` that runs.
struct Session {
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    fn open(cluster: &Cluster, through: usize, vm: &str) -> anyhow::Result<Self> {
        let mut child = Command::new(fpagent::binary())
            .args(["console", vm, "--addr", &cluster.node(through).address()])
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
        let seen = String::new();
        Ok(Self {
            child,
            output,
            seen,
        })
    }

    fn send(&mut self, text: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().context("no input")?;
        input.write_all(text.as_bytes())?;
        Ok(input.flush()?)
    }

    fn wait_for(&mut self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let chunk = self.output.recv_timeout(left);
            let chunk = chunk.with_context(|| format!("no {text:?} in {:?}", self.seen))?;
            self.seen.push_str(&String::from_utf8_lossy(&chunk));
        }
        Ok(())
    }

    /// Has the guest's shell say a word. The terminal echoes it in two parts, so what is found is the answer.
    fn ask(&mut self, word: &str) -> anyhow::Result<()> {
        let (head, tail) = word.split_at(1);
        self.send(&format!("echo {head}''{tail}\n"))?;
        self.wait_for(word)
    }

    /// Its exit code and what it complained of, at its own end.
    fn end(mut self) -> anyhow::Result<(Option<i32>, String)> {
        let mut problems = String::new();
        let mut errors = self.child.stderr.take().context("no errors")?;
        errors.read_to_string(&mut problems)?;
        Ok((self.child.wait()?.code(), problems))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn a_console_is_written_by_one_and_read_by_all() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "")?;
    let create = [
        "vm", "create", "a", "--image", "tiny", "--node", "node1", "--wait",
    ];
    cluster.node(2).fp(&create)?.success()?;

    let mut onlooker = Session::open(&cluster, 1, "a")?;
    let mut writer = Session::open(&cluster, 3, "a")?;
    writer.ask("first")?;
    writer.ask("second")?;
    onlooker.wait_for("second")?;

    let mut second = Session::open(&cluster, 2, "a")?;
    second.send("echo third\n")?;
    let (code, problem) = second.end()?;
    assert_eq!(code, Some(1), "{problem}");
    assert!(
        problem.contains("somebody else is writing to this console"),
        "{problem}"
    );

    // A fork has a console of its own, and its parent's session goes on.
    fork(&cluster, 2, &["a", "--name", "b"])?;
    let mut child = Session::open(&cluster, 3, "b")?;
    child.ask("childs")?;
    writer.ask("parents")?;
    assert!(!writer.seen.contains("childs"), "{}", writer.seen);
    assert!(!child.seen.contains("parents"), "{}", child.seen);

    // The end of the input is the end of the right to write.
    drop(writer.child.stdin.take());
    let (code, problem) = writer.end()?;
    assert_eq!(code, Some(0), "{problem}");
    let mut next = Session::open(&cluster, 2, "a")?;
    next.ask("fourth")?;
    onlooker.wait_for("fourth")?;

    cluster.node(1).fp(&["vm", "stop", "a"])?.success()?;
    let answer = cluster.node(3).fp(&["console", "a"])?;
    answer.refused(&["no running process", "fpagent vm start"])
}
