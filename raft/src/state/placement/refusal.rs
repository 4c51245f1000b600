//! Why there is no room for all.

use std::{cmp::Reverse, collections::BinaryHeap, fmt};

use super::{Host, Limit, Request};
use crate::state::{command::Room, model::Accelerator};

/// Of so many nodes at most is said why.
const LISTED: usize = 12;

/// Not all have a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// How many have none.
    pub short: u32,
    /// Why, a line for each node: first those that lack room.
    pub reasons: Vec<String>,
}

/// Why a node takes none of a request, whatever it has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit<'a> {
    /// Nobody has heard of it for a while.
    Offline,
    /// New VMs are not placed there.
    Cordoned,
    /// It has not said what it can do.
    Unreported,
    /// It has no QEMU that can be used.
    NoQemu,
    /// It cannot run this.
    Lacks(Accelerator),
    /// It has another QEMU than it takes to go on from a moment.
    OtherQemu {
        /// What it has.
        has: &'a str,
        /// What it takes.
        wanted: &'a str,
    },
    /// It has another processor than it takes to go on from a moment.
    OtherProcessor {
        /// What it has.
        has: &'a str,
        /// What it takes.
        wanted: &'a str,
    },
    /// It has not this label.
    Unlabelled {
        /// The label's key.
        key: &'a str,
        /// The value that it should have.
        value: &'a str,
    },
    /// It has a VM that the new ones are to be apart from.
    Has(&'a str),
}

impl fmt::Display for Unfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline => write!(f, "is offline"),
            Self::Cordoned => write!(f, "is cordoned"),
            Self::Unreported => write!(f, "has not reported what it can do yet"),
            Self::NoQemu => write!(f, "has no usable QEMU"),
            Self::Lacks(Accelerator::Auto) => write!(f, "has no accelerator, not even emulation"),
            Self::Lacks(Accelerator::Kvm) => write!(f, "has no usable KVM"),
            Self::Lacks(Accelerator::Tcg) => write!(f, "has no software emulation"),
            Self::OtherQemu { has, wanted } => {
                write!(f, "has QEMU {has}, and QEMU {wanted} captured it")
            }
            Self::OtherProcessor { has, wanted } => write!(
                f,
                "has another processor ({has}) than it was captured on ({wanted})"
            ),
            Self::Unlabelled { key, value } => write!(f, "has no label {key}={value}"),
            Self::Has(what) if what.contains('=') => write!(f, "has a VM with {what}"),
            Self::Has(what) => write!(f, "has VM {what}"),
        }
    }
}

/// Says why. What is lacking is told as if the request had been spread: whoever has the least room lacks the most.
pub(super) fn refusal(request: &Request, hosts: &[Host<'_>]) -> Refusal {
    let most: Vec<(u32, Limit)> = hosts.iter().map(|host| host.most(request)).collect();
    let fit = |number: &usize| hosts[*number].unfit.is_none();
    let room: u64 = (0..hosts.len())
        .filter(fit)
        .map(|number| u64::from(most[number].0))
        .sum();
    let short = request.count.saturating_sub(room as u32);

    let mut lacking = vec![0_u32; hosts.len()];
    let lacks = |number: &usize| fit(number) && most[*number].1 != Limit::One;
    let mut lowest: BinaryHeap<_> = (0..hosts.len())
        .filter(lacks)
        .map(|number| Reverse((most[number].0, number)))
        .collect();
    for _ in 0..short {
        if let Some(Reverse((has, number))) = lowest.pop() {
            lacking[number] += 1;
            lowest.push(Reverse((has + 1, number)));
        }
    }
    let mut order: Vec<usize> = (0..hosts.len()).collect();
    // What is just short is more telling than what could not take any.
    order.sort_by_key(|number| (Reverse(lacking[*number]), !fit(number)));
    let telling = |number: &usize| !fit(number) || lacking[*number] > 0 || !lacks(number);
    order.retain(telling);
    let more = order.len().saturating_sub(LISTED);
    let mut reasons: Vec<String> = order
        .iter()
        .take(LISTED)
        .map(|number| reason(request, &hosts[*number], most[*number].1, lacking[*number]))
        .collect();
    if more > 0 {
        reasons.push(format!("and {more} more nodes"));
    }
    Refusal { short, reasons }
}

fn reason(request: &Request, host: &Host<'_>, limit: Limit, lacking: u32) -> String {
    let (name, mib) = (host.name, |bytes: u64| bytes >> 20);
    let each = request.memory_bytes.div_ceil(1 << 20);
    match (host.unfit, limit) {
        (Some(unfit), _) => format!("{name} {unfit}"),
        (None, Limit::Promised) => format!(
            "{name} memory {lacking} short ({each} MiB each; of {} MiB {} are promised{})",
            mib(host.memory_bytes),
            mib(host.load.promised_bytes()),
            match host.shared_bytes {
                0 => String::new(),
                shared => format!(", {} to be shared", mib(shared)),
            }
        ),
        (None, Limit::Memory) => format!(
            "{name} memory {lacking} short ({each} MiB each; {} MiB are free beyond what is kept back{})",
            mib(host.free_bytes().unwrap_or(0)),
            // A host under pressure says that, too.
            match host.room {
                Some(Room { memory_mib: 0, .. }) => ", or memory is short",
                _ => "",
            }
        ),
        (None, Limit::Disk) => format!(
            "{name} disk {lacking} short ({} MiB are free beyond what is kept back; {} MiB have to be brought)",
            mib(host.free_disk().unwrap_or(0)),
            mib(host.disk_bytes),
        ),
        (None, Limit::One) => format!("{name} takes one"),
    }
}
