//! Random choices that can be made again: the seed is printed, and taken from `FP_EXACT_SEED` where it is set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Numbers that look random (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts with a new seed, or the one that is asked for.
    pub fn new(what: &str) -> anyhow::Result<Self> {
        let seed = match std::env::var("FP_EXACT_SEED") {
            Ok(seed) => seed.parse()?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
        };
        eprintln!("{what}: the same choices again with FP_EXACT_SEED={seed}");
        Ok(Self(seed))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }

    /// Less than `most`.
    pub fn duration(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64))
    }

    /// Lets up to `most` go by.
    pub async fn moment(&mut self, most: Duration) {
        tokio::time::sleep(self.duration(most)).await;
    }
}
