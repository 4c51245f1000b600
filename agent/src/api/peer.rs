//! What other nodes ask of this one.

use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::join_all, stream};
use proto::peer::{
    DescribeFileRequest, DescribeFileResponse, FetchAuthorityRequest, FetchAuthorityResponse,
    Grant, HandSecretsRequest, HandSecretsResponse, NodeAge, ObserveRequest, ObserveResponse,
    ObservedPool, ObservedTransfer, ObservedVm, PrepareForkRequest, PrepareForkResponse,
    ReadConsoleRequest, ReadConsoleResponse, ReadFileRequest, ReadFileResponse, ReceiveVmRequest,
    ReceiveVmResponse, RenewLeaseRequest, RenewLeaseResponse, WaitGuestRequest, WaitGuestResponse,
    peer_service_server::PeerService,
};
use proto::v1::{
    ConsoleRequest, ConsoleResponse, CopyInRequest, CopyInResponse, CopyOutRequest,
    CopyOutResponse, ExecRequest, ExecResponse, ForwardRequest, ForwardResponse, Transfer,
};
use qemu::failpoint;
use raft::state::{Command, NodeId, VmId};
use tokio::{sync::broadcast, time::Instant};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Api,
    carry::{Answers, first},
    cluster::internal,
    role,
};
use crate::{
    clock, convert, density,
    errors::ApiError,
    fence::{self, Answered},
    guest::{self, Contact, wait::Waited},
    node::Node,
    secrets, transfer,
    trust::{identity::DataDir, tls::server::PeerRole},
    vms::{fork::Source, launch, vm_name},
};

const CHUNK_BYTES: usize = 1 << 20;

