//! Userfaultfds in asynchronous write-protect mode: the one that the preloaded library opened in a QEMU process, found from
//! outside and made to cover its memory, and our own, to try what the kernel does.

use std::{
    fs, io,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

/// `struct uffdio_register` of linux/userfaultfd.h.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `_IOWR(0xAA, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong =
    (3 << 30) | ((size_of::<Register>() as libc::c_ulong) << 16) | (0xAA << 8);
const MODE_WP: u64 = 1 << 1;

/// `struct uffdio_api` of linux/userfaultfd.h.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong =
    (3 << 30) | ((size_of::<Api>() as libc::c_ulong) << 16) | (0xAA << 8) | 0x3F;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// Opens one for this process, as the preloaded library does for QEMU's (preload/write_tracking.c).
pub fn open() -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags and gives a descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut arg = Api {
        api: 0xAA,
        features: FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC,
        ioctls: 0,
    };
    // SAFETY: `arg` is a valid uffdio_api.
    if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut arg) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Takes a copy of the userfaultfd that the process holds; `None` when it has none.
pub fn find(pid: u32, pidfd: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // A descriptor may be closed while we look: then its link is gone.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if target.as_os_str() != "anon_inode:[userfaultfd]" {
            continue;
        }
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        return Ok(Some(pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())?));
    }
    Ok(None)
}

/// Makes the pages of `range` protectable. Doing it again changes nothing.
pub fn register(uffd: &OwnedFd, range: Range<u64>) -> io::Result<()> {
    let mut arg = Register {
        start: range.start,
        len: range.end - range.start,
        mode: MODE_WP,
        ioctls: 0,
    };
    // SAFETY: `arg` is a valid uffdio_register; the call changes nothing in our own address space.
    let result = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, &mut arg) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
