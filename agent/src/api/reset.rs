//! Resetting, suspending and resuming VMs: asking for the operation, waiting for its end, and the answer.

use proto::v1::{ResetVmRequest, ResetVmResponse, SuspendVmRequest, Vm};
use raft::state::{
    Actor, CaptureMode, Command, Operation, OperationId, Power, Response as Outcome, names,
};
use tokio::time::Instant;
use ulid::Ulid;

use super::{Api, snapshot::vm_and_name, unexpected};
use crate::{audit, convert, errors::ApiError, vms::fork::Source};

impl Api {
    pub(super) async fn reset(
        &self,
        by: &Actor,
        request: ResetVmRequest,
        deadline: Instant,
    ) -> Result<ResetVmResponse, ApiError> {
        let key = super::request_key(&request, |request| &mut request.request_id);
        if request.snapshot.is_empty() {
            return Err(ApiError::InvalidField {
                field: "snapshot",
                problem: "name the snapshot to go back to".to_owned(),
            });
        }
        let (of, name) = vm_and_name(&request.snapshot);
        let to = Some((name.to_owned(), of.map(str::to_owned)));
        let change = |operation| Command::ResetVm {
            operation,
            vm: request.vm.clone(),
            to,
            paused: request.paused,
            expires_at: self.expiry(),
        };
        let source = names::snapshot_of(&self.node.state(), by, name, of)
            .ok()
            .map(|found| Source::Snapshot(found.id));
        self.go_back(by, key, &request.vm, source, change, deadline)
            .await
    }

    /// Lets a suspended VM go on; `None` when it is not suspended.
    pub(super) async fn resume_suspended(
        &self,
        by: &Actor,
        key: raft::state::RequestKey,
        vm: &str,
        deadline: Instant,
    ) -> Result<Option<ResetVmResponse>, ApiError> {
        audit::about(|| format!("VM {vm}, Resume"));
        let state = self.read(deadline).await?;
        let found = names::vm(&state, by, vm)?;
        let raft::state::Source::Snapshot(moment) = found.source else {
            return Ok(None);
        };
        if found.power != Power::Suspended {
            return Ok(None);
        }
        let change = |operation| Command::ResetVm {
            operation,
            vm: vm.to_owned(),
            to: None,
            paused: false,
            expires_at: self.expiry(),
        };
        let source = Some(Source::Snapshot(moment));
        self.go_back(by, key, vm, source, change, deadline)
            .await
            .map(Some)
    }

    async fn go_back(
        &self,
        by: &Actor,
        key: raft::state::RequestKey,
        vm: &str,
        source: Option<Source>,
        change: impl FnOnce(OperationId) -> Command,
        deadline: Instant,
    ) -> Result<ResetVmResponse, ApiError> {
        let arrived = Instant::now();
        let operation = OperationId::from_ulid(Ulid::new().0);
        let told = match (names::vm(&self.node.state(), by, vm), source) {
            // Of another's VM, that is shared, nothing is to be prepared.
            (Ok(vm), Some(source))
                if vm.ownership.is_ruled_by(by) && !self.was_carried_out(by, &key) =>
            {
                Some(self.prepare(vm.node, operation, source, vec![0], CaptureMode::Auto))
            }
            _ => None,
        };
        let ended = self
            .carried_out(by, key, change(operation), deadline)
            .await?;
        let result = ended.results.get(&0);
        let running = result.map_or(0, |result| result.running_us);
        let ahead = match told {
            Some(told) => told
                .await
                .map_or_else(|_| arrived.elapsed(), |at: Instant| at - arrived),
            None => arrived.elapsed(),
        };
        let id = ended.vm.unwrap_or_else(|| ended.id.child(0));
        Ok(ResetVmResponse {
            operation: ended.id.to_string(),
            vm: Some(self.vm_message(by, id).await?),
            running_ms: convert::ms(running) + ahead.min(arrived.elapsed()).as_secs_f64() * 1e3,
        })
    }

    pub(super) async fn suspend(
        &self,
        by: &Actor,
        request: SuspendVmRequest,
        deadline: Instant,
    ) -> Result<Vm, ApiError> {
        self.has_room()?;
        let key = super::request_key(&request, |request| &mut request.request_id);
        let operation = OperationId::from_ulid(Ulid::new().0);
        if !self.was_carried_out(by, &key)
            && let Ok(vm) = names::vm(&self.node.state(), by, &request.vm)
            && vm.ownership.is_ruled_by(by)
        {
            let source = Source::Vm(vm.id);
            self.prepare(vm.node, operation, source, vec![], CaptureMode::Auto);
        }
        let change = Command::SuspendVm {
            operation,
            vm: request.vm,
            mode: CaptureMode::Auto,
            expires_at: self.expiry(),
        };
        let ended = self.carried_out(by, key, change, deadline).await?;
        let id = ended.vm.unwrap_or_else(|| ended.id.child(0));
        self.vm_message(by, id).await
    }

    /// Waits for the end of an operation with one result; an error when that is one.
    pub(super) async fn carried_out(
        &self,
        by: &Actor,
        key: raft::state::RequestKey,
        change: Command,
        deadline: Instant,
    ) -> Result<std::sync::Arc<Operation>, ApiError> {
        let id = match self.change(by, key, change, deadline).await? {
            Outcome::Operation(id) => id,
            other => return Err(unexpected(other)),
        };
        let ended = self.ended_operation(id, deadline).await?;
        match ended.results.get(&0) {
            Some(result) if !result.error.is_empty() => {
                Err(ApiError::WorkFailed(result.error.clone()))
            }
            _ => Ok(ended),
        }
    }
}
