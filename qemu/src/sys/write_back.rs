//! Writing a part of a file from the page cache to its disk.

use std::{fs::File, io, os::fd::AsRawFd as _};

/// Writes what is changed in `length` bytes from `offset` on, and waits for it. Data only: the file's size and extents need
/// `fdatasync` after it.
pub fn write_back(file: &File, offset: i64, length: i64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open while `file` is borrowed, and the call touches no memory of ours.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
