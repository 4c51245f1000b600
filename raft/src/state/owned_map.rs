//! Objects by their ids, counted for each owner.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use super::{
    owners::Owned,
    shared_map::{Iter, SharedMap},
};

/// Objects that have owners. A copy costs little: see [`SharedMap`], which it is to who reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedMap<I, T> {
    all: SharedMap<I, Arc<T>>,
    /// How many each owner has. Follows from `all`; only owners that have some.
    counts: BTreeMap<String, u64>,
}

impl<I, T> Default for OwnedMap<I, T> {
    fn default() -> Self {
        Self {
            all: SharedMap::default(),
            counts: BTreeMap::new(),
        }
    }
}

impl<I, T> Deref for OwnedMap<I, T> {
    type Target = SharedMap<I, Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl<I, T> OwnedMap<I, T> {
    /// How many an owner has.
    pub fn count_of(&self, owner: &str) -> u64 {
        self.counts.get(owner).copied().unwrap_or_default()
    }

    /// The owners that have some, in their order.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.counts.keys().map(String::as_str)
    }
}

impl<I: Ord + Clone, T: Owned> OwnedMap<I, T> {
    /// One, to change it. Its owner must stay: an object that gets another is inserted anew.
    pub fn get_mut(&mut self, id: &I) -> Option<&mut Arc<T>> {
        self.all.get_mut(id)
    }

    /// Adds one, in the place of another with its id.
    pub fn insert(&mut self, id: I, object: Arc<T>) {
        self.remove(&id);
        let owner = object.ownership().owner.clone();
        *self.counts.entry(owner).or_default() += 1;
        self.all.insert(id, object);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: &I) -> Option<Arc<T>> {
        let object = self.all.remove(id)?;
        let owner = &object.ownership().owner;
        if let Some(count) = self.counts.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(owner);
            }
        }
        Some(object)
    }

    /// Whether the counts are right.
    pub(super) fn is_sound(&self) -> bool {
        let mut counts = BTreeMap::<&str, u64>::new();
        for object in self.all.values() {
            *counts.entry(&object.ownership().owner).or_default() += 1;
        }
        let own = self.counts.iter();
        own.map(|(owner, count)| (owner.as_str(), *count))
            .eq(counts)
    }
}

impl<I: Ord + Clone, T: Owned> FromIterator<(I, Arc<T>)> for OwnedMap<I, T> {
    fn from_iter<A: IntoIterator<Item = (I, Arc<T>)>>(all: A) -> Self {
        let mut map = Self::default();
        for (id, object) in all {
            map.insert(id, object);
        }
        map
    }
}

impl<'a, I, T> IntoIterator for &'a OwnedMap<I, T> {
    type Item = (&'a I, &'a Arc<T>);
    type IntoIter = Iter<'a, I, Arc<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}
