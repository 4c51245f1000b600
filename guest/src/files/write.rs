//! The one that wants the files: [`receive`].
//!
//! It believes nothing. Each folder is opened in the one that it lies in, by a single name that leads neither up nor elsewhere, and never
//! through a link; all that is done in it is done by that descriptor. So nothing is written outside of the tree, whatever came before
//! (which is what `openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS` would give for a whole path, and kernels before 5.6 too).

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, UTIME_OMIT,
        fchmod, fstat, futimens, mkdirat, openat, readlinkat, renameat, statat, symlinkat,
        unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    AHEAD, Content, CopyError, Done, Ends, Have, Meter, Piece, PieceKind, Reply, Said, Wanted,
    check, part, shown, walk::modified_ns,
};

/// Where what is received goes.
pub enum To {
    /// A folder that is there, into which it is put under its name at its source, or the name that it gets.
    Path {
        /// It.
        path: PathBuf,
        /// Its name at its source; empty where only what is in a folder is meant.
        name: Vec<u8>,
    },
    /// Here, where it is one file.
    Writer(Box<dyn Write + Send>),
}

/// What is taken from a sender.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The permissions that are taken over.
    pub modes: u32,
    /// Whether links that point out of the tree are taken.
    pub links_out: bool,
    /// How many pieces there may be.
    pub pieces: u64,
}

impl Limits {
    /// For what comes out of a guest: nothing that could be of use to it anywhere but in the tree.
    pub const OF_GUESTS: Self = Self {
        modes: 0o777,
        links_out: false,
        pieces: 10_000_000,
    };
    /// For what the host brings.
    pub const OF_HOSTS: Self = Self {
        modes: 0o7777,
        links_out: true,
        pieces: u64::MAX,
    };
}

/// Receives files. Files that are there are replaced, folders are merged.
///
/// # Errors
/// The conversation broke, what came is not sound, or it cannot be written. What there is of a file is kept where that is an interruption.
pub fn receive(
    to: To,
    limits: Limits,
    ends: &mut Ends<Reply, Said>,
    meter: &Meter,
) -> Result<(), CopyError> {
    let (path, name) = match to {
        To::Path { path, name } => (path, name),
        To::Writer(writer) => return receive_one(writer, ends, meter),
    };
    let mut receiver = Receiver {
        path,
        name,
        limits,
        meter,
        pieces: 0,
        root: Vec::new(),
        stack: Vec::new(),
        waiting: VecDeque::new(),
    };
    let received = receiver.run(ends);
    if let Err(error) = &received
        && !error.is_interruption()
    {
        receiver.remove_part();
    }
    received
}

/// A folder of the tree.
struct Folder {
    name: Vec<u8>,
    path: Vec<u8>,
    folder: Rc<OwnedFd>,
    /// What it is to be when all is in it; `None` for one that is to stay as it is.
    becomes: Option<(u32, i64)>,
    /// Whether it was made here.
    is_new: bool,
}

/// What is to be done once what came before is done.
enum Waiting {
    File(Box<Incoming>),
    /// All is in it.
    Close(Folder),
}

/// A file that is wanted.
struct Incoming {
    folder: Rc<OwnedFd>,
    name: Vec<u8>,
    part: Vec<u8>,
    /// For people.
    path: Vec<u8>,
    bytes: Option<u64>,
    mode: u32,
    modified_ns: i64,
    have: Option<Have>,
    /// Once its content has begun: where it goes, and how much of it is there.
    open: Option<(File, u64)>,
}

struct Receiver<'a> {
    path: PathBuf,
    name: Vec<u8>,
    limits: Limits,
    meter: &'a Meter,
    pieces: u64,
    /// For people: where the tree's root is.
    root: Vec<u8>,
    /// The folders that the last piece lies in, from the root on.
    stack: Vec<Folder>,
    waiting: VecDeque<Waiting>,
}

