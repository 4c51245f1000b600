//! A host without QEMU: a member of the cluster like any other, with the consensus and the calls between nodes that an agent has, whose
//! VMs are only claimed. So a cluster can have more of them than this machine could run; nothing else of it is pretended.

use std::{
    path::Path,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent::{
    clock,
    leases::{Leases, RENEWAL},
    peers::Peers,
    trust::{
        identity::DataDir,
        tls::{
            accept::tls_incoming,
            client,
            own::OwnCertificate,
            server::{ServerTls, TokenLookup},
        },
    },
};
use futures::Stream;
use proto::{
    peer::{
        peer_service_server::{PeerService, PeerServiceServer},
        *,
    },
    v1::{
        ConsoleRequest, ConsoleResponse, CopyInRequest, CopyInResponse, CopyOutRequest,
        CopyOutResponse, ExecRequest, ExecResponse, ForwardRequest, ForwardResponse, VmState,
    },
};
use raft::{
    node::{Dialer, Handle},
    state::{
        Accelerator, Actor, Blob, Candidate, Capacity, CaptureMode, CaptureReport, ChildResult,
        ClusterId, Command, Constraints, Content, DiskBlob, ForkSource, ImageId, Labels, Life,
        Limits, MAX_CHILDREN, Machine, Network, NodeId, ObjectId, OperationId, Outcome, Phase,
        Placing, Proposal, RestartPolicy, Safety, Unready, VmId, VmReport,
    },
};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use ulid::Ulid;

/// How long a proposal may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What its VMs have.
const MEMORY: u64 = 256 << 20;
/// See there.
const DISK: u64 = 2 << 30;

/// A host, until it is stopped.
pub struct FakeHost {
    id: NodeId,
    raft: Handle,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeHost {
    /// Starts the node that `fpagent join` prepared in a folder, and tells the cluster what it has to offer.
    pub async fn start(data: &Path) -> anyhow::Result<Self> {
        let data = DataDir::new(data);
        let local = data.load()?;
        let own = OwnCertificate::new(&local)?;
        let peers = Arc::new(Peers::new(
            client::for_node(
                Arc::clone(&own),
                Arc::new(rustls::time_provider::DefaultTimeProvider),
            )?,
            &local.identity,
        ));
        let id = local.identity.node;
        let cluster = ClusterId(local.identity.cluster.0);
        let raft = raft::node::start(
            raft::node::config(id, cluster, data.raft(&local.identity), true),
            Arc::clone(&peers) as Arc<dyn Dialer>,
        )
        .await?;
        peers.follow(raft.published());
        let calls = Calls {
            id,
            address: local.identity.advertise.clone(),
            raft: raft.clone(),
            leases: Arc::default(),
        };
        let tls = ServerTls::new(
            &local,
            own,
            Arc::new(NoTokens),
            Arc::new(rustls::time_provider::DefaultTimeProvider),
        )?;
        let listener = TcpListener::bind(&local.identity.listen).await?;
        let stop = CancellationToken::new();
        let server = Server::builder()
            .add_service(PeerServiceServer::new(calls.clone()))
            .add_service(raft.service())
            .serve_with_incoming_shutdown(
                tls_incoming(listener, tls, |_, _| {}),
                stop.clone().cancelled_owned(),
            );
        let served = tokio::spawn(async move {
            if let Err(error) = server.await {
                eprintln!("the fake host's server: {error}");
            }
        });
        let renewed = tokio::spawn(renew_leases(calls, peers, stop.clone()));
        let host = Self {
            id,
            raft,
            stop,
            tasks: vec![served, renewed],
        };
        host.must(Command::ReportNode {
            node: id,
            address: local.identity.advertise.clone(),
            capacity: Capacity {
                cpus: 64,
                memory_bytes: 1 << 40,
                qemu_version: "10.0.2".to_owned(),
                accelerators: vec![Accelerator::Tcg],
                processor: String::new(),
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                newest_version: raft::version::newest(),
                problems: Vec::new(),
            },
        })
        .await?;
        Ok(host)
    }

    /// The last index that its state includes.
    pub fn applied(&self) -> u64 {
        self.raft.published().borrow().index
    }

    /// Proposes as an agent does.
    pub async fn propose(&self, command: Command) -> anyhow::Result<Outcome> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let proposal = Proposal {
            request: None,
            by: Actor::cluster(),
            now: u64::try_from(now)?,
            command,
        };
        Ok(self
            .raft
            .propose(&proposal, Instant::now() + PATIENCE)
            .await?)
    }

    /// The same, of what must not be refused.
    pub async fn must(&self, command: Command) -> anyhow::Result<()> {
        self.propose(command).await?.map(drop).map_err(Into::into)
    }

    /// Has so many VMs: lines of a booted one and its forks, a thousand each at most. All run, by its account.
    pub async fn have(&self, vms: u32) -> anyhow::Result<()> {
        let image = ImageId(Ulid::new().0);
        let blob = |byte: u8, size_bytes| Blob {
            sha256: [byte; 32],
            size_bytes,
        };
        self.must(Command::ImportImage {
            id: image,
            name: "none".to_owned(),
            kernel: Some(blob(1, 8 << 20)),
            initrd: Some(blob(2, 2 << 20)),
            disk: Some(DiskBlob {
                blob: blob(3, 64 << 20),
                virtual_bytes: DISK,
            }),
            cmdline: String::new(),
            ready_line: None,
            boot_timeout_ms: 60_000,
            guest_agent: Default::default(),
            node: self.id,
        })
        .await?;
        let mut left = vms;
        for line in 0.. {
            if left == 0 {
                return Ok(());
            }
            let name = line_name(line);
            self.boot(&name).await?;
            let forks = (left - 1).min(MAX_CHILDREN - 1);
            if forks > 0 {
                let operation = self.fork(&name, forks).await?;
                self.answer(operation, forks).await?;
            }
            left -= forks + 1;
        }
        Ok(())
    }

    fn candidates(&self) -> Vec<Candidate> {
        vec![Candidate {
            node: self.id,
            room: None,
        }]
    }

    async fn boot(&self, name: &str) -> anyhow::Result<()> {
        let id = VmId(Ulid::new().0);
        self.must(Command::CreateVm {
            id,
            name: name.to_owned(),
            image: "none".to_owned(),
            node: Some(self.id.to_string()),
            constraints: Constraints::default(),
            candidates: self.candidates(),
            cpus: 1,
            memory_bytes: MEMORY,
            disk_bytes: 0,
            machine: Machine::Microvm,
            accelerator: Accelerator::Auto,
            cpu_model: None,
            cmdline: String::new(),
            limits: Limits::default(),
            restart: RestartPolicy::Never,
            labels: Labels::from([("team".to_owned(), "none-in-particular".to_owned())]),
            network: Network::default(),
            publish: Vec::new(),
            self_fork: 0,
            unready: Unready::default(),
            life: Life::Unbounded,
            schedule: None,
            ha: false,
            group: None,
        })
        .await?;
        let report = VmReport {
            vm: id,
            boot: 1,
            phase: Phase::Running,
            reason: String::new(),
            ending: None,
            restarts: 0,
            next_start: None,
        };
        self.must(Command::ReportVms {
            node: self.id,
            reports: vec![report],
        })
        .await
    }

    /// Has the cluster decide a fork.
    pub async fn fork(&self, vm: &str, count: u32) -> anyhow::Result<OperationId> {
        let operation = OperationId::from_ulid(Ulid::new().0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        self.must(Command::Fork {
            operation,
            source: ForkSource::Vm(vm.to_owned()),
            count,
            name: None,
            mode: CaptureMode::Auto,
            paused: false,
            labels: Labels::new(),
            settings: Labels::new(),
            by_guest: false,
            has_secrets: false,
            placing: Placing::WithSource,
            life: Life::Unbounded,
            constraints: Constraints::default(),
            candidates: self.candidates(),
            expires_at: u64::try_from(now)? + 60_000,
        })
        .await?;
        Ok(operation)
    }

    /// Tells of a fork what a node tells once it is done.
    pub async fn answer(&self, operation: OperationId, count: u32) -> anyhow::Result<()> {
        self.must(Command::SnapshotReady {
            operation,
            content: content(operation),
        })
        .await?;
        let result = ChildResult {
            running_us: 60_000,
            ready_us: 90_000,
            error: String::new(),
            gave_way: false,
            failed_steps: Vec::new(),
        };
        self.must(Command::ReportChildren {
            operation,
            results: (0..count).map(|index| (index, result.clone())).collect(),
        })
        .await
    }

    /// Deletes a fork's only child, and with it the fork's snapshot.
    pub async fn remove(&self, operation: OperationId) -> anyhow::Result<()> {
        let child = operation.child(0);
        self.must(Command::DeleteVm {
            vm: child.to_string(),
            force: true,
        })
        .await?;
        self.must(Command::Purged {
            node: self.id,
            objects: vec![
                ObjectId::Vm(child),
                ObjectId::Snapshot(operation.snapshot()),
            ],
        })
        .await
    }

    /// Stops it.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.raft.shutdown().await;
        for task in self.tasks {
            task.abort();
            // What was aborted has ended.
            let _ = task.await;
        }
        Ok(())
    }
}

/// The first VM of a line.
pub fn line_name(line: u32) -> String {
    format!("line-{line}")
}

/// What a capture is claimed to have given.
pub fn content(operation: OperationId) -> Content {
    Content {
        processor: String::new(),
        base: operation.0 + 60_000,
        stream: operation.0 + 60_001,
        layers: (0..3).map(|layer| operation.0 + 60_002 + layer).collect(),
        accelerator: Accelerator::Tcg,
        cpu_model: "max".to_owned(),
        qemu_version: "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)".to_owned(),
        machine: "microvm,x-option-roms=off,rtc=on,acpi=on,pcie=off,usb=off".to_owned(),
        devices: ["virtio-blk", "virtio-serial", "virtio-rng", "pvpanic"]
            .map(str::to_owned)
            .into(),
        agent: true,
        base_bytes: 92 << 20,
        stream_bytes: 1 << 20,
        stream_checksum: 7,
        safety: Safety::Memory,
        layer_bytes: 1 << 20,
        report: CaptureReport::default(),
    }
}

/// Nobody joins through it.
#[derive(Debug)]
struct NoTokens;

impl TokenLookup for NoTokens {
    fn is_valid(&self, _: &[u8; 32]) -> bool {
        false
    }
}

/// What it answers other nodes.
#[derive(Clone)]
struct Calls {
    id: NodeId,
    address: String,
    raft: Handle,
    leases: Arc<Leases>,
}

impl Calls {
    fn leads(&self) -> bool {
        self.raft.status().leader == Some(self.id)
    }
}

/// As an agent does: the cluster takes it for one that is there.
async fn renew_leases(calls: Calls, peers: Arc<Peers>, stop: CancellationToken) {
    loop {
        let request = RenewLeaseRequest {
            node: calls.id,
            address: calls.address.clone(),
            now_ms: clock::of_host(),
            room: None,
        };
        if let Some(leader) = calls.raft.status().leader {
            if calls.leads() {
                calls.leases.renew(calls.id, None);
            } else if let Ok(mut client) = peers.client(leader).await
                && let Err(status) = client.renew_lease(request).await
            {
                eprintln!("the fake host's lease was not renewed: {status}");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(RENEWAL) => {}
        }
    }
}

fn without_guests<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a fake host has no guests"))
}

type Nothing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Calls {
    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<RenewLeaseResponse>, Status> {
        if !self.leads() {
            return Err(Status::failed_precondition("the fake host does not lead"));
        }
        let told = self.leases.renew(request.into_inner().node, None);
        let ages = told.into_iter().map(|(node, (age, _))| NodeAge {
            node,
            age_ms: Some(age.as_millis() as u64),
            room: None,
        });
        Ok(Response::new(RenewLeaseResponse {
            ages: ages.collect(),
            now_ms: Some(clock::of_host()),
            grant: None,
        }))
    }

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<ObserveResponse>, Status> {
        let wanted = request.into_inner().vms;
        let state = Arc::clone(&self.raft.published().borrow().view);
        let seen = state.vms.of(self.id).map(|vm| ObservedVm {
            id: vm.id.to_string(),
            pid: 4_000_000,
            state: VmState::Running.into(),
            ..ObservedVm::default()
        });
        let is_wanted = |seen: &ObservedVm| wanted.is_empty() || wanted.contains(&seen.id);
        Ok(Response::new(ObserveResponse {
            vms: seen.filter(is_wanted).collect(),
            pools: Vec::new(),
            transfers: Vec::new(),
        }))
    }

    async fn prepare_fork(
        &self,
        _: Request<PrepareForkRequest>,
    ) -> Result<Response<PrepareForkResponse>, Status> {
        Ok(Response::new(PrepareForkResponse {}))
    }

    async fn hand_secrets(
        &self,
        _: Request<HandSecretsRequest>,
    ) -> Result<Response<HandSecretsResponse>, Status> {
        without_guests()
    }

    async fn receive_vm(
        &self,
        _: Request<ReceiveVmRequest>,
    ) -> Result<Response<ReceiveVmResponse>, Status> {
        without_guests()
    }

    async fn wait_guest(
        &self,
        _: Request<WaitGuestRequest>,
    ) -> Result<Response<WaitGuestResponse>, Status> {
        without_guests()
    }

    async fn fetch_authority(
        &self,
        _: Request<FetchAuthorityRequest>,
    ) -> Result<Response<FetchAuthorityResponse>, Status> {
        without_guests()
    }

    type DescribeFileStream = Nothing<DescribeFileResponse>;

    async fn describe_file(
        &self,
        _: Request<DescribeFileRequest>,
    ) -> Result<Response<Self::DescribeFileStream>, Status> {
        without_guests()
    }

    type ReadFileStream = Nothing<ReadFileResponse>;

    async fn read_file(
        &self,
        _: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        without_guests()
    }

    type ReadConsoleStream = Nothing<ReadConsoleResponse>;

    async fn read_console(
        &self,
        _: Request<ReadConsoleRequest>,
    ) -> Result<Response<Self::ReadConsoleStream>, Status> {
        without_guests()
    }

    type ConsoleStream = Nothing<ConsoleResponse>;

    async fn console(
        &self,
        _: Request<Streaming<ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        without_guests()
    }

    type ExecStream = Nothing<ExecResponse>;

    async fn exec(
        &self,
        _: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        without_guests()
    }

    type ForwardStream = Nothing<ForwardResponse>;

    async fn forward(
        &self,
        _: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        without_guests()
    }

    type CopyInStream = Nothing<CopyInResponse>;

    async fn copy_in(
        &self,
        _: Request<Streaming<CopyInRequest>>,
    ) -> Result<Response<Self::CopyInStream>, Status> {
        without_guests()
    }

    type CopyOutStream = Nothing<CopyOutResponse>;

    async fn copy_out(
        &self,
        _: Request<Streaming<CopyOutRequest>>,
    ) -> Result<Response<Self::CopyOutStream>, Status> {
        without_guests()
    }
}
