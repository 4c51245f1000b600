//! A node's own certificate, which may become another one while the node runs: what it shows as a server and as a client from then on.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::provider;
use crate::trust::{TrustError, authority::Credentials, identity::LocalNode};

/// It.
#[derive(Debug)]
pub struct OwnCertificate {
    /// Goes along for newcomers, who know only its fingerprint.
    authority: CertificateDer<'static>,
    now: RwLock<Arc<CertifiedKey>>,
}

impl OwnCertificate {
    /// Of a node.
    pub fn new(node: &LocalNode) -> Result<Arc<Self>, TrustError> {
        let authority = node.authority.certificate().clone();
        let now = RwLock::new(certified(&node.credentials, &authority)?);
        Ok(Arc::new(Self { authority, now }))
    }

    /// Shows this one from now on. Connections that are open stay as they are.
    pub fn set(&self, credentials: &Credentials) -> Result<(), TrustError> {
        let certified = certified(credentials, &self.authority)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    fn now(&self) -> Arc<CertifiedKey> {
        // It is changed whole.
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn certified(
    own: &Credentials,
    authority: &CertificateDer<'static>,
) -> Result<Arc<CertifiedKey>, TrustError> {
    let chain = vec![own.certificate.clone(), authority.clone()];
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
