//! The cluster's certificate authority as the replicated state knows it: its replacement. Only certificates are here, which are public;
//! keys never are.

use super::model::Millis;

/// SHA-256 of a certificate's DER form.
pub type Fingerprint = [u8; 32];

/// An authority's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityCertificate {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Itself, DER.
    pub der: Vec<u8>,
    /// When it ends.
    pub expires_at: Millis,
}

/// How far a replacement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplacementPhase {
    /// The old authority signs, both are trusted, and the new one's key goes to all nodes.
    Spreading,
    /// The new one signs, both are trusted, and nodes have their certificates signed anew.
    Renewing,
    /// Only the new one is trusted.
    Finished,
}

/// A replacement of the authority: the one under way, or the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// Counts replacements, those begun anew included.
    pub number: u64,
    /// How far it is.
    pub phase: ReplacementPhase,
    /// The authority that is replaced.
    pub old: AuthorityCertificate,
    /// The one in its place.
    pub new: AuthorityCertificate,
    /// A certificate of the new one's key that the old one signed, DER: by that, whoever trusts only the old one trusts what the new one
    /// signs.
    pub cross: Vec<u8>,
    /// Whether somebody else may have the old one's key.
    pub is_compromised: bool,
    /// When it began.
    pub began_at: Millis,
    /// When it was finished.
    pub finished_at: Option<Millis>,
}

impl Replacement {
    /// The authority that signs.
    pub fn signing(&self) -> &AuthorityCertificate {
        match self.phase {
            ReplacementPhase::Spreading => &self.old,
            ReplacementPhase::Renewing | ReplacementPhase::Finished => &self.new,
        }
    }

    /// Whether it is under way.
    pub fn is_open(&self) -> bool {
        self.phase != ReplacementPhase::Finished
    }

    /// Whether this knows more than another: each step of a replacement comes after the ones before.
    pub fn is_newer(&self, than: &Self) -> bool {
        let step = |one: &Self| (one.number, one.phase, one.is_compromised);
        step(self) > step(than)
    }
}

/// What a node says of its certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTrust {
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER). It stays when the certificate is renewed.
    pub key: [u8; 32],
    /// The authority that its certificate is of.
    pub authority: Fingerprint,
    /// The newest authority that it trusts and whose key it has on its disk.
    pub holds: Fingerprint,
}
