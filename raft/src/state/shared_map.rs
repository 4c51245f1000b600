//! An ordered map whose copies share what they have in common: the state is copied before each change, because readers keep
//! theirs. Copying one costs a pointer for each chunk, changing it then a chunk.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt, iter,
    ops::{Bound, Index, RangeBounds},
    slice,
    sync::Arc,
};

/// The most that a chunk holds. Of two neighbours one holds more than a quarter of it.
const CHUNK: usize = 128;

/// Entries in the order of their keys.
type Chunk<K, V> = Vec<(K, V)>;

/// An ordered map.
#[derive(Clone)]
pub struct SharedMap<K, V> {
    /// In the order of their keys, none of them empty.
    chunks: Vec<Arc<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<K, V> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, by their keys.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter {
            entries: [].iter(),
            chunks: self.chunks.iter(),
        }
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, by their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K, V> SharedMap<K, V> {
    /// The last entry.
    pub fn last(&self) -> Option<(&K, &V)> {
        let (key, value) = self.chunks.last()?.last()?;
        Some((key, value))
    }
}

impl<K: Ord, V: PartialEq> SharedMap<K, V> {
    /// Where this one differs from another: keys in their order, each with the value that the other has and the one that this has. Costs
    /// a look at each chunk, and at the entries of those only that the two do not share.
    pub fn differences<'a>(&'a self, other: &'a Self) -> Differences<'a, K, V> {
        Differences {
            before: Cursor::at_the_beginning(&other.chunks),
            after: Cursor::at_the_beginning(&self.chunks),
        }
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The chunk that has a key if any has, and the key's place in it or where it would be.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> (usize, Result<usize, usize>)
    where
        K: Borrow<Q>,
    {
        let ends_before =
            |chunk: &Arc<Chunk<K, V>>| chunk.last().is_some_and(|(last, _)| last.borrow() < key);
        let chunk = self.chunks.partition_point(ends_before);
        let place = self.chunks.get(chunk).map_or(Err(0), |entries| {
            entries.binary_search_by(|(known, _)| known.borrow().cmp(key))
        });
        (chunk, place)
    }

    /// A value.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        place.ok().map(|place| &self.chunks[chunk][place].1)
    }

    /// Whether there is an entry with a key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).1.is_ok()
    }

    /// The entries within a range of keys.
    pub fn range<R: RangeBounds<K>>(&self, range: R) -> impl Iterator<Item = (&K, &V)> {
        let (chunk, place) = match range.start_bound() {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) => match self.find(key) {
                (chunk, Ok(place) | Err(place)) => (chunk, place),
            },
            Bound::Excluded(key) => match self.find(key) {
                (chunk, Ok(place)) => (chunk, place + 1),
                (chunk, Err(place)) => (chunk, place),
            },
        };
        let mut chunks = self.chunks[chunk..].iter();
        let entries = match chunks.next() {
            Some(first) => first[place..].iter(),
            None => [].iter(),
        };
        let is_within = move |key: &K| match range.end_bound() {
            Bound::Unbounded => true,
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
        };
        Iter { entries, chunks }.take_while(move |(key, _)| is_within(key))
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// A value, to change it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        let place = place.ok()?;
        Some(&mut Arc::make_mut(&mut self.chunks[chunk])[place].1)
    }

    /// Adds an entry. Gives the value that was there under its key.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (mut chunk, place) = self.find(&key);
        let mut place = match place {
            Ok(place) => {
                let entry = &mut Arc::make_mut(&mut self.chunks[chunk])[place];
                return Some(std::mem::replace(&mut entry.1, value));
            }
            Err(place) => place,
        };
        self.len += 1;
        if chunk == self.chunks.len() {
            // Behind all others, where new ids come: chunks stay full.
            match self.chunks.last_mut().filter(|last| last.len() < CHUNK) {
                Some(last) => Arc::make_mut(last).push((key, value)),
                None => self.chunks.push(Arc::new(vec![(key, value)])),
            }
            return None;
        }
        if self.chunks[chunk].len() == CHUNK {
            let rest = Arc::make_mut(&mut self.chunks[chunk]).split_off(CHUNK / 2);
            self.chunks.insert(chunk + 1, Arc::new(rest));
            if place > CHUNK / 2 {
                (chunk, place) = (chunk + 1, place - CHUNK / 2);
            }
        }
        Arc::make_mut(&mut self.chunks[chunk]).insert(place, (key, value));
        None
    }

    /// Removes an entry. Gives its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        let place = place.ok()?;
        let (_, value) = Arc::make_mut(&mut self.chunks[chunk]).remove(place);
        self.len -= 1;
        if self.chunks[chunk].is_empty() {
            self.chunks.remove(chunk);
        } else {
            self.join_if_small(chunk);
            self.join_if_small(chunk.saturating_sub(1));
        }
        Some(value)
    }

    /// Makes one of a chunk and the next where they are small.
    fn join_if_small(&mut self, chunk: usize) {
        if let Some([first, second]) = self.chunks.get_mut(chunk..chunk + 2)
            && first.len() + second.len() <= CHUNK / 2
        {
            Arc::make_mut(first).extend(second.iter().cloned());
            self.chunks.remove(chunk + 1);
        }
    }
}

