//! Histories that are known to be linearizable or not, and small ones of any kind against all orders there are.

use proptest::prelude::*;

use super::*;

/// A register.
struct Register;

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(u8),
    Read(u8),
}

impl Model for Register {
    type State = u8;
    type Operation = Op;

    fn step(state: &u8, operation: &Op) -> Option<u8> {
        match operation {
            Op::Write(value) => Some(*value),
            Op::Read(value) => (value == state).then_some(*state),
        }
    }
}

fn span(operation: Op, begun: u64, ended: u64) -> Span<Op> {
    Span {
        operation,
        begun: Duration::from_millis(begun),
        ended: (ended > 0).then(|| Duration::from_millis(ended)),
    }
}

fn verdict(history: &[Span<Op>]) -> Verdict {
    check::<Register>(history, 1_000_000)
}

#[test]
fn what_overlaps_may_be_in_any_order() {
    use Op::{Read, Write};
    let history = [
        span(Write(1), 0, 10),
        span(Read(0), 5, 6),
        span(Read(1), 7, 8),
        span(Write(2), 9, 20),
        span(Read(1), 11, 12),
        span(Read(2), 13, 14),
    ];
    assert_eq!(verdict(&history), Verdict::Linearizable);
}

#[test]
fn a_stale_read_is_none() {
    use Op::{Read, Write};
    let history = [
        span(Write(1), 0, 1),
        span(Write(2), 2, 3),
        span(Read(1), 4, 5),
    ];
    assert_eq!(verdict(&history), Verdict::Violation(vec![0, 1]));
    // Nor one that another saw newer before it.
    let history = [
        span(Write(1), 0, 9),
        span(Read(1), 1, 2),
        span(Read(0), 3, 4),
    ];
    assert!(matches!(verdict(&history), Verdict::Violation(_)));
}

#[test]
fn a_lost_write_is_none() {
    use Op::{Read, Write};
    let history = [span(Write(1), 0, 1), span(Read(0), 5, 6)];
    assert!(matches!(verdict(&history), Verdict::Violation(_)));
}

#[test]
fn what_was_never_answered_may_take_effect_late_or_never_but_once() {
    use Op::{Read, Write};
    let late = [
        span(Write(1), 0, 0),
        span(Read(0), 1, 2),
        span(Write(2), 3, 4),
        span(Read(2), 5, 6),
        span(Read(1), 7, 8),
    ];
    assert_eq!(verdict(&late), Verdict::Linearizable);
    assert_eq!(verdict(&late[..4]), Verdict::Linearizable);
    let mut twice = late.to_vec();
    twice.extend([
        span(Write(3), 9, 10),
        span(Read(3), 11, 12),
        span(Read(1), 13, 14),
    ]);
    assert!(matches!(verdict(&twice), Verdict::Violation(_)));
    // Not before it was begun.
    let early = [span(Read(1), 0, 1), span(Write(1), 2, 0)];
    assert!(matches!(verdict(&early), Verdict::Violation(_)));
}

#[test]
fn a_long_history_of_many_clients_is_decided() {
    // Sixteen overlap at any time, and every fiftieth write is never answered.
    let mut history = Vec::new();
    for number in 0..2_000u64 {
        let value = u8::try_from(number % 250).unwrap();
        let begun = number * 10;
        let unanswered = number % 50 == 49;
        let ended = if unanswered { 0 } else { begun + 160 };
        history.push(span(Op::Write(value), begun, ended));
        if !unanswered {
            history.push(span(Op::Read(value), begun + 1, begun + 161));
        }
    }
    assert_eq!(verdict(&history), Verdict::Linearizable);
}

#[test]
fn what_is_too_wide_is_undecided_and_not_taken_for_good() {
    let writes = (0..24u8).map(|value| span(Op::Write(value), 0, 100));
    let mut history: Vec<_> = writes.collect();
    history.push(span(Op::Read(99), 101, 102));
    assert_eq!(check::<Register>(&history, 1_000), Verdict::Undecided);
}

/// Tries all orders of all subsets that hold everything that was answered.
fn by_all_orders(history: &[Span<Op>], done: &mut Vec<usize>, state: u8) -> bool {
    let left = |at: &usize| !done.contains(at);
    let rest: Vec<usize> = (0..history.len()).filter(left).collect();
    if rest.iter().all(|at| history[*at].ended.is_none()) {
        return true;
    }
    rest.iter().any(|next| {
        let before = |other: &usize| {
            let ended = history[*other].ended;
            ended.is_some_and(|ended| ended < history[*next].begun)
        };
        if rest.iter().any(before) {
            return false;
        }
        let Some(after) = Register::step(&state, &history[*next].operation) else {
            return false;
        };
        done.push(*next);
        let found = by_all_orders(history, done, after);
        done.pop();
        found
    })
}

fn any_history() -> impl Strategy<Value = Vec<Span<Op>>> {
    let operation = prop_oneof![(0..3u8).prop_map(Op::Write), (0..3u8).prop_map(Op::Read)];
    let one =
        (operation, 0..12u64, 1..8u64, 0..5u8).prop_map(|(operation, begun, took, answered)| {
            // A read without an answer says nothing.
            let answered = answered > 0 || matches!(operation, Op::Read(_));
            span(operation, begun, if answered { begun + took } else { 0 })
        });
    prop::collection::vec(one, 0..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn the_verdict_is_that_of_all_orders(history in any_history()) {
        let expected = by_all_orders(&history, &mut Vec::new(), 0);
        prop_assert_eq!(verdict(&history) == Verdict::Linearizable, expected);
    }
}
