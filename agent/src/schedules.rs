//! Snapshots of VMs that are taken by a schedule: the node where a VM lives begins each when it is due, as `snapshot create` would. When that is
//! follows from the state and the cluster's time ([`State::snapshots_due`], pure), so an agent that comes back, or a node that a VM was
//! moved to, goes on with it. Started by the daemon.
//!
//! [`State::snapshots_due`]: raft::state::State::snapshots_due

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use raft::state::{Actor, Command, Millis, OperationId, VmId};
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use crate::node::Node;

/// How often is looked. Each look is at this node's VMs only.
const PAUSE: Duration = Duration::from_millis(500);
/// How many are taken at once: each copies what was written, which takes of the disk what those that run need, too.
const AT_ONCE: usize = 2;
/// Before one that was refused is tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// How long a proposal may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a capture may be waited for.
const CAPTURE_PATIENCE: Millis = 60_000;

/// Takes what is due, until the node ends.
pub async fn run(node: Arc<Node>) {
    let mut refused: BTreeMap<VmId, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = sleep(PAUSE) => {}
        }
        // The state that it starts with may have what is due as it was long ago.
        if !node.forks.has_caught_up() {
            continue;
        }
        refused.retain(|_, at| at.elapsed() < REFUSED_PAUSE);
        let state = node.state();
        let but = refused.keys().copied().collect();
        for vm in state.snapshots_due(node.id(), node.now(), AT_ONCE, &but) {
            if !begin(&node, vm).await {
                refused.insert(vm, Instant::now());
            }
        }
    }
}

/// Begins to take one. Says whether it may be tried again at once, where that did not get through.
async fn begin(node: &Node, vm: VmId) -> bool {
    let command = Command::TakeScheduled {
        operation: OperationId::from_ulid(Ulid::new().0),
        vm,
        node: node.id(),
        candidates: node.candidates(),
        expires_at: node.now() + CAPTURE_PATIENCE,
    };
    let deadline = Instant::now() + PATIENCE;
    let cluster = Actor::cluster();
    let proposed = node.propose_for(&cluster, None, command, deadline);
    match proposed.await {
        Ok(Ok(_)) => true,
        Ok(Err(refusal)) => {
            tracing::warn!(%vm, %refusal, "a snapshot that is due cannot be taken; trying again");
            false
        }
        Err(error) => {
            tracing::debug!(%vm, %error, "a snapshot that is due was not begun yet");
            true
        }
    }
}
