//! The file system that shows files while they come: one folder of read-only files. What the page server's two sides share.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, Instant, SystemTime},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};

use super::{
    pages::{Pages, Stage, Turn},
    wire::{Coming, ToAgent},
};

/// The first number of a file. The folder's is 1; numbers are never used again.
const FIRST: u64 = 2;
/// How long the kernel may take a file's name for known: it asks each time. A name comes again when what was removed here is fetched anew, and
/// leads to another file then.
const NAME_TTL: Duration = Duration::ZERO;
/// The same for its size and its readers, which stay.
const ATTRIBUTES_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a file that has ended is shown yet: who was led here may be about to open it.
const LINGERS: Duration = Duration::from_secs(10);

/// A file that is shown.
#[derive(Debug)]
struct Shown {
    name: String,
    part: Arc<File>,
    attributes: FileAttr,
    pages: Pages<ReplyData>,
    opens: u64,
    ended: Option<Instant>,
}

/// All of them, and who is told what is wanted.
#[derive(Debug, Default)]
pub struct Files {
    shown: BTreeMap<u64, Shown>,
    last: u64,
    agent: Option<Sender<ToAgent>>,
    closed: bool,
}

/// What the kernel's side and the agent's share.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Files>>);

impl Shared {
    /// The files, for one at a time.
    pub fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    /// Shows one more file, of which nothing is here.
    pub fn show(&mut self, name: String, part: File, size: u64, group: Option<u32>) {
        let ino = self.last.max(FIRST - 1) + 1;
        self.last = ino;
        let shown = Shown {
            name,
            part: Arc::new(part),
            attributes: attributes(ino, FileType::RegularFile, size, group),
            pages: Pages::none(size),
            opens: 0,
            ended: None,
        };
        self.shown.insert(ino, shown);
    }

    /// The newest of a name.
    fn named(&mut self, name: &str) -> Option<&mut Shown> {
        let mut shown = self.shown.values_mut().rev();
        shown.find(|shown| shown.name == name)
    }

    /// Bytes of a file have come.
    pub fn came(&mut self, name: &str, bytes: Range<u64>) {
        if let Some(shown) = self.named(name) {
            let turns = shown.pages.came(bytes);
            answer(&shown.part, turns);
        }
    }

    /// A file is whole, or given up.
    pub fn end(&mut self, name: &str, stage: Stage) {
        if let Some(shown) = self.named(name) {
            shown.ended = Some(Instant::now());
            let turns = shown.pages.end(stage);
            answer(&shown.part, turns);
        }
    }

    /// Another agent is told from now on; it hears first what has not come. Not any more once they are closed.
    pub fn tell(&mut self, agent: Sender<ToAgent>) -> bool {
        if self.closed {
            return false;
        }
        self.agent = Some(agent);
        let pairs = |ranges: Vec<Range<u64>>| {
            let pairs = ranges.into_iter();
            pairs.map(|range| (range.start, range.end)).collect()
        };
        let coming = self.shown.values();
        let coming = coming.filter(|shown| shown.pages.stage() == Stage::Coming);
        let files = coming
            .map(|shown| Coming {
                file: shown.name.clone(),
                size: shown.attributes.size,
                lacking: pairs(shown.pages.lacking()),
                wanted: pairs(shown.pages.wanted()),
            })
            .collect();
        self.say(ToAgent::Shows { files });
        true
    }

    /// No agent is told from now on: the server ends.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The agent is gone.
    pub fn leave(&mut self) {
        self.agent = None;
    }

    /// Says something to the agent, if one is there. The next one hears what is waited for when it comes.
    pub fn say(&mut self, message: ToAgent) {
        if let Some(agent) = &self.agent
            && agent.send(message).is_err()
        {
            self.agent = None;
        }
    }

    /// Forgets what has ended and is not used any more. Whether there is nothing left to do: without an agent nobody begins to use what
    /// comes, and nothing of it does.
    pub fn tidy(&mut self) -> bool {
        let is_over = |shown: &Shown| {
            shown.opens == 0 && shown.ended.is_some_and(|at| at.elapsed() > LINGERS)
        };
        self.shown.retain(|_, shown| !is_over(shown));
        self.agent.is_none() && self.shown.values().all(|shown| shown.opens == 0)
    }
}

/// Answers those whose turn has come.
fn answer(part: &File, turns: Vec<Turn<ReplyData>>) {
    for turn in turns {
        match turn {
            Turn::Read(bytes, reply) => read(part, bytes, reply),
            Turn::Fail(reply) => reply.error(Errno::EIO),
            // Nobody to answer.
            Turn::Wait(_) => {}
        }
    }
}

fn read(part: &File, bytes: Range<u64>, reply: ReplyData) {
    let mut buffer = vec![0; (bytes.end - bytes.start) as usize];
    match part.read_exact_at(&mut buffer, bytes.start) {
        Ok(()) => reply.data(&buffer),
        Err(error) => {
            eprintln!("a part cannot be read: {error}");
            reply.error(Errno::EIO);
        }
    }
}

fn attributes(ino: u64, kind: FileType, size: u64, group: Option<u32>) -> FileAttr {
    let then = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: then,
        mtime: then,
        ctime: then,
        crtime: then,
        kind,
        perm: match (kind, group) {
            (FileType::Directory, _) => 0o711,
            (_, Some(_)) => 0o440,
            (_, None) => 0o400,
        },
        nlink: 1,
        uid: 0,
        gid: group.unwrap_or(0),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The kernel's side.
#[derive(Debug)]
pub struct Folder(pub Shared);

impl Filesystem for Folder {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut files = self.0.files();
        let named = name.to_str().filter(|_| parent == INodeNo::ROOT);
        match named.and_then(|name| files.named(name)) {
            Some(shown) => {
                reply.entry_with_ttls(&ATTRIBUTES_TTL, &NAME_TTL, &shown.attributes, Generation(0))
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino == INodeNo::ROOT {
            let folder = attributes(ino.0, FileType::Directory, 0, None);
            return reply.attr(&ATTRIBUTES_TTL, &folder);
        }
        match self.0.files().shown.get(&ino.0) {
            Some(shown) => reply.attr(&ATTRIBUTES_TTL, &shown.attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.files().shown.get_mut(&ino.0) {
            Some(shown) => {
                shown.opens += 1;
                // What one process has read is there for all that come after it.
                reply.opened(FileHandle(ino.0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut files = self.0.files();
        let Some(shown) = files.shown.get_mut(&ino.0) else {
            return reply.error(Errno::ENOENT);
        };
        let part = Arc::clone(&shown.part);
        match shown.pages.read(offset..offset + u64::from(size), reply) {
            Turn::Wait(lacking) => {
                let file = shown.name.clone();
                for range in lacking {
                    files.say(ToAgent::Wanted {
                        file: file.clone(),
                        from: range.start,
                        to: range.end,
                    });
                }
            }
            turn => {
                drop(files);
                answer(&part, vec![turn]);
            }
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(shown) = self.0.files().shown.get_mut(&ino.0) {
            shown.opens -= 1;
        }
        reply.ok();
    }
}

/// Detaches whatever is mounted at the folder: of a server that was ended, the mount is left.
pub fn detach(folder: &std::path::Path) -> io::Result<()> {
    use rustix::{
        io::Errno,
        mount::{UnmountFlags, unmount},
    };
    loop {
        match unmount(folder, UnmountFlags::DETACH) {
            Ok(()) => {}
            // Nothing is mounted there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
