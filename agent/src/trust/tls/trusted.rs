//! Whom a node trusts: its authority, and while that is being replaced the other one too. It may change while the node runs. Both sides of
//! TLS ask here.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{node_of_server_name, provider, signatures};
use crate::trust::{
    TrustError,
    authority::fingerprint,
    replacement::{Known, Shown, Standing},
};

/// An authority by which certificates are believed.
struct Anchor {
    fingerprint: [u8; 32],
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Anchor {
    fn new(certificate: &CertificateDer<'_>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone().into_owned())?;
        let roots = Arc::new(roots);
        let malformed = |problem: String| TrustError::Malformed {
            what: "the authority",
            problem,
        };
        Ok(Self {
            fingerprint: fingerprint(certificate),
            clients: WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
                .build()
                .map_err(|error| malformed(error.to_string()))?,
            servers: WebPkiServerVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| malformed(error.to_string()))?,
        })
    }
}

struct Anchors {
    known: Option<Known>,
    /// The newest first. Never empty.
    all: Vec<Anchor>,
}

impl Anchors {
    fn new(own: &CertificateDer<'_>, known: Option<Known>) -> Result<Self, TrustError> {
        let mut all = Vec::new();
        if let Some(known) = &known {
            for one in [&known.replacement.new, &known.replacement.old] {
                all.push(Anchor::new(&CertificateDer::from(one.der.as_slice()))?);
            }
        }
        // The one that this node's own certificate may still be of.
        if all.iter().all(|one| one.fingerprint != fingerprint(own)) {
            all.push(Anchor::new(own)?);
        }
        Ok(Self { known, all })
    }

    fn standing(&self, shown: &Shown, node: Option<u64>) -> Standing {
        let known = self.known.as_ref();
        known.map_or(Standing::Good, |known| known.standing(shown, node))
    }
}

/// Whom a node trusts.
pub struct Trusted(RwLock<Arc<Anchors>>);

impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trusted")
            .field("known", &self.now().known)
            .finish_non_exhaustive()
    }
}

impl Trusted {
    /// With a node's own authority, and what it knows of a replacement.
    pub fn new(own: &CertificateDer<'_>, known: Option<Known>) -> Result<Arc<Self>, TrustError> {
        let anchors = Anchors::new(own, known)?;
        Ok(Arc::new(Self(RwLock::new(Arc::new(anchors)))))
    }

    /// Follows a replacement from here on.
    pub fn set(&self, own: &CertificateDer<'_>, known: Known) -> Result<(), TrustError> {
        let anchors = Arc::new(Anchors::new(own, Some(known))?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = anchors;
        Ok(())
    }

    fn now(&self) -> Arc<Anchors> {
        // It is changed whole.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is known of a replacement.
    pub fn known(&self) -> Option<Known> {
        self.now().known.clone()
    }

    /// By which authority a client's certificate is believed, and its key. One whose authority was replaced is let in, to be told so:
    /// each call is held against what is known.
    ///
    /// # Errors
    /// By none.
    pub fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Shown, Error> {
        let anchors = self.now();
        let authority = first(&anchors.all, |anchor| {
            anchor
                .clients
                .verify_client_cert(leaf, intermediates, now)
                .map(|_| anchor.fingerprint)
        })?;
        let key = key_hash(leaf).ok_or_else(refused)?;
        Ok(Shown { authority, key })
    }
}

/// The first that believes; else what the most telling of them said.
fn first<T>(
    anchors: &[Anchor],
    believes: impl Fn(&Anchor) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut told = Error::InvalidCertificate(CertificateError::UnknownIssuer);
    for anchor in anchors {
        match believes(anchor) {
            Ok(found) => return Ok(found),
            Err(Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => {}
            Err(error) => told = error,
        }
    }
    Err(told)
}

fn refused() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// SHA-256 of a certificate's public key.
pub(super) fn key_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Sha256::digest(parsed.public_key().raw).into())
}

/// How a node that calls others looks at what they show.
#[derive(Debug)]
pub(super) struct TrustedServers(pub(super) Arc<Trusted>);

impl ServerCertVerifier for TrustedServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchors = self.0.now();
        let node = match server_name {
            ServerName::DnsName(name) => node_of_server_name(name.as_ref()),
            _ => None,
        };
        let key = key_hash(end_entity).ok_or_else(refused)?;
        first(&anchors.all, |anchor| {
            let verified = anchor.servers.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            )?;
            let authority = anchor.fingerprint;
            match anchors.standing(&Shown { authority, key }, node) {
                Standing::Good => Ok(verified),
                Standing::Replaced | Standing::Compromised => Err(refused()),
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signatures::tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signatures::tls13(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signatures::schemes()
    }
}
