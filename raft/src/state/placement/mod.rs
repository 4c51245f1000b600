//! The planner: which hosts take what a request makes, all of it in one decision, or why there is no room for all.
//!
//! It knows nothing of the state: `apply::placement` tells it what there is, for each command that makes VMs, and whoever wants to tell nodes
//! ahead asks it the same way. What it aims at, after the constraints, which always hold:
//!
//! - [`Order::Spread`]: zones that have as many as each other, then nodes that have, then as little as can be that has to move, counted for
//!   each VM, then the least load.
//! - [`Order::Near`]: as little as can be that has to move, counted once for each node, then the least load.
//! - [`Order::Lightest`]: the least load, then as little as can be that has to move.
//!
//! The load that counts is the largest of a node that takes some.

mod balance;
mod near;
mod refusal;
mod spread;
#[cfg(test)]
mod tests;

pub use self::refusal::{Refusal, Unfit};
use super::{command::Room, ids::NodeId, loads::Load};

/// A load of 1: a node whose memory is all promised.
const FULL: u128 = 1_000_000;
/// So many virtual processors for each real one are a load of 1. More of them are no reason to refuse: most stand idle.
const CPUS_EACH: u128 = 8;

/// What hosts are taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Those with the least load.
    Lightest,
    /// Those to which little has to be brought.
    Near,
    /// All, evenly.
    Spread,
}

/// What is to be placed: VMs that are all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// How many.
    pub count: u32,
    /// Which hosts first.
    pub order: Order,
    /// Memory that is each one's own, bytes.
    pub memory_bytes: u64,
    /// Virtual processors of each.
    pub cpus: u32,
    /// Disk that each begins with, bytes.
    pub disk_bytes: u64,
    /// Whether a host takes one of them at most.
    pub one_each: bool,
}

/// A host, as far as it matters to a request.
#[derive(Debug, Clone)]
pub struct Host<'a> {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: &'a str,
    /// Its zone; all that are in none are in one.
    pub zone: &'a str,
    /// Why it takes none, whatever it has room for.
    pub unfit: Option<Unfit<'a>>,
    /// Its memory, bytes.
    pub memory_bytes: u64,
    /// Its processors.
    pub cpus: u32,
    /// What its VMs take.
    pub load: Load,
    /// How many VMs it has.
    pub vms: usize,
    /// What it said is free; `None` where it has not.
    pub room: Option<Room>,
    /// Memory that the first of the request brings and all share, bytes.
    pub shared_bytes: u64,
    /// What has to be brought to it before the first begins, bytes, by an estimate.
    pub moves_bytes: u64,
    /// So much of that is sure, and needs disk.
    pub disk_bytes: u64,
}

/// Why a host takes no more of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// What its VMs may take in the end.
    Promised,
    /// What it has free now.
    Memory,
    Disk,
    /// It takes one.
    One,
}

impl Host<'_> {
    /// Memory that it has free now, without what VMs take of which it may not have known, bytes. What it says is believed up to what it has.
    fn free_bytes(&self) -> Option<u64> {
        let said = u64::from(self.room?.memory_mib) << 20;
        let said = said.min(self.memory_bytes);
        Some(said.saturating_sub(self.load.unseen_bytes))
    }

    /// Disk that it has free now, bytes.
    fn free_disk(&self) -> Option<u64> {
        self.room.map(|room| u64::from(room.disk_mib) << 20)
    }

    /// How many of a request it has room for, and what keeps it from having more. Looks at nothing but room.
    fn most(&self, request: &Request) -> (u32, Limit) {
        let of = |room: u64, each: u64| room.checked_div(each).unwrap_or(u64::MAX);
        let beyond = self
            .memory_bytes
            .checked_sub(self.load.promised_bytes().saturating_add(self.shared_bytes));
        let mut most = (
            of(beyond.unwrap_or(0), request.memory_bytes),
            Limit::Promised,
        );
        if let Some(free) = self.free_bytes() {
            most = least(most, (of(free, request.memory_bytes), Limit::Memory));
        }
        if let Some(free) = self.free_disk() {
            let beyond = free.checked_sub(self.disk_bytes);
            let fit = beyond.map_or(0, |beyond| of(beyond, request.disk_bytes));
            most = least(most, (fit, Limit::Disk));
        }
        if request.one_each {
            most = least(most, (1, Limit::One));
        }
        let (most, limit) = most;
        (most.min(u64::from(request.count)) as u32, limit)
    }

    /// Its load once it has so many of a request, in millionths: how much of its memory is promised, or how many processors are, whichever is more.
    fn load_with(&self, request: &Request, count: u32) -> u64 {
        let first = if count > 0 { self.shared_bytes } else { 0 };
        let count = u128::from(count);
        let memory = u128::from(self.load.promised_bytes())
            + u128::from(first)
            + count * u128::from(request.memory_bytes);
        let cpus = u128::from(self.load.cpus) + count * u128::from(request.cpus);
        let memory = memory * FULL / u128::from(self.memory_bytes.max(1));
        let cpus = cpus * FULL / (u128::from(self.cpus.max(1)) * CPUS_EACH);
        u64::try_from(memory.max(cpus)).unwrap_or(u64::MAX)
    }
}

fn least(one: (u64, Limit), other: (u64, Limit)) -> (u64, Limit) {
    if other.0 < one.0 { other } else { one }
}

/// A host that takes some of a request.
#[derive(Debug, Clone, Copy)]
struct Taker<'a> {
    host: &'a Host<'a>,
    /// How many it has room for, one at least.
    most: u32,
}

/// The nodes for all that is asked for, one after the other, or why not all have a place.
pub fn places(request: &Request, hosts: &[Host<'_>]) -> Result<Vec<NodeId>, Refusal> {
    let takers = hosts.iter().filter(|host| host.unfit.is_none());
    let takers = takers.map(|host| Taker {
        host,
        most: host.most(request).0,
    });
    let takers: Vec<Taker<'_>> = takers.filter(|taker| taker.most > 0).collect();
    let room: u64 = takers.iter().map(|taker| u64::from(taker.most)).sum();
    if room < u64::from(request.count) {
        return Err(refusal::refusal(request, hosts));
    }
    Ok(match request.order {
        Order::Lightest => balance::balance(request, &takers),
        Order::Near => balance::balance(request, &near::nearest(request, &takers)),
        Order::Spread => spread::spread(request, &takers),
    })
}
