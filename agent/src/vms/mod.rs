//! The VMs of this node: a task for each, and what they have in common (users, folders, the engine).

pub mod command;
mod ending;
pub mod fork;
pub mod launch;
pub mod network;
pub mod pool;
pub mod task;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use qemu::{
    console::{Pen, Wire},
    machine::Engine,
    past::Past,
    process::ProcessId,
    record::{BaseName, LayerName, VmName, VmRecord},
};
use raft::state::VmId;
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::{
    fence::Fence,
    guest::{self, Asked, Becoming, Guest},
    reconcile::plan::{Is, Seen},
};
use command::Command;
use task::{Next, VmTask};

/// Commands that wait for a VM. The reconciler sends one at a time; an operation adds a few.
const COMMANDS: usize = 8;
/// How long VMs of an earlier agent are waited for.
const ADOPTED_WITHIN: Duration = Duration::from_secs(2);
/// How many users QEMU processes can have on one node, and how many lineages groups.
pub const USERS: u32 = 65_000;

/// A VM of this node, as others see it.
#[derive(Debug, Clone)]
pub struct VmHandle {
    commands: mpsc::Sender<Command>,
    seen: Arc<watch::Sender<Seen>>,
    process: Arc<watch::Sender<Option<ProcessId>>>,
    console: Wire,
    guest: Guest,
    user: Option<(u32, u32)>,
}

/// A VM's task is gone: the VM is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the VM is being deleted")]
pub struct Gone;

impl VmHandle {
    /// How it is.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Its QEMU's process id; 0 when it has none.
    pub fn pid(&self) -> u32 {
        self.process().map_or(0, |process| process.pid)
    }

    /// Its QEMU; `None` when it has none.
    pub fn process(&self) -> Option<ProcessId> {
        *self.process.borrow()
    }

    /// What is the same in every start of it.
    pub fn place(&self) -> launch::Place {
        launch::Place {
            user: self.user,
            console: self.console.clone(),
            port: self.guest.line(),
        }
    }

    /// The group of its lineage.
    pub fn lineage(&self) -> Option<u32> {
        self.user.map(|(_, gid)| gid)
    }

    /// Its guest's agent.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What it prints from now on.
    pub fn follow_console(&self) -> broadcast::Receiver<Vec<u8>> {
        self.console.follow()
    }

    /// The right to write to its console, for one at a time; `None` while somebody has it.
    pub fn take_pen(&self) -> Option<Pen> {
        self.console.take_pen()
    }

    /// Has the task do something; until it is done the VM is busy. `false` when too much waits already, or it is gone: then
    /// the next plan comes to the same.
    pub fn act(&self, command: Command) -> bool {
        self.seen.send_modify(|seen| seen.busy = true);
        let sent = self.commands.try_send(command).is_ok();
        if !sent {
            self.seen.send_modify(|seen| seen.busy = false);
        }
        sent
    }

    /// Has the task do something that it answers.
    pub async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Gone> {
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Returns when its task has ended: nothing is left of it.
    pub async fn gone(&self) {
        self.commands.closed().await;
    }

    /// Whether its task has ended.
    pub fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    /// Has the task do something, without waiting for it.
    pub async fn tell(&self, command: Command) -> Result<(), Gone> {
        self.commands.send(command).await.map_err(|_| Gone)
    }
}

/// All VMs of this node.
#[derive(Debug)]
pub struct Vms {
    engine: Arc<Engine>,
    handles: Mutex<BTreeMap<VmId, VmHandle>>,
    /// The first of the user numbers that processes get; `None` when users are not changed.
    first_user: Option<u32>,
    /// The groups of lineages whose files are being fetched.
    reserved: Arc<Mutex<BTreeMap<VmId, Arc<u32>>>>,
    tasks: TaskTracker,
    /// Where they run, whoever asks for something first.
    threads: Handle,
    /// Rung when something about a VM changed.
    changed: Arc<Notify>,
    fence: Arc<Fence>,
    /// Where what guests ask for goes.
    asked: mpsc::Sender<Asked>,
    becoming: Becoming,
}

impl Vms {
    /// For a node whose processes get users from the one after `first_user` on, and lineages groups. What guests ask for goes to
    /// `asked`. Called on the threads that are to work for machines.
    pub fn new(
        engine: Arc<Engine>,
        first_user: Option<u32>,
        changed: Arc<Notify>,
        asked: mpsc::Sender<Asked>,
        fence: Arc<Fence>,
    ) -> Self {
        Self {
            engine,
            handles: Mutex::default(),
            first_user,
            reserved: Arc::default(),
            tasks: TaskTracker::new(),
            threads: Handle::current(),
            changed,
            fence,
            asked,
            becoming: Becoming::default(),
        }
    }

