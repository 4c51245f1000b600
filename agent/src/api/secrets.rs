//! Handing a fork's secrets to the nodes that its children go to.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proto::peer::HandSecretsRequest;
use raft::state::{Actor, NodeId, OperationId, OperationState, Rejection, RequestKey, State};
use tokio::time::{Instant, timeout_at};

use super::Api;
use crate::{
    convert,
    errors::ApiError,
    secrets::{self, Given},
};

/// How long a node may take to take them.
const PATIENCE: Duration = Duration::from_secs(5);

impl Api {
    /// Hands secrets over before their fork is proposed, so that no child is without. Gives the nodes that have them; `None` when the
    /// request was carried out before, and what is forked may be gone.
    pub(super) async fn hand_ahead(
        &self,
        by: &Actor,
        key: &RequestKey,
        operation: OperationId,
        given: &Arc<Given>,
        deadline: Instant,
        places: impl FnOnce(&State) -> Result<Vec<NodeId>, Rejection>,
    ) -> Result<Option<BTreeSet<NodeId>>, ApiError> {
        let state = self.read(deadline).await?;
        if state.requests.get(&by.owner, &key.id).is_some() {
            return Ok(None);
        }
        let nodes: BTreeSet<NodeId> = places(&state)?.into_iter().collect();
        for node in &nodes {
            self.hand(*node, operation, given, deadline).await?;
        }
        Ok(Some(nodes))
    }

    /// Hands secrets to the nodes of the children of an operation under way, but for those that have them: the request may have been sent again
    /// (then the operation is the first one's, and an agent that was lost since lost its secrets), or they go elsewhere than it seemed.
    pub(super) async fn hand_to_its_nodes(
        &self,
        operation: OperationId,
        have: &BTreeSet<NodeId>,
        given: &Arc<Given>,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let state = self.node.state();
        let found = state.operations.get(&operation);
        let Some(found) = found.filter(|found| found.state == OperationState::Open) else {
            return Ok(());
        };
        let nodes: BTreeSet<NodeId> = (0..found.count)
            .map(|number| state.node_of_child(found, number))
            .collect();
        for node in nodes.difference(have) {
            self.hand(*node, operation, given, deadline).await?;
        }
        Ok(())
    }

    async fn hand(
        &self,
        node: NodeId,
        operation: OperationId,
        given: &Arc<Given>,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        if node == self.node.id() {
            self.node.secrets.put(operation, Arc::clone(given));
            return Ok(());
        }
        let state = self.node.state();
        let failed = |problem: String| ApiError::NodeOffline {
            node: convert::node_name(&state, node),
            problem: format!("the fork's secrets cannot be handed to it: {problem}"),
        };
        let mut client = self.client(&state, node).await?;
        let request = HandSecretsRequest {
            operation: operation.to_string(),
            secrets: secrets::message(given),
        };
        let deadline = deadline.min(Instant::now() + PATIENCE);
        match timeout_at(deadline, client.hand_secrets(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(failed(status.message().to_owned())),
            Err(_) => Err(failed("it does not answer".to_owned())),
        }
    }
}
