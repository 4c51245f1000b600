//! Which layers of a disk's chain become one. Pure.
//!
//! Merging bytes again and again is what a short chain costs. A run of layers is the better to merge the less of what is
//! rewritten lies in its largest layer, which gains nothing by it: layers of like size first, as log-structured stores do.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::ops::Range;

/// A layer counts for at least this much: an empty one has tables too, and costs a file and a node.
const LEAST: u64 = 256 << 10;

/// The run of neighbouring layers to merge, so that a chain of more than `limit` gets shorter; `None` when it is short enough.
/// `sizes` are the bytes that each takes, newest first. The run has at least two layers, and is the one that rewrites least for
/// each byte that is not in its largest; of equal ones the newest, and the longest.
pub fn plan_merge(sizes: &[u64], limit: usize) -> Option<Range<usize>> {
    if sizes.len() <= limit.max(1) {
        return None;
    }
    let mut best: Option<(Range<usize>, u128, u128)> = None;
    for start in 0..sizes.len() {
        let (mut total, mut largest) = (0u128, 0u128);
        for (at, size) in sizes.iter().enumerate().skip(start) {
            let size = u128::from((*size).max(LEAST));
            total += size;
            largest = largest.max(size);
            let gained = total - largest;
            // total / gained, without a division; a single layer gains nothing.
            let better = gained > 0
                && best
                    .as_ref()
                    .is_none_or(|(range, best_total, best_gained)| {
                        let (this, other) = (total * best_gained, best_total * gained);
                        this < other || (this == other && range.start == start)
                    });
            if better {
                best = Some((start..at + 1, total, gained));
            }
        }
    }
    best.map(|(range, ..)| range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: usize = 5;

    #[test]
    fn a_short_chain_is_left_alone() {
        assert_eq!(plan_merge(&[], LIMIT), None);
        assert_eq!(plan_merge(&[MIB; LIMIT], LIMIT), None);
        assert_eq!(plan_merge(&[MIB], 0), None);
    }

    #[test]
    fn layers_of_like_size_are_merged_and_a_large_one_is_not_rewritten_for_them() {
        assert_eq!(plan_merge(&[MIB; 6], LIMIT), Some(0..6));
        let large = 500 * MIB;
        assert_eq!(
            plan_merge(&[MIB, MIB, MIB, MIB, MIB, large], LIMIT),
            Some(0..5)
        );
        assert_eq!(
            plan_merge(&[large, MIB, MIB, MIB, MIB, MIB], LIMIT),
            Some(1..6)
        );
        assert_eq!(
            plan_merge(&[MIB, MIB, large, MIB, MIB, large], LIMIT),
            Some(0..6),
            "two large ones are alike"
        );
    }

    /// Captures of one VM after another, each merged at once. Returns the longest chain and the bytes rewritten.
    fn run(arriving: &[u64]) -> (usize, u128, u128) {
        let mut chain: Vec<u64> = Vec::new();
        let (mut longest, mut rewritten, mut arrived) = (0, 0, 0);
        for size in arriving {
            chain.insert(0, *size);
            arrived += u128::from((*size).max(LEAST));
            if let Some(range) = plan_merge(&chain, LIMIT) {
                assert!(range.len() >= 2 && range.end <= chain.len());
                let merged = chain[range.clone()]
                    .iter()
                    .map(|size| (*size).max(LEAST))
                    .sum::<u64>();
                rewritten += u128::from(merged);
                chain.splice(range, [merged]);
            }
            longest = longest.max(chain.len());
        }
        (longest, arrived, rewritten)
    }

    #[test]
    fn a_thousand_captures_of_like_size_rewrite_each_byte_a_few_times() {
        let (longest, arrived, rewritten) = run(&[MIB; 1000]);
        assert!(longest <= LIMIT);
        assert!(
            rewritten < 10 * arrived,
            "{:.1} times",
            rewritten as f64 / arrived as f64
        );
    }

    proptest! {
        /// Nothing is assumed of the sizes: from none to a gigabyte, in any order.
        #[test]
        fn the_chain_is_bounded_and_so_is_what_is_rewritten(
            arriving in prop::collection::vec((0u32..31).prop_flat_map(|bits| 0..=1u64 << bits), 1..400),
        ) {
            let (longest, arrived, rewritten) = run(&arriving);
            prop_assert!(longest <= LIMIT);
            prop_assert!(rewritten < 16 * arrived, "{:.1} times", rewritten as f64 / arrived as f64);
        }
    }
}
