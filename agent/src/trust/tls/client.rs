//! The client's side of TLS: whom it trusts, and what it shows of itself.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
    client::{
        Resumption, WantsClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    time_provider::TimeProvider,
};

use super::{ALPN_HTTP2, own::OwnCertificate, provider, signatures, trusted::TrustedServers};
use crate::trust::{
    TrustError,
    authority::{Credentials, fingerprint, load_certificates},
    token::JoinToken,
};

/// How a node calls other nodes: shows its own certificate, trusts whom it trusts at that moment.
pub fn for_node(
    own: Arc<OwnCertificate>,
    time: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TrustError> {
    let verifier = TrustedServers(Arc::clone(&own.trusted));
    let config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(own);
    Ok(finish(config))
}

/// How a user calls an agent: a folder with `ca.pem` (which may have several authorities), `cert.pem` and `key.pem`, as
/// `fpagent init` writes it.
pub fn for_user(folder: &Path) -> Result<Arc<ClientConfig>, TrustError> {
    let authorities = load_certificates(&folder.join("ca.pem"))?;
    let own = Credentials::load(&folder.join("cert.pem"), &folder.join("key.pem"))?;
    let config = trusting(authorities)?.with_client_auth_cert(vec![own.certificate], own.key)?;
    Ok(finish(config))
}

/// How a newcomer calls a member: shows the token's key, trusts the authority whose fingerprint is in the token.
pub fn for_joiner(token: &JoinToken) -> Result<Arc<ClientConfig>, TrustError> {
    let verifier = PinnedAuthority {
        fingerprint: token.authority,
    };
    let credentials = token.credentials()?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![credentials.certificate], credentials.key)?;
    Ok(finish(config))
}

fn trusting(
    authorities: Vec<CertificateDer<'static>>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TrustError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots))
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Trusts the authority with this fingerprint, which the server sends along with its certificate, and no other; but also what that one has
/// signed of one in its place.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: [u8; 32],
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|sent| fingerprint(sent) == self.fingerprint)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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