impl Receiver<'_> {
    fn run(&mut self, ends: &mut Ends<Reply, Said>) -> Result<(), CopyError> {
        loop {
            match ends.hear()? {
                Said::Piece(piece) => {
                    if let Some(wanted) = self.take_piece(piece)? {
                        ends.say(Reply::Wanted(wanted))?;
                    }
                }
                Said::Content(content) => self.take_content(content)?,
                Said::End(end) => {
                    if self.pieces == 0 {
                        return Err(CopyError::unsound("nothing came"));
                    }
                    while let Some(folder) = self.stack.pop() {
                        self.waiting.push_back(Waiting::Close(folder));
                    }
                    self.settle()?;
                    if !self.waiting.is_empty() {
                        return Err(CopyError::unsound("it ends before all content came"));
                    }
                    Meter::add(&self.meter.left_out, end.left_out);
                    let links_left_out = self.meter.links_left_out.load(Relaxed);
                    return ends.say(Reply::Done(Done { links_left_out }));
                }
            }
        }
    }

    /// Takes a piece; says what is wanted of it where it is a file.
    fn take_piece(&mut self, piece: Piece) -> Result<Option<Wanted>, CopyError> {
        let kind = check::piece(&piece).map_err(CopyError::unsound)?;
        self.pieces += 1;
        if self.pieces > self.limits.pieces {
            return Err(CopyError::unsound("the tree has too many files"));
        }
        // What an honest sender has ahead, and the folders that end with it.
        if self.waiting.len() > AHEAD + check::MAX_DEPTH + 1 {
            return Err(CopyError::unsound("too much comes before the content does"));
        }
        if piece.path.is_empty() {
            if self.pieces > 1 {
                return Err(CopyError::unsound("a tree has two roots"));
            }
            return self.take_root(&piece, kind);
        }
        self.go_to(&piece.path)?;
        let Some((inner, parent)) = piece.path.last().zip(self.stack.last()) else {
            return Err(CopyError::unsound("something came before its folder"));
        };
        let place = Place {
            folder: Rc::clone(&parent.folder),
            name: inner.clone(),
            path: shown(&self.root, &piece.path),
        };
        self.put(place, &piece, kind)
    }

    fn take_root(&mut self, piece: &Piece, kind: PieceKind) -> Result<Option<Wanted>, CopyError> {
        let place = match resolve(&self.path, &self.name, kind)? {
            Root::In(place) => place,
            Root::Itself(folder, path) => {
                self.root.clone_from(&path);
                self.stack.push(Folder {
                    name: Vec::new(),
                    path,
                    folder: Rc::new(folder),
                    becomes: None,
                    is_new: false,
                });
                return Ok(None);
            }
        };
        self.root.clone_from(&place.path);
        self.put(place, piece, kind)
    }

    /// Leaves the folders that this path is not in.
    fn go_to(&mut self, path: &[Vec<u8>]) -> Result<(), CopyError> {
        let inner = self.stack.iter().skip(1).zip(path);
        let common = inner.take_while(|(folder, part)| folder.name == **part);
        let stay = (1 + common.count()).min(path.len());
        while self.stack.len() > stay {
            if let Some(folder) = self.stack.pop() {
                self.waiting.push_back(Waiting::Close(folder));
            }
        }
        self.settle()?;
        if self.stack.len() != path.len() {
            return Err(CopyError::unsound("something came before its folder"));
        }
        Ok(())
    }

    fn put(
        &mut self,
        place: Place,
        piece: &Piece,
        kind: PieceKind,
    ) -> Result<Option<Wanted>, CopyError> {
        match kind {
            PieceKind::File => self.want(place, piece).map(Some),
            PieceKind::Folder => {
                let folder = place.enter(piece, self.limits.modes & piece.mode)?;
                self.stack.push(folder);
                Ok(None)
            }
            PieceKind::Link => {
                let depth = piece.path.len() - 1;
                if self.limits.links_out || check::stays_within(depth, &piece.target) {
                    place.link(piece)?;
                } else {
                    Meter::add(&self.meter.links_left_out, 1);
                }
                Ok(None)
            }
        }
    }

    /// Decides what is wanted of a file.
    fn want(&mut self, place: Place, piece: &Piece) -> Result<Wanted, CopyError> {
        let mode = piece.mode & self.limits.modes;
        Meter::add(&self.meter.total, piece.bytes.unwrap_or_default());
        if let Some(there) = place.look()? {
            let is_same = FileType::from_raw_mode(there.st_mode) == FileType::RegularFile
                && piece.bytes == u64::try_from(there.st_size).ok()
                && piece.modified_ns == modified_ns(&there);
            if is_same && place.has_mode(&there, mode)? {
                Meter::add(&self.meter.same, 1);
                Meter::add(&self.meter.spared, piece.bytes.unwrap_or_default());
                return Ok(Wanted {
                    same: true,
                    have: None,
                });
            }
        }
        let part = part::part_name(&place.name);
        let have = piece
            .bytes
            .and_then(|bytes| part::had(&*place.folder, &part, bytes));
        self.waiting.push_back(Waiting::File(Box::new(Incoming {
            folder: place.folder,
            name: place.name,
            part,
            path: place.path,
            bytes: piece.bytes,
            mode,
            modified_ns: piece.modified_ns,
            have,
            open: None,
        })));
        Ok(Wanted { same: false, have })
    }

    fn take_content(&mut self, content: Content) -> Result<(), CopyError> {
        check::content(&content).map_err(CopyError::unsound)?;
        let Some(Waiting::File(incoming)) = self.waiting.front_mut() else {
            return Err(CopyError::unsound("content came of no file"));
        };
        let ended = content.last;
        if content.gone {
            if incoming.open.is_some() {
                return Err(CopyError::unsound("a file was withdrawn in its middle"));
            }
            incoming.remove_part();
            Meter::add(&self.meter.gone, 1);
        } else {
            let count = content.bytes.len() as u64;
            let spared = incoming.take(content)?;
            Meter::add(&self.meter.spared, spared);
            Meter::add(&self.meter.bytes, count);
            Meter::add(&self.meter.files, u64::from(ended));
        }
        if ended {
            self.waiting.pop_front();
            self.settle()?;
        }
        Ok(())
    }

    /// Closes folders that nothing more comes into.
    fn settle(&mut self) -> Result<(), CopyError> {
        while let Some(Waiting::Close(folder)) = self.waiting.front() {
            folder.close()?;
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Removes what there is of the file whose content has begun.
    fn remove_part(&mut self) {
        if let Some(Waiting::File(incoming)) = self.waiting.front_mut()
            && incoming.open.is_some()
        {
            incoming.remove_part();
        }
    }
}

impl Incoming {
    /// Takes some of its content; what was there of it already.
    fn take(&mut self, content: Content) -> Result<u64, CopyError> {
        let failed = |path: &[u8], error: io::Error| CopyError::io(path, error);
        let mut spared = 0;
        let (file, at) = match &mut self.open {
            Some(open) => open,
            None => {
                let opened = match content.offset {
                    0 => part::begin(&*self.folder, &self.part),
                    offset if self.have.is_some_and(|have| have.bytes == offset) => {
                        spared = offset;
                        part::go_on(&*self.folder, &self.part, offset)
                    }
                    _ => return Err(CopyError::unsound("content begins in the middle")),
                };
                let file = opened.map_err(|error| match error {
                    Errno::AGAIN => {
                        CopyError::at(&self.path, "it is being copied by somebody else, too")
                    }
                    Errno::STALE => {
                        CopyError::at(&self.path, "what was there of it is not there any more")
                    }
                    error => failed(&self.path, error.into()),
                })?;
                self.open.insert((file, content.offset))
            }
        };
        if content.offset != *at {
            return Err(CopyError::unsound("content is not in its order"));
        }
        let end = content.offset + content.bytes.len() as u64;
        if self.bytes.is_some_and(|bytes| end > bytes) {
            return Err(CopyError::unsound("a file is longer than was said"));
        }
        if content.bytes.is_empty() && !content.last {
            return Err(CopyError::unsound("content is empty"));
        }
        file.write_all(&content.bytes)
            .map_err(|error| failed(&self.path, error))?;
        *at = end;
        if content.last {
            if self.bytes.is_some_and(|bytes| end != bytes) {
                return Err(CopyError::unsound("a file is shorter than was said"));
            }
            fchmod(&*file, Mode::from_raw_mode(self.mode as RawMode))
                .and_then(|()| futimens(&*file, &times(self.modified_ns)))
                .and_then(|()| {
                    renameat(&*self.folder, &self.part[..], &*self.folder, &self.name[..])
                })
                .map_err(|error| failed(&self.path, error.into()))?;
        }
        Ok(spared)
    }

    fn remove_part(&self) {
        // There may be none; and where it cannot be removed, the failure that this is about is told.
        let _gone = unlinkat(&*self.folder, &self.part[..], AtFlags::empty());
    }
}

impl Folder {
    fn close(&self) -> Result<(), CopyError> {
        let Some((mode, modified_ns)) = self.becomes else {
            return Ok(());
        };
        let set = || {
            if self.is_new {
                fchmod(&*self.folder, Mode::from_raw_mode(mode as RawMode))?;
            }
            futimens(&*self.folder, &times(modified_ns))
        };
        match set() {
            // One that was there may be somebody else's.
            Err(error) if self.is_new => Err(CopyError::io(&self.path, error)),
            _ => Ok(()),
        }
    }
}

/// A name in a folder.
struct Place {
    folder: Rc<OwnedFd>,
    name: Vec<u8>,
    /// For people.
    path: Vec<u8>,
}

impl Place {
    fn failed(&self, error: Errno) -> CopyError {
        CopyError::io(&self.path, error)
    }

    /// What is there, where a file or a link may take its place.
    fn look(&self) -> Result<Option<Stat>, CopyError> {
        let stat = match statat(&*self.folder, &self.name[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Symlink => Ok(Some(stat)),
            FileType::Directory => Err(CopyError::at(
                &self.path,
                "it is a folder, and would be replaced by what is none",
            )),
            _ => Err(CopyError::at(
                &self.path,
                "it is neither a file nor a folder, and is not replaced",
            )),
        }
    }

    /// Gives a file that is there other permissions, where it has others. `false` when it cannot be opened for that.
    fn has_mode(&self, there: &Stat, mode: u32) -> Result<bool, CopyError> {
        if there.st_mode & 0o7777 == mode {
            return Ok(true);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = openat(&*self.folder, &self.name[..], flags, Mode::empty()) else {
            return Ok(false);
        };
        let now = fstat(&file).map_err(|error| self.failed(error))?;
        let is_it = (now.st_dev, now.st_ino) == (there.st_dev, there.st_ino);
        Ok(is_it && fchmod(&file, Mode::from_raw_mode(mode as RawMode)).is_ok())
    }

    /// Goes into the folder of this name, which is made where there is none.
    fn enter(&self, piece: &Piece, mode: u32) -> Result<Folder, CopyError> {
        // What is in it is made first.
        let open_mode = Mode::from_raw_mode((mode | 0o700) as RawMode);
        let is_new = match mkdirat(&*self.folder, &self.name[..], open_mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(self.failed(error)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&*self.folder, &self.name[..], flags, Mode::empty());
        let folder = folder.map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => {
                CopyError::at(&self.path, "it is no folder, and would be replaced by one")
            }
            error => self.failed(error),
        })?;
        if is_new {
            // Whatever this process lets others do by default; and right already where this is broken off.
            fchmod(&folder, open_mode).map_err(|error| self.failed(error))?;
        }
        Ok(Folder {
            name: self.name.clone(),
            path: self.path.clone(),
            folder: Rc::new(folder),
            becomes: Some((mode, piece.modified_ns)),
            is_new,
        })
    }

    /// Makes a link.
    fn link(&self, piece: &Piece) -> Result<(), CopyError> {
        let stamp = |name: &[u8]| {
            let times = times(piece.modified_ns);
            utimensat(&*self.folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        };
        if let Some(there) = self.look()?
            && FileType::from_raw_mode(there.st_mode) == FileType::Symlink
            && readlinkat(&*self.folder, &self.name[..], Vec::new())
                .is_ok_and(|target| target.to_bytes() == piece.target)
        {
            // One that is somebody else's is as good.
            let _as_it_is = stamp(&self.name);
            return Ok(());
        }
        let part = part::part_name(&self.name);
        let make = || symlinkat(&piece.target[..], &*self.folder, &part[..]);
        let made = match make() {
            Err(Errno::EXIST) => {
                unlinkat(&*self.folder, &part[..], AtFlags::empty()).and_then(|()| make())
            }
            other => other,
        };
        made.and_then(|()| stamp(&part))
            .and_then(|()| renameat(&*self.folder, &part[..], &*self.folder, &self.name[..]))
            .map_err(|error| self.failed(error))
    }
}

fn times(modified_ns: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec {
            tv_sec: modified_ns.div_euclid(1_000_000_000),
            tv_nsec: modified_ns.rem_euclid(1_000_000_000) as _,
        },
    }
}

/// Where a tree's root goes.
enum Root {
    /// There, under this name.
    In(Place),
    /// It is this folder, which stays what it is: only what is in the source goes into it.
    Itself(OwnedFd, Vec<u8>),
}

/// Finds out where something goes, as `cp` does. Links that the user names are followed.
fn resolve(path: &Path, name: &[u8], kind: PieceKind) -> Result<Root, CopyError> {
    let bytes = path.as_os_str().as_bytes();
    let failed = |error: io::Error| CopyError::io(bytes, error);
    let open = |folder: &Path| {
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, folder, flags, Mode::empty())
            .map_err(|error| CopyError::io(folder.as_os_str().as_bytes(), error))
    };
    let real;
    let path = match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            let folder = open(path)?;
            if name.is_empty() {
                return match kind {
                    PieceKind::Folder => Ok(Root::Itself(folder, bytes.to_vec())),
                    _ => Err(CopyError::at(
                        bytes,
                        "it is a folder, and the file has no name; say which it gets",
                    )),
                };
            }
            if !check::is_name(name) {
                return Err(CopyError::unsound("what is copied has a name that is none"));
            }
            return Ok(Root::In(Place {
                folder: Rc::new(folder),
                name: name.to_vec(),
                path: shown(bytes, &[name.to_vec()]),
            }));
        }
        Ok(_) => {
            real = fs::canonicalize(path).map_err(failed)?;
            &real
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if bytes.ends_with(b"/") && kind == PieceKind::File {
                return Err(CopyError::at(bytes, "there is no such folder"));
            }
            path
        }
        Err(error) => return Err(failed(error)),
    };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(CopyError::at(bytes, "there is no such file or folder"));
    };
    Ok(Root::In(Place {
        folder: Rc::new(open(folder)?),
        name: name.as_bytes().to_vec(),
        path: bytes.to_vec(),
    }))
}

