//! Forks that are ready before anybody asks: whole children of a snapshot, started, loaded, standing still. A fork takes one,
//! gives it its name, and lets it go on.
//!
//! Until then it is nobody's: it has an id, a folder, a user and an overlay of its own, and its record says that its guest
//! never ran, so an agent that finds it after a crash throws it away.

mod blank;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;

use qemu::{checksum::CheckedStream, failpoint};
use raft::state::{SnapshotId, State, VmId};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use ulid::Ulid;

pub use self::blank::Blank;
use self::blank::Blanks;
use super::{
    VmHandle,
    command::Command,
    fork::{Parts, start_new_child},
    launch::{self, Child, Kind},
};
use crate::{errors::chain, node::Node};

/// How long a fork counts as recent.
const RECENT: Duration = Duration::from_secs(120);
/// How often is looked again at what should be ready, without being woken: memory may have become short.
const TICK: Duration = Duration::from_secs(1);
/// How long after a look the next begins at the earliest.
const PACE: Duration = Duration::from_millis(20);
/// How long no other fork of a snapshot is made ready after one that could not be, or that ended by itself.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// A fork that is ready, and nobody's.
#[derive(Debug)]
pub struct Member {
    /// What it goes by.
    pub id: VmId,
    /// Its task.
    pub handle: VmHandle,
    _hold: Hold,
}

impl Member {
    fn is_alive(&self) -> bool {
        self.handle.pid() != 0
    }
}

/// A process that is being ended.
#[derive(Debug)]
struct Leaving {
    handle: VmHandle,
    _hold: Option<Hold>,
}

impl From<Member> for Leaving {
    fn from(member: Member) -> Self {
        Self {
            handle: member.handle,
            _hold: Some(member._hold),
        }
    }
}

impl From<Blank> for Leaving {
    fn from(blank: Blank) -> Self {
        Self {
            handle: blank.handle,
            _hold: None,
        }
    }
}

/// Kept by whatever may have a snapshot's files open: see [`Pool::held`].
type Hold = Arc<()>;

/// The bounds of a node's pool.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many forks are kept ready that nobody asked for.
    pub unasked: u32,
    /// How many processes wait that belong to no snapshot yet.
    pub blank: u32,
    /// Memory that is left alone, bytes.
    pub reserve: u64,
}

/// All forks of a node that are ready.
#[derive(Debug)]
pub struct Pool {
    bounds: Bounds,
    members: Mutex<BTreeMap<SnapshotId, Vec<Member>>>,
    /// Those that are being ended.
    leaving: Mutex<Vec<Leaving>>,
    /// Processes that belong to no snapshot yet.
    blanks: Blanks,
    holds: Mutex<BTreeMap<SnapshotId, Hold>>,
    forked: Mutex<BTreeMap<SnapshotId, Vec<Instant>>>,
    /// Snapshots of which a fork could not be made ready, and when that was.
    failed: Mutex<BTreeMap<SnapshotId, Instant>>,
    changed: Notify,
}

impl Pool {
    /// An empty one.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            members: Mutex::default(),
            leaving: Mutex::default(),
            blanks: Blanks::new(bounds.blank),
            holds: Mutex::default(),
            forked: Mutex::default(),
            failed: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Vec<Member>>> {
        lock(&self.members)
    }

    /// Snapshots of which a process of the pool may have files open. Their files must stay.
    pub fn held(&self) -> BTreeSet<SnapshotId> {
        let mut holds = lock(&self.holds);
        holds.retain(|_, hold| Arc::strong_count(hold) > 1);
        holds.keys().copied().collect()
    }

    fn hold(&self, snapshot: SnapshotId) -> Hold {
        Arc::clone(lock(&self.holds).entry(snapshot).or_default())
    }

    /// How many forks of each snapshot are ready.
    pub fn ready(&self) -> Vec<(SnapshotId, u32)> {
        let members = self.members();
        let alive = |of: &Vec<Member>| of.iter().filter(|member| member.is_alive()).count() as u32;
        members.iter().map(|(id, of)| (*id, alive(of))).collect()
    }

