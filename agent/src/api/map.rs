//! Maps that are left to the cluster. Results are told from any position on, from the state: any node tells them.

use std::sync::Arc;

use prost::Message as _;
use proto::v1::{
    self, CancelMapRequest, DeleteMapRequest, DeleteMapResponse, GetMapRequest, ListMapsRequest,
    ListMapsResponse, ReadMapRequest, ReadMapResponse, StartMapRequest,
    map_service_server::MapService,
};
use raft::{
    node::Published,
    state::{
        Command, ForkSource, Kind, MapAsker, MapId, MapJob, Millis, OperationId, Owned as _,
        Rejection, Response as Outcome, names,
    },
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::{
    Api,
    asker::asked,
    carry::Answers,
    follow::{Follows, told, until_news},
    fork::fork_source,
    lists::in_parts,
    request_key, role, unexpected,
};
use crate::{
    audit, convert, errors::ApiError, node::Node, trust::tls::server::PeerRole, vms::fork::Source,
};

/// How long a map is kept after its end where that is not said, milliseconds.
const KEPT_FOR: Millis = 24 * 3_600_000;
/// A message with so many bytes gets no more results.
const ENOUGH: usize = 256 << 10;

#[tonic::async_trait]
impl MapService for Api {
    async fn start_map(
        &self,
        request: Request<StartMapRequest>,
    ) -> Result<Response<v1::Map>, Status> {
        let (by, deadline) = asked(&request)?;
        let asker = role(&request).and_then(certificate);
        let request = request.into_inner();
        self.has_room()?;
        let key = request_key(&request, |request| &mut request.request_id);
        let source = fork_source(&request.source)?;
        let operation = OperationId::from_ulid(Ulid::new().0);
        let state = self.node.state();
        if !self.was_carried_out(&by, &key)
            && let ForkSource::Vm(vm) = &source
            && let Ok(vm) = names::vm(&state, &by, vm)
        {
            let mode = convert::capture_mode(v1::CaptureMode::Unspecified);
            self.prepare(vm.node, operation, Source::Vm(vm.id), vec![], mode);
        }
        let kept_for = match request.kept_for_ms {
            0 => KEPT_FOR,
            asked => asked,
        };
        let command = Command::StartMap {
            id: MapId(Ulid::new().0),
            name: Some(request.name.clone()).filter(|name| !name.is_empty()),
            asker,
            source,
            job: job(request),
            operation,
            node: self.node.id(),
            candidates: self.node.candidates(),
            kept_for,
            expires_at: self.expiry(),
        };
        let outcome = self.change(&by, key, command, deadline).await?;
        self.map_message(outcome).map(Response::new)
    }

    type ListMapsStream = Answers<ListMapsResponse>;

    async fn list_maps(
        &self,
        request: Request<ListMapsRequest>,
    ) -> Result<Response<Self::ListMapsStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let seen = state.maps.values();
        let seen = seen.filter(|map| map.ownership.is_seen_by(&by));
        let seen: Vec<_> = seen.cloned().collect();
        let shown = move |map: &Arc<_>| Some(convert::map(&state, map));
        let part_of = |maps| ListMapsResponse { maps };
        Ok(Response::new(in_parts(seen, shown, part_of)))
    }

    async fn get_map(&self, request: Request<GetMapRequest>) -> Result<Response<v1::Map>, Status> {
        let (by, deadline) = asked(&request)?;
        let name = request.into_inner().map;
        audit::about(|| format!("map {name}"));
        let state = self.read(deadline).await?;
        let map = names::map(&state, &by, &name).map_err(ApiError::from)?;
        Ok(Response::new(convert::map(&state, map)))
    }

    type ReadMapStream = Answers<ReadMapResponse>;

    async fn read_map(
        &self,
        request: Request<ReadMapRequest>,
    ) -> Result<Response<Self::ReadMapStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        audit::about(|| format!("map {}", request.map));
        let state = self.read(deadline).await?;
        let map = names::map(&state, &by, &request.map).map_err(ApiError::from)?;
        let known = map.results.len() as u32;
        if request.position > known {
            let problem = format!("there are {known} results");
            let field = "position";
            return Err(ApiError::InvalidField { field, problem }.into());
        }
        let reader = Reader {
            node: Arc::clone(&self.node),
            published: self.node.raft.published(),
            map: map.id,
            name: map.name_for(&by),
            position: request.position,
            only_end: request.only_end,
            is_over: false,
        };
        Ok(Response::new(told(reader)))
    }

    async fn cancel_map(
        &self,
        request: Request<CancelMapRequest>,
    ) -> Result<Response<v1::Map>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::CancelMap { map: request.map };
        let outcome = self.change(&by, key, command, deadline).await?;
        self.map_message(outcome).map(Response::new)
    }

    async fn delete_map(
        &self,
        request: Request<DeleteMapRequest>,
    ) -> Result<Response<DeleteMapResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::DeleteMap {
            map: request.map,
            force: request.force,
        };
        match self.change(&by, key, command, deadline).await? {
            Outcome::DeletedMap(_) => Ok(Response::new(DeleteMapResponse {})),
            other => Err(unexpected(other).into()),
        }
    }
}

