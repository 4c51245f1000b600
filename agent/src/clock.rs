//! The cluster's time: the median of its voters' clocks, kept by each node between two answers of the leader. What the state says of time
//! (tokens and certificates that end, operations that are given up, newcomers that are late) is in it, so that one host's clock that is
//! wrong, or jumps, changes nothing: it would end, or forget, what is not over.
//!
//! Each node tells the leader what its clock says when it renews its lease (see [`crate::leases`]); the leader takes the median, once it
//! has heard a majority, its own as it is at that moment, and answers with it. In between, time goes on by `CLOCK_BOOTTIME`, which nobody sets, and which goes on while a
//! host is suspended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use raft::state::{Millis, NodeId};
use rustix::time::{ClockId, clock_gettime};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tokio::sync::watch;

use crate::leases::LEASE;

/// How far a host's clock may be off before it is told of, and signs nothing.
const TOLERANCE: Duration = Duration::from_secs(5);

/// The host's clock, milliseconds since 1970.
pub fn of_host() -> Millis {
    // A clock before 1970 counts as 1970.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as Millis
}

/// Since the host was started, suspended or not.
fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // It begins with 0.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A clock, as what it shows at a host's start: milliseconds since 1970.
type Base = i64;

/// What the voters' clocks say.
#[derive(Debug, Default)]
struct Readings(BTreeMap<NodeId, (Duration, Base)>);

impl Readings {
    /// The median, if this is a majority. Where two are in the middle, the one that is nearer to what it was.
    fn median(
        &mut self,
        voters: &BTreeSet<NodeId>,
        now: Duration,
        before: Option<Base>,
    ) -> Option<Base> {
        let is_fresh = |at: &Duration| now.saturating_sub(*at) < LEASE;
        self.0
            .retain(|node, (at, _)| voters.contains(node) && is_fresh(at));
        let mut bases: Vec<Base> = self.0.values().map(|(_, base)| *base).collect();
        if bases.len() * 2 <= voters.len() {
            return None;
        }
        bases.sort_unstable();
        let (lower, upper) = (bases[(bases.len() - 1) / 2], bases[bases.len() / 2]);
        Some(before.map_or(lower, |before| before.clamp(lower, upper)))
    }
}

#[derive(Debug, Default)]
struct Inner {
    readings: Readings,
    /// Whether this host's clock is known to be off.
    is_told: bool,
}

/// The cluster's time, as this node has it.
#[derive(Debug)]
pub struct Clock {
    inner: Mutex<Inner>,
    /// `None` before it is known.
    base: watch::Sender<Option<Base>>,
    /// It is later than this, whatever the host's clock says before.
    past: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            base: watch::Sender::new(None),
            past: AtomicU64::new(0),
        }
    }
}

impl Clock {
    /// The cluster's time; the host's, before that is known.
    pub fn now(&self) -> Millis {
        match *self.base.borrow() {
            Some(base) => shown(base, uptime()),
            None => of_host().max(self.past.load(Ordering::Relaxed)),
        }
    }

    /// It is later than this: something was done then.
    pub fn is_past(&self, time: Option<Millis>) {
        self.past
            .fetch_max(time.unwrap_or_default(), Ordering::Relaxed);
    }

    /// What is wrong with the host's clock, as far as is known.
    pub fn problem(&self) -> Option<String> {
        let ahead = self.ahead().filter(|ahead| is_off(*ahead))?;
        Some(format!("this host's clock is {}", told(ahead)))
    }

    /// Whether the cluster's time is known.
    pub fn is_known(&self) -> bool {
        self.base.borrow().is_some()
    }

    /// Returns once it is known.
    pub async fn known(&self) {
        let mut base = self.base.subscribe();
        // Never closed: it is this clock's.
        let _known = base.wait_for(Option::is_some).await;
    }

    /// By how much the host's clock is ahead of the cluster's time, milliseconds; `None` before that is known.
    pub fn ahead(&self) -> Option<i64> {
        let base = (*self.base.borrow())?;
        Some(of_host().cast_signed() - shown(base, uptime()).cast_signed())
    }

    /// Notes, as the leader, what a node's clock says, and takes the median of the voters'. Gives the cluster's time, if it is known.
    pub fn hear(&self, node: NodeId, says: Millis, voters: &BTreeSet<NodeId>) -> Option<Millis> {
        let now = uptime();
        let mut inner = self.inner();
        inner.readings.0.insert(node, (now, base(says, now)));
        let before = *self.base.borrow();
        if let Some(median) = inner.readings.median(voters, now, before) {
            self.set(median, Duration::ZERO);
        }
        drop(inner);
        self.watch();
        (*self.base.borrow()).map(|base| shown(base, now))
    }

    /// Notes what the leader answered: the cluster's time at some moment within the time that its answer took.
    pub fn learn(&self, says: Millis, took: Duration) {
        let middle = uptime().saturating_sub(took / 2);
        self.set(base(says, middle), took / 2);
        self.watch();
    }

    /// Sets it, unless it is right, as far as can be told.
    fn set(&self, to: Base, unsure: Duration) {
        let unsure = unsure.as_millis() as u64 + 1;
        self.base.send_if_modified(|base| {
            let wrong = base.is_none_or(|base| base.abs_diff(to) > unsure);
            if wrong {
                if let Some(before) = *base
                    && before.abs_diff(to) > TOLERANCE.as_millis() as u64
                {
                    tracing::warn!(
                        ahead_ms = to.saturating_sub(before),
                        "the cluster's time was changed"
                    );
                }
                *base = Some(to);
            }
            wrong
        });
    }

