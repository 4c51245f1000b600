//! VMs that are restored elsewhere when their host is lost run on one host only. So each runs under a *watchdog* ([`watchdog`]), a process
//! apart from the agent, which stops it when no leader has heard of this host for a while; and a leader ([`lead`]) has it restored elsewhere
//! only after that must have happened.
//!
//! Why no two run at once:
//!
//! - A node sends a renewal of its lease at `s`, by its own clock. A leader answers it that a majority took it for the leader at `s - age` or
//!   later. The node's VMs may run until `s - age + LEASE`.
//! - That leader gives a node up that it has not heard of for [`LEASE`] and [`MARGIN`]: what it answered last has run out by then. From then
//!   on it grants that node nothing, until what it proposed has been applied.
//! - Another leader was elected after every `s - age` of those before it, and waits as long before it gives anybody up.
//! - A VM that is to run, or to go on after it was stopped, needs a grant, and a state that includes what the leader's did when it was given: so
//!   a node that was given up learns first that its VMs live elsewhere. The watchdog refuses what comes after the grant has run out, so that an
//!   agent which stood still itself does nothing late.
//!
//! What this needs of hosts: that their clocks run equally fast, to a tenth, and that a signal stops a process within [`MARGIN`].

mod lead;
pub mod watchdog;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use qemu::{machine::Engine, process::ProcessId, record::VmName};
use raft::{
    node::{Leading, Published},
    state::{Command, Ha, NodeId, State, VmId},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::wire::{Answer, Order, read};
use crate::{
    beside::{Beside, is_absence, line},
    errors::chain,
    node::Node,
    reconcile::plan::Is,
};

pub use self::lead::lead;

/// For how long a host's VMs may run after it was heard of.
pub const LEASE: Duration = Duration::from_secs(6);
/// How much later it is given up: what clocks may differ by meanwhile, and a signal may take.
pub const MARGIN: Duration = Duration::from_millis(600);

/// How long the watchdog may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a VM that is to run waits for a leader to say that it may.
const GRANTED_WITHIN: Duration = Duration::from_secs(10);
/// How often is looked whether all is watched that must be.
const TICK: Duration = Duration::from_millis(500);
/// How long a report may take before it is made again.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// Nanoseconds of `CLOCK_BOOTTIME`, which all processes of a host have in common and which counts while it sleeps.
pub fn boottime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let rest = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// What a leader lets a node do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Grant {
    /// Until when its VMs may run: see [`boottime`].
    until: u64,
    /// What its state must include before one begins to.
    index: u64,
}

impl Grant {
    fn is_past(self) -> bool {
        boottime() >= self.until
    }
}

/// A leader's answer to a node that was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// How long ago a majority took it for the leader.
    pub age: Duration,
    /// The log index that its state includes.
    pub index: u64,
}

/// This node's VMs that run under the watchdog, and, where it leads, the nodes that it grants that to.
#[derive(Debug)]
pub struct Fence {
    watchdog: Beside,
    node: NodeId,
    published: watch::Receiver<Published>,
    grant: watch::Sender<Grant>,
    link: tokio::sync::Mutex<Option<Link>>,
    /// What the watchdog said last.
    known: Mutex<BTreeMap<String, bool>>,
    /// Rung when something is to be told it.
    rung: Notify,
    /// What a majority said last, where this node leads.
    leading: Mutex<Option<Leading>>,
    /// Nodes that are granted nothing.
    given_up: Mutex<BTreeSet<NodeId>>,
}

