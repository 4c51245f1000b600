//! What of a file is here already: another one that is mostly the same is compared with what a node tells of its pages.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use proto::peer::DescribeFileResponse;
use qemu::sys::PAGE;

use super::pack::{Digest, digest};

/// In which of its pages a file that is to be fetched differs from one that is here. Pages are compared where they are: memory of one
/// lineage stays in its place.
#[derive(Debug, Default)]
pub struct Difference {
    /// What must be fetched, ascending.
    pub missing: Vec<Range<u64>>,
    /// What is the same here, ascending.
    pub same: Vec<Range<u64>>,
}

impl Difference {
    /// Looks at a run of pages of a file of `size` bytes, as its node tells of it, and at those of the one that is here.
    pub fn add(&mut self, run: &DescribeFileResponse, size: u64, own: &File) -> io::Result<()> {
        let mut buffer = vec![0; PAGE];
        let pages = (run.first_page..).zip(run.digests.chunks_exact(size_of::<Digest>()));
        for (number, told) in pages {
            let Some(from) = number.checked_mul(PAGE as u64).filter(|from| *from < size) else {
                return Err(io::Error::other("a page lies behind the file's end"));
            };
            let to = size.min(from + PAGE as u64);
            let bytes = &mut buffer[..(to - from) as usize];
            let is_same = match own.read_exact_at(bytes, from) {
                Ok(()) => digest(bytes).is_some_and(|own| own == told),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(error) => return Err(error),
            };
            let list = match is_same {
                true => &mut self.same,
                false => &mut self.missing,
            };
            match list.last_mut() {
                Some(last) if last.end == from => last.end = to,
                _ => list.push(from..to),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::send::tell_pages, *};

    fn file(pages: &[u8]) -> File {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len((pages.len() * PAGE) as u64 + 10).unwrap();
        for (number, byte) in pages.iter().enumerate().filter(|(_, byte)| **byte > 0) {
            file.write_all_at(&[*byte; PAGE], (number * PAGE) as u64)
                .unwrap();
        }
        file.write_all_at(&[9; 10], (pages.len() * PAGE) as u64)
            .unwrap();
        file
    }

    #[test]
    fn only_what_differs_is_missing() {
        let source = file(&[1, 2, 0, 4, 5, 5, 7]);
        let own = file(&[1, 9, 3, 0, 5]);
        let size = source.metadata().unwrap().len();
        let mut difference = Difference::default();
        let mut runs = 0;
        tell_pages(&source, size, |run| {
            runs += 1;
            difference.add(&run, size, &own).unwrap();
            true
        })
        .unwrap();
        let page = PAGE as u64;
        assert_eq!(runs, 2, "the page of zeros is in none");
        assert_eq!(difference.same, [0..page, 4 * page..5 * page]);
        assert_eq!(
            difference.missing,
            [page..2 * page, 3 * page..4 * page, 5 * page..7 * page + 10]
        );
    }
}
