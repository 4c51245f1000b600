//! A guest's memory, seen from outside: where it is, which pages differ from its base, and their content.
//!
//! A page is QEMU's own once something wrote to it: a private copy of the base's page, or a page of anonymous memory.
//! `PAGEMAP_SCAN` lists own pages that are not write-protected and protects them in the same step, so each scan gives what
//! was written since the one before, and nothing ever has to be protected ahead. [`Memory`] adds these up: `delta` is what
//! differs from the base of the last capture, whatever became of the captures since. An agent that was away begins with all
//! own pages, which is never too few.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
};

use rustix::fs::{SeekFrom, seek};

use crate::{
    page_set::PageSet,
    process::Process,
    stream::{Block, Pages},
    sys::{PAGE, page_scan, uffd, vm_read},
};

/// Bytes that are read from the guest before they are written to a base: a warm buffer takes them three times as fast as a
/// new file does.
const CHUNK_PAGES: u32 = 1024;

/// A block of guest memory in a running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    /// Its name and used length.
    pub block: Block,
    /// Where it is mapped in the process.
    pub address: u64,
}

/// The main memory of a running machine.
#[derive(Debug)]
pub struct Memory {
    pid: u32,
    main: RamBlock,
    others: Vec<RamBlock>,
    pagemap: File,
    /// Whether the kernel notes writes.
    tracked: bool,
    /// Whether it may merge pages with equal ones. One that it merges counts as written from then on.
    merged: bool,
    /// Pages that may differ from the base of the last capture, as far as scans have seen; `None` when that is not known
    /// (an agent that was away), and everything that is the process's own must be assumed.
    delta: Option<PageSet>,
}

impl Memory {
    /// Looks at a machine's memory. `blocks` is QEMU's answer to `x-query-ramblock`; `fresh` says that nothing was captured
    /// or scanned before in this process's life.
    pub fn open(
        process: &Process,
        blocks: &str,
        track: bool,
        merged: bool,
        fresh: bool,
    ) -> io::Result<Self> {
        let (main, others) = parse_blocks(blocks)?;
        let pid = process.id().pid;
        let uffd = if track {
            uffd::find(pid, process.pidfd())?
        } else {
            None
        };
        let range = main.address..main.address + main.block.used;
        if let Some(uffd) = &uffd {
            uffd::register(uffd, range)?;
        }
        Ok(Self {
            pid,
            main,
            others,
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
            tracked: uffd.is_some(),
            merged,
            delta: fresh.then(PageSet::default),
        })
    }

    /// Whether the kernel notes writes, so that memory can be copied while the guest runs.
    pub fn is_tracked(&self) -> bool {
        self.tracked
    }

    /// Whether the kernel may have merged pages since the last scan, which then counts them as written.
    pub fn is_merged(&self) -> bool {
        self.merged
    }

    /// The main block.
    pub fn main(&self) -> &Block {
        &self.main.block
    }

    fn range(&self) -> Range<u64> {
        self.main.address..self.main.address + self.main.block.used
    }

    /// Brings `delta` up to date and gives what was written since the last call, at least. With kernel tracking these pages
    /// are protected again; without it they are all own pages, every time.
    pub fn scan(&mut self) -> io::Result<Vec<Range<u32>>> {
        let range = self.range();
        let written = if self.tracked {
            page_scan::written_then_protect(&self.pagemap, range.clone())?
        } else {
            self.own_pages()?
        };
        match &mut self.delta {
            Some(delta) => {
                delta.extend(&written);
                Ok(written)
            }
            None => {
                // After the protecting scan, so that what is written between the two is seen by the next.
                let own = self.own_pages()?;
                let mut delta = PageSet::default();
                delta.extend(&own);
                delta.extend(&written);
                let runs = delta.runs();
                self.delta = Some(delta);
                Ok(runs)
            }
        }
    }

    /// The pages that may differ from the base, as of the last scan.
    pub fn delta(&self) -> PageSet {
        self.delta.clone().unwrap_or_default()
    }

    /// Says what differs from a new base, once that is complete.
    pub fn set_delta(&mut self, delta: PageSet) {
        self.delta = Some(delta);
    }

