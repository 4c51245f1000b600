//! What a node knows of the authority's replacement. The replicated state has it; a node keeps it on disk too, because it must know whom to
//! trust before it has heard of anybody, and hands it to newcomers.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use raft::state::{
    AuthorityCertificate, Fingerprint, NodeId, Replacement, ReplacementPhase, State,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{
    TrustError,
    authority::{expiry_millis, fingerprint},
    files::{self, Readers},
};

/// The file's name in a folder of certificates.
const FILE: &str = "replacement.json";

/// It.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The replacement.
    pub replacement: Arc<Replacement>,
    /// The hashes of the nodes' public keys, once the old authority's key is in wrong hands: what it signed counts for these only.
    pub keys: BTreeMap<NodeId, [u8; 32]>,
}

/// How somebody's certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As it says.
    Good,
    /// Not at all: its authority was replaced.
    Replaced,
    /// Not at all: its authority's key is in wrong hands, and this is no node that is known.
    Compromised,
}

/// What somebody has shown of itself in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The authority by which it was believed.
    pub authority: Fingerprint,
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    pub key: [u8; 32],
}

impl Known {
    /// As a state has it; `None` while there was no replacement.
    pub fn of(state: &State) -> Option<Self> {
        let replacement = state.replacement.clone()?;
        let keys = match replacement.is_compromised && replacement.is_open() {
            true => keys(state),
            false => BTreeMap::new(),
        };
        Some(Self { replacement, keys })
    }

    /// Whether this knows more than another.
    pub fn is_newer(&self, than: Option<&Self>) -> bool {
        than.is_none_or(|than| self.replacement.is_newer(&than.replacement))
    }

    /// The newer of two.
    pub fn newest(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), other) if one.is_newer(other.as_ref()) => Some(one),
            (one, None) => one,
            (_, other) => other,
        }
    }

    /// What a folder of certificates has; `None` where there was no replacement.
    pub fn load(certs: &Path) -> Result<Option<Self>, TrustError> {
        let path = certs.join(FILE);
        match files::read(&path) {
            Err(TrustError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            read => Self::read(&read?)
                .map(Some)
                .map_err(|problem| TrustError::Damaged { path, problem }),
        }
    }

    /// Keeps it there.
    pub fn save(&self, certs: &Path) -> Result<(), TrustError> {
        let text = self.to_text();
        files::write(&certs.join(FILE), text.as_bytes(), Readers::Owner)
    }

    /// Whether an authority is one of the two.
    pub fn names(&self, authority: &Fingerprint) -> bool {
        let replacement = &self.replacement;
        [replacement.old.fingerprint, replacement.new.fingerprint].contains(authority)
    }

    /// How a certificate counts that was shown: a node's, with its number, or somebody's who uses the cluster.
    pub fn standing(&self, shown: &Shown, node: Option<NodeId>) -> Standing {
        let replacement = &self.replacement;
        if shown.authority == replacement.new.fingerprint {
            return Standing::Good;
        }
        if shown.authority != replacement.old.fingerprint || !replacement.is_open() {
            return Standing::Replaced;
        }
        if !replacement.is_compromised {
            return Standing::Good;
        }
        match node.and_then(|node| self.keys.get(&node)) {
            Some(key) if *key == shown.key => Standing::Good,
            _ => Standing::Compromised,
        }
    }

    /// As it is kept.
    #[allow(clippy::expect_used)] // As said there.
    pub fn to_text(&self) -> String {
        let stored = Stored::from(self);
        serde_json::to_string_pretty(&stored).expect("texts and numbers are JSON")
    }

    /// Reads what was kept.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let stored: Stored = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        stored.check()
    }
}

/// The nodes' public keys as far as they have said them.
fn keys(state: &State) -> BTreeMap<NodeId, [u8; 32]> {
    let nodes = state.nodes.values();
    nodes
        .filter_map(|node| Some((node.id, node.trust.as_ref()?.key)))
        .collect()
}

/// `replacement.json` as it is stored. Certificates and hashes are base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    version: u32,
    number: u64,
    phase: Phase,
    old: String,
    new: String,
    cross: String,
    is_compromised: bool,
    began_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    keys: BTreeMap<NodeId, String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Phase {
    Spreading,
    Renewing,
    Finished,
}

impl From<&Known> for Stored {
    fn from(known: &Known) -> Self {
        let one = &known.replacement;
        let keys = known.keys.iter();
        Self {
            version: 1,
            number: one.number,
            phase: match one.phase {
                ReplacementPhase::Spreading => Phase::Spreading,
                ReplacementPhase::Renewing => Phase::Renewing,
                ReplacementPhase::Finished => Phase::Finished,
            },
            old: STANDARD.encode(&one.old.der),
            new: STANDARD.encode(&one.new.der),
            cross: STANDARD.encode(&one.cross),
            is_compromised: one.is_compromised,
            began_at: one.began_at,
            finished_at: one.finished_at,
            keys: keys
                .map(|(node, key)| (*node, STANDARD.encode(key)))
                .collect(),
        }
    }
}

