//! `fpguest pulse`: a record to memory, raw disk, file and console at every beat. Formats in `fp_guest`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use fp_guest::pages::{HEADER_SIZE, PAGE_SIZE, RING_PAGES, header, place};
use fp_guest::record::{RECORD_SIZE, Record, seed};

use crate::sys::{LockedPages, publish_u64, since_boot_ns, tsc_low};

/// The command's options.
#[derive(Debug, PartialEq)]
pub struct Pulse {
    /// The file that records are appended to.
    pub disk: PathBuf,
    /// A part of a block device that the memory's pages are written to as well, beside every cache.
    pub raw: Option<Raw>,
    /// From one record to the next.
    pub interval: Duration,
}

/// Where on a block device [`RING_PAGES`] pages lie.
#[derive(Debug, PartialEq)]
pub struct Raw {
    /// The device.
    pub device: PathBuf,
    /// The first page's offset in bytes, a multiple of a page.
    pub offset: u64,
}

/// Writes records until it fails.
///
/// # Errors
/// What kept it from writing.
pub fn run(options: &Pulse) -> io::Result<()> {
    let mut disk = open(options)?;
    let raw = options.raw.as_ref().map(open_raw).transpose()?;
    let mut memory = LockedPages::new(RING_PAGES)?;
    let run = random()?;
    let mut last: Option<Record> = None;
    let mut due = Instant::now();
    loop {
        let (stamp, salt) = (since_boot_ns(), tsc_low());
        let record = match last {
            Some(last) => last.next(stamp, salt),
            None => Record::first(run, stamp, salt),
        };
        let page = to_memory(
            &mut memory,
            &record,
            last.map_or(seed(run), |last| last.crc),
        )?;
        if let Some((device, offset)) = &raw {
            device.write_all_at(memory.page(page), offset + (page * PAGE_SIZE) as u64)?;
        }
        disk.write_all(&record.encode())?;
        disk.sync_data()?;
        // One write, or another program's output could stand in the middle of the line.
        io::stdout().write_all(format!("{}\n", record.to_line()).as_bytes())?;
        last = Some(record);
        due += options.interval;
        // After a long stop, go on from now rather than catching up.
        due = due.max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Opens the file for appending. A machine that lost its power may have left a part of a record at
/// its end, which was never acknowledged: it goes.
fn open(options: &Pulse) -> io::Result<File> {
    if let Some(folder) = options.disk.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&options.disk)?;
    let size = file.metadata()?.len();
    file.set_len(size - size % RECORD_SIZE as u64)?;
    file.sync_all()?;
    if let Some(folder) = options.disk.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// Opens the block device for whole pages, each on the disk when its write is done.
fn open_raw(raw: &Raw) -> io::Result<(File, u64)> {
    let flags = (rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC).bits();
    let device = OpenOptions::new()
        .write(true)
        .custom_flags(flags.cast_signed())
        .open(&raw.device)?;
    Ok((device, raw.offset))
}

/// Puts the record into its place in the ring and says on which of its pages that is. Its number comes last, behind everything else: the
/// guest may be captured between any two stores.
fn to_memory(memory: &mut LockedPages, record: &Record, before: u32) -> io::Result<usize> {
    let (number, offset) = place(record.n);
    let index = number as usize % RING_PAGES;
    let page = memory.page(index);
    if offset == HEADER_SIZE {
        let number = u32::try_from(number).map_err(io::Error::other)?;
        page.fill(0);
        page[..HEADER_SIZE].copy_from_slice(&header(record.run, number, before));
    }
    let slot = &mut page[offset..offset + RECORD_SIZE];
    slot[8..].copy_from_slice(&record.encode()[8..]);
    publish_u64(slot, record.n);
    Ok(index)
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}
