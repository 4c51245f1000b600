//! Checksums of a snapshot's files: of a stream while it is written and before it is loaded, of bases and layers once they
//! are on disk and when they are brought back after the host was restarted.
//!
//! CRC-32 (IEEE), by the processor's carry-less multiplication where it has one: it runs at the speed of memory, finds every
//! error of up to 32 bits in a row, and all but one in four billion of any other kind. It is against disks and memory that
//! fail, not against people: the files are the agent's own.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::unix::fs::FileExt as _,
    path::Path,
};

use rustix::fs::{SeekFrom, seek};
use tokio::task::spawn_blocking;

use crate::{
    layout::Layout,
    record::{StreamName, StreamRef},
    sys::{PAGE, vm_read::is_zero},
};

/// A checksum.
pub type Checksum = u32;

/// How much of a sparse file is read at a time.
const CHUNK: usize = 1 << 20;
/// How much of a stream is read at a time: what stays in the processor's cache costs least.
const PART: usize = 64 << 10;

/// Of bytes in parts.
pub fn of_parts(parts: &[IoSlice<'_>]) -> Checksum {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// Of a whole file, every byte.
pub fn of_file(path: &Path) -> io::Result<Checksum> {
    of_open_file(&File::open(path)?)
}

/// The same of one that is open, from its beginning on.
pub fn of_open_file(file: &File) -> io::Result<Checksum> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; PART];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Of a sparse file: of its length, and of each page that is not all zeros together with its number. A hole and a page of
/// zeros are the same to it, so it does not depend on how a file system keeps them, and holes are not read.
#[derive(Debug)]
pub struct Sparse {
    file: File,
    size: u64,
    at: u64,
    hasher: crc32fast::Hasher,
    buffer: Vec<u8>,
}

impl Sparse {
    /// Begins with a file.
    pub fn begin(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&size.to_le_bytes());
        Ok(Self {
            file,
            size,
            at: 0,
            hasher,
            buffer: vec![0; CHUNK],
        })
    }

    /// Reads one piece. Gives the checksum after the last.
    pub fn step(&mut self) -> io::Result<Option<Checksum>> {
        let data = if self.at < self.size {
            match seek(&self.file, SeekFrom::Data(self.at)) {
                Ok(data) => Some(data),
                Err(rustix::io::Errno::NXIO) => None,
                Err(error) => return Err(error.into()),
            }
        } else {
            None
        };
        let Some(data) = data else {
            return Ok(Some(self.hasher.clone().finalize()));
        };
        // Pages keep their numbers wherever a file system's data begins.
        let from = data - data % PAGE as u64;
        let part = &mut self.buffer[..(self.size - from).min(CHUNK as u64) as usize];
        self.file.read_exact_at(part, from)?;
        for (page, bytes) in (from / PAGE as u64..).zip(part.chunks(PAGE)) {
            let zero = match bytes.len() {
                PAGE => is_zero(bytes),
                _ => bytes.iter().all(|byte| *byte == 0),
            };
            if !zero {
                self.hasher.update(&page.to_le_bytes());
                self.hasher.update(bytes);
            }
        }
        self.at = from + part.len() as u64;
        Ok(None)
    }
}

/// A stream that was found to be what was written: nothing else can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedStream(StreamName);

/// A stream cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum StreamUnfit {
    /// It is not what was written.
    #[error(
        "the snapshot's file streams/{name} is damaged: its checksum is {found:08x} and was {written:08x} when it was written"
    )]
    Damaged {
        /// Its name.
        name: StreamName,
        /// What was written.
        written: Checksum,
        /// What is there.
        found: Checksum,
    },
    /// It cannot be read.
    #[error("the snapshot's file streams/{name} cannot be read")]
    Read {
        /// Its name.
        name: StreamName,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl CheckedStream {
    /// Reads a stream and compares it with its checksum, away from the runtime's threads.
    pub async fn check(layout: &Layout, stream: StreamRef) -> Result<Self, StreamUnfit> {
        let StreamRef {
            name,
            checksum: written,
        } = stream;
        let path = layout.stream(&name);
        let found = spawn_blocking(move || of_file(&path)).await;
        match found.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(found) if found == written => Ok(Self(name)),
            Ok(found) => Err(StreamUnfit::Damaged {
                name,
                written,
                found,
            }),
            Err(source) => Err(StreamUnfit::Read { name, source }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &StreamName {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(file: &File) -> Checksum {
        let mut sparse = Sparse::begin(file.try_clone().unwrap()).unwrap();
        loop {
            if let Some(sum) = sparse.step().unwrap() {
                return sum;
            }
        }
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_a_bit_is_not() {
        let (sparse, full) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let size = 3 * CHUNK + 700;
        sparse.set_len(size as u64).unwrap();
        full.write_all_at(&vec![0; size], 0).unwrap();
        assert_eq!(sum(&sparse), sum(&full));
        for at in [5 * PAGE as u64 + 17, 2 * CHUNK as u64, size as u64 - 1] {
            sparse.write_all_at(&[9], at).unwrap();
            full.write_all_at(&[9], at).unwrap();
        }
        let whole = sum(&full);
        assert_eq!(sum(&sparse), whole);
        sparse.write_all_at(&[8], 2 * CHUNK as u64).unwrap();
        assert_ne!(sum(&sparse), whole, "another bit");
        sparse.write_all_at(&[9], 2 * CHUNK as u64).unwrap();
        assert_eq!(sum(&sparse), whole);
        sparse.set_len(size as u64 + 1).unwrap();
        assert_ne!(sum(&sparse), whole, "another length");
    }

    proptest! {
        #[test]
        fn a_page_counts_with_its_place(pages in proptest::collection::btree_map(0u64..600, 1u8.., 1..6), shift in 1u64..5) {
            let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            for file in [&one, &other] {
                file.set_len(700 * PAGE as u64).unwrap();
            }
            for (page, byte) in &pages {
                one.write_all_at(&[*byte; PAGE], page * PAGE as u64).unwrap();
                other.write_all_at(&[*byte; PAGE], (page + shift) * PAGE as u64).unwrap();
            }
            prop_assert_ne!(sum(&one), sum(&other));
        }
    }

    #[tokio::test]
    async fn a_stream_with_a_flipped_bit_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path(), None).unwrap();
        let name = StreamName("s".into());
        let mut bytes = vec![7u8; 3 * CHUNK];
        std::fs::write(layout.stream(&name), &bytes).unwrap();
        let written = of_parts(&[IoSlice::new(&bytes[..100]), IoSlice::new(&bytes[100..])]);
        let stream = StreamRef {
            name: name.clone(),
            checksum: written,
        };
        let checked = CheckedStream::check(&layout, stream.clone()).await;
        assert_eq!(checked.unwrap().name(), &name);
        bytes[CHUNK + 5] ^= 4;
        std::fs::write(layout.stream(&name), &bytes).unwrap();
        let refused = CheckedStream::check(&layout, stream.clone()).await;
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("streams/s is damaged")
        );
        std::fs::remove_file(layout.stream(&name)).unwrap();
        let missing = CheckedStream::check(&layout, stream).await;
        assert!(matches!(missing.unwrap_err(), StreamUnfit::Read { .. }));
    }
}
