//! The stream of a snapshot: QEMU's migration format with the pages that differ from the base and the devices' state.
//! Bytes in, bytes out; no I/O.
//!
//! The format is QEMU's own (docs/devel/migration, migration/savevm.c and migration/ram.c of its sources): big-endian;
//! a header; the configuration section with the machine's name; the RAM section in two parts, its start with the list of
//! blocks and its end with the pages; then the device sections as `xen-save-devices-state` wrote them.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::{collections::BTreeMap, io::IoSlice, ops::Range};

use crate::sys::PAGE;

/// Magic and version of a migration stream: "QEVM", 3.
const FILE_HEADER: [u8; 8] = [b'Q', b'E', b'V', b'M', 0, 0, 0, 3];

const SECTION_START: u8 = 0x01;
const SECTION_END: u8 = 0x03;
const SECTION_CONFIGURATION: u8 = 0x07;
const SECTION_FOOTER: u8 = 0x7e;
const VM_DESCRIPTION: u8 = 0x06;

/// Section id of the RAM section: any number that no device section has; QEMU's own RAM section has a low one, too.
const RAM_SECTION: u32 = 1;
const RAM_VERSION: u32 = 4;

/// Flags in the low bits of a page's offset.
const RAM_FLAG_ZERO: u64 = 0x02;
const RAM_FLAG_MEM_SIZE: u64 = 0x04;
const RAM_FLAG_PAGE: u64 = 0x08;
const RAM_FLAG_EOS: u64 = 0x10;
const RAM_FLAG_CONTINUE: u64 = 0x20;

/// A page in the stream: where it belongs with its flags, then its bytes.
const SLOT: usize = 8 + PAGE;

/// A block of guest memory, as QEMU names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub name: String,
    /// Bytes that are in use.
    pub used: u64,
}

/// The device state is not what `xen-save-devices-state` writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// It does not begin with a migration stream's header.
    #[error("the device state does not begin with QEMU's stream header")]
    DeviceHeader,
    /// A block's name does not fit into its length byte.
    #[error("the memory block's name {0:?} is too long for the stream")]
    BlockName(String),
}

/// The pages of main memory that go into a stream, each once, in the form the stream has. A page that was read before and
/// changed since is read again into the same place.
#[derive(Debug, Default)]
pub struct Pages {
    slots: Vec<u8>,
    places: BTreeMap<u32, usize>,
}

impl Pages {
    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The numbers of the pages, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.places.keys().copied()
    }

    /// The bytes of a page.
    pub fn get(&self, page: u32) -> Option<&[u8]> {
        self.places
            .get(&page)
            .map(|place| &self.slots[place * SLOT + 8..(place + 1) * SLOT])
    }

    /// Forgets a page.
    pub fn remove(&mut self, page: u32) {
        let Some(place) = self.places.remove(&page) else {
            return;
        };
        // The last slot moves into the gap.
        let last = self.slots.len() / SLOT - 1;
        if place != last {
            self.slots.copy_within(last * SLOT.., place * SLOT);
            let moved = self.page_at(place);
            self.places.insert(moved, place);
        }
        self.slots.truncate(last * SLOT);
    }

    fn page_at(&self, place: usize) -> u32 {
        let mut head = [0; 8];
        head.copy_from_slice(&self.slots[place * SLOT..place * SLOT + 8]);
        (u64::from_be_bytes(head) / PAGE as u64) as u32
    }

    /// Makes room for the pages of `runs` and hands out, for each of them, its number and the place for its bytes.
    pub fn places_for(&mut self, runs: &[Range<u32>]) -> Vec<(u32, &mut [u8])> {
        let mut wanted: BTreeMap<usize, u32> = BTreeMap::new();
        for page in runs.iter().cloned().flatten() {
            let next = self.slots.len() / SLOT;
            let place = *self.places.entry(page).or_insert(next);
            if place == next {
                let head = (u64::from(page) * PAGE as u64) | RAM_FLAG_PAGE | RAM_FLAG_CONTINUE;
                self.slots.extend_from_slice(&head.to_be_bytes());
                self.slots.resize(self.slots.len() + PAGE, 0);
            }
            wanted.insert(place, page);
        }
        self.slots
            .chunks_exact_mut(SLOT)
            .enumerate()
            .filter_map(|(place, slot)| Some((*wanted.get(&place)?, &mut slot[8..])))
            .collect()
    }
}

/// A whole stream, in parts so that the pages need not be copied.
#[derive(Debug)]
pub struct Stream<'a> {
    head: Vec<u8>,
    pages: &'a [u8],
    tail: Vec<u8>,
}