    fn own_pages(&self) -> io::Result<Vec<Range<u32>>> {
        match page_scan::own(&self.pagemap, self.range()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                page_scan::own_pages_by_pagemap(&self.pagemap, self.range())
            }
            other => other,
        }
    }

    /// Reads pages into a stream's places for them.
    pub fn read_into(&self, pages: &mut Pages, runs: &[Range<u32>]) -> io::Result<()> {
        let mut parts: Vec<(u64, &mut [u8])> = pages
            .places_for(runs)
            .into_iter()
            .map(|(page, bytes)| (self.address(page), bytes))
            .collect();
        vm_read::read(self.pid, &mut parts)
    }

    /// Says that pages hold what the base of the last capture holds: merged by the kernel, or written with what was there.
    pub fn not_in_delta(&mut self, equal: &[u32]) {
        if let Some(delta) = &mut self.delta {
            for page in equal {
                delta.remove(*page);
            }
        }
    }

    /// Copies pages from the guest to the same places of a base. Pages of zeros become holes when the base is `new`.
    /// Returns the bytes that were written.
    pub fn copy_to_base(&self, base: &File, runs: &[Range<u32>], new: bool) -> io::Result<u64> {
        let mut buffer = vec![0; CHUNK_PAGES as usize * PAGE];
        let mut written = 0;
        for run in runs {
            for from in (run.start..run.end).step_by(CHUNK_PAGES as usize) {
                let to = run.end.min(from + CHUNK_PAGES);
                let bytes = &mut buffer[..(to - from) as usize * PAGE];
                vm_read::read(self.pid, &mut [(self.address(from), &mut *bytes)])?;
                written += write_pages(base, from, bytes, new)?;
            }
        }
        Ok(written)
    }

    /// The content of all other blocks: firmware and tables. Those that have no pages at all are left out.
    pub fn read_others(&self) -> io::Result<Vec<(Block, Vec<u8>)>> {
        read_blocks(self.pid, &self.others)
    }

    fn address(&self, page: u32) -> u64 {
        self.main.address + u64::from(page) * PAGE as u64
    }
}

/// A guest's main memory, read-only, for whoever wants to look at it.
#[derive(Debug)]
pub struct MainMemory {
    pid: u32,
    main: RamBlock,
    others: Vec<RamBlock>,
}

impl MainMemory {
    /// Finds it by QEMU's table of blocks.
    pub fn open(process: &Process, blocks: &str) -> io::Result<Self> {
        let (main, others) = parse_blocks(blocks)?;
        Ok(Self {
            pid: process.id().pid,
            main,
            others,
        })
    }

    /// The content of all other blocks that a snapshot has: firmware and tables.
    pub fn firmware(&self) -> io::Result<Vec<(Block, Vec<u8>)>> {
        read_blocks(self.pid, &self.others)
    }

    /// Its size, bytes.
    pub fn len(&self) -> u64 {
        self.main.block.used
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads bytes at an offset. A hole of the base that is read becomes a page of the page cache, which the kernel may evict.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.len() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "beyond the end of the guest's memory",
            ));
        }
        vm_read::read(self.pid, &mut [(self.main.address + offset, bytes)])
    }
}

fn read_blocks(pid: u32, blocks: &[RamBlock]) -> io::Result<Vec<(Block, Vec<u8>)>> {
    let mut contents: Vec<_> = blocks
        .iter()
        .map(|block| (block.block.clone(), vec![0; block.block.used as usize]))
        .collect();
    let mut parts: Vec<(u64, &mut [u8])> = blocks
        .iter()
        .zip(&mut contents)
        .filter(|(_, (_, bytes))| !bytes.is_empty())
        .map(|(block, (_, bytes))| (block.address, &mut bytes[..]))
        .collect();
    vm_read::read(pid, &mut parts)?;
    Ok(contents)
}

/// Writes pages to a base; in a new one pages of zeros are left out. Returns the bytes written.
fn write_pages(base: &File, first: u32, bytes: &[u8], new: bool) -> io::Result<u64> {
    let offset = |page: usize| (u64::from(first) + page as u64) * PAGE as u64;
    if !new {
        write_pieces(base, bytes, offset(0))?;
        return Ok(bytes.len() as u64);
    }
    let mut written = 0;
    let mut run: Option<usize> = None;
    let count = bytes.len() / PAGE;
    for page in 0..=count {
        let used = page < count && !vm_read::is_zero(&bytes[page * PAGE..(page + 1) * PAGE]);
        match (used, run) {
            (true, None) => run = Some(page),
            (false, Some(start)) => {
                write_pieces(base, &bytes[start * PAGE..page * PAGE], offset(start))?;
                written += ((page - start) * PAGE) as u64;
                run = None;
            }
            _ => {}
        }
    }
    Ok(written)
}

/// Bytes of one write to a base or a stream. The page cache takes pages of the size of a write: of larger ones a virtual host whose
/// free memory was handed back has none at hand (92 MiB took 250 ms in writes of 4 MiB, 24 ms in these; 5 MiB 12 ms and 4).
const PIECE: usize = 64 << 10;

