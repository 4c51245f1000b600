//! Processes beside the agent: programs of its own that must outlive it, as QEMU does, because guests depend on them. There is one of each
//! kind on a node. The agent starts it when it is needed; the next agent finds it by its socket.

use std::{ffi::OsString, fs, io, path::PathBuf, sync::Arc};

use qemu::{
    groups::Limits, layout::SocketPath, machine::Engine, process::Process, sys::spawn::Spawn,
};
use serde::Serialize;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A kind of them, and how it is reached: by `run/NAME.sock` below the data directory.
#[derive(Debug)]
pub struct Beside {
    /// The subcommand that it is, and its control group.
    name: &'static str,
    engine: Arc<Engine>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Beside {
    /// A kind, of a node. Those that this agent starts are watched until `cancel`; `tasks` counts that.
    pub fn new(
        name: &'static str,
        engine: Arc<Engine>,
        cancel: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            name,
            engine,
            cancel,
            tasks,
        }
    }

    /// What a connection is made to.
    pub fn socket(&self) -> io::Result<SocketPath> {
        self.engine.layout.socket(&self.socket_name())
    }

    fn socket_name(&self) -> String {
        format!("run/{}.sock", self.name)
    }

    /// Starts one. It listens when this returns.
    pub fn start(&self, args: impl IntoIterator<Item = OsString>) -> io::Result<()> {
        let name = self.name;
        let listener = self.socket()?.listen()?;
        let log = fs::File::create(self.log())?;
        // A group of its own, as guests have: whoever ends all that is in the agent's must not end what they depend on.
        let group = self.engine.groups.prepare(name, &Limits::default())?;
        let procs = group.as_ref().map(|group| group.procs.try_clone());
        let process = Process::start(Spawn {
            args: std::iter::once(name.into()).chain(args).collect(),
            fds: vec![listener.into()],
            directory: std::path::absolute(self.engine.layout.root())?,
            // As dear as the agent, whose place in the kernel's order it inherits.
            oom_score: None,
            group: procs.transpose()?,
            ..Spawn::new("/proc/self/exe", &[], log)
        })?;
        tracing::debug!(
            name,
            pid = process.id().pid,
            "a process was started beside the agent"
        );
        let (cancel, engine) = (self.cancel.clone(), Arc::clone(&self.engine));
        self.tasks.spawn(async move {
            let exit = tokio::select! {
                // It goes on for the next agent, and without one.
                () = cancel.cancelled() => return,
                exit = process.wait() => exit,
            };
            match exit {
                Ok(exit) => tracing::debug!(name, %exit, "a process beside the agent has ended"),
                Err(error) => {
                    tracing::warn!(name, %error, "a process beside the agent cannot be waited for")
                }
            }
            if let Some(group) = group {
                engine.groups.remove(&group.path);
            }
        });
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.engine
            .layout
            .root()
            .join(format!("run/{}.log", self.name))
    }

    /// What it printed last, to be put behind a message.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        match log.trim().lines().last() {
            Some(line) => format!(": {line}"),
            None => String::new(),
        }
    }

    /// Removes what is left of one that has ended, also of one that an earlier agent started.
    pub fn clear_away(&self) {
        let socket = self.engine.layout.root().join(self.socket_name());
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(name = self.name, %error, "what a process left cannot be removed");
            }
            _ => {}
        }
        if let Some(group) = self.engine.groups.named(self.name) {
            self.engine.groups.remove(&group);
        }
    }
}

/// Whether nobody listens where somebody connects to.
pub fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

/// A message as a line of JSON, as they say it to each other.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}
