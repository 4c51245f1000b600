//! How the signatures of a handshake are checked, the same for whoever shows a certificate: by TLS 1.3 and our provider.

use rustls::{
    DigitallySignedStruct, Error, SignatureScheme, client::danger::HandshakeSignatureValid,
    crypto::verify_tls13_signature, pki_types::CertificateDer,
};

use super::provider;

/// TLS 1.2 is never negotiated.
pub(super) fn tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken".to_owned()))
}

/// Whether it was made by the owner of the certificate's key.
pub(super) fn tls13(
    message: &[u8],
    cert: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = provider().signature_verification_algorithms;
    verify_tls13_signature(message, cert, signature, &algorithms)
}

/// Those that can be checked.
pub(super) fn schemes() -> Vec<SignatureScheme> {
    provider()
        .signature_verification_algorithms
        .supported_schemes()
}
