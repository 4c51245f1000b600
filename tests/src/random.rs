//! Numbers for tests that repeat what they did from a seed.

use std::{
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Numbers that look random: splitmix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next, below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }

    /// A time from a range, in milliseconds.
    pub fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }

    /// One of these, taken out.
    pub fn pick<T>(&mut self, all: &mut Vec<T>) -> T {
        let at = self.below(all.len() as u64) as usize;
        all.swap_remove(at)
    }
}

/// A number that the environment sets, if it does.
pub fn setting(name: &str) -> anyhow::Result<Option<u64>> {
    let value = env::var(name).ok();
    Ok(value.map(|value| value.parse()).transpose()?)
}

/// A seed: that of the environment, or a new one.
pub fn seed(name: &str) -> anyhow::Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(setting(name)?.unwrap_or(now.as_nanos() as u64))
}
