//! Newcomers that were let in and never started: their join's answer was lost, or their host.

use std::{sync::Arc, time::Duration};

use raft::state::{Command, Millis, State};
use tokio::time::Instant;

use crate::node::Node;

/// How often is looked for such.
const PAUSE: Duration = Duration::from_secs(2);
/// How long forgetting them may take before it is tried again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Has newcomers forgotten that have not started in time, where this node leads, until it ends.
pub async fn forget_late(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        let leads = node.raft.status().leader == Some(node.id());
        if leads && is_one_late(&node.state(), node.now()) {
            let deadline = Instant::now() + PATIENCE;
            match node.propose(None, Command::ForgetNewcomers, deadline).await {
                Ok(_) => tracing::info!("newcomers that have not started in time were forgotten"),
                Err(error) => tracing::debug!(%error, "newcomers are not forgotten yet"),
            }
        }
    }
}

fn is_one_late(state: &State, now: Millis) -> bool {
    let mut nodes = state.nodes.values();
    nodes.any(|node| node.start_by.is_some_and(|end| end <= now))
}
