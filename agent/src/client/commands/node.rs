//! `fpagent node`.

use std::collections::BTreeMap;

use proto::v1::{
    CordonNodeRequest, DeleteNodeRequest, GetNodeRequest, LabelNodeRequest, ListNodesRequest,
};

use crate::client::{
    Context,
    args::{
        Change,
        cluster::{LabelChange, NodeCommand},
    },
    failure::Failure,
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
