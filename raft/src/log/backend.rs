//! What a storage engine for the log must do, and how it may fail.

use std::{ops::Range, path::PathBuf};

use bytes::Bytes;

/// Single values beside the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Whose log it is.
    Identity,
    /// The last vote.
    Vote,
    /// The last index known to be committed.
    Committed,
    /// The last index that was purged.
    Purged,
}

/// A storage engine: records under consecutive indices, and a few single values. Writers are serialized by the caller;
/// readers come at any time, from any thread. What is written can be read at once, is never reordered, and is on the device
/// after [`LogBackend::sync`].
pub trait LogBackend: Send + Sync + 'static {
    /// Adds records, all or none.
    fn append(&self, records: &[(u64, Bytes)]) -> Result<(), LogError>;

    /// The records there are within a range, in order, until they make `max_bytes`; at least one if there is any.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, LogError>;

    /// Removes the records from an index on, all or none.
    fn truncate(&self, from: u64) -> Result<(), LogError>;

    /// Removes at most `limit` pieces of the records up to an index, included. True when some may be left.
    fn remove_upto(&self, index: u64, limit: usize) -> Result<bool, LogError>;

    /// Sets a value.
    fn put(&self, key: Key, value: &[u8]) -> Result<(), LogError>;

    /// A value that was set.
    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, LogError>;

    /// Hands what was written to the operating system, so that it survives an end of the process.
    fn flush(&self) -> Result<(), LogError>;

    /// Has everything that was written on the device when it returns.
    fn sync(&self) -> Result<(), LogError>;

    /// Sets a value of a few bytes that lies apart from all others, so that what damages those leaves it. It is on the device when
    /// this returns. May be called beside any writer.
    fn mark(&self, value: &[u8]) -> Result<(), LogError>;

    /// The value that lies apart; empty when none was set.
    fn marked(&self) -> Result<Vec<u8>, LogError>;
}

/// The log failed. Nothing here is repaired or wiped: a member that forgets what it promised can undo what the others
/// rely on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is none where one is expected.
    #[error(
        "there is no log in {0}, although this node has been a member: its disk counts as lost. Remove the node from \
         the cluster, empty its data folder, and let it join again"
    )]
    Missing(PathBuf),
    /// There is one where none is expected.
    #[error("{0} holds a log already, although this node is new: empty its data folder first")]
    Exists(PathBuf),
    /// Another process has it open.
    #[error("the log in {path} is in use: is another agent running on the same data folder?")]
    Locked {
        /// Where it lies.
        path: PathBuf,
        /// What the engine said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not open.
    #[error(
        "the log in {path} does not open. If its disk is sound, see the cause; if not, remove the node from the \
         cluster, empty its data folder, and let it join again"
    )]
    Open {
        /// Where it lies.
        path: PathBuf,
        /// What the engine or the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record is missing, or is not what was written.
    #[error(
        "the log of this node is damaged: {0}. It must not vote again: remove the node from the cluster, empty its \
         data folder, and let it join again"
    )]
    Damaged(String),
    /// It is another node's.
    #[error("the log belongs to {found}, not to {expected}: the data folder is another node's")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// It could not be read or written.
    #[error("the log could not be {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the engine or the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A write failed before: nothing after it can be trusted to be on disk.
    #[error("an earlier write to the log failed ({0}): the agent must be restarted")]
    Poisoned(String),
    /// It has been closed.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// An error of the engine or the system.
    pub fn io(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Io {
            doing,
            source: source.into(),
        }
    }

    /// The error and its causes in one line, for places that keep a text only.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
