//! A node that was removed from its cluster: how its agent learns of that, and what it does then.
//!
//! One that runs sees it in its own copy of the state, and stays until others vote in its place. One that was away is told by the
//! first node that it calls.

use std::time::Duration;

use raft::state::NodeId;
use tokio::time::{sleep, timeout};

use crate::{node::Node, trust::identity::DataDir, vms::command::Command};

/// How long the processes of VMs that were given up may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// Returns once it is sure that a node was removed and is not needed any more: whoever has told it, or nobody had to.
pub async fn learned(node: &Node) -> Option<NodeId> {
    let mut removed = node.peers.removed();
    let told = async {
        match removed.wait_for(Option::is_some).await {
            Ok(by) => *by,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = node.raft.removed(node.id()) => None,
        by = told => by,
    }
}

/// Notes in the data directory that its node was removed, and ends the VMs that were given up with it, as far as the state says so: what
/// is not known to be given up runs on. Returns what is to be said of it.
pub async fn depart(node: &Node, data: &DataDir, told_by: Option<NodeId>) -> String {
    if let Err(error) = data.mark_removed() {
        tracing::error!(error = %crate::errors::chain(&error), "it cannot be noted that this node was removed; the next start is told again");
    }
    end_given_up(node).await;
    let own = &node.identity;
    let (name, number, cluster) = (&own.name, own.node, own.cluster);
    let by = match told_by {
        Some(by) => format!(", as node {by} says"),
        None => String::new(),
    };
    let left = match running(node) {
        pids if pids.is_empty() => String::new(),
        pids => format!(
            " VMs of it run on that nobody looks after any more: end their processes ({})",
            pids.join(", ")
        ),
    };
    format!(
        "node {name} (number {number}) was removed from the cluster {cluster}{by}: it serves no more. Take what you need out of {}, \
         empty it, and join with a new token.{left}",
        data.root().display()
    )
}

async fn end_given_up(node: &Node) {
    let Some(removed) = node.state().removed.get(&node.id()).cloned() else {
        return;
    };
    let given_up = || {
        let all = node.vms.all().into_iter();
        all.filter(|(vm, handle)| removed.vms.contains_key(vm) && handle.pid() != 0)
    };
    if given_up().next().is_none() {
        return;
    }
    for (vm, handle) in given_up() {
        tracing::warn!(%vm, "a VM is ended that was given up with this node; its files stay");
        // One that takes no more is looked at below.
        let _gone = handle.tell(Command::Kill).await;
    }
    let ended = async {
        while given_up().next().is_some() {
            sleep(LOOK).await;
        }
    };
    if timeout(PATIENCE, ended).await.is_err() {
        tracing::error!("VMs that were given up with this node do not end");
    }
}

/// The processes of VMs that run. Forks that were kept ready are none, and end with the agent.
fn running(node: &Node) -> Vec<String> {
    let all = node.vms.all().into_iter();
    all.filter(|(_, handle)| handle.seen().has_run && handle.pid() != 0)
        .map(|(_, handle)| handle.pid().to_string())
        .collect()
}