#[derive(Debug)]
struct Link {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Link {
    async fn ask(&mut self, order: &Order) -> io::Result<Answer> {
        self.writer.write_all(&line(order)?).await?;
        let mut said = String::new();
        match self.reader.read_line(&mut said).await? {
            0 => Err(io::Error::other("it has ended")),
            _ => read(&said),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fence {
    /// Of a node. What runs for it ends with `cancel` and is counted in `tasks`.
    pub fn new(
        engine: Arc<Engine>,
        node: NodeId,
        published: watch::Receiver<Published>,
        cancel: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            watchdog: Beside::new("watchdog", engine, cancel, tasks),
            node,
            published,
            grant: watch::Sender::default(),
            link: tokio::sync::Mutex::default(),
            known: Mutex::default(),
            rung: Notify::new(),
            leading: Mutex::default(),
            given_up: Mutex::default(),
        }
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.published.borrow().view)
    }

    /// Takes in a leader's answer to a renewal that was sent at `sent`: see [`boottime`].
    pub fn granted(&self, sent: u64, answered: Answered) {
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let until = sent
            .saturating_sub(nanos(answered.age))
            .saturating_add(nanos(LEASE));
        let is_news = self.grant.send_if_modified(|grant| {
            let is_news = until > grant.until;
            if is_news {
                let index = answered.index;
                *grant = Grant { until, index };
            }
            is_news
        });
        if is_news {
            self.rung.notify_one();
        }
    }

    /// Returns when a VM's process may run: at once, but for those that are restored elsewhere when this host is lost. These are watched from
    /// then on.
    pub async fn admit(&self, vm: &VmName, process: ProcessId) -> Result<(), String> {
        let Ok(id) = vm.0.parse::<VmId>() else {
            return Ok(());
        };
        let wants = |state: &State| state.vms.get(&id).is_some_and(|vm| vm.ha != Ha::Off);
        if !wants(&self.state()) {
            return Ok(());
        }
        let granted = timeout(GRANTED_WITHIN, self.until_granted()).await;
        let (grant, state) = granted.map_err(|_| {
            "it is to be restored elsewhere when this host is lost, and no leader has said lately that it is not".to_owned()
        })?;
        match state.vms.get(&id) {
            Some(vm) if vm.node != self.node => return Err("it lives elsewhere by now".to_owned()),
            Some(_) => {}
            None => return Err("it was deleted".to_owned()),
        }
        self.tell_until().await?;
        let vm = vm.0.clone();
        let known_until = grant.until;
        let watch = Order::Watch {
            vm,
            process,
            known_until,
        };
        self.order(watch).await
    }

    /// What a leader grants, and a state that is new enough for it.
    async fn until_granted(&self) -> (Grant, Arc<State>) {
        let mut grants = self.grant.subscribe();
        let mut published = self.published.clone();
        loop {
            let grant = *grants.borrow_and_update();
            let now = published.borrow_and_update().clone();
            if !grant.is_past() && now.index >= grant.index {
                return (grant, now.view);
            }
            tokio::select! {
                _ = grants.changed() => {}
                _ = published.changed() => {}
            }
        }
    }

    async fn tell_until(&self) -> Result<(), String> {
        let at = self.grant.borrow().until;
        self.order(Order::Until { at }).await
    }

    /// Has the watchdog do something; it is started if there is none. What is done twice is done once.
    async fn order(&self, order: Order) -> Result<(), String> {
        let mut link = self.link.lock().await;
        let mut problem = String::new();
        // One that has just ended is found out by asking it.
        for _ in 0..2 {
            let asked = async {
                let mut there = match link.take() {
                    Some(there) => there,
                    None => self.reach().await?,
                };
                let answer = there.ask(&order).await?;
                *link = Some(there);
                Ok::<_, io::Error>(answer)
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => {
                    lock(&self.known).clone_from(&answer.vms);
                    return match answer.problem.as_str() {
                        "" => Ok(()),
                        problem => Err(problem.to_owned()),
                    };
                }
                Ok(Err(error)) => problem = chain(&error),
                Err(_) => problem = "it does not answer".to_owned(),
            }
        }
        let tail = self.watchdog.log_tail();
        Err(format!("the watchdog cannot be used: {problem}{tail}"))
    }

    /// Finds the watchdog that an earlier agent left, if there is one.
    async fn find(&self) -> io::Result<()> {
        let mut link = self.link.lock().await;
        if link.is_none() {
            *link = self.connect().await?;
        }
        Ok(())
    }

    /// The watchdog that runs, whoever started it, or a new one: what one watches another must not.
    async fn reach(&self) -> io::Result<Link> {
        if let Some(there) = self.connect().await? {
            return Ok(there);
        }
        self.watchdog.start([])?;
        let started = self.connect().await?;
        started.ok_or_else(|| io::Error::other("it has ended at once"))
    }

    async fn connect(&self) -> io::Result<Option<Link>> {
        let socket = self.watchdog.socket()?;
        match UnixStream::connect(socket.path()).await {
            Ok(stream) => Ok(Some(connected(stream))),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn connected(stream: UnixStream) -> Link {
    let (reader, writer) = stream.into_split();
    Link {
        reader: BufReader::new(reader),
        writer,
    }
}

/// Has all be watched that must be, until the node ends.
pub async fn run(node: Arc<Node>) {
    let fence = &node.vms.fence();
    if let Err(error) = fence.find().await {
        tracing::warn!(%error, "a watchdog of before cannot be found");
    }
    let mut published = fence.published.clone();
    loop {
        if let Err(problem) = compare(&node, fence).await {
            tracing::warn!(problem, "VMs are not watched as they should be");
        }
        let deadline = Instant::now() + TICK;
        let news = async {
            tokio::select! {
                () = fence.rung.notified() => {}
                _ = published.changed() => {}
            }
        };
        tokio::select! {
            () = node.cancel.cancelled() => return,
            // Soon, whatever happens, and not for each of many changes.
            _ = timeout_at(deadline, news) => {}
        }
        sleep(PACE).await;
    }
}

/// How long after a look the next begins at the earliest.
const PACE: Duration = Duration::from_millis(20);

/// Has what is watched be what must be, and decides about those that were stopped.
async fn compare(node: &Arc<Node>, fence: &Fence) -> Result<(), String> {
    let grant = *fence.grant.borrow();
    let Published { index, view: state } = fence.published.borrow().clone();
    // What it says of where they live is as new as the grant.
    let is_current = !grant.is_past() && index >= grant.index;
    let known_until = grant.until;
    let here = state.vms.of(fence.node).filter(|vm| vm.ha != Ha::Off);
    let meant: Vec<VmId> = here.map(|vm| vm.id).collect();
    if meant.is_empty() && (lock(&fence.known).is_empty() || fence.link.lock().await.is_none()) {
        // It ends when nobody is there.
        *fence.link.lock().await = None;
        return Ok(());
    }
    fence.tell_until().await?;
    let known = lock(&fence.known).clone();
    for id in &meant {
        let Some(handle) = node.vms.get(*id) else {
            continue;
        };
        let vm = id.to_string();
        let is = handle.seen().is;
        // One that is being started is admitted where that is done.
        let runs = matches!(
            is,
            Is::Booting { .. } | Is::Running { .. } | Is::Paused { .. }
        );
        if state.vms.get(id).is_some_and(|vm| vm.ha == Ha::Arming) && grant.is_past() {
            // It is not restored elsewhere yet, so it need not be stopped until a leader grants anything.
            continue;
        }
        if let (Some(process), true, false) = (handle.process(), runs, known.contains_key(&vm)) {
            let watch = Order::Watch {
                vm,
                process,
                known_until,
            };
            fence.order(watch).await?;
        }
    }
    for (vm, is_stopped) in known {
        let Ok(id) = vm.parse::<VmId>() else { continue };
        let found = state.vms.get(&id);
        let order = match found {
            Some(found) if found.node == fence.node && found.ha == Ha::Off && !is_stopped => {
                Order::Forget { vm }
            }
            _ if !is_stopped || !is_current => continue,
            Some(found) if found.node == fence.node => Order::GoOn { vm, known_until },
            // It lives elsewhere, or was deleted.
            _ => Order::End { vm },
        };
        tracing::info!(?order, "what becomes of a VM that was watched");
        fence.order(order).await?;
    }
    report(node, fence, &state).await;
    Ok(())
}

/// Says of those that are to be restored elsewhere that they do not run on here.
async fn report(node: &Arc<Node>, fence: &Fence, state: &State) {
    let known = lock(&fence.known).clone();
    let is_safe = |vm: &VmId| {
        // One that is started from now on is admitted first.
        let has_none = node.vms.get(*vm).is_none_or(|handle| {
            let seen = handle.seen();
            let is_over = matches!(seen.is, Is::Absent | Is::Ended { .. });
            is_over && !seen.busy && handle.process().is_none()
        });
        has_none || known.contains_key(&vm.to_string())
    };
    let arming = state.vms.of(fence.node).filter(|vm| vm.ha == Ha::Arming);
    let vms: Vec<VmId> = arming.map(|vm| vm.id).filter(is_safe).collect();
    if vms.is_empty() {
        return;
    }
    let command = Command::GuardVms {
        node: fence.node,
        vms,
    };
    let deadline = Instant::now() + REPORT_PATIENCE;
    if let Err(error) = node.propose(None, command, deadline).await {
        tracing::debug!(%error, "that VMs are watched is told again");
    }
}