    /// The threads that work for machines, which may block now and then.
    pub fn threads(&self) -> &Handle {
        &self.threads
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What lets those run that are restored elsewhere when this host is lost.
    pub fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// Those whose guests are becoming who they are.
    pub fn becoming(&self) -> &Becoming {
        &self.becoming
    }

    fn handles(&self) -> MutexGuard<'_, BTreeMap<VmId, VmHandle>> {
        // The map is changed by single inserts and removals: a panic cannot leave it half changed.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM, if the node has anything of it.
    pub fn get(&self, vm: VmId) -> Option<VmHandle> {
        self.handles().get(&vm).cloned()
    }

    /// How all of them are.
    pub fn observe(&self) -> BTreeMap<VmId, Seen> {
        self.handles()
            .iter()
            .map(|(id, handle)| (*id, handle.seen()))
            .collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<(VmId, VmHandle)> {
        self.handles()
            .iter()
            .map(|(id, handle)| (*id, handle.clone()))
            .collect()
    }

    /// A VM's handle, made if the node has nothing of it yet: in this lineage, or in one of its own.
    pub fn get_or_create(
        self: &Arc<Self>,
        vm: VmId,
        lineage: Option<u32>,
    ) -> Result<VmHandle, NoUser> {
        let mut handles = self.handles();
        // One whose task has ended is about to be taken out.
        if let Some(handle) = handles.get(&vm).filter(|handle| !handle.is_gone()) {
            return Ok(handle.clone());
        }
        let user = self.free_user(&handles, lineage)?;
        let (handle, _) = self.start(&mut handles, vm, user, false);
        Ok(handle)
    }

    /// The numbers that users and groups have; `None` when they are not changed.
    fn numbers(&self) -> Option<RangeInclusive<u32>> {
        self.first_user.map(|first| first + 1..=first + USERS)
    }

    /// A user that no VM has, in a lineage, or in one of which nothing is here.
    fn free_user(
        &self,
        handles: &BTreeMap<VmId, VmHandle>,
        lineage: Option<u32>,
    ) -> Result<Option<(u32, u32)>, NoUser> {
        let Some(mut numbers) = self.numbers() else {
            return Ok(None);
        };
        let in_use = handles.values().filter_map(|other| other.user);
        let users: BTreeSet<u32> = in_use.map(|(uid, _)| uid).collect();
        let uid = numbers.clone().find(|uid| !users.contains(uid));
        let gid = match lineage {
            Some(gid) => Some(gid),
            None => {
                let groups = self.groups(handles).map_err(NoUser::Unseen)?;
                numbers.find(|gid| !groups.contains(gid))
            }
        };
        uid.zip(gid).map(Some).ok_or(NoUser::AllTaken)
    }

    /// The groups of all lineages that there is something of here.
    fn groups(&self, handles: &BTreeMap<VmId, VmHandle>) -> io::Result<BTreeSet<u32>> {
        // Files stay when their VM is gone.
        let mut groups = self.engine.layout.lineages()?;
        groups.extend(handles.values().filter_map(VmHandle::lineage));
        groups.extend(self.reserved().values().map(|group| **group));
        Ok(groups)
    }

    fn reserved(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<u32>>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group of a lineage whose files come from another node: the one that it has here, by files of it or by VMs, or one that nobody
    /// has. It is the lineage's while the result is kept, and from then on while there is something of it.
    pub fn reserve_lineage(
        &self,
        lineage: VmId,
        files: impl Iterator<Item = PathBuf>,
        vms: impl Iterator<Item = VmId>,
    ) -> Result<Reserved, NoUser> {
        let Some(mut numbers) = self.numbers() else {
            return Ok(Reserved { group: None });
        };
        let handles = self.handles();
        if let Some(group) = self.reserved().get(&lineage) {
            let group = Some(Arc::clone(group));
            return Ok(Reserved { group });
        }
        let mut of_files = files
            .filter_map(|file| Some(std::fs::metadata(file).ok()?.gid()))
            .filter(|group| numbers.contains(group));
        let mut of_vms = vms.filter_map(|vm| handles.get(&vm)?.lineage());
        let here = of_files.next().or_else(|| of_vms.next());
        let group = match here {
            Some(group) => group,
            None => {
                let groups = self.groups(&handles).map_err(NoUser::Unseen)?;
                let free = numbers.find(|group| !groups.contains(group));
                free.ok_or(NoUser::AllTaken)?
            }
        };
        let group = Arc::new(group);
        let mut reserved = self.reserved();
        // Of those that nobody keeps there are files, or nothing.
        reserved.retain(|_, group| Arc::strong_count(group) > 1);
        reserved.insert(lineage, Arc::clone(&group));
        Ok(Reserved { group: Some(group) })
    }

    /// The group of the lineage that a base belongs to; `None` when users are not changed.
    pub fn lineage_of(&self, base: &BaseName) -> Result<Option<u32>, NoUser> {
        let file = self.engine.layout.base(base);
        self.lineage_of_file(&file, || format!("base {base}"))
    }

    /// The same of a layer.
    pub fn lineage_of_layer(&self, layer: &LayerName) -> Result<Option<u32>, NoUser> {
        let file = self.engine.layout.layer(layer);
        self.lineage_of_file(&file, || format!("layer {layer}"))
    }

    fn lineage_of_file(
        &self,
        file: &Path,
        name: impl Fn() -> String,
    ) -> Result<Option<u32>, NoUser> {
        let Some(numbers) = self.numbers() else {
            return Ok(None);
        };
        match std::fs::metadata(file).map_err(NoUser::Unseen)?.gid() {
            // Whatever somebody made of the file: no process is to be in a group of the host's.
            other if !numbers.contains(&other) => Err(NoUser::Foreign(name())),
            group => Ok(Some(group)),
        }
    }

    /// Has a VM go by another id from now on: a process that waited becomes a fork. `false` when there is something of the other
    /// id already. The task itself is told with [`Command::Go`].
    pub fn rename(&self, from: VmId, to: VmId) -> bool {
        let mut handles = self.handles();
        if handles.contains_key(&to) {
            return false;
        }
        match handles.remove(&from) {
            Some(handle) => handles.insert(to, handle).is_none(),
            None => false,
        }
    }

    /// Has a VM go by another id from now on, in the place of what there is of that: see [`Command::MakeWay`].
    pub fn replace(&self, from: VmId, to: VmId) {
        let mut handles = self.handles();
        if let Some(handle) = handles.remove(&from) {
            handles.insert(to, handle);
        }
    }

    /// Finds the VMs that an earlier agent left, and their processes. Returns when all have answered, or after a while: one that does not may
    /// wait for memory that comes from another node, which goes on when this has returned. Its task asks it on.
    pub async fn adopt(self: &Arc<Self>) -> io::Result<()> {
        let mut asked = Vec::new();
        for entry in std::fs::read_dir(self.engine.layout.vms())? {
            let name = entry?.file_name();
            let Some(vm) = name.to_str().and_then(|name| name.parse::<VmId>().ok()) else {
                tracing::warn!(?name, "a folder among the VMs is none; it is left alone");
                continue;
            };
            let record = VmRecord::load(&self.engine.layout.vm(&vm_name(vm)));
            let user = record.ok().flatten().and_then(|record| record.user);
            let mut handles = self.handles();
            let user = match user {
                Some(user) => Some(user),
                // What cannot be read now may be later. Nothing of it can be opened by another user, and it never runs as us.
                None => self.free_user(&handles, None).map_err(io::Error::other)?,
            };
            let (_, adopted) = self.start(&mut handles, vm, user, true);
            drop(handles);
            asked.push(adopted);
        }
        let count = asked.len();
        let mut answered = 0;
        let all = async {
            for adopted in asked {
                // A task that is gone has nothing to adopt.
                let _ended = adopted.await;
                answered += 1;
            }
        };
        if timeout(ADOPTED_WITHIN, all).await.is_err() {
            tracing::warn!(vms = count, answered, "not all VMs of before answer yet");
        }
        Ok(())
    }

    fn start(
        self: &Arc<Self>,
        handles: &mut BTreeMap<VmId, VmHandle>,
        vm: VmId,
        user: Option<(u32, u32)>,
        adopt: bool,
    ) -> (VmHandle, oneshot::Receiver<()>) {
        let is = if adopt { Is::Unknown } else { Is::Absent };
        let seen = Arc::new(watch::Sender::new(Seen {
            busy: adopt,
            has_run: false,
            held: false,
            past: Past::default(),
            has_group_card: false,
            is,
        }));
        let process = Arc::new(watch::Sender::new(None));
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let console = Wire::default();
        let (guest, ends) = Guest::new(self.becoming.clone());
        let handle = VmHandle {
            commands,
            seen: Arc::clone(&seen),
            process: Arc::clone(&process),
            console: console.clone(),
            guest: guest.clone(),
            user,
        };
        handles.insert(vm, handle.clone());
        let own = handle.commands.downgrade();
        let speaking = guest::run(ends, self.asked.clone());
        let speaking = self.tasks.spawn_on(speaking, &self.threads);
        let engine = Arc::clone(&self.engine);
        let fence = Arc::clone(&self.fence);
        let mut task = VmTask::new(engine, vm_name(vm), seen, process, console, guest, fence);
        let (adopted, done) = oneshot::channel();
        let vms = Arc::clone(self);
        let mut watcher = handle.seen.subscribe();
        let mut contact = handle.guest.watch();
        let changed = Arc::clone(&self.changed);
        let life = async move {
            let work = async {
                let next = if adopt {
                    task.adopt().await
                } else {
                    Next::Stay
                };
                // Whoever started the task may not wait for it.
                let _nobody_waits = adopted.send(());
                if next == Next::Stay {
                    task.run(receiver).await;
                }
            };
            let ring = async {
                loop {
                    tokio::select! {
                        seen = watcher.changed() => if seen.is_err() { return },
                        heard = contact.changed() => if heard.is_err() { return },
                    }
                    changed.notify_one();
                }
            };
            tokio::select! {
                () = work => {}
                () = ring => {}
            }
            speaking.abort();
            // By its channel: it may go by another id than it began with.
            if let Some(own) = own.upgrade() {
                vms.handles()
                    .retain(|_, other| !other.commands.same_channel(&own));
            }
            vms.changed.notify_one();
        };
        self.tasks.spawn_on(life, &self.threads);
        (handle, done)
    }

    /// Lets go of all VMs; their processes run on. Returns when every task has ended what it was at.
    pub async fn close(&self) {
        self.handles().clear();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The group of a lineage whose files are being fetched. See [`Vms::reserve_lineage`].
#[derive(Debug, Clone)]
pub struct Reserved {
    group: Option<Arc<u32>>,
}

impl Reserved {
    /// Its number; `None` when groups are not changed.
    pub fn group(&self) -> Option<u32> {
        self.group.as_deref().copied()
    }
}

/// No user can be given to a VM's process.
#[derive(Debug, thiserror::Error)]
pub enum NoUser {
    /// Every number of the node is taken.
    #[error("this node has no free user for another VM: {USERS} are in use")]
    AllTaken,
    /// The files whose groups are in use cannot be looked at.
    #[error("the group of a lineage cannot be told from its files")]
    Unseen(#[source] io::Error),
    /// A base's or a layer's file is in a group that is none of this node's.
    #[error(
        "the {0} is in a group that is no lineage's; was the data directory copied, or --vm-uid-base changed?"
    )]
    Foreign(String),
}

/// A VM's name in the engine's folders.
pub fn vm_name(vm: VmId) -> VmName {
    VmName(vm.to_string())
}
