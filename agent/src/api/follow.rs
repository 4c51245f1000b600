//! Answers that follow the state: what is told of it as it changes, at its reader's own pace.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use raft::node::Published;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::Status;

use super::carry::Answers;
use crate::{errors::ApiError, node::Node};

/// How often it is made sure that nothing has happened of which this node has not heard; and how long that may take.
const QUIET: Duration = Duration::from_secs(5);
const SURE_WITHIN: Duration = Duration::from_secs(5);

/// One that reads the state from a position on.
pub(super) trait Follows: Send + 'static {
    /// A message of what it reads.
    type Part: Send + 'static;

    /// The next message; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<Self::Part>, Status>> + Send;
}

/// What one reads, until its end or the first error.
pub(super) fn told<F: Follows>(reader: F) -> Answers<F::Part> {
    let parts = stream::unfold(Some(reader), async |reader| {
        let mut reader = reader?;
        match reader.next().await {
            Ok(part) => part.map(|part| (Ok(part), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    });
    parts.boxed()
}

/// Until the state has changed, or it is sure that it is the newest there is.
pub(super) async fn until_news(
    node: &Node,
    published: &mut watch::Receiver<Published>,
) -> Result<(), Status> {
    tokio::select! {
        changed = published.changed() => {
            changed.map_err(|_| Status::unavailable("the agent is being stopped"))
        }
        () = node.cancel.cancelled() => Err(Status::unavailable("the agent is being stopped")),
        () = sleep(QUIET) => {
            // One that is cut off must not have its readers believe that nothing happens.
            let sure = node.raft.read_barrier(Instant::now() + SURE_WITHIN).await;
            sure.map(drop).map_err(|error| ApiError::from(error).into())
        }
    }
}
