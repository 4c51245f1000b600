//! Handing a fork's secrets to the node that carries it out.

use std::{sync::Arc, time::Duration};

use proto::peer::HandSecretsRequest;
use raft::state::{Actor, ForkSource, NodeId, OperationId, OperationState, RequestKey};
use tokio::time::{Instant, timeout_at};

use super::{Api, fork::located};
use crate::{
    convert,
    errors::ApiError,
    secrets::{self, Given},
};

/// How long a node may take to take them.
const PATIENCE: Duration = Duration::from_secs(5);

impl Api {
    /// Hands secrets over before their fork is proposed, so that no child is without. Gives the node that has them; `None` when the
    /// request was carried out before, and what is forked may be gone.
    pub(super) async fn hand_ahead(
        &self,
        by: &Actor,
        key: &RequestKey,
        source: &ForkSource,
        operation: OperationId,
        given: &Arc<Given>,
        deadline: Instant,
    ) -> Result<Option<NodeId>, ApiError> {
        let state = self.read(deadline).await?;
        if state.requests.get(&by.owner, &key.id).is_some() {
            return Ok(None);
        }
        let (node, _) = located(&state, by, source)?;
        self.hand(node, operation, given, deadline).await?;
        Ok(Some(node))
    }

    /// Hands secrets to the node of an operation under way unless that is what was done ahead: the request may have been sent again
    /// (then the operation is the first one's, and an agent that was lost since lost its secrets), or what is forked has moved.
    pub(super) async fn hand_to_its_node(
        &self,
        operation: OperationId,
        handed: Option<(OperationId, NodeId)>,
        given: &Arc<Given>,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let state = self.node.state();
        match state.operations.get(&operation) {
            Some(found)
                if found.state == OperationState::Open
                    && handed != Some((operation, found.node)) =>
            {
                self.hand(found.node, operation, given, deadline).await
            }
            _ => Ok(()),
        }
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
