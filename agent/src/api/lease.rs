//! How long things are kept.

use futures::future::join_all;
use proto::v1::{
    CreateLeaseRequest, EndLeaseRequest, EndLeaseResponse, Keep, Lease, ListLeasesRequest,
    ListLeasesResponse, RenewLeaseRequest, SetKeepRequest, SetKeepResponse, keep::HowLong,
    lease_service_server::LeaseService, set_keep_request::Object,
};
use raft::state::{
    Command, LeaseId, Life, ObjectId, ObjectName, Response as Outcome, State, VmId, names,
};
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::{
    Api,
    asker::{asked, for_owner},
    request_key, unexpected,
};
use crate::{audit, convert, errors::ApiError};

#[tonic::async_trait]
impl LeaseService for Api {
    async fn create_lease(
        &self,
        request: Request<CreateLeaseRequest>,
    ) -> Result<Response<Lease>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let by = for_owner(by, &request.owner)?;
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::CreateLease {
            id: LeaseId(Ulid::new().0),
            ttl: request.ttl_ms,
        };
        let outcome = self.change(&by, key, command, deadline).await?;
        self.lease_message(outcome).map(Response::new)
    }

    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<Lease>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        audit::about(|| format!("lease {}", request.lease));
        let command = Command::RenewLease {
            lease: request.lease,
        };
        // Without a request's id: renewing it twice is renewing it.
        let renewed = self.node.propose_for(&by, None, command, deadline).await;
        let outcome = renewed.map_err(ApiError::from)?.map_err(ApiError::from)?;
        self.lease_message(outcome).map(Response::new)
    }

    async fn end_lease(
        &self,
        request: Request<EndLeaseRequest>,
    ) -> Result<Response<EndLeaseResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let before = self.read(deadline).await?;
        let command = Command::EndLease {
            lease: request.lease,
        };
        let ended = match self.change(&by, key, command, deadline).await? {
            Outcome::EndedLease(id) => id,
            other => return Err(unexpected(other).into()),
        };
        let vms: Vec<VmId> = before.vms.leased(ended).collect();
        let purged = vms
            .iter()
            .map(|vm| self.purged(ObjectId::Vm(*vm), deadline));
        let purged = join_all(purged).await;
        Ok(Response::new(EndLeaseResponse {
            vms: vms.len() as u32,
            pending: purged.iter().filter(|purged| !**purged).count() as u32,
        }))
    }

    async fn list_leases(
        &self,
        request: Request<ListLeasesRequest>,
    ) -> Result<Response<ListLeasesResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let leases = state.leases.iter();
        let seen = leases.filter(|(_, lease)| by.sees(&lease.owner));
        let leases = seen.filter_map(|(id, _)| message(&state, *id)).collect();
        Ok(Response::new(ListLeasesResponse { leases }))
    }

    async fn set_keep(
        &self,
        request: Request<SetKeepRequest>,
    ) -> Result<Response<SetKeepResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let life = self.life(request.keep.as_ref())?;
        let object = match request.object {
            Some(Object::Vm(name)) => ObjectName::Vm(name),
            Some(Object::Snapshot(name)) => ObjectName::Snapshot(name),
            None => {
                let problem = "name a VM or a snapshot".to_owned();
                let field = "object";
                return Err(ApiError::InvalidField { field, problem }.into());
            }
        };
        let command = Command::SetLife { object, life };
        let outcome = self.change(&by, key, command, deadline).await?;
        let state = self.node.state();
        let life = match outcome {
            Outcome::Vm(id) => state.vms.get(&id).map(|vm| vm.life),
            Outcome::Snapshot(id) => state.snapshots.get(&id).map(|one| one.life),
            other => return Err(unexpected(other).into()),
        };
        // It may have been deleted meanwhile.
        let (expires_at, _) = convert::life(life.unwrap_or_default());
        Ok(Response::new(SetKeepResponse { expires_at }))
    }
}

impl Api {
    /// How long something is to be kept.
    pub(super) fn life(&self, keep: Option<&Keep>) -> Result<Life, ApiError> {
        match keep.and_then(|keep| keep.how_long.as_ref()) {
            None => Ok(Life::Unbounded),
            Some(HowLong::TtlMs(ttl)) => Ok(Life::Until(self.node.now().saturating_add(*ttl))),
            Some(HowLong::Lease(id)) => {
                let id = id.parse().map_err(|_| ApiError::InvalidField {
                    field: "keep.lease",
                    problem: format!("{} is not a lease's id", names::shown(id)),
                })?;
                Ok(Life::Leased(id))
            }
        }
    }

    fn lease_message(&self, outcome: Outcome) -> Result<Lease, Status> {
        let Outcome::Lease(id) = outcome else {
            return Err(unexpected(outcome).into());
        };
        let found = message(&self.node.state(), id);
        found.ok_or_else(|| Status::not_found(format!("lease {id} has ended")))
    }
}

fn message(state: &State, id: LeaseId) -> Option<Lease> {
    let lease = state.leases.get(&id)?;
    Some(Lease {
        id: id.to_string(),
        owner: lease.owner.clone(),
        ttl_ms: lease.ttl,
        expires_at: Some(convert::timestamp(lease.expires_at)),
        created_at: Some(convert::timestamp(lease.created_at)),
        vms: state.vms.leased(id).count() as u32,
    })
}
