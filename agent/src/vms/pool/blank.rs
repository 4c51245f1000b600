//! Processes that belong to no snapshot yet: each waits without its memory and its disk's layers, which are said when a child of its
//! kind is to be started; its image is open. They are there for children that nobody made ready, and cost a process each.

use std::sync::{Arc, Mutex};

use raft::state::{State, VmId};
use tokio::time::Instant;
use ulid::Ulid;

use super::{AFTER_FAILURE, RECENT, lock};
use crate::{
    errors::chain,
    node::Node,
    vms::{
        VmHandle,
        command::Command,
        launch::{self, Kind},
    },
};

/// A process that waits, and is nobody's.
#[derive(Debug)]
pub struct Blank {
    /// What it goes by.
    pub id: VmId,
    /// Its task.
    pub handle: VmHandle,
    kind: Kind,
}

/// Those of a node.
#[derive(Debug, Default)]
pub struct Blanks {
    /// How many are kept.
    count: usize,
    waiting: Mutex<Vec<Blank>>,
    /// The kind that was started last, and when.
    last: Mutex<Option<(Kind, Instant)>>,
    /// When one could not be started, or ended by itself.
    failed: Mutex<Option<Instant>>,
}

impl Blanks {
    /// None yet.
    pub fn new(count: u32) -> Self {
        Self {
            count: count as usize,
            ..Self::default()
        }
    }

    /// Takes one of a kind, and takes note that the kind is in use.
    pub fn take(&self, kind: &Kind) -> Option<Blank> {
        *lock(&self.last) = Some((kind.clone(), Instant::now()));
        let mut waiting = lock(&self.waiting);
        let fits = |blank: &Blank| blank.kind == *kind && blank.handle.pid() != 0;
        let found = waiting.iter().position(fits)?;
        Some(waiting.swap_remove(found))
    }

    /// Has one of a kind wait, for a child that will be made here soon.
    pub async fn expect(&self, node: &Arc<Node>, kind: Kind) {
        *lock(&self.last) = Some((kind.clone(), Instant::now()));
        let waits = lock(&self.waiting).iter().any(|blank| blank.kind == kind);
        if self.count > 0
            && !waits
            && let Err(problem) = self.make(node, kind).await
        {
            // The child's own start meets it again and says so.
            tracing::debug!(problem, "no process could be started ahead");
        }
    }

    /// The kind of which some should wait: what was started lately, or else what the newest VM here is.
    fn wanted(&self, state: &State, node: &Node) -> Option<Kind> {
        let last = lock(&self.last).clone();
        if let Some((kind, at)) = last
            && at.elapsed() < RECENT
            && state.images.contains_key(&kind.image)
        {
            return Some(kind);
        }
        let here = state.vms.of(node.id());
        let newest = here.max_by_key(|vm| (vm.created_at, vm.id))?;
        let lineage = node.vms.get(newest.id)?.lineage();
        let hardware = launch::hardware_of(state, newest, &node.fitness).ok()?;
        Kind::of(state, &newest.spec, hardware, lineage).ok()
    }

    /// What should not wait any more, and the kind of which one is missing. `room`: whether there is memory for any.
    pub fn compare(&self, state: &State, node: &Node, room: bool) -> (Vec<Blank>, Option<Kind>) {
        let wanted = self.wanted(state, node).filter(|_| room && self.count > 0);
        let mut waiting = lock(&self.waiting);
        let leaves = |blank: &mut Blank| {
            blank.handle.pid() == 0 || wanted.as_ref().is_none_or(|kind| blank.kind != *kind)
        };
        let leaving: Vec<Blank> = waiting.extract_if(.., leaves).collect();
        if leaving.iter().any(|blank| blank.handle.pid() == 0) {
            self.note_failure();
        }
        let rests = lock(&self.failed).is_some_and(|at| at.elapsed() < AFTER_FAILURE);
        let missing = wanted.filter(|_| !rests && waiting.len() < self.count);
        (leaving, missing)
    }

    /// None is started for a while.
    fn note_failure(&self) {
        *lock(&self.failed) = Some(Instant::now());
    }

    /// Gives up all.
    pub fn take_all(&self) -> Vec<Blank> {
        std::mem::take(&mut *lock(&self.waiting))
    }

    /// Starts one.
    pub async fn make(&self, node: &Arc<Node>, kind: Kind) -> Result<(), String> {
        node.fetch_image_disk(kind.image)
            .await
            .inspect_err(|_| self.note_failure())?;
        let id = VmId(Ulid::new().0);
        let handle = node
            .vms
            .get_or_create(id, kind.lineage)
            .map_err(|error| chain(&error))?;
        let launch = launch::shapeless(id, kind.clone(), handle.place());
        let started = handle
            .ask(|done| Command::Prestart {
                launch: Box::new(launch),
                done,
            })
            .await
            .map_err(|error| error.to_string())?;
        if started.is_err() {
            self.note_failure();
            // One that is gone has nothing left.
            let _gone = handle.tell(Command::Destroy).await;
        } else {
            lock(&self.waiting).push(Blank { id, handle, kind });
        }
        started
    }
}
