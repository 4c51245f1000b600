//! When a call is sent again: a pure decision, so that it can be tested without a clock or a network.

use std::time::Duration;

use proto::v1::Reason;
use tonic::{Code, Status};

use super::failure::reason_of;
use crate::trust::tls::connect::ConnectError;

/// How long to go on when no agent could be reached at all: an agent that is being restarted is back by then.
const UNREACHED: Duration = Duration::from_secs(2);
/// How long to go on when agents answer that the cluster has no leader: it elects a new one within 2 s.
const UNAVAILABLE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What came back instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There was no connection: the call was not sent.
    NotConnected,
    /// The two sides do not trust each other: the call was not sent.
    Distrust,
    /// The agent answered that it cannot for now.
    Unavailable,
    /// The connection broke: whether the call was carried out is open.
    Broken,
    /// The call's time is up.
    TimedOut,
    /// An answer that another try would not change.
    Final,
}

/// Tells what kind of trouble a failed call is in.
pub fn classify(status: &Status) -> Trouble {
    if let Some(error) = ConnectError::within(status) {
        return if error.is_about_trust() {
            Trouble::Distrust
        } else {
            Trouble::NotConnected
        };
    }
    match (status.code(), reason_of(status)) {
        // "Timeout expired" is tonic's own, on either side.
        (Code::Cancelled, _) if status.message() == "Timeout expired" => Trouble::TimedOut,
        (Code::Unavailable, Reason::NodeOffline) => Trouble::Final,
        // A status with a source was made on this side.
        _ if std::error::Error::source(status).is_some() => Trouble::Broken,
        (Code::Unavailable, _) => Trouble::Unavailable,
        _ => Trouble::Final,
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Try the next agent after a pause.
    Again(Duration),
    /// Report the last trouble.
    GiveUp,
}

/// Keeps count of the tries of one call.
#[derive(Debug)]
pub struct Patience {
    agents: usize,
    timeout: Duration,
    tries: usize,
    distrusted: usize,
    limit: Duration,
}

impl Patience {
    /// For a call that may take so long and can be sent to so many agents, at least one.
    pub fn new(agents: usize, timeout: Duration) -> Self {
        Self {
            agents: agents.max(1),
            timeout,
            tries: 0,
            distrusted: 0,
            limit: UNREACHED.min(timeout),
        }
    }

    /// Decides after a failed try, so long after the call was begun.
    pub fn after(&mut self, trouble: Trouble, elapsed: Duration) -> Step {
        self.tries += 1;
        match trouble {
            Trouble::Final | Trouble::TimedOut => return Step::GiveUp,
            Trouble::NotConnected => {}
            Trouble::Distrust => self.distrusted += 1,
            Trouble::Unavailable => self.limit = self.limit.max(UNAVAILABLE.min(self.timeout)),
            Trouble::Broken => self.limit = self.timeout,
        }
        // Certificates do not get better by waiting.
        if self.distrusted == self.agents {
            return Step::GiveUp;
        }
        let pause = match self.tries % self.agents {
            0 => self.pause(),
            _ => Duration::ZERO,
        };
        if elapsed + pause < self.limit {
            Step::Again(pause)
        } else {
            Step::GiveUp
        }
    }

    fn pause(&self) -> Duration {
        let rounds = u32::try_from(self.tries / self.agents).unwrap_or(u32::MAX);
        FIRST_PAUSE
            .saturating_mul(1 << (rounds.saturating_sub(1)).min(8))
            .min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_next_agent_is_tried_at_once_and_a_round_later_after_a_growing_pause() {
        let mut patience = Patience::new(3, MINUTE);
        let pauses: Vec<_> = (0..12)
            .map(|_| patience.after(Trouble::Broken, MS))
            .collect();
        let again = |ms: u32| Step::Again(ms * MS);
        assert_eq!(
            pauses,
            [0, 0, 100, 0, 0, 200, 0, 0, 400, 0, 0, 800].map(again),
            "no pause but after every agent was tried"
        );
        assert_eq!(
            (0..300).map(|_| patience.after(Trouble::Broken, MS)).last(),
            Some(again(1_000))
        );
    }

    #[test]
    fn how_long_depends_on_what_came_back() {
        let limit = |trouble| {
            let mut patience = Patience::new(1, MINUTE);
            let mut elapsed = Duration::ZERO;
            while let Step::Again(pause) = patience.after(trouble, elapsed) {
                elapsed += pause;
            }
            elapsed.as_secs()
        };
        assert_eq!(limit(Trouble::Final), 0);
        assert_eq!(limit(Trouble::Distrust), 0);
        assert!((1..=2).contains(&limit(Trouble::NotConnected)));
        assert!((9..=10).contains(&limit(Trouble::Unavailable)));
        assert!((58..=60).contains(&limit(Trouble::Broken)));
    }

    #[test]
    fn once_the_outcome_is_open_a_lost_agent_is_waited_for() {
        let mut patience = Patience::new(1, MINUTE);
        patience.after(Trouble::Broken, MS);
        assert_ne!(
            patience.after(Trouble::NotConnected, 30_000 * MS),
            Step::GiveUp
        );
    }

    #[test]
    fn distrust_of_one_does_not_keep_from_asking_the_others() {
        let mut patience = Patience::new(2, MINUTE);
        assert_eq!(
            patience.after(Trouble::Distrust, MS),
            Step::Again(Duration::ZERO)
        );
        assert_ne!(patience.after(Trouble::NotConnected, MS), Step::GiveUp);
        assert_eq!(patience.after(Trouble::Distrust, MS), Step::GiveUp);
    }

    #[test]
    fn a_short_timeout_is_the_limit() {
        let mut patience = Patience::new(1, 50 * MS);
        assert_eq!(patience.after(Trouble::Broken, MS), Step::GiveUp);
    }

    #[test]
    fn kinds_of_trouble() {
        assert_eq!(
            classify(&Status::unavailable("no leader")),
            Trouble::Unavailable
        );
        assert_eq!(classify(&Status::not_found("x")), Trouble::Final);
        assert_eq!(
            classify(&Status::cancelled("Timeout expired")),
            Trouble::TimedOut
        );
        let broken = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(classify(&broken), Trouble::Broken);
    }
}
