//! The processor's time stamp counter.

use std::time::{Duration, Instant};

/// Measures its rate, kHz, against the system's clock.
pub fn khz() -> Option<u32> {
    let (begun, first) = sample()?;
    std::thread::sleep(BASELINE);
    let (ended, last) = sample()?;
    let (ticks, nanoseconds) = (last.checked_sub(first)?, (ended - begun).as_nanos());
    u32::try_from(u128::from(ticks) * 1_000_000 / nanoseconds).ok()
}

/// Long enough for what a sample is off by to be a few millionths.
const BASELINE: Duration = Duration::from_millis(50);
/// A sample is good when the clock was read so soon before and after.
const CLOSE: Duration = Duration::from_nanos(150);
/// How often it is tried to get one: whoever is interrupted in between is off by far more, and its guests' clocks by as large a part.
const TRIES: u32 = 1_000;

/// The counter, and when it was read: the best of some.
fn sample() -> Option<(Instant, u64)> {
    let mut best: Option<(Duration, Instant, u64)> = None;
    for _ in 0..TRIES {
        let before = Instant::now();
        let ticks = read()?;
        let width = before.elapsed();
        if best.is_none_or(|(narrowest, ..)| width < narrowest) {
            best = Some((width, before + width / 2, ticks));
        }
        if width <= CLOSE {
            break;
        }
    }
    best.map(|(_, at, ticks)| (at, ticks))
}

#[cfg(target_arch = "x86_64")]
fn read() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and no memory is touched.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn a_busy_host_does_not_change_the_rate() {
        let ends = AtomicBool::new(false);
        let rates: Vec<_> = thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !ends.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let rates = (0..6).filter_map(|_| khz()).collect();
            ends.store(true, Ordering::Relaxed);
            rates
        });
        let (least, most) = (rates.iter().min().unwrap(), rates.iter().max().unwrap());
        let parts_per_million = u64::from(most - least) * 1_000_000 / u64::from(*least);
        assert!(parts_per_million < 20, "{rates:?}");
    }
}