impl Stream<'_> {
    /// The stream's bytes, in order.
    pub fn parts(&self) -> [IoSlice<'_>; 3] {
        [
            IoSlice::new(&self.head),
            IoSlice::new(self.pages),
            IoSlice::new(&self.tail),
        ]
    }

    /// Its length, bytes.
    pub fn len(&self) -> u64 {
        (self.head.len() + self.pages.len() + self.tail.len()) as u64
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Puts a stream together.
///
/// `machine` is the machine type as QEMU spells it; `main` the block of main memory, whose changed pages are `pages`;
/// `others` all other blocks with their whole content; `devices` what `xen-save-devices-state` wrote.
pub fn assemble<'a>(
    machine: &str,
    main: &Block,
    pages: &'a Pages,
    others: &[(Block, Vec<u8>)],
    devices: &[u8],
) -> Result<Stream<'a>, StreamError> {
    let device_sections = devices
        .strip_prefix(&FILE_HEADER)
        .ok_or(StreamError::DeviceHeader)?;
    let blocks = || std::iter::once(main).chain(others.iter().map(|(block, _)| block));

    let mut head = FILE_HEADER.to_vec();
    head.push(SECTION_CONFIGURATION);
    head.extend_from_slice(&(machine.len() as u32).to_be_bytes());
    head.extend_from_slice(machine.as_bytes());

    head.push(SECTION_START);
    head.extend_from_slice(&RAM_SECTION.to_be_bytes());
    head.extend_from_slice(b"\x03ram");
    head.extend_from_slice(&0u32.to_be_bytes()); // instance
    head.extend_from_slice(&RAM_VERSION.to_be_bytes());
    let total: u64 = blocks().map(|block| block.used).sum();
    head.extend_from_slice(&(total | RAM_FLAG_MEM_SIZE).to_be_bytes());
    for block in blocks() {
        name(&mut head, &block.name)?;
        head.extend_from_slice(&block.used.to_be_bytes());
    }
    head.extend_from_slice(&RAM_FLAG_EOS.to_be_bytes());
    footer(&mut head);

    head.push(SECTION_END);
    head.extend_from_slice(&RAM_SECTION.to_be_bytes());
    for (block, content) in others {
        whole_block(&mut head, block, content)?;
    }
    // The pages of main memory all say "the same block as before", so one that names it goes first: a copy of the first.
    if let Some(first) = pages.slots.get(..SLOT) {
        let mut place = [0; 8];
        place.copy_from_slice(&first[..8]);
        head.extend_from_slice(&(u64::from_be_bytes(place) & !RAM_FLAG_CONTINUE).to_be_bytes());
        name(&mut head, &main.name)?;
        head.extend_from_slice(&first[8..]);
    }

    let mut tail = RAM_FLAG_EOS.to_be_bytes().to_vec();
    footer(&mut tail);
    tail.extend_from_slice(device_sections);
    // An empty description: without one QEMU warns.
    tail.push(VM_DESCRIPTION);
    tail.extend_from_slice(&0u32.to_be_bytes());
    Ok(Stream {
        head,
        pages: &pages.slots,
        tail,
    })
}

fn whole_block(out: &mut Vec<u8>, block: &Block, content: &[u8]) -> Result<(), StreamError> {
    for (i, page) in content.chunks(PAGE).enumerate() {
        let same_block = if i == 0 { 0 } else { RAM_FLAG_CONTINUE };
        // Said, not left out: the process that loads it has put firmware and tables of its own there.
        let zero = page.iter().all(|byte| *byte == 0)
            || planted::planted("stream.zero") && page.first() == Some(&0);
        let kind = if zero { RAM_FLAG_ZERO } else { RAM_FLAG_PAGE };
        out.extend_from_slice(&((i * PAGE) as u64 | kind | same_block).to_be_bytes());
        if i == 0 {
            name(out, &block.name)?;
        }
        if zero {
            out.push(0);
        } else {
            out.extend_from_slice(page);
            out.resize(out.len() + PAGE - page.len(), 0);
        }
    }
    Ok(())
}

fn name(out: &mut Vec<u8>, name: &str) -> Result<(), StreamError> {
    let length = u8::try_from(name.len()).map_err(|_| StreamError::BlockName(name.to_owned()))?;
    out.push(length);
    out.extend_from_slice(name.as_bytes());
    Ok(())
}

