//! The leader's side: what it grants to nodes that it hears of, and what it does about those that it does not.

use std::{sync::Arc, time::Duration};

use raft::{
    node::Leading,
    state::{Command, NodeId},
};
use tokio::time::{Instant, sleep};

use super::{Answered, Fence, LEASE, MARGIN, lock};
use crate::node::Node;

/// How often is looked, and a majority asked.
const PAUSE: Duration = Duration::from_millis(250);
/// Who looks so late stood still itself.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// Before something is proposed again of which nothing is known.
const AGAIN: Duration = Duration::from_millis(100);

impl Fence {
    /// What is granted to a node whose renewal was noted, where this node leads in this term; nothing to one that is given up, nor while no
    /// majority has said so.
    pub fn answer(&self, node: NodeId, term: u64) -> Option<Answered> {
        let leading = (*lock(&self.leading)).filter(|leading| leading.term == term)?;
        if lock(&self.given_up).contains(&node) {
            return None;
        }
        let age = leading.since.elapsed();
        let index = self.published.borrow().index.max(leading.index);
        (age < LEASE).then_some(Answered { age, index })
    }

    fn set_leading(&self, leading: Option<Leading>) {
        *lock(&self.leading) = leading;
    }
}

/// Grants and gives up where this node leads, until it ends.
pub async fn lead(node: Arc<Node>) {
    let fence = node.vms.fence();
    let mut led: Option<(u64, Instant)> = None;
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = sleep(PAUSE) => {}
        }
        let stood_still = looked.elapsed() > STOOD_STILL;
        looked = Instant::now();
        let status = node.raft.status();
        if status.leader != Some(node.id()) || stood_still {
            // Whom one that stood still itself has not heard of may be there all the same.
            led = None;
            fence.set_leading(None);
            continue;
        }
        let since = match led {
            Some((term, since)) if term == status.term => since,
            _ => Instant::now(),
        };
        led = Some((status.term, since));
        let concerned = node.state().nodes_with_ha();
        if concerned.is_empty() {
            continue;
        }
        if let Some(leading) = node.raft.confirm_leading().await {
            fence.set_leading(Some(leading));
        }
        for other in concerned.into_iter().filter(|other| *other != node.id()) {
            restore_if_lost(&node, other, status.term, since).await;
        }
    }
}

/// Has the VMs of a node go on elsewhere that has not been heard of for so long that they do not run there any more.
async fn restore_if_lost(node: &Arc<Node>, lost: NodeId, term: u64, since: Instant) {
    let is_lost = || node.leases.silent_for(lost, since) >= LEASE + MARGIN;
    let candidates = node.candidates();
    if !is_lost() || !node.state().would_restore(lost, &candidates) {
        return;
    }
    let fence = node.vms.fence();
    lock(&fence.given_up).insert(lost);
    // Its renewal is noted before it is answered: one that was answered before this is seen here.
    if is_lost() {
        let silent_for = node.leases.unheard_for(lost).unwrap_or_default();
        let command = Command::RestoreVms {
            node: lost,
            silent_for: u64::try_from(silent_for.as_millis()).unwrap_or(u64::MAX),
            candidates,
        };
        tracing::warn!(
            node = lost,
            ?silent_for,
            "a node is lost: its VMs that are to be restored go on elsewhere"
        );
        settle(node, command, term).await;
    }
    lock(&fence.given_up).remove(&lost);
}

/// Proposes until it is known what came of it, or this node does not lead in this term any more: what is in its log then is applied before
/// another leader, or this one in a later term, grants anything.
async fn settle(node: &Arc<Node>, command: Command, term: u64) {
    loop {
        match node.propose_leading(command.clone()).await {
            Ok(_) => return,
            Err(error) => tracing::debug!(%error, "a node's VMs are not restored yet"),
        }
        let status = node.raft.status();
        if node.cancel.is_cancelled() || status.term != term || status.leader != Some(node.id()) {
            return;
        }
        sleep(AGAIN).await;
    }
}
