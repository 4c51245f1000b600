//! What the programs ask of the kernel and the processor. The only unsafe code of this crate.

use std::arch::x86_64::_rdtsc;
use std::io;
use std::ptr::{self, NonNull};

use fp_guest::pages::PAGE_SIZE;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
use rustix::time::{ClockId, clock_gettime};

/// Pages of anonymous memory, locked, page-aligned, zeroed, and kept until the process ends.
pub struct LockedPages {
    start: NonNull<u8>,
    len: usize,
}

impl LockedPages {
    /// Maps `count` pages and locks them into memory.
    ///
    /// # Errors
    /// The kernel's, most likely that locking so much is not allowed.
    pub fn new(count: usize) -> io::Result<Self> {
        let len = count * PAGE_SIZE;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, flags) }?;
        // Small pages: merging them into huge ones would leave old copies behind in guest memory.
        // SAFETY: start and len are the mapping above; the advice does not change its content.
        match unsafe { madvise(start, len, Advice::LinuxNoHugepage) } {
            // A kernel without huge pages.
            Err(rustix::io::Errno::INVAL) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        // SAFETY: as above.
        unsafe { mlock(start, len) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Page `index` as bytes.
    pub fn page(&mut self, index: usize) -> &mut [u8] {
        &mut self.bytes()[index * PAGE_SIZE..][..PAGE_SIZE]
    }

    /// All pages as bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has len readable and writable bytes, is never unmapped, and is
        // borrowed through &mut self only.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: the mapping belongs to this value alone and is not bound to a thread.
unsafe impl Send for LockedPages {}

/// Writes `value` little-endian to the start of `bytes`, in one store that stays behind all stores
/// before it. `bytes` must begin at a multiple of eight.
pub fn publish_u64(bytes: &mut [u8], value: u64) {
    assert!(bytes.len() >= 8 && bytes.as_ptr().addr().is_multiple_of(8));
    let word = bytes.as_mut_ptr().cast::<u64>();
    // SAFETY: checked above to be eight aligned bytes, which this borrow owns.
    let word = unsafe { std::sync::atomic::AtomicU64::from_ptr(word) };
    word.store(value.to_le(), std::sync::atomic::Ordering::Release);
}

/// Nanoseconds since the guest's boot.
pub fn since_boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// The low half of the processor's time stamp counter.
pub fn tsc_low() -> u32 {
    // SAFETY: every x86-64 processor has the instruction.
    let ticks = unsafe { _rdtsc() };
    ticks as u32
}
