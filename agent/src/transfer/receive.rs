//! Fetching a file: what of it is not here, from whoever has it, into a part beside its place that gets its name when it is whole.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::peer::{DescribeFileRequest, DescribeFileResponse};
use qemu::{failpoint, layout};
use raft::state::NodeId;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Status, Streaming};

use super::{
    difference::Difference,
    file::{Expected, FileName},
    pack::{self, BadPart},
    part::Part,
    queue::Queue,
};
use crate::{
    arriving::Served, blocking::blocking, errors::chain, metrics, node::Node, peers::PeerError,
};

/// How long a node may say nothing in the middle of a file. That its connection is dead shows sooner, by HTTP/2's pings.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// How long a file is tried to be had from somebody without anything coming.
const PATIENCE: Duration = Duration::from_secs(30);
/// From this size on, bytes, a file is used before it is whole: less is here sooner than it could be shown.
const EARLY: u64 = 1 << 20;
/// After every node that has it has failed.
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// A file that is wanted here.
#[derive(Debug)]
pub struct Wanted {
    /// Which.
    pub file: FileName,
    /// What it must be when it is whole.
    pub expected: Expected,
    /// Who may read it.
    pub readers: Readers,
    /// A file that is here and may be mostly the same.
    pub similar: Option<PathBuf>,
    /// Whether everything else waits for it.
    pub urgent: bool,
    /// Who uses it before it is whole, if anybody does, and is told when that can begin.
    pub early: Option<Arc<Usable>>,
}

/// Which files can be used, whether or not they are whole.
#[derive(Debug, Default)]
pub struct Usable(watch::Sender<BTreeSet<FileName>>);

impl Usable {
    /// One more.
    pub fn add(&self, file: FileName) {
        self.0.send_if_modified(|files| files.insert(file));
    }

    /// Waits until so many are.
    pub async fn until(&self, count: usize) {
        // The sender is ours: it is there.
        let mut files = self.0.subscribe();
        let _there = files.wait_for(|files| files.len() >= count).await;
    }
}

/// Who may read a file besides the agent.
#[derive(Debug, Clone, Copy)]
pub enum Readers {
    /// QEMU processes of a lineage, by its group; the agent only where users are not changed.
    Lineage(Option<u32>),
    /// All QEMU processes.
    All,
}

/// How far the fetching of something has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that have come, as they travel.
    pub moved: AtomicU64,
    /// Bytes that are there of what is fetched, holes included.
    pub done: AtomicU64,
    /// Bytes that there will be.
    pub total: AtomicU64,
}

