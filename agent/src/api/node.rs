//! Nodes.

use proto::v1::{
    CordonNodeRequest, GetNodeRequest, LabelNodeRequest, ListNodesRequest, ListNodesResponse, Node,
    node_service_server::NodeService,
};
use raft::state::{Command, Response as Outcome, State, names};
use tonic::{Request, Response, Status};

use super::{Api, deadline, request_key, unexpected};
use crate::{convert, errors::ApiError};

#[tonic::async_trait]
impl NodeService for Api {
    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let state = self.read(deadline(&request)).await?;
        let mut nodes: Vec<_> = state
            .nodes
            .values()
            .map(|node| self.node_message(&state, node))
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(ListNodesResponse { nodes }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        let state = self.read(deadline(&request)).await?;
        let node = names::node(&state, &request.into_inner().node).map_err(ApiError::from)?;
        Ok(Response::new(self.node_message(&state, node)))
    }

    async fn label_node(
        &self,
        request: Request<LabelNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let set = request.set;
        let command = Command::LabelNode {
            node: request.node,
            set,
            remove: request.remove,
        };
        Ok(Response::new(self.changed_node(
            self.change(key, command, deadline).await?,
        )?))
    }

    async fn cordon_node(
        &self,
        request: Request<CordonNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::CordonNode {
            node: request.node,
            schedulable: request.schedulable,
        };
        Ok(Response::new(self.changed_node(
            self.change(key, command, deadline).await?,
        )?))
    }
}

impl Api {
    fn node_message(&self, state: &State, node: &raft::state::Node) -> Node {
        convert::node(
            state,
            node,
            self.node.leases.online().as_ref(),
            &self.node.raft.status(),
        )
    }

    fn changed_node(&self, outcome: Outcome) -> Result<Node, ApiError> {
        let Outcome::Node(id) = outcome else {
            return Err(unexpected(outcome));
        };
        let state = self.node.state();
        let node = names::node(&state, &id.to_string())?;
        Ok(self.node_message(&state, node))
    }
}
