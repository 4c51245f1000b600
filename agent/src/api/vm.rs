//! VMs and their forks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, future::join_all};
use proto::{
    peer::{ObserveRequest, ObserveResponse, ReadConsoleRequest},
    v1::{
        ConsoleRequest, ConsoleResponse, CreateVmRequest, DeleteGroupRequest, DeleteGroupResponse,
        DeleteVmRequest, DeleteVmResponse, ForkGroupRequest, ForkGroupResponse, ForkRequest,
        ForkResponse, GetGroupRequest, GetVmRequest, Group, ListGroupsRequest, ListGroupsResponse,
        ListVmsRequest, ListVmsResponse, MoveVmRequest, MoveVmResponse, PowerAction as Action,
        ProtectVmRequest, ReadLogsRequest, ReadLogsResponse, ResetVmRequest, ResetVmResponse,
        SetVmPowerRequest, SuspendVmRequest, Vm, WaitVmRequest, vm_service_server::VmService,
    },
};
use raft::state::{
    self as model, Actor, Command, Kind, NodeId, ObjectId, Phase, Power, PowerAction, Rejection,
    Response as Outcome, State, VmId, names,
};
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, Streaming};
use ulid::Ulid;

use super::{
    Api,
    asker::{asked, for_owner},
    carry::{Answers, first},
    lists::in_parts,
    request_key, unexpected,
};
use crate::{
    admission::NO_MEMORY,
    audit,
    convert::{self, Fresh, spec},
    errors::ApiError,
};

/// How long a node is asked for what it sees of its VMs.
const OBSERVE_PATIENCE: Duration = Duration::from_millis(500);
/// Memory of a VM whose creator does not say.
const DEFAULT_MEMORY: u64 = 256 << 20;