/// The entries of a [`SharedMap`], by their keys.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    /// Of a chunk that was begun.
    entries: slice::Iter<'a, (K, V)>,
    /// Those after it.
    chunks: slice::Iter<'a, Arc<Chunk<K, V>>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.entries.next() {
                return Some((key, value));
            }
            self.entries = self.chunks.next()?.iter();
        }
    }
}

/// A place in a map.
#[derive(Debug)]
struct Cursor<'a, K, V> {
    chunks: &'a [Arc<Chunk<K, V>>],
    place: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn at_the_beginning(chunks: &'a [Arc<Chunk<K, V>>]) -> Self {
        Self { chunks, place: 0 }
    }

    fn entry(&self) -> Option<&'a (K, V)> {
        self.chunks.first().map(|chunk| &chunk[self.place])
    }

    fn go_on(&mut self) {
        self.place += 1;
        if self
            .chunks
            .first()
            .is_some_and(|chunk| self.place == chunk.len())
        {
            self.pass_chunk();
        }
    }

    fn pass_chunk(&mut self) {
        self.chunks = self.chunks.get(1..).unwrap_or_default();
        self.place = 0;
    }
}

/// See [`SharedMap::differences`].
#[derive(Debug)]
pub struct Differences<'a, K, V> {
    before: Cursor<'a, K, V>,
    after: Cursor<'a, K, V>,
}

impl<'a, K: Ord, V: PartialEq> Iterator for Differences<'a, K, V> {
    type Item = (&'a K, Option<&'a V>, Option<&'a V>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (before, after) = (&mut self.before, &mut self.after);
            if let (0, 0, Some(one), Some(other)) = (
                before.place,
                after.place,
                before.chunks.first(),
                after.chunks.first(),
            ) && Arc::ptr_eq(one, other)
            {
                before.pass_chunk();
                after.pass_chunk();
                continue;
            }
            let (was, is) = (before.entry(), after.entry());
            let order = match (was, is) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((was, _)), Some((is, _))) => was.cmp(is),
            };
            let was = was.filter(|_| order.is_le());
            let is = is.filter(|_| order.is_ge());
            if was.is_some() {
                before.go_on();
            }
            if is.is_some() {
                after.go_on();
            }
            match (was, is) {
                (Some((_, was)), Some((_, is))) if was == is => {}
                (Some((key, was)), None) => return Some((key, Some(was), None)),
                (was, Some((key, is))) => return Some((key, was.map(|(_, was)| was), Some(is))),
                (None, None) => return None,
            }
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && iter::zip(self, other).all(|(one, another)| one == another)
    }
}

