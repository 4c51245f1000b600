//! What this node's processes take of the host's memory, and how many of them are idle.

use std::{collections::BTreeMap, io};

use proto::v1;
use qemu::{
    footprint::{self, Footprint},
    ksm::{self, Ksm},
};
use tokio::time::Instant;

/// A process that uses less of a processor than this is idle.
const IDLE: f64 = 0.05;

/// All processes together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// What they take.
    pub memory: Footprint,
    /// How many they are.
    pub processes: u32,
    /// Which part of the pages that were merged is saved: of ten equal ones, nine.
    pub saved_part: f64,
}

impl Usage {
    /// Adds up processes. Those that end meanwhile are left out.
    pub fn of(pids: &[u32]) -> io::Result<Self> {
        let mut all = Self {
            saved_part: saved_part()?,
            ..Self::default()
        };
        for pid in pids {
            let one = match footprint::of(*pid) {
                Ok(one) => one,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            all.processes += 1;
            all.memory.private += one.private;
            all.memory.shared += one.shared;
            all.memory.merged += one.merged;
            all.memory.merge_cost += one.merge_cost;
        }
        Ok(all)
    }
}

/// Which part of merged pages is saved, on this host.
pub fn saved_part() -> io::Result<f64> {
    let Some(ksm) = Ksm::of_host() else {
        return Ok(0.0);
    };
    let figures = ksm.figures()?;
    let all = figures.shared + figures.sharing;
    Ok(if all == 0 {
        0.0
    } else {
        figures.sharing as f64 / all as f64
    })
}

/// What one process takes, as users see it; `None` when it is gone.
pub fn memory_of(pid: u32) -> Option<v1::MemoryUse> {
    let seen = footprint::of(pid).and_then(|memory| Ok((memory, saved_part()?)));
    match seen {
        Ok((memory, saved_part)) => Some(memory_use(&memory, saved_part)),
        Err(error) if is_gone(&error) => None,
        Err(error) => {
            tracing::warn!(pid, %error, "what a VM takes of memory cannot be read");
            None
        }
    }
}

/// As users see it.
pub fn memory_use(memory: &Footprint, saved_part: f64) -> v1::MemoryUse {
    v1::MemoryUse {
        private_bytes: memory.private,
        shared_bytes: memory.shared,
        merged_bytes: memory.merged,
        merge_profit_bytes: (memory.merged as f64 * saved_part) as i64 - memory.merge_cost as i64,
    }
}

/// Tells idle processes by the processor time that they took since the last look.
#[derive(Debug, Default)]
pub struct Idle(BTreeMap<u32, (Instant, f64)>);

impl Idle {
    /// How many of these processes are idle. One that is seen for the first time is not.
    pub fn count(&mut self, pids: &[u32], now: Instant) -> io::Result<u32> {
        let mut seen = BTreeMap::new();
        let mut idle = 0;
        for pid in pids {
            let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => stat,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            let Some(seconds) = ksm::cpu_seconds(&stat) else {
                continue;
            };
            if let Some((then, before)) = self.0.get(pid) {
                let elapsed = now.saturating_duration_since(*then).as_secs_f64();
                idle += u32::from(elapsed > 0.0 && seconds - before < elapsed * IDLE);
            }
            seen.insert(*pid, (now, seconds));
        }
        self.0 = seen;
        Ok(idle)
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn processes_are_added_up_and_those_that_are_gone_left_out() {
        let own = std::process::id();
        let usage = Usage::of(&[own, u32::MAX >> 1]).unwrap();
        assert_eq!(usage.processes, 1);
        assert!(usage.memory.private > 0);
    }

    #[test]
    fn what_is_saved_is_less_what_it_costs() {
        let memory = Footprint {
            private: 1,
            shared: 2,
            merged: 1000,
            merge_cost: 64,
        };
        assert_eq!(memory_use(&memory, 0.9).merge_profit_bytes, 836);
        assert_eq!(memory_use(&memory, 0.0).merge_profit_bytes, -64);
    }

    #[test]
    fn a_process_that_hardly_runs_is_idle() {
        let mut sleeper = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pids = [sleeper.id()];
        let now = Instant::now();
        let mut idle = Idle::default();
        assert_eq!(idle.count(&pids, now).unwrap(), 0);
        assert_eq!(idle.count(&pids, now + Duration::from_secs(1)).unwrap(), 1);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(idle.count(&pids, now + Duration::from_secs(2)).unwrap(), 0);
    }
}
