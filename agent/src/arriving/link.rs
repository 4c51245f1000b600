//! The agent's side: starts the page server when it is needed, finds one that an earlier agent left, tells it what has come, and hears what is
//! wanted.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use qemu::machine::Engine;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    detach,
    pages::Here,
    shown, target,
    wire::{Coming, ToAgent, ToServer},
};
use crate::beside::{Beside, is_absence, line};

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before it is looked for again.
const FIND_PAUSE: Duration = Duration::from_millis(50);
/// Messages on their way to it.
const BEHIND: usize = 1024;

/// The files of this node that are used while they come.
#[derive(Debug)]
pub struct Arriving {
    engine: Arc<Engine>,
    server: Beside,
    link: tokio::sync::Mutex<Option<Link>>,
    files: Arc<Files>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// Files by their name.
#[derive(Debug, Default)]
struct Files(Mutex<BTreeMap<String, Arc<File>>>);

/// A connection to the server.
#[derive(Debug, Clone)]
struct Link {
    to_server: mpsc::Sender<ToServer>,
    /// Cancelled when the connection is gone.
    gone: CancellationToken,
}

/// A file that comes.
#[derive(Debug)]
struct File {
    here: Mutex<Here>,
    wanted: Mutex<VecDeque<Range<u64>>>,
    rung: Notify,
    shown: Mutex<Option<oneshot::Sender<Option<String>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl File {
    fn new(size: u64) -> Self {
        Self {
            here: Mutex::new(Here::none(size)),
            wanted: Mutex::default(),
            rung: Notify::new(),
            shown: Mutex::default(),
        }
    }

    fn want(&self, range: Range<u64>) {
        lock(&self.wanted).push_back(range);
        self.rung.notify_one();
    }
}

impl Files {
    fn get(&self, name: &str) -> Option<Arc<File>> {
        lock(&self.0).get(name).map(Arc::clone)
    }

    /// Takes in what the server says.
    fn hear(&self, message: ToAgent) {
        match message {
            ToAgent::Shows { files } => files.into_iter().for_each(|coming| self.find(coming)),
            ToAgent::Shown { file, problem } => {
                let waits = self.get(&file).and_then(|file| lock(&file.shown).take());
                if let Some(waits) = waits {
                    // Whoever asked may be gone.
                    let _gone = waits.send(problem);
                }
            }
            ToAgent::Wanted { file, from, to } => {
                if let Some(file) = self.get(&file) {
                    file.want(from..to);
                }
            }
        }
    }

    /// One that the server shows already.
    fn find(&self, coming: Coming) {
        let file = File::new(coming.size);
        let mut here = Here::none(coming.size);
        let mut at = 0;
        for (from, to) in coming.lacking {
            here.add(at..from);
            at = to;
        }
        here.add(at..coming.size);
        *lock(&file.here) = here;
        coming
            .wanted
            .into_iter()
            .for_each(|(from, to)| file.want(from..to));
        lock(&self.0).insert(coming.file, Arc::new(file));
    }
}

impl Arriving {
    /// Of a node's files. What runs for them ends with `cancel` and is counted in `tasks`.
    pub fn new(engine: Arc<Engine>, cancel: CancellationToken, tasks: TaskTracker) -> Self {
        let server = Arc::clone(&engine);
        Self {
            engine,
            server: Beside::new("page-server", server, cancel.clone(), tasks.clone()),
            link: tokio::sync::Mutex::default(),
            files: Arc::default(),
            cancel,
            tasks,
        }
    }

    /// Finds the server that an earlier agent left, if there is one. Gives the names of the files that have not come.
    pub async fn find(&self) -> io::Result<Vec<String>> {
        let socket = self.server.socket()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let problem = match UnixStream::connect(socket.path()).await {
                Ok(stream) => match self.talk(stream).await {
                    Ok(link) => {
                        *self.link.lock().await = Some(link);
                        return Ok(lock(&self.files.0).keys().cloned().collect());
                    }
                    // It may be about to end, having nothing to do.
                    Err(problem) => problem,
                },
                Err(error) if is_absence(&error) => {
                    // What one that has ended left mounted keeps everybody who looks at it waiting for nothing.
                    detach(self.engine.layout.root())?;
                    return Ok(Vec::new());
                }
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(problem);
            }
            sleep(FIND_PAUSE).await;
        }
    }

