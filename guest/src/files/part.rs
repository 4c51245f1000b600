//! Files that are not yet whole: each is written beside its place, under a name that says so, and gets its own when it is.

use std::{
    fs::File,
    os::fd::AsFd,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    fs::{
        AtFlags, FileType, FlockOperation, Mode, OFlags, flock, fstat, ftruncate, openat, statat,
        unlinkat,
    },
    io::Errno,
};

use super::{Have, check, read::checksum};

/// How the names of files end that are not yet whole; they begin with a dot.
pub const PART_ENDING: &str = ".fpcp-part";
/// So much of a long name is kept.
const KEPT: usize = 200;
/// How long a file is waited for that somebody else writes to.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// And how often it is looked at.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The name of what there is of a file.
pub(super) fn part_name(name: &[u8]) -> Vec<u8> {
    let mut part = b".".to_vec();
    if name.len() + 1 + PART_ENDING.len() <= check::MAX_NAME {
        part.extend_from_slice(name);
    } else {
        part.extend_from_slice(&name[..KEPT]);
        part.extend_from_slice(format!("-{:08x}", crc32fast::hash(name)).as_bytes());
    }
    part.extend_from_slice(PART_ENDING.as_bytes());
    part
}

/// Whether this is such a name.
pub(super) fn is_part(name: &[u8]) -> bool {
    let longer = name.len() > PART_ENDING.len() + 1;
    longer && name.starts_with(b".") && name.ends_with(PART_ENDING.as_bytes())
}

/// What there is of a file of so many bytes from an attempt before.
pub(super) fn had(folder: impl AsFd, part: &[u8], bytes: u64) -> Option<Have> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(folder.as_fd(), part, flags, Mode::empty()).ok()?;
    let size = own_size(folder, part, &file).ok()??;
    if !(1..=bytes).contains(&size) {
        return None;
    }
    let crc32 = checksum(&mut file.into(), size).ok()??;
    Some(Have { bytes: size, crc32 })
}

/// Opens what there is of a file to go on from there, so many bytes from its beginning.
pub(super) fn go_on(folder: impl AsFd, part: &[u8], offset: u64) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(folder.as_fd(), part, flags, Mode::empty())?);
    lock(&file)?;
    match own_size(folder, part, &file)? {
        Some(size) if size >= offset => {}
        _ => return Err(Errno::STALE),
    }
    ftruncate(&file, offset)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(offset))?;
    Ok(file)
}

/// Makes an empty one, instead of what is there.
pub(super) fn begin(folder: impl AsFd, part: &[u8]) -> Result<File, Errno> {
    match go_on(folder.as_fd(), part, 0) {
        // Somebody else writes to it.
        Err(Errno::AGAIN) => return Err(Errno::AGAIN),
        Ok(file) => return Ok(file),
        Err(_) => {}
    }
    match unlinkat(folder.as_fd(), part, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(
        folder.as_fd(),
        part,
        flags,
        Mode::RUSR | Mode::WUSR,
    )?);
    lock(&file)?;
    Ok(file)
}

/// Keeps others from writing to it, too. One whose conversation broke may need a moment to notice.
fn lock(file: &File) -> Result<(), Errno> {
    let begun = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) if begun.elapsed() < LOCK_PATIENCE => sleep(LOCK_PAUSE),
            other => return other,
        }
    }
}

/// How long a file is that may be gone on with: one of this user's own, under no other name, and still there under this one. Anybody may have
/// put something else in its place where others may write, and so may whoever sent a tree.
fn own_size(folder: impl AsFd, part: &[u8], file: impl AsFd) -> Result<Option<u64>, Errno> {
    let (stat, there) = (
        fstat(file)?,
        statat(folder, part, AtFlags::SYMLINK_NOFOLLOW)?,
    );
    let is_own = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_nlink == 1
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && (stat.st_dev, stat.st_ino) == (there.st_dev, there.st_ino);
    Ok(is_own.then_some(u64::try_from(stat.st_size).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_names_that_names_have_room_for() {
        assert_eq!(part_name(b"a"), b".a.fpcp-part");
        let (long, other) = ([b'x'; 255], [&[b'x'; 254][..], b"y"].concat());
        for name in [&long[..244], &long[..245], &long, &other] {
            let part = part_name(name);
            assert!(check::is_name(&part) && is_part(&part));
        }
        assert_ne!(part_name(&long), part_name(&other));
        assert!(!is_part(b".fpcp-part") && !is_part(b"a.fpcp-part"));
    }
}