/// Chunks of a console.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Api {
    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<RenewLeaseResponse>, Status> {
        let named = request.get_ref().node;
        if !matches!(role(&request), Some(PeerRole::Node(caller)) if *caller == named) {
            let problem = format!("another node's certificate does not speak for node {named}");
            return Err(ApiError::NotAllowed(problem).into());
        }
        if self.node.raft.status().leader != Some(self.node.id()) {
            return Err(Status::failed_precondition(
                "this node does not lead the cluster",
            ));
        }
        let RenewLeaseRequest {
            node,
            address,
            now_ms,
            room,
        } = request.into_inner();
        // As it is now: it may have been set right since, and with what another says that is wrong it would be a majority.
        self.node.hear_own_clock();
        let voters = self.node.raft.status().voters;
        let now_ms = self.node.clock.hear(node, now_ms, &voters);
        self.note_address(node, address).await;
        let told = self.node.leases.renew(node, room.map(convert::room));
        let ages = told.into_iter().map(|(node, (age, room))| NodeAge {
            node,
            age_ms: Some(age.as_millis() as u64),
            room: room.map(convert::room_message),
        });
        // After it was noted: see `fence`.
        let term = self.node.raft.status().term;
        let granted = self.node.vms.fence().answer(node, term);
        Ok(Response::new(RenewLeaseResponse {
            ages: ages.collect(),
            now_ms,
            grant: granted.map(|granted| Grant {
                age_us: u64::try_from(granted.age.as_micros()).unwrap_or(u64::MAX),
                index: granted.index,
            }),
        }))
    }

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<ObserveResponse>, Status> {
        let wanted = request.into_inner().vms;
        Ok(Response::new(observed_closely(&self.node, &wanted).await))
    }

    async fn prepare_fork(
        &self,
        request: Request<PrepareForkRequest>,
    ) -> Result<Response<PrepareForkResponse>, Status> {
        let request = request.into_inner();
        let mode = convert::capture_mode(request.mode());
        let malformed = |_| Status::invalid_argument("an id is not a ULID");
        let operation = request.operation.parse().map_err(malformed)?;
        let source = match request.source.strip_prefix('@') {
            Some(snapshot) => Source::Snapshot(snapshot.parse().map_err(malformed)?),
            None => Source::Vm(request.source.parse().map_err(malformed)?),
        };
        let mut children = request.children;
        children.retain(|number| *number < raft::state::MAX_CHILDREN);
        children.truncate(raft::state::MAX_CHILDREN as usize);
        self.node
            .forks
            .prepare(&self.node, operation, source, children, mode);
        Ok(Response::new(PrepareForkResponse {}))
    }

    type ExecStream = Answers<ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        self.exec_here(request).await
    }

    type ForwardStream = Answers<ForwardResponse>;

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        self.forward_here(request).await
    }

    type CopyInStream = Answers<CopyInResponse>;

    async fn copy_in(
        &self,
        request: Request<Streaming<CopyInRequest>>,
    ) -> Result<Response<Self::CopyInStream>, Status> {
        self.copy_in_here(request).await
    }

    type CopyOutStream = Answers<CopyOutResponse>;

    async fn copy_out(
        &self,
        request: Request<Streaming<CopyOutRequest>>,
    ) -> Result<Response<Self::CopyOutStream>, Status> {
        self.copy_out_here(request).await
    }

    async fn hand_secrets(
        &self,
        request: Request<HandSecretsRequest>,
    ) -> Result<Response<HandSecretsResponse>, Status> {
        let request = request.into_inner();
        let operation = request
            .operation
            .parse()
            .map_err(|_| Status::invalid_argument("an id is not a ULID"))?;
        if let Some(given) = secrets::take(request.secrets)? {
            self.node.secrets.put(operation, given);
        }
        Ok(Response::new(HandSecretsResponse {}))
    }

    async fn receive_vm(
        &self,
        request: Request<ReceiveVmRequest>,
    ) -> Result<Response<ReceiveVmResponse>, Status> {
        self.receive(request.into_inner()).await.map(Response::new)
    }

    async fn wait_guest(
        &self,
        request: Request<WaitGuestRequest>,
    ) -> Result<Response<WaitGuestResponse>, Status> {
        let request = request.into_inner();
        let vm = request
            .vm
            .parse()
            .map_err(|_| Status::invalid_argument("not a VM's id"))?;
        let deadline = Instant::now() + super::wait::TURN;
        let waited = super::wait::in_guest(&self.node, vm, request.port, deadline).await;
        Ok(Response::new(match waited {
            Waited::Met => WaitGuestResponse {
                met: true,
                never: String::new(),
            },
            Waited::Never(never) => WaitGuestResponse { met: false, never },
            Waited::Open => WaitGuestResponse::default(),
        }))
    }

    async fn fetch_authority(
        &self,
        request: Request<FetchAuthorityRequest>,
    ) -> Result<Response<FetchAuthorityResponse>, Status> {
        let wanted = request.into_inner().fingerprint;
        failpoint::reached("authority.asked");
        let own = self.node.authority();
        let key = match own.fingerprint() == *wanted {
            true => own.key_der(),
            false => {
                let data = DataDir::new(self.node.vms.engine().layout.root());
                let staged = data.staged_authority(&own).map_err(internal)?;
                let staged = staged.filter(|one| one.fingerprint() == *wanted);
                let not_here = || Status::not_found("that authority's key is not here");
                staged.ok_or_else(not_here)?.key_der()
            }
        };
        Ok(Response::new(FetchAuthorityResponse { key: key.into() }))
    }

    type DescribeFileStream = transfer::Parts<DescribeFileResponse>;

    async fn describe_file(
        &self,
        request: Request<DescribeFileRequest>,
    ) -> Result<Response<Self::DescribeFileStream>, Status> {
        let request = request.into_inner();
        let told = transfer::describe(&self.node, request.file, request.digests).await?;
        Ok(Response::new(told))
    }

    type ReadFileStream = transfer::Parts<ReadFileResponse>;

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let parts = transfer::read(&self.node, request.into_inner()).await?;
        Ok(Response::new(parts))
    }

    type ConsoleStream = Answers<ConsoleResponse>;

    async fn console(
        &self,
        request: Request<Streaming<ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let mut inputs = request.into_inner();
        let first = first(&mut inputs).await?;
        let vm = first
            .vm
            .parse()
            .map_err(|_| Status::invalid_argument("not a VM's id"))?;
        super::console::open(&self.node, vm, first.input, inputs).map(Response::new)
    }

    type ReadConsoleStream =
        Pin<Box<dyn Stream<Item = Result<ReadConsoleResponse, Status>> + Send>>;

    async fn read_console(
        &self,
        request: Request<ReadConsoleRequest>,
    ) -> Result<Response<Self::ReadConsoleStream>, Status> {
        let request = request.into_inner();
        let vm: VmId = request
            .vm
            .parse()
            .map_err(|_| Status::invalid_argument("not a VM's id"))?;
        let chunks = console(&self.node, vm, request.follow)?;
        Ok(Response::new(
            chunks
                .map(|chunk| Ok(ReadConsoleResponse { chunk: chunk? }))
                .boxed(),
        ))
    }
}

