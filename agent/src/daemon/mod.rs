//! The daemon: what `fpagent run` starts, and in what order it ends.

pub mod config;
mod host;
mod introduce;
pub mod options;

pub use host::group_name;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use qemu::layout;
use raft::{node::Published, state::ClusterId};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use self::{
    host::{Host, come_first, end_strays, look_at_host},
    introduce::introduce,
    options::{LogFormat, RunOptions},
};
use crate::{
    admission::Reserves,
    api::{self, access::Access},
    arriving::Arriving,
    audit::Audit,
    client::failure::Failure,
    clock::Clock,
    density::{self, Density},
    draining, driving,
    fence::{self, Fence},
    guest::{self, ports::Ports},
    leases::Leases,
    metrics, newcomers,
    node::Node,
    peers::Peers,
    reconcile, removal, replacing, schedules, secrets,
    store::Store,
    switch::Switch,
    transfer::Transfers,
    trust::{
        TrustError,
        authority::Credentials,
        identity::{DataDir, DataLock, Identity, LocalNode},
        renewal,
        tls::{
            accept::{bind_unix, tls_incoming, unix_incoming},
            client,
            own::OwnCertificate,
            server::{ServerTls, TokenLookup},
            within::within,
        },
    },
    upgrade, upkeep,
    vms::{
        Vms,
        fork::{self, Forks},
        pool::{self, Pool},
    },
};

/// How long what is under way may take when the agent is asked to end.
const FAREWELL: Duration = Duration::from_secs(15);

/// Runs a node until SIGTERM or SIGINT. Its VMs run on.
pub async fn run(options: RunOptions, calls: Handle) -> anyhow::Result<()> {
    start_logging(options.log_format);
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "fpagent run needs root: it reads guests' memory and gives each VM a user of its own"
    );
    layout::be_private();
    come_first();
    let data = DataDir::new(&options.data_dir);
    let (_lock, local) = take(&data, &options)?;
    tracing::info!(
        node = local.identity.node,
        name = local.identity.name,
        "starting"
    );
    // Taken early: from here on a signal ends the agent in order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let agent = Agent::start(&options, &data, local, &calls).await?;
    let fatal = agent.node.raft.failed();
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        told_by = removal::learned(&agent.node) => {
            Err(anyhow::anyhow!(removal::depart(&agent.node, &data, told_by).await))
        }
        reason = fatal => Err(anyhow::anyhow!("the replicated state can no longer be kept: {reason}")),
        ended = agent.ended() => Err(anyhow::anyhow!("a part of the agent ended unexpectedly: {ended}")),
    };
    match &outcome {
        Ok(()) => tracing::info!("ending; VMs run on"),
        Err(error) => tracing::error!("{error:#}"),
    }
    agent.stop().await;
    outcome
}

/// The node that a data directory holds, kept from others.
fn take(data: &DataDir, options: &RunOptions) -> anyhow::Result<(DataLock, LocalNode)> {
    let explained = |error: TrustError| anyhow::anyhow!(Failure::from(error).message().to_owned());
    if data.identity().map_err(explained)?.is_none() {
        anyhow::bail!(
            "{} holds no node: prepare it with `fpagent init` or `fpagent join`. If it held one, its disk is not mounted, or lost; a node \
             that lost its disk is removed (`fpagent node rm NAME --force`), and joins anew",
            data.root().display()
        );
    }
    let lock = data.lock().map_err(explained)?;
    let mut local = data.load().map_err(explained)?;
    let (listen, advertise) = (options.listen.as_deref(), options.advertise.as_deref());
    data.relocate(&mut local.identity, listen, advertise)
        .map_err(explained)?;
    Ok((lock, local))
}

fn start_logging(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,openraft=off"));
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr))
            .init(),
        LogFormat::Json => registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .init(),
    }
}

/// A running node and the tasks that make it.
struct Agent {
    node: Arc<Node>,
    /// Ends the listeners, after everything that may still answer calls.
    listeners: CancellationToken,
    servers: TaskTracker,
    broken: watch::Receiver<Option<String>>,
    socket: PathBuf,
}

/// Looks tokens up in the replicated state.
#[derive(Debug)]
struct Tokens(watch::Receiver<Published>, Arc<Clock>);

impl TokenLookup for Tokens {
    fn is_valid(&self, key_hash: &[u8; 32]) -> bool {
        let now = self.1.now();
        let state = &self.0.borrow().view;
        state
            .tokens
            .values()
            .any(|token| token.key_hash == *key_hash && token.expires_at > now)
    }
}

