//! Leaving out of a stream what its base holds already.
//!
//! A page that the kernel merges with equal ones (KSM) counts as written from then on, so a guest whose memory is merged
//! would be captured with much that did not change. Comparing costs about a millisecond for 3 MiB, and is done while the
//! guest runs.

use std::{fs::File, ops::Range, os::unix::fs::FileExt};

use super::{CaptureError, memory};
use crate::{memory::Memory, page_set::PageSet, stream::Pages, sys::PAGE};

/// Pages of the base that are read at once.
const CHUNK_PAGES: u32 = 64;

/// Takes those pages of `runs` out of `pages` that hold what `base` holds, and out of the set that the next capture begins
/// with: `since_base`, if the base is new, or else the guest's delta. They must have been read after the scan that listed
/// them: what is written after that is listed by the next.
pub(super) fn sift(
    base: &File,
    pages: &mut Pages,
    runs: &[Range<u32>],
    since_base: &mut Option<PageSet>,
    guest: &mut Memory,
) -> Result<(), CaptureError> {
    let equal =
        equal(base, pages, runs).map_err(memory("compare the guest's memory with its base"))?;
    for page in &equal {
        pages.remove(*page);
    }
    match since_base {
        Some(since) => equal.iter().for_each(|page| since.remove(*page)),
        None => guest.not_in_delta(&equal),
    }
    Ok(())
}

/// The pages of `runs` that are in `pages` and hold what `base` holds.
fn equal(base: &File, pages: &Pages, runs: &[Range<u32>]) -> std::io::Result<Vec<u32>> {
    let mut buffer = vec![0; CHUNK_PAGES as usize * PAGE];
    let mut equal = Vec::new();
    for run in runs {
        for from in run.clone().step_by(CHUNK_PAGES as usize) {
            let count = (run.end - from).min(CHUNK_PAGES);
            let part = &mut buffer[..count as usize * PAGE];
            base.read_exact_at(part, u64::from(from) * PAGE as u64)?;
            let same = part
                .chunks_exact(PAGE)
                .zip(from..)
                .filter(|(bytes, page)| pages.get(*page) == Some(*bytes));
            equal.extend(same.map(|(_, page)| page));
        }
    }
    Ok(equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_the_base_holds_are_found_across_chunks() {
        let base = tempfile::tempfile().unwrap();
        base.set_len(1 << 20).unwrap();
        let mut pages = Pages::default();
        let runs = [3..5, 10..150, 200..201];
        for (page, place) in pages.places_for(&runs) {
            place.fill((page % 7) as u8);
            // Every third page is in the base as the guest has it; a page of zeros is, unless the base says otherwise.
            if page % 3 == 0 {
                base.write_all_at(place, u64::from(page) * PAGE as u64)
                    .unwrap();
            } else if page % 7 == 0 {
                base.write_all_at(&[1], u64::from(page) * PAGE as u64 + 4095)
                    .unwrap();
            }
        }
        let expected: Vec<u32> = runs
            .iter()
            .cloned()
            .flatten()
            .filter(|page| page % 3 == 0)
            .collect();
        // Listed, but not read: none of ours.
        let listed = [0..5, 10..150, 200..201];
        assert_eq!(equal(&base, &pages, &listed).unwrap(), expected);
    }
}