/// The same, with what the guests of VMs that are named say about themselves.
pub async fn observed_closely(node: &Node, wanted: &[String]) -> ObserveResponse {
    let mut response = observed(node, wanted);
    if wanted.is_empty() {
        return response;
    }
    let looks = response.vms.iter_mut().map(|seen| async {
        let handle = seen.id.parse().ok().and_then(|vm| node.vms.get(vm));
        if let Some(handle) = handle.filter(|_| seen.pid != 0) {
            seen.guest = guest::look(handle.guest()).await;
        }
    });
    join_all(looks).await;
    response
}

/// What this node sees of its VMs.
fn observed(node: &Node, wanted: &[String]) -> ObserveResponse {
    let state = node.state();
    let one = |(id, handle): (VmId, crate::vms::VmHandle)| {
        let name = id.to_string();
        let pid = handle.pid();
        let named = wanted.contains(&name);
        (named || wanted.is_empty()).then(|| ObservedVm {
            id: name,
            pid,
            state: convert::seen_state(&handle.seen().is).into(),
            warnings: match state.vms.get(&id) {
                Some(vm) if pid != 0 => {
                    let limits = launch::limits(&vm.spec);
                    let mut all = node.vms.engine().groups.not_enforced(pid, &limits);
                    all.extend(node.ports.problems(id));
                    let problem = node.switch.problem(id);
                    all.extend(
                        problem.map(|why| format!("it is not on its group's network: {why}")),
                    );
                    if let Contact::Unsound(why) = handle.guest().contact() {
                        all.push(format!("its guest's agent is not spoken to: {why}"));
                    }
                    all
                }
                _ => Vec::new(),
            },
            guest: None,
            ports: node.ports.of(id),
            memory_use: (named && pid != 0)
                .then(|| density::memory_of(pid))
                .flatten(),
        })
    };
    let pools = node.pool.ready().into_iter();
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let transfers = node.transfers.progress().into_iter();
    ObserveResponse {
        vms: node.vms.all().into_iter().filter_map(one).collect(),
        pools: pools
            .map(|(snapshot, ready)| ObservedPool {
                snapshot: snapshot.to_string(),
                ready,
            })
            .collect(),
        transfers: transfers
            .map(|(snapshot, progress)| ObservedTransfer {
                snapshot: snapshot.to_string(),
                transfer: Some(Transfer {
                    node: node.identity.name.clone(),
                    done_bytes: load(&progress.done),
                    total_bytes: load(&progress.total),
                    moved_bytes: load(&progress.moved),
                }),
            })
            .collect(),
    }
}

