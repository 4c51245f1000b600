//! `fpguest fill`: memory that is in use, and written at a steady rate. A load to measure captures under; what it holds is
//! not checked (`churn` does that).

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fp_guest::pages::PAGE_SIZE;

use crate::sys::{LockedPages, tsc_low};

/// The command's options.
#[derive(Debug, PartialEq)]
pub struct Fill {
    /// How much memory is filled, MiB.
    pub mib: usize,
    /// How much of it is written again each second, MiB; 0 for none.
    pub rate: usize,
}

/// How often the writing is caught up with the rate, each second.
const STEPS: u32 = 100;

/// Fills, says so, and writes on. Returns when nothing is to be written on; the memory stays filled until the process ends,
/// so it waits for ever.
///
/// # Errors
/// The kernel's, when so much memory cannot be had.
pub fn run(options: &Fill) -> io::Result<()> {
    let pages = options.mib * (1 << 20) / PAGE_SIZE;
    let mut memory = LockedPages::new(pages)?;
    let mut stamp = u64::from(tsc_low()) << 32;
    for index in 0..pages {
        write(&mut memory, index, &mut stamp);
    }
    println!("fp.fill done: {} MiB", options.mib);
    let step = options.rate * (1 << 20) / PAGE_SIZE / STEPS as usize;
    let (mut next, pause) = (0, Duration::from_secs(1) / STEPS);
    let mut due = Instant::now();
    loop {
        for _ in 0..step {
            write(&mut memory, next, &mut stamp);
            next = (next + 1) % pages;
        }
        due += pause;
        let now = Instant::now();
        if due > now {
            sleep(if step == 0 { Duration::MAX } else { due - now });
        } else {
            // Slower than asked for: what was missed is not made up for.
            due = now;
        }
    }
}

/// A page that no other equals and that does not compress to nothing.
fn write(memory: &mut LockedPages, index: usize, stamp: &mut u64) {
    for (place, word) in memory.page(index).chunks_exact_mut(8).enumerate() {
        *stamp = stamp
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(place as u64 | 1);
        word.copy_from_slice(&stamp.to_le_bytes());
    }
}
