//! How much guests give way to the host. The more of them there are for each processor, the more: together they must leave the
//! agent its part, or it answers nobody for seconds after it has worked hard, and the cluster takes its node for lost.
//!
//! The kernel's scheduler lets everybody run in proportion to their weights (`sched(7)`; a nice value is a factor of 1.25), and one
//! that had more than its part waits until all others had theirs.

use std::collections::BTreeMap;

use qemu::sys::spawn::{GUEST_NICE, set_nice};

/// The guests' priorities, as they were set last, by process id.
#[derive(Debug, Default)]
pub struct Priorities(BTreeMap<u32, i32>);

impl Priorities {
    /// Sets what has changed for these processes. What is not known here is set in any case: an agent of before may have set it
    /// otherwise.
    pub fn adjust(&mut self, pids: &[u32]) {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = nice(pids.len(), processors);
        let before = std::mem::take(&mut self.0);
        for pid in pids {
            if before.get(pid) != Some(&wanted)
                && let Err(error) = set_nice(*pid, wanted)
            {
                tracing::debug!(pid, %error, "a guest's priority cannot be changed; trying again if it is still there");
                continue;
            }
            self.0.insert(*pid, wanted);
        }
    }
}

/// The nice value of each of so many guests.
fn nice(guests: usize, processors: usize) -> i32 {
    match guests / processors {
        0..16 => GUEST_NICE,
        16..64 => 10,
        64..128 => 15,
        _ => 19,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weight of a nice value, as the kernel has it: 1024 at 0.
    fn weight(nice: i32) -> f64 {
        1024.0 / 1.25_f64.powi(nice)
    }

    #[test]
    fn guests_leave_the_agent_its_part_however_many_they_are() {
        for guests in 1..2000 {
            let all = guests as f64 * weight(nice(guests, 1));
            let agent = weight(-20);
            assert!(agent / (agent + all) > 0.75, "{guests}");
        }
    }

    #[test]
    fn a_few_guests_are_hardly_held_back() {
        assert_eq!(nice(1, 2), GUEST_NICE);
        assert_eq!(nice(31, 2), GUEST_NICE);
        assert_eq!(nice(1000, 2), 19);
    }
}
