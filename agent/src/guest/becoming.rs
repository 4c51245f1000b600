//! Guests of a node that were let go on and have not become who they are yet. What follows on that (keys, an image's hooks) takes much
//! longer and can wait: where a hundred forks share a few processors, each would otherwise become itself only when all have done all.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

/// How long one of them is waited for: it may never answer. Where a hundred share two processors, that emulate theirs, the last takes some
/// 15 s.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How many there are, over all VMs of a node.
#[derive(Debug, Clone, Default)]
pub struct Becoming(Arc<watch::Sender<usize>>);

impl Becoming {
    /// There is one more, for as long as this is held.
    pub fn one(&self) -> One {
        self.0.send_modify(|count| *count += 1);
        One(Arc::clone(&self.0))
    }

    /// Waits until there is none, if not too long: on a busy node there may always be one.
    pub async fn is_over(&self) {
        let mut count = self.0.subscribe();
        // Neither is it gone while this waits, nor does it matter why it waits no longer.
        let _over = timeout(PATIENCE, count.wait_for(|count| *count == 0)).await;
    }
}

/// One of them.
#[derive(Debug)]
pub struct One(Arc<watch::Sender<usize>>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn what_follows_waits_for_all_of_them() {
        let becoming = Becoming::default();
        assert!(becoming.is_over().now_or_never().is_some());
        let (one, other) = (becoming.one(), becoming.one());
        let mut over = Box::pin(becoming.is_over());
        assert!((&mut over).now_or_never().is_none());
        drop(one);
        assert!((&mut over).now_or_never().is_none());
        drop(other);
        over.await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_is_not_waited_for_longer_than_others_are() {
        let becoming = Becoming::default();
        let _one = becoming.one();
        let begun = Instant::now();
        becoming.is_over().await;
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs());
    }
}
