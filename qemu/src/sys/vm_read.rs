//! `process_vm_readv`: pages of another process, many at a time, without stopping it.

use std::io;

use super::PAGE;

/// Most parts that one call may have (`UIO_MAXIOV`).
const MAX_PARTS: usize = 1024;

/// Reads memory of process `pid`: each part is an address there and where its bytes go. All or an error.
pub fn read(pid: u32, parts: &mut [(u64, &mut [u8])]) -> io::Result<()> {
    for group in parts.chunks_mut(MAX_PARTS) {
        let mut wanted = 0;
        let mut local = Vec::with_capacity(group.len());
        let mut remote = Vec::with_capacity(group.len());
        for (address, bytes) in group.iter_mut() {
            wanted += bytes.len();
            remote.push(libc::iovec {
                iov_base: *address as *mut libc::c_void,
                iov_len: bytes.len(),
            });
            local.push(libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            });
        }
        // SAFETY: every local iovec describes a mutable slice that is borrowed for the length of the call, and no two of
        // them overlap (they are distinct `&mut`). Remote addresses are checked by the kernel.
        let got = unsafe {
            libc::process_vm_readv(
                pid as libc::pid_t,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        if got as usize != wanted {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("read {got} of {wanted} bytes of process {pid}'s memory"),
            ));
        }
    }
    Ok(())
}

/// Whether a page holds nothing but zeros.
pub fn is_zero(page: &[u8]) -> bool {
    debug_assert_eq!(page.len() % PAGE, 0);
    // Compared with itself one byte on: the fastest safe way, it becomes a memcmp.
    page.first().is_none_or(|first| *first == 0) && page[..page.len() - 1] == page[1..]
}