impl Agent {
    async fn start(
        options: &RunOptions,
        data: &DataDir,
        mut local: LocalNode,
        calls: &Handle,
    ) -> anyhow::Result<Self> {
        let Host {
            fitness,
            write_tracking,
            can_merge,
            engine,
        } = look_at_host(options).await?;
        renewal::renew_before_start(data, &mut local)
            .context("the node's certificate cannot be renewed")?;
        let shown = OwnCertificate::new(&local)?;
        let own = local.credentials.clone();
        let clock = Arc::<Clock>::default();
        let peers = Arc::new(Peers::new(
            client::for_node(Arc::clone(&shown), Arc::clone(&clock) as _)?,
            &local.identity,
        ));
        let raft = open_state(options, data, &local.identity, &peers, calls).await?;
        peers.follow(raft.published());
        // Whatever the host's clock says: the members were there before.
        let state = Arc::clone(&raft.published().borrow().view);
        clock.is_past(state.nodes.values().map(|node| node.created_at).max());
        let tls = ServerTls::new(
            &local,
            Arc::clone(&shown),
            Arc::new(Tokens(raft.published(), Arc::clone(&clock))),
            Arc::clone(&clock) as _,
        )?;

        let audit = Audit::open(data.root()).context("the audit log cannot be opened")?;
        let audit = Arc::new(audit);
        let wake = Arc::new(Notify::new());
        let (asked, requests) = mpsc::channel(guest::REQUESTS);
        let store = Store::open(&engine.layout, &engine.host_boot)
            .context("the files of snapshots cannot be looked at")?;
        let engine = Arc::new(engine);
        let helper = (
            options.vm_uid_base + crate::vms::USERS + 1,
            options.vm_uid_base,
        );
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let arriving = Arriving::new(Arc::clone(&engine), cancel.clone(), tasks.clone());
        let fence = Arc::new(Fence::new(
            Arc::clone(&engine),
            local.identity.node,
            raft.published(),
            cancel.clone(),
            tasks.clone(),
        ));
        let switch_user = helper.0 + 1;
        let switch = Switch::new(
            Arc::clone(&engine),
            Some((switch_user, switch_user)),
            Arc::clone(&wake),
            cancel.clone(),
            tasks.clone(),
        );
        let ports = Ports::new(
            listen_address(&local.identity.listen),
            engine.layout.clone(),
            tasks.clone(),
        );
        let node = Arc::new(Node {
            identity: local.identity,
            signing: RwLock::new(Arc::new(local.authority)),
            own: shown,
            replacing: Default::default(),
            audit: Arc::clone(&audit),
            metrics: metrics::install()?,
            raft,
            vms: Arc::new(Vms::new(
                engine,
                Some(options.vm_uid_base),
                Arc::clone(&wake),
                asked,
                fence,
            )),
            density: Density::new(options, can_merge),
            reserves: Reserves {
                memory: options.reserve_memory,
                disk: options.reserve_disk,
            },
            store,
            forks: Forks::default(),
            pool: Pool::new(pool::Bounds {
                unasked: options.ready_forks,
                blank: options.waiting_processes,
                reserve: options.reserve_memory.saturating_mul(2),
            }),
            secrets: Default::default(),
            fitness,
            write_tracking,
            peers,
            leases: Leases::default(),
            clock,
            qemu_img: options.qemu_img.clone(),
            helper_user: Some(helper),
            transfers: Transfers::new(options.transfer_rate, arriving),
            fetching: Mutex::new(BTreeSet::new()),
            reporting: Default::default(),
            collecting: Default::default(),
            wake,
            left_over: Notify::new(),
            importing: std::sync::atomic::AtomicUsize::new(0),
            cancel,
            ports,
            switch,
            tasks,
            newcomer_patience: options.newcomer_patience,
            lost_after: options.lost_after,
            started_at: SystemTime::now(),
        });
        // Before anything else is done to them, guests that an earlier agent left are found.
        node.vms
            .adopt()
            .await
            .context("the VMs of before cannot be looked at")?;
        node.resume_arriving()
            .await
            .context("the files that VMs use already cannot be gone on with")?;
        node.switch
            .find()
            .await
            .context("the networks of groups cannot be gone on with")?;
        end_strays(&node)?;

        let (listeners, servers) = (CancellationToken::new(), TaskTracker::new());
        let (failed, broken) = watch::channel(None);
        let routes = api::routes(&node, node.raft.service())?;
        let listener = TcpListener::bind(&node.identity.listen)
            .await
            .with_context(|| format!("cannot listen on {}", node.identity.listen))?;
        let server = new_server()
            .layer(Access::new(&node))
            .add_routes(routes.clone())
            .serve_with_incoming_shutdown(
                tls_incoming(listener, tls, move |address, why| {
                    audit.refused(address, why)
                }),
                listeners.clone().cancelled_owned(),
            );
        spawn_server(&servers, calls, &failed, "network", server);
        let unix = bind_unix(&options.socket)
            .with_context(|| format!("cannot listen on {}", options.socket.display()))?;
        let server = new_server()
            .layer(Access::new(&node))
            .add_routes(routes.clone())
            .serve_with_incoming_shutdown(unix_incoming(unix), listeners.clone().cancelled_owned());
        spawn_server(&servers, calls, &failed, "local", server);
        // What the node does on somebody's behalf goes the way that this one's own calls would.
        let (own_calls, incoming) = within();
        let server = new_server()
            .layer(Access::new(&node))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, listeners.clone().cancelled_owned());
        spawn_server(&servers, calls, &failed, "inner", server);
        node.tasks.spawn(driving::run(Arc::clone(&node), own_calls));

