//! The memory pages that hold records: their layout, and finding them again in a guest's RAM.
//! `fpguest pulse` writes them in place, the host's tests scan for them.
//!
//! A page is 4096 bytes, aligned, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..16 | [`MAGIC`] |
//! | 16..20 | the page's number in its run, from 0: it holds the records from `127 × number + 1` on |
//! | 20..24 | the checksum of the record before the page's first |
//! | 24..32 | the run |
//! | 32..4096 | 127 records; `n = 0` where none was written yet |
//!
//! The writer fills a record's place and sets its `n` last, so a guest that is stopped in the middle
//! of it has no torn record. The buffer is a ring: when it is full, the oldest page is cleared and
//! used again under a new number, so a reader finds a run's last [`RING_RECORDS`] records at least.
//! The guest's kernel may move a page and leave its old content behind: of two pages with the same
//! number the one with more records counts, if the other is its beginning.

use std::collections::BTreeMap;

use crate::history::{Broken, verify_from};
use crate::record::{RECORD_SIZE, Record, seed, u32_at, u64_at};

/// The bytes that a page begins with.
pub const MAGIC: [u8; 16] = *b"FPPULSEMEMPAGE01";
/// The magic as the program that writes it has it: that lies in guests' memory too, where the linker may put a constant at
/// a page's start, and would be taken for records.
const MAGIC_INVERTED: [u8; 16] = (!u128::from_le_bytes(MAGIC)).to_le_bytes();
/// The size of a page in bytes.
pub const PAGE_SIZE: usize = 4096;
/// The size of a page's header in bytes: that of a record.
pub const HEADER_SIZE: usize = RECORD_SIZE;
/// How many records a page holds.
pub const PAGE_RECORDS: u64 = ((PAGE_SIZE - HEADER_SIZE) / RECORD_SIZE) as u64;
/// How many pages the writer's ring has: two hours at ten records a second.
pub const RING_PAGES: usize = 568;
/// How many of a run's last records the ring holds at least.
pub const RING_RECORDS: u64 = (RING_PAGES as u64 - 1) * PAGE_RECORDS;

/// The header of page `number` of `run`; `before` is the checksum of the record before its first.
pub fn header(run: u64, number: u32, before: u32) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    // Not for the compiler to work out ahead.
    let magic = !u128::from_le_bytes(std::hint::black_box(MAGIC_INVERTED));
    bytes[..16].copy_from_slice(&magic.to_le_bytes());
    bytes[16..20].copy_from_slice(&number.to_le_bytes());
    bytes[20..24].copy_from_slice(&before.to_le_bytes());
    bytes[24..32].copy_from_slice(&run.to_le_bytes());
    bytes
}

/// The number of the page that record `n` (from 1) is on, and its place there in bytes.
pub fn place(n: u64) -> (u64, usize) {
    let index = n.saturating_sub(1);
    let slot = (index % PAGE_RECORDS) as usize;
    (index / PAGE_RECORDS, HEADER_SIZE + slot * RECORD_SIZE)
}

/// One page with records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The run that wrote it.
    pub run: u64,
    /// The page's number in its run.
    pub number: u32,
    /// The checksum of the record before its first.
    pub before: u32,
    /// Its records, as far as they were written.
    pub records: Vec<Record>,
}

impl Page {
    /// The page in these bytes, `None` if they do not begin with [`MAGIC`] or are not 4096.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != PAGE_SIZE || !bytes.starts_with(&MAGIC) {
            return None;
        }
        let (places, _) = bytes[HEADER_SIZE..].as_chunks::<RECORD_SIZE>();
        Some(Self {
            run: u64_at(bytes, 24),
            number: u32_at(bytes, 16),
            before: u32_at(bytes, 20),
            records: places.iter().map_while(Record::decode).collect(),
        })
    }
}

/// Collects the pages that a scan of guest RAM comes upon.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    runs: BTreeMap<u64, BTreeMap<u32, Page>>,
}

impl Scan {
    /// Scans all of `memory`, which begins at a page's start.
    ///
    /// # Errors
    /// [`Broken::PageTwice`].
    pub fn of(memory: &[u8]) -> Result<Self, Broken> {
        let mut scan = Self::default();
        for page in memory.as_chunks::<PAGE_SIZE>().0 {
            scan.page(page)?;
        }
        Ok(scan)
    }

    /// Looks at one page of guest RAM; one without records is passed over.
    ///
    /// # Errors
    /// [`Broken::PageTwice`].
    pub fn page(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let Some(page) = Page::decode(bytes) else {
            return Ok(());
        };
        if page.records.is_empty() {
            return Ok(());
        }
        let pages = self.runs.entry(page.run).or_default();
        match pages.get_mut(&page.number) {
            Some(known) if known.records.starts_with(&page.records) => {}
            Some(known) if page.records.starts_with(&known.records) => *known = page,
            Some(_) => return Err(Broken::PageTwice { page: page.number }),
            None => drop(pages.insert(page.number, page)),
        }
        Ok(())
    }

