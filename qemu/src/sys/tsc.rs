//! The processor's time stamp counter.

use std::time::{Duration, Instant};

/// Measures its rate, kHz, against the system's clock.
pub fn khz() -> Option<u32> {
    let (begun, first) = (Instant::now(), read()?);
    std::thread::sleep(Duration::from_millis(50));
    let (ticks, nanoseconds) = (
        read()?.checked_sub(first)?,
        begun.elapsed().as_nanos() as u64,
    );
    u32::try_from(u128::from(ticks) * 1_000_000 / u128::from(nanoseconds)).ok()
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