#[tonic::async_trait]
impl VmService for Api {
    async fn create_vm(&self, request: Request<CreateVmRequest>) -> Result<Response<Vm>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let by = for_owner(by, &request.owner)?;
        self.has_room()?;
        let key = request_key(&request, |request| &mut request.request_id);
        let accelerator = spec::accelerator(request.accelerator());
        let machine = spec::machine(request.machine());
        let restart = spec::restart_policy(request.restart());
        let unready = spec::unready(request.unready());
        let life = self.life(request.keep.as_ref())?;
        let ha = spec::ha(request.on_host_loss())? == Some(true);
        let command = Command::CreateVm {
            id: VmId(Ulid::new().0),
            name: request.name,
            image: request.image,
            node: Some(request.node).filter(|node| !node.is_empty()),
            constraints: convert::constraints(request.constraints),
            candidates: self.node.candidates(),
            cpus: if request.cpus == 0 { 1 } else { request.cpus },
            memory_bytes: if request.memory_bytes == 0 {
                DEFAULT_MEMORY
            } else {
                request.memory_bytes
            },
            disk_bytes: request.disk_bytes,
            machine,
            accelerator,
            cpu_model: Some(request.cpu_model).filter(|model| !model.is_empty()),
            cmdline: request.cmdline,
            limits: spec::limits(request.limits.unwrap_or_default()),
            restart,
            labels: request.labels,
            network: spec::network(request.network),
            publish: spec::publish(&request.publish)?,
            self_fork: request.self_fork,
            unready,
            life,
            schedule: request.snapshots.map(spec::schedule),
            ha,
            group: Some(request.group).filter(|group| !group.is_empty()),
        };
        let id = match self.change(&by, key, command, deadline).await? {
            Outcome::Vm(id) => id,
            other => return Err(unexpected(other).into()),
        };
        if request.wait {
            self.settled(id, deadline).await?;
        }
        self.vm_message(&by, id)
            .await
            .map(Response::new)
            .map_err(Status::from)
    }

    type ListVmsStream = Answers<ListVmsResponse>;

    async fn list_vms(
        &self,
        request: Request<ListVmsRequest>,
    ) -> Result<Response<Self::ListVmsStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let fresh = self.observe(&state, None).await;
        let online = self.node.leases.online();
        let seen = state.vms.by_name();
        let seen = seen.filter(|vm| vm.ownership.is_seen_by(&by));
        let seen: Vec<Arc<model::Vm>> = seen.cloned().collect();
        let shown = move |vm: &Arc<_>| Some(message(&state, &by, vm, &fresh, online.as_ref()));
        let part_of = |vms| ListVmsResponse { vms };
        Ok(Response::new(in_parts(seen, shown, part_of)))
    }

    async fn get_vm(&self, request: Request<GetVmRequest>) -> Result<Response<Vm>, Status> {
        let (by, deadline) = asked(&request)?;
        let named = request.into_inner().vm;
        audit::about(|| format!("VM {named}"));
        let state = self.read(deadline).await?;
        let vm = names::vm(&state, &by, &named).map_err(ApiError::from)?;
        self.vm_message(&by, vm.id)
            .await
            .map(Response::new)
            .map_err(Status::from)
    }

    async fn set_vm_power(
        &self,
        request: Request<SetVmPowerRequest>,
    ) -> Result<Response<Vm>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let action = match request.action() {
            Action::Start => PowerAction::Start,
            Action::Stop => PowerAction::Stop,
            Action::ForceStop => PowerAction::ForceStop,
            Action::Pause => PowerAction::Pause,
            Action::Resume => PowerAction::Resume,
            Action::Restart => PowerAction::Restart,
            Action::Unspecified => {
                let problem = "say what to do: start, stop, pause, resume or restart".to_owned();
                return Err(ApiError::InvalidField {
                    field: "action",
                    problem,
                }
                .into());
            }
        };
        let no_wait = request.no_wait;
        let key = request_key(&request, |request| &mut request.request_id);
        if action == PowerAction::Resume
            && let Some(resumed) = self
                .resume_suspended(&by, key.clone(), &request.vm, deadline)
                .await?
        {
            return Ok(Response::new(resumed.vm.unwrap_or_default()));
        }
        let id = match self
            .change(
                &by,
                key,
                Command::SetPower {
                    vm: request.vm,
                    action,
                },
                deadline,
            )
            .await?
        {
            Outcome::Vm(id) => id,
            other => return Err(unexpected(other).into()),
        };
        if !no_wait {
            self.settled(id, deadline).await?;
        }
        self.vm_message(&by, id)
            .await
            .map(Response::new)
            .map_err(Status::from)
    }

    async fn delete_vm(
        &self,
        request: Request<DeleteVmRequest>,
    ) -> Result<Response<DeleteVmResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::DeleteVm {
            vm: request.vm,
            force: request.force,
        };
        match self.change(&by, key, command, deadline).await? {
            Outcome::DeletedVm(id) => {
                let completed = self.purged(ObjectId::Vm(id), deadline).await;
                Ok(Response::new(DeleteVmResponse { completed }))
            }
            other => Err(unexpected(other).into()),
        }
    }

    async fn reset_vm(
        &self,
        request: Request<ResetVmRequest>,
    ) -> Result<Response<ResetVmResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let reset = self.reset(&by, request.into_inner(), deadline);
        reset.await.map(Response::new).map_err(Status::from)
    }

    async fn suspend_vm(&self, request: Request<SuspendVmRequest>) -> Result<Response<Vm>, Status> {
        let (by, deadline) = asked(&request)?;
        let suspended = self.suspend(&by, request.into_inner(), deadline);
        suspended.await.map(Response::new).map_err(Status::from)
    }

    async fn move_vm(
        &self,
        request: Request<MoveVmRequest>,
    ) -> Result<Response<MoveVmResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let moved = Api::move_vm(self, &by, request.into_inner(), deadline);
        moved.await.map(Response::new).map_err(Status::from)
    }

    async fn fork(&self, request: Request<ForkRequest>) -> Result<Response<ForkResponse>, Status> {
        let arrived = Instant::now();
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let by = for_owner(by, &request.owner)?;
        let forked = self.fork_as_asked(&by, request, false, arrived, deadline);
        forked.await.map(Response::new).map_err(Status::from)
    }

    async fn fork_group(
        &self,
        request: Request<ForkGroupRequest>,
    ) -> Result<Response<ForkGroupResponse>, Status> {
        let arrived = Instant::now();
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let by = for_owner(by, &request.owner)?;
        let forked = self.fork_group_as_asked(&by, request, arrived, deadline);
        forked.await.map(Response::new).map_err(Status::from)
    }

    type ListGroupsStream = Answers<ListGroupsResponse>;

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<Self::ListGroupsStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        Ok(Response::new(self.groups(state, by)))
    }

    async fn get_group(
        &self,
        request: Request<GetGroupRequest>,
    ) -> Result<Response<Group>, Status> {
        let (by, deadline) = asked(&request)?;
        let named = request.into_inner().group;
        audit::about(|| format!("group {named}"));
        let state = self.read(deadline).await?;
        let members = names::group(&state, &by, &named).map_err(ApiError::from)?;
        let online = self.node.leases.online();
        let shown = super::group::message(&state, &by, &members, online.as_ref());
        Ok(Response::new(shown))
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let deleted = self.delete_group_as_asked(&by, request.into_inner(), deadline);
        deleted.await.map(Response::new).map_err(Status::from)
    }

    async fn protect_vm(&self, request: Request<ProtectVmRequest>) -> Result<Response<Vm>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let ha = spec::ha(request.on_host_loss())?;
        let snapshots = spec::schedule_change(request.snapshots, request.stop_snapshots)?;
        let command = Command::ProtectVm {
            vm: request.vm,
            snapshots,
            ha,
            candidates: self.node.candidates(),
        };
        match self.change(&by, key, command, deadline).await? {
            Outcome::Vm(id) => Ok(Response::new(self.vm_message(&by, id).await?)),
            other => Err(unexpected(other).into()),
        }
    }

    async fn wait_vm(&self, request: Request<WaitVmRequest>) -> Result<Response<Vm>, Status> {
        let (by, _) = asked(&request)?;
        let deadline = super::deadline_within(&request, super::wait::LONGEST);
        let waited = self.waited_for(&by, request.into_inner(), deadline);
        waited.await.map(Response::new).map_err(Status::from)
    }

    type ConsoleStream = Answers<ConsoleResponse>;

    async fn console(
        &self,
        request: Request<Streaming<ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let mut inputs = request.into_inner();
        let first = first(&mut inputs).await?;
        audit::about(|| format!("VM {}", first.vm));
        let state = self.read(deadline).await?;
        let vm = names::vm(&state, &by, &first.vm).map_err(ApiError::from)?;
        if vm.node == self.node.id() {
            let answers = super::console::open(&self.node, vm.id, first.input, inputs)?;
            return Ok(Response::new(self.while_seen(&by, vm.id, answers)));
        }
        let mut client = self.client(&state, vm.node).await?;
        let carried = ConsoleRequest {
            vm: vm.id.to_string(),
            ..first
        };
        let carried = self.carry(vm.node, carried, inputs, move |inputs| {
            Box::pin(async move { client.console(inputs).await })
        });
        let answers = carried.await?;
        Ok(Response::new(self.while_seen(&by, vm.id, answers)))
    }

    type ReadLogsStream = Answers<ReadLogsResponse>;

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        audit::about(|| format!("VM {}", request.vm));
        let state = self.read(deadline).await?;
        let vm = names::vm(&state, &by, &request.vm).map_err(ApiError::from)?;
        if vm.node == self.node.id() {
            let chunks = super::peer::console(&self.node, vm.id, request.follow)?;
            let chunks = chunks.map(|chunk| Ok(ReadLogsResponse { chunk: chunk? }));
            return Ok(Response::new(self.while_seen(&by, vm.id, chunks.boxed())));
        }
        let console = ReadConsoleRequest {
            vm: vm.id.to_string(),
            follow: request.follow,
        };
        let mut client = self.client(&state, vm.node).await?;
        let chunks = client.read_console(console).await?.into_inner();
        let chunks = chunks.map(|part| Ok(ReadLogsResponse { chunk: part?.chunk }));
        Ok(Response::new(self.while_seen(&by, vm.id, chunks.boxed())))
    }
}

