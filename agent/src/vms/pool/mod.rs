//! Forks that are ready before anybody asks: whole children of a snapshot, started, loaded, standing still. A fork takes one,
//! gives it its name, and lets it go on.
//!
//! Until then it is nobody's: it has an id, a folder, a user and an overlay of its own, and its record says that its guest
//! never ran, so an agent that finds it after a crash throws it away.

mod plan;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use qemu::checksum::CheckedStream;
use raft::state::{SnapshotId, State, VmId};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use ulid::Ulid;

use super::{
    VmHandle,
    command::Command,
    fork::{Parts, start_child},
    launch::{self, Child},
};
use crate::{errors::chain, node::Node};

/// How long a fork counts as recent.
const RECENT: Duration = Duration::from_secs(120);
/// Memory that a fork which stands still takes for itself, bytes; what there is room for is counted with it.
const MEMBER_BYTES: u64 = 24 << 20;
/// How often is looked again at what should be ready, without being woken: memory may have become short.
const TICK: Duration = Duration::from_secs(1);
/// How long is waited after a fork that could not be made ready.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// A fork that is ready, and nobody's.
#[derive(Debug)]
pub struct Member {
    /// What it goes by.
    pub id: VmId,
    /// Its task.
    pub handle: VmHandle,
}

impl Member {
    fn is_alive(&self) -> bool {
        self.handle.pid() != 0
    }

    async fn destroy(self) {
        // One whose task is gone has nothing left.
        let _gone = self.handle.tell(Command::Destroy).await;
    }
}

/// The bounds of a node's pool.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many forks are kept ready that nobody asked for.
    pub unasked: u32,
    /// Memory that is left alone, bytes.
    pub reserve: u64,
}

/// All forks of a node that are ready.
#[derive(Debug)]
pub struct Pool {
    bounds: Bounds,
    members: Mutex<BTreeMap<SnapshotId, Vec<Member>>>,
    forked: Mutex<BTreeMap<SnapshotId, Vec<Instant>>>,
    changed: Notify,
}