        work(&node, calls, data, own, requests);
        tracing::info!(listen = node.identity.listen, socket = %options.socket.display(), "serving");
        Ok(Self {
            node,
            listeners,
            servers,
            broken,
            socket: options.socket.clone(),
        })
    }

    /// When one of the servers has ended by itself.
    async fn ended(&self) -> String {
        let mut broken = self.broken.clone();
        let result = broken.wait_for(Option::is_some).await;
        result
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_else(|| "the servers are gone".to_owned())
    }

    async fn stop(self) {
        self.node.cancel.cancel();
        self.node.ports.close();
        self.node.tasks.close();
        let parts = async {
            self.node.tasks.wait().await;
            self.node.forks.close(&self.node).await;
            self.node.pool.close().await;
            self.node.vms.close().await;
        };
        if timeout(FAREWELL, parts).await.is_err() {
            tracing::warn!(
                "work that was under way did not end in time; the next agent takes it up"
            );
        }
        self.listeners.cancel();
        self.servers.close();
        // Calls that wait for something have been told; one that does not listen is cut off.
        if timeout(Duration::from_secs(2), self.servers.wait())
            .await
            .is_err()
        {
            tracing::debug!("calls were cut off");
        }
        self.node.raft.shutdown().await;
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the socket could not be removed");
        }
    }
}

/// Opens the replicated state, and has the node take part in the consensus.
async fn open_state(
    options: &RunOptions,
    data: &DataDir,
    identity: &Identity,
    peers: &Arc<Peers>,
    calls: &Handle,
) -> anyhow::Result<raft::node::Handle> {
    // A log that was there once must be there: without it the node has lost what it voted for.
    let (marker, log) = (data.started(identity), data.raft(identity));
    let create = !marker.exists() && !log.exists();
    let cluster = ClusterId(identity.incarnation.0);
    let config = raft::node::Config {
        away: options.voter_away,
        ..raft::node::config(identity.node, cluster, log, create)
    };
    let dialer = Arc::clone(peers) as Arc<dyn raft::node::Dialer>;
    let raft = calls
        .spawn(raft::node::start(config, dialer))
        .await?
        .context("the replicated state cannot be opened")?;
    std::fs::write(&marker, b"").context("the data directory cannot be written")?;
    Ok(raft)
}

/// Begins everything that a node does by itself.
fn work(
    node: &Arc<Node>,
    calls: &Handle,
    data: &DataDir,
    own: Credentials,
    requests: mpsc::Receiver<guest::Asked>,
) {
    node.tasks
        .spawn_on(api::renew_leases(Arc::clone(node)), calls);
    node.tasks.spawn_on(fence::lead(Arc::clone(node)), calls);
    node.tasks.spawn_on(fence::run(Arc::clone(node)), calls);
    node.tasks.spawn(newcomers::forget_late(Arc::clone(node)));
    let upkeep = Arc::clone(node);
    node.tasks
        .spawn(async move { metrics::keep(&upkeep).await });
    let keep = replacing::run(data.clone(), Arc::clone(node), own);
    node.tasks.spawn(keep);
    node.tasks
        .spawn(introduce(Arc::clone(node), data.admin_certs()));
    node.tasks.spawn(upgrade::run(Arc::clone(node)));
    node.tasks.spawn(upkeep::run(Arc::clone(node)));
    node.tasks.spawn(reconcile::run(Arc::clone(node)));
    node.tasks
        .spawn(reconcile::sweep_now_and_then(Arc::clone(node)));
    node.tasks.spawn_on(fork::follow(Arc::clone(node)), calls);
    node.tasks.spawn(fork::catch_up(Arc::clone(node)));
    node.tasks.spawn(pool::run(Arc::clone(node)));
    node.tasks.spawn(draining::run(Arc::clone(node)));
    node.tasks.spawn(schedules::run(Arc::clone(node)));
    node.tasks.spawn(secrets::forget_in_time(Arc::clone(node)));
    node.tasks.spawn(density::run(Arc::clone(node)));
    node.tasks
        .spawn(api::answer_guests(Arc::clone(node), requests));
}

/// The address that a node listens on: its published ports are there, too. One that is a name's is not known here; then they are on all.
fn listen_address(listen: &str) -> IpAddr {
    let address = listen.parse::<SocketAddr>();
    address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip())
}

/// A server whose calls do not hold each other up: each may have so much on its way, and there is room for a thousand of them.
fn new_server() -> Server {
    Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 30)
}

fn spawn_server(
    servers: &TaskTracker,
    calls: &Handle,
    failed: &watch::Sender<Option<String>>,
    name: &'static str,
    server: impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
) {
    let failed = failed.clone();
    let serve = async move {
        if let Err(error) = server.await {
            failed.send_replace(Some(format!("the {name} server: {error}")));
        }
    };
    servers.spawn_on(serve, calls);
}
