//! Whether merging equal memory pages is worth its price now: the rule of `--merge-memory auto`. Pure.
//!
//! Merging is of use when memory is low or many guests are idle (what an idle guest holds stays as it is). It is given a
//! minute; when it has gained less in that than its processor time is worth, it rests, longer each time. What is merged
//! stays merged meanwhile.

#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::time::Duration;

/// Less of all memory being available than this is low, percent; and so low that the price does not matter.
const LOW: u64 = 25;
const VERY_LOW: u64 = 10;
/// So many idle guests are many.
const MANY: u32 = 8;
/// How long merging runs before it is judged.
const TRIAL: Duration = Duration::from_secs(60);
/// Bytes that a second of processor time must gain.
const WORTH: f64 = (4 << 20) as f64;
/// How long it rests at first, and at most.
const FIRST_REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(16 * 60);

/// The pause between two goes of the kernel, and the pages that it looks at in one, at least and at most.
pub const SLEEP_MS: u32 = 20;
/// See there.
const FEWEST: u32 = 100;
/// See there.
const MOST: u32 = 50_000;
/// In how many goes everything should have been looked at: ten seconds' worth. A page is merged when it was the same twice.
const GOES: u64 = 500;
/// The part of a processor that this may take.
const PART: f64 = 0.5;

/// How many pages are looked at in one go, from one look to the next.
#[derive(Debug)]
pub struct Rate(u32);

impl Default for Rate {
    fn default() -> Self {
        Self(FEWEST)
    }
}

impl Rate {
    /// The next rate, for so many pages of all processes, when the one before took so much of a processor.
    pub fn next(&mut self, pages: u64, scanner_part: f64) -> u32 {
        let wanted = u32::try_from(pages / GOES).unwrap_or(MOST);
        let bearable = if scanner_part > PART {
            (f64::from(self.0) * PART / scanner_part) as u32
        } else {
            self.0.saturating_mul(2)
        };
        self.0 = wanted.min(bearable).clamp(FEWEST, MOST);
        self.0
    }
}

/// What is seen of a host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight {
    /// When, since any start.
    pub at: Duration,
    /// Memory that can be had, and all of it, bytes.
    pub available: u64,
    /// See there.
    pub total: u64,
    /// Guests that may be merged and hardly use a processor.
    pub idle: u32,
    /// What merging saves, less what the kernel keeps for it, bytes.
    pub profit: i64,
    /// Processor time that it took since any start, seconds; `None` where that cannot be seen.
    pub scanner_seconds: Option<f64>,
}

/// What is to be done, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the kernel is to look for equal pages.
    pub run: bool,
    /// Why, for people.
    pub reason: String,
}

/// The rule, and what it remembers.
#[derive(Debug, Default)]
pub struct Rule {
    trial: Option<Sight>,
    rest_until: Option<Duration>,
    rests: u32,
}

impl Rule {
    /// Judges what is seen now.
    pub fn judge(&mut self, sight: Sight) -> Verdict {
        let percent = |part: u64| u128::from(sight.total) * u128::from(part) / 100;
        let below = |part| u128::from(sight.available) < percent(part);
        let many = sight.idle >= MANY;
        if !below(LOW) && !many {
            self.trial = None;
            return stop("memory is not low, and few guests are idle".to_owned());
        }
        let urgent = below(VERY_LOW);
        if let Some(until) = self.rest_until {
            if sight.at < until && !urgent {
                let left = (until - sight.at).as_secs() + 1;
                return stop(format!(
                    "it gained less than it cost; tried again in {left} s"
                ));
            }
            self.rest_until = None;
        }
        let trial = *self.trial.get_or_insert(sight);
        let lasted = sight.at.saturating_sub(trial.at);
        if lasted >= TRIAL && !urgent {
            self.trial = None;
            // Where its price cannot be seen, it is taken for half a processor.
            let cost = match (trial.scanner_seconds, sight.scanner_seconds) {
                (Some(before), Some(now)) => now - before,
                _ => lasted.as_secs_f64() / 2.0,
            };
            if (sight.profit - trial.profit) as f64 >= cost * WORTH {
                self.rests = 0;
                self.trial = Some(sight);
            } else {
                let rest = FIRST_REST * 2u32.pow(self.rests.min(4));
                self.rests += 1;
                self.rest_until = Some(sight.at + rest.min(LONGEST_REST));
                let seconds = rest.min(LONGEST_REST).as_secs();
                return stop(format!(
                    "it gained less than it cost; tried again in {seconds} s"
                ));
            }
        }
        let reason = if below(LOW) {
            "memory is low"
        } else {
            "many guests are idle"
        };
        Verdict {
            run: true,
            reason: reason.to_owned(),
        }
    }
}

