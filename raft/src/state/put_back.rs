//! A state that is put back: to what one node has of it after a quorum was lost, or to what a backup has. What was done since is not in it,
//! and must not be taken for not done. Used offline, before there is a log that could be proposed to.

use std::sync::Arc;

use super::{
    apply::{add_node, revoke},
    authority::Replacement,
    ids::{NodeId, OperationId},
    model::{Forgotten, Millis, Operation, OperationKind, OperationState, State},
    names,
    response::{Kind, Rejection},
};

/// So many numbers are never given out: nodes that joined since have them, with certificates that are good.
const NUMBERS_LEFT_OUT: u64 = 1_000;

/// So long the nodes have to come back and take up forks that were under way, milliseconds: given up before, their children would be
/// ended, which may run.
const FORKS_WAIT: Millis = 24 * 3_600_000;

/// So much the hosts' clocks may differ, milliseconds.
const SKEW: Millis = 5_000;

/// What becomes of the certificates of those who use the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// They stay as good as the state knows them. Those that were revoked since, and that the state knows, are good again.
    Keep,
    /// All are revoked.
    Revoke,
}

impl Forgotten {
    /// Whether what has this ULID was made in a time of which the state knows nothing.
    pub fn holds(&self, id: u128) -> bool {
        (self.from..=self.to).contains(&made_at(id))
    }

    /// Whether what has this ULID was made before the state was put back.
    pub fn is_older(&self, id: u128) -> bool {
        made_at(id) <= self.to
    }
}

/// When a ULID was made: it begins with that.
fn made_at(id: u128) -> Millis {
    // 48 bits fit.
    (id >> 80) as Millis
}

impl State {
    /// The newest moment that the state tells of.
    pub fn newest(&self) -> Millis {
        let ended = |operation: &Operation| operation.ended_at.unwrap_or_default();
        let operations = self.operations.values();
        let certificates = self.certificates.values();
        (self.nodes.values().map(|one| one.created_at))
            .chain(self.tokens.values().map(|one| one.created_at))
            .chain(certificates.map(|one| one.created_at.max(one.revoked_at.unwrap_or_default())))
            .chain(self.images.values().map(|one| one.created_at))
            .chain(self.vms.values().map(|one| one.created_at))
            .chain(self.snapshots.values().map(|one| one.created_at))
            .chain(operations.map(|one| one.created_at.max(ended(one))))
            .chain(
                self.maps
                    .values()
                    .map(|one| one.created_at.max(one.ended_at.unwrap_or_default())),
            )
            .chain(self.tombstones.values().map(|one| one.created_at))
            .max()
            .unwrap_or_default()
    }

    /// Makes of a state, which may be older than what was done with it, one that can be gone on with. No join token is left: they may have
    /// been used.
    pub fn put_back(&mut self, now: Millis, users: Users) {
        let from = self.newest().saturating_sub(SKEW);
        let before = self.forgotten.as_ref();
        self.forgotten = Some(Forgotten {
            from: before.map_or(from, |before| before.from.min(from)),
            to: before.map_or(now, |before| before.to.max(now)),
        });
        self.next_node += NUMBERS_LEFT_OUT;
        self.tokens.clear();
        if users == Users::Revoke {
            for certificate in self.certificates.values_mut() {
                certificate.revoked_at.get_or_insert(now);
            }
        }
        let open = |one: &&Arc<Operation>| {
            one.kind == OperationKind::Fork && one.state == OperationState::Open
        };
        let forks: Vec<OperationId> = self
            .operations
            .values()
            .filter(open)
            .map(|one| one.id)
            .collect();
        for id in forks {
            if let Some(operation) = self.operations.get_mut(&id) {
                let operation = Arc::make_mut(operation);
                operation.expires_at = operation.expires_at.max(now + FORKS_WAIT);
            }
        }
    }

    /// Has a state that was put back know of the authority's replacement, which goes on whatever the state says: nodes trust what their
    /// disks say.
    pub fn put_replacement(&mut self, now: Millis, replacement: Option<Arc<Replacement>>) {
        if let Some(one) = &replacement
            && (one.is_compromised || !one.is_open())
        {
            revoke(self, now, &one.old.fingerprint);
        }
        self.replacement = replacement;
    }

    /// Notes a node that the state, which was put back, does not know: with the number that it has, which the state must not have, or with
    /// a new one.
    ///
    /// # Errors
    /// Another node has its name, or it has no name that is one.
    pub fn admit(
        &mut self,
        now: Millis,
        number: Option<NodeId>,
        name: &str,
        address: &str,
    ) -> Result<NodeId, Rejection> {
        names::check_name("name", name)?;
        if self.nodes.values().any(|node| node.name == name) {
            return Err(Rejection::NameTaken {
                kind: Kind::Node,
                name: name.to_owned(),
            });
        }
        let next = self.next_node;
        if let Some(number) = number {
            self.next_node = number;
        }
        let number = add_node(self, now, name, address, None);
        self.next_node = self.next_node.max(next);
        Ok(number)
    }
}