    /// Shows a file of which nothing is here, and leads to it from where it will be. `part` is where it is put together, below the data
    /// directory as `path` is. Only `group` may read it, or nobody but root.
    pub async fn show(
        &self,
        name: String,
        (part, path): (&str, &str),
        size: u64,
        group: Option<u32>,
    ) -> Result<Served, String> {
        let link = self.link().await?;
        let file = Arc::new(File::new(size));
        let (sender, answer) = oneshot::channel();
        *lock(&file.shown) = Some(sender);
        lock(&self.files.0).insert(name.clone(), Arc::clone(&file));
        let served = Served {
            name: name.clone(),
            file,
            files: Arc::clone(&self.files),
            link: link.clone(),
        };
        let show = ToServer::Show {
            file: name.clone(),
            part: part.to_owned(),
            size,
            group,
        };
        served.tell(show).await;
        match timeout(PATIENCE, answer).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(problem))) => return Err(problem),
            _ => {
                return Err(format!(
                    "the page server does not answer{}",
                    self.server.log_tail()
                ));
            }
        }
        let led = self.lead(&name, path);
        led.map_err(|error| format!("{path} cannot be made: {error}"))?;
        Ok(served)
    }

    /// Makes the link that leads to a file that is shown, in the place of one that leads nowhere.
    fn lead(&self, name: &str, path: &str) -> io::Result<()> {
        let path = self.engine.layout.root().join(path);
        let mut new = path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(target(name), &new)?;
        fs::rename(new, path)
    }

    /// One that comes already, to go on with.
    pub async fn resume(&self, name: &str) -> Option<Served> {
        let link = self.link.lock().await.clone()?;
        let file = self.files.get(name)?;
        let is_shown = !link.gone.is_cancelled() && shown(self.engine.layout.root(), name).exists();
        is_shown.then(|| Served {
            name: name.to_owned(),
            file,
            files: Arc::clone(&self.files),
            link,
        })
    }

    /// Has those who wait for the rest of a file get an error: it will not come. Whether it was coming.
    pub async fn give_up(&self, name: &str) -> bool {
        let file = lock(&self.files.0).remove(name);
        let link = self.link.lock().await.clone();
        if let (Some(_), Some(link)) = (&file, link) {
            let file = name.to_owned();
            // One that is gone has nobody who waits.
            let _gone = link.to_server.send(ToServer::GivenUp { file }).await;
        }
        file.is_some()
    }

    /// The connection to the server, which is started if there is none.
    async fn link(&self) -> Result<Link, String> {
        let mut link = self.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| !link.gone.is_cancelled()) {
            return Ok(link.clone());
        }
        let started = self.start().await;
        let new = started.map_err(|error| {
            format!(
                "the page server cannot be started: {error}{}",
                self.server.log_tail()
            )
        })?;
        *link = Some(new.clone());
        Ok(new)
    }

    async fn start(&self) -> io::Result<Link> {
        let data = std::path::absolute(self.engine.layout.root())?;
        self.server
            .start(["--data-dir".into(), data.into_os_string()])?;
        self.talk(UnixStream::connect(self.server.socket()?.path()).await?)
            .await
    }

    /// Listens to the server from now on. Returns when it has said what it shows.
    async fn talk(&self, stream: UnixStream) -> io::Result<Link> {
        let (reader, writer) = stream.into_split();
        let gone = CancellationToken::new();
        let (to_server, messages) = mpsc::channel(BEHIND);
        let mut reader = BufReader::new(reader);
        let first = timeout(PATIENCE, next(&mut reader)).await;
        let first = first.map_err(|_| io::Error::other("it does not answer"))??;
        let first = first.ok_or_else(|| io::Error::other("it has ended"))?;
        self.files.hear(first);
        let (files, ended, cancel) = (
            Arc::clone(&self.files),
            gone.clone().drop_guard(),
            self.cancel.clone(),
        );
        self.tasks.spawn(async move {
            let _ended = ended;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = listen(&files, reader) => {}
            }
        });
        let ended = gone.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = send(messages, writer) => {}
            }
        });
        Ok(Link { to_server, gone })
    }
}

async fn next(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<ToAgent>> {
    let mut line = String::new();
    match reader.read_line(&mut line).await? {
        0 => Ok(None),
        _ => serde_json::from_str(&line)
            .map(Some)
            .map_err(io::Error::from),
    }
}

async fn listen(files: &Files, mut reader: BufReader<OwnedReadHalf>) {
    loop {
        match next(&mut reader).await {
            Ok(Some(message)) => files.hear(message),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the page server cannot be heard");
                return;
            }
        }
    }
}

async fn send(mut messages: mpsc::Receiver<ToServer>, mut writer: OwnedWriteHalf) {
    while let Some(message) = messages.recv().await {
        let said = async { writer.write_all(&line(&message)?).await };
        if let Err(error) = said.await {
            tracing::warn!(%error, "the page server cannot be told anything");
            return;
        }
    }
}

/// A file that comes and is shown meanwhile.
#[derive(Debug)]
pub struct Served {
    name: String,
    file: Arc<File>,
    files: Arc<Files>,
    link: Link,
}

impl Served {
    async fn tell(&self, message: ToServer) {
        // One that is gone has nobody left who reads: their memory went with it.
        let _gone = self.link.to_server.send(message).await;
    }

    /// What is not here, ascending.
    pub fn lacking(&self) -> Vec<Range<u64>> {
        lock(&self.file.here).all_lacking()
    }

    /// Its length, bytes.
    pub fn size(&self) -> u64 {
        lock(&self.file.here).size()
    }

    /// These bytes are in its part now.
    pub async fn came(&self, bytes: Range<u64>) {
        lock(&self.file.here).add(bytes.clone());
        let file = self.name.clone();
        let (from, to) = (bytes.start, bytes.end);
        self.tell(ToServer::Here { file, from, to }).await;
    }

    /// The next bytes that somebody waits for and that are not here.
    pub async fn wanted(&self) -> Range<u64> {
        loop {
            let next = lock(&self.file.wanted).pop_front();
            match next {
                Some(range) if self.lacking_of(range.clone()).is_empty() => {}
                Some(range) => return range,
                None => self.file.rung.notified().await,
            }
        }
    }

    /// What is not here of these bytes, ascending.
    pub fn lacking_of(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        lock(&self.file.here).lacking(bytes)
    }

    /// It is whole, and has its name.
    pub async fn whole(self) {
        lock(&self.files.0).remove(&self.name);
        let file = self.name.clone();
        self.tell(ToServer::Whole { file }).await;
    }
}
