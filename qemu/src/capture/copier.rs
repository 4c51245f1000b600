//! Copying a guest's memory for one capture: into a new base where one is needed, and into the stream's pages.

use std::{fs::File, io, ops::Range, time::Instant};

use super::{CaptureError, NEW_BASE_BYTES, Prepared, memory, sift::sift, write};
use crate::{
    failpoint,
    layout::{Layout, share},
    memory::{Memory, copy_base},
    page_set::PageSet,
    record::BaseName,
    stream::Pages,
    sys::PAGE,
};

/// When this many pages are left to copy, the guest is stopped: a millisecond's work.
const FEW_PAGES: usize = 512;
/// How often what was written meanwhile is copied again before the guest is stopped whatever is left.
const MAX_ROUNDS: u32 = 8;

/// Copies memory for one capture.
pub(super) struct Copier<'a> {
    pub(super) guest: &'a mut Memory,
    pub(super) layout: &'a Layout,
    /// The group that may read a new base.
    pub(super) lineage: Option<u32>,
    pub(super) old_base: Option<BaseName>,
    pub(super) prepared: Prepared,
}

impl Copier<'_> {
    /// While the guest runs: a new base if one is needed, and all pages that differ from it.
    pub(super) fn begin(&mut self) -> Result<(), CaptureError> {
        self.scan()?;
        let mut left = if self.fits_old_base()? {
            self.guest.delta().runs()
        } else {
            self.begin_base()?
        };
        if self.prepared.new_base.is_some() {
            while page_count(&left) > FEW_PAGES && self.prepared.report.rounds < MAX_ROUNDS {
                self.round_to_base(&left)?;
                left = self.scan()?;
            }
        }
        self.note_since_base(&left);
        self.read(&left, true)?;
        self.sift_merged(&left)
    }

    /// While the guest runs, right before the stop: what it wrote meanwhile, until that is little.
    pub(super) fn catch_up(&mut self) -> Result<(), CaptureError> {
        for _ in 0..MAX_ROUNDS {
            let written = self.scan()?;
            self.note_since_base(&written);
            self.read(&written, true)?;
            self.sift_merged(&written)?;
            if page_count(&written) <= FEW_PAGES {
                break;
            }
        }
        Ok(())
    }

    /// While the guest stands still.
    pub(super) fn last(&mut self) -> Result<(), CaptureError> {
        let begun = Instant::now();
        let written = self.scan()?;
        self.prepared.report.scan = begun.elapsed();
        let begun = Instant::now();
        if self.prepared.report.live {
            self.note_since_base(&written);
            self.read(&written, false)?;
            self.prepared.unsifted = written;
        } else if self.fits_old_base()? {
            let delta = self.guest.delta().runs();
            self.read(&delta, false)?;
            self.prepared.unsifted = delta;
        } else {
            let written = self.begin_base()?;
            self.note_since_base(&written);
            self.read(&written, false)?;
        }
        self.prepared.report.copy = begun.elapsed();
        Ok(())
    }

    fn scan(&mut self) -> Result<Vec<Range<u32>>, CaptureError> {
        self.guest.scan().map_err(memory("scan the guest's memory"))
    }

    /// Decides against which base this capture's pages are taken. A delta that is too large is first freed of pages that
    /// hold what the base holds (the kernel merged them, or an agent that was away had to assume the worst).
    fn fits_old_base(&mut self) -> Result<bool, CaptureError> {
        let Some(base) = self.old_base.clone() else {
            return Ok(false);
        };
        let path = self.layout.base(&base);
        let too_large = |guest: &Memory| guest.delta().len() as u64 * PAGE as u64 > NEW_BASE_BYTES;
        if too_large(self.guest) {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(memory("open the base")(error)),
            };
            let runs = self.guest.delta().runs();
            // In parts, so that a large delta does not take as much memory again.
            for part in parts(&runs, 4096) {
                let mut pages = Pages::default();
                self.guest
                    .read_into(&mut pages, &part)
                    .map_err(memory("read the guest's memory"))?;
                sift(&file, &mut pages, &part, &mut None, self.guest)?;
            }
            if too_large(self.guest) {
                return Ok(false);
            }
        } else if !path.exists() {
            return Ok(false);
        }
        self.prepared.base = base;
        Ok(true)
    }

    /// Makes a new base from the old one and everything that differs from it. Returns what was written meanwhile.
    fn begin_base(&mut self) -> Result<Vec<Range<u32>>, CaptureError> {
        let bytes = self.guest.main().used;
        let file = create_base(self.layout, &self.prepared.base, bytes, self.lineage)
            .map_err(write("base"))?;
        self.prepared.report.new_base = true;
        self.prepared.since_base = Some(PageSet::default());
        let mut copied = 0;
        let mut first = true;
        let mut delta = self.guest.delta().runs();
        let old = self
            .old_base
            .as_ref()
            .map(|old| File::open(self.layout.base(old)));
        match old {
            None => {}
            Some(Ok(old)) => {
                copied += copy_base(&old, &file).map_err(write("base"))?;
                first = false;
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                // The guest still maps what was removed: everything is read from there.
                delta.clear();
                delta.push(0..(self.guest.main().used / PAGE as u64) as u32);
            }
            Some(Err(error)) => return Err(memory("open the base")(error)),
        }
        copied += self
            .guest
            .copy_to_base(&file, &delta, first)
            .map_err(write("base"))?;
        failpoint::write("capture.base-copied").map_err(write("base"))?;
        self.prepared.new_base = Some(file);
        self.count(copied);
        if self.prepared.report.live {
            self.scan()
        } else {
            Ok(Vec::new())
        }
    }

    /// Of pages that were just read, leaves out those that count as written only because the kernel merged them.
    fn sift_merged(&mut self, runs: &[Range<u32>]) -> Result<(), CaptureError> {
        if !self.guest.is_merged() {
            return Ok(());
        }
        let prepared = &mut self.prepared;
        let opened;
        let base = match &prepared.new_base {
            Some(new) => new,
            None => {
                let path = self.layout.base(&prepared.base);
                opened = File::open(path).map_err(memory("open the base"))?;
                &opened
            }
        };
        sift(
            base,
            &mut prepared.pages,
            runs,
            &mut prepared.since_base,
            self.guest,
        )
    }

    fn round_to_base(&mut self, runs: &[Range<u32>]) -> Result<(), CaptureError> {
        let Some(file) = &self.prepared.new_base else {
            return Ok(());
        };
        let copied = self
            .guest
            .copy_to_base(file, runs, false)
            .map_err(write("base"))?;
        self.count(copied);
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        if self.prepared.report.live {
            self.prepared.report.rounds += 1;
            self.prepared.report.ahead_bytes += bytes;
        } else {
            self.prepared.report.paused_bytes += bytes;
        }
    }

    fn note_since_base(&mut self, written: &[Range<u32>]) {
        if let Some(since) = &mut self.prepared.since_base {
            since.extend(written);
        }
    }

    fn read(&mut self, runs: &[Range<u32>], ahead: bool) -> Result<(), CaptureError> {
        self.guest
            .read_into(&mut self.prepared.pages, runs)
            .map_err(memory("read the guest's memory"))?;
        let bytes = (page_count(runs) * PAGE) as u64;
        if ahead {
            self.prepared.report.rounds += 1;
            self.prepared.report.ahead_bytes += bytes;
        } else {
            self.prepared.report.paused_bytes += bytes;
        }
        Ok(())
    }
}

