//! Snapshots.

use std::sync::Arc;

use proto::v1::{
    CreateSnapshotRequest, DeleteSnapshotRequest, DeleteSnapshotResponse, GetSnapshotRequest,
    ListSnapshotsRequest, ListSnapshotsResponse, ReplicateSnapshotRequest, Snapshot, SnapshotState,
    TagSnapshotRequest, WarmSnapshotRequest, snapshot_service_server::SnapshotService,
};
use raft::state::{
    Actor, Candidate, Command, Kind, ObjectId, OperationId, Rejection, Response as Outcome,
    SnapshotId, names,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::{
    Api,
    asker::{asked, for_owner},
    carry::Answers,
    lists::in_parts,
    request_key, unexpected,
};
use crate::{audit, convert, errors::ApiError, vms::fork::Source};

#[tonic::async_trait]
impl SnapshotService for Api {
    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let by = for_owner(by, &request.owner)?;
        self.has_room()?;
        let life = self.life(request.keep.as_ref())?;
        let key = request_key(&request, |request| &mut request.request_id);
        let operation = OperationId::from_ulid(Ulid::new().0);
        let mode = convert::capture_mode(request.mode());
        let state = self.node.state();
        if !self.was_carried_out(&by, &key)
            && let Ok(vm) = names::vm(&state, &by, &request.vm)
        {
            self.prepare(vm.node, operation, Source::Vm(vm.id), vec![], mode);
        }
        let wait = request.wait;
        let name = Some(request.name).filter(|name| !name.is_empty());
        let expires_at = self.expiry();
        let command = Command::CreateSnapshot {
            operation,
            vm: request.vm,
            name,
            mode,
            life,
            replicas: request.replicas,
            candidates: self.candidates_for(request.replicas),
            expires_at,
        };
        let operation = match self.change(&by, key, command, deadline).await? {
            Outcome::Operation(operation) => operation,
            other => return Err(unexpected(other).into()),
        };
        let ended = self.ended_operation(operation, deadline).await?;
        if wait {
            self.held_as_asked(&by, ended.snapshot, deadline).await?;
        }
        self.snapshot_message(&by, ended.snapshot)
            .map(Response::new)
            .map_err(Status::from)
    }

    type ListSnapshotsStream = Answers<ListSnapshotsResponse>;

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListSnapshotsStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let seen = state.snapshots.values();
        let seen = seen.filter(|snapshot| snapshot.ownership.is_seen_by(&by));
        let seen: Vec<_> = seen.cloned().collect();
        let shown = move |one: &Arc<_>| {
            let shown = convert::snapshot(&state, &by, one);
            (shown.state() != SnapshotState::Capturing).then_some(shown)
        };
        let part_of = |snapshots| ListSnapshotsResponse { snapshots };
        Ok(Response::new(in_parts(seen, shown, part_of)))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let (by, deadline) = asked(&request)?;
        let text = request.into_inner().snapshot;
        audit::about(|| format!("snapshot {text}"));
        let state = self.read(deadline).await?;
        let (vm, name) = vm_and_name(&text);
        let id = names::snapshot_of(&state, &by, name, vm)
            .map_err(ApiError::from)?
            .id;
        Ok(Response::new(self.snapshot_with_ready(&by, id).await?))
    }

    async fn warm_snapshot(
        &self,
        request: Request<WarmSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let (vm, name) = vm_and_name(&request.snapshot);
        let command = Command::WarmSnapshot {
            snapshot: name.to_owned(),
            vm: vm.map(str::to_owned),
            count: request.count,
        };
        match self.change(&by, key, command, deadline).await? {
            Outcome::Snapshot(id) => Ok(Response::new(self.snapshot_with_ready(&by, id).await?)),
            other => Err(unexpected(other).into()),
        }
    }

    async fn replicate_snapshot(
        &self,
        request: Request<ReplicateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let (vm, name) = vm_and_name(&request.snapshot);
        let command = Command::ReplicateSnapshot {
            snapshot: name.to_owned(),
            vm: vm.map(str::to_owned),
            replicas: request.replicas,
            candidates: self.node.candidates(),
        };
        let id = match self.change(&by, key, command, deadline).await? {
            Outcome::Snapshot(id) => id,
            other => return Err(unexpected(other).into()),
        };
        if request.wait {
            self.held_as_asked(&by, id, deadline).await?;
        }
        Ok(Response::new(self.snapshot_message(&by, id)?))
    }

    async fn tag_snapshot(
        &self,
        request: Request<TagSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::TagSnapshot {
            snapshot: request.snapshot,
            name: request.name,
        };
        match self.change(&by, key, command, deadline).await? {
            Outcome::Snapshot(id) => Ok(Response::new(self.snapshot_message(&by, id)?)),
            other => Err(unexpected(other).into()),
        }
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::DeleteSnapshot {
            snapshot: request.snapshot,
        };
        match self.change(&by, key, command, deadline).await? {
            Outcome::DeletedSnapshot(id) => {
                let completed = self.purged(ObjectId::Snapshot(id), deadline).await;
                Ok(Response::new(DeleteSnapshotResponse { completed }))
            }
            other => Err(unexpected(other).into()),
        }
    }
}

