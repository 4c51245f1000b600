//! Parts of a sparse file as they travel: which of its pages hold something, packed and summed up, and written at the other end.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use proto::peer::{ByteRange, ReadFileResponse};
use qemu::sys::{PAGE, vm_read::is_zero};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

/// How many bytes a part has at most before it is packed.
pub const PART: usize = 256 << 10;
/// Zstandard's first level: packs faster than a disk reads.
const LEVEL: i32 = 1;
/// A page, as file offsets count.
const PAGE_BYTES: u64 = PAGE as u64;

/// What stands for a page's content.
pub type Digest = [u8; 16];

/// Of the bytes of a page; `None` when they are zeros.
pub fn digest(page: &[u8]) -> Option<Digest> {
    if is_empty(page) {
        return None;
    }
    let hash = Sha256::digest(page);
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash[..16]);
    Some(digest)
}

fn is_empty(page: &[u8]) -> bool {
    match page.len() {
        PAGE => is_zero(page),
        _ => page.iter().all(|byte| *byte == 0),
    }
}

/// The data of a sparse file from `at` on, at most `PART` bytes of it: where they begin, which is at a page, and what they are. `None` when nothing
/// but a hole follows before `end`.
pub fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
    if at >= end {
        return Ok(None);
    }
    let data = match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.max(at),
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Pages keep their numbers wherever a file system's data begins.
    let from = (data - data % PAGE_BYTES).max(at);
    if from >= end {
        return Ok(None);
    }
    let mut bytes = vec![0; (end - from).min(PART as u64) as usize];
    file.read_exact_at(&mut bytes, from)?;
    Ok(Some((from, bytes)))
}

/// How far the last part of an answer tells.
pub const TOLD_ALL: u64 = u64::MAX;

/// Reads ranges of a file, part by part.
pub struct Reader {
    file: File,
    ranges: std::vec::IntoIter<Range<u64>>,
    now: Range<u64>,
    ended: bool,
    packer: zstd::bulk::Compressor<'static>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Of ranges that ascend; what is behind the file's end is left out.
    pub fn new(file: File, ranges: Vec<Range<u64>>) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let within = |range: &Range<u64>| range.start.min(size)..range.end.min(size);
        let ranges: Vec<_> = ranges.iter().map(within).collect();
        Ok(Self {
            file,
            ranges: ranges.into_iter(),
            now: 0..0,
            ended: false,
            packer: zstd::bulk::Compressor::new(LEVEL)?,
        })
    }

    /// The next part; `None` after the last.
    pub fn part(&mut self) -> io::Result<Option<ReadFileResponse>> {
        if self.ended {
            return Ok(None);
        }
        let (mut ranges, mut bytes) = (Vec::<ByteRange>::new(), Vec::with_capacity(PART));
        while bytes.len() < PART {
            let room = self.now.start + (PART - bytes.len()) as u64;
            let Some((from, data)) = next_data(&self.file, self.now.start, self.now.end.min(room))?
            else {
                // A hole up to there, or the range's end.
                self.now.start = self.now.end.min(room);
                if self.now.is_empty() {
                    match self.ranges.next() {
                        Some(next) => self.now = next,
                        None => {
                            self.ended = true;
                            break;
                        }
                    }
                }
                continue;
            };
            self.now.start = from + data.len() as u64;
            // Pieces end where pages do, so that zeros are found whatever a range begins with.
            let mut at = from;
            let mut rest = &data[..];
            while !rest.is_empty() {
                let to_page = (PAGE_BYTES - at % PAGE_BYTES) as usize;
                let (page, after) = rest.split_at(to_page.min(rest.len()));
                if !is_empty(page) {
                    let end = at + page.len() as u64;
                    match ranges.last_mut() {
                        Some(last) if last.to == at => last.to = end,
                        _ => ranges.push(ByteRange { from: at, to: end }),
                    }
                    bytes.extend_from_slice(page);
                }
                at += page.len() as u64;
                rest = after;
            }
        }
        Ok(Some(ReadFileResponse {
            ranges,
            told_to: match self.ended {
                true => TOLD_ALL,
                false => self.now.start,
            },
            checksum: crc32fast::hash(&bytes),
            packed: self.packer.compress(&bytes)?.into(),
        }))
    }
}

/// A part that came is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum BadPart {
    /// It cannot be unpacked.
    #[error("a part of it cannot be unpacked")]
    Packed(#[source] io::Error),
    /// It is not what was sent.
    #[error("a part of it is damaged: its checksum is {found:08x} and was {sent:08x}")]
    Checksum {
        /// What it is.
        found: u32,
        /// What it was.
        sent: u32,
    },
    /// Its bytes belong nowhere.
    #[error(
        "a part of it has {bytes} bytes for ranges of {ranges}, or ranges that were not asked for"
    )]
    Ranges {
        /// How many there are.
        bytes: usize,
        /// How many there is room for.
        ranges: u64,
    },
}

