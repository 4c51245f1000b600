//! A QEMU that is started as the agent starts a child, without us.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::cluster::PATIENCE;
use serde_json::{Value, json};

use crate::qmp::Session;

/// How the file ends that a guest prints to.
const CONSOLE: &str = "console";

/// A QEMU started as the agent starts a child, by hand.
pub struct Bare {
    arguments: Vec<String>,
    data: PathBuf,
    socket: PathBuf,
}

/// One of its processes, ended with the value.
pub struct Qemu {
    pub process: Child,
    session: Session,
}

impl Bare {
    /// With the arguments of a child that runs, its descriptors replaced by what a shell would give.
    pub fn like(pid: u64, data: &Path, folder: &Path) -> anyhow::Result<Self> {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let socket = folder.join("bare.sock");
        let mut arguments = Vec::new();
        let all: Vec<&str> = line.trim_end_matches('\0').split('\0').skip(1).collect();
        let mut rest = all.into_iter();
        while let Some(option) = rest.next() {
            match option {
                "-chardev" => {
                    let value = rest.next().context("a chardev without a value")?;
                    let id = value
                        .split(',')
                        .find(|part| part.starts_with("id="))
                        .context("a chardev without an id")?;
                    arguments.push(option.to_owned());
                    arguments.push(match id {
                        "id=qmp" => {
                            format!("socket,{id},path={},server=on,wait=off", socket.display())
                        }
                        "id=console" => {
                            let console = socket.with_extension(CONSOLE);
                            format!("file,{id},path={}", console.display())
                        }
                        _ => format!("null,{id}"),
                    });
                }
                // Read-only, all of it: the child that it is a copy of has the overlay open.
                "-blockdev" => {
                    let mut disk: Value =
                        serde_json::from_str(rest.next().context("a disk without a value")?)?;
                    let top = folder.join("bare.qcow2");
                    let own = data.join(
                        disk["file"]["filename"]
                            .as_str()
                            .context("a disk without a file")?,
                    );
                    fs::copy(own, &top)?;
                    disk["file"]["filename"] = json!(top);
                    arguments.extend([option.to_owned(), disk.to_string()]);
                }
                other => arguments.push(other.to_owned()),
            }
        }
        Ok(Self {
            arguments,
            data: data.to_owned(),
            socket,
        })
    }

    /// One that another of these migrates to, on this host: it has memory of its own, and goes on as soon as it may.
    pub fn receiver(&self) -> anyhow::Result<Self> {
        let socket = self.socket.with_file_name("receiver.sock");
        let mut arguments = Vec::new();
        for argument in self.arguments.iter().filter(|argument| *argument != "-S") {
            let object: Option<Value> = serde_json::from_str(argument).ok();
            let memory = object.filter(|object| object["qom-type"] == "memory-backend-file");
            arguments.push(match memory {
                Some(memory) => {
                    json!({"qom-type": "memory-backend-ram", "id": memory["id"], "size": memory["size"]})
                        .to_string()
                }
                None => ["sock", CONSOLE].iter().fold(argument.clone(), |text, kind| {
                    let (from, to) = (
                        self.socket.with_extension(kind),
                        socket.with_extension(kind),
                    );
                    text.replace(
                        &from.display().to_string(),
                        &to.display().to_string(),
                    )
                }),
            });
        }
        Ok(Self {
            arguments,
            data: self.data.clone(),
            socket,
        })
    }

    /// What its guest printed.
    pub fn console(&self) -> PathBuf {
        self.socket.with_extension(CONSOLE)
    }

    /// Starts it.
    pub fn start(&self) -> anyhow::Result<Qemu> {
        if self.socket.exists() {
            fs::remove_file(&self.socket)?;
        }
        let log = File::create(self.socket.with_extension("log"))?;
        let mut process = Command::new("qemu-system-x86_64")
            .args(&self.arguments)
            .current_dir(&self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > PATIENCE || process.try_wait()?.is_some() => {
                    let log = fs::read_to_string(self.socket.with_extension("log"))?;
                    return Err(error).context(format!("a bare QEMU does not answer: {log}"));
                }
                Err(_) => std::thread::sleep(Duration::from_micros(500)),
            }
        };
        let session = Session::begin(stream)?;
        Ok(Qemu { process, session })
    }
}

impl Qemu {
    /// A command's answer.
    pub fn ask(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        self.session.ask(command, arguments)
    }

    /// Loads a stream, and waits until that is done.
    pub fn load(&mut self, stream: &Path) -> anyhow::Result<()> {
        self.ask(
            "migrate-incoming",
            json!({"uri": format!("file:{}", stream.display())}),
        )?;
        self.wait_migrated()
    }

    /// Waits until what it sends or takes in is whole.
    pub fn wait_migrated(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let status = self.ask("query-migrate", json!({}))?;
            match status["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => anyhow::bail!("{status}"),
                _ => anyhow::ensure!(begun.elapsed() < PATIENCE, "a migration does not end"),
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}