impl Api {
    /// Waits until a VM is as it should be, or failed to become so.
    async fn settled(&self, id: VmId, deadline: Instant) -> Result<(), ApiError> {
        let settled = self.node.wait_for(deadline, |state| {
            let Some(vm) = state.vms.get(&id) else {
                return Some(Err(ApiError::from(Rejection::NotFound {
                    kind: Kind::Vm,
                    name: id.to_string(),
                })));
            };
            if vm.reported_boot < vm.boot {
                return None;
            }
            match (vm.phase, vm.power) {
                (Phase::Running, Power::Running)
                | (Phase::Paused, Power::Paused)
                | (Phase::Stopped, Power::Stopped { .. })
                | (Phase::Failed, Power::Stopped { .. }) => Some(Ok(())),
                (Phase::Failed, _) => Some(Err(failed(vm))),
                _ => None,
            }
        });
        match settled.await {
            Some(result) => result,
            None => Err(ApiError::Pending {
                what: format!("VM {id}"),
                operation: None,
            }),
        }
    }

    /// Waits until no node holds anything of a deleted object any more. `false` when one that does is offline, or does not
    /// get to it in time.
    pub(super) async fn purged(&self, object: ObjectId, deadline: Instant) -> bool {
        let patience = Duration::from_secs(30);
        let deadline = deadline.min(Instant::now() + patience);
        let mut offline = false;
        let purged = self
            .node
            .wait_for(deadline, |state| match state.tombstones.get(&object) {
                None => Some(()),
                Some(tombstone) => {
                    let online = self.node.leases.online().unwrap_or_default();
                    offline = tombstone.nodes.iter().all(|node| !online.contains(node));
                    offline.then_some(())
                }
            });
        purged.await.is_some() && !offline
    }

    pub(super) async fn vm_message(&self, by: &Actor, id: VmId) -> Result<Vm, ApiError> {
        self.message_of(&self.node.state(), by, id).await
    }