/// Makes an empty base that forks may map. One that is there is emptied and stays the same file: it may be mapped.
pub(super) fn create_base(
    layout: &Layout,
    base: &BaseName,
    bytes: u64,
    lineage: Option<u32>,
) -> io::Result<File> {
    let path = layout.base(base);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    file.set_len(bytes)?;
    share(&path, lineage)?;
    failpoint::write("capture.base-made")?;
    Ok(file)
}

fn page_count(runs: &[Range<u32>]) -> usize {
    runs.iter().map(|run| run.len()).sum()
}

/// Cuts runs into groups of at most `pages` pages.
fn parts(runs: &[Range<u32>], pages: u32) -> Vec<Vec<Range<u32>>> {
    let mut parts: Vec<Vec<Range<u32>>> = vec![Vec::new()];
    let mut room = pages;
    for run in runs {
        let mut run = run.clone();
        while !run.is_empty() {
            if room == 0 {
                parts.push(Vec::new());
                room = pages;
            }
            let take = (run.len() as u32).min(room);
            if let Some(part) = parts.last_mut() {
                part.push(run.start..run.start + take);
            }
            run.start += take;
            room -= take;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_into_parts_of_a_size() {
        let runs = [0..3, 10..20, 30..31];
        let parts = parts(&runs, 4);
        assert!(parts.iter().all(|part| page_count(part) <= 4));
        let pages: Vec<u32> = parts.into_iter().flatten().flatten().collect();
        assert_eq!(pages, runs.into_iter().flatten().collect::<Vec<_>>());
    }
}