fn stop(reason: String) -> Verdict {
    Verdict { run: false, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(at: u64) -> Sight {
        Sight {
            at: Duration::from_secs(at),
            available: 80,
            total: 100,
            idle: 0,
            profit: 0,
            scanner_seconds: Some(0.0),
        }
    }

    #[test]
    fn the_rate_follows_what_there_is_and_what_it_costs() {
        let mut rate = Rate::default();
        assert_eq!(rate.next(0, 0.0), 100);
        // Ten seconds for a million pages, reached step by step.
        let rates: Vec<u32> = (0..6).map(|_| rate.next(1_000_000, 0.3)).collect();
        assert_eq!(rates, [200, 400, 800, 1600, 2000, 2000]);
        // It took a whole processor: half of that.
        assert_eq!(rate.next(1_000_000, 1.0), 1000);
        assert_eq!(rate.next(1_000_000, 0.5), 2000);
        assert_eq!(rate.next(100_000, 0.5), 200);
    }

    #[test]
    fn it_runs_when_memory_is_low_or_many_guests_are_idle() {
        let mut rule = Rule::default();
        assert!(!rule.judge(sight(0)).run);
        let low = Sight {
            available: 20,
            ..sight(1)
        };
        assert_eq!(rule.judge(low).reason, "memory is low");
        assert!(!rule.judge(sight(2)).run);
        let idle = Sight {
            idle: 8,
            ..sight(3)
        };
        let verdict = rule.judge(idle);
        assert_eq!(
            (verdict.run, verdict.reason.as_str()),
            (true, "many guests are idle")
        );
        assert!(
            !rule
                .judge(Sight {
                    idle: 7,
                    ..sight(4)
                })
                .run
        );
    }

    #[test]
    fn it_goes_on_as_long_as_it_pays_and_rests_longer_each_time_it_does_not() {
        let mut rule = Rule::default();
        let see = |rule: &mut Rule, at: u64, profit_mib: i64, seconds: f64| {
            rule.judge(Sight {
                idle: 20,
                profit: profit_mib << 20,
                scanner_seconds: Some(seconds),
                ..sight(at)
            })
            .run
        };
        assert!(see(&mut rule, 0, 0, 0.0));
        assert!(see(&mut rule, 59, 0, 6.0));
        // 100 MiB for 6 seconds.
        assert!(see(&mut rule, 60, 100, 6.0));
        assert!(see(&mut rule, 119, 100, 12.0));
        // Nothing for another 6.
        assert!(!see(&mut rule, 120, 101, 12.0));
        assert!(!see(&mut rule, 179, 101, 12.0));
        assert!(see(&mut rule, 180, 101, 12.0));
        assert!(!see(&mut rule, 240, 101, 18.0));
        assert!(!see(&mut rule, 359, 101, 18.0), "it rests two minutes now");
        assert!(see(&mut rule, 360, 101, 18.0));
        // It pays again: the next rest is short again.
        assert!(see(&mut rule, 420, 400, 20.0));
        assert!(!see(&mut rule, 480, 400, 26.0));
        assert!(see(&mut rule, 540, 400, 26.0));
    }

    #[test]
    fn the_price_does_not_matter_when_there_is_hardly_any_memory() {
        let mut rule = Rule::default();
        let idle = |at| Sight {
            idle: 20,
            scanner_seconds: None,
            ..sight(at)
        };
        assert!(rule.judge(idle(0)).run);
        assert!(!rule.judge(idle(60)).run);
        let urgent = |at| Sight {
            available: 9,
            ..idle(at)
        };
        assert!(rule.judge(urgent(61)).run);
        assert!(rule.judge(urgent(500)).run);
    }
}
