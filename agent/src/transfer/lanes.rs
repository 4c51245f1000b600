//! How the parts of a file come: what nobody waits for in segments, from all that have it, and before that, in blocks, what somebody stands still for.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use proto::peer::{ByteRange, ReadFileRequest};
use qemu::failpoint;
use raft::state::NodeId;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    pack,
    part::Part,
    queue::{Queue, Segment},
    receive::{Fetch, FetchError, PAUSE, SILENCE, Unfetched, next},
};
use crate::{arriving::Served, errors::chain};

/// Requests to one node at a time: while one's answer ends, the next one's begins.
const LANES: usize = 2;
/// How many requests for what is waited for may be under way.
const MOST_WANTED: usize = 16;
/// In blocks of how many bytes what is waited for is fetched: what one message holds.
const BLOCK: u64 = pack::PART as u64;

impl<S: Fn() -> Vec<NodeId>> Fetch<'_, S> {
    /// Fetches all that is missing from whoever gives it.
    pub(super) async fn all_parts(
        &self,
        part: &Part,
        queue: &Mutex<Queue>,
    ) -> Result<(), Unfetched> {
        let is_empty = || {
            queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty()
        };
        while !is_empty() {
            let sources = (self.sources)();
            let lanes = sources
                .iter()
                .flat_map(|source| std::iter::repeat_n(*source, LANES));
            let lanes = lanes.map(|source| async move {
                let ended = self.lane(source, part, queue).await;
                ended.err().map(|error| (source, error))
            });
            let problems: Vec<_> = join_all(lanes).await.into_iter().flatten().collect();
            if !is_empty() {
                self.again(&problems, part.served.as_ref()).await?;
            }
        }
        Ok(())
    }

    /// Fetches what is waited for, before everything else, until it is dropped: in blocks, since what lies near is often wanted next.
    pub(super) async fn wanted_parts(&self, part: &Part, served: &Served, queue: &Mutex<Queue>) {
        let mut fetching = FuturesUnordered::new();
        let mut under_way = BTreeSet::new();
        loop {
            tokio::select! {
                range = served.wanted(), if fetching.len() < MOST_WANTED => {
                    for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                        let lacking = served.lacking_of(block * BLOCK..(block + 1) * BLOCK);
                        if lacking.is_empty() || !under_way.insert(block) {
                            continue;
                        }
                        self.node.transfers.quiet.end();
                        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                        lacking.iter().for_each(|range| queue.leave_out(range));
                        fetching.push(async move {
                            self.wanted_part(part, lacking).await;
                            block
                        });
                    }
                }
                Some(block) = fetching.next() => {
                    under_way.remove(&block);
                }
            }
        }
    }

    /// Fetches what is waited for from whoever gives it.
    async fn wanted_part(&self, part: &Part, segment: Segment) {
        loop {
            for source in (self.sources)() {
                let mut got = 0;
                match self.segment(source, part, &segment, true, &mut got).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(
                        file = self.wanted.file.relative(),
                        error = %chain(&error),
                        "what is waited for cannot be had from a node"
                    ),
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Fetches segments from one node until none is left.
    async fn lane(
        &self,
        source: NodeId,
        part: &Part,
        queue: &Mutex<Queue>,
    ) -> Result<(), FetchError> {
        let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if part.served.is_some() {
                self.node.transfers.quiet.begun(self.begun).await;
            }
            let Some(segment) = queue().take() else {
                return Ok(());
            };
            let mut got = 0;
            let urgent = self.wanted.urgent;
            let fetched = self.segment(source, part, &segment, urgent, &mut got).await;
            if let Err(error) = fetched {
                queue().give_back(&segment, got);
                return Err(error);
            }
        }
    }

    /// Fetches one segment; `got` says up to where it is here.
    async fn segment(
        &self,
        source: NodeId,
        part: &Part,
        segment: &Segment,
        urgent: bool,
        got: &mut u64,
    ) -> Result<(), FetchError> {
        let request = ReadFileRequest {
            file: Some(self.wanted.file.message()),
            ranges: segment
                .iter()
                .map(|range| ByteRange {
                    from: range.start,
                    to: range.end,
                })
                .collect(),
            urgent,
        };
        let mut client = self.node.peers.file_client(source)?;
        let answer = timeout(SILENCE, client.read_file(request)).await;
        let mut parts = answer.map_err(|_| FetchError::Silent)??.into_inner();
        let wanted: Arc<[Range<u64>]> = segment.as_slice().into();
        let bytes = |until: u64| -> u64 {
            let before = |range: &Range<u64>| range.end.min(until).saturating_sub(range.start);
            segment.iter().map(before).sum()
        };
        while *got != pack::TOLD_ALL {
            let one = next(&mut parts).await?;
            self.note_heard();
            self.note_moved(one.packed.len());
            let (file, wanted) = (Arc::clone(&part.file), Arc::clone(&wanted));
            let told_to = one.told_to;
            let written = spawn_blocking(move || {
                let bytes = pack::unpack(&one, &wanted)?;
                pack::write(&file, &one.ranges, &bytes)?;
                Ok::<_, FetchError>(())
            });
            written.await.map_err(io::Error::other)??;
            failpoint::reached("transfer.part-written");
            if told_to <= *got {
                return Err(FetchError::Cut);
            }
            let more = bytes(told_to) - bytes(*got);
            self.progress.done.fetch_add(more, Ordering::Relaxed);
            for range in segment {
                let came = range.start.max(*got)..range.end.min(told_to);
                if !came.is_empty() {
                    part.came(came).await;
                }
            }
            *got = told_to;
        }
        Ok(())
    }
}
