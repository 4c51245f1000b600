//! Join tokens: single-use permissions to become a node.
//!
//! A token holds the seed of an Ed25519 key, the fingerprint of the cluster's authority, and where members are found.
//! The newcomer proves in the TLS handshake that it owns the key; the cluster knows only the hash of the public one.
//! Written as `fpjoin1.` and base64url of: id (16 bytes), seed (32), fingerprint (32), addresses (comma-separated),
//! and the first 8 bytes of the SHA-256 of all that, so that a mangled token is told from a refused one.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, PublicKeyData as _,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::{TrustError, authority::Credentials, names};

const PREFIX: &str = "fpjoin1.";
const FIXED: usize = 16 + 32 + 32;
const CHECKSUM: usize = 8;
const MAX_ADDRESSES: usize = 16;
/// A whole token is shorter than this, whatever is in it.
const MAX_TEXT: usize = 8_192;

/// PKCS #8 version 1 of an Ed25519 key (RFC 8410), up to where its 32-byte seed follows.
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A text that is no usable token. The text itself is a secret and in no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like a token.
    #[error(
        "this is not a join token: one begins with \"fpjoin1.\" and comes from `fpagent token create`"
    )]
    NotAToken,
    /// It begins like a token of another version.
    #[error(
        "this join token is of a version that this fpagent does not know: use the cluster's version of fpagent"
    )]
    OtherVersion,
    /// It is cut short or altered.
    #[error(
        "this join token is damaged: it was cut short or altered on its way, copy it again as a whole"
    )]
    Damaged,
}

/// A join token. Secret: its `Debug` shows its id only, and only [`JoinToken::to_text`] gives it away.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Its id, by which it is revoked.
    pub id: Ulid,
    /// SHA-256 of the authority's certificate (DER): whom the newcomer will trust.
    pub authority: [u8; 32],
    /// HOST:PORT of members, to be tried in turn.
    pub addresses: Vec<String>,
    seed: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl JoinToken {
    /// Makes a token with a new key. At most 16 of the addresses are taken.
    ///
    /// # Errors
    /// `Name` when there is no address, or one that is not HOST:PORT.
    pub fn generate(
        id: Ulid,
        authority: [u8; 32],
        addresses: &[String],
    ) -> Result<Self, TrustError> {
        let mut seed = [0; 32];
        SystemRandom::new()
            .fill(&mut seed)
            .map_err(|_| TrustError::NoRandomness)?;
        let addresses: Vec<_> = addresses.iter().take(MAX_ADDRESSES).cloned().collect();
        if addresses.is_empty() {
            return Err(names::NameError::Address(String::new()).into());
        }
        addresses
            .iter()
            .try_for_each(|address| names::check_address(address))?;
        Ok(Self {
            id,
            authority,
            addresses,
            seed,
        })
    }

    /// The token as it is handed to a person.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(FIXED + 64);
        bytes.extend(self.id.0.to_be_bytes());
        bytes.extend(self.seed);
        bytes.extend(self.authority);
        bytes.extend(self.addresses.join(",").into_bytes());
        bytes.extend(checksum(&bytes));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The hash by which the cluster knows the token: SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    pub fn key_hash(&self) -> Result<[u8; 32], TrustError> {
        Ok(Sha256::digest(self.key_pair()?.subject_public_key_info()).into())
    }

    /// What its holder shows in a TLS handshake: a certificate that the token's own key signed.
    pub fn credentials(&self) -> Result<Credentials, TrustError> {
        let key = self.key_pair()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "joiner");
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Credentials {
            certificate,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    fn key_pair(&self) -> Result<KeyPair, TrustError> {
        let mut pkcs8 = ED25519_PKCS8.to_vec();
        pkcs8.extend(self.seed);
        Ok(KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(pkcs8),
            &PKCS_ED25519,
        )?)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            let other = text
                .strip_prefix("fpjoin")
                .is_some_and(|rest| rest.contains('.'));
            return Err(if other {
                TokenError::OtherVersion
            } else {
                TokenError::NotAToken
            });
        };
        if text.len() > MAX_TEXT {
            return Err(TokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| TokenError::Damaged)?;
        parse(&bytes).ok_or(TokenError::Damaged)
    }
}

fn parse(bytes: &[u8]) -> Option<JoinToken> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    if sum != checksum(content) && !planted::planted("token.sum") {
        return None;
    }
    let (id, rest) = content.split_first_chunk::<16>()?;
    let (seed, rest) = rest.split_first_chunk::<32>()?;
    let (authority, rest) = rest.split_first_chunk::<32>()?;
    let addresses: Vec<String> = std::str::from_utf8(rest)
        .ok()?
        .split(',')
        .map(str::to_owned)
        .collect();
    if addresses.len() > MAX_ADDRESSES
        || addresses
            .iter()
            .any(|address| names::check_address(address).is_err())
    {
        return None;
    }
    Some(JoinToken {
        id: Ulid(u128::from_be_bytes(*id)),
        seed: *seed,
        authority: *authority,
        addresses,
    })
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let digest: [u8; 32] = Sha256::digest([PREFIX.as_bytes(), content].concat()).into();
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&digest[..CHECKSUM]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let addresses = ["10.0.0.1:7400".to_owned(), "[::1]:7401".to_owned()];
        JoinToken::generate(Ulid::from_parts(3, 4), [7; 32], &addresses).unwrap()
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let made = token();
        let read: JoinToken = format!(" {}\n", made.to_text()).parse().unwrap();
        assert_eq!(read, made);
        assert_eq!(read.key_hash().unwrap(), made.key_hash().unwrap());
        assert_ne!(read.key_hash().unwrap(), token().key_hash().unwrap());
    }

    #[test]
    fn every_single_alteration_and_every_truncation_is_noticed() {
        let text = token().to_text();
        for at in PREFIX.len()..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(
                altered.parse::<JoinToken>(),
                Err(TokenError::Damaged),
                "at {at}"
            );
            assert_eq!(
                text[..at].parse::<JoinToken>(),
                Err(TokenError::Damaged),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn other_texts_are_no_tokens() {
        for text in [
            "",
            "hello",
            "FPJOIN1.abc",
            "fpjoin1",
            "eyJhbGciOiJIUzI1NiJ9.e30",
        ] {
            assert_eq!(
                text.parse::<JoinToken>(),
                Err(TokenError::NotAToken),
                "{text:?}"
            );
        }
        assert_eq!(
            "fpjoin2.AAAA".parse::<JoinToken>(),
            Err(TokenError::OtherVersion)
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = token();
        let shown = format!("{token:?}");
        assert_eq!(shown, format!("JoinToken {{ id: {:?}, .. }}", token.id));
    }

    #[test]
    fn the_hash_is_that_of_the_certificates_key() {
        let token = token();
        let certificate = token.credentials().unwrap().certificate;
        let spki = super::super::authority::spki_of(&certificate).unwrap();
        assert_eq!(
            <[u8; 32]>::from(Sha256::digest(spki)),
            token.key_hash().unwrap()
        );
    }
}
