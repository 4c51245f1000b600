//! Files that are either there as a whole or not at all. Used for identities, certificates and keys.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::TrustError;

/// Who may read a file besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Nobody: mode 0600.
    Owner,
    /// Everybody: mode 0644.
    Everybody,
}

/// Writes a file under a temporary name, syncs it and moves it to its place. Durable when it returns.
pub fn write(path: &Path, content: &[u8], readers: Readers) -> Result<(), TrustError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    write_new(&temporary, content, readers).map_err(TrustError::file("write", &temporary))?;
    rename(&temporary, path)
}

fn write_new(path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    // One that was left by a crash may have another mode: it is replaced, not reused.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Everybody => 0o644,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Moves a file or folder within its file system; durable when it returns.
pub fn rename(from: &Path, to: &Path) -> Result<(), TrustError> {
    fs::rename(from, to).map_err(TrustError::file("write", to))?;
    sync_parent(to)
}

/// Makes what happened in a path's folder durable.
pub fn sync_parent(path: &Path) -> Result<(), TrustError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(TrustError::file("sync", parent))
}

/// Makes a folder that only its owner may enter, and those above it. It may be there already.
pub fn private_folder(path: &Path) -> Result<(), TrustError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(TrustError::file("create", path))
}

/// Reads a file of at most 1 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    use std::io::Read as _;
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(1 << 20).read_to_end(&mut content))
        .map_err(TrustError::file("read", path))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_and_has_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write(&path, b"one", Readers::Everybody).unwrap();
        write(&path, b"two", Readers::Owner).unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn an_error_names_the_file() {
        let error = read(Path::new("/nonexistent/x")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/x");
    }
}
