//! Copying files between a guest and its host: the two programs that speak with each other, the one that has the files ([`send`]) and the
//! one that wants them ([`receive`]). Called by `fpguest agent` and by `fpagent cp`, each of which is either, by direction.
//!
//! The sender says what there is, a [`Piece`] for each file, folder and link: folders before what is in them, one subtree after the
//! other. The receiver answers each file with what it wants of it ([`Wanted`]): nothing where the same is there, all but its beginning where it has
//! that from an attempt before. Then comes the content of those that are wanted, in their order. The sender is some pieces ahead
//! ([`AHEAD`]), so that many small files do not each wait for an answer. So neither side ever lists what it has; what each keeps is
//! bounded by what is ahead; a tree goes on where it was like a file does, and even within its largest file.
//!
//! All of this is plain blocking code on two channels ([`Ends`]), for a thread of its own. [`wire`] says it on a stream of the
//! guest's channel, `fpagent` on a gRPC call.

pub mod check;
mod part;
mod read;
mod walk;
pub mod wire;
mod write;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use tokio::sync::mpsc;

pub use crate::channel::message::{
    Done, Have, Piece, PieceKind, TreeEnd, Wanted, from_receiver::What as Reply,
};
use crate::channel::mux::Broken;

pub use self::{
    part::PART_ENDING,
    read::{From, send},
    write::{Limits, To, receive},
};

/// So many pieces may follow on a file of which it is not yet known what is wanted, or that is not yet whole.
pub const AHEAD: usize = 128;
/// The most content that is said at once, bytes.
pub const CHUNK: usize = 64 << 10;
/// What is said waits here for whoever moves it: so many things.
const QUEUE: usize = 4;

/// What a sender says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// There is this.
    Piece(Piece),
    /// Some of the content of the first file that is wanted and not yet whole.
    Content(Content),
    /// That was all.
    End(TreeEnd),
}

/// Some content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Where in the file it begins.
    pub offset: u64,
    /// It.
    pub bytes: Bytes,
    /// Whether the file ends after it.
    pub last: bool,
    /// The file was deleted since it was offered: it is to be forgotten.
    pub gone: bool,
}

/// One end of a conversation, for a thread that may block.
#[derive(Debug)]
pub struct Ends<Out, In> {
    to: mpsc::Sender<Out>,
    from: mpsc::Receiver<Result<In, Broken>>,
}

/// The other end: for whoever moves what is said.
#[derive(Debug)]
pub struct Mover<Out, In> {
    /// What the thread says; ends with the thread.
    pub said: mpsc::Receiver<Out>,
    /// What it hears. Once it has heard that the conversation broke it ends.
    pub heard: mpsc::Sender<Result<In, Broken>>,
}

/// The ends of a sender's conversation. It offers [`AHEAD`] files before it hears of the first: all that is said of them has room, or both
/// sides would wait for each other.
pub fn sender() -> (Ends<Said, Reply>, Mover<Said, Reply>) {
    ends(AHEAD + 1)
}

/// The ends of a receiver's conversation.
pub fn receiver() -> (Ends<Reply, Said>, Mover<Reply, Said>) {
    ends(QUEUE)
}

fn ends<Out, In>(unheard: usize) -> (Ends<Out, In>, Mover<Out, In>) {
    let (to, said) = mpsc::channel(QUEUE);
    let (heard, from) = mpsc::channel(unheard);
    (Ends { to, from }, Mover { said, heard })
}

impl<Out, In> Ends<Out, In> {
    fn say(&mut self, what: Out) -> Result<(), CopyError> {
        if self.to.blocking_send(what).is_ok() {
            return Ok(());
        }
        // Why is the last thing that was heard.
        while let Ok(heard) = self.from.try_recv() {
            if let Err(broken) = heard {
                return Err(broken.into());
            }
        }
        Err(Broken::Cancelled.into())
    }

    fn hear(&mut self) -> Result<In, CopyError> {
        let heard = self.from.blocking_recv();
        Ok(heard.unwrap_or(Err(Broken::Cancelled))?)
    }
}

/// Files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The conversation broke, or the other side failed.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// Something about a file on this side.
    #[error("{path}: {problem}")]
    At {
        /// The file.
        path: String,
        /// What.
        problem: String,
    },
    /// Nobody reads what is written any more.
    #[error("nobody reads it any more")]
    NoReader,
    /// The other side does what it must not.
    #[error("the other side does not keep to the rules: {0}")]
    Unsound(String),
}

impl CopyError {
    fn at(path: impl AsRef<[u8]>, problem: impl ToString) -> Self {
        Self::At {
            path: String::from_utf8_lossy(path.as_ref()).into_owned(),
            problem: problem.to_string(),
        }
    }

    fn io(path: impl AsRef<[u8]>, error: impl Into<io::Error>) -> Self {
        let error: io::Error = error.into();
        let problem = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file or folder".to_owned(),
            io::ErrorKind::StorageFull => "no space is left on its disk".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        Self::at(path, problem)
    }

    fn unsound(what: impl ToString) -> Self {
        Self::Unsound(what.to_string())
    }

    /// Whether nothing was wrong but that it came to an end: what there is of a file is kept, to go on from. In a fork it is
    /// not: its parent goes on with it.
    pub fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::Broken(Broken::Cancelled | Broken::Closed | Broken::Lost(_))
        )
    }
}

/// How far it is, for whoever shows that. Counted by either side, each for itself.
#[derive(Debug, Default)]
pub struct Meter {
    /// Files that went over, whole.
    pub files: AtomicU64,
    /// Bytes of content that went over.
    pub bytes: AtomicU64,
    /// Files that were there already.
    pub same: AtomicU64,
    /// Bytes of the others that were there already.
    pub spared: AtomicU64,
    /// Bytes of all files that are known of so far.
    pub total: AtomicU64,
    /// Things that were left out: devices, sockets, pipes.
    pub left_out: AtomicU64,
    /// Links that were left out since they point out of the tree.
    pub links_left_out: AtomicU64,
    /// Files that were deleted while this went on.
    pub gone: AtomicU64,
}

impl Meter {
    fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Relaxed);
    }
}

/// A path below a tree's root, for people.
fn shown(root: &[u8], path: &[Vec<u8>]) -> Vec<u8> {
    let mut all = root.to_vec();
    for part in path {
        if all.last() != Some(&b'/') {
            all.push(b'/');
        }
        all.extend_from_slice(part);
    }
    all
}

#[cfg(test)]
mod tests;
