//! What became of requests. Called by `apply` only.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::{KEPT_REQUESTS, response::Outcome};

/// How many records share one allocation: what is copied when a published state is changed is at most one chunk.
const CHUNK: usize = 250;

/// What became of requests, so that one that is sent again does nothing twice. Bounded: the oldest go first.
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
    /// The record of a request, unless it never came or is gone.
    pub fn get(&self, id: &str) -> Option<&RequestRecord> {
        self.chunks.iter().rev().find_map(|chunk| chunk.get(id))
    }

    /// Those whose ids begin so.
    pub fn beginning_with<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a RequestRecord)> {
        self.chunks.iter().flat_map(move |chunk| {
            let from = chunk.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
            from.take_while(move |(id, _)| id.starts_with(prefix))
                .map(|(id, record)| (id.as_str(), record))
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
    pub(super) fn insert(&mut self, id: String, record: RequestRecord) {
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
            requests.insert(format!("r{i}"), record());
            assert!(requests.len() < KEPT_REQUESTS + CHUNK);
        }
        assert!(requests.get(&format!("r{}", 2 * KEPT_REQUESTS)).is_some());
        assert!(requests.get("r0").is_none());
    }
}
