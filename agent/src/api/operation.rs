//! Operations.

use proto::v1::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse,
    Operation, operation_service_server::OperationService,
};
use raft::state::{Command, Response as Outcome, names};
use tonic::{Request, Response, Status};

use super::{Api, deadline, request_key, unexpected};
use crate::{convert, errors::ApiError};

#[tonic::async_trait]
impl OperationService for Api {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let state = self.read(deadline(&request)).await?;
        let mut operations: Vec<_> = state
            .operations
            .values()
            .map(|one| convert::operation(&state, one))
            .collect();
        // Their ids are in the order of their times.
        operations.reverse();
        Ok(Response::new(ListOperationsResponse { operations }))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let state = self.read(deadline(&request)).await?;
        let operation =
            names::operation(&state, &request.into_inner().operation).map_err(ApiError::from)?;
        Ok(Response::new(convert::operation(&state, operation)))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::CancelOperation {
            operation: request.operation,
        };
        let id = match self.change(key, command, deadline).await? {
            Outcome::Operation(id) => id,
            other => return Err(unexpected(other).into()),
        };
        let state = self.node.state();
        let operation = names::operation(&state, &id.to_string()).map_err(ApiError::from)?;
        Ok(Response::new(convert::operation(&state, operation)))
    }
}
