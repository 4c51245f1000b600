//! How messages that hold secrets are printed: without them. Whoever logs a request, or an error that holds one, meets these.

use std::{collections::BTreeMap, fmt};

use prost::bytes::Bytes;

use crate::{peer::HandSecretsRequest, v1::ForkRequest};

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
        // As text, and as the numbers of its bytes.
        let hidden = ["hunter2", "104, 117", "68, 75"];
        for text in [
            format!("{fork:?}"),
            format!("{fork:#?}"),
            format!("{hand:?}"),
        ] {
            assert!(text.contains("key"), "{text}");
            for part in hidden {
                assert!(!text.contains(part), "{text}");
            }
        }
    }
}
