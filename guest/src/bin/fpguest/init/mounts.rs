//! The file systems that a guest's programs expect, as far as nobody mounted them before.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::start::or_tell;

struct Mount {
    folder: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static CStr,
}

const fn of(
    folder: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static CStr,
) -> Mount {
    Mount {
        folder,
        kind,
        flags,
        options,
    }
}

/// What can neither run programs nor be more than it is.
const DATA: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In their order: some lie in others.
const MOUNTS: [Mount; 6] = [
    of("/proc", "proc", DATA, c""),
    of("/sys", "sysfs", DATA, c""),
    of("/dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755"),
    // Anybody may open a terminal of their own.
    of(
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"mode=0620,ptmxmode=0666",
    ),
    of(
        "/dev/shm",
        "tmpfs",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        c"mode=1777",
    ),
    of(
        "/run",
        "tmpfs",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        c"mode=0755",
    ),
];

/// Mounts what is missing.
pub fn all() {
    for Mount {
        folder,
        kind,
        flags,
        options,
    } in MOUNTS
    {
        if !is_mounted(Path::new(folder)) {
            // It may be there; where it cannot be made, mounting says why.
            let _there = fs::create_dir(folder);
            or_tell(folder, mount(kind, folder, kind, flags, options));
        }
    }
}

/// Whether a file system begins at this folder.
fn is_mounted(folder: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    folder
        .parent()
        .is_some_and(|parent| match (device(folder), device(parent)) {
            (Some(own), Some(above)) => own != above,
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_from_a_folder() {
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/proc/self")));
        assert!(!is_mounted(Path::new("/there/is/none")));
        assert!(!is_mounted(Path::new("/")));
    }

    #[test]
    fn what_lies_in_another_comes_after_it() {
        for (place, inner) in MOUNTS.iter().enumerate() {
            for outer in &MOUNTS[place + 1..] {
                assert!(!Path::new(inner.folder).starts_with(outer.folder));
            }
        }
    }
}
