//! The agent's side: starts the switch when it is needed, finds one that an earlier agent left, and plugs members in.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use qemu::{layout::SocketPath, machine::Engine};
use raft::state::VmId;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Interest},
    net::UnixStream,
    sync::Notify,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::wire::{ToAgent, ToSwitch};
use crate::beside::{Beside, is_absence, line};

/// How long the switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A member of a group, as the switch knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its group: the VM that it was begun with.
    pub group: VmId,
    /// Its number there.
    pub number: u8,
}

/// The switch of this node.
#[derive(Debug)]
pub struct Switch {
    process: Arc<Beside>,
    /// User and group of its process; `None` when users are not changed.
    user: Option<(u32, u32)>,
    link: Arc<tokio::sync::Mutex<Option<Link>>>,
    plugged: Arc<Mutex<Plugged>>,
    /// Rung when it has ended: whoever was plugged in has to be again.
    changed: Arc<Notify>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// Who is plugged in.
#[derive(Debug, Default)]
struct Plugged {
    /// By their processes.
    vms: BTreeMap<VmId, u32>,
    /// Those that are being plugged in.
    under_way: BTreeSet<VmId>,
    /// Why those are not that could not be.
    problems: BTreeMap<VmId, String>,
}

/// A connection to the switch.
#[derive(Debug)]
struct Link {
    stream: BufReader<UnixStream>,
    /// Cancelled when the switch has ended.
    gone: CancellationToken,
}

impl Switch {
    /// Of a node. What runs for it ends with `cancel` and is counted in `tasks`.
    pub fn new(
        engine: Arc<Engine>,
        user: Option<(u32, u32)>,
        changed: Arc<Notify>,
        cancel: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let process = Beside::new("switch", engine, cancel.clone(), tasks.clone());
        Self {
            process: Arc::new(process),
            user,
            link: Arc::default(),
            plugged: Arc::default(),
            changed,
            cancel,
            tasks,
        }
    }

    fn plugged(&self) -> MutexGuard<'_, Plugged> {
        // Changed by single insertions and removals.
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VMs whose processes of now are plugged in, or are about to be. `pid_of` tells the process of each.
    pub fn observe(&self, pid_of: impl Fn(VmId) -> u32) -> BTreeSet<VmId> {
        let mut plugged = self.plugged();
        plugged.vms.retain(|vm, pid| pid_of(*vm) == *pid);
        plugged.problems.retain(|vm, _| pid_of(*vm) != 0);
        let all = plugged.vms.keys().chain(&plugged.under_way);
        all.copied().collect()
    }

    /// Why a VM is not plugged in that could not be.
    pub fn problem(&self, vm: VmId) -> Option<String> {
        self.plugged().problems.get(&vm).cloned()
    }

    /// Takes the turn to plug a VM in; `false` while somebody has it.
    pub fn begin(&self, vm: VmId) -> bool {
        self.plugged().under_way.insert(vm)
    }

    /// Gives it back, with what became of it.
    pub fn end(&self, vm: VmId, pid: u32, outcome: Result<(), String>) {
        let mut plugged = self.plugged();
        plugged.under_way.remove(&vm);
        match outcome {
            Ok(()) => {
                plugged.problems.remove(&vm);
                plugged.vms.insert(vm, pid);
            }
            Err(problem) => {
                plugged.problems.insert(vm, problem);
            }
        }
    }

    /// Has a member be reached by a socket, and what comes from there go to the others of its group.
    pub async fn plug(&self, member: &Member, socket: &OwnedFd) -> Result<(), String> {
        let mut link = self.link.lock().await;
        let mut problem = String::new();
        // One that has just ended is found out by asking it.
        for _ in 0..2 {
            let asked = async {
                let to = match link.take().filter(|link| !link.gone.is_cancelled()) {
                    Some(there) => link.insert(there),
                    None => link.insert(self.reach().await?),
                };
                to.plug(member, socket).await
            };
            match asked.await {
                Ok(()) => return Ok(()),
                Err(error) => problem = error.to_string(),
            }
            *link = None;
        }
        Err(format!(
            "the switch cannot be used: {problem}{}",
            self.process.log_tail()
        ))
    }

    /// Finds the switch that an earlier agent left, or clears away what is left of one.
    pub async fn find(&self) -> io::Result<()> {
        let mut link = self.link.lock().await;
        let path = self.process.socket()?;
        match self.connect(&path).await {
            Ok(found) => *link = Some(found),
            Err(error) if is_absence(&error) => self.process.clear_away(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The one that runs, or a new one.
    async fn reach(&self) -> io::Result<Link> {
        let path = self.process.socket()?;
        match self.connect(&path).await {
            Err(error) if is_absence(&error) => {
                self.start()?;
                self.connect(&path).await
            }
            other => other,
        }
    }

    fn start(&self) -> io::Result<()> {
        let user = self.user.map(|(uid, gid)| {
            let (uid, gid) = (uid.to_string(), gid.to_string());
            ["--user".into(), uid.into(), "--group".into(), gid.into()]
        });
        self.process.start(user.into_iter().flatten())
    }

    async fn connect(&self, path: &SocketPath) -> io::Result<Link> {
        let stream = UnixStream::connect(path.path()).await?;
        // Nothing is ever said on this one: it tells when the switch has ended.
        let mut watched = UnixStream::connect(path.path()).await?;
        let gone = CancellationToken::new();
        let (ended, cancel) = (gone.clone(), self.cancel.clone());
        let (plugged, changed) = (Arc::clone(&self.plugged), Arc::clone(&self.changed));
        let (process, link) = (Arc::clone(&self.process), Arc::clone(&self.link));
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                // Whatever comes of it, there is nobody any more.
                _ended = watched.read_u8() => {}
            }
            ended.cancel();
            let mut link = link.lock().await;
            // There may be another by now.
            if link.as_ref().is_none_or(|link| link.gone.is_cancelled()) {
                *link = None;
                plugged
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .vms
                    .clear();
                process.clear_away();
            }
            drop(link);
            changed.notify_one();
        });
        Ok(Link {
            stream: BufReader::new(stream),
            gone,
        })
    }
}

impl Link {
    async fn plug(&mut self, member: &Member, socket: &OwnedFd) -> io::Result<()> {
        let message = line(&ToSwitch::Plug {
            segment: member.group.to_string(),
            number: member.number,
        })?;
        let asked = async {
            send_with(self.stream.get_ref(), &message, socket.as_fd()).await?;
            let mut answer = String::new();
            match self.stream.read_line(&mut answer).await? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(serde_json::from_str::<ToAgent>(&answer)?),
            }
        };
        match timeout(PATIENCE, asked).await {
            Err(_) => Err(io::Error::other("it does not answer")),
            Ok(Err(error)) => Err(error),
            Ok(Ok(ToAgent::Done {
                problem: Some(problem),
            })) => Err(io::Error::other(problem)),
            Ok(Ok(ToAgent::Done { problem: None })) => Ok(()),
        }
    }
}

/// Sends a message, which is short, whole and with a file.
async fn send_with(to: &UnixStream, message: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    to.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        if !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::Error::other("a file has no room in a message"));
        }
        let sent = sendmsg(
            to,
            &[IoSlice::new(message)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        match sent == message.len() {
            true => Ok(()),
            false => Err(io::Error::other("a message went out in parts")),
        }
    })
    .await
}
