//! Whether this host has room for new work: what it needs, by an estimate on the safe side, against what is free now beyond what
//! is kept back. Work that is refused has not begun.
//!
//! Two pieces of work that are admitted at the same time are not added up: what is kept back covers that. The planner, which places VMs on
//! nodes, estimates them alike (`raft::state::memory_of_boot` and `memory_of_fork`); this is the last word.

use raft::state::{Room, memory_of_boot};

use crate::node::Node;

/// A reason begins with one of these, so that whoever waits for the work is told apart what is short.
pub const NO_MEMORY: &str = "no-capacity: ";
/// See [`NO_MEMORY`].
pub const NO_DISK: &str = "disk-full: ";

/// What is kept back for the host itself, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserves {
    /// Of memory.
    pub memory: u64,
    /// Of the data directory's file system.
    pub disk: u64,
}

/// What a piece of work needs, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Memory that cannot be evicted.
    pub memory: u64,
    /// Disk.
    pub disk: u64,
}

/// What a boot needs: in the end the guest touches all of its memory.
pub fn boot(memory_bytes: u64) -> Need {
    Need {
        memory: memory_of_boot(memory_bytes),
        disk: 0,
    }
}

/// Refuses what does not fit. `free` is what is free now.
fn check(need: Need, free: Need, reserves: Reserves) -> Result<(), String> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if need.memory > 0 && free.memory < need.memory.saturating_add(reserves.memory) {
        return Err(format!(
            "{NO_MEMORY}about {} MiB of memory are needed; {} MiB are free, of which {} MiB are kept back",
            mib(need.memory),
            free.memory >> 20,
            mib(reserves.memory)
        ));
    }
    if need.disk > 0 && free.disk < need.disk.saturating_add(reserves.disk) {
        return Err(format!(
            "{NO_DISK}about {} MiB of disk are needed; {} MiB are free, of which {} MiB are kept back",
            mib(need.disk),
            free.disk >> 20,
            mib(reserves.disk)
        ));
    }
    Ok(())
}

impl Node {
    /// What the planner is told that is free; `None` when it cannot be read.
    pub fn room(&self) -> Option<Room> {
        let read = || -> std::io::Result<Room> {
            let mib = |free: u64, kept: u64| {
                let mib = free.saturating_sub(kept) >> 20;
                u32::try_from(mib).unwrap_or(u32::MAX)
            };
            let memory = qemu::host::available_memory()?;
            Ok(Room {
                memory_mib: match self.density.is_short() {
                    true => 0,
                    false => mib(memory, self.reserves.memory),
                },
                disk_mib: mib(self.free_bytes()?, self.reserves.disk),
            })
        };
        read()
            .inspect_err(|error| tracing::debug!(%error, "what is free cannot be read"))
            .ok()
    }

    /// Refuses work that does not fit into what is free now.
    pub fn admit(&self, need: Need) -> Result<(), String> {
        if need.memory > 0 && self.density.is_short() {
            return Err(format!(
                "{NO_MEMORY}memory is short on node {}: nothing new is begun until it is not",
                self.identity.name
            ));
        }
        let free = Need {
            memory: qemu::host::available_memory()
                .map_err(|error| format!("free memory cannot be read: {error}"))?,
            disk: self
                .free_bytes()
                .map_err(|error| format!("free disk cannot be read: {error}"))?,
        };
        check(need, free, self.reserves)
            .map_err(|problem| format!("{problem} (node {})", self.identity.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_beside_the_reserves_is_refused() {
        let reserves = Reserves {
            memory: 10 << 20,
            disk: 20 << 20,
        };
        let of = |memory: u64, disk: u64| Need {
            memory: memory << 20,
            disk: disk << 20,
        };
        assert_eq!(check(of(90, 80), of(100, 100), reserves), Ok(()));
        let memory = check(of(91, 0), of(100, 100), reserves).unwrap_err();
        assert!(memory.starts_with(NO_MEMORY), "{memory}");
        let disk = check(of(1, 81), of(100, 100), reserves).unwrap_err();
        assert!(disk.starts_with(NO_DISK), "{disk}");
        // What needs nothing of it does not meet its shortage.
        assert_eq!(check(of(0, 1), of(0, 100), reserves), Ok(()));
        assert_eq!(check(of(1, 0), of(100, 0), reserves), Ok(()));
    }
}
