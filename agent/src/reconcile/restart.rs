//! Whether and when a VM that ended is started again. Pure: its policy, its past and the time in, a verdict out. Called by
//! [`super::plan`] only.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use qemu::past::{Cause, End};
use raft::state::{Millis, RestartPolicy};

/// What the first of several waits takes, milliseconds; each one after it takes twice as long.
const FIRST_WAIT: Millis = 1_000;
/// The longest wait, milliseconds.
const LONGEST_WAIT: Millis = 5 * 60 * 1_000;

/// What follows from an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays as it is.
    Stay,
    /// It is started from its disk now.
    Start,
    /// It is started from its disk later.
    Wait {
        /// When.
        until: Millis,
        /// How long that is after its end, milliseconds.
        wait: Millis,
    },
}

/// Decides. `in_a_row`: how often it was started again since it last ran well.
pub fn verdict(policy: RestartPolicy, end: &End, in_a_row: u32, now: Millis) -> Verdict {
    if !is_followed(policy, end) {
        return Verdict::Stay;
    }
    let wait = wait(end.cause, in_a_row);
    let until = end.at.saturating_add(wait);
    // A clock that was set back must not keep it waiting for as long as it was set back.
    if now >= until || now < end.at {
        Verdict::Start
    } else {
        Verdict::Wait { until, wait }
    }
}

/// Whether a start follows an end.
fn is_followed(policy: RestartPolicy, end: &End) -> bool {
    match (end.cause, policy) {
        (Cause::Stopped, _) => false,
        // The guest asked for it.
        (Cause::Reboot, _) => true,
        (Cause::Poweroff, policy) => policy == RestartPolicy::Always,
        // With 0 it is a poweroff, else a failure.
        (Cause::Exited, policy) if end.is_orderly() => policy == RestartPolicy::Always,
        (
            Cause::Panic
            | Cause::Crash
            | Cause::OutOfMemory
            | Cause::BootFailed
            | Cause::StartFailed
            | Cause::HostLost
            | Cause::Unseen
            | Cause::Exited,
            policy,
        ) => policy != RestartPolicy::Never,
    }
}

/// How long it waits. A reboot is nothing bad: only those that follow it closely have to wait.
fn wait(cause: Cause, in_a_row: u32) -> Millis {
    let doublings = match (cause, in_a_row) {
        (Cause::Reboot, 0) => return 0,
        (Cause::Reboot, times) => times - 1,
        (_, times) => times,
    };
    1u64.checked_shl(doublings)
        .map_or(LONGEST_WAIT, |factor| FIRST_WAIT.saturating_mul(factor))
        .min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const BAD: [Cause; 7] = [
        Cause::Panic,
        Cause::Crash,
        Cause::OutOfMemory,
        Cause::BootFailed,
        Cause::StartFailed,
        Cause::HostLost,
        Cause::Unseen,
    ];
    const POLICIES: [RestartPolicy; 3] = [
        RestartPolicy::Never,
        RestartPolicy::OnFailure,
        RestartPolicy::Always,
    ];

    fn end(cause: Cause) -> End {
        End {
            cause,
            detail: String::new(),
            at: 1_000_000,
            exit_code: None,
        }
    }

    fn exited(code: i32) -> End {
        End {
            exit_code: Some(code),
            ..end(Cause::Exited)
        }
    }

    #[test]
    fn policies_differ_in_what_they_follow() {
        let follow = |end: &End| POLICIES.map(|policy| is_followed(policy, end));
        assert_eq!(follow(&end(Cause::Stopped)), [false, false, false]);
        assert_eq!(follow(&end(Cause::Reboot)), [true, true, true]);
        assert_eq!(follow(&end(Cause::Poweroff)), [false, false, true]);
        assert_eq!(follow(&exited(0)), [false, false, true]);
        for end in BAD.map(end).iter().chain(&[exited(1), exited(-1)]) {
            assert_eq!(follow(end), [false, true, true], "{end:?}");
        }
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let waits = |cause| [0, 1, 2, 3, 8, 9, 64, u32::MAX].map(|times| wait(cause, times));
        let longest = LONGEST_WAIT;
        assert_eq!(
            waits(Cause::Panic),
            [
                1_000, 2_000, 4_000, 8_000, 256_000, longest, longest, longest
            ]
        );
        assert_eq!(
            waits(Cause::Reboot),
            [0, 1_000, 2_000, 4_000, 128_000, 256_000, longest, longest]
        );
    }

    proptest! {
        #[test]
        fn what_is_followed_is_started_in_the_end_and_not_before(
            policy in select(&POLICIES[..]),
            cause in select([&BAD[..], &[Cause::Stopped, Cause::Reboot, Cause::Poweroff, Cause::Exited]].concat()),
            code in proptest::option::of(0..2),
            in_a_row: u32,
            later in 0..2 * LONGEST_WAIT,
        ) {
            let end = End { exit_code: code, ..end(cause) };
            let (at, now) = (end.at, end.at + later);
            match verdict(policy, &end, in_a_row, now) {
                Verdict::Stay => prop_assert!(!is_followed(policy, &end)),
                Verdict::Start => prop_assert!(later >= wait(cause, in_a_row)),
                Verdict::Wait { until, wait } => {
                    prop_assert!(now < until && until == at + wait && wait <= LONGEST_WAIT);
                    prop_assert_eq!(verdict(policy, &end, in_a_row, until), Verdict::Start);
                    prop_assert_eq!(verdict(policy, &end, in_a_row, at - 1), Verdict::Start, "set back");
                }
            }
            let more = in_a_row.saturating_add(1);
            prop_assert!(wait(cause, in_a_row) <= wait(cause, more));
        }
    }
}