fn not_found(id: SnapshotId) -> ApiError {
    ApiError::from(Rejection::NotFound {
        kind: Kind::Snapshot,
        name: id.to_string(),
    })
}

/// Takes `VM@NAME`, `@NAME` and `NAME` apart.
pub(super) fn vm_and_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('@') {
        None => (None, text),
        Some(("", name)) => (None, name),
        Some((vm, name)) => (Some(vm), name),
    }
}

impl Api {
    /// The nodes that copies may go to; none where none are asked for, which needs nothing of them.
    fn candidates_for(&self, replicas: u32) -> Vec<Candidate> {
        match replicas {
            0 => Vec::new(),
            _ => self.node.candidates(),
        }
    }

    /// Waits until a snapshot is on as many disks as were asked for.
    async fn held_as_asked(
        &self,
        by: &Actor,
        id: SnapshotId,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let held = self.node.wait_for(deadline, |state| {
            let found = state.snapshots.get(&id);
            let Some(found) = found.filter(|one| one.ownership.is_seen_by(by)) else {
                return Some(Err(not_found(id)));
            };
            if found.content.is_some() && found.nodes.is_empty() {
                let lost = &found.lost;
                let problem = format!("snapshot {id} was lost meanwhile: {lost}");
                return Some(Err(ApiError::WorkFailed(problem)));
            }
            found.is_held_as_asked().then_some(Ok(()))
        });
        held.await.unwrap_or_else(|| {
            Err(ApiError::Pending {
                what: format!("making copies of snapshot {id}"),
                operation: None,
            })
        })
    }

    /// A snapshot with the number of its forks that are ready, as far as its nodes answer.
    async fn snapshot_with_ready(&self, by: &Actor, id: SnapshotId) -> Result<Snapshot, ApiError> {
        let mut message = self.snapshot_message(by, id)?;
        let nodes = self
            .node
            .state()
            .snapshots
            .get(&id)
            .map(|snapshot| snapshot.nodes.clone())
            .unwrap_or_default();
        let name = id.to_string();
        message.ready = self
            .ask_nodes(nodes, vec![])
            .await
            .into_iter()
            .flat_map(|answer| answer.pools)
            .filter(|pool| pool.snapshot == name)
            .map(|pool| pool.ready)
            .sum();
        Ok(message)
    }

    fn snapshot_message(&self, by: &Actor, id: SnapshotId) -> Result<Snapshot, ApiError> {
        let state = self.node.state();
        let snapshot = state
            .snapshots
            .get(&id)
            .filter(|snapshot| snapshot.ownership.is_seen_by(by))
            .ok_or_else(|| not_found(id))?;
        Ok(convert::snapshot(&state, by, snapshot))
    }
}
