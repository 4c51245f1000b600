//! What somebody tries who has got out of a guest into its QEMU, and what came of it: what the program `probe`, which runs in QEMU's
//! place, is told, and what it reports.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Beside the probe: what it is to try, as JSON. Without it the probe is QEMU.
pub const ORDERS: &str = "orders";
/// What the line of a report begins with, among what QEMU printed.
pub const MARK: &str = "probe: ";

/// Something to try. Nothing is changed by those that succeed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Attempt {
    /// Reads from a file.
    Read(PathBuf),
    /// Opens a file for writing.
    Write(PathBuf),
    /// Lists a folder.
    List(PathBuf),
    /// Makes a file in a folder, and takes it away again.
    Create(PathBuf),
    /// Reads where a link leads.
    Follow(PathBuf),
    /// Connects to a Unix socket.
    Connect(PathBuf),
    /// Whether a signal can be sent to a process.
    Signal(u32),
    /// Becomes the tracer of a process.
    Trace(u32),
    /// Reads the memory of a process.
    ReadMemory {
        /// Its id.
        pid: u32,
        /// An address where it has some.
        address: u64,
    },
    /// Takes a process's standard input for its own.
    TakeDescriptor(u32),
    /// Becomes this user.
    BecomeUser(u32),
    /// Comes into this group.
    BecomeGroup(u32),
    /// Gives up its groups, as a privileged process may.
    DropGroups,
    /// Runs a program that says who it is, and is owned by root with the set-user-id bit: whether it is root.
    Execute(PathBuf),
}

/// What came of an attempt: nothing, or the error's number.
pub type Outcome = Result<(), i32>;

/// What the probe found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Its process id.
    pub pid: u32,
    /// The VM that it is in the place of.
    pub vm: String,
    /// What it tried.
    pub attempts: Vec<(Attempt, Outcome)>,
    /// The same, as the root of a user namespace of its own; or the error that there is none for it.
    pub as_own_root: Result<Vec<(Attempt, Outcome)>, i32>,
    /// Its `/proc/self/status`, before it tried anything.
    pub status: String,
    /// Its whole environment.
    pub environment: Vec<String>,
    /// Where its descriptors lead.
    pub descriptors: BTreeMap<i32, PathBuf>,
    /// Its working directory.
    pub directory: PathBuf,
}

impl Report {
    /// The report among what a process printed.
    pub fn find(printed: &str) -> Option<Self> {
        let line = printed.lines().find_map(|line| line.strip_prefix(MARK))?;
        // In part, it is still being printed.
        serde_json::from_str(line).ok()
    }
}

/// Where a probe's orders are.
pub fn orders_of(program: &Path) -> PathBuf {
    program.with_extension(ORDERS)
}

/// The values of a field of `/proc/PID/status`.
pub fn status_field<'a>(status: &'a str, field: &str) -> Vec<&'a str> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect()
}
