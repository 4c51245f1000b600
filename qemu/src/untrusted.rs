//! Files that a machine's process writes and the agent reads. Whoever got out of a guest into that process may have put something else
//! in their place: a link to what only the agent may read, a pipe that nobody writes to, more than there is memory.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Reads a file that is a process's own.
///
/// # Errors
/// It is not a file that `owner` made under this name alone (`None` for anybody), or has more than `most` bytes.
pub fn read(path: &Path, owner: Option<u32>, most: u64) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        // A pipe would be waited for.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let about = file.metadata()?;
    let is_its = owner.is_none_or(|owner| about.uid() == owner);
    if !about.is_file() || !is_its || about.nlink() != 1 {
        return Err(io::Error::other(
            "it is not what the machine's process was to write",
        ));
    }
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_a_process_s_own_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let own = rustix::process::geteuid().as_raw();
        fs::write(path("whole"), b"1234").unwrap();
        let of = |name: &str, owner| read(&path(name), Some(owner), 4);
        assert_eq!(of("whole", own).unwrap(), b"1234");
        assert!(of("whole", own + 1).is_err(), "somebody else's");
        assert!(read(&path("whole"), None, 3).is_err(), "too much");
        symlink(path("whole"), path("link")).unwrap();
        assert!(of("link", own).is_err());
        let pipe = rustix::fs::CWD;
        rustix::fs::mknodat(
            pipe,
            path("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(of("pipe", own).is_err());
        symlink("/dev/zero", path("zeros")).unwrap();
        assert!(of("zeros", own).is_err());
        assert!(read(Path::new("/dev/zero"), None, 4).is_err());
        assert!(of("", own).is_err(), "a folder");
        fs::hard_link(path("whole"), path("another")).unwrap();
        assert!(of("another", own).is_err(), "it has another name");
    }
}
