//! Bringing a file to the disk in small pieces, so that whoever else syncs something on the same file system does not wait for
//! all of it: a flush of 1 GiB at once holds another file's `fdatasync` up for 118 ms.

use std::{fs::File, io, path::Path};

use crate::sys::write_back::write_back;

/// How much is written at a time: a few milliseconds' work for a disk.
pub const PIECE: i64 = 4 << 20;

/// A file that is on its way to the disk.
#[derive(Debug)]
pub struct WriteBack {
    file: File,
    size: i64,
    at: i64,
}

impl WriteBack {
    /// Begins with a file that does not change any more.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = i64::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Self { file, size, at: 0 })
    }

    /// Writes one piece. `true` when the whole file is on the disk.
    pub fn step(&mut self) -> io::Result<bool> {
        if self.at < self.size {
            write_back(&self.file, self.at, PIECE)?;
            self.at += PIECE;
            return Ok(false);
        }
        // Little is left of it: its size and extents.
        self.file.sync_data()?;
        Ok(true)
    }
}

/// Brings a folder's entries to the disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_is_written_piece_by_piece() {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![1; 2 * PIECE as usize + 1]).unwrap();
        let mut back = WriteBack::begin(file.path()).unwrap();
        let mut pieces = 0;
        while !back.step().unwrap() {
            pieces += 1;
        }
        assert_eq!(pieces, 3);
    }
}
