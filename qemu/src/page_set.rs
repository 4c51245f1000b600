//! A set of pages of one guest's memory, a bit for each. Pure.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::ops::Range;

/// A set of page numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    count: usize,
}

impl PageSet {
    /// How many pages are in it.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u32) -> bool {
        self.words
            .get(page as usize / 64)
            .is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds a page.
    pub fn insert(&mut self, page: u32) {
        let word = page as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (page % 64);
        self.count += usize::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    /// Adds runs of pages.
    pub fn extend(&mut self, runs: &[Range<u32>]) {
        for page in runs.iter().cloned().flatten() {
            self.insert(page);
        }
    }

    /// Takes a page out.
    pub fn remove(&mut self, page: u32) {
        if self.contains(page) {
            self.words[page as usize / 64] &= !(1 << (page % 64));
            self.count -= 1;
        }
    }

    /// The pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(i, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                (bit < 64).then(|| {
                    left &= left - 1;
                    i as u32 * 64 + bit
                })
            })
        })
    }

    /// The pages as runs that do not touch each other, in order.
    pub fn runs(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for page in self.iter() {
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0u32..500), 0..200)) {
            let (mut set, mut model) = (PageSet::default(), BTreeSet::new());
            for (add, page) in steps {
                if add {
                    set.insert(page);
                    model.insert(page);
                } else {
                    set.remove(page);
                    model.remove(&page);
                }
            }
            prop_assert_eq!(set.len(), model.len());
            prop_assert!(set.iter().eq(model.iter().copied()));
            let runs = set.runs();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            let mut again = PageSet::default();
            again.extend(&runs);
            prop_assert!(again.iter().eq(model.iter().copied()));
        }
    }
}
