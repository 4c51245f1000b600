//! Operations.

use std::sync::Arc;

use proto::v1::{
    self, CancelOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, operation_service_server::OperationService,
};
use raft::state::{Command, Operation, OperationState, Response as Outcome, State, names};
use tonic::{Request, Response, Status};

use super::{Api, asker::asked, carry::Answers, lists::in_parts, request_key, unexpected};
use crate::{audit, convert, errors::ApiError};

impl Api {
    /// What the nodes of an operation's children fetch for it now.
    async fn transfers_for(&self, state: &State, operation: &Operation) -> Vec<v1::Transfer> {
        let children = 0..operation.count;
        let nodes = children.map(|number| state.node_of_child(operation, number));
        let nodes = nodes.chain(operation.to);
        // One VM's id, so that nobody tells of all.
        let one = vec![operation.id.child(0).to_string()];
        let answers = self.ask_nodes(nodes.collect(), one).await.into_iter();
        let snapshot = operation.snapshot.to_string();
        answers
            .flat_map(|answer| answer.transfers)
            .filter(|one| one.snapshot == snapshot)
            .filter_map(|one| one.transfer)
            .collect()
    }
}

#[tonic::async_trait]
impl OperationService for Api {
    type ListOperationsStream = Answers<ListOperationsResponse>;

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<Self::ListOperationsStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let seen = state.operations.values();
        let mut seen: Vec<_> = seen.filter(|one| one.is_seen_by(&by)).cloned().collect();
        // Their ids are in the order of their times.
        seen.reverse();
        let shown = move |one: &Arc<_>| Some(convert::operation(&state, &by, one));
        let part_of = |operations| ListOperationsResponse { operations };
        Ok(Response::new(in_parts(seen, shown, part_of)))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (by, deadline) = asked(&request)?;
        let named = request.into_inner().operation;
        audit::about(|| format!("operation {named}"));
        let state = self.read(deadline).await?;
        let operation = names::operation(&state, &by, &named).map_err(ApiError::from)?;
        let mut shown = convert::operation(&state, &by, operation);
        if operation.state == OperationState::Open {
            shown.transfers = self.transfers_for(&state, operation).await;
        }
        Ok(Response::new(shown))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::CancelOperation {
            operation: request.operation,
        };
        let id = match self.change(&by, key, command, deadline).await? {
            Outcome::Operation(id) => id,
            other => return Err(unexpected(other).into()),
        };
        let state = self.node.state();
        let operation = names::operation(&state, &by, &id.to_string()).map_err(ApiError::from)?;
        Ok(Response::new(convert::operation(&state, &by, operation)))
    }
}
