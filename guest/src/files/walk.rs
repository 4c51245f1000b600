//! Looks through a tree that is to be sent: [`Walk`]. Called by [`super::read`].

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstatfs, openat, readlinkat, statat},
    io::Errno,
};

use super::{CopyError, Piece, PieceKind, check, part, shown};

/// So many names of a folder are taken and sorted at a time.
const NAMES: usize = 1024;
/// File systems whose files have other sizes than they say: proc, sysfs, cgroup2, debugfs, tracefs, securityfs.
const MADE_UP: [u32; 6] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
];

/// A file that was found.
pub(super) enum Source {
    /// It is open.
    Open(File),
    /// It is to be opened: in this folder, under this name.
    In(Rc<OwnedFd>, Vec<u8>),
}

impl Source {
    /// The file, unless there is none any more.
    pub fn open(self) -> Result<Option<File>, Errno> {
        let (folder, name) = match self {
            Self::Open(file) => return Ok(Some(file)),
            Self::In(folder, name) => (folder, name),
        };
        // It may have become a pipe, which is waited for, or a link, which is not followed.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&*folder, &name[..], flags, Mode::empty()) {
            Ok(file) => {
                let stat = rustix::fs::fstat(&file)?;
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                Ok(is_file.then(|| file.into()))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A folder that is being looked through.
struct Level {
    folder: Rc<OwnedFd>,
    entries: Dir,
    names: std::vec::IntoIter<Vec<u8>>,
}

impl Level {
    fn new(folder: OwnedFd) -> Result<Self, Errno> {
        Ok(Self {
            entries: Dir::read_from(&folder)?,
            folder: Rc::new(folder),
            names: Vec::new().into_iter(),
        })
    }

    /// The next name: sorted, as far as they are taken together. What a folder has is never kept whole.
    fn next_name(&mut self) -> Result<Option<Vec<u8>>, Errno> {
        loop {
            if let Some(name) = self.names.next() {
                return Ok(Some(name));
            }
            let mut names = Vec::new();
            while names.len() < NAMES
                && let Some(entry) = self.entries.read()
            {
                let name = entry?.file_name().to_bytes().to_vec();
                // The beginnings of files that another copy has not finished are none of the tree's.
                if name != b"." && name != b".." && !part::is_part(&name) {
                    names.push(name);
                }
            }
            if names.is_empty() {
                return Ok(None);
            }
            names.sort_unstable();
            self.names = names.into_iter();
        }
    }
}

/// A tree, from its root on.
pub(super) struct Walk {
    root: Vec<u8>,
    first: Option<File>,
    levels: Vec<Level>,
    path: Vec<Vec<u8>>,
    /// What was found that can be no piece.
    pub left_out: u64,
}

impl Walk {
    /// From this file or folder on. Where it is a link, what that points to is meant; no other link is followed.
    pub fn new(root: &Path) -> Result<Self, CopyError> {
        let bytes = root.as_os_str().as_bytes();
        let metadata = std::fs::metadata(root).map_err(|error| CopyError::io(bytes, error))?;
        if !metadata.is_file() && !metadata.is_dir() {
            let problem = "it is neither a file nor a folder, and cannot be copied";
            return Err(CopyError::at(bytes, problem));
        }
        let first = File::open(root).map_err(|error| CopyError::io(bytes, error))?;
        Ok(Self {
            root: bytes.to_vec(),
            first: Some(first),
            levels: Vec::new(),
            path: Vec::new(),
            left_out: 0,
        })
    }

    /// A path of it, for people.
    pub fn shown(&self, path: &[Vec<u8>]) -> Vec<u8> {
        shown(&self.root, path)
    }

    /// The next piece, and where it is a file, that.
    pub fn next(&mut self) -> Result<Option<(Piece, Option<Source>)>, CopyError> {
        if let Some(first) = self.first.take() {
            return self.begin(first).map(Some);
        }
        while let Some(level) = self.levels.last_mut() {
            let next = level.next_name();
            let folder = Rc::clone(&level.folder);
            let next = next.map_err(|error| CopyError::io(self.shown(&self.path), error))?;
            let Some(name) = next else {
                self.levels.pop();
                self.path.pop();
                continue;
            };
            self.path.push(name.clone());
            let found = self.look(&folder, &name);
            let found = match found {
                // It was deleted a moment ago.
                Err(Errno::NOENT) => None,
                Err(error) => return Err(CopyError::io(self.shown(&self.path), error)),
                Ok(found) => found,
            };
            let Some((piece, source)) = found else {
                self.path.pop();
                continue;
            };
            if let Err(malformed) = check::piece(&piece) {
                return Err(CopyError::at(self.shown(&self.path), malformed));
            }
            // A folder stays on the path for as long as it is looked through.
            if piece.kind != i32::from(PieceKind::Folder) {
                self.path.pop();
            }
            return Ok(Some((piece, source)));
        }
        Ok(None)
    }

    fn begin(&mut self, first: File) -> Result<(Piece, Option<Source>), CopyError> {
        let root = self.root.clone();
        let failed = |error: Errno| CopyError::io(&root, error);
        let stat = rustix::fs::fstat(&first).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let piece = self.piece(PieceKind::Folder, &stat);
            self.levels.push(Level::new(first.into()).map_err(failed)?);
            return Ok((piece, None));
        }
        let mut piece = self.piece(PieceKind::File, &stat);
        piece.bytes = size(&stat, || fstatfs(&first).map(|fs| fs.f_type as u32));
        Ok((piece, Some(Source::Open(first))))
    }

    fn piece(&self, kind: PieceKind, stat: &Stat) -> Piece {
        Piece {
            path: self.path.clone(),
            kind: kind.into(),
            mode: stat.st_mode & 0o7777,
            modified_ns: modified_ns(stat),
            bytes: None,
            target: Vec::new(),
        }
    }

    /// What is there; `None` for what can be no piece.
    fn look(
        &mut self,
        folder: &Rc<OwnedFd>,
        name: &[u8],
    ) -> Result<Option<(Piece, Option<Source>)>, Errno> {
        let stat = statat(&**folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let mut piece = self.piece(PieceKind::File, &stat);
                piece.bytes = size(&stat, || fstatfs(&**folder).map(|fs| fs.f_type as u32));
                Ok(Some((
                    piece,
                    Some(Source::In(Rc::clone(folder), name.to_vec())),
                )))
            }
            FileType::Directory => {
                let piece = self.piece(PieceKind::Folder, &stat);
                // What is deeper fails by its check, before more folders are open than may be.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(&**folder, name, flags, Mode::empty())?;
                self.levels.push(Level::new(inner)?);
                Ok(Some((piece, None)))
            }
            FileType::Symlink => {
                let target = readlinkat(&**folder, name, Vec::new())?;
                let mut piece = self.piece(PieceKind::Link, &stat);
                piece.mode = 0o777;
                piece.target = target.into_bytes();
                Ok(Some((piece, None)))
            }
            _ => {
                self.left_out += 1;
                Ok(None)
            }
        }
    }
}

/// When a file was changed last.
pub(super) fn modified_ns(stat: &Stat) -> i64 {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    stat.st_mtime
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// How long a file is, where what it says of that can be believed: what the kernel makes up has no blocks.
fn size(stat: &Stat, file_system: impl FnOnce() -> Result<u32, Errno>) -> Option<u64> {
    let bytes = u64::try_from(stat.st_size).unwrap_or_default();
    let may_be_made_up = stat.st_blocks == 0;
    if may_be_made_up && (bytes == 0 || file_system().is_ok_and(|kind| MADE_UP.contains(&kind))) {
        return None;
    }
    Some(bytes)
}
