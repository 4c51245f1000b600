//! Nodes renew their certificates before they end, and when the authority was replaced: each has the authority's key, and signs its own anew.
//! Its own key stays, so that there is one file to replace, and the name, so that nothing else changes.

use std::time::{Duration, SystemTime};

use super::{
    TrustError,
    authority::{Authority, Credentials, expiry},
    identity::{DataDir, Identity, LocalNode},
};

/// So long before a certificate ends it is renewed: a third of its life. A host may be away for months meanwhile.
const AHEAD: Duration = Duration::from_secs(120 * 24 * 3600);

/// Whether a node's certificate is to be signed anew: its end is near, or past, or it is of another authority than the one that signs.
///
/// # Errors
/// It is malformed.
pub fn is_due(
    authority: &Authority,
    own: &Credentials,
    now: SystemTime,
) -> Result<bool, TrustError> {
    let is_near = expiry(&own.certificate)? <= now + AHEAD;
    Ok(is_near || !authority.has_signed(&own.certificate)?)
}

/// Signs a node's certificate anew, and has that on disk.
///
/// # Errors
/// It cannot be signed, or written.
pub fn renew(
    data: &DataDir,
    identity: &Identity,
    authority: &Authority,
    own: &Credentials,
) -> Result<Credentials, TrustError> {
    let ends = expiry(&own.certificate)?;
    let certificate = authority.sign_node_again(identity.node, &identity.name, own)?;
    let renewed = Credentials {
        certificate,
        key: own.key.clone_key(),
    };
    data.replace_certificate(&renewed.certificate)?;
    tracing::info!(ended = ?ends, "this node's certificate was renewed");
    Ok(renewed)
}

/// Renews a node's certificate on disk before it is first shown.
///
/// # Errors
/// See [`renew`].
pub fn renew_before_start(data: &DataDir, node: &mut LocalNode) -> Result<(), TrustError> {
    // Before the cluster's time is known. What is signed by a clock that is wrong begins no later than what was there.
    if is_due(&node.authority, &node.credentials, SystemTime::now())? {
        node.credentials = renew(data, &node.identity, &node.authority, &node.credentials)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;

    use super::*;
    use crate::trust::identity::Member;

    #[test]
    fn a_certificate_is_renewed_when_its_end_is_near_and_stays_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::new(folder.path().join("data"));
        let authority = Authority::create(Ulid::new()).unwrap();
        let address = "127.0.0.1:7400".to_owned();
        let identity = Identity {
            cluster: authority.cluster(),
            incarnation: authority.cluster(),
            node: 1,
            name: "host-a".to_owned(),
            listen: address.clone(),
            advertise: address.clone(),
            members: vec![Member {
                id: 1,
                name: "host-a".to_owned(),
                address,
            }],
        };
        let credentials = authority.issue_node(1, "host-a").unwrap();
        let mut node = LocalNode {
            identity,
            authority,
            credentials,
            replacement: None,
        };
        data.prepare(&node, None).unwrap();
        let fresh = node.credentials.certificate.clone();
        renew_before_start(&data, &mut node).unwrap();
        assert_eq!(node.credentials.certificate, fresh, "its end is far");

        for end in [SystemTime::now() + AHEAD, SystemTime::now() - AHEAD] {
            let key = node.credentials.clone();
            let old = node
                .authority
                .sign_node_until(1, "host-a", &key, end)
                .unwrap();
            node.credentials.certificate = old.clone();
            renew_before_start(&data, &mut node).unwrap();
            assert_ne!(node.credentials.certificate, old);
            assert!(expiry(&node.credentials.certificate).unwrap() > SystemTime::now() + AHEAD);
            let loaded = data.load().unwrap();
            assert_eq!(loaded.credentials.certificate, node.credentials.certificate);
            loaded.credentials.check().unwrap();
        }
    }
}
