//! How long objects are kept: leases, and the end of what has outlived its time.

use std::{collections::BTreeSet, sync::Arc};

use super::{invalid, operation, removal, schedule, vm};
use crate::state::{
    command::ObjectName,
    ids::{LeaseId, SnapshotId, VmId},
    model::{Lease, Life, Millis, OperationKind, Overdue, State},
    names,
    owners::{Actor, Owned as _},
    response::{Kind, Outcome, Rejection, Response},
};

/// How short and how long a lease may be, milliseconds: shorter than the cluster takes to elect a leader would end it by that.
pub(super) const LEASE_TTL: std::ops::RangeInclusive<Millis> = 10_000..=24 * 3_600_000;
/// How long something may be kept that has a time, milliseconds.
const LONGEST_TTL: Millis = 10 * 366 * 24 * 3_600_000;
/// How many leases an owner may hold.
const MOST_LEASES: usize = 1_000;
/// Of a capture whose snapshot was not to be kept for so long.
const TOO_LATE: &str = "its snapshot was not to be kept for longer";

/// Refuses to keep something of an owner as long as what is over, or is another's: who ends that would end what is not its own.
pub(super) fn check(
    state: &State,
    by: &Actor,
    owner: &str,
    now: Millis,
    life: Life,
) -> Result<(), Rejection> {
    match life {
        Life::Unbounded => Ok(()),
        Life::Until(end) if end > now && end - now <= LONGEST_TTL => Ok(()),
        Life::Until(end) if end > now => Err(invalid("ttl", "must be at most ten years")),
        Life::Until(_) => Err(invalid("ttl", "is over already")),
        Life::Leased(lease) => {
            let name = lease.to_string();
            match names::lease(state, by, &name)? {
                (_, lease) if lease.owner == owner => Ok(()),
                _ => Err(names::not_found(Kind::Lease, &name)),
            }
        }
    }
}

pub(super) fn create(
    state: &mut State,
    by: &Actor,
    now: Millis,
    id: LeaseId,
    ttl: Millis,
) -> Outcome {
    names::check_owner("owner", &by.owner)?;
    if !LEASE_TTL.contains(&ttl) {
        return Err(invalid("ttl", "must be 10 s to 24 h"));
    }
    if state.leases.contains_key(&id) {
        return Err(removal::id_taken(Kind::Lease, id));
    }
    let own = state
        .leases
        .values()
        .filter(|lease| lease.owner == by.owner);
    if own.count() >= MOST_LEASES {
        return Err(Rejection::OverQuota {
            owner: by.owner.clone(),
            exceeded: vec![format!("an owner may hold {MOST_LEASES} leases")],
        });
    }
    let lease = Lease {
        owner: by.owner.clone(),
        ttl,
        expires_at: now.saturating_add(ttl),
        created_at: now,
    };
    state.leases.insert(id, lease);
    Ok(Response::Lease(id))
}

pub(super) fn renew(state: &mut State, by: &Actor, now: Millis, lease: &str) -> Outcome {
    let id = names::lease(state, by, lease)?.0;
    if let Some(lease) = state.leases.get_mut(&id) {
        let end = now.saturating_add(lease.ttl);
        lease.expires_at = lease.expires_at.max(end);
    }
    Ok(Response::Lease(id))
}

pub(super) fn end(state: &mut State, by: &Actor, now: Millis, lease: &str) -> Outcome {
    let id = names::lease(state, by, lease)?.0;
    end_lease(state, now, id);
    Ok(Response::EndedLease(id))
}

/// Ends a lease, and with it all that is kept by it. Nothing when it has ended.
pub(super) fn end_lease(state: &mut State, now: Millis, id: LeaseId) {
    state.leases.remove(&id);
    let overdue = Overdue {
        vms: state.vms.leased(id).collect(),
        snapshots: of_snapshots(state, |life| life == Life::Leased(id)),
        ..Overdue::default()
    };
    remove(state, now, overdue);
}

pub(super) fn set(
    state: &mut State,
    by: &Actor,
    now: Millis,
    object: &ObjectName,
    life: Life,
) -> Outcome {
    match object {
        ObjectName::Image(_) => Err(invalid("object", "an image is kept until it is deleted")),
        ObjectName::Vm(name) => {
            let vm = names::vm(state, by, name)?;
            vm.check_ruled_by(by)?;
            let id = vm.id;
            check(state, by, &vm.ownership.owner, now, life)?;
            state.vms.change(&id, |vm| vm.life = life);
            Ok(Response::Vm(id))
        }
        ObjectName::Snapshot(name) => {
            let snapshot = names::snapshot(state, by, name)?;
            snapshot.check_ruled_by(by)?;
            let id = snapshot.id;
            check(state, by, &snapshot.ownership.owner, now, life)?;
            if let Some(snapshot) = state.snapshots.get_mut(&id) {
                Arc::make_mut(snapshot).life = life;
            }
            Ok(Response::Snapshot(id))
        }
    }
}

/// Never refused: ends the leases that nobody renewed, and what has outlived its time.
pub(super) fn expire(state: &mut State, now: Millis) -> Outcome {
    let overdue = state.overdue(now);
    for lease in &overdue.leases {
        state.leases.remove(lease);
    }
    remove(state, now, overdue);
    Ok(Response::Done)
}

fn remove(state: &mut State, now: Millis, overdue: Overdue) {
    for id in overdue.vms {
        schedule::forget(state, now, id);
        vm::remove(state, now, id);
    }
    for id in overdue.snapshots {
        let_go(state, now, id);
    }
    for id in overdue.maps {
        state.maps.remove(&id);
    }
}

/// Takes from a snapshot what keeps it: it goes at once, or with the last that depends on it.
fn let_go(state: &mut State, now: Millis, id: SnapshotId) {
    let Some(snapshot) = state.snapshots.get_mut(&id).map(Arc::make_mut) else {
        return;
    };
    snapshot.name = None;
    snapshot.is_scheduled = false;
    snapshot.life = Life::Unbounded;
    snapshot.warm = 0;
    let maker = snapshot.operation;
    let captures_for_it = state.operations.get(&maker);
    if captures_for_it.is_some_and(|operation| operation.kind == OperationKind::Snapshot) {
        // Nothing when it has ended.
        let _done = operation::fail_operation(state, now, maker, TOO_LATE, false);
    }
    removal::collect(state, now, Some(id));
}

fn of_snapshots(state: &State, is_over: impl Fn(Life) -> bool) -> Vec<SnapshotId> {
    let all = state.snapshots.values();
    all.filter(|snapshot| is_over(snapshot.life))
        .map(|snapshot| snapshot.id)
        .collect()
}

impl State {
    /// What has outlived its time.
    pub fn overdue(&self, now: Millis) -> Overdue {
        let leases = self.leases.iter();
        let leases: Vec<LeaseId> = leases
            .filter(|(_, lease)| lease.expires_at <= now)
            .map(|(id, _)| *id)
            .collect();
        let ended: BTreeSet<LeaseId> = leases.iter().copied().collect();
        let is_over = |life| match life {
            Life::Unbounded => false,
            Life::Until(end) => end <= now,
            Life::Leased(lease) => ended.contains(&lease),
        };
        let leased = leases.iter().flat_map(|lease| self.vms.leased(*lease));
        let maps = self.maps.values();
        let maps = maps.filter(|map| map.kept_until().is_some_and(|end| end <= now));
        let vms: Vec<VmId> = self.vms.ending_by(now).chain(leased).collect();
        Overdue {
            vms,
            snapshots: of_snapshots(self, is_over),
            maps: maps.map(|map| map.id).collect(),
            leases,
        }
    }
}
