//! `fpagent node`.

use std::{collections::BTreeMap, time::Duration};

use proto::v1::{
    CordonNodeRequest, DeleteNodeRequest, DrainNodeRequest, GetNodeRequest, LabelNodeRequest,
    ListNodesRequest,
};
use tokio::time::{Instant, sleep};

use crate::client::{
    Context,
    args::{
        Change,
        cluster::{LabelChange, NodeCommand},
    },
    failure::{Failure, FailureKind},
    progress::Progress,
    views::node::{NodeView, RemovedNodeView},
};

pub(crate) async fn run(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        NodeCommand::Ls => {
            let listed = reach.call(async |attempt| {
                attempt
                    .nodes()
                    .list_nodes(attempt.request(ListNodesRequest {}))
                    .await
            });
            let nodes: Vec<_> = listed
                .await?
                .nodes
                .into_iter()
                .map(NodeView::from)
                .collect();
            context.list(&nodes)
        }
        NodeCommand::Show { node } => {
            let request = GetNodeRequest { node };
            let shown = reach.call(async |attempt| {
                attempt
                    .nodes()
                    .get_node(attempt.request(request.clone()))
                    .await
            });
            context.show(&NodeView::from(shown.await?))
        }
        NodeCommand::Label {
            node,
            labels,
            change,
        } => {
            let (mut set, mut remove) = (BTreeMap::new(), Vec::new());
            for label in labels {
                match label {
                    LabelChange::Set(key, value) => drop(set.insert(key, value)),
                    LabelChange::Remove(key) => remove.push(key),
                }
            }
            let request = LabelNodeRequest {
                node,
                set,
                remove,
                request_id: change.id(),
            };
            let labelled = reach.change(&request.request_id, async |attempt| {
                attempt
                    .nodes()
                    .label_node(attempt.request(request.clone()))
                    .await
            });
            context.one(NodeView::from(labelled.await?))
        }
        NodeCommand::Cordon { node, change } => cordon(context, node, false, change).await,
        NodeCommand::Uncordon { node, change } => cordon(context, node, true, change).await,
        NodeCommand::Drain {
            node,
            force,
            suspend,
            no_wait,
            change,
        } => {
            let request = DrainNodeRequest {
                node,
                force,
                suspend,
                request_id: change.id(),
            };
            drain(context, request, no_wait).await
        }
        NodeCommand::Rm {
            node,
            force,
            change,
        } => {
            let request = DeleteNodeRequest {
                node,
                force,
                request_id: change.id(),
            };
            let _progress = Progress::spinner(format!("removing {}", request.node));
            let removed = reach.change(&request.request_id, async |attempt| {
                attempt
                    .nodes()
                    .delete_node(attempt.request(request.clone()))
                    .await
            });
            let removed = RemovedNodeView::from(removed.await?);
            if !context.for_people() {
                return context.data(&removed);
            }
            removed
                .lines()
                .into_iter()
                .try_for_each(|line| context.say(line))
        }
    }
}

/// Between two looks at how far a node is drained.
const LOOK: Duration = Duration::from_millis(250);

async fn drain(context: &Context, request: DrainNodeRequest, no_wait: bool) -> Result<(), Failure> {
    let reach = context.reach()?;
    let drained = reach.change(&request.request_id, async |attempt| {
        attempt
            .nodes()
            .drain_node(attempt.request(request.clone()))
            .await
    });
    let mut node = drained.await?;
    if no_wait {
        return context.one(NodeView::from(node));
    }
    // It takes as long as it takes, unless somebody says otherwise.
    let deadline = context
        .global
        .timeout
        .map(|timeout| Instant::now() + timeout);
    let progress = Progress::things(format!("draining {}", node.name), u64::from(node.vms));
    let before = node.vms;
    while node.drain.as_ref().is_some_and(|drain| !drain.done) {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Failure::new(
                FailureKind::TimedOut,
                format!("{} is not drained yet", node.name),
                "it goes on by itself; `fpagent node show` tells how far it is",
            ));
        }
        sleep(LOOK).await;
        let request = GetNodeRequest {
            node: node.id.to_string(),
        };
        let shown = reach.call(async |attempt| {
            attempt
                .nodes()
                .get_node(attempt.request(request.clone()))
                .await
        });
        node = shown.await?;
        progress.at(u64::from(before.saturating_sub(node.vms)));
    }
    drop(progress);
    drained_as(context, NodeView::from(node))
}

/// Tells what came of draining a node.
fn drained_as(context: &Context, node: NodeView) -> Result<(), Failure> {
    if context.for_people() {
        let lines = node.drain.iter().flat_map(|drain| drain.lines(&node.name));
        lines.into_iter().try_for_each(|line| context.say(line))?;
    } else {
        context.data(&node)?;
    }
    match &node.drain {
        None => Err(Failure::refused(
            format!("{} is not drained any more", node.name),
            "somebody has uncordoned it",
        )),
        Some(drain) if !drain.stays.is_empty() => {
            let names: Vec<&str> = drain.stays.iter().map(|one| one.vm.as_str()).collect();
            Err(Failure::refused(
                format!(
                    "{} of its VMs could not be moved from {}: {}",
                    names.len(),
                    node.name,
                    names.join(", ")
                ),
                "make room for them, or move or delete them, and drain it again",
            ))
        }
        Some(_) => Ok(()),
    }
}

async fn cordon(
    context: &Context,
    node: String,
    schedulable: bool,
    change: Change,
) -> Result<(), Failure> {
    let request = CordonNodeRequest {
        node,
        schedulable,
        request_id: change.id(),
    };
    let reach = context.reach()?;
    let cordoned = reach.change(&request.request_id, async |attempt| {
        attempt
            .nodes()
            .cordon_node(attempt.request(request.clone()))
            .await
    });
    context.one(NodeView::from(cordoned.await?))
}
