//! Preparing a data directory: all of a node is written, or nothing is left.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    CERTS, DataDir, DataLock, IDENTITY, Identity, LocalNode, PREPARING, StoredIdentity, write_json,
};
use crate::trust::{
    TrustError,
    authority::{Credentials, save_certificate},
    files,
};

/// What became of preparing a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// It holds a new node now.
    New,
    /// It held this node before; nothing was changed.
    Already(Identity),
}

/// A directory that is being prepared: nobody else uses it. What was made for it goes with the value, unless it holds a node by then.
#[derive(Debug)]
pub struct Reserved {
    dir: DataDir,
    /// Folders that were made, the outermost first.
    made: Vec<PathBuf>,
    _lock: Option<DataLock>,
}

impl Reserved {
    /// Writes a node, and with `admin` an administrator's certificate, into the directory. On failure nothing of it is left.
    ///
    /// # Errors
    /// As [`DataDir::check`].
    pub fn prepare(
        mut self,
        node: &LocalNode,
        admin: Option<&Credentials>,
    ) -> Result<Prepared, TrustError> {
        let (cluster, name) = (node.identity.cluster, &node.identity.name);
        let prepared = match self.dir.check(Some(cluster), name)? {
            None => self.dir.write(node, admin).map(|()| Prepared::New)?,
            Some(identity) => Prepared::Already(identity),
        };
        self.made.clear();
        Ok(prepared)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // Only when it is empty: what somebody else put there meanwhile stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl DataDir {
    /// Takes the directory for a node that is to be prepared, and makes it when it is missing.
    ///
    /// # Errors
    /// `Locked` when another process has it; it cannot be made.
    pub fn reserve(&self) -> Result<Reserved, TrustError> {
        let missing = self.root.ancestors().take_while(|path| {
            // The last ancestor of a relative path is the folder that one is in.
            !path.as_os_str().is_empty() && !path.exists()
        });
        let mut made: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        made.reverse();
        let mut reserved = Reserved {
            dir: self.clone(),
            made,
            _lock: None,
        };
        files::private_folder(&self.root)?;
        reserved._lock = Some(self.lock()?);
        Ok(reserved)
    }

    /// Writes a node into the directory: see [`Reserved::prepare`].
    pub fn prepare(
        &self,
        node: &LocalNode,
        admin: Option<&Credentials>,
    ) -> Result<Prepared, TrustError> {
        self.reserve()?.prepare(node, admin)
    }

    fn write(&self, node: &LocalNode, admin: Option<&Credentials>) -> Result<(), TrustError> {
        let preparing = self.root.join(PREPARING);
        let certs = self.root.join(CERTS);
        self.clear()?;
        let written = stage(&preparing, node, admin)
            .and_then(|()| files::rename(&preparing.join(CERTS), &certs))
            .and_then(|()| files::rename(&preparing.join(IDENTITY), &self.identity_file()));
        match written {
            // What is left of it is an empty folder, which the next start of a preparation would clear.
            Ok(()) => fs::remove_dir(&preparing).map_err(TrustError::file("remove", &preparing)),
            Err(error) => {
                self.clear()?;
                Err(error)
            }
        }
    }

    /// Removes what an interrupted preparation left.
    fn clear(&self) -> Result<(), TrustError> {
        let preparing = self.root.join(PREPARING);
        if preparing.exists() {
            remove_all(&self.root.join(CERTS))?;
            remove_all(&preparing)?;
        }
        Ok(())
    }
}

pub(super) fn remove_all(path: &Path) -> Result<(), TrustError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(TrustError::file("remove", path)),
    }
}

fn stage(folder: &Path, node: &LocalNode, admin: Option<&Credentials>) -> Result<(), TrustError> {
    let certs = folder.join(CERTS);
    files::private_folder(&certs)?;
    node.authority
        .save(&certs.join("ca.pem"), &certs.join("ca.key.pem"))?;
    node.credentials
        .save(&certs.join("node.pem"), &certs.join("node.key.pem"))?;
    if let Some(known) = &node.replacement {
        known.save(&certs)?;
    }
    if let Some(admin) = admin {
        let folder = certs.join("admin");
        files::private_folder(&folder)?;
        save_certificate(node.authority.certificate(), &folder.join("ca.pem"))?;
        admin.save(&folder.join("cert.pem"), &folder.join("key.pem"))?;
    }
    write_json(
        &folder.join(IDENTITY),
        &StoredIdentity::from(&node.identity),
    )
}