impl Stored {
    fn check(self) -> Result<Known, String> {
        if self.version != 1 {
            return Err(format!("version {} is not known", self.version));
        }
        let bytes = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
        let key = |(node, text): (NodeId, String)| {
            let key = bytes(&text)?.try_into();
            key.map(|key| (node, key))
                .map_err(|_| "a key's hash is too long or too short".to_owned())
        };
        let replacement = Replacement {
            number: self.number,
            phase: match self.phase {
                Phase::Spreading => ReplacementPhase::Spreading,
                Phase::Renewing => ReplacementPhase::Renewing,
                Phase::Finished => ReplacementPhase::Finished,
            },
            old: certificate(bytes(&self.old)?)?,
            new: certificate(bytes(&self.new)?)?,
            cross: bytes(&self.cross)?,
            is_compromised: self.is_compromised,
            began_at: self.began_at,
            finished_at: self.finished_at,
        };
        Ok(Known {
            replacement: Arc::new(replacement),
            keys: self.keys.into_iter().map(key).collect::<Result<_, _>>()?,
        })
    }
}

/// An authority's certificate as the state has it.
///
/// # Errors
/// It is none.
pub fn certificate(der: Vec<u8>) -> Result<AuthorityCertificate, String> {
    let parsed = CertificateDer::from(der.as_slice());
    Ok(AuthorityCertificate {
        fingerprint: fingerprint(&parsed),
        expires_at: expiry_millis(&parsed).map_err(|error| error.to_string())?,
        der,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use ulid::Ulid;

    use super::*;
    use crate::trust::authority::Authority;

    /// A replacement of an authority, in a phase; and the new one.
    pub fn replaced(
        old: &Authority,
        phase: ReplacementPhase,
        is_compromised: bool,
        keys: &[(NodeId, [u8; 32])],
    ) -> (Known, Authority) {
        let (new, cross) = old.successor().unwrap();
        let replacement = Replacement {
            number: 1,
            phase,
            old: certificate(old.certificate().to_vec()).unwrap(),
            new: certificate(new.certificate().to_vec()).unwrap(),
            cross: cross.to_vec(),
            is_compromised,
            began_at: 5,
            finished_at: (phase == ReplacementPhase::Finished).then_some(7),
        };
        let known = Known {
            replacement: Arc::new(replacement),
            keys: keys.iter().copied().collect(),
        };
        (known, new)
    }

    #[test]
    fn what_is_kept_is_read_as_it_was() {
        let old = Authority::create(Ulid::from_parts(1, 1)).unwrap();
        for phase in [
            ReplacementPhase::Spreading,
            ReplacementPhase::Renewing,
            ReplacementPhase::Finished,
        ] {
            let (known, _) = replaced(&old, phase, true, &[(3, [9; 32])]);
            let read = Known::read(known.to_text().as_bytes()).unwrap();
            assert_eq!(read, known);
        }
        assert!(Known::read(b"{}").is_err());
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Known::load(folder.path()).unwrap(), None);
        std::fs::write(folder.path().join(FILE), "nonsense").unwrap();
        assert!(Known::load(folder.path()).is_err());
    }

    #[test]
    fn what_counts_follows_from_the_phase() {
        use ReplacementPhase::{Finished, Renewing, Spreading};
        let old = Authority::create(Ulid::from_parts(1, 1)).unwrap();
        let shown = |authority, key: u8| Shown {
            authority,
            key: [key; 32],
        };
        for (phase, is_compromised, known_node, stranger) in [
            (Spreading, false, Standing::Good, Standing::Good),
            (Renewing, false, Standing::Good, Standing::Good),
            (Spreading, true, Standing::Good, Standing::Compromised),
            (Renewing, true, Standing::Good, Standing::Compromised),
            (Finished, false, Standing::Replaced, Standing::Replaced),
            (Finished, true, Standing::Replaced, Standing::Replaced),
        ] {
            let (known, new) = replaced(&old, phase, is_compromised, &[(2, [7; 32])]);
            let of = |key, node| known.standing(&shown(old.fingerprint(), key), node);
            assert_eq!(of(7, Some(2)), known_node, "{phase:?}");
            assert_eq!(of(8, Some(2)), stranger, "another key, {phase:?}");
            assert_eq!(of(7, Some(3)), stranger, "another number, {phase:?}");
            assert_eq!(of(7, None), stranger, "a user, {phase:?}");
            let good = known.standing(&shown(new.fingerprint(), 8), None);
            assert_eq!(good, Standing::Good);
            let other = known.standing(&shown([0; 32], 7), Some(2));
            assert_eq!(other, Standing::Replaced);
        }
    }

    #[test]
    fn the_newer_of_two_is_found() {
        let old = Authority::create(Ulid::from_parts(1, 1)).unwrap();
        let (one, _) = replaced(&old, ReplacementPhase::Spreading, false, &[]);
        let (two, _) = replaced(&old, ReplacementPhase::Finished, false, &[]);
        let newest = |a: &Known, b: &Known| Known::newest(Some(a.clone()), Some(b.clone()));
        assert_eq!(newest(&one, &two), Some(two.clone()));
        assert_eq!(newest(&two, &one), Some(two.clone()));
        assert_eq!(Known::newest(Some(one.clone()), None), Some(one.clone()));
        assert_eq!(Known::newest(None, Some(one.clone())), Some(one));
        assert_eq!(Known::newest(None, None), None);
    }
}