/// A file cannot be had from a node.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The node cannot be called.
    #[error("it cannot be reached")]
    Unreachable(#[from] PeerError),
    /// The node did not send it.
    #[error("it did not send it: {}", .0.message())]
    Peer(#[source] Box<Status>),
    /// The node ended in the middle of it.
    #[error("its answer was cut off")]
    Cut,
    /// The node says nothing any more.
    #[error("it sent nothing for {} s", SILENCE.as_secs())]
    Silent,
    /// What came is not what it should be.
    #[error(transparent)]
    Bad(#[from] BadPart),
    /// It cannot be written here, or what is here cannot be read.
    #[error("it cannot be written here")]
    Here(#[from] io::Error),
}

impl From<Status> for FetchError {
    fn from(status: Status) -> Self {
        Self::Peer(Box::new(status))
    }
}

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Unfetched {
    /// From no node that has it.
    #[error("{file} cannot be had: {problem}")]
    NoSource {
        /// Its path below the data directory.
        file: String,
        /// From each node, why.
        problem: String,
    },
    /// What came is not what was written.
    #[error(
        "{file} came from other nodes as something else than it should be: it is damaged where it is"
    )]
    Damaged {
        /// Its path below the data directory.
        file: String,
    },
    /// It cannot be kept here.
    #[error("{file} cannot be written")]
    Here {
        /// Its path below the data directory.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a node tells of a file's pages, and the file here that may be mostly the same.
struct Told {
    runs: Streaming<DescribeFileResponse>,
    own: Arc<File>,
}

/// One file that is being fetched, and who may be asked for it.
pub(super) struct Fetch<'a, S> {
    pub(super) node: &'a Arc<Node>,
    pub(super) wanted: &'a Wanted,
    /// The nodes that have it now, the best first.
    pub(super) sources: S,
    pub(super) progress: &'a Progress,
    /// When it began.
    pub(super) begun: Instant,
    /// When something came last.
    heard: Mutex<Instant>,
}

/// Fetches a file that is not here. It is whole when this returns, and not yet on the disk.
pub async fn fetch<S: Fn() -> Vec<NodeId>>(
    node: &Arc<Node>,
    wanted: &Wanted,
    sources: S,
    progress: &Progress,
) -> Result<(), Unfetched> {
    let fetch = Fetch {
        node,
        wanted,
        sources,
        progress,
        begun: Instant::now(),
        heard: Mutex::new(Instant::now()),
    };
    fetch.run().await
}

impl<S: Fn() -> Vec<NodeId>> Fetch<'_, S> {
    fn here(&self) -> impl Fn(io::Error) -> Unfetched {
        let file = self.wanted.file.relative();
        move |source| Unfetched::Here {
            file: file.clone(),
            source,
        }
    }

    async fn run(&self) -> Result<(), Unfetched> {
        let layout = &self.node.vms.engine().layout;
        let path = self.wanted.file.path(layout);
        let (mut part, told) = self.begin(self.wanted.file.part(layout)).await?;
        failpoint::reached("transfer.described");
        let mut missing = self.missing(&part, told).await?;
        // What is wanted at once is fetched beside the rest, and may not have come when that has.
        while !missing.is_empty() {
            let queue = Mutex::new(Queue::of(&missing));
            missing = match &part.served {
                None => {
                    self.all_parts(&part, &queue).await?;
                    vec![]
                }
                Some(served) => {
                    tokio::select! {
                        all = self.all_parts(&part, &queue) => all?,
                        () = self.wanted_parts(&part, served, &queue) => {}
                    }
                    served.lacking()
                }
            };
        }
        failpoint::reached("transfer.parts-here");
        let (file, wanted) = (
            Arc::clone(&part.file),
            (self.wanted.file, self.wanted.expected),
        );
        let whole = blocking(move || wanted.0.is_whole(&file, wanted.1)).await;
        if !whole.map_err(self.here())? {
            let file = self.wanted.file.relative();
            return Err(Unfetched::Damaged { file });
        }
        let kept = match self.wanted.readers {
            Readers::Lineage(group) => layout::share(&part.path, group),
            Readers::All => {
                // Nobody compares an image after a restart of the host: its name says that it is whole.
                let file = Arc::clone(&part.file);
                let synced = blocking(move || file.sync_data()).await;
                synced.and_then(|()| layout.share_image(&part.path))
            }
        };
        kept.and_then(|()| fs::rename(&part.path, path))
            .map_err(self.here())?;
        part.kept = true;
        if let Some(served) = part.served.take() {
            served.whole().await;
        }
        failpoint::reached("transfer.file-whole");
        Ok(())
    }

    /// Makes the part: the one that an earlier agent left to those who use it, or a new one, which is shown if somebody is to use it.
    async fn begin(&self, path: PathBuf) -> Result<(Part, Option<Told>), Unfetched> {
        let arriving = &self.node.transfers.arriving;
        let name = self.wanted.file.shown();
        if let Some(served) = arriving.resume(&name).await {
            match Part::open(path.clone(), false) {
                Ok(mut part) => {
                    self.progress
                        .total
                        .fetch_add(served.size(), Ordering::Relaxed);
                    part.serve(served);
                    self.usable();
                    return Ok((part, None));
                }
                // An agent was lost before anybody was led to it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    arriving.give_up(&name).await;
                }
                Err(error) => return Err(self.here()(error)),
            }
        }
        let (size, told) = self.described().await?;
        let mut part = Part::begin(path, size).map_err(self.here())?;
        self.progress.total.fetch_add(size, Ordering::Relaxed);
        if self.wanted.early.is_some() && size >= EARLY {
            let file = self.wanted.file;
            let group = match self.wanted.readers {
                Readers::Lineage(group) => group,
                Readers::All => self.node.vms.engine().layout.readers(),
            };
            let names = (file.relative_part(), file.relative());
            let shown = arriving.show(name, (&names.0, &names.1), size, group).await;
            match shown {
                Ok(served) => {
                    part.serve(served);
                    // Whoever it is shown to is about to read it.
                    self.node.transfers.quiet.end();
                    failpoint::reached("transfer.shown");
                    self.usable();
                }
                // Then it is used when it is whole; `doctor` says so.
                Err(problem) => tracing::warn!(
                    file = file.relative(),
                    problem,
                    "a file cannot be used before it is whole"
                ),
            }
        }
        Ok((part, told))
    }

    /// The file can be used.
    fn usable(&self) {
        if let Some(usable) = &self.wanted.early {
            usable.add(self.wanted.file);
        }
    }

    pub(super) fn note_heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits before all nodes that have it are asked again; an error when nothing has come for too long. What is used already is waited for
    /// as long as somebody does: whoever needs more of it stands still.
    pub(super) async fn again(
        &self,
        problems: &[(NodeId, FetchError)],
        served: Option<&Served>,
    ) -> Result<(), Unfetched> {
        let said = problems.iter().map(|(source, error)| {
            let name = crate::convert::node_name(&self.node.state(), *source);
            format!("node {name}: {}", chain(error))
        });
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |(_, error): &(NodeId, FetchError)| matches!(error, FetchError::Here(_));
        if heard.elapsed() > PATIENCE || problems.iter().any(is_ours) {
            let said: Vec<String> = said.collect();
            if served.is_some() {
                tracing::warn!(
                    file = self.wanted.file.relative(),
                    ?said,
                    "nothing comes of a file that is used already; who needs more of it stands still"
                );
                self.note_heard();
                sleep(PAUSE).await;
                return Ok(());
            }
            return Err(Unfetched::NoSource {
                file: self.wanted.file.relative(),
                problem: match said.is_empty() {
                    true => "no node that is there has it".to_owned(),
                    false => said.join("; "),
                },
            });
        }
        let said: Vec<String> = said.collect();
        tracing::debug!(
            file = self.wanted.file.relative(),
            ?said,
            "a file is tried to be had again"
        );
        sleep(PAUSE).await;
        Ok(())
    }

    /// Has a node tell of the file: its length, and where there is a similar one here, its pages.
    async fn described(&self) -> Result<(u64, Option<Told>), Unfetched> {
        let mut problems = Vec::new();
        loop {
            for source in (self.sources)() {
                match self.describe(source).await {
                    Ok(described) => return Ok(described),
                    Err(error) => problems.push((source, error)),
                }
            }
            self.again(&std::mem::take(&mut problems), None).await?;
        }
    }

    async fn describe(&self, source: NodeId) -> Result<(u64, Option<Told>), FetchError> {
        let similar = match self.wanted.similar.as_ref().map(File::open) {
            // It has been removed meanwhile: then all of it comes.
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            other => other.transpose()?,
        };
        let request = DescribeFileRequest {
            file: Some(self.wanted.file.message()),
            digests: similar.is_some(),
        };
        let mut client = self.node.peers.file_client(source)?;
        let answer = timeout(SILENCE, client.describe_file(request)).await;
        let mut runs = answer.map_err(|_| FetchError::Silent)??.into_inner();
        let DescribeFileResponse { size, .. } = next(&mut runs).await?;
        let told = similar.map(|own| Told {
            runs,
            own: Arc::new(own),
        });
        Ok((size, told))
    }

    /// What of it is to be fetched, once what is the same in a similar file here is in the part.
    async fn missing(
        &self,
        part: &Part,
        mut told: Option<Told>,
    ) -> Result<Vec<Range<u64>>, Unfetched> {
        let size = part.file.metadata().map_err(self.here())?.len();
        loop {
            let Some(comparing) = told else {
                let missing = match &part.served {
                    Some(served) => served.lacking(),
                    None => std::iter::once(0..size)
                        .filter(|all| !all.is_empty())
                        .collect(),
                };
                let to_come: u64 = missing.iter().map(|range| range.end - range.start).sum();
                self.progress
                    .done
                    .fetch_add(size - to_come, Ordering::Relaxed);
                return Ok(missing);
            };
            match self.compare(part, size, comparing).await {
                Ok(missing) => return Ok(missing),
                Err(error) => tracing::debug!(
                    file = self.wanted.file.relative(),
                    error = %chain(&error),
                    "a node broke off telling of a file's pages"
                ),
            }
            (_, told) = self.described().await?;
        }
    }

    async fn compare(
        &self,
        part: &Part,
        size: u64,
        told: Told,
    ) -> Result<Vec<Range<u64>>, FetchError> {
        let Told { mut runs, own } = told;
        let mut difference = Difference::default();
        loop {
            let run = next(&mut runs).await?;
            self.note_heard();
            self.note_moved(prost::Message::encoded_len(&run));
            if run.last {
                break;
            }
            let own = Arc::clone(&own);
            difference = blocking(move || {
                difference.add(&run, size, &own)?;
                Ok(difference)
            })
            .await?;
        }
        let (file, Difference { missing, same }) = (Arc::clone(&part.file), difference);
        let ranges = same.clone();
        let copied = blocking(move || copy(&own, &file, &ranges)).await?;
        for range in same {
            part.came(range).await;
        }
        let to_come: u64 = missing.iter().map(|range| range.end - range.start).sum();
        tracing::debug!(
            file = self.wanted.file.relative(),
            copied,
            to_come,
            "what is here of a file was taken from a similar one"
        );
        self.progress
            .done
            .fetch_add(size - to_come, Ordering::Relaxed);
        Ok(missing)
    }

    pub(super) fn note_moved(&self, bytes: usize) {
        metrics::fetched(bytes);
        self.progress
            .moved
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The next message of an answer that has not come to its end.
pub(super) async fn next<T>(stream: &mut Streaming<T>) -> Result<T, FetchError> {
    let message = timeout(SILENCE, stream.message()).await;
    let message = message.map_err(|_| FetchError::Silent)??;
    message.ok_or(FetchError::Cut)
}

/// Copies ranges from one file to another.
fn copy(from: &File, to: &File, ranges: &[Range<u64>]) -> io::Result<u64> {
    let (mut buffer, mut copied) = (vec![0; pack::PART], 0);
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(pack::PART as u64) as usize;
            let bytes = &mut buffer[..length];
            from.read_exact_at(bytes, at)?;
            to.write_all_at(bytes, at)?;
            at += length as u64;
        }
        copied += range.end - range.start;
    }
    Ok(copied)
}
