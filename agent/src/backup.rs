//! Backups of the replicated state: one file, written whole by a node that was asked for it, and read by `fpagent backup check` and
//! `fpagent restore`. It holds neither disks nor memory of VMs, and the authority's private key only where that was asked for.
//!
//! A file is: `MAGIC`, a version byte, three parts (what it is of, the state, the private key, which may be empty), each after its
//! length, and a SHA-256 of all before.

use raft::{
    codec::{self, CodecError},
    node::Position,
    state::{self, ClusterId, Millis, State, Violation},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What a backup begins with.
const MAGIC: &[u8; 8] = b"fpbackup";
const VERSION: u8 = 1;
/// The most that what it is of may take, bytes.
const ABOUT_LIMIT: u64 = 1 << 20;
const SUM: usize = 32;

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The cluster.
    pub cluster: u128,
    /// Which incarnation of it.
    pub incarnation: u128,
    /// The name of the node that wrote it.
    pub node: String,
    /// When, by that node's clock.
    pub taken_at: Millis,
    /// The term then.
    pub term: u64,
    /// The last log entry that the state includes.
    pub index: u64,
    /// The agent's version.
    pub agent_version: String,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
}

impl About {
    /// Where the state stands in the log of its incarnation.
    pub fn position(&self) -> Position {
        Position {
            term: self.term,
            index: self.index,
        }
    }
}

/// A backup.
pub struct Backup {
    /// What it is of.
    pub about: About,
    /// The state.
    pub state: State,
    /// The authority's private key, PKCS #8 DER, where that is in it: a secret.
    pub authority_key: Option<Vec<u8>>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup")
            .field("about", &self.about)
            .field("has_key", &self.authority_key.is_some())
            .finish_non_exhaustive()
    }
}

/// A file is no backup that could be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is no backup of a cluster")]
    Foreign,
    /// A newer agent wrote it.
    #[error(
        "it is of version {0}, which this fpagent does not know; use the fpagent that wrote it"
    )]
    Version(u8),
    /// Its end is missing.
    #[error("it was cut off: {there} bytes of at least {expected} are there")]
    CutOff {
        /// How long it is, bytes.
        there: usize,
        /// How long it must be.
        expected: u64,
    },
    /// It is not what was written.
    #[error("it is damaged: its checksum is wrong")]
    Damaged,
    /// What is in it cannot be read, though it is what was written.
    #[error("its content cannot be read")]
    Content(#[from] CodecError),
    /// The state is one that cannot be.
    #[error("its state cannot be: {0}")]
    Impossible(#[from] Violation),
}

impl Backup {
    /// The file's content.
    pub fn to_bytes(&self) -> Vec<u8> {
        let about = codec::encode(&self.about);
        let state = codec::encode_state(&self.state);
        let key = self.authority_key.as_deref().unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        for part in [&about[..], &state, key] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Reads a file's content, and checks all of it.
    pub fn read(bytes: &[u8]) -> Result<Self, BackupError> {
        let cut_off = |expected: u64| BackupError::CutOff {
            there: bytes.len(),
            expected,
        };
        let head = bytes.get(..MAGIC.len()).ok_or(BackupError::Foreign)?;
        if head != MAGIC {
            return Err(BackupError::Foreign);
        }
        let mut at = MAGIC.len() + 1;
        match bytes.get(MAGIC.len()) {
            None => return Err(cut_off(at as u64)),
            Some(&VERSION) => {}
            Some(&version) => return Err(BackupError::Version(version)),
        }
        let mut parts = [&bytes[..0]; 3];
        for part in &mut parts {
            let (length, rest) = bytes[at..]
                .split_first_chunk::<8>()
                .ok_or_else(|| cut_off((at + 8) as u64))?;
            let length = u64::from_be_bytes(*length);
            let end = length.saturating_add((at + 8) as u64);
            *part = usize::try_from(length)
                .ok()
                .and_then(|length| rest.get(..length))
                .ok_or_else(|| cut_off(end.saturating_add(SUM as u64)))?;
            at += 8 + part.len();
        }
        let (body, sum) = bytes.split_at(at);
        if sum.len() < SUM {
            return Err(cut_off((at + SUM) as u64));
        }
        if sum != Sha256::digest(body).as_slice() {
            return Err(BackupError::Damaged);
        }
        let [about, state, key] = parts;
        let state = codec::decode_state(state)?;
        state::check(&state)?;
        Ok(Self {
            about: codec::decode(about, ABOUT_LIMIT)?,
            state,
            authority_key: (!key.is_empty()).then(|| key.to_vec()),
        })
    }

    /// The cluster that it is of.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.about.cluster)
    }
}

#[cfg(test)]
mod tests {
    use raft::state::{Command, Proposal, apply};

    use super::*;

    fn backup(authority_key: Option<Vec<u8>>) -> Backup {
        let mut state = State::new();
        let found = Proposal {
            request: None,
            by: state::Actor::cluster(),
            now: 5,
            command: Command::Found {
                cluster: ClusterId(1),
                name: "host-a".to_owned(),
                address: "h:1".to_owned(),
            },
        };
        apply(&mut state, &found).unwrap();
        let about = About {
            cluster: 1,
            incarnation: 2,
            node: "host-a".to_owned(),
            taken_at: 7,
            term: 3,
            index: 9,
            agent_version: "0.1.0".to_owned(),
            authority: vec![1, 2, 3],
        };
        Backup {
            about,
            state,
            authority_key,
        }
    }

    #[test]
    fn a_backup_is_read_as_it_was_written() {
        for key in [None, Some(vec![9; 40])] {
            let written = backup(key);
            let read = Backup::read(&written.to_bytes()).unwrap();
            assert_eq!(read.about, written.about);
            assert_eq!(read.state, written.state);
            assert_eq!(read.authority_key, written.authority_key);
            assert!(!format!("{read:?}").contains("9, 9"), "a key is not shown");
        }
    }

    #[test]
    fn a_backup_is_whole_or_refused_with_what_is_wrong() {
        let whole = backup(Some(vec![9; 40])).to_bytes();
        for end in 0..whole.len() {
            let error = Backup::read(&whole[..end]).unwrap_err();
            let fits = match end < MAGIC.len() {
                true => matches!(error, BackupError::Foreign),
                false => matches!(error, BackupError::CutOff { there, .. } if there == end),
            };
            assert!(fits, "{end}: {error}");
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            assert!(Backup::read(&bad).is_err(), "byte {at}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(matches!(Backup::read(&longer), Err(BackupError::Damaged)));
        let mut newer = whole;
        newer[MAGIC.len()] = VERSION + 1;
        assert!(matches!(Backup::read(&newer), Err(BackupError::Version(2))));
    }

    #[test]
    fn a_state_that_cannot_be_is_refused() {
        let mut impossible = backup(None);
        impossible.state.next_node = 1;
        let error = Backup::read(&impossible.to_bytes()).unwrap_err();
        assert!(matches!(error, BackupError::Impossible(_)), "{error}");
        let mut newer = backup(None);
        newer.state.version = raft::version::newest() + 1;
        let error = Backup::read(&newer.to_bytes()).unwrap_err();
        let BackupError::Content(error) = error else {
            panic!("{error}");
        };
        assert!(matches!(error, CodecError::Version(_)), "{error}");
    }
}
