//! What a node shows of itself, as a server and as a client, and whom it trusts. Both may change while it runs.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{provider, trusted::Trusted};
use crate::trust::{
    TrustError,
    authority::{Credentials, fingerprint},
    identity::LocalNode,
    replacement::Known,
};

/// It.
#[derive(Debug)]
pub struct OwnCertificate {
    /// Whom the node trusts.
    pub trusted: Arc<Trusted>,
    /// The certificate's authority. Goes along for newcomers, who know only its fingerprint.
    authority: RwLock<CertificateDer<'static>>,
    now: RwLock<Arc<CertifiedKey>>,
}

impl OwnCertificate {
    /// Of a node.
    pub fn new(node: &LocalNode) -> Result<Arc<Self>, TrustError> {
        let authority = node.authority.certificate().clone();
        let known = node.replacement.clone();
        let shown = certified(&node.credentials, &authority, known.as_ref())?;
        Ok(Arc::new(Self {
            trusted: Trusted::new(&authority, known)?,
            authority: RwLock::new(authority),
            now: RwLock::new(shown),
        }))
    }

    /// Shows this one, of the same authority, from now on. Connections that are open stay as they are.
    pub fn set(&self, credentials: &Credentials) -> Result<(), TrustError> {
        let authority = self.authority.read();
        let authority = authority.unwrap_or_else(PoisonError::into_inner).clone();
        self.set_under(credentials, authority)
    }

    /// The same, of another authority.
    pub fn set_under(
        &self,
        credentials: &Credentials,
        authority: CertificateDer<'static>,
    ) -> Result<(), TrustError> {
        let shown = certified(credentials, &authority, self.trusted.known().as_ref())?;
        *self
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner) = authority;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    fn now(&self) -> Arc<CertifiedKey> {
        // It is changed whole.
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The certificate with its authority's. Whoever trusts only the authority that was there before is shown what that signed of the new one,
/// and its own certificate while tokens that pin it can be used.
fn certified(
    own: &Credentials,
    authority: &CertificateDer<'static>,
    known: Option<&Known>,
) -> Result<Arc<CertifiedKey>, TrustError> {
    let mut chain = vec![own.certificate.clone()];
    let replacement = known.map(|known| &known.replacement);
    if let Some(replacement) =
        replacement.filter(|one| one.new.fingerprint == fingerprint(authority))
    {
        // Before the new one's own: OpenSSL follows the first that fits.
        chain.push(CertificateDer::from(replacement.cross.clone()));
        if replacement.is_open() && !replacement.is_compromised {
            chain.push(CertificateDer::from(replacement.old.der.clone()));
        }
    }
    chain.push(authority.clone());
    let certified = CertifiedKey::from_der(chain, own.key.clone_key(), &provider())?;
    Ok(Arc::new(certified))
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
