//! A file that is being put together, beside the place where it gets its name.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::PathBuf,
    sync::Arc,
};

use crate::arriving::Served;

/// A file that is being put together. Removed again unless it is kept.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) kept: bool,
    /// Where it is used meanwhile. Then it stays whatever becomes of this agent: the next one goes on with it.
    pub(super) served: Option<Served>,
}

impl Part {
    pub(super) fn begin(path: PathBuf, size: u64) -> io::Result<Self> {
        let part = Self::open(path, true)?;
        part.file.set_len(size)?;
        Ok(part)
    }

    pub(super) fn open(path: PathBuf, anew: bool) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(anew)
            .truncate(anew)
            .open(&path)?;
        Ok(Self {
            path,
            file: Arc::new(file),
            kept: false,
            served: None,
        })
    }

    /// One that is used while it comes.
    pub(super) fn serve(&mut self, served: Served) {
        self.kept = true;
        self.served = Some(served);
    }

    /// These bytes are in it.
    pub(super) async fn came(&self, bytes: Range<u64>) {
        if let Some(served) = &self.served {
            served.came(bytes).await;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "half a file could not be removed");
        }
    }
}