/// Unpacks a part, and gives its bytes if they are what was sent and belong into `wanted`, which ascend.
pub fn unpack(part: &ReadFileResponse, wanted: &[Range<u64>]) -> Result<Vec<u8>, BadPart> {
    let bytes = zstd::bulk::decompress(&part.packed, PART).map_err(BadPart::Packed)?;
    let found = crc32fast::hash(&bytes);
    if found != part.checksum {
        let sent = part.checksum;
        return Err(BadPart::Checksum { found, sent });
    }
    let (mut room, mut before) = (0u64, 0);
    let mut fits = true;
    for range in &part.ranges {
        let is_wanted = |wanted: &Range<u64>| wanted.start <= range.from && range.to <= wanted.end;
        fits &= before <= range.from && range.from < range.to && wanted.iter().any(is_wanted);
        room = room.saturating_add(range.to.saturating_sub(range.from));
        before = range.to;
    }
    if !fits || room != bytes.len() as u64 {
        let (bytes, ranges) = (bytes.len(), room);
        return Err(BadPart::Ranges { bytes, ranges });
    }
    Ok(bytes)
}

/// Writes what was unpacked where it belongs.
pub fn write(file: &File, ranges: &[ByteRange], mut bytes: &[u8]) -> io::Result<()> {
    for range in ranges {
        let (now, rest) = bytes.split_at((range.to - range.from) as usize);
        file.write_all_at(now, range.from)?;
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sparse(pages: &[(u64, u8)], size: u64) -> File {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len(size).unwrap();
        for (page, byte) in pages {
            let at = page * PAGE_BYTES;
            let bytes = vec![*byte; PAGE.min((size - at) as usize)];
            file.write_all_at(&bytes, at).unwrap();
        }
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn ranges_arrive_as_they_are(
            pages in proptest::collection::btree_map(0u64..300, 0u8..3, 0..60),
            cuts in proptest::collection::btree_set(0u64..301 * PAGE_BYTES, 0..9),
        ) {
            let size = 300 * PAGE_BYTES + 700;
            let pages: Vec<_> = pages.into_iter().collect();
            let from = sparse(&pages, size);
            let to = sparse(&[], size);
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let ranges: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let mut reader = Reader::new(from.try_clone().unwrap(), ranges.clone()).unwrap();
            while let Some(part) = reader.part().unwrap() {
                let bytes = unpack(&part, &ranges).unwrap();
                prop_assert!(bytes.len() <= PART);
                write(&to, &part.ranges, &bytes).unwrap();
            }
            let (from, to) = (content(&from), content(&to));
            for (at, byte) in to.iter().enumerate() {
                let is_wanted = ranges.iter().any(|range| range.contains(&(at as u64)));
                let expected = if is_wanted { from[at] } else { 0 };
                prop_assert_eq!(*byte, expected, "at {}", at);
            }
        }
    }

    #[test]
    fn a_part_that_is_not_what_was_asked_for_is_refused() {
        let file = sparse(&[(0, 1), (5, 2)], 6 * PAGE_BYTES);
        let wanted: Vec<Range<u64>> = std::iter::once(0..6 * PAGE_BYTES).collect();
        let part = || {
            let mut reader = Reader::new(file.try_clone().unwrap(), wanted.clone()).unwrap();
            reader.part().unwrap().unwrap()
        };
        assert_eq!(part().ranges.len(), 2);
        assert_eq!(unpack(&part(), &wanted).unwrap().len(), 2 * PAGE);
        let refused = |change: &dyn Fn(&mut ReadFileResponse), wanted: &[Range<u64>]| {
            let mut part = part();
            change(&mut part);
            unpack(&part, wanted).unwrap_err()
        };
        let nothing = |_: &mut ReadFileResponse| {};
        let ranges = |bad| matches!(bad, BadPart::Ranges { .. });
        assert!(ranges(refused(
            &nothing,
            &[0..PAGE_BYTES, PAGE_BYTES..2 * PAGE_BYTES]
        )));
        assert!(ranges(refused(&|part| part.ranges[1].to += 1, &wanted)));
        assert!(ranges(refused(&|part| part.ranges.swap(0, 1), &wanted)));
        assert!(ranges(refused(
            &|part| part.ranges[0].from = u64::MAX,
            &wanted
        )));
        let damaged = refused(&|part| part.checksum ^= 1, &wanted);
        assert!(matches!(damaged, BadPart::Checksum { .. }));
        let cut = refused(&|part| part.packed.truncate(9), &wanted);
        assert!(matches!(cut, BadPart::Packed(_)));
        // What unpacks to more than a part has at most.
        let bomb = zstd::bulk::compress(&vec![0; 4 * PART], LEVEL).unwrap();
        let bomb = refused(&|part| part.packed = bomb.clone().into(), &wanted);
        assert!(matches!(bomb, BadPart::Packed(_)));
    }
}
