//! How short the host's memory is: from what is available, and from how long processes wait for it (PSI,
//! Documentation/accounting/psi.rst).

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::Path,
    time::Duration,
};

use qemu::sys::readiness;
use tokio::io::{Interest, unix::AsyncFd};

/// Where the kernel says how long processes wait for memory.
pub const PSI: &str = "/proc/pressure/memory";
/// A stall of a fifth of a second within two wakes whoever watches: without CAP_SYS_RESOURCE the kernel takes windows of whole
/// two seconds only. It takes the last byte for the end.
const TRIGGER: &[u8] = b"some 200000 2000000\0";
/// Processes that wait for so much of ten seconds, percent: memory is getting short, and short.
const SOME_WAIT: f64 = 10.0;
const ALL_WAIT: f64 = 20.0;
/// How much better it must have become before that is said, percent of all memory.
const BETTER: u64 = 2;
/// And for how long.
const CALM: Duration = Duration::from_secs(5);

/// How short memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is not.
    #[default]
    None,
    /// It is getting short.
    Some,
    /// It is short: nothing new is begun.
    High,
}

/// How the host's memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// How short it is.
    pub level: Level,
    /// What can be had, bytes.
    pub available: u64,
    /// What there is, bytes.
    pub total: u64,
    /// How much of the last ten seconds some process waited for memory, percent; `None` where the kernel does not say.
    pub some: Option<f64>,
    /// How much of them all did.
    pub full: Option<f64>,
}

/// Below which part of memory being available it is short, percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// It is getting short.
    pub some: u64,
    /// It is short.
    pub high: u64,
}

/// What is seen of a host at one moment: [`Pressure`] without the verdict.
pub type Sight = Pressure;

/// Judges one sight after the other.
#[derive(Debug)]
pub struct Judge {
    bounds: Bounds,
    level: Level,
    /// Since when it looks better than it is said to be.
    better_since: Option<Duration>,
}

impl Judge {
    /// One that has seen nothing.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            level: Level::None,
            better_since: None,
        }
    }

    /// Judges what is seen at a time since any start. It becomes worse at once, and better when it has been so for a while.
    pub fn judge(&mut self, sight: Sight, at: Duration) -> Pressure {
        let now = self.level_of(&sight, 0);
        if now >= self.level {
            self.level = now;
            self.better_since = None;
        } else if self.level_of(&sight, BETTER) < self.level {
            let since = *self.better_since.get_or_insert(at);
            if at.saturating_sub(since) >= CALM {
                self.level = self.level_of(&sight, BETTER);
                self.better_since = None;
            }
        } else {
            self.better_since = None;
        }
        Pressure {
            level: self.level,
            ..sight
        }
    }

    /// The level of a sight, with bounds that are so much stricter.
    fn level_of(&self, sight: &Sight, stricter: u64) -> Level {
        let below = |percent: u64| {
            u128::from(sight.available) * 100
                < u128::from(sight.total) * u128::from((percent + stricter).min(100))
        };
        let waits = |figure: Option<f64>, bound| figure.is_some_and(|figure| figure >= bound);
        if below(self.bounds.high) || waits(sight.full, ALL_WAIT) {
            Level::High
        } else if below(self.bounds.some) || waits(sight.some, SOME_WAIT) {
            Level::Some
        } else {
            Level::None
        }
    }
}

/// Looks at the host.
pub fn look() -> io::Result<Sight> {
    let psi = match std::fs::read_to_string(PSI) {
        Ok(text) => Some(text),
        // The kernel was built or booted without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {
            None
        }
        Err(error) => return Err(error),
    };
    let average = |what| psi.as_deref().and_then(|psi| average(psi, what));
    Ok(Sight {
        level: Level::None,
        available: qemu::host::available_memory()?,
        total: qemu::host::memory_bytes(),
        some: average("some"),
        full: average("full"),
    })
}

/// The average over ten seconds of a line that begins with `what`.
fn average(psi: &str, what: &str) -> Option<f64> {
    let line = psi.lines().find_map(|line| line.strip_prefix(what))?;
    let word = line.split_whitespace().next()?;
    word.strip_prefix("avg10=")?.parse().ok()
}

/// Wakes when processes begin to wait for memory.
#[derive(Debug)]
pub struct Trigger(AsyncFd<OwnedFd>);

impl Trigger {
    /// Asks the kernel to be woken. Fails where it has no such thing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)?;
        file.write_all(TRIGGER)?;
        Ok(Self(readiness::watch_urgent(file.into())?))
    }

    /// When they do.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { some: 15, high: 5 };

    fn sight(percent: u64) -> Sight {
        Sight {
            available: percent << 20,
            total: 100 << 20,
            ..Sight::default()
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_becomes_worse_at_once_and_better_after_a_while() {
        let mut judge = Judge::new(BOUNDS);
        let mut see = |percent, second| judge.judge(sight(percent), at(second)).level;
        assert_eq!(see(50, 0), Level::None);
        assert_eq!(see(14, 1), Level::Some);
        assert_eq!(see(4, 2), Level::High);
        // A little better is not better.
        assert_eq!(see(6, 3), Level::High);
        assert_eq!(see(6, 20), Level::High);
        assert_eq!(see(8, 21), Level::High);
        assert_eq!(see(8, 25), Level::High);
        assert_eq!(see(8, 26), Level::Some);
        assert_eq!(see(50, 27), Level::Some);
        assert_eq!(see(16, 30), Level::Some);
        assert_eq!(see(50, 31), Level::Some);
        assert_eq!(see(50, 36), Level::None);
    }

    #[test]
    fn waiting_counts_as_well() {
        let mut judge = Judge::new(BOUNDS);
        let waiting = |some, full| Sight {
            some: Some(some),
            full: Some(full),
            ..sight(90)
        };
        assert_eq!(judge.judge(waiting(9.0, 0.0), at(0)).level, Level::None);
        assert_eq!(judge.judge(waiting(12.0, 0.0), at(1)).level, Level::Some);
        assert_eq!(judge.judge(waiting(40.0, 25.0), at(2)).level, Level::High);
    }

    #[test]
    fn bounds_of_all_memory_are_always_met() {
        let mut judge = Judge::new(Bounds {
            some: 100,
            high: 100,
        });
        assert_eq!(judge.judge(sight(99), at(0)).level, Level::High);
        assert_eq!(judge.judge(sight(99), at(60)).level, Level::High);
    }

    #[test]
    fn the_kernels_averages_are_read() {
        let psi = "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(
            (average(psi, "some"), average(psi, "full")),
            (Some(1.5), Some(0.25))
        );
        assert_eq!(average("", "some"), None);
    }

    #[tokio::test]
    async fn the_host_is_looked_at() {
        let sight = look().unwrap();
        assert!(sight.total > 0 && sight.available <= sight.total);
        if sight.some.is_some() && rustix::process::geteuid().is_root() {
            Trigger::open(Path::new(PSI)).unwrap();
        }
        assert!(Trigger::open(Path::new("/proc/pressure/nothing")).is_err());
    }
}