    /// Takes up to `count` forks of a snapshot. Those that are not used are given back.
    pub fn take(&self, snapshot: SnapshotId, count: u32) -> Vec<Member> {
        lock(&self.forked)
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

    /// Has a process of a kind wait that is not any snapshot's, for a child that will be made here soon.
    pub async fn expect_blank(&self, node: &Arc<Node>, kind: Kind) {
        self.blanks.expect(node, kind).await;
    }

    /// A process of this kind that waits and belongs to no snapshot yet.
    pub fn take_blank(&self, kind: &Kind) -> Option<Blank> {
        self.blanks.take(kind)
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
        let mut forked = lock(&self.forked);
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
            Ok(free) => plan::room(free, self.bounds.reserve, there as u32),
            Err(error) => {
                tracing::warn!(%error, "free memory cannot be told: no fork is kept ready");
                0
            }
        }
    }

    /// Leaves a snapshot alone for a while: one that does not load must not keep the others from being made ready.
    fn note_failure(&self, snapshot: SnapshotId, problem: &str) {
        tracing::warn!(%snapshot, problem, "a fork could not be kept ready");
        lock(&self.failed).insert(snapshot, Instant::now());
    }

    fn failing(&self) -> BTreeSet<SnapshotId> {
        let mut failed = lock(&self.failed);
        failed.retain(|_, at| at.elapsed() < AFTER_FAILURE);
        failed.keys().copied().collect()
    }

    /// Takes away what is not wanted, and gives what is missing, as often as it is.
    fn compare(&self, wanted: &BTreeMap<SnapshotId, u32>) -> Vec<SnapshotId> {
        let mut leaving = Vec::new();
        let mut members = self.members();
        for (snapshot, of) in members.iter_mut() {
            let keep = wanted.get(snapshot).copied().unwrap_or_default() as usize;
            let (mut alive, dead): (Vec<_>, Vec<_>) = of.drain(..).partition(Member::is_alive);
            if !dead.is_empty() {
                self.note_failure(*snapshot, "its process ended by itself");
            }
            leaving.extend(dead);
            leaving.extend(alive.split_off(alive.len().min(keep)));
            *of = alive;
        }
        members.retain(|_, of| !of.is_empty());
        lock(&self.leaving).extend(leaving.into_iter().map(Leaving::from));
        let failing = self.failing();
        let missing = |(snapshot, count): (&SnapshotId, &u32)| {
            let there = members.get(snapshot).map_or(0, Vec::len);
            std::iter::repeat_n(*snapshot, (*count as usize).saturating_sub(there))
        };
        wanted
            .iter()
            .filter(|(snapshot, _)| !failing.contains(snapshot))
            .flat_map(missing)
            .collect()
    }

    /// Ends what is to be ended. Returns when it has ended, or after a while: then the next call tries again. Says whether
    /// anything has ended.
    async fn end_leaving(&self) -> bool {
        let handles: Vec<VmHandle> = lock(&self.leaving)
            .iter()
            .map(|leaving| leaving.handle.clone())
            .collect();
        let ending = handles.iter().map(|handle| async {
            // One that is gone has nothing left.
            let _gone = handle.tell(Command::Destroy).await;
            handle.gone().await;
        });
        if timeout(TICK, join_all(ending)).await.is_err() {
            tracing::warn!("forks that were ready do not end; trying again");
        }
        let mut leaving = lock(&self.leaving);
        let before = leaving.len();
        leaving.retain(|leaving| !leaving.handle.is_gone());
        let ended = leaving.len() < before;
        if ended {
            failpoint::reached("pool.given-up");
        }
        ended
    }