/// Receives one file and passes it on as it comes.
fn receive_one(
    mut writer: Box<dyn Write + Send>,
    ends: &mut Ends<Reply, Said>,
    meter: &Meter,
) -> Result<(), CopyError> {
    let Said::Piece(piece) = ends.hear()? else {
        return Err(CopyError::unsound("nothing came"));
    };
    if check::piece(&piece).map_err(CopyError::unsound)? != PieceKind::File {
        let problem = "it is a folder, and only a file can be written here";
        return Err(CopyError::at("the source", problem));
    }
    Meter::add(&meter.total, piece.bytes.unwrap_or_default());
    ends.say(Reply::Wanted(Wanted::default()))?;
    let mut at = 0;
    loop {
        match ends.hear()? {
            Said::Content(content) => {
                check::content(&content).map_err(CopyError::unsound)?;
                let count = content.bytes.len() as u64;
                if content.offset != at {
                    return Err(CopyError::unsound("content is not in its order"));
                }
                at += count;
                let too_long = piece.bytes.is_some_and(|bytes| at > bytes);
                let too_short = content.last && piece.bytes.is_some_and(|bytes| at != bytes);
                if too_long || too_short || content.gone {
                    return Err(CopyError::unsound("a file is not as long as was said"));
                }
                writer
                    .write_all(&content.bytes)
                    .and_then(|()| writer.flush())
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::BrokenPipe => CopyError::NoReader,
                        _ => CopyError::io("standard output", error),
                    })?;
                Meter::add(&meter.bytes, count);
                if content.last {
                    break;
                }
            }
            _ => return Err(CopyError::unsound("something came instead of content")),
        }
    }
    Meter::add(&meter.files, 1);
    match ends.hear()? {
        Said::End(_) => ends.say(Reply::Done(Done::default())),
        _ => Err(CopyError::unsound("something came after the only file")),
    }
}
