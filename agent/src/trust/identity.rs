//! A node's data directory: where things lie in it, and who the node is.
//!
//! `fpagent init` and `join` prepare it, `run` loads it. `identity.json` is written last: a directory without it holds no
//! node.

mod keeping;
mod prepare;

pub use prepare::{Prepared, Reserved};

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use prost_types::Timestamp;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{
    TrustError,
    authority::{Authority, Credentials, save_certificate},
    files::{self, Readers},
    names,
    replacement::Known,
};

const IDENTITY: &str = "identity.json";
const REMOVED: &str = "removed.json";
const PREPARING: &str = ".preparing";
const CERTS: &str = "certs";
/// How long a directory may be in use by another until that is an error, and how long is waited in between.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// See there.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// A member as it was known when the node was prepared: where to find the cluster at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// HOST:PORT.
    pub address: String,
}

/// Who a node is. Of it only the addresses may change, and the incarnation, which `fpagent recover` and `restore` change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: Ulid,
    /// Which incarnation of the cluster it is in: its id until the state was put back, another one after each time. Nodes of different
    /// ones do not take part in each other's consensus.
    pub incarnation: Ulid,
    /// The node's number in it.
    pub node: u64,
    /// The node's name.
    pub name: String,
    /// HOST:PORT to listen at.
    pub listen: String,
    /// HOST:PORT at which others reach it.
    pub advertise: String,
    /// The members when it joined; the first node's own entry alone when it founded the cluster.
    pub members: Vec<Member>,
}

impl Identity {
    /// Whether it is the first node, which founds the cluster when it runs first.
    pub fn is_founder(&self) -> bool {
        self.node == 1
    }
}

/// `removed.json` as it is stored: that the node was removed from its cluster.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredRemoval {
    version: u32,
    /// When it learned of that.
    removed_at: String,
}

/// `identity.json` as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredIdentity {
    version: u32,
    cluster_id: String,
    /// Absent while it is the cluster's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incarnation: Option<String>,
    node_id: u64,
    name: String,
    listen: String,
    advertise: String,
    members: Vec<Member>,
}

/// A prepared node: what a data directory holds of it.
#[derive(Debug)]
pub struct LocalNode {
    /// Who it is.
    pub identity: Identity,
    /// The cluster's authority.
    pub authority: Authority,
    /// Its own certificate and key.
    pub credentials: Credentials,
    /// What it knows of the authority's replacement.
    pub replacement: Option<Known>,
}

/// Keeps other processes from using a data directory, until it is dropped.
#[derive(Debug)]
pub struct DataLock {
    _folder: File,
}