pub(crate) fn write_pieces(base: &File, bytes: &[u8], mut at: u64) -> io::Result<()> {
    for piece in bytes.chunks(PIECE) {
        base.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Copies what one base holds to another, holes left out: the part of a new base that the guest never wrote.
pub fn copy_base(from: &File, to: &File) -> io::Result<u64> {
    let size = from.metadata()?.len();
    let mut buffer = vec![0; CHUNK_PAGES as usize * PAGE];
    let (mut at, mut copied) = (0, 0);
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let part = &mut buffer[..(end - at).min(CHUNK_PAGES as u64 * PAGE as u64) as usize];
            from.read_exact_at(part, at)?;
            write_pieces(to, part, at)?;
            at += part.len() as u64;
            copied += part.len() as u64;
        }
    }
    Ok(copied)
}

/// Bytes that a sparse file takes.
pub fn allocated_bytes(file: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.blocks() * 512
}

/// The most that all blocks but the main memory may take, bytes: they are copied whole, and are a firmware and some tables.
const MOST_OTHERS: u64 = 64 << 20;
/// How much of a table that cannot be read is shown, bytes.
const SHOWN: usize = 2048;

/// Reads QEMU's table of memory blocks: name, page size and its unit, offset, used, total, host address. Whoever got into QEMU may say
/// anything.
fn parse_blocks(table: &str) -> io::Result<(RamBlock, Vec<RamBlock>)> {
    let broken = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "QEMU's table of memory blocks: {:?}",
                &table[..table.floor_char_boundary(SHOWN)]
            ),
        )
    };
    let number = |text: Option<&&str>| {
        text.and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok())
            .ok_or_else(broken)
    };
    let mut main = None;
    let mut others = Vec::new();
    let mut room = MOST_OTHERS;
    for row in table.lines().skip(1).filter(|row| !row.trim().is_empty()) {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let name = (*columns.first().ok_or_else(broken)?).to_owned();
        let used = number(columns.get(4))?;
        let address = number(columns.get(6))?;
        address.checked_add(used).ok_or_else(broken)?;
        let block = RamBlock {
            block: Block {
                name: name.clone(),
                used,
            },
            address,
        };
        if name == crate::spec::MAIN_MEMORY
            || name == format!("/objects/{}", crate::spec::MAIN_MEMORY)
        {
            main = Some(block);
        } else if !crate::spec::is_boot_rom(&name) {
            room = room.checked_sub(used).ok_or_else(broken)?;
            others.push(block);
        }
    }
    Ok((main.ok_or_else(broken)?, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_blocks_is_read() {
        let table = "              Block Name    PSize              Offset               Used              Total                HVA  RO\n\
                     m    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f2a2fe00000  rw\n\
                     microvm.bios    4 KiB  0x0000000010000000 0x0000000000020000 0x0000000000020000 0x00007f2a4fc00000  ro\n";
        let (main, others) = parse_blocks(table).unwrap();
        assert_eq!(
            main.block,
            Block {
                name: "m".into(),
                used: 256 << 20
            }
        );
        assert_eq!(main.address, 0x7f2a2fe00000);
        assert_eq!(others.len(), 1);
        assert!(parse_blocks("nonsense").is_err());
        let (end, large) = (
            table.replace("0x00007f2a2fe00000", "0xffffffffffffffff"),
            table.replace("0x0000000000020000", "0x0000010000000000"),
        );
        assert!(parse_blocks(&end).is_err(), "beyond all addresses");
        assert!(parse_blocks(&large).is_err(), "a firmware of a TiB");
    }

    #[test]
    fn a_base_keeps_its_holes() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let create = |name: &str| {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(dir.path().join(name))
                .unwrap();
            file.set_len(8 << 20).unwrap();
            file
        };
        let (from, to) = (create("from"), create("to"));
        let mut bytes = vec![0; 16 * PAGE];
        bytes[3 * PAGE] = 1;
        bytes[9 * PAGE..10 * PAGE].fill(2);
        assert_eq!(
            write_pages(&from, 100, &bytes, true).unwrap(),
            2 * PAGE as u64
        );
        assert_eq!(allocated_bytes(&from.metadata().unwrap()), 2 * PAGE as u64);
        assert_eq!(copy_base(&from, &to).unwrap(), 2 * PAGE as u64);
        let mut back = vec![0; 16 * PAGE];
        to.read_exact_at(&mut back, 100 * PAGE as u64).unwrap();
        assert_eq!(back, bytes);
        assert_eq!(
            write_pages(&from, 103, &[0; PAGE], false).unwrap(),
            PAGE as u64
        );
        from.read_exact_at(&mut back, 100 * PAGE as u64).unwrap();
        assert_eq!(back[3 * PAGE], 0);
    }
}