/// A VM's console: what is kept of it, and with `follow` what comes, until the VM or the node ends.
pub fn console(node: &Node, vm: VmId, follow: bool) -> Result<Chunks, ApiError> {
    let log = node.vms.engine().layout.vm(&vm_name(vm)).console_log();
    // Followed from before the log is read: a chunk may come twice at the seam, none is missed.
    let receiver = if follow {
        node.vms.get(vm).map(|handle| handle.follow_console())
    } else {
        None
    };
    let kept = qemu::console::read_log(&log).map_err(|error| {
        ApiError::Internal(format!("the console's log cannot be read: {error}"))
    })?;
    let kept: Vec<_> = kept
        .chunks(CHUNK_BYTES)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    let ended = node.cancel.clone().cancelled_owned();
    let live = stream::unfold(receiver, |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Ok(chunk) => Some((Ok(Bytes::from(chunk)), Some(receiver))),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let note =
                    format!("\n[{missed} pieces of output were missed: the reader is too slow]\n");
                Some((Ok(Bytes::from(note)), Some(receiver)))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    });
    Ok(stream::iter(kept).chain(live).take_until(ended).boxed())
}

impl Api {
    /// Has the state know of a node's address that is another one by now. What does not get through comes again with the next renewal.
    async fn note_address(&self, node: NodeId, address: String) {
        let state = self.node.state();
        let known = state.nodes.get(&node).map(|node| &node.address);
        if known.is_none_or(|known| *known == address) {
            return;
        }
        tracing::info!(node, address, "a node is reached elsewhere from now on");
        let command = Command::MoveNode { node, address };
        let deadline = Instant::now() + RENEW_PATIENCE / 2;
        if let Err(error) = self.node.propose(None, command, deadline).await {
            tracing::debug!(node, %error, "a node's address could not be noted yet");
        }
    }
}

/// How long the leader may take to answer a renewal.
const RENEW_PATIENCE: Duration = Duration::from_secs(1);
/// How often a lease is renewed until the cluster's time is known: proposals wait for it.
const RENEWAL_AT_FIRST: Duration = Duration::from_millis(50);

/// Renews this node's lease with the leader until the node ends.
pub async fn renew_leases(node: std::sync::Arc<Node>) {
    loop {
        match node.raft.status().leader {
            Some(leader) if leader == node.id() => {
                let told = node.leases.renew(node.id(), node.room());
                node.leases.learn(told);
                node.hear_own_clock();
                let (sent, term) = (fence::boottime(), node.raft.status().term);
                if let Some(granted) = node.vms.fence().answer(node.id(), term) {
                    node.vms.fence().granted(sent, granted);
                }
            }
            Some(leader) => renew_with(&node, leader).await,
            // The leader may not find this node where it is now, and this node may have been removed: somebody will say so.
            None => {
                let others = node.peers.others(node.id());
                join_all(others.into_iter().map(|other| renew_with(&node, other))).await;
            }
        }
        let pause = match node.clock.is_known() {
            true => crate::leases::RENEWAL,
            false => RENEWAL_AT_FIRST,
        };
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn renew_with(node: &Node, other: NodeId) {
    let Ok(mut client) = node.peers.client(other).await else {
        return;
    };
    let request = RenewLeaseRequest {
        node: node.id(),
        address: node.identity.advertise.clone(),
        now_ms: clock::of_host(),
        room: node.room().map(convert::room_message),
    };
    let (asked, sent) = (Instant::now(), fence::boottime());
    match tokio::time::timeout(RENEW_PATIENCE, client.renew_lease(request)).await {
        Ok(Ok(answer)) => {
            let RenewLeaseResponse {
                ages,
                now_ms,
                grant,
            } = answer.into_inner();
            if let Some(Grant { age_us, index }) = grant {
                let age = Duration::from_micros(age_us);
                node.vms.fence().granted(sent, Answered { age, index });
            }
            if let Some(now) = now_ms {
                node.clock.learn(now, asked.elapsed());
            }
            let told = ages.into_iter().filter_map(|one| {
                let age = Duration::from_millis(one.age_ms?);
                Some((one.node, (age, one.room.map(convert::room))))
            });
            node.leases.learn(told.collect());
        }
        Ok(Err(status)) => {
            node.peers.note_refusal(other, &status);
            tracing::debug!(%status, other, "the lease was not renewed");
        }
        Err(_) => tracing::debug!(other, "the lease was not renewed in time"),
    }
}