/// The layout of a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// The directory at this path; it need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The replicated log and the state's snapshots of an incarnation. Each has a folder of its own, so that going from one to another is
    /// one step: [`DataDir::set_incarnation`].
    pub fn raft(&self, identity: &Identity) -> PathBuf {
        self.of_incarnation("raft", identity)
    }

    /// A file that says that there has been a log in this incarnation.
    pub fn started(&self, identity: &Identity) -> PathBuf {
        self.of_incarnation("started", identity)
    }

    fn of_incarnation(&self, name: &str, identity: &Identity) -> PathBuf {
        match identity.incarnation == identity.cluster {
            true => self.root.join(name),
            false => self.root.join(format!("{name}-{}", identity.incarnation)),
        }
    }

    /// Files of images, each named by its SHA-256.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Disk layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Streams of snapshots.
    pub fn streams(&self) -> PathBuf {
        self.root.join("streams")
    }

    /// A folder for each VM, named by its id.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// The folder of the administrator's certificate that `fpagent init` made: `ca.pem`, `cert.pem`, `key.pem`.
    pub fn admin_certs(&self) -> PathBuf {
        self.root.join(CERTS).join("admin")
    }

    fn identity_file(&self) -> PathBuf {
        self.root.join(IDENTITY)
    }

    /// Keeps other processes out; the directory must exist. Waits a moment for one that is just ending: what an agent was starting
    /// when it was killed has its lock until it is another program.
    ///
    /// # Errors
    /// `Locked` when another process has it.
    pub fn lock(&self) -> Result<DataLock, TrustError> {
        let folder = File::open(&self.root).map_err(TrustError::file("open", &self.root))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(DataLock { _folder: folder }),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(LOCK_PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    return Err(TrustError::Locked {
                        path: self.root.clone(),
                    });
                }
                Err(error) => {
                    return Err(TrustError::File {
                        action: "lock",
                        path: self.root.clone(),
                        source: error.into(),
                    });
                }
            }
        }
    }

    /// Who the directory's node is; `None` when it holds none.
    pub fn identity(&self) -> Result<Option<Identity>, TrustError> {
        let path = self.identity_file();
        let content = match files::read(&path) {
            Err(TrustError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            read => read?,
        };
        let damaged = |problem: String| TrustError::Damaged {
            path: path.clone(),
            problem,
        };
        let stored: StoredIdentity =
            serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
        stored.check().map(Some).map_err(damaged)
    }

    /// Loads the directory's node.
    ///
    /// # Errors
    /// `NoNode` when it holds none, `Removed` when that was removed from its cluster, `Damaged` when something of it is not as it was
    /// written.
    pub fn load(&self) -> Result<LocalNode, TrustError> {
        let identity = self.identity()?.ok_or_else(|| TrustError::NoNode {
            path: self.root.clone(),
        })?;
        self.check_removed(&identity)?;
        self.complete_authority()?;
        let certs = self.root.join(CERTS);
        let authority = Authority::load(
            identity.cluster,
            &certs.join("ca.pem"),
            &certs.join("ca.key.pem"),
        )?;
        let credentials = Credentials::load(&certs.join("node.pem"), &certs.join("node.key.pem"))?;
        Ok(LocalNode {
            identity,
            authority,
            credentials,
            replacement: self.replacement()?,
        })
    }

    /// Notes that the node was removed from its cluster: it cannot be loaded any more.
    pub fn mark_removed(&self) -> Result<(), TrustError> {
        let stored = StoredRemoval {
            version: 1,
            removed_at: Timestamp::from(SystemTime::now()).to_string(),
        };
        write_json(&self.root.join(REMOVED), &stored)
    }

    fn check_removed(&self, identity: &Identity) -> Result<(), TrustError> {
        let path = self.root.join(REMOVED);
        let content = match files::read(&path) {
            Err(TrustError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            read => read?,
        };
        let stored: StoredRemoval =
            serde_json::from_slice(&content).map_err(|error| TrustError::Damaged {
                path,
                problem: error.to_string(),
            })?;
        Err(TrustError::Removed {
            path: self.root.clone(),
            name: identity.name.clone(),
            at: stored.removed_at,
        })
    }

    /// Has the node listen, and be reached, elsewhere from its next start on. What is not given stays, but for a node that was reached
    /// where it listens: that stays so.
    ///
    /// # Errors
    /// An address is not written as it must be, or nobody could dial it; the directory cannot be written.
    pub fn relocate(
        &self,
        identity: &mut Identity,
        listen: Option<&str>,
        advertise: Option<&str>,
    ) -> Result<(), TrustError> {
        let was_same = identity.advertise == identity.listen;
        let new_listen = listen.unwrap_or(&identity.listen);
        let new_advertise = match (advertise, was_same) {
            (Some(advertise), _) => advertise,
            (None, true) => new_listen,
            (None, false) => &identity.advertise,
        };
        if (new_listen, new_advertise) == (&*identity.listen, &*identity.advertise) {
            return Ok(());
        }
        names::check_address(new_listen)?;
        names::check_advertised(new_advertise)?;
        let moved = Identity {
            listen: new_listen.to_owned(),
            advertise: new_advertise.to_owned(),
            ..identity.clone()
        };
        write_json(&self.identity_file(), &StoredIdentity::from(&moved))?;
        *identity = moved;
        Ok(())
    }

    /// Replaces the node's certificate by another one for the same key.
    pub fn replace_certificate(&self, certificate: &CertificateDer<'_>) -> Result<(), TrustError> {
        save_certificate(certificate, &self.root.join(CERTS).join("node.pem"))
    }

    /// Has the directory's node be in another incarnation of its cluster from now on. Durable when it returns, and until then not done.
    pub fn set_incarnation(&self, identity: &Identity) -> Result<(), TrustError> {
        write_json(&self.identity_file(), &StoredIdentity::from(identity))
    }

    /// Tells whether the directory can take a node of this name, without changing anything.
    ///
    /// # Errors
    /// `OtherCluster`, `OtherNode`, `Removed`, `NotEmpty` when it cannot.
    pub fn check(&self, cluster: Option<Ulid>, name: &str) -> Result<Option<Identity>, TrustError> {
        if let Some(identity) = self.identity()? {
            self.check_removed(&identity)?;
            return match cluster {
                Some(cluster) if identity.cluster != cluster => {
                    let cluster = identity.cluster.to_string();
                    Err(TrustError::OtherCluster {
                        path: self.root.clone(),
                        cluster,
                    })
                }
                _ if identity.name != name => Err(TrustError::OtherNode {
                    path: self.root.clone(),
                    name: identity.name,
                }),
                _ => Ok(Some(identity)),
            };
        }
        match self.foreign_entry()? {
            Some(found) => Err(TrustError::NotEmpty {
                path: self.root.clone(),
                found,
            }),
            None => Ok(None),
        }
    }

    /// Something in the directory that neither an empty file system nor an interrupted preparation has.
    fn foreign_entry(&self) -> Result<Option<String>, TrustError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(TrustError::file("read", &self.root))?,
        };
        let interrupted = self.root.join(PREPARING).exists();
        for entry in entries {
            let name = entry
                .map_err(TrustError::file("read", &self.root))?
                .file_name()
                .to_string_lossy()
                .into_owned();
            let ours = name == "lost+found" || name == PREPARING || (interrupted && name == CERTS);
            if !ours {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

fn write_json(path: &Path, stored: &impl Serialize) -> Result<(), TrustError> {
    let text = serde_json::to_vec_pretty(stored).map_err(|error| TrustError::File {
        action: "write",
        path: path.to_owned(),
        source: error.into(),
    })?;
    files::write(path, &text, Readers::Owner)
}

impl From<&Identity> for StoredIdentity {
    fn from(identity: &Identity) -> Self {
        Self {
            version: 1,
            cluster_id: identity.cluster.to_string(),
            incarnation: (identity.incarnation != identity.cluster)
                .then(|| identity.incarnation.to_string()),
            node_id: identity.node,
            name: identity.name.clone(),
            listen: identity.listen.clone(),
            advertise: identity.advertise.clone(),
            members: identity.members.clone(),
        }
    }
}

impl StoredIdentity {
    fn check(self) -> Result<Identity, String> {
        if self.version != 1 {
            return Err(format!(
                "version {} is not known; use the fpagent that wrote it",
                self.version
            ));
        }
        let cluster = Ulid::from_string(&self.cluster_id)
            .map_err(|_| "clusterId is not a ULID".to_owned())?;
        let incarnation = match &self.incarnation {
            None => cluster,
            Some(text) => {
                Ulid::from_string(text).map_err(|_| "incarnation is not a ULID".to_owned())?
            }
        };
        names::check_name(&self.name).map_err(|error| error.to_string())?;
        names::check_address(&self.listen).map_err(|error| error.to_string())?;
        names::check_address(&self.advertise).map_err(|error| error.to_string())?;
        let Self {
            node_id: node,
            name,
            listen,
            advertise,
            members,
            ..
        } = self;
        Ok(Identity {
            cluster,
            incarnation,
            node,
            name,
            listen,
            advertise,
            members,
        })
    }
}

#[cfg(test)]
mod tests;
