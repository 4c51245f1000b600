//! What is still to be fetched of a file, shared out to the lanes that fetch it: whoever is faster takes more, and what one that broke off
//! had not got is another's. Pure.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::{collections::VecDeque, ops::Range};

/// How much is asked for at once, bytes; holes count.
const SEGMENT: u64 = 4 << 20;
/// How many ranges are asked for at once.
const MOST_RANGES: usize = 1024;

/// Ranges that are asked for together, ascending.
pub type Segment = Vec<Range<u64>>;

/// What nobody fetches yet.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Segment>,
}

impl Queue {
    /// Of ranges that ascend.
    pub fn of(ranges: &[Range<u64>]) -> Self {
        let (mut waiting, mut segment, mut bytes) = (VecDeque::new(), Segment::new(), 0);
        for range in ranges {
            let mut from = range.start;
            while from < range.end {
                let to = range.end.min(from + (SEGMENT - bytes));
                segment.push(from..to);
                bytes += to - from;
                from = to;
                if bytes == SEGMENT || segment.len() == MOST_RANGES {
                    waiting.push_back(std::mem::take(&mut segment));
                    bytes = 0;
                }
            }
        }
        if !segment.is_empty() {
            waiting.push_back(segment);
        }
        Self { waiting }
    }

    /// The next segment.
    pub fn take(&mut self) -> Option<Segment> {
        self.waiting.pop_front()
    }

    /// Gives back what was not got of a segment: what lies behind `got`.
    pub fn give_back(&mut self, segment: &Segment, got: u64) {
        let rest: Segment = segment
            .iter()
            .map(|range| range.start.max(got)..range.end)
            .filter(|range| !range.is_empty())
            .collect();
        if !rest.is_empty() {
            self.waiting.push_front(rest);
        }
    }

    /// Leaves out what somebody else fetches.
    pub fn leave_out(&mut self, taken: &Range<u64>) {
        for segment in &mut self.waiting {
            let is_near = |range: &Range<u64>| range.start < taken.end && taken.start < range.end;
            if segment.iter().any(is_near) {
                let pieces = std::mem::take(segment).into_iter().flat_map(|range| {
                    let before = range.start..range.end.min(taken.start);
                    let after = range.start.max(taken.end)..range.end;
                    [before, after]
                });
                *segment = pieces.filter(|range| !range.is_empty()).collect();
            }
        }
        self.waiting.retain(|segment| !segment.is_empty());
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_is_asked_for_until_somebody_got_it(
            cuts in proptest::collection::btree_set(0..40 * SEGMENT, 0..30),
            breaks in proptest::collection::vec(0..41 * SEGMENT, 0..20),
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let ranges: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let mut queue = Queue::of(&ranges);
            let (mut got, mut breaks) = (Vec::new(), breaks.into_iter());
            while let Some(segment) = queue.take() {
                let bytes: u64 = segment.iter().map(|range| range.end - range.start).sum();
                prop_assert!(bytes <= SEGMENT && segment.len() <= MOST_RANGES);
                let until = breaks.next().unwrap_or(u64::MAX);
                queue.give_back(&segment, until);
                let had = segment.iter().map(|range| range.start..range.end.min(until));
                got.extend(had.filter(|range| !range.is_empty()));
            }
            got.sort_by_key(|range| range.start);
            let mut joined: Vec<Range<u64>> = Vec::new();
            for range in got {
                match joined.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => joined.push(range),
                }
            }
            prop_assert_eq!(joined, ranges);
        }
    }

    proptest! {
        #[test]
        fn what_is_left_out_is_asked_for_by_nobody(
            from in 0..30 * SEGMENT,
            length in 1..20 * SEGMENT,
        ) {
            let mut queue = Queue::of(&[0..9 * SEGMENT, 10 * SEGMENT..20 * SEGMENT]);
            let out = from..from + length;
            queue.leave_out(&out);
            let is_wanted = |at: u64| at < 20 * SEGMENT && !(9 * SEGMENT..10 * SEGMENT).contains(&at);
            let left: Vec<_> = std::iter::from_fn(|| queue.take()).flatten().collect();
            let bytes: u64 = left.iter().map(|range| range.end - range.start).sum();
            let both = |wanted: Range<u64>| {
                wanted.end.min(out.end).saturating_sub(wanted.start.max(out.start))
            };
            let taken = both(0..9 * SEGMENT) + both(10 * SEGMENT..20 * SEGMENT);
            prop_assert_eq!(bytes, 19 * SEGMENT - taken);
            prop_assert!(left.iter().all(|range| is_wanted(range.start) && !out.contains(&range.start)));
        }
    }

    #[test]
    fn many_small_ranges_are_asked_for_in_turns() {
        let ranges: Vec<_> = (0..3 * MOST_RANGES as u64)
            .map(|n| 2 * n..2 * n + 1)
            .collect();
        let mut queue = Queue::of(&ranges);
        let segments = std::iter::from_fn(|| queue.take());
        assert!(segments.map(|segment| segment.len()).eq([MOST_RANGES; 3]));
    }
}