    /// Says when the host's clock goes wrong, and when it is right again.
    fn watch(&self) {
        let Some(ahead) = self.ahead() else { return };
        let is_off = is_off(ahead);
        if std::mem::replace(&mut self.inner().is_told, is_off) == is_off {
            return;
        }
        match is_off {
            true => tracing::warn!(
                "this host's clock is {}: the cluster goes by most of its voters' clocks",
                told(ahead)
            ),
            false => tracing::info!("this host's clock is right again"),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(
            self.now(),
        )))
    }
}

fn base(says: Millis, at: Duration) -> Base {
    says.cast_signed().saturating_sub(at.as_millis() as Base)
}

fn shown(base: Base, at: Duration) -> Millis {
    base.saturating_add(at.as_millis() as Base).max(0) as Millis
}

fn is_off(ahead: i64) -> bool {
    ahead.unsigned_abs() > TOLERANCE.as_millis() as u64
}

/// How far a clock is ahead of the cluster's time, for people.
fn told(ahead: i64) -> String {
    let seconds = ahead.unsigned_abs() as f64 / 1000.0;
    match ahead < 0 {
        true => format!("{seconds:.1} s behind the cluster's time"),
        false => format!("{seconds:.1} s ahead of the cluster's time"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn median(bases: &[Base], voters: u64, before: Option<Base>) -> Option<Base> {
        let all = (1..).zip(bases);
        let all = all.map(|(node, base)| (node, (Duration::ZERO, *base)));
        Readings(all.collect()).median(&(1..=voters).collect(), Duration::ZERO, before)
    }

    #[test]
    fn one_clock_that_jumps_changes_nothing() {
        let year = 365 * 24 * 3_600_000;
        assert_eq!(median(&[10, 11, 12], 3, Some(11)), Some(11));
        for wrong in [-year, year] {
            assert!(matches!(
                median(&[10, 11, wrong], 3, Some(11)),
                Some(10..=11)
            ));
            // Nor where the third is away, or there are two.
            assert!(matches!(median(&[10, wrong], 3, Some(11)), Some(10..=11)));
            assert_eq!(median(&[11, 11 + wrong], 2, Some(11)), Some(11));
        }
        // A majority is believed, as is the only one.
        assert_eq!(
            median(&[10, 11 + year, 12 + year], 3, Some(11)),
            Some(11 + year)
        );
        assert_eq!(median(&[year], 1, Some(0)), Some(year));
    }

    #[test]
    fn less_than_a_majority_says_nothing() {
        assert_eq!(median(&[10], 3, Some(5)), None);
        assert_eq!(median(&[10, 10], 4, Some(5)), None);
        assert_eq!(median(&[], 1, None), None);
        let mut old = Readings([(1, (Duration::ZERO, 10))].into());
        assert_eq!(old.median(&[1].into(), LEASE, None), None);
        // Those without a vote are not asked.
        let mut learner = Readings([(7, (Duration::ZERO, 10))].into());
        assert_eq!(learner.median(&[1].into(), Duration::ZERO, None), None);
    }

    proptest! {
        #[test]
        fn it_is_within_what_any_majority_says(
            right in prop::collection::vec(-1000_i64..1000, 3..=3),
            wrong in prop::collection::vec(any::<i32>(), 0..=2),
            before in prop::option::of(-1000_i64..1000),
        ) {
            let mut all = right;
            all.extend(wrong.into_iter().map(i64::from));
            let is = median(&all, all.len() as u64, before).unwrap();
            prop_assert!((-1000..1000).contains(&is), "{is}");
        }
    }

    #[tokio::test]
    async fn it_is_the_hosts_until_it_is_known_and_the_leaders_from_then_on() {
        let (leader, follower) = (Clock::default(), Clock::default());
        let voters = [1, 2, 3].into();
        assert!(follower.now().abs_diff(of_host()) < 1000);
        assert_eq!(follower.ahead(), None);
        let hour = 3_600_000;
        assert_eq!(leader.hear(1, of_host(), &voters), None);
        let time = leader.hear(2, of_host() + hour, &voters).unwrap();
        assert!(
            time.abs_diff(of_host()) < 1000,
            "the lower one, the first time"
        );
        let time = leader.hear(3, of_host() + 2 * hour, &voters).unwrap();
        assert!(time.abs_diff(of_host() + hour) < 1000);
        follower.learn(time, Duration::from_millis(10));
        follower.known().await;
        assert!(follower.now().abs_diff(of_host() + hour) < 1000);
        assert!(follower.ahead().unwrap().abs_diff(-3_600_000) < 1000);
        assert_eq!(
            told(-hour.cast_signed()),
            "3600.0 s behind the cluster's time"
        );
        // What may be due to how long the answer took changes nothing.
        let before = *follower.base.borrow();
        follower.learn(follower.now() - 1, Duration::from_millis(10));
        assert_eq!(*follower.base.borrow(), before);
        follower.learn(follower.now() + 100, Duration::from_millis(10));
        assert_ne!(*follower.base.borrow(), before);
    }
}
