//! What is to be done, and how often it was tried: each item has one result, whatever fails on the way.

use std::collections::VecDeque;

/// One item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its number, from 0.
    pub index: usize,
    /// What its program is given to read.
    pub input: Option<Vec<u8>>,
    /// How often it was begun.
    pub attempts: u32,
}

/// All items of a map.
#[derive(Debug)]
pub(crate) struct Items {
    waiting: VecDeque<Item>,
    accepted: Vec<bool>,
    retries: u32,
}

impl Items {
    /// All of them, of which some have their results already.
    pub fn new(
        inputs: Vec<Option<Vec<u8>>>,
        retries: u32,
        is_done: impl Fn(usize) -> bool,
    ) -> Self {
        let accepted: Vec<bool> = (0..inputs.len()).map(is_done).collect();
        let items = inputs.into_iter().enumerate();
        let items = items.filter(|(index, _)| !accepted[*index]);
        let item = |(index, input)| Item {
            index,
            input,
            attempts: 0,
        };
        let waiting = items.map(item).collect();
        Self {
            waiting,
            accepted,
            retries,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.accepted.len()
    }

    /// How many have no result yet.
    pub fn left(&self) -> usize {
        self.accepted.iter().filter(|accepted| !**accepted).count()
    }

    /// The next one to do. Who takes it says what became of it, and takes it again itself where it failed: so that whoever finds none is
    /// not needed any more.
    pub fn next(&mut self) -> Option<Item> {
        let mut item = self.waiting.pop_front()?;
        item.attempts += 1;
        Some(item)
    }

    /// Notes that an item has its result.
    ///
    /// # Panics
    /// When it had one.
    pub fn accepted(&mut self, item: &Item) {
        let had = std::mem::replace(&mut self.accepted[item.index], true);
        assert!(!had, "an item is done by one at a time");
    }

    /// Notes that an item has none, for no fault of its own: it is done again, before others. Gives it back when that was often enough.
    pub fn failed(&mut self, item: Item, why: &str) -> Option<Item> {
        tracing::debug!(item = item.index, why, "an item has to be done again");
        if item.attempts > self.retries {
            self.accepted(&item);
            return Some(item);
        }
        self.waiting.push_front(item);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_result_and_what_failed_comes_first() {
        let mut items = Items::new(vec![None, Some(b"x\n".to_vec()), None], 1, |_| false);
        assert_eq!(items.count(), 3);
        let first = items.next().unwrap();
        assert_eq!((first.index, first.attempts), (0, 1));
        let second = items.next().unwrap();
        assert_eq!(items.failed(first, "host"), None);
        items.accepted(&second);
        let again = items.next().unwrap();
        assert_eq!((again.index, again.attempts), (0, 2));
        assert_eq!(items.next().unwrap().index, 2);
        assert_eq!(items.next(), None);
        // Once more was allowed.
        let given_up = items.failed(again, "host").unwrap();
        assert_eq!(given_up.index, 0);
        assert_eq!(items.next(), None);
    }

    #[test]
    fn what_has_its_result_is_not_done_again() {
        let mut items = Items::new(vec![None; 3], 0, |index| index == 1);
        assert_eq!((items.count(), items.left()), (3, 2));
        let indexes = std::iter::from_fn(|| items.next()).map(|item| item.index);
        assert_eq!(indexes.collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    #[should_panic(expected = "one at a time")]
    fn a_second_result_is_a_bug() {
        let mut items = Items::new(vec![None], 0, |_| false);
        let item = items.next().unwrap();
        items.accepted(&item);
        items.accepted(&item);
    }
}
