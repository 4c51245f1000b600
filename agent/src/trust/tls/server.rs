//! The server's side of TLS: which client certificates are let in, and as what.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    time_provider::TimeProvider,
};
use ulid::Ulid;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{
    ALPN_HTTP2, node_of_server_name,
    own::OwnCertificate,
    provider, signatures,
    trusted::{Trusted, key_hash},
};
use crate::trust::{
    TrustError,
    authority::{NODE_ROLE, Subject, User, subject_of, user},
    identity::LocalNode,
    replacement::Shown,
};

/// Knows which join tokens somebody may come with.
pub trait TokenLookup: fmt::Debug + Send + Sync {
    /// Whether a token that has not expired, and whose newcomer has not started yet, has a public key with this SHA-256. Must not
    /// block: it is called in handshakes.
    fn is_valid(&self, key_hash: &[u8; 32]) -> bool;
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerRole {
    /// A member with this number.
    Node(u64),
    /// Somebody with a certificate of the cluster.
    User(User),
    /// The holder of a join token: may call `JoinService` only.
    Joiner {
        /// SHA-256 of the token's public key.
        key_hash: [u8; 32],
    },
    /// Somebody on this host who may open the Unix socket: counts as an administrator.
    Local,
}

/// The server's configuration, and the verifier that tells who a peer is.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub(super) config: Arc<ServerConfig>,
    pub(super) verifier: Arc<PeerVerifier>,
    pub(super) time: Arc<dyn TimeProvider>,
}

impl ServerTls {
    /// What a node serves with: TLS 1.3, HTTP/2, a client certificate of its own cluster or a token's.
    pub fn new(
        node: &LocalNode,
        own: Arc<OwnCertificate>,
        tokens: Arc<dyn TokenLookup>,
        time: Arc<dyn TimeProvider>,
    ) -> Result<Self, TrustError> {
        let verifier = Arc::new(PeerVerifier::new(
            node.identity.cluster,
            Arc::clone(&own.trusted),
            tokens,
        ));
        let mut config = ServerConfig::builder_with_details(provider(), Arc::clone(&time))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(own);
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        // A resumed session skips the verifier: a used token would stay good.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
            verifier,
            time,
        })
    }
}

/// Lets in certificates of the authorities that are known, and those whose key is a valid token's.
pub(super) struct PeerVerifier {
    cluster: String,
    trusted: Arc<Trusted>,
    tokens: Arc<dyn TokenLookup>,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl PeerVerifier {
    fn new(cluster: Ulid, trusted: Arc<Trusted>, tokens: Arc<dyn TokenLookup>) -> Self {
        Self {
            cluster: cluster.to_string(),
            trusted,
            tokens,
        }
    }

    /// Who shows this certificate, and by which authority it is believed; a token by none. That it owns the key is checked by the
    /// handshake.
    pub(super) fn role(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(PeerRole, Option<Shown>), Error> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        // A token's certificate is signed by nobody: what it says of itself counts for nothing, only its key does.
        match self.trusted.verify_client(leaf, intermediates, now) {
            Ok(shown) => Ok((self.member_role(leaf)?, Some(shown))),
            Err(refused) => match key_hash(leaf) {
                Some(key_hash) if self.tokens.is_valid(&key_hash) => {
                    Ok((PeerRole::Joiner { key_hash }, None))
                }
                _ => Err(refused),
            },
        }
    }

    /// The role that a certificate of the authority names.
    fn member_role(&self, leaf: &CertificateDer<'_>) -> Result<PeerRole, Error> {
        let wrong = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| wrong())?;
        let Subject { cluster, unit, .. } = subject_of(&leaf).ok_or_else(wrong)?;
        if cluster != self.cluster {
            return Err(wrong());
        }
        if unit == NODE_ROLE {
            return node_id(&leaf).map(PeerRole::Node).ok_or_else(wrong);
        }
        user(&leaf).map(PeerRole::User).ok_or_else(wrong)
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(end_entity)
            .chain(intermediates)
            .cloned()
            .collect();
        self.role(&chain, now)
            .map(|_| ClientCertVerified::assertion())
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

/// The number in the server name `node-<id>.forkypig` of a node's certificate.
fn node_id(certificate: &X509Certificate<'_>) -> Option<u64> {
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::DNSName(name) => node_of_server_name(name),
            _ => None,
        })
}
