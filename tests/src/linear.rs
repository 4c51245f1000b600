//! Whether a history of concurrent operations is linearizable: whether each can have taken effect at one moment between its
//! beginning and its end, so that together they are what one client would have seen that did them one after the other.
//!
//! The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory of configurations
//! that were tried ("Testing for Linearizability", 2016), as in Porcupine and Knossos. Stateright's tester was not taken: it
//! has no such memory, and tries all orders of what overlaps, which for minutes of histories does not end. A history is of one
//! object; what is linearizable for each object is for all (Herlihy and Wing, 1990).

use std::{collections::HashSet, fmt::Debug, hash::Hash, time::Duration};

#[cfg(test)]
mod tests;

/// What an object does, one operation after the other.
pub trait Model {
    /// How it is.
    type State: Clone + Eq + Hash + Debug + Default;
    /// An operation with its outcome.
    type Operation: Debug;

    /// How it is after the operation; none if it cannot have had that outcome. An operation whose outcome is unknown must
    /// always be possible.
    fn step(state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// An operation and its time, since the history's beginning.
#[derive(Debug, Clone)]
pub struct Span<O> {
    /// What was done, and what came of it.
    pub operation: O,
    /// When it was begun.
    pub begun: Duration,
    /// When it was answered. None if it never was: it takes effect at any time after it was begun, or never.
    pub ended: Option<Duration>,
}

/// What was found of a history.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is linearizable.
    Linearizable,
    /// It is not. The longest order that was found, as places in the history: nothing that was answered can follow on it.
    Violation(Vec<usize>),
    /// More configurations are possible than may be tried.
    Undecided,
}

/// Which operations took effect: a bit for each.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn flip(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

/// A point of the search, and what is still to be tried from it.
struct Frame<S> {
    state: S,
    /// The operation that led here.
    by: Option<usize>,
    candidates: std::vec::IntoIter<usize>,
}

/// Searches for an order. At most so many configurations are tried.
pub fn check<M: Model>(history: &[Span<M::Operation>], most: usize) -> Verdict {
    let mut order: Vec<usize> = (0..history.len()).collect();
    order.sort_by_key(|at| history[*at].begun);
    let answered = history.iter().filter(|span| span.ended.is_some()).count();
    let mut done = Done(vec![0; history.len().div_ceil(64)]);
    let mut seen = HashSet::new();
    let (mut path, mut longest): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut answered_done = 0;
    let frame = |state, by, done: &Done| Frame {
        state,
        by,
        candidates: candidates(history, &order, done).into_iter(),
    };
    let mut frames = vec![frame(M::State::default(), None, &done)];
    while let Some(top) = frames.last_mut() {
        if answered_done == answered {
            return Verdict::Linearizable;
        }
        let Some(next) = top.candidates.next() else {
            let by = top.by;
            frames.pop();
            if let Some(by) = by {
                path.pop();
                done.flip(by);
                answered_done -= usize::from(history[by].ended.is_some());
            }
            continue;
        };
        let Some(state) = M::step(&top.state, &history[next].operation) else {
            continue;
        };
        done.flip(next);
        if !seen.insert((done.clone(), state.clone())) {
            done.flip(next);
            continue;
        }
        if seen.len() > most {
            return Verdict::Undecided;
        }
        answered_done += usize::from(history[next].ended.is_some());
        path.push(next);
        if path.len() > longest.len() {
            longest.clone_from(&path);
        }
        frames.push(frame(state, Some(next), &done));
    }
    match answered {
        0 => Verdict::Linearizable,
        _ => Verdict::Violation(longest),
    }
}

/// What may take effect next: what was begun before anything that is left was answered. Those that were never answered come last,
/// since most of them never took effect, or did for a reader that waits for it.
fn candidates<O>(history: &[Span<O>], order: &[usize], done: &Done) -> Vec<usize> {
    let left = || order.iter().copied().filter(|at| !done.has(*at));
    let first_end = left().filter_map(|at| history[at].ended).min();
    let begun = left().take_while(|at| first_end.is_none_or(|end| history[*at].begun <= end));
    let (answered, open): (Vec<usize>, Vec<usize>) =
        begun.partition(|at| history[*at].ended.is_some());
    [answered, open].concat()
}
