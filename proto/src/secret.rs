//! How messages that hold secrets are printed: without them. Whoever logs a request, or an error that holds one, meets these.

use std::{collections::BTreeMap, fmt};

use prost::bytes::Bytes;

use crate::{
    peer::{FetchAuthorityResponse, HandSecretsRequest},
    v1::{ForkRequest, JoinResponse},
};

/// Secrets by their names.
struct Names<'a>(&'a BTreeMap<String, Bytes>);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for ForkRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A field that is added has to be thought of here.
        let Self {
            source,
            count,
            name,
            mode,
            paused,
            labels,
            request_id,
            settings,
            secrets,
            owner,
            node,
            spread,
            keep,
            constraints,
        } = self;
        f.debug_struct("ForkRequest")
            .field("source", source)
            .field("count", count)
            .field("name", name)
            .field("mode", mode)
            .field("paused", paused)
            .field("labels", labels)
            .field("request_id", request_id)
            .field("settings", settings)
            .field("secrets", &Names(secrets))
            .field("owner", owner)
            .field("node", node)
            .field("spread", spread)
            .field("keep", keep)
            .field("constraints", constraints)
            .finish()
    }
}

impl fmt::Debug for HandSecretsRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, secrets } = self;
        f.debug_struct("HandSecretsRequest")
            .field("operation", operation)
            .field("secrets", &Names(secrets))
            .finish()
    }
}

impl fmt::Debug for FetchAuthorityResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key: _ } = self;
        f.debug_struct("FetchAuthorityResponse")
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for JoinResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster_id,
            node_id,
            certificate,
            authority_certificate,
            authority_key: _,
            nodes,
            incarnation,
            replacement,
        } = self;
        f.debug_struct("JoinResponse")
            .field("cluster_id", cluster_id)
            .field("node_id", node_id)
            .field("certificate", certificate)
            .field("authority_certificate", authority_certificate)
            .field("nodes", nodes)
            .field("incarnation", incarnation)
            .field("replacement", replacement)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let secrets = BTreeMap::from([("key".to_owned(), Bytes::from_static(b"hunter2"))]);
        let fork = ForkRequest {
            source: "web".into(),
            secrets: secrets.clone(),
            ..Default::default()
        };
        let hand = HandSecretsRequest {
            operation: "01A".into(),
            secrets,
        };
        let secret = Bytes::from_static(b"hunter2");
        let joined = JoinResponse {
            incarnation: "key".into(),
            authority_key: secret.clone(),
            ..Default::default()
        };
        let fetched = FetchAuthorityResponse { key: secret };
        assert_eq!(format!("{fetched:?}"), "FetchAuthorityResponse { .. }");
        // As text, and as the numbers of its bytes.
        let hidden = ["hunter2", "104, 117", "68, 75"];
        for text in [
            format!("{fork:?}"),
            format!("{fork:#?}"),
            format!("{hand:?}"),
            format!("{joined:?}"),
        ] {
            assert!(text.contains("key"), "{text}");
            for part in hidden {
                assert!(!text.contains(part), "{text}");
            }
        }
    }
}
