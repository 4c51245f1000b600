//! Setting guests' clocks right. A guest is told the time when it is greeted and whenever it stood still; on a host that is busy, that
//! takes its time to arrive. So the guest is asked afterwards what time it is, which bounds from both sides how far its clock is off, and
//! is told by how much to set it until that is known to be little.

use std::time::Duration;

use guest::channel::{
    link::Link,
    message::{self, Note, note},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::now_ns;

/// A clock is right when it is known to be off by no more.
const RIGHT: i64 = 15_000_000;
/// How long an answer is waited for before it is asked again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a guest is asked before nobody waits for it any more: it may know nothing of that, or lie, or its host be too busy to
/// know.
const WAITED_LOOKS: u32 = 60;
/// How long it is left alone between later looks.
const PAUSE: Duration = Duration::from_secs(1);

/// The clock of a guest, in one session.
#[derive(Debug)]
pub struct Clock {
    /// How often the guest was told the time.
    told: watch::Sender<u64>,
    /// As of which of them it was looked at, with all that followed on that.
    seen: watch::Sender<u64>,
    answer: watch::Sender<message::Clock>,
}

impl Clock {
    /// Of a guest that was just told the time.
    pub fn just_told() -> Self {
        Self {
            told: watch::Sender::new(1),
            seen: watch::Sender::new(0),
            answer: watch::Sender::default(),
        }
    }

    /// The guest was told the time anew: it stood still. What was known of its clock does not hold any more.
    pub fn was_told(&self) {
        self.told.send_modify(|told| *told += 1);
    }

    /// The guest says what time it is.
    pub fn answered(&self, clock: message::Clock) {
        self.answer.send_replace(clock);
    }

    /// Waits until it has been set right since the guest was told the time last, as far as that can be.
    pub async fn is_right(&self) {
        let told = *self.told.borrow();
        let mut seen = self.seen.subscribe();
        // It is not gone: this is it.
        let _there = seen.wait_for(|seen| *seen >= told).await.is_ok();
    }

    /// Keeps it right, for as long as the session goes on.
    pub async fn keep(&self, link: &Link) {
        let mut told = self.told.subscribe();
        let mut next = 1;
        loop {
            let number = *told.borrow_and_update();
            tokio::select! {
                () = self.set_right(link, number, &mut next) => {
                    self.seen.send_replace(number);
                    if told.changed().await.is_err() {
                        return;
                    }
                }
                // All over again.
                _ = told.changed() => {}
            }
        }
    }

    async fn set_right(&self, link: &Link, told: u64, next: &mut u64) {
        let mut known = Bounds::default();
        let mut looks = 0;
        while !self.look(link, next, &mut known).await {
            looks += 1;
            if looks < WAITED_LOOKS {
                continue;
            }
            if looks == WAITED_LOOKS {
                tracing::debug!(?known, "a guest's clock is not set right yet");
                self.seen.send_replace(told);
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks what time it is, and sets the clock by what is known then. Whether it is known to be right.
    async fn look(&self, link: &Link, next: &mut u64, known: &mut Bounds) -> bool {
        let ask = *next;
        *next += 1;
        let before = now_ns();
        link.note(&Note {
            what: Some(note::What::AskClock(ask)),
        });
        let mut answer = self.answer.subscribe();
        let answered = answer.wait_for(|answer| answer.ask == ask);
        let Ok(Ok(clock)) = timeout(PATIENCE, answered).await.map(|it| it.map(|it| *it)) else {
            return false;
        };
        known.narrow(clock.ns, before, now_ns());
        if known.is_right() {
            return true;
        }
        if let Some(shift) = known.shift() {
            link.note(&Note {
                what: Some(note::What::ShiftClockNs(shift)),
            });
        }
        false
    }
}

/// How far a clock is ahead of this host's: at least, and at most, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    least: i64,
    most: i64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            least: i64::MIN,
            most: i64::MAX,
        }
    }
}

impl Bounds {
    /// It showed this time at some moment between two of this host's.
    pub(super) fn narrow(&mut self, shown: u64, before: u64, after: u64) {
        let (least, most) = (difference(shown, after), difference(shown, before));
        let both = Self {
            least: self.least.max(least),
            most: self.most.min(most),
        };
        // Where both cannot be, somebody has set one of the clocks meanwhile.
        *self = match both.least <= both.most {
            true => both,
            false => Self { least, most },
        };
    }

    pub(super) fn is_right(self) -> bool {
        self.least >= -RIGHT && self.most <= RIGHT
    }

    /// How far to set it so that it is right, as far as that is known. `None`: it may be right, and more must be known. What is known
    /// holds of the clock that was set.
    pub(super) fn shift(&mut self) -> Option<i64> {
        let width = self.most.saturating_sub(self.least);
        let surely_off = self.least > RIGHT || self.most < -RIGHT;
        if !surely_off && width > 2 * RIGHT {
            return None;
        }
        let shift = -(self.least + width / 2);
        self.least = self.least.saturating_add(shift);
        self.most = self.most.saturating_add(shift);
        Some(shift)
    }
}

fn difference(shown: u64, now: u64) -> i64 {
    let difference = i128::from(shown) - i128::from(now);
    // Half of what an i64 holds: it can be added to another.
    let most = i128::from(i64::MAX / 2);
    difference.clamp(-most, most) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const NOW: u64 = 1_700_000_000_000_000_000;

    fn at(ms: i64) -> u64 {
        NOW.saturating_add_signed(ms * MS)
    }

    #[test]
    fn what_is_known_gets_narrower_and_says_by_how_much_to_set_it() {
        let mut known = Bounds::default();
        // Asked at 0, answered at 100 with 130: it is between 30 and 130 ahead.
        known.narrow(at(130), at(0), at(100));
        assert_eq!((known.least, known.most), (30 * MS, 130 * MS));
        assert_eq!(known.shift(), Some(-80 * MS));
        assert_eq!((known.least, known.most), (-50 * MS, 50 * MS));
        // It may be right now.
        assert_eq!((known.is_right(), known.shift()), (false, None));
        known.narrow(at(200), at(190), at(195));
        assert_eq!((known.least, known.most), (5 * MS, 10 * MS));
        assert!(known.is_right());
    }

    #[test]
    fn a_clock_that_somebody_set_meanwhile_is_known_anew() {
        let mut known = Bounds::default();
        known.narrow(at(0), at(0), at(1));
        known.narrow(at(1000), at(10), at(20));
        assert_eq!((known.least, known.most), (980 * MS, 990 * MS));
        assert_eq!(known.shift(), Some(-985 * MS));
    }

    #[test]
    fn a_lie_overflows_nothing() {
        let mut known = Bounds::default();
        for shown in [0, u64::MAX, NOW] {
            known.narrow(shown, at(0), at(1));
            known.shift();
            known.shift();
        }
    }
}