    /// The runs that were found. Memory is not cleared between a guest's boots, so there may be
    /// older ones; the console or the disk tells which one is running.
    pub fn runs(&self) -> impl Iterator<Item = u64> {
        self.runs.keys().copied()
    }

    /// All records of `run` that are in memory, in order and verified: they begin with number 1
    /// unless the ring went round.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn records(&self, run: u64) -> Result<Vec<Record>, Broken> {
        let Some(pages) = self.runs.get(&run) else {
            return Ok(Vec::new());
        };
        let Some(first) = pages.values().next() else {
            return Ok(Vec::new());
        };
        let before = if first.number == 0 {
            seed(run)
        } else {
            first.before
        };
        let records: Vec<Record> = pages
            .values()
            .flat_map(|page| page.records.clone())
            .collect();
        verify_from(u64::from(first.number) * PAGE_RECORDS + 1, before, &records)?;
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a writer leaves in a ring of `pages` after `count` records.
    fn ring(run: u64, count: u64, pages: usize) -> (Vec<Record>, Vec<u8>) {
        let mut memory = vec![0; pages * PAGE_SIZE];
        let mut records: Vec<Record> = Vec::new();
        for n in 1..=count {
            let before = records.last().map_or(seed(run), |last| last.crc);
            let record = match records.last() {
                Some(last) => last.next(n, 0),
                None => Record::first(run, n, 0),
            };
            let (number, offset) = place(n);
            let start = number as usize % pages * PAGE_SIZE;
            let page = &mut memory[start..start + PAGE_SIZE];
            if offset == HEADER_SIZE {
                page.fill(0);
                page[..HEADER_SIZE].copy_from_slice(&header(run, number as u32, before));
            }
            page[offset..offset + RECORD_SIZE].copy_from_slice(&record.encode());
            records.push(record);
        }
        (records, memory)
    }

    #[test]
    fn a_page_is_filled_to_its_last_byte() {
        assert_eq!(HEADER_SIZE + PAGE_RECORDS as usize * RECORD_SIZE, PAGE_SIZE);
        assert_eq!(place(1), (0, 32));
        assert_eq!(place(127), (0, 4064));
        assert_eq!(place(128), (1, 32));
        const { assert!(RING_RECORDS >= 72_000) };
    }

    #[test]
    fn an_older_copy_of_a_page_does_no_harm_and_another_forks_page_is_told() {
        let (records, memory) = ring(5, 100, 1);
        let mut older = memory.clone();
        older[HEADER_SIZE + 60 * RECORD_SIZE..].fill(0);
        for both in [
            [&older[..], &memory].concat(),
            [&memory[..], &older].concat(),
        ] {
            assert_eq!(Scan::of(&both).unwrap().records(5).unwrap(), records);
        }
        older[HEADER_SIZE + 8] ^= 1;
        assert_eq!(
            Scan::of(&[memory, older].concat()).unwrap_err(),
            Broken::PageTwice { page: 0 }
        );
    }

    #[test]
    fn a_missing_page_and_a_torn_record_are_told() {
        let (_, memory) = ring(5, 400, 4);
        let without = [&memory[..PAGE_SIZE], &memory[2 * PAGE_SIZE..]].concat();
        let lost = Broken::Lost {
            expected: 128,
            found: 255,
        };
        assert_eq!(Scan::of(&without).unwrap().records(5), Err(lost));
        let mut torn = memory;
        torn[PAGE_SIZE + HEADER_SIZE + 20] ^= 1;
        let checksum = Broken::Checksum { n: 128 };
        assert_eq!(Scan::of(&torn).unwrap().records(5), Err(checksum));
    }

    proptest! {
        #[test]
        fn pages_are_found_wherever_they_lie(
            count in 1u64..1000, pages in 1usize..6, gap in 0usize..3, backwards: bool,
        ) {
            let (records, ring) = ring(77, count, pages);
            let mut parts: Vec<Vec<u8>> = ring
                .chunks(PAGE_SIZE)
                .map(|page| [page, &vec![0xa5; gap * PAGE_SIZE][..]].concat())
                .collect();
            if backwards {
                parts.reverse();
            }
            let scan = Scan::of(&parts.concat()).unwrap();
            prop_assert_eq!(scan.runs().collect::<Vec<_>>(), vec![77]);
            let found = scan.records(77).unwrap();
            prop_assert!(records.ends_with(&found));
            let kept = (pages as u64 - 1) * PAGE_RECORDS;
            prop_assert!(found.len() as u64 >= count.min(kept.max(1)));
        }
    }
}