impl Pool {
    /// An empty one.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            members: Mutex::default(),
            forked: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Vec<Member>>> {
        // Changed by single insertions and removals: a panic cannot leave it half changed.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forked(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Vec<Instant>>> {
        self.forked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many forks of each snapshot are ready.
    pub fn ready(&self) -> Vec<(SnapshotId, u32)> {
        let members = self.members();
        let alive = |of: &Vec<Member>| of.iter().filter(|member| member.is_alive()).count() as u32;
        members.iter().map(|(id, of)| (*id, alive(of))).collect()
    }

    /// Takes up to `count` forks of a snapshot. Those that are not used are given back.
    pub fn take(&self, snapshot: SnapshotId, count: u32) -> Vec<Member> {
        self.forked()
            .entry(snapshot)
            .or_default()
            .push(Instant::now());
        let mut members = self.members();
        let Some(of) = members.get_mut(&snapshot) else {
            return Vec::new();
        };
        let (alive, dead): (Vec<_>, Vec<_>) = of.drain(..).partition(Member::is_alive);
        let mut alive = alive;
        let rest = alive.split_off(alive.len().min(count as usize));
        *of = rest.into_iter().chain(dead).collect();
        alive
    }

    /// Gives back what was taken and is as it was.
    pub fn give_back(&self, snapshot: SnapshotId, taken: Vec<Member>) {
        if !taken.is_empty() {
            self.members().entry(snapshot).or_default().extend(taken);
        }
        self.look_again();
    }

    /// Something was taken, or there is time again to make others ready.
    pub fn look_again(&self) {
        self.changed.notify_one();
    }

    fn recent(&self) -> BTreeMap<SnapshotId, u32> {
        let mut forked = self.forked();
        forked.retain(|_, times| {
            times.retain(|at| at.elapsed() < RECENT);
            !times.is_empty()
        });
        forked
            .iter()
            .map(|(id, times)| (*id, times.len() as u32))
            .collect()
    }

    /// How many members there is memory for, those that are there included.
    fn room(&self, there: usize) -> u32 {
        match qemu::host::available_memory() {
            Ok(free) => {
                let more = free.saturating_sub(self.bounds.reserve) / MEMBER_BYTES;
                if free < self.bounds.reserve {
                    // Short already: what is ready is given up.
                    return 0;
                }
                u32::try_from(more)
                    .unwrap_or(u32::MAX)
                    .saturating_add(there as u32)
            }
            Err(error) => {
                tracing::warn!(%error, "free memory cannot be told: no fork is kept ready");
                0
            }
        }
    }
}

/// Keeps ready what should be, until the node ends; then nothing is.
pub async fn run(node: Arc<Node>) {
    let mut published = node.raft.published();
    loop {
        let state = Arc::clone(&published.borrow_and_update().view);
        let pause = match step(&node, &state).await {
            Ok(true) => continue,
            Ok(false) => TICK,
            Err(problem) => {
                tracing::warn!(problem, "a fork could not be made ready");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = node.cancel.cancelled() => break,
            changed = published.changed() => if changed.is_err() { break },
            () = node.pool.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        if pause == AFTER_FAILURE {
            tokio::select! {
                () = node.cancel.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
    let all = std::mem::take(&mut *node.pool.members());
    for member in all.into_values().flatten() {
        member.destroy().await;
    }
}

/// Gives up what is not wanted, and makes some ready that are. Says whether there is more to do at once.
async fn step(node: &Arc<Node>, state: &Arc<State>) -> Result<bool, String> {
    let pool = &node.pool;
    let there: usize = pool.members().values().map(Vec::len).sum();
    let wanted = plan::wanted(
        state,
        node.id(),
        &pool.recent(),
        pool.bounds.unasked,
        // What waits goes before anything that runs.
        if node.density.is_short() {
            0
        } else {
            pool.room(there)
        },
    );
    let mut excess = Vec::new();
    let mut missing = Vec::new();
    {
        let mut members = pool.members();
        for (snapshot, of) in members.iter_mut() {
            let keep = wanted.get(snapshot).copied().unwrap_or_default() as usize;
            let (mut alive, dead): (Vec<_>, Vec<_>) = of.drain(..).partition(Member::is_alive);
            excess.extend(dead);
            excess.extend(alive.split_off(alive.len().min(keep)));
            *of = alive;
        }
        members.retain(|_, of| !of.is_empty());
        for (snapshot, count) in wanted {
            let there = members.get(&snapshot).map_or(0, Vec::len);
            missing.extend(std::iter::repeat_n(
                snapshot,
                (count as usize).saturating_sub(there),
            ));
        }
    }
    for member in excess {
        member.destroy().await;
    }
    // A fork that is under way goes first; its end wakes us.
    if missing.is_empty() || node.cancel.is_cancelled() || !node.forks.is_idle() {
        return Ok(false);
    }
    let together = std::thread::available_parallelism().map_or(2, usize::from);
    let mut making = JoinSet::new();
    for snapshot in missing.iter().take(together) {
        making.spawn(make(Arc::clone(node), Arc::clone(state), *snapshot));
    }
    let mut problem = None;
    while let Some(made) = making.join_next().await {
        match made.map_err(|panic| panic.to_string())? {
            Ok((snapshot, member)) => pool.members().entry(snapshot).or_default().push(member),
            Err(error) => problem = Some(error),
        }
    }
    match problem {
        Some(problem) => Err(problem),
        None => Ok(missing.len() > together),
    }
}

/// Starts and loads one.
async fn make(
    node: Arc<Node>,
    state: Arc<State>,
    id: SnapshotId,
) -> Result<(SnapshotId, Member), String> {
    let gone = "its snapshot is gone";
    let snapshot = state.snapshots.get(&id).ok_or(gone)?;
    let content = snapshot.content.as_ref().ok_or(gone)?;
    let hardware = launch::snapshot_hardware(&snapshot.spec, content, &node.fitness)
        .map_err(|unfit| unfit.to_string())?;
    let child = Child {
        id: VmId(Ulid::new().0),
        boot: 1,
        spec: snapshot.spec.clone(),
    };
    node.fetch_image(snapshot.spec.image).await?;
    node.store.check_usable(id, content)?;
    let parts = Parts::of(content);
    let started = async {
        let check = CheckedStream::check(&node.vms.engine().layout, launch::stream(content));
        let (stream, ()) = tokio::try_join!(
            async {
                check.await.map_err(|unfit| {
                    node.store.note_unfit(&unfit);
                    chain(&unfit)
                })
            },
            async { start_child(&node, &child, hardware, &parts).await },
        )?;
        let handle = node.vms.get(child.id).ok_or(gone)?;
        handle
            .ask(|done| Command::Load { stream, done })
            .await
            .map_err(|error| error.to_string())??;
        Ok(handle)
    };
    match started.await {
        Ok(handle) => Ok((
            id,
            Member {
                id: child.id,
                handle,
            },
        )),
        Err(problem) => {
            if let Some(handle) = node.vms.get(child.id) {
                Member {
                    id: child.id,
                    handle,
                }
                .destroy()
                .await;
            }
            Err(problem)
        }
    }
}