impl Api {
    fn map_message(&self, outcome: Outcome) -> Result<v1::Map, Status> {
        let Outcome::Map(id) = outcome else {
            return Err(unexpected(outcome).into());
        };
        let state = self.node.state();
        match state.maps.get(&id) {
            Some(map) => Ok(convert::map(&state, map)),
            None => Err(gone(&id.to_string())),
        }
    }
}

fn gone(name: &str) -> Status {
    let name = name.to_owned();
    let kind = Kind::Map;
    ApiError::from(Rejection::NotFound { kind, name }).into()
}

/// The certificate that somebody came with; `None` for the Unix socket.
fn certificate(role: &PeerRole) -> Option<MapAsker> {
    match role {
        PeerRole::User(user) => Some(MapAsker {
            certificate: user.certificate,
            name: user.name.clone(),
            role: user.role,
            expires_at: user.expires_at,
        }),
        PeerRole::Node(_) | PeerRole::Joiner { .. } | PeerRole::Local => None,
    }
}

fn job(request: StartMapRequest) -> MapJob {
    let bytes = |all: Vec<bytes::Bytes>| all.into_iter().map(Vec::from).collect();
    MapJob {
        source: request.source,
        count: request.count,
        inputs: bytes(request.inputs),
        argv: bytes(request.argv),
        env: request.env,
        user: request.user,
        limit: Some(request.limit_ms).filter(|limit| *limit > 0),
        retries: request.retries,
        parallel: request.parallel,
        lease_ttl: request.lease_ttl_ms,
        node: request.node,
        spread: request.spread,
        constraints: convert::constraints(request.constraints),
        reduce: Some(request.reduce).filter(|line| !line.is_empty()),
    }
}

/// One that reads a map's results.
struct Reader {
    node: Arc<Node>,
    published: watch::Receiver<Published>,
    map: MapId,
    name: String,
    /// So many were told.
    position: u32,
    only_end: bool,
    is_over: bool,
}

impl Follows for Reader {
    type Part = ReadMapResponse;

    async fn next(&mut self) -> Result<Option<ReadMapResponse>, Status> {
        loop {
            if self.is_over {
                return Ok(None);
            }
            if let Some(part) = self.look()? {
                return Ok(Some(part));
            }
            until_news(&self.node, &mut self.published).await?;
        }
    }
}

impl Reader {
    /// What there is to tell.
    fn look(&mut self) -> Result<Option<ReadMapResponse>, Status> {
        let state = Arc::clone(&self.published.borrow_and_update().view);
        let map = state.maps.get(&self.map).ok_or_else(|| gone(&self.name))?;
        let (mut results, mut bytes) = (Vec::new(), 0);
        if !self.only_end {
            for (place, result) in map.results.range(self.position..) {
                let result = convert::map_result(result);
                bytes += result.encoded_len();
                self.position = place + 1;
                results.push(result);
                if bytes >= ENOUGH {
                    break;
                }
            }
        }
        let is_told = self.only_end || self.position as usize == map.results.len();
        self.is_over = is_told && !map.is_running();
        let part = ReadMapResponse {
            results,
            position: self.position,
            ended: self.is_over.then(|| convert::map(&state, map)),
        };
        Ok((self.is_over || !part.results.is_empty()).then_some(part))
    }
}