impl<K: Eq, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// # Panics
///
/// When there is no entry with this key.
impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    #[allow(clippy::expect_used)]
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry has this key")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16, u8),
        Remove(u16),
        Change(u16, u8),
        Copy,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = 0..600_u16;
        prop_oneof![
            4 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
            3 => key.clone().prop_map(Step::Remove),
            1 => (key, any::<u8>()).prop_map(|(key, value)| Step::Change(key, value)),
            1 => Just(Step::Copy),
        ]
    }

    fn check(map: &SharedMap<u16, u8>, model: &BTreeMap<u16, u8>) {
        assert!(map.iter().eq(model.iter()));
        assert_eq!(map.len(), model.len());
        assert!(map.chunks.iter().all(|chunk| !chunk.is_empty()));
        let small = |pair: &[Arc<Chunk<u16, u8>>]| pair[0].len() + pair[1].len() <= CHUNK / 2;
        assert!(!map.chunks.windows(2).any(small), "chunks are not too many");
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_its_copies_stay_as_they_were(
            filled in 0..600_u16,
            steps in vec(step(), 0..800),
            range in (0..650_u16, 0..650_u16),
        ) {
            let mut map: SharedMap<u16, u8> = (0..filled).map(|key| (key, 0)).collect();
            let mut model: BTreeMap<u16, u8> = (0..filled).map(|key| (key, 0)).collect();
            let mut copies = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        prop_assert_eq!(map.insert(key, value), model.insert(key, value));
                    }
                    Step::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    Step::Change(key, value) => {
                        let (one, other) = (map.get_mut(&key), model.get_mut(&key));
                        prop_assert_eq!(one.is_some(), other.is_some());
                        if let (Some(one), Some(other)) = (one, other) {
                            (*one, *other) = (value, value);
                        }
                    }
                    Step::Copy => copies.push((map.clone(), model.clone())),
                }
            }
            copies.push((map, model));
            let range = range.0.min(range.1)..range.0.max(range.1);
            for (map, model) in &copies {
                check(map, model);
                prop_assert!(map.range(range.clone()).eq(model.range(range.clone())));
                prop_assert!(map.range(..=range.end).eq(model.range(..=range.end)));
                let after = (Bound::Excluded(range.start), Bound::Unbounded);
                prop_assert!(map.range(after).eq(model.range(after)));
                for key in [range.start, range.end] {
                    prop_assert_eq!(map.get(&key), model.get(&key));
                    prop_assert_eq!(map.contains_key(&key), model.contains_key(&key));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn differences_are_all_that_differs(first in vec(step(), 0..300), then in vec(step(), 0..60)) {
            let mut map = SharedMap::<u16, u8>::default();
            let carry_out = |map: &mut SharedMap<u16, u8>, step: Step| match step {
                Step::Insert(key, value) => {
                    map.insert(key, value);
                }
                Step::Remove(key) => {
                    map.remove(&key);
                }
                Step::Change(key, value) => {
                    if let Some(there) = map.get_mut(&key) {
                        *there = value;
                    }
                }
                Step::Copy => {}
            };
            for key in (0..600).step_by(3) {
                map.insert(key, 0);
            }
            first.into_iter().for_each(|step| carry_out(&mut map, step));
            let before = map.clone();
            then.into_iter().for_each(|step| carry_out(&mut map, step));
            let keys: std::collections::BTreeSet<_> = before.keys().chain(map.keys()).collect();
            let expected = keys
                .into_iter()
                .map(|key| (key, before.get(key), map.get(key)))
                .filter(|(_, was, is)| was != is);
            prop_assert!(map.differences(&before).eq(expected));
            prop_assert_eq!(map.last(), map.iter().last());
        }
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let before: SharedMap<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
        let mut after = before.clone();
        after.insert(5_000, 0);
        let shared = iter::zip(&before.chunks, &after.chunks);
        let copied = shared
            .filter(|(one, other)| !Arc::ptr_eq(one, other))
            .count();
        assert_eq!(copied, 1);
        assert_eq!(before.chunks.len(), 10_000_usize.div_ceil(CHUNK));
    }
}
