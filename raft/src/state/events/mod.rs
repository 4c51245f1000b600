//! What happens in the cluster, in one order: the newest events, with the position of each. They follow from what commands changed
//! ([`tell`]), so that every member has the same ones under the same positions, whether it applied the commands or was given a state.
//! Read by the API, which shows each only to those for whom its object is there.

mod kind;
mod tell;

use std::sync::Arc;

pub use kind::EventKind;
pub(super) use tell::Before;

use super::{
    ids::{CertificateId, ImageId, LeaseId, MapId, NodeId, OperationId, SnapshotId, TokenId, VmId},
    model::{Millis, State},
    names,
    owners::{Actor, Captured, Ownership},
    response::Rejection,
    shared_map::SharedMap,
};

/// How many events are kept, at least.
pub const KEPT_EVENTS: usize = 8_192;

/// The oldest go by so many.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, by the cluster's time.
    pub at: Millis,
    /// What.
    pub kind: EventKind,
    /// To what.
    pub subject: Subject,
    /// Its name then; empty where it has none.
    pub name: String,
    /// The name of the node where it happened, or that it is about; empty where no one is.
    pub node: String,
    /// More of it, for people: why something failed, what it was changed to.
    pub detail: String,
    /// For whom it happened.
    pub audience: Audience,
    /// Of a snapshot or an operation: the VM that it is of, as it was then.
    pub vm: Option<Captured>,
}

/// What something happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The cluster as a whole, and its authority.
    Cluster,
    /// A host.
    Node(NodeId),
    /// A join token.
    Token(TokenId),
    /// A certificate of somebody who uses the cluster.
    Certificate(CertificateId),
    /// What an owner may have; the name is the owner's.
    Quota,
    /// A lease.
    Lease(LeaseId),
    /// An image.
    Image(ImageId),
    /// A VM.
    Vm(VmId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// An operation.
    Operation(OperationId),
    /// A map that is left to the cluster.
    Map(MapId),
}

/// For whom something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Everybody: it is about the cluster or its hosts.
    Everybody,
    /// Administrators.
    Administrators,
    /// Those who could see the object.
    Of(Ownership),
}

/// The newest events by their positions, which count all there ever were, from 1 and without a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Events(SharedMap<u64, Arc<Event>>);

/// A position from which it cannot be gone on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPosition {
    /// What came next is not kept any more.
    #[error("the events that followed {position} are not kept any more: the oldest is {oldest}")]
    TooOld {
        /// What was asked for.
        position: u64,
        /// The oldest that is kept.
        oldest: u64,
    },
    /// There never was such an event.
    #[error("there is no event {position} yet: the newest is {newest}")]
    NotYet {
        /// What was asked for.
        position: u64,
        /// The newest.
        newest: u64,
    },
}

impl Events {
    /// The position of the newest event; 0 while nothing has happened.
    pub fn newest(&self) -> u64 {
        self.0.last().map_or(0, |(position, _)| *position)
    }

    /// The position before the oldest event that is kept.
    pub fn before_oldest(&self) -> u64 {
        self.0.keys().next().map_or(0, |oldest| oldest - 1)
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that are kept, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Arc<Event>)> {
        self.0.iter().map(|(position, event)| (*position, event))
    }

    /// What happened after a position, the oldest first.
    ///
    /// # Errors
    /// Some of it is not kept any more, or there is no such position.
    pub fn after(
        &self,
        position: u64,
    ) -> Result<impl Iterator<Item = (u64, &Arc<Event>)>, BadPosition> {
        let (before_oldest, newest) = (self.before_oldest(), self.newest());
        if position < before_oldest {
            let oldest = before_oldest + 1;
            return Err(BadPosition::TooOld { position, oldest });
        }
        if position > newest {
            return Err(BadPosition::NotYet { position, newest });
        }
        let after = self.0.range(position + 1..);
        Ok(after.map(|(position, event)| (*position, event)))
    }

    /// Notes what happened, and forgets the oldest when there are more than enough.
    fn push(&mut self, event: Event) {
        self.0.insert(self.newest() + 1, Arc::new(event));
        if self.len() >= KEPT_EVENTS + FORGOTTEN_AT_ONCE {
            let oldest: Vec<u64> = self.0.keys().take(FORGOTTEN_AT_ONCE).copied().collect();
            for position in oldest {
                self.0.remove(&position);
            }
        }
    }

    /// Whether they are as they must be: bounded, and without a gap.
    pub(super) fn is_sound(&self) -> bool {
        self.len() < KEPT_EVENTS + FORGOTTEN_AT_ONCE
            && self.newest() - self.before_oldest() == self.len() as u64
    }
}

impl FromIterator<(u64, Arc<Event>)> for Events {
    fn from_iter<I: IntoIterator<Item = (u64, Arc<Event>)>>(events: I) -> Self {
        Self(events.into_iter().collect())
    }
}

impl Event {
    /// Whether it is about a VM: that itself, or a snapshot or an operation of it.
    pub fn is_about(&self, vm: VmId) -> bool {
        self.subject == Subject::Vm(vm) || self.vm.as_ref().is_some_and(|of| of.vm == vm)
    }

    /// The same as somebody may read it, for whom it is there: with whom something is shared only its owner is told.
    pub fn detail_for(&self, by: &Actor) -> &str {
        let is_of_owner = match &self.audience {
            Audience::Of(ownership) => ownership.is_ruled_by(by),
            Audience::Everybody | Audience::Administrators => true,
        };
        match is_of_owner || !self.kind.is_about_sharing() {
            true => &self.detail,
            false => "",
        }
    }
}

impl State {
    /// Whether something happened for somebody: who could see the object then, and can still. What became of one that is gone is its
    /// owner's, whoever it was shared with.
    pub fn shows_event(&self, event: &Event, by: &Actor) -> bool {
        let ownership = match &event.audience {
            Audience::Everybody => return true,
            Audience::Administrators => return by.is_admin,
            Audience::Of(ownership) => ownership,
        };
        let sees_now = || {
            let now = match event.subject {
                Subject::Image(id) => self.images.get(&id).map(|one| &one.ownership),
                Subject::Vm(id) => self.vms.get(&id).map(|one| &one.ownership),
                Subject::Snapshot(id) => self.snapshots.get(&id).map(|one| &one.ownership),
                _ => None,
            };
            now.is_some_and(|now| now.is_seen_by(by))
        };
        by.sees(&ownership.owner) || (ownership.is_seen_by(by) && sees_now())
    }

    /// The VM that somebody means who asks for its events: one that there is, or the last that there was of this name or id.
    ///
    /// # Errors
    /// There is none, and no event that is there for this one tells of any.
    pub fn vm_of_events(&self, by: &Actor, text: &str) -> Result<VmId, Rejection> {
        let refused = match names::vm(self, by, text) {
            Ok(vm) => return Ok(vm.id),
            Err(refused @ (Rejection::NotFound { .. } | Rejection::GivenUp { .. })) => refused,
            Err(refused) => return Err(refused),
        };
        let is_it = |event: &Event, vm: VmId| {
            let Audience::Of(Ownership { owner, .. }) = &event.audience else {
                return false;
            };
            let named = match text.split_once('/') {
                Some((of, name)) => of == owner && name == event.name,
                None => text == event.name,
            };
            (named || text.parse() == Ok(vm)) && self.shows_event(event, by)
        };
        let told = self
            .events
            .iter()
            .filter_map(|(_, event)| match event.subject {
                Subject::Vm(vm) if is_it(event, vm) => Some(vm),
                _ => None,
            });
        told.last().ok_or(refused)
    }
}
