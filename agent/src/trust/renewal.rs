//! Nodes renew their certificates before they end: each has the authority's key, and signs its own anew. The key stays, so that there is
//! one file to replace, and the name, so that nothing else changes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    TrustError,
    authority::{Authority, Credentials, expiry},
    identity::{DataDir, Identity, LocalNode},
    tls::own::OwnCertificate,
};

/// So long before a certificate ends it is renewed: a third of its life. A host may be away for months meanwhile.
const AHEAD: Duration = Duration::from_secs(120 * 24 * 3600);
/// How often it is looked at.
pub const PAUSE: Duration = Duration::from_secs(3600);

/// Signs a node's certificate anew where its end is near, or past, and has that on disk. `None` where it is not.
///
/// # Errors
/// It cannot be signed, or written.
pub fn renew(
    data: &DataDir,
    identity: &Identity,
    authority: &Authority,
    own: &Credentials,
) -> Result<Option<Credentials>, TrustError> {
    let ends = expiry(&own.certificate)?;
    if ends > SystemTime::now() + AHEAD {
        return Ok(None);
    }
    let certificate = authority.sign_node_again(identity.node, &identity.name, own)?;
    let renewed = Credentials {
        certificate,
        key: own.key.clone_key(),
    };
    data.replace_certificate(&renewed.certificate)?;
    tracing::info!(ended = ?ends, "this node's certificate was renewed");
    Ok(Some(renewed))
}

/// Renews a node's certificate on disk before it is first shown.
///
/// # Errors
/// See [`renew`].
pub fn renew_before_start(data: &DataDir, node: &mut LocalNode) -> Result<(), TrustError> {
    if let Some(renewed) = renew(data, &node.identity, &node.authority, &node.credentials)? {
        node.credentials = renewed;
    }
    Ok(())
}

/// Keeps a running node's certificate good, for ever. What goes wrong is tried again.
pub async fn keep(
    data: DataDir,
    node: Arc<crate::node::Node>,
    shown: Arc<OwnCertificate>,
    mut own: Credentials,
) {
    loop {
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        let renewed = renew(&data, &node.identity, &node.authority, &own);
        let set = renewed.and_then(|renewed| {
            if let Some(renewed) = renewed {
                shown.set(&renewed)?;
                own = renewed;
            }
            Ok(())
        });
        if let Err(error) = set {
            tracing::error!(%error, "this node's certificate cannot be renewed; it is tried again within the hour");
        }
    }
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
