//! What became of requests. Called by `apply` only.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::{KEPT_REQUESTS, response::Outcome};

/// How many records share one allocation: what is copied when a published state is changed is at most one chunk.
const CHUNK: usize = 250;

/// What became of requests, so that one that is sent again does nothing twice. Bounded: the oldest go first.
///
/// Each owner has ids of its own, so that nobody learns of another's, or is in another's way: they are kept as OWNER/ID.
///
/// Kept in chunks that are shared between copies of the state, the newest last. A clone costs a pointer for each chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requests {
    chunks: Vec<Arc<BTreeMap<String, RequestRecord>>>,
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// SHA-256 of its body.
    pub body: [u8; 32],
    /// Its outcome.
    pub outcome: Outcome,
}

impl Requests {
    /// The record of an owner's request, unless it never came or is gone.
    pub fn get(&self, owner: &str, id: &str) -> Option<&RequestRecord> {
        let key = key(owner, id);
        self.chunks.iter().rev().find_map(|chunk| chunk.get(&key))
    }

    /// An owner's whose ids begin so; each with the rest of its id.
    pub fn beginning_with(
        &self,
        owner: &str,
        prefix: &str,
    ) -> impl Iterator<Item = (&str, &RequestRecord)> {
        let prefix = key(owner, prefix);
        self.chunks.iter().flat_map(move |chunk| {
            let prefix = prefix.clone();
            let from = chunk.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
            from.map_while(move |(id, record)| Some((id.strip_prefix(&prefix)?, record)))
        })
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes a request that was not known, and forgets the oldest ones when there are more than enough.
    pub(super) fn insert(&mut self, owner: &str, id: &str, record: RequestRecord) {
        let id = key(owner, id);
        match self.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => {
                Arc::make_mut(chunk).insert(id, record);
            }
            None => self.chunks.push(Arc::new(BTreeMap::from([(id, record)]))),
        }
        if self.len() >= KEPT_REQUESTS + CHUNK {
            self.chunks.remove(0);
        }
    }

    /// The chunks, for the stored form.
    pub(crate) fn chunks(&self) -> &[Arc<BTreeMap<String, RequestRecord>>] {
        &self.chunks
    }

    /// From the stored form.
    pub(crate) fn from_chunks(chunks: Vec<BTreeMap<String, RequestRecord>>) -> Self {
        Self {
            chunks: chunks.into_iter().map(Arc::new).collect(),
        }
    }
}

fn key(owner: &str, id: &str) -> String {
    format!("{owner}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Response;

    #[test]
    fn the_last_ten_thousand_are_kept_and_no_more_than_a_chunk_beyond() {
        let mut requests = Requests::default();
        let record = || RequestRecord {
            body: [0; 32],
            outcome: Ok(Response::Done),
        };
        for i in 0..3 * KEPT_REQUESTS {
            requests.insert("a", &format!("r{i}"), record());
            assert!(requests.len() < KEPT_REQUESTS + CHUNK);
        }
        let newer = format!("r{}", 2 * KEPT_REQUESTS);
        assert!(requests.get("a", &newer).is_some());
        assert!(requests.get("b", &newer).is_none());
        assert!(requests.get("a", "r0").is_none());
    }
}
