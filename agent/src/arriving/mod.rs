//! Files that are used while they still come from other nodes: a fork's memory and disk, which it runs on before all of them are here.
//!
//! A process apart from the agent, the *page server* ([`serve`]), shows each of them in a FUSE file system of the node, `DATA/arriving`. Whoever
//! reads pages that have not come waits; the agent is told ([`wire`]), fetches them before everything else (`transfer`), writes
//! them into the file's part and says so. The server has no network, no keys and no decisions. It outlives the agent, as QEMU does: an
//! agent that comes back hears from it what has come and what is waited for ([`link`]), and goes on.
//!
//! Where the whole file will be there is a link to it meanwhile, so that everybody opens it by the same name. The file takes the link's
//! place when it is whole. What has the served one open keeps it, and the kernel the pages of it that were read.

mod fuse;
mod link;
mod pages;
pub mod serve;
mod wire;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use self::link::{Arriving, Served};

/// The folder, below the data directory, where they are shown.
const FOLDER: &str = "arriving";

/// The path of what is shown of a file.
fn shown(data: &Path, file: &str) -> PathBuf {
    data.join(FOLDER).join(file)
}

/// Where a link in a folder of the data directory leads to.
fn target(file: &str) -> PathBuf {
    Path::new("..").join(FOLDER).join(file)
}

/// Detaches whatever is mounted below a data directory: of a page server that was ended, the mount is left, and keeps whoever looks there.
pub fn detach(data: &Path) -> io::Result<()> {
    fuse::detach(&data.join(FOLDER))
}
