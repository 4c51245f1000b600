//! A small value in a file of its own that is written in place: two slots, written in turn, so that a write that is cut off
//! leaves the value of before. Used by [`super::sled`] for the log's mark.
//!
//! A slot is the length of a frame (two bytes) and the frame (see [`frame`]), whose index counts the writes. It fits in a sector, and
//! each has a page to itself: writing one touches nothing of the other, and never changes the file's size or place.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::{LogError, frame};

/// How far the slots are apart, bytes.
const APART: usize = 4096;

/// The most that a slot takes, bytes: what any disk writes whole.
const SECTOR: usize = 512;

/// The value, and where it goes next.
pub(super) struct Slots {
    file: File,
    /// How many times it was written.
    count: u64,
}

impl Slots {
    /// Makes the file, with an empty value. It is on the device when this returns; its name is when its folder was synced.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn create(path: &Path) -> std::io::Result<()> {
        let mut content = vec![0; 2 * APART];
        let slot = slot(0, b"").unwrap_or_default();
        content[..slot.len()].copy_from_slice(&slot);
        fs::write(path, content)?;
        File::open(path)?.sync_all()
    }

    /// Opens the file, and gives the value that was written last.
    ///
    /// # Errors
    /// `Damaged` when it is not there or holds none: a write that was cut off damages one slot at most.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<u8>), LogError> {
        let damaged = |what: &str| LogError::Damaged(format!("{} {what}", path.display()));
        let opened = File::options().read(true).write(true).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged("is missing"));
            }
            Err(e) => return Err(LogError::io("opened", e)),
        };
        let content = fs::read(path).map_err(|e| LogError::io("read", e))?;
        let slots = content.chunks(APART).take(2);
        let newest = slots.filter_map(value).max_by_key(|(count, _)| *count);
        match newest {
            Some((count, value)) => Ok((Self { file, count }, value)),
            None => Err(damaged("holds nothing that was written there")),
        }
    }

    /// Writes a value. It is on the device when this returns.
    ///
    /// # Errors
    /// It is too large, or could not be written: the value may be either then.
    pub(super) fn write(&mut self, value: &[u8]) -> std::io::Result<()> {
        let count = self.count + 1;
        let slot = slot(count, value).ok_or(std::io::ErrorKind::InvalidInput)?;
        let at = count % 2 * APART as u64;
        self.file.write_all_at(&slot, at)?;
        rustix::fs::fdatasync(&self.file)?;
        self.count = count;
        Ok(())
    }
}

/// What a slot holds for the write of a number, unless that is too much.
fn slot(count: u64, value: &[u8]) -> Option<Vec<u8>> {
    let frame = frame::frame(count, value);
    let length = u16::try_from(frame.len()).ok()?;
    let mut slot = length.to_be_bytes().to_vec();
    slot.extend_from_slice(&frame);
    (slot.len() <= SECTOR).then(|| {
        slot.resize(SECTOR, 0);
        slot
    })
}

/// The value in a slot and the number of its write, if it is whole.
fn value(slot: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (length, rest) = slot.split_first_chunk()?;
    let frame = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    let count = u64::from_be_bytes(*frame.get(1..)?.first_chunk()?);
    let value = frame::unframe(count, frame).ok()?;
    Some((count, value.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that was written three times, and its content.
    fn written() -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        Slots::create(&path).unwrap();
        let (mut slots, value) = Slots::open(&path).unwrap();
        assert_eq!(value, b"");
        for value in [b"one", b"two", b"end"] {
            slots.write(value).unwrap();
        }
        assert!(slots.write(&[0; SECTOR]).is_err(), "it is too large");
        let content = fs::read(&path).unwrap();
        (dir, path, content)
    }

    #[test]
    fn the_newest_whole_value_counts() {
        let (_dir, path, content) = written();
        assert_eq!(content.len(), 2 * APART);
        let reopened = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            Slots::open(&path).map(|(_, value)| value)
        };
        assert_eq!(reopened(&content).unwrap(), b"end");
        // What is written next is cut off anywhere.
        Slots::open(&path).unwrap().0.write(b"next").unwrap();
        let next = fs::read(&path).unwrap();
        for cut in 0..SECTOR {
            let mut torn = content.clone();
            torn[..cut].copy_from_slice(&next[..cut]);
            let value = reopened(&torn).unwrap();
            assert!(value == b"end" || value == b"next", "cut at {cut}");
        }
        // Any byte of the newest is another: the one of before counts.
        let length = slot(3, b"end")
            .unwrap()
            .iter()
            .rposition(|b| *b != 0)
            .unwrap()
            + 1;
        for at in 0..length {
            let mut bad = content.clone();
            bad[APART + at] ^= 1;
            assert_eq!(reopened(&bad).unwrap(), b"two", "byte {at}");
        }
    }

    #[test]
    fn a_file_that_is_lost_or_holds_nothing_is_damaged() {
        let (_dir, path, content) = written();
        for bad in [vec![0; content.len()], Vec::new(), vec![0xff; 5000]] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(Slots::open(&path), Err(LogError::Damaged(_))));
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(Slots::open(&path), Err(LogError::Damaged(_))));
    }
}
