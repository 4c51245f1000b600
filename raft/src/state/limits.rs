//! How much of the replicated state the maps that are left to the cluster may take.

use super::model::{Map, MapJob};

/// How many items such a map may have.
pub const MAP_ITEMS: u32 = 10_000;
/// What is kept of each of an item's outputs, bytes.
pub const MAP_ITEM_OUTPUT: usize = 64 << 10;
/// What is kept of each output of the program that is run over all results, bytes.
pub const MAP_REDUCED_OUTPUT: usize = 256 << 10;
/// What is kept of all items' outputs, bytes.
pub const MAP_OUTPUT: u64 = 4 << 20;
/// What is asked of a map, bytes: its program and the items' input.
pub const MAP_JOB: u64 = 512 << 10;
/// How many maps an owner may have, those that ended included.
pub const MAPS_OF_OWNER: u64 = 100;
/// What an owner's maps may hold, bytes.
pub const MAPS_HELD_OF_OWNER: u64 = 32 << 20;
/// What all maps may hold, bytes.
pub const MAPS_HELD: u64 = 64 << 20;

/// What a map and a result take beside what is in them, bytes.
const RECORD: u64 = 256;
/// What a result's texts may take, bytes.
const TEXTS: u64 = 512;

/// What a map of this may come to hold.
pub(super) fn most_of(job: &MapJob) -> u64 {
    let count = u64::from(job.count);
    let reduced = job.reduce.as_ref().map_or(0, |_| MAP_REDUCED_OUTPUT as u64);
    let outputs = (count * 2 * MAP_ITEM_OUTPUT as u64).min(MAP_OUTPUT);
    RECORD + job.bytes() + outputs + 2 * reduced + (count + 1) * (RECORD + TEXTS)
}

impl Map {
    /// What it holds, bytes; while it runs, what it may come to hold.
    pub fn held_bytes(&self) -> u64 {
        if self.is_running() {
            return most_of(&self.job);
        }
        let reduced = self.reduced.as_ref().map_or(0, |one| one.output_bytes());
        let results = self.results.len() as u64 + 1;
        RECORD + self.job.bytes() + self.output_bytes + reduced + results * (RECORD + TEXTS)
    }
}
