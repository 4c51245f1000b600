//! How much guests give way to the host. The more of them there are for each processor, the more: together they must leave the
//! agent its part, or it answers nobody for seconds after it has worked hard, and the cluster takes its node for lost.
//!
//! The kernel's scheduler lets everybody run in proportion to their weights (`sched(7)`; a nice value is a factor of 1.25), and one
//! that had more than its part waits until all others had theirs.

use qemu::sys::spawn::GUEST_NICE;

/// The nice value of each of so many guests on this host.
pub fn nice_here(guests: usize) -> i32 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    nice(guests, processors)
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
