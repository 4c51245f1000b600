//! Sharing objects, and owners' quotas.

use proto::v1::{
    DeleteQuotaRequest, DeleteQuotaResponse, GetQuotaRequest, ListQuotasRequest,
    ListQuotasResponse, OwnerQuota, Quota, SetQuotaRequest, ShareRequest, ShareResponse, Usage,
    owner_service_server::OwnerService,
    share_request::{Object, With},
};
use raft::state::{self, Command, Kind, ObjectName, Rejection, Response as Outcome, State, names};
use tonic::{Request, Response, Status};

use super::{Api, asker::asked, request_key, unexpected};
use crate::{audit, convert, errors::ApiError};

#[tonic::async_trait]
impl OwnerService for Api {
    async fn share(
        &self,
        request: Request<ShareRequest>,
    ) -> Result<Response<ShareResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let object = match request.object {
            Some(Object::Image(name)) => ObjectName::Image(name),
            Some(Object::Vm(name)) => ObjectName::Vm(name),
            Some(Object::Snapshot(name)) => ObjectName::Snapshot(name),
            None => return Err(invalid("object", "name what is shared").into()),
        };
        let with = match request.with {
            Some(With::Owner(owner)) => Some(owner),
            Some(With::Everyone(true)) => None,
            Some(With::Everyone(false)) | None => {
                return Err(invalid("with", "name an owner, or everyone").into());
            }
        };
        let command = Command::Share {
            object,
            with,
            stop: request.stop,
        };
        let outcome = self.change(&by, key, command, deadline).await?;
        let state = self.node.state();
        let ownership = match outcome {
            Outcome::Image(id) => state.images.get(&id).map(|one| one.ownership.clone()),
            Outcome::Vm(id) => state.vms.get(&id).map(|one| one.ownership.clone()),
            Outcome::Snapshot(id) => state.snapshots.get(&id).map(|one| one.ownership.clone()),
            other => return Err(unexpected(other).into()),
        };
        // It may have been deleted meanwhile.
        let sharing = ownership.and_then(|ownership| convert::sharing(&ownership, &by));
        Ok(Response::new(ShareResponse { sharing }))
    }

    async fn set_quota(
        &self,
        request: Request<SetQuotaRequest>,
    ) -> Result<Response<OwnerQuota>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let said = request.quota.unwrap_or_default();
        let command = Command::SetQuota {
            owner: request.owner.clone(),
            quota: state::Quota {
                vms: said.vms,
                cpus: said.cpus,
                memory_bytes: said.memory_bytes,
                disk_bytes: said.disk_bytes,
                snapshots: said.snapshots,
                images: said.images,
            },
        };
        self.change(&by, key, command, deadline).await?;
        Ok(Response::new(message(&self.node.state(), &request.owner)))
    }

    async fn get_quota(
        &self,
        request: Request<GetQuotaRequest>,
    ) -> Result<Response<OwnerQuota>, Status> {
        let (by, deadline) = asked(&request)?;
        let owner = match request.into_inner().owner {
            own if own.is_empty() => by.owner.clone(),
            owner => owner,
        };
        audit::about(|| format!("quota of {owner}"));
        names::check_owner("owner", &owner).map_err(ApiError::from)?;
        if !by.sees(&owner) {
            let kind = Kind::Quota;
            let hidden = Rejection::NotFound { kind, name: owner };
            return Err(ApiError::from(hidden).into());
        }
        let state = self.read(deadline).await?;
        Ok(Response::new(message(&state, &owner)))
    }

    async fn list_quotas(
        &self,
        request: Request<ListQuotasRequest>,
    ) -> Result<Response<ListQuotasResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let mut owners: Vec<&str> = match by.is_admin {
            true => state.owners().collect(),
            false => vec![&by.owner],
        };
        if by.is_admin {
            owners.extend(state.quotas.keys().map(String::as_str));
            owners.sort_unstable();
            owners.dedup();
        }
        let quotas = owners.into_iter().map(|owner| message(&state, owner));
        Ok(Response::new(ListQuotasResponse {
            quotas: quotas.collect(),
        }))
    }

    async fn delete_quota(
        &self,
        request: Request<DeleteQuotaRequest>,
    ) -> Result<Response<DeleteQuotaResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::DeleteQuota {
            owner: request.owner,
        };
        self.change(&by, key, command, deadline).await?;
        Ok(Response::new(DeleteQuotaResponse {}))
    }
}

fn message(state: &State, owner: &str) -> OwnerQuota {
    let quota = state.quotas.get(owner).copied().unwrap_or_default();
    let used = state.used_by(owner);
    OwnerQuota {
        owner: owner.to_owned(),
        quota: Some(Quota {
            vms: quota.vms,
            cpus: quota.cpus,
            memory_bytes: quota.memory_bytes,
            disk_bytes: quota.disk_bytes,
            snapshots: quota.snapshots,
            images: quota.images,
        }),
        used: Some(Usage {
            vms: used.vms,
            cpus: used.cpus,
            memory_bytes: used.memory_bytes,
            disk_bytes: used.disk_bytes,
            snapshots: used.snapshots,
            images: used.images,
        }),
    }
}

fn invalid(field: &'static str, problem: &str) -> ApiError {
    ApiError::InvalidField {
        field,
        problem: problem.to_owned(),
    }
}
