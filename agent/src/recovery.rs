//! What is done to a node's data directory while its agent does not run, so that a cluster goes on that cannot by itself: going on alone
//! after a quorum was lost, following a node that did, and going on with a backup. Called by the client; nothing of the cluster is asked.
//!
//! Each begins a new incarnation of the cluster, or enters one: the log of before stays where it is, and nodes that are still in another
//! incarnation are not heard (see [`Identity::incarnation`]). What a node has of VMs, snapshots and images stays as it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use raft::{
    node::{BeginError, Held, Position, StartError},
    state::{Certificate, ClusterId, Millis, NodeId, Rejection, State, Users},
};
use ulid::Ulid;

use crate::{
    audit::{Audit, Entry},
    backup::Backup,
    clock,
    trust::{
        TrustError,
        authority::{self, Authority, Credentials, fingerprint},
        files,
        identity::{DataDir, DataLock, Identity, LocalNode, Member, Prepared},
        replacement::Known,
        tls::{accept::Peer, server::PeerRole},
    },
};

/// Why it could not be done. Nothing was changed then, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The node was prepared and never started.
    #[error("{} has nothing of its cluster's state: its agent never ran", .0.display())]
    NeverRan(PathBuf),
    /// The node has no state.
    #[error("node {0} has nothing of its cluster's state yet")]
    Unfounded(String),
    /// The node's log cannot be used.
    #[error("node {name} has no state that could be gone on with")]
    Log {
        /// The node's name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: StartError,
    },
    /// The node is no member any more.
    #[error("node {0} was removed from its cluster")]
    Removed(String),
    /// The node needs nobody else.
    #[error("node {0} is the only voter of its cluster: no quorum is lost")]
    AlreadyAlone(String),
    /// The node is in that incarnation.
    #[error("node {name} is in the incarnation {incarnation} already")]
    AlreadyThere {
        /// The node's name.
        name: String,
        /// Which.
        incarnation: Ulid,
    },
    /// The backup is another cluster's.
    #[error("the backup is of the cluster {backup}, and the data directory of {directory}")]
    OtherCluster {
        /// The backup's.
        backup: ClusterId,
        /// The directory's.
        directory: ClusterId,
    },
    /// The authority is another than the backup's.
    #[error(
        "the authority is neither the one that the cluster had when the backup was made nor the one that took its place"
    )]
    OtherAuthority,
    /// The state does not take the node.
    #[error("the backup's state does not take the node")]
    Refused(#[source] Rejection),
    /// The new log cannot be written.
    #[error("the state cannot be written")]
    Begin(#[from] BeginError),
    /// What was done cannot be noted.
    #[error("it is done, and cannot be noted in the audit log")]
    Audit(#[source] io::Error),
}

/// A node whose agent does not run, and cannot be started while this is there.
#[derive(Debug)]
pub struct StoppedNode {
    data: DataDir,
    /// Who it is.
    pub identity: Identity,
    _lock: DataLock,
}

impl StoppedNode {
    /// The node of a data directory.
    ///
    /// # Errors
    /// It holds none, or an agent runs on it.
    pub fn open(data: DataDir) -> Result<Self, RecoveryError> {
        let no_node = || TrustError::NoNode {
            path: data.root().to_owned(),
        };
        if data.identity()?.is_none() {
            return Err(no_node().into());
        }
        let lock = data.lock()?;
        let identity = data.identity()?.ok_or_else(no_node)?;
        Ok(Self {
            data,
            identity,
            _lock: lock,
        })
    }

    /// What the node has of its cluster.
    ///
    /// # Errors
    /// It never ran, or its log or state is missing, damaged or another's.
    pub fn look(&self) -> Result<Held, RecoveryError> {
        let identity = &self.identity;
        let log = self.data.raft(identity);
        if !log.exists() && !self.data.started(identity).exists() {
            return Err(RecoveryError::NeverRan(self.data.root().to_owned()));
        }
        let incarnation = ClusterId(identity.incarnation.0);
        raft::node::look(&log, identity.node, incarnation).map_err(|source| RecoveryError::Log {
            name: identity.name.clone(),
            source,
        })
    }

    /// Whether the node may go on alone with what it has.
    ///
    /// # Errors
    /// It has nothing, is no member any more, or is alone already.
    pub fn may_go_on_alone(&self, held: &Held) -> Result<(), RecoveryError> {
        let (me, name) = (self.identity.node, self.identity.name.clone());
        if held.app.cluster.is_none() {
            return Err(RecoveryError::Unfounded(name));
        }
        if !held.app.nodes.contains_key(&me) {
            return Err(RecoveryError::Removed(name));
        }
        if held.voters.iter().eq([&me]) {
            return Err(RecoveryError::AlreadyAlone(name));
        }
        Ok(())
    }

    /// Makes the node the only voter of a new incarnation, with all that it has: entries that were not known to be committed count.
    /// Returns the incarnation.
    pub fn go_on_alone(&mut self, held: &Held) -> Result<Ulid, RecoveryError> {
        self.may_go_on_alone(held)?;
        let mut state = State::clone(&held.app);
        state.put_back(clock::of_host(), Users::Keep);
        let after = Position {
            term: held.term.max(held.last.term),
            index: held.last.index,
        };
        let incarnation = self.begin(&state, after)?;
        self.note("recover", "ok")?;
        Ok(incarnation)
    }

    /// Has the node enter an incarnation that another node began, with nothing of the state: it learns that from there.
    pub fn follow(&mut self, incarnation: Ulid) -> Result<(), RecoveryError> {
        if self.identity.incarnation == incarnation {
            return Err(RecoveryError::AlreadyThere {
                name: self.identity.name.clone(),
                incarnation,
            });
        }
        self.enter(incarnation)?;
        self.note("recover --follow", "ok")
    }

    /// Makes the node the only voter of a new incarnation that goes on with a backup. Returns the incarnation.
    pub fn restore(&mut self, backup: &Backup, users: Users) -> Result<Ulid, RecoveryError> {
        let own = ClusterId(self.identity.cluster.0);
        if backup.cluster() != own {
            return Err(RecoveryError::OtherCluster {
                backup: backup.cluster(),
                directory: own,
            });
        }
        let local = self.data.load()?;
        let known = Known::newest(local.replacement, Known::of(&backup.state));
        check_authority(&local.authority, backup, known.as_ref())?;
        let mut state = backup.state.clone();
        let now = clock::of_host();
        state.put_back(now, users);
        state.put_replacement(now, known.map(|known| known.replacement));
        let (me, name) = (self.identity.node, &self.identity.name);
        if !state.nodes.contains_key(&me) {
            state
                .admit(now, Some(me), name, &self.identity.advertise)
                .map_err(RecoveryError::Refused)?;
        }
        let incarnation = self.begin(&state, backup.about.position())?;
        self.note("restore", "ok")?;
        Ok(incarnation)
    }

    /// Begins an incarnation, of which the node is the only voter. It counts from the moment that the identity says so; what was written before
    /// that is a folder that nobody looks at.
    fn begin(&mut self, state: &State, after: Position) -> Result<Ulid, RecoveryError> {
        let incarnation = Ulid::new();
        let next = Identity {
            incarnation,
            ..self.identity.clone()
        };
        let log = self.data.raft(&next);
        let begun = raft::node::begin(&log, next.node, ClusterId(incarnation.0), after, state)
            .map_err(RecoveryError::from)
            .and_then(|()| Ok(files::sync_parent(&log)?))
            .and_then(|()| self.enter(incarnation));
        if begun.is_err() {
            // The error says what matters. What is left of it is in nobody's way.
            let _left_over = fs::remove_dir_all(&log);
        }
        begun.map(|()| incarnation)
    }

    fn enter(&mut self, incarnation: Ulid) -> Result<(), RecoveryError> {
        let next = Identity {
            incarnation,
            ..self.identity.clone()
        };
        self.data.set_incarnation(&next)?;
        self.identity = next;
        Ok(())
    }

    fn note(&self, what: &str, outcome: &str) -> Result<(), RecoveryError> {
        let audit = Audit::open(self.data.root()).map_err(RecoveryError::Audit)?;
        let about = format!("incarnation {}", self.identity.incarnation);
        audit.note(&Entry {
            call: &format!("fpagent {what}"),
            peer: Some(&Peer {
                role: PeerRole::Local,
                shown: None,
                address: None,
            }),
            about: &about,
            outcome,
        });
        Ok(())
    }
}

/// Where a new node is to be made of a backup.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// HOST:PORT to listen at.
    pub listen: String,
    /// HOST:PORT at which others reach it.
    pub advertise: String,
}

/// Makes, in an empty data directory, a new node that is the only voter of a new incarnation of a backup's cluster, and an administrator's
/// certificate. Returns who it is.
///
/// # Errors
/// The directory or the name is taken, the authority is not the backup's, or something cannot be written. A directory that holds the node by
/// then can be restored to again.
pub fn restore_new(
    data: &DataDir,
    new: NewNode,
    backup: &Backup,
    authority: Authority,
    known: Option<Known>,
    users: Users,
) -> Result<Identity, RecoveryError> {
    let known = Known::newest(known, Known::of(&backup.state));
    check_authority(&authority, backup, known.as_ref())?;
    let now = clock::of_host();
    let mut state = backup.state.clone();
    state.put_back(now, users);
    let replacement = known.as_ref().map(|known| Arc::clone(&known.replacement));
    state.put_replacement(now, replacement);
    let node = state
        .admit(now, None, &new.name, &new.advertise)
        .map_err(RecoveryError::Refused)?;
    let admin = admit_admin(&mut state, now, node, &authority)?;
    let member = Member {
        id: node,
        name: new.name.clone(),
        address: new.advertise.clone(),
    };
    let local = LocalNode {
        identity: Identity {
            cluster: authority.cluster(),
            // One that nobody is in: the state's own begins below.
            incarnation: Ulid::new(),
            node,
            name: new.name.clone(),
            listen: new.listen,
            advertise: new.advertise,
            members: vec![member],
        },
        credentials: authority.issue_node(node, &new.name)?,
        authority,
        replacement: known,
    };
    if let Prepared::Already(identity) = data.prepare(&local, Some(&admin))? {
        return Err(TrustError::OtherNode {
            path: data.root().to_owned(),
            name: identity.name,
        }
        .into());
    }
    let mut stopped = StoppedNode::open(data.clone())?;
    stopped.begin(&state, backup.about.position())?;
    stopped.note("restore", "ok")?;
    Ok(stopped.identity)
}

/// Makes an administrator's certificate that the state knows.
fn admit_admin(
    state: &mut State,
    now: Millis,
    node: NodeId,
    authority: &Authority,
) -> Result<Credentials, RecoveryError> {
    let is_valid = |one: &Certificate| one.revoked_at.is_none() && one.expires_at > now;
    let taken = |name: &str| {
        let mut all = state.certificates.values();
        all.any(|one| one.name == name && is_valid(one))
    };
    let name = match taken("admin") {
        true => format!("admin-{node}"),
        false => "admin".to_owned(),
    };
    let admin = authority.issue_admin(&name)?;
    let user = authority::user_of(&admin.certificate)?;
    state.certificates.insert(
        user.certificate,
        Certificate {
            name: user.name,
            owner: user.owner,
            role: user.role,
            created_at: now,
            expires_at: user.expires_at,
            revoked_at: None,
            authority: authority.fingerprint(),
        },
    );
    Ok(admin)
}

/// The authority must be the one that signs: the backup's, or the one that has taken its place since.
fn check_authority(
    authority: &Authority,
    backup: &Backup,
    known: Option<&Known>,
) -> Result<(), RecoveryError> {
    let of_backup = fingerprint(&backup.about.authority.as_slice().into());
    let signs = match known {
        Some(known) if known.names(&of_backup) => known.replacement.signing().fingerprint,
        _ => of_backup,
    };
    match authority.fingerprint() == signs {
        true => Ok(()),
        false => Err(RecoveryError::OtherAuthority),
    }
}

/// The authority that a backup holds, if it does.
pub fn authority_of(backup: &Backup) -> Result<Option<Authority>, TrustError> {
    let cluster = Ulid(backup.about.cluster);
    let key = backup.authority_key.as_deref();
    key.map(|key| Authority::from_der(cluster, &backup.about.authority, key))
        .transpose()
}

/// The authority in another node's folder of certificates.
pub fn authority_in(backup: &Backup, certs: &Path) -> Result<Authority, TrustError> {
    let cluster = Ulid(backup.about.cluster);
    Authority::load(cluster, &certs.join("ca.pem"), &certs.join("ca.key.pem"))
}

#[cfg(test)]
mod tests;
