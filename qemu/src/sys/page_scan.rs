//! `PAGEMAP_SCAN`, the ioctl on `/proc/PID/pagemap` that lists pages by what they are and write-protects them in the same
//! step (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst).

use std::{fs::File, io, ops::Range, os::fd::AsRawFd, ptr, slice, sync::LazyLock};

use super::{PAGE, uffd};

/// Argument of the ioctl: `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// One row of the answer: `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = (3 << 30)
    | ((size_of::<ScanArg>() as libc::c_ulong) << 16)
    | ((b'f' as libc::c_ulong) << 8)
    | 16;

const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;

const IS_WRITTEN: u64 = 1 << 1;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;

/// Lists the pages of `range` (addresses in the other process, page-aligned) that may be other than the mapped file's. As
/// runs of page numbers counted from the range's start, in order. `pagemap` is the other process's `/proc/PID/pagemap`.
///
/// The shared page of zeros counts: the kernel puts it where the guest wrote zeros, when it takes a huge page apart
/// (mm/migrate.c, `try_to_map_unused_to_zeropage`) and when it merges pages (`use_zero_pages`).
///
/// Fails with `ENOTTY` where the kernel has no `PAGEMAP_SCAN`.
pub fn own(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u32>>> {
    let request = Request {
        flags: 0,
        // Inverted categories must be absent.
        inverted: IS_FILE,
        mask: IS_FILE,
        any_of: IS_PRESENT | IS_SWAPPED,
        answer: IS_PRESENT,
    };
    let mut runs = Vec::new();
    request.walk(pagemap, range.clone(), |row| {
        push(
            &mut runs,
            page_number(row.start, range.start)..page_number(row.end, range.start),
        );
    })?;
    Ok(runs)
}

/// Of these, lists those that are not protected, that is, were written since they were protected last, or never were. They
/// are protected in the same step: a write that comes later is seen by the next call.
///
/// Fails with `ENOTTY` where the kernel has no `PAGEMAP_SCAN`, and with `EPERM` when the range is not registered with a
/// userfaultfd in asynchronous mode.
pub fn written_then_protect(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u32>>> {
    let mut runs = Vec::new();
    let whole = range.clone();
    for part in candidates(pagemap, range)? {
        let request = Request {
            flags: WP_MATCHING | CHECK_WPASYNC,
            inverted: 0,
            mask: IS_WRITTEN,
            any_of: IS_PRESENT | IS_SWAPPED,
            answer: IS_FILE,
        };
        // Pages of the mapped file are protected with the others and left out of the list: the next call does not have to
        // look at them again. As in `own`, the page of zeros may be what the guest wrote.
        request.walk(pagemap, part, |row| {
            if row.categories & IS_FILE == 0 {
                push(
                    &mut runs,
                    page_number(row.start, whole.start)..page_number(row.end, whole.start),
                );
            }
        })?;
    }
    Ok(runs)
}

/// Candidates that are no further apart than this are looked at in one go.
const NEAR: u64 = 32 * PAGE as u64;

/// The parts of a range in which pages may have been written: everything else is protected. The kernel answers this one
/// question twenty times faster than any other (3 GiB in 1.4 ms rather than 27), from the bare page table entry, and counts
/// what is not populated as written. A kernel that can be wrong about it is not asked.
fn candidates(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    if !*WRITTEN_ALONE_IS_EXACT {
        return Ok(vec![range]);
    }
    let mut parts: Vec<Range<u64>> = Vec::new();
    WRITTEN_ALONE.walk(pagemap, range, |row| match parts.last_mut() {
        Some(last) if row.start - last.end <= NEAR => last.end = row.end,
        _ => parts.push(row.start..row.end),
    })?;
    Ok(parts)
}

const WRITTEN_ALONE: Request = Request {
    flags: 0,
    inverted: 0,
    mask: IS_WRITTEN,
    any_of: 0,
    answer: IS_WRITTEN,
};

/// Whether the kernel, asked for `IS_WRITTEN` alone, looks at an entry that is not present (a page that is swapped out, or
/// that is being moved) in its own way. Before 2026 it took the bit for "protected" from where a present entry has it: a
/// page that was written and is just being moved could be left out. A guard page tells the two apart: its entry is not
/// present, not protected, and has the bit in that place set (arch/x86/include/asm/pgtable_64.h, include/linux/swapops.h:
/// `~PTE_MARKER_GUARD` from bit 9 on, with the bit in question at 10). Linux before 6.13 has no guard pages: there the
/// slower question is asked.
static WRITTEN_ALONE_IS_EXACT: LazyLock<bool> = LazyLock::new(|| match try_guard_page() {
    Ok(exact) => exact,
    Err(error) => {
        tracing::info!(%error, "memory is scanned the slower way: the kernel could not be tried for the faster");
        false
    }
});

fn try_guard_page() -> io::Result<bool> {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    let page = Mapping::new(PAGE)?;
    let uffd = uffd::open()?;
    let pagemap = File::open("/proc/self/pagemap")?;
    uffd::register(&uffd, page.range())?;
    // SAFETY: the page is ours and nothing is in it.
    if unsafe { libc::madvise(page.0.as_ptr().cast_mut().cast(), PAGE, MADV_GUARD_INSTALL) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = false;
    WRITTEN_ALONE.walk(&pagemap, page.range(), |_| found = true)?;
    Ok(found)
}

/// Private memory of ours, to try the kernel with.
struct Mapping(&'static mut [u8]);

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping anywhere takes nothing away.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is mapped, zeroed, and nobody else knows of it until it is dropped.
        Ok(Self(unsafe {
            slice::from_raw_parts_mut(address.cast(), bytes)
        }))
    }

    fn range(&self) -> Range<u64> {
        let start = self.0.as_ptr() as u64;
        start..start + self.0.len() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new` with this length, and its slice ends here.
        unsafe { libc::munmap(self.0.as_mut_ptr().cast(), self.0.len()) };
    }
}

/// What is asked of the kernel.
struct Request {
    flags: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    answer: u64,
}

impl Request {
    /// Asks, and hands over the rows of the answer in order.
    fn walk(
        &self,
        pagemap: &File,
        range: Range<u64>,
        mut take: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut rows = [Region::default(); 1024];
        let mut from = range.start;
        while from < range.end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: self.flags,
                start: from,
                end: range.end,
                walk_end: 0,
                vec: rows.as_mut_ptr() as u64,
                vec_len: rows.len() as u64,
                max_pages: 0,
                category_inverted: self.inverted,
                category_mask: self.mask,
                category_anyof_mask: self.any_of,
                return_mask: self.answer,
            };
            // SAFETY: `arg` is a valid pm_scan_arg for the length of the call, and `vec`/`vec_len` describe `rows`, which is
            // neither moved nor read meanwhile.
            let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut arg) };
            if found < 0 {
                return Err(io::Error::last_os_error());
            }
            let found = &rows[..found as usize];
            found.iter().copied().for_each(&mut take);
            // `walk_end` is where the kernel's own buffer of 512 rows was full last, however far it went after that
            // (fs/proc/task_mmu.c, `do_pagemap_scan`): it says where to go on only when `rows` is full.
            if found.len() < rows.len() {
                break;
            }
            let reached = found.last().map_or(0, |row| row.end);
            if reached <= from {
                return Err(io::Error::other("PAGEMAP_SCAN does not advance"));
            }
            from = reached;
        }
        Ok(())
    }
}

/// The rule of kernels without `PAGEMAP_SCAN`: pages that are present (or swapped out) and not a file's, from
/// `/proc/PID/pagemap`'s entries. The shared page of zeros counts as well: copying it is needless, not wrong.
pub fn own_pages_by_pagemap(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u32>>> {
    use std::os::unix::fs::FileExt;

    const ENTRIES: usize = 64 * 1024;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    const FILE_OR_SHARED: u64 = 1 << 61;

    let pages = ((range.end - range.start) / PAGE as u64) as usize;
    let first = range.start / PAGE as u64;
    let mut runs: Vec<Range<u32>> = Vec::new();
    let mut bytes = vec![0; ENTRIES * 8];
    for from in (0..pages).step_by(ENTRIES) {
        let count = ENTRIES.min(pages - from);
        let part = &mut bytes[..count * 8];
        pagemap.read_exact_at(part, (first + from as u64) * 8)?;
        for (i, entry) in part.chunks_exact(8).enumerate() {
            let entry = entry.try_into().map(u64::from_ne_bytes).unwrap_or(0);
            if entry & SWAPPED != 0 || (entry & PRESENT != 0 && entry & FILE_OR_SHARED == 0) {
                let page = (from + i) as u32;
                push(&mut runs, page..page + 1);
            }
        }
    }
    Ok(runs)
}

fn page_number(address: u64, start: u64) -> u32 {
    ((address - start) / PAGE as u64) as u32
}

/// Adds a run, merged with the one before where they touch.
fn push(runs: &mut Vec<Range<u32>>, run: Range<u32>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        os::fd::OwnedFd,
        path::Path,
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        ksm::{Ksm, LEASE, Lease, Pace},
        record::{self, HOST_BOOT},
    };

    const MIB: usize = 1 << 20;

    /// Our own memory with every page written and protected.
    struct Tracked {
        memory: Mapping,
        pagemap: File,
        _uffd: OwnedFd,
    }

    impl Tracked {
        fn new(bytes: usize, huge: bool) -> Self {
            let memory = Mapping::new(bytes).unwrap();
            let advice = if huge {
                libc::MADV_HUGEPAGE
            } else {
                libc::MADV_NOHUGEPAGE
            };
            // SAFETY: advice about memory of ours.
            let result =
                unsafe { libc::madvise(memory.0.as_ptr().cast_mut().cast(), bytes, advice) };
            assert_eq!(result, 0);
            let uffd = uffd::open().unwrap();
            uffd::register(&uffd, memory.range()).unwrap();
            let tracked = Self {
                memory,
                pagemap: File::open("/proc/self/pagemap").unwrap(),
                _uffd: uffd,
            };
            tracked.memory.0.fill(1);
            let all = bytes / PAGE;
            assert_eq!(tracked.scan(), vec![0..all as u32]);
            assert_eq!(tracked.scan(), vec![]);
            tracked
        }

        fn write(&mut self, page: usize, value: u8) {
            self.memory.0[page * PAGE..(page + 1) * PAGE].fill(value);
        }

        fn scan(&self) -> Vec<Range<u32>> {
            written_then_protect(&self.pagemap, self.memory.range()).unwrap()
        }
    }

    /// The kernel gives its answer in pieces, of 512 rows inside and of 1,024 to us.
    #[test]
    fn every_page_that_was_written_is_listed_once_and_in_order() {
        let mut tracked = Tracked::new(32 * MIB, false);
        for count in [
            1, 511, 512, 513, 800, 1023, 1024, 1025, 1537, 1600, 2047, 2048,
        ] {
            // Far enough apart that no two share a part, then close enough that all do.
            for step in [33, 2] {
                let pages: Vec<usize> = (0..count)
                    .map(|i| i * step)
                    .take_while(|page| *page < 8192)
                    .collect();
                for page in &pages {
                    tracked.write(*page, 2);
                }
                let expected: Vec<_> = pages
                    .iter()
                    .map(|page| *page as u32..*page as u32 + 1)
                    .collect();
                assert_eq!(tracked.scan(), expected, "{count} pages, every {step}");
                assert_eq!(tracked.scan(), vec![], "{count} pages, every {step}, again");
            }
        }
    }

    /// The kernel merges pages of zeros with its own page of zeros: they are what the guest wrote.
    #[test]
    fn zeros_that_were_written_are_listed_after_the_kernel_shared_their_page() {
        let mut tracked = Tracked::new(4 * MIB, false);
        tracked.memory.0.fill(2);
        let zeroed: BTreeSet<u32> = (0..(4 * MIB / PAGE) as u32).step_by(4).collect();
        for page in &zeroed {
            tracked.write(*page as usize, 0);
        }
        // SAFETY: advice about memory of ours.
        let result = unsafe {
            let memory = &tracked.memory.0;
            libc::madvise(
                memory.as_ptr().cast_mut().cast(),
                memory.len(),
                libc::MADV_MERGEABLE,
            )
        };
        assert_eq!(result, 0);
        let ksm = Ksm::of_host().unwrap();
        let host_boot = record::host_boot(Path::new(HOST_BOOT)).unwrap();
        let (mut lease, found) = loop {
            if let Some(mut lease) = Lease::take(Path::new(LEASE), &host_boot).unwrap() {
                let found = lease.found().unwrap();
                break (lease, found.unwrap_or_else(|| ksm.settings().unwrap()));
            }
            thread::sleep(Duration::from_millis(20));
        };
        lease.keep(&found).unwrap();
        ksm.set_pace(Pace::Steady {
            pages: 10_000,
            sleep_ms: 0,
        })
        .unwrap();
        let shared = || {
            let entries = fs::read_to_string("/proc/self/ksm_stat").unwrap();
            let count = entries
                .lines()
                .find_map(|line| line.strip_prefix("ksm_zero_pages "));
            count.unwrap().parse::<usize>().unwrap()
        };
        let patience = Instant::now() + Duration::from_secs(30);
        while shared() < zeroed.len() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(20));
        }
        let enough = shared() >= zeroed.len();
        ksm.restore(&found).unwrap();
        lease.clear().unwrap();
        assert!(enough, "the kernel shared {} pages", shared());
        let found: BTreeSet<u32> = tracked.scan().into_iter().flatten().collect();
        let missed: Vec<_> = zeroed.difference(&found).collect();
        assert!(
            missed.is_empty(),
            "missed {} of {}",
            missed.len(),
            zeroed.len()
        );
    }
}