fn footer(out: &mut Vec<u8>) {
    out.push(SECTION_FOOTER);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pages by block name and offset.
    type PageMap = BTreeMap<(String, u64), Vec<u8>>;

    /// Reads the RAM section back: block name and offset to bytes.
    fn decode(stream: &[u8]) -> (String, PageMap, Vec<u8>) {
        let mut at = 0;
        let mut take = |n: usize| {
            at += n;
            stream[at - n..at].to_vec()
        };
        let number = |bytes: Vec<u8>| bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        assert_eq!(take(8), FILE_HEADER);
        assert_eq!(take(1), [SECTION_CONFIGURATION]);
        let length = number(take(4)) as usize;
        let machine = String::from_utf8(take(length)).unwrap();
        assert_eq!(take(1), [SECTION_START]);
        assert_eq!(number(take(4)), 1);
        assert_eq!(take(4), b"\x03ram");
        take(8);
        let mut left = number(take(8)) & !RAM_FLAG_MEM_SIZE;
        while left > 0 {
            let length = number(take(1)) as usize;
            take(length);
            left -= number(take(8));
        }
        assert_eq!(number(take(8)), RAM_FLAG_EOS);
        assert_eq!(take(5), [SECTION_FOOTER, 0, 0, 0, 1]);
        assert_eq!(take(5), [SECTION_END, 0, 0, 0, 1]);
        let (mut pages, mut block) = (BTreeMap::new(), String::new());
        loop {
            let place = number(take(8));
            if place == RAM_FLAG_EOS {
                break;
            }
            if place & RAM_FLAG_CONTINUE == 0 {
                let length = number(take(1)) as usize;
                block = String::from_utf8(take(length)).unwrap();
            }
            let page = match place & (RAM_FLAG_PAGE | RAM_FLAG_ZERO) {
                RAM_FLAG_PAGE => take(PAGE),
                RAM_FLAG_ZERO => vec![take(1)[0]; PAGE],
                other => panic!("flags {other:x}"),
            };
            pages.insert((block.clone(), place & !0xfff), page);
        }
        assert_eq!(take(5), [SECTION_FOOTER, 0, 0, 0, 1]);
        (machine, pages, stream[at..].to_vec())
    }

    fn bytes(stream: &Stream<'_>) -> Vec<u8> {
        let all = stream
            .parts()
            .iter()
            .flat_map(|part| part.to_vec())
            .collect::<Vec<u8>>();
        assert_eq!(all.len() as u64, stream.len());
        all
    }

    fn fill(pages: &mut Pages, runs: &[Range<u32>], salt: u8) {
        for (page, place) in pages.places_for(runs) {
            place.fill((page as u8).wrapping_mul(3).wrapping_add(salt).max(1));
        }
    }

    proptest! {
        #[test]
        fn every_page_arrives_once_with_its_last_content(
            first in proptest::collection::btree_set(0u32..400, 0..60),
            again in proptest::collection::btree_set(0u32..400, 0..60),
            dropped in proptest::collection::btree_set(0u32..400, 0..20),
        ) {
            let mut pages = Pages::default();
            let runs = |set: &std::collections::BTreeSet<u32>| set.iter().map(|p| *p..p + 1).collect::<Vec<_>>();
            fill(&mut pages, &runs(&first), 1);
            for page in &dropped {
                pages.remove(*page);
            }
            fill(&mut pages, &runs(&again), 9);
            let mut rom = vec![7u8; 3 * PAGE];
            rom[PAGE..2 * PAGE].fill(0);
            let main = Block { name: "m".into(), used: 400 * PAGE as u64 };
            let others = [(Block { name: "rom".into(), used: rom.len() as u64 }, rom.clone())];
            let devices = [&FILE_HEADER[..], b"\x04devices\x00"].concat();
            let stream = assemble("microvm", &main, &pages, &others, &devices).unwrap();
            let (machine, found, tail) = decode(&bytes(&stream));
            prop_assert_eq!(machine, "microvm");
            prop_assert_eq!(&tail[..9], b"\x04devices\x00");
            let mut expected = BTreeMap::new();
            for page in first.difference(&dropped) {
                expected.insert(("m".to_owned(), u64::from(*page) * 4096), vec![(*page as u8).wrapping_mul(3).wrapping_add(1).max(1); PAGE]);
            }
            for page in &again {
                expected.insert(("m".to_owned(), u64::from(*page) * 4096), vec![(*page as u8).wrapping_mul(3).wrapping_add(9).max(1); PAGE]);
            }
            expected.insert(("rom".to_owned(), 0), vec![7; PAGE]);
            expected.insert(("rom".to_owned(), PAGE as u64), vec![0; PAGE]);
            expected.insert(("rom".to_owned(), 2 * PAGE as u64), vec![7; PAGE]);
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn device_state_of_something_else_is_refused() {
        let main = Block {
            name: "m".into(),
            used: 4096,
        };
        let pages = Pages::default();
        let result = assemble("microvm", &main, &pages, &[], b"nonsense");
        assert_eq!(result.unwrap_err(), StreamError::DeviceHeader);
    }
}
