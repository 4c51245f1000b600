//! Moving VMs: asking for the operation, waiting for its end, and the answer; and what the node is sent that a VM goes to.

use std::time::Duration;

use proto::{
    peer::{ReceiveVmRequest, ReceiveVmResponse},
    v1::{MoveVmRequest, MoveVmResponse},
};
use raft::{
    codec,
    state::{Actor, Command, OperationId},
};
use tokio::{sync::oneshot, time::Instant};
use tonic::Status;
use ulid::Ulid;

use super::{Api, request_key};
use crate::{
    convert,
    errors::ApiError,
    vms::fork::{Arrival, Sent},
};

impl Api {
    pub(super) async fn move_vm(
        &self,
        by: &Actor,
        request: MoveVmRequest,
        deadline: Instant,
    ) -> Result<MoveVmResponse, ApiError> {
        let key = request_key(&request, |request| &mut request.request_id);
        let change = Command::MoveVm {
            operation: OperationId::from_ulid(Ulid::new().0),
            vm: request.vm,
            node: Some(request.node).filter(|node| !node.is_empty()),
            candidates: self.node.candidates(),
            expires_at: self.expiry(),
        };
        let ended = self.carried_out(by, key, change, deadline).await?;
        let id = ended.vm.unwrap_or_else(|| ended.id.child(0));
        Ok(MoveVmResponse {
            operation: ended.id.to_string(),
            vm: Some(self.vm_message(by, id).await?),
            pause_ms: convert::pause_ms(&ended),
        })
    }

    /// Hands what a node has sent to who carries out that its VM comes here.
    pub(super) async fn receive(
        &self,
        request: ReceiveVmRequest,
    ) -> Result<ReceiveVmResponse, Status> {
        let came = Instant::now();
        let malformed = |_| Status::invalid_argument("it is malformed");
        let operation = request.operation.parse().map_err(malformed)?;
        let proposal = codec::decode_proposal(&request.arrival)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Command::Arrive { content, disk, .. } = proposal.command else {
            return Err(Status::invalid_argument("it is no arrival"));
        };
        let stopped = Duration::from_micros(request.stopped_us);
        let arrival = Arrival {
            content,
            disk,
            last: request.last,
            stopped: came.checked_sub(stopped).filter(|_| request.stopped_us > 0),
            printed: request.printed,
            printed_before: request.printed_before,
        };
        let unknown = || Status::unavailable("nobody here takes it yet");
        let taker = self.node.forks.taker(operation).ok_or_else(unknown)?;
        let (done, answer) = oneshot::channel();
        let sent = taker.send(Sent { arrival, done }).await;
        sent.map_err(|_| unknown())?;
        match answer.await {
            Ok(Ok(())) => Ok(ReceiveVmResponse {}),
            Ok(Err(problem)) => Err(Status::failed_precondition(problem)),
            Err(_) => Err(unknown()),
        }
    }
}
