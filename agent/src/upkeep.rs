//! What the leader does about time: what has outlived its own is deleted, operations do not wait for ever for a node that is gone, the
//! copies that it holds of snapshots are made elsewhere, and the maps that it drives are driven by another.

use std::{sync::Arc, time::Duration};

use raft::state::{Command, NodeId, State};
use tokio::time::{Instant, sleep};

use crate::{convert::node_name, node::Node};

/// How often is looked.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a command may take before it is proposed again.
const PATIENCE: Duration = Duration::from_secs(5);
/// So long after a leader was elected nothing ends for want of being renewed: while there was none, nobody could.
const GRACE: Duration = Duration::from_secs(10);

/// Looks after that where this node leads, until it ends.
pub async fn run(node: Arc<Node>) {
    let mut leads_since = None;
    loop {
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = sleep(PAUSE) => {}
        }
        if node.raft.status().leader != Some(node.id()) {
            leads_since = None;
            continue;
        }
        let since = *leads_since.get_or_insert_with(Instant::now);
        if since.elapsed() < GRACE {
            continue;
        }
        let state = node.state();
        if !state.overdue(node.now()).is_empty() {
            propose(&node, Command::Expire).await;
        }
        let silent_for = |id| node.leases.silent_for(id, since);
        for command in waited_for_too_long(&state, node.lost_after, silent_for) {
            propose(&node, command).await;
        }
        for command in driven_elsewhere(&node, &state, silent_for) {
            propose(&node, command).await;
        }
        if let Some(command) = copies_elsewhere(&node, &state, silent_for) {
            propose(&node, command).await;
        }
    }
}

/// Has the copies of snapshots that nodes hold which are silent for so long be made on others, where there are others.
fn copies_elsewhere(
    node: &Node,
    state: &State,
    silent_for: impl Fn(NodeId) -> Duration,
) -> Option<Command> {
    let is_lost = |id: &&NodeId| silent_for(**id) >= node.lost_after;
    let lost: Vec<NodeId> = state.nodes.keys().filter(is_lost).copied().collect();
    let candidates = node.candidates();
    let replaced = state.copies_to_replace(&candidates, &lost);
    (!replaced.is_empty()).then_some(Command::PlaceCopies { candidates, lost })
}

/// Has maps that are left to the cluster be driven by others than nodes that are silent for so long, that are drained, or that let them go.
fn driven_elsewhere(
    node: &Node,
    state: &State,
    silent_for: impl Fn(NodeId) -> Duration,
) -> Vec<Command> {
    let candidates = node.candidates();
    let is_lost = |id| silent_for(id) >= node.lost_after;
    let left = state.maps_to_place(node.now(), &candidates, is_lost);
    let place = |(map, epoch)| Command::PlaceMap {
        map,
        epoch,
        candidates: candidates.clone(),
    };
    left.into_iter().map(place).collect()
}

/// What is given up of nodes that are silent for so long.
fn waited_for_too_long(
    state: &State,
    lost_after: Duration,
    silent_for: impl Fn(NodeId) -> Duration,
) -> Vec<Command> {
    let lost = state.nodes.keys().filter_map(|node| {
        let silent = Some(silent_for(*node)).filter(|silent| *silent >= lost_after)?;
        let reason = format!(
            "node {} has not been heard of for {} s",
            node_name(state, *node),
            silent.as_secs()
        );
        let node = *node;
        (!state.parts_of(node).is_empty()).then_some(Command::CloseParts { node, reason })
    });
    lost.collect()
}

/// The next look repeats what did not get through.
async fn propose(node: &Node, command: Command) {
    match node
        .propose(None, command.clone(), Instant::now() + PATIENCE)
        .await
    {
        Ok(_) => tracing::info!(?command, "done for want of time"),
        Err(error) => tracing::debug!(%error, "not done yet: it is tried again"),
    }
}