    /// A VM as it is in a state, with what its node sees of it now, for somebody for whom it is there.
    pub(super) async fn message_of(
        &self,
        state: &State,
        by: &Actor,
        id: VmId,
    ) -> Result<Vm, ApiError> {
        let vm = state.vms.get(&id);
        let seen = vm.filter(|vm| vm.ownership.is_seen_by(by));
        let vm = seen.ok_or_else(|| Rejection::NotFound {
            kind: Kind::Vm,
            name: id.to_string(),
        })?;
        let fresh = self.observe(state, Some(vm)).await;
        let online = self.node.leases.online();
        Ok(message(state, by, vm, &fresh, online.as_ref()))
    }

    /// Asks the nodes what they see of their VMs now; `only` one of them, or all.
    async fn observe(&self, state: &State, only: Option<&model::Vm>) -> BTreeMap<VmId, Fresh> {
        let nodes: BTreeSet<NodeId> = match only {
            Some(vm) => [vm.node].into(),
            None => state.vms.nodes().collect(),
        };
        let vms = only.map(|vm| vm.id.to_string()).into_iter().collect();
        let answers = self.ask_nodes(nodes, vms).await;
        let all = answers.into_iter().flat_map(|answer| answer.vms);
        all.filter_map(|seen| {
            let fresh = Fresh {
                pid: seen.pid,
                state: Some(seen.state()),
                warnings: seen.warnings,
                memory: seen.memory_use,
                guest: seen.guest,
                ports: seen.ports,
            };
            Some((seen.id.parse().ok()?, fresh))
        })
        .collect()
    }

    /// Asks nodes what they see now, of these VMs or of all. Those that are offline or do not answer are left out: then less is
    /// shown, what only the node itself knows.
    pub(super) async fn ask_nodes(
        &self,
        nodes: BTreeSet<NodeId>,
        vms: Vec<String>,
    ) -> Vec<ObserveResponse> {
        let online = self.node.leases.online().unwrap_or_default();
        let asked = nodes
            .into_iter()
            .filter(|node| *node == self.node.id() || online.contains(node));
        let answers = asked.map(|node| {
            let vms = vms.clone();
            async move {
                if node == self.node.id() {
                    return Some(super::peer::observed_closely(&self.node, &vms).await);
                }
                let mut client = self.node.peers.client(node).await.ok()?;
                let answer = timeout(OBSERVE_PATIENCE, client.observe(ObserveRequest { vms }));
                Some(answer.await.ok()?.ok()?.into_inner())
            }
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    /// A client for calls that are streams of work in a VM.
    pub(super) async fn stream_client(
        &self,
        found: &super::carry::Found,
    ) -> Result<crate::peers::PeerClient, ApiError> {
        let state = self.node.state();
        self.check_online(&state, found.node).await?;
        self.node
            .peers
            .stream_client(found.node)
            .map_err(|error| offline(&state, found.node, error.to_string()))
    }

    /// Refuses at once what a node that is not there would be waited for with.
    async fn check_online(&self, state: &State, node: NodeId) -> Result<(), ApiError> {
        let online = self.node.leases.online();
        // The leader hears of an agent that has just been started within a second; it answers before.
        if online.is_some_and(|online| !online.contains(&node))
            && !self.node.peers.is_there(node, OBSERVE_PATIENCE).await
        {
            return Err(offline(state, node, "its agent does not answer".to_owned()));
        }
        Ok(())
    }

    pub(super) async fn client(
        &self,
        state: &State,
        node: NodeId,
    ) -> Result<crate::peers::PeerClient, ApiError> {
        self.check_online(state, node).await?;
        self.node
            .peers
            .client(node)
            .await
            .map_err(|error| offline(state, node, error.to_string()))
    }
}

/// `online`: the nodes that are there. Where nobody leads, nothing is known about that: then the last report counts.
fn message(
    state: &State,
    by: &Actor,
    vm: &model::Vm,
    fresh: &BTreeMap<VmId, Fresh>,
    online: Option<&BTreeSet<NodeId>>,
) -> Vm {
    let is_online = online.is_none_or(|online| online.contains(&vm.node));
    convert::vm(state, by, vm, fresh.get(&vm.id), is_online)
}

fn offline(state: &State, node: NodeId, problem: String) -> ApiError {
    ApiError::NodeOffline {
        node: convert::node_name(state, node),
        problem,
    }
}

/// Why a VM that failed did.
pub(super) fn failed(vm: &model::Vm) -> ApiError {
    let text = format!("VM {:?} failed: {}", vm.name, vm.reason);
    if vm.reason.starts_with("boot-timeout") {
        ApiError::BootTimeout(text)
    } else if vm.reason.contains("KVM was asked for") {
        ApiError::HostUnfit {
            problem: text,
            hint: "use --accel auto or tcg, or a node that has KVM",
        }
    } else if vm.reason.starts_with(NO_MEMORY) {
        ApiError::NoMemory(text)
    } else if vm.reason.contains("No space left on device") {
        ApiError::DiskFull(text)
    } else {
        ApiError::WorkFailed(text)
    }
}