    /// Ends everything that is ready: nobody's process outlives the agent's orderly end.
    pub async fn close(&self) {
        let all = std::mem::take(&mut *self.members());
        let members = all.into_values().flatten().map(Leaving::from);
        let blanks = self.blanks.take_all().into_iter().map(Leaving::from);
        lock(&self.leaving).extend(members.chain(blanks));
        self.end_leaving().await;
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    // Changed by single insertions and removals: a panic cannot leave anything half changed.
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps ready what should be, until the node ends.
pub async fn run(node: Arc<Node>) {
    let mut published = node.raft.published();
    loop {
        let state = Arc::clone(&published.borrow_and_update().view);
        if step(&node, &state).await {
            continue;
        }
        // Nobody waits for it: what comes meanwhile is looked at together.
        sleep(PACE).await;
        tokio::select! {
            () = node.cancel.cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
            () = node.pool.changed.notified() => {}
            () = sleep(TICK) => {}
        }
    }
}

/// Gives up what is not wanted, and makes some ready that are. Says whether there is more to do at once.
async fn step(node: &Arc<Node>, state: &Arc<State>) -> bool {
    let pool = &node.pool;
    let there: usize = pool.members().values().map(Vec::len).sum();
    // What waits goes before anything that runs.
    let room = if node.density.is_short() {
        0
    } else {
        pool.room(there)
    };
    let wanted = plan::wanted(state, node.id(), &pool.recent(), pool.bounds.unasked, room);
    let missing = pool.compare(&wanted);
    let (leaving, blank) = pool.blanks.compare(state, node, room > 0);
    lock(&pool.leaving).extend(leaving.into_iter().map(Leaving::from));
    if pool.end_leaving().await {
        // Files may go that were held.
        node.wake.notify_one();
    }
    // A fork that is under way goes first; its end wakes us.
    if node.cancel.is_cancelled() || !node.forks.is_idle() {
        return false;
    }
    if missing.is_empty() {
        return match blank {
            Some(kind) => match pool.blanks.make(node, kind).await {
                Ok(()) => true,
                Err(problem) => {
                    tracing::warn!(
                        problem,
                        "a process could not be started ahead; trying again later"
                    );
                    false
                }
            },
            None => false,
        };
    }
    let together = std::thread::available_parallelism().map_or(2, usize::from);
    let mut making = JoinSet::new();
    for snapshot in missing.iter().take(together) {
        let (node, state, snapshot) = (Arc::clone(node), Arc::clone(state), *snapshot);
        making.spawn(async move { (snapshot, make(&node, &state, snapshot).await) });
    }
    while let Some(made) = making.join_next().await {
        match made {
            Ok((snapshot, Ok(member))) => {
                pool.members().entry(snapshot).or_default().push(member);
            }
            Ok((snapshot, Err(problem))) => pool.note_failure(snapshot, &problem),
            Err(panic) => {
                tracing::error!(%panic, "making a fork ready broke off");
                return false;
            }
        }
    }
    missing.len() > together
}

/// Starts and loads one.
async fn make(node: &Arc<Node>, state: &State, id: SnapshotId) -> Result<Member, String> {
    let hold = node.pool.hold(id);
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
            async { start_new_child(node, &child, hardware, &parts).await },
        )?;
        let handle = node.vms.get(child.id).ok_or(gone)?;
        handle
            .ask(|done| Command::Load { stream, done })
            .await
            .map_err(|error| error.to_string())??;
        Ok(handle)
    };
    let result = started.await;
    let member = |handle| Member {
        id: child.id,
        handle,
        _hold: hold,
    };
    match result {
        Ok(handle) => {
            failpoint::reached("pool.made");
            Ok(member(handle))
        }
        Err(problem) => {
            let begun = node.vms.get(child.id).map(member).map(Leaving::from);
            lock(&node.pool.leaving).extend(begun);
            Err(problem)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_does_not_load_is_left_alone_for_a_while_and_the_others_are_not() {
        let pool = Pool::new(Bounds {
            unasked: 0,
            blank: 0,
            reserve: 0,
        });
        let (bad, good) = (SnapshotId(1), SnapshotId(2));
        let wanted = BTreeMap::from([(bad, 2), (good, 1)]);
        pool.note_failure(bad, "it is damaged");
        assert_eq!(pool.compare(&wanted), [good]);
        tokio::time::advance(AFTER_FAILURE).await;
        assert_eq!(pool.compare(&wanted), [bad, bad, good]);
    }

    #[test]
    fn files_are_held_until_the_last_that_may_have_them_open_is_gone() {
        let pool = Pool::new(Bounds {
            unasked: 0,
            blank: 0,
            reserve: 0,
        });
        let (first, second) = (pool.hold(SnapshotId(1)), pool.hold(SnapshotId(1)));
        drop(first);
        assert_eq!(pool.held(), BTreeSet::from([SnapshotId(1)]));
        drop(second);
        assert_eq!(pool.held(), BTreeSet::new());
    }
}
