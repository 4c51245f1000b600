//! A guest's serial console: always drained (a guest whose console is full stands still, and a fork of one that was never
//! goes on), kept within bounds, and watched for the line that says that the guest is up.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::{Mode, OFlags, openat, renameat};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch},
    task::JoinHandle,
    time::timeout,
};

/// How much of a console is kept: up to this, and as much again in the file of before.
const KEPT_BYTES: u64 = 1 << 20;

/// Chunks that a slow reader may be behind; then it misses some and is told so.
const BEHIND: usize = 256;

/// How long the end of a console may take after its process's: what is to be read is there already.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// A console that is being drained. Dropping it ends that.
#[derive(Debug)]
pub struct Console {
    task: JoinHandle<()>,
    ready: watch::Receiver<bool>,
    wire: Wire,
    input: Input,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.task.abort();
        let mut current = self.wire.input();
        // The next process may have its own there already.
        if current
            .as_ref()
            .is_some_and(|input| Arc::ptr_eq(input, &self.input))
        {
            *current = None;
        }
    }
}

/// Where a process's console takes its input.
type Input = Arc<tokio::sync::Mutex<OwnedWriteHalf>>;

/// What leads from a VM's console to those who read and write it, the same through all processes that the VM has.
#[derive(Debug, Clone)]
pub struct Wire {
    output: broadcast::Sender<Vec<u8>>,
    input: Arc<Mutex<Option<Input>>>,
    pen: Arc<Semaphore>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            output: broadcast::Sender::new(BEHIND),
            input: Arc::default(),
            pen: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Wire {
    /// What the guest prints from now on.
    pub fn follow(&self) -> broadcast::Receiver<Vec<u8>> {
        self.output.subscribe()
    }

    /// The right to write, for one at a time; `None` while somebody has it.
    pub fn take_pen(&self) -> Option<Pen> {
        let permit = Arc::clone(&self.pen).try_acquire_owned().ok()?;
        Some(Pen {
            wire: self.clone(),
            _permit: permit,
        })
    }

    fn input(&self) -> std::sync::MutexGuard<'_, Option<Input>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to write to a console, until it is dropped.
#[derive(Debug)]
pub struct Pen {
    wire: Wire,
    _permit: OwnedSemaphorePermit,
}

impl Pen {
    /// Has the guest read these bytes. Waits while it does not read; cut short, a part of them may have been taken. Fails with
    /// `NotConnected` while the VM has no process.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let input = self.wire.input().clone();
        let input = input.ok_or(io::ErrorKind::NotConnected)?;
        let mut input = input.lock().await;
        input.write_all(bytes).await
    }
}

impl Console {
    /// Connects to a console and drains it into `log`. Every chunk also goes to `wire`, which takes its input from now on.
    /// `ready_line` is the line to wait for; without one the guest counts as ready at once.
    pub async fn open(
        socket: &Path,
        log: &Path,
        ready_line: Option<&str>,
        wire: Wire,
    ) -> io::Result<Self> {
        let (stream, input) = UnixStream::connect(socket).await?.into_split();
        let log = Log::open(log)?;
        let watcher = ready_line.map(LineWatcher::new);
        let (sender, ready) = watch::channel(watcher.is_none());
        let output = wire.output.clone();
        let task = tokio::spawn(drain(stream, log, watcher, sender, output));
        let input = Arc::new(tokio::sync::Mutex::new(input));
        *wire.input() = Some(Arc::clone(&input));
        Ok(Self {
            task,
            ready,
            wire,
            input,
        })
    }

    /// Becomes true when the guest printed its ready line.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// What the guest prints from now on.
    pub fn follow(&self) -> broadcast::Receiver<Vec<u8>> {
        self.wire.follow()
    }

    /// Returns when all is kept that a process which has ended wrote.
    pub async fn drain(&mut self) {
        if !self.task.is_finished() && timeout(DRAIN_PATIENCE, &mut self.task).await.is_err() {
            tracing::debug!(
                "a console did not end with its process; what it printed last may be missing"
            );
        }
    }
}

async fn drain(
    mut stream: OwnedReadHalf,
    mut log: Log,
    mut watcher: Option<LineWatcher>,
    ready: watch::Sender<bool>,
    output: broadcast::Sender<Vec<u8>>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match stream.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, "a console's connection ended");
                return;
            }
        };
        let bytes = &buffer[..count];
        if let Err(error) = log.write(bytes) {
            // The guest must not stand still because its log cannot be written.
            tracing::warn!(%error, "a console's output could not be kept");
        }
        if watcher.as_mut().is_some_and(|watcher| watcher.sees(bytes)) {
            ready.send_replace(true);
            watcher = None;
        }
        // Nobody may be following.
        drop(output.send(bytes.to_vec()));
    }
}

