//! The kernel interfaces that no safe crate covers, one module for each. All `unsafe` of this crate is here.

pub mod page_scan;
pub mod readiness;
pub mod spawn;
pub mod tsc;
pub mod uffd;
pub mod vm_read;
pub mod write_back;

/// The size of a page. The engine knows no other: QEMU's stream uses the target's, which is 4 KiB on x86.
pub const PAGE: usize = 4096;
