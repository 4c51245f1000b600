//! What forks' guests are told and nobody else. It lies in the memory of the node that carries a fork out, and only there: the
//! API of the node that took the request hands it over before the fork is proposed, whoever makes the children gives it to them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use raft::state::{OperationId, names};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use zeroize::Zeroizing;

use crate::{errors::ApiError, node::Node};

/// How long they are kept after they were handed over last.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// How many a fork may have.
const MOST: usize = 64;
/// How long one may be, bytes.
const LONGEST: usize = 16 << 10;
/// How long all of a fork may be, bytes.
const LONGEST_TOGETHER: usize = 32 << 10;

/// One secret. Its memory is zeroed when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// What it is.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The secrets of one fork, by their keys.
pub type Given = BTreeMap<String, Secret>;

/// Takes secrets out of a message, if it has any.
///
/// # Errors
/// A field that is wrong, when they are too many or too long, or have keys that are none. No error holds a value.
pub fn take(message: BTreeMap<String, Bytes>) -> Result<Option<Arc<Given>>, ApiError> {
    let refuse = |problem| {
        Err(ApiError::InvalidField {
            field: "secrets",
            problem,
        })
    };
    if message.len() > MOST {
        return refuse(format!("must be at most {MOST}"));
    }
    if let Some(key) = message.keys().find(|key| !names::is_key(key)) {
        let shown = names::shown(key);
        return refuse(format!("{shown} is not a key: {}", names::KEY_RULE));
    }
    if let Some((key, _)) = message.iter().find(|(_, value)| value.len() > LONGEST) {
        return refuse(format!(
            "the value of {key} must be at most {LONGEST} bytes"
        ));
    }
    let bytes: usize = message.values().map(Bytes::len).sum();
    if bytes > LONGEST_TOGETHER {
        return refuse(format!(
            "must be at most {LONGEST_TOGETHER} bytes together, and are {bytes}"
        ));
    }
    let secret = |value: Bytes| Secret(Zeroizing::new(value.to_vec()));
    let given: Given = message
        .into_iter()
        .map(|(key, value)| (key, secret(value)))
        .collect();
    Ok((!given.is_empty()).then(|| Arc::new(given)))
}

/// Secrets for a message to another node.
pub fn message(given: &Given) -> BTreeMap<String, Bytes> {
    let value = |secret: &Secret| Bytes::from_owner(secret.0.clone());
    given
        .iter()
        .map(|(key, secret)| (key.clone(), value(secret)))
        .collect()
}

/// The secrets that a node keeps for forks.
#[derive(Default)]
pub struct Secrets {
    held: Mutex<BTreeMap<OperationId, Held>>,
    /// Rung when there are more.
    more: Notify,
}

struct Held {
    given: Arc<Given>,
    until: Instant,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("operations", &self.held().len())
            .finish()
    }
}

impl Secrets {
    /// Keeps an operation's secrets for ten minutes. When they come again the time begins anew, and what came first counts: all
    /// children are told the same.
    pub fn put(&self, operation: OperationId, given: Arc<Given>) {
        let until = Instant::now() + KEPT;
        self.held()
            .entry(operation)
            .and_modify(|held| held.until = until)
            .or_insert(Held { given, until });
        self.more.notify_one();
    }

    /// An operation's secrets, while they are kept.
    pub fn get(&self, operation: OperationId) -> Option<Arc<Given>> {
        let held = self.held();
        let found = held.get(&operation)?;
        (found.until > Instant::now()).then(|| Arc::clone(&found.given))
    }

    /// Forgets those whose time is over. Gives the time at which the next one's is.
    fn sweep(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut held = self.held();
        held.retain(|_, held| held.until > now);
        held.values().map(|held| held.until).min()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<OperationId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets secrets when their time is over, until the node ends.
pub async fn forget_in_time(node: Arc<Node>) {
    loop {
        let next = node.secrets.sweep();
        let over = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = node.secrets.more.notified() => {}
            () = over => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(values: &[(&str, usize)]) -> BTreeMap<String, Bytes> {
        let value = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
        values
            .iter()
            .map(|(key, bytes)| ((*key).to_owned(), value(*bytes)))
            .collect()
    }

    #[test]
    fn secrets_have_keys_and_limits() {
        let many: BTreeMap<_, _> = (0..65).map(|n| (format!("k{n}"), Bytes::new())).collect();
        for (bad, says) in [
            (given(&[("1a", 1)]), "1a"),
            (given(&[("a b", 1)]), "a b"),
            (given(&[("k", LONGEST + 1)]), "value of k"),
            (
                given(&[("a", LONGEST), ("b", LONGEST), ("c", 1)]),
                "together",
            ),
            (many, "at most 64"),
        ] {
            let refused = take(bad).unwrap_err().to_string();
            assert!(refused.starts_with("secrets: "), "{refused}");
            assert!(
                refused.contains(says) && !refused.contains("xx"),
                "{refused}"
            );
        }
        assert_eq!(take(BTreeMap::new()).unwrap(), None);
        let most = given(&[("a", LONGEST), ("b", LONGEST)]);
        let taken = take(most.clone()).unwrap().unwrap();
        assert_eq!(message(&taken), most);
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_kept_for_ten_minutes_after_they_came_last() {
        let secrets = Secrets::default();
        let (first, second) = (OperationId(1), OperationId(2));
        let some = |bytes| take(given(&[("k", bytes)])).unwrap().unwrap();
        secrets.put(first, some(1));
        assert_eq!(secrets.get(first), Some(some(1)));
        assert_eq!(secrets.get(second), None);

        tokio::time::advance(KEPT / 2).await;
        secrets.put(second, some(2));
        assert_eq!(secrets.sweep(), Some(Instant::now() + KEPT / 2));
        secrets.put(first, some(9));
        assert_eq!(secrets.get(first), Some(some(1)), "what came first counts");

        tokio::time::advance(KEPT / 2).await;
        assert!(secrets.get(first).is_some(), "it came again");
        tokio::time::advance(KEPT / 2).await;
        assert_eq!((secrets.get(first), secrets.get(second)), (None, None));
        assert_eq!(format!("{secrets:?}"), "Secrets { operations: 2 }");
        assert_eq!(secrets.sweep(), None);
        assert_eq!(format!("{secrets:?}"), "Secrets { operations: 0 }");
    }

    #[test]
    fn they_are_not_printed() {
        let kept = take(BTreeMap::from([(
            "key".to_owned(),
            Bytes::from_static(b"hunter2"),
        )]));
        assert_eq!(
            format!("{:?}", kept.unwrap().unwrap()),
            r#"{"key": Secret}"#
        );
    }
}
