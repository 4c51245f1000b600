//! `fpguest churn`: memory rewritten and zeroed as fast as it goes, on every processor, and a file's
//! blocks rewritten and synced. What was written is checked before it is written over, so a fork
//! whose memory or disk is not its parent's ends with `churn: …` on the console.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use fp_guest::crc::crc32;
use fp_guest::pages::PAGE_SIZE;

use crate::sys::{LockedPages, tsc_low};

/// The command's options.
#[derive(Debug, PartialEq)]
pub struct Churn {
    /// How much memory is kept busy, in MiB, over all threads.
    pub mib: usize,
    /// The file that is kept busy, when one is.
    pub disk: Option<PathBuf>,
}

/// Blocks of the file: 16 MiB.
const BLOCKS: u64 = 4096;
/// Blocks written from one sync to the next.
const BLOCKS_PER_SYNC: u64 = 16;
const WORDS: usize = PAGE_SIZE / 8;

/// Churns until something is wrong.
///
/// # Errors
/// What is wrong: memory or a block does not hold what was written, or the kernel refused.
pub fn run(options: &Churn) -> io::Result<()> {
    let threads = thread::available_parallelism()?.get();
    let pages = (options.mib * (1 << 20) / PAGE_SIZE / threads).max(1);
    let failure = start(threads, pages, options.disk.as_deref())?;
    println!("churn: {threads} threads with {pages} pages each");
    Err(failure
        .recv()
        .unwrap_or_else(|_| io::Error::other("every thread has ended")))
}

fn start(threads: usize, pages: usize, disk: Option<&Path>) -> io::Result<Receiver<io::Error>> {
    let (failed, failure) = sync_channel(threads + 1);
    let spawn = |work: Box<dyn FnOnce() -> io::Result<()> + Send>| {
        let failed = failed.clone();
        // The process ends with the first failure, and its threads with it.
        thread::spawn(move || work().err().map(|error| failed.send(error)));
    };
    for _ in 0..threads {
        let mut memory = LockedPages::new(pages)?;
        let seed = u64::from(tsc_low()) << 32;
        spawn(Box::new(move || {
            (0..).try_for_each(|round| churn_memory(&mut memory, pages, seed, round))
        }));
    }
    if let Some(path) = disk {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.set_len(BLOCKS * PAGE_SIZE as u64)?;
        spawn(Box::new(move || {
            (0..).try_for_each(|round| churn_disk(&file, round))
        }));
    }
    Ok(failure)
}

/// One round over all pages: a quarter of them is zeroed, another quarter in each round, the others
/// get a pattern of their own.
fn churn_memory(memory: &mut LockedPages, pages: usize, seed: u64, round: u64) -> io::Result<()> {
    for index in 0..pages {
        let page = memory.page(index);
        let before = round
            .checked_sub(1)
            .map(|round| pattern(seed, round, index as u64));
        if !holds(page, before.unwrap_or(None)) {
            return Err(io::Error::other(format!(
                "page {index} changed after round {round}"
            )));
        }
        match pattern(seed, round, index as u64) {
            Some(value) => fill(page, value),
            None => page.fill(0),
        }
    }
    Ok(())
}

/// What a page begins with after a round, `None` for zeroes.
fn pattern(seed: u64, round: u64, index: u64) -> Option<u64> {
    let mixed = (seed ^ (round << 24) ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (!(index + round).is_multiple_of(4)).then_some(mixed | 1)
}

fn fill(page: &mut [u8], value: u64) {
    let (words, _) = page.as_chunks_mut::<8>();
    for (i, word) in words.iter_mut().enumerate() {
        *word = value.wrapping_add(i as u64).to_le_bytes();
    }
}

/// Looks at the first, a middle and the last word: looking at all would halve the churn.
fn holds(page: &[u8], value: Option<u64>) -> bool {
    let (words, _) = page.as_chunks::<8>();
    [0, WORDS / 2 + 1, WORDS - 1].into_iter().all(|i| {
        let expected = value.map_or(0, |value| value.wrapping_add(i as u64));
        words
            .get(i)
            .is_some_and(|word| u64::from_le_bytes(*word) == expected)
    })
}

/// Writes the round's blocks and syncs them. A block: its number, the round, a pattern, and the
/// CRC-32 of all that in its last four bytes.
fn churn_disk(file: &File, round: u64) -> io::Result<()> {
    let first = round * BLOCKS_PER_SYNC % BLOCKS;
    for block in first..first + BLOCKS_PER_SYNC {
        let offset = block * PAGE_SIZE as u64;
        let mut bytes = [0; PAGE_SIZE];
        if round >= BLOCKS / BLOCKS_PER_SYNC {
            file.read_exact_at(&mut bytes, offset)?;
            check_block(&bytes, block)?;
        }
        fill(&mut bytes, round);
        bytes[..8].copy_from_slice(&block.to_le_bytes());
        let crc = crc32(&[&bytes[..PAGE_SIZE - 4]]);
        bytes[PAGE_SIZE - 4..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&bytes, offset)?;
    }
    file.sync_data()
}

fn check_block(bytes: &[u8; PAGE_SIZE], block: u64) -> io::Result<()> {
    let (content, crc) = bytes.split_at(PAGE_SIZE - 4);
    if crc == crc32(&[content]).to_le_bytes() && content.starts_with(&block.to_le_bytes()) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "block {block} of the file changed"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_page_is_noticed_in_the_next_round() {
        let mut memory = LockedPages::new(8).unwrap();
        for round in 0..9 {
            churn_memory(&mut memory, 8, 42, round).unwrap();
        }
        memory.page(3)[PAGE_SIZE - 1] ^= 1;
        let error = churn_memory(&mut memory, 8, 42, 9).unwrap_err();
        assert!(error.to_string().contains("page 3"), "{error}");
    }

    #[test]
    fn every_page_is_zeroed_now_and_then() {
        for index in 0..8 {
            let zeroed = (0..4).filter(|round| pattern(1, *round, index).is_none());
            assert_eq!(zeroed.count(), 1);
        }
    }

    #[test]
    fn a_changed_block_is_noticed() {
        let path = std::env::temp_dir().join(format!("fpguest-churn-{}", std::process::id()));
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = open.unwrap();
        std::fs::remove_file(&path).unwrap();
        let rounds = BLOCKS / BLOCKS_PER_SYNC;
        for round in 0..=rounds {
            churn_disk(&file, round).unwrap();
        }
        file.write_all_at(b"x", (BLOCKS_PER_SYNC + 1) * PAGE_SIZE as u64 + 100)
            .unwrap();
        let error = churn_disk(&file, rounds + 1).unwrap_err();
        assert!(error.to_string().contains("block 17"), "{error}");
    }
}