/// A log of two files, the older of which goes when the newer is full. It stays in its folder, whatever that is called by then:
/// a fork that was ready before it was anybody's has another name than its folder began with.
#[derive(Debug)]
struct Log {
    folder: File,
    name: OsString,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Self::open_in(File::open(folder)?, name.to_owned())
    }

    fn open_in(folder: File, name: OsString) -> io::Result<Self> {
        let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, &name, flags, Mode::from_raw_mode(0o666))?);
        Ok(Self {
            bytes: file.metadata()?.len(),
            folder,
            name,
            file,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= KEPT_BYTES {
            let old = older(Path::new(&self.name));
            renameat(&self.folder, &self.name, &self.folder, &old)?;
            *self = Self::open_in(self.folder.try_clone()?, self.name.clone())?;
        }
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// All that is kept of a console, oldest first.
pub fn read_log(path: &Path) -> io::Result<Vec<u8>> {
    let read = |path: &Path| match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    Ok([read(&older(path))?, read(path)?].concat())
}

/// How far somebody has read a console's log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark {
    inode: u64,
    bytes: u64,
}

/// What is kept of a console since `mark`, oldest first: no more of it than one of the log's files holds. The mark moves on.
pub fn read_log_since(path: &Path, mark: &mut Mark) -> io::Result<Vec<u8>> {
    let open = |path: &Path| match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    };
    let mut printed = Vec::new();
    let mut last = *mark;
    for file in [open(&older(path))?, open(path)?].into_iter().flatten() {
        let mut file = file;
        let inode = file.metadata()?.ino();
        if inode == mark.inode {
            // What lies before was read.
            printed.clear();
            file.seek(SeekFrom::Start(mark.bytes))?;
        }
        file.read_to_end(&mut printed)?;
        last = Mark {
            inode,
            bytes: file.stream_position()?,
        };
    }
    *mark = last;
    printed.drain(..printed.len().saturating_sub(KEPT_BYTES as usize));
    Ok(printed)
}

/// Keeps what a console printed before its log was begun, so that it comes first when that is read.
pub fn keep_before(path: &Path, printed: &[u8]) -> io::Result<()> {
    let kept = printed.len().saturating_sub(KEPT_BYTES as usize);
    fs::write(older(path), &printed[kept..])
}

/// Looks for a text in output that comes in pieces.
#[derive(Debug)]
struct LineWatcher {
    wanted: Vec<u8>,
    tail: Vec<u8>,
}

impl LineWatcher {
    fn new(wanted: &str) -> Self {
        Self {
            wanted: wanted.as_bytes().to_vec(),
            tail: Vec::new(),
        }
    }

    fn sees(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let found = self
            .tail
            .windows(self.wanted.len().max(1))
            .any(|window| window == self.wanted);
        let keep = self.wanted.len().saturating_sub(1).min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_seen_however_it_is_cut() {
        let text = b"boot\r\nforkypig-guest ready\r\n# ";
        for cut in 0..text.len() {
            let mut watcher = LineWatcher::new("forkypig-guest ready");
            let first = watcher.sees(&text[..cut]);
            assert!(first | watcher.sees(&text[cut..]), "cut at {cut}");
        }
        assert!(!LineWatcher::new("ready").sees(b"read\ny"));
    }

    #[test]
    fn a_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Log::open(&path).unwrap();
        for i in 0..400u32 {
            log.write(&[i as u8; 8192]).unwrap();
        }
        let kept = read_log(&path).unwrap();
        assert!(
            kept.len() as u64 >= KEPT_BYTES && kept.len() as u64 <= 2 * KEPT_BYTES + 8192,
            "{}",
            kept.len()
        );
        assert_eq!(kept.last(), Some(&(399u32 as u8)));
    }

    #[test]
    fn a_log_is_read_on_and_handed_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("console.log"), tempfile::tempdir().unwrap());
        let mut mark = Mark::default();
        assert!(read_log_since(&path, &mut mark).unwrap().is_empty());
        let mut log = Log::open(&path).unwrap();
        let mut handed = Vec::new();
        let mut written = Vec::new();
        for i in 0..300u32 {
            // A file is full after 128 of them, and a second time.
            let chunk = [i as u8; 8192];
            log.write(&chunk).unwrap();
            written.extend(chunk);
            if [0, 1, 100, 127, 128, 129, 200, 299].contains(&i) {
                handed.extend(read_log_since(&path, &mut mark).unwrap());
                assert!(read_log_since(&path, &mut mark).unwrap().is_empty(), "{i}");
                assert!(handed == written, "{i}");
            }
        }
        let there = elsewhere.path().join("console.log");
        Log::open(&there).unwrap().write(b"and on").unwrap();
        keep_before(&there, &handed).unwrap();
        let kept = read_log(&there).unwrap();
        assert_eq!(kept.len(), KEPT_BYTES as usize + 6);
        assert!(kept.ends_with(&[&[299u32 as u8; 8192][..], b"and on"].concat()));
    }

    #[test]
    fn a_log_goes_with_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("waiting"), dir.path().join("vm"));
        fs::create_dir(&first).unwrap();
        let mut log = Log::open(&first.join("console.log")).unwrap();
        log.write(&vec![b'a'; KEPT_BYTES as usize]).unwrap();
        fs::rename(&first, &second).unwrap();
        log.write(b"b").unwrap();
        let kept = read_log(&second.join("console.log")).unwrap();
        assert_eq!(kept.len() as u64, KEPT_BYTES + 1);
        assert_eq!(kept.last(), Some(&b'b'));
    }
}
