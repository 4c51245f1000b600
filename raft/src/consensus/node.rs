//! Starting a member: opens and checks what is on disk, then starts openraft and the tasks around it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use openraft::SnapshotPolicy;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    app::App,
    core::Core,
    elections::Elections,
    errors::StartError,
    handle::Handle,
    health::{Health, Observer, status},
    machine::{Machine, Outlets},
    membership::{Membership, Past},
    network::Factory,
    peers::{Dialer, Peers},
    proposals::{self, Batcher},
    reads::{self, Rounds},
    snapshots::Snapshots,
    types::{LogId, Raft},
};
use crate::log::{Durable, Identity, LogBackend, LogError, LogGuard, LogStore, sled::SledBackend};

/// Where the log lies in a member's folder.
pub(super) const LOG: &str = "log";

/// Where the snapshots lie.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// How a member is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's id: given once, never to another, never to the same node without its disk.
    pub node_id: u64,
    /// The cluster's id.
    pub cluster_id: String,
    /// Where the log and the snapshots lie; for the consensus alone.
    pub dir: PathBuf,
    /// Whether the node is new, so that there must be no log, rather than must be one.
    pub create: bool,
    /// How often a leader says that it is there.
    pub heartbeat: Duration,
    /// How long a candidate waits, from and to; a follower waits `to` more. More than a heartbeat.
    pub election: (Duration, Duration),
    /// After how many entries a snapshot is taken.
    pub snapshot_every: u64,
    /// How many entries that a snapshot includes are kept for members that lag.
    pub keep_entries: u64,
    /// How long there may be no majority before requests are refused.
    pub patience: Duration,
    /// After how long without an answer a voter may be replaced.
    pub away: Duration,
}

/// A host that is started anew is back within this time. One that is not weighs on the quorum until another votes in its place.
pub const AWAY: Duration = Duration::from_secs(5 * 60);

impl Config {
    /// With the times and sizes that are meant for use.
    pub fn new(node_id: u64, cluster_id: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            node_id,
            cluster_id: cluster_id.into(),
            dir: dir.into(),
            create: false,
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(250), Duration::from_millis(450)),
            snapshot_every: 5_000,
            keep_entries: 1_000,
            patience: Duration::from_secs(2),
            away: AWAY,
        }
    }

    fn for_openraft(&self) -> Result<openraft::Config, StartError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        openraft::Config {
            cluster_name: self.cluster_id.clone(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election.0),
            election_timeout_max: millis(self.election.1),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_entries,
            // Until the others are asked: see `elections`.
            enable_elect: false,
            replication_lag_threshold: self.snapshot_every.saturating_mul(2),
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|e| StartError::Config(Box::new(e)))
    }
}

/// What is on disk.
struct Opened<A: App> {
    log: LogStore,
    guard: LogGuard,
    machine: Machine<A>,
    outlets: Outlets<A>,
}

fn open<A: App, B: LogBackend>(
    config: &Config,
    engine: impl FnOnce(&Path, bool) -> Result<B, LogError>,
) -> Result<Opened<A>, StartError> {
    let identity = Identity {
        cluster_id: config.cluster_id.clone(),
        node_id: config.node_id,
    };
    let logs = config.dir.join(LOG);
    let backend = engine(&logs, config.create)?;
    let (log, guard) = LogStore::open(backend, &identity)?;
    let (snapshots, newest) = open_snapshots(&config.dir.join(SNAPSHOTS), config.create)?;
    let included = newest.as_ref().and_then(|(meta, _)| meta.last_log_id);
    check_gap(log.purged(), included)?;
    let (machine, outlets) =
        Machine::new(Arc::new(snapshots), newest, log.durable()).map_err(StartError::Restore)?;
    Ok(Opened {
        log,
        guard,
        machine,
        outlets,
    })
}

/// Refuses a log that begins after the snapshot ends.
pub(super) fn check_gap(purged: Option<LogId>, included: Option<LogId>) -> Result<(), StartError> {
    let index = |id: Option<LogId>| id.map(|id| id.index);
    match (index(purged), index(included)) {
        (Some(purged), included) if included < Some(purged) => Err(StartError::Gap {
            purged,
            snapshot: included.unwrap_or(0),
        }),
        _ => Ok(()),
    }
}

type NewestSnapshot = Option<(super::types::SnapshotMeta, bytes::Bytes)>;

fn open_snapshots(dir: &Path, create: bool) -> Result<(Snapshots, NewestSnapshot), StartError> {
    let (snapshots, newest) = Snapshots::open(dir)?;
    match create && newest.is_some() {
        true => Err(LogError::Exists(dir.to_owned()).into()),
        false => Ok((snapshots, newest)),
    }
}

/// Starts a member. Its service must be reachable for the others, and the dialer must reach theirs.
pub async fn start<A: App>(
    config: Config,
    dialer: Arc<dyn Dialer>,
) -> Result<Handle<A>, StartError> {
    start_on(config, dialer, SledBackend::open).await
}

/// The same with a storage engine of the caller's: `engine` opens it in a folder; when told to, a new one.
pub async fn start_on<A: App, B: LogBackend>(
    config: Config,
    dialer: Arc<dyn Dialer>,
    engine: impl FnOnce(&Path, bool) -> Result<B, LogError> + Send + 'static,
) -> Result<Handle<A>, StartError> {
    let for_openraft = Arc::new(config.for_openraft()?);
    let settings = config.clone();
    let opened = spawn_blocking(move || open::<A, B>(&settings, engine))
        .await
        .map_err(StartError::Interrupted)??;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let peers = Arc::new(Peers::new(
        config.cluster_id.clone(),
        dialer,
        tasks.clone(),
        stop.clone(),
    ));
    let durable = opened.log.durable();
    let raft = Raft::new(
        config.node_id,
        for_openraft,
        Factory::new(config.node_id, Arc::clone(&peers), durable.clone()),
        opened.log,
        opened.machine,
    )
    .await
    .map_err(|e| StartError::Raft(Box::new(e)))?;
    Ok(assemble(
        &config,
        raft,
        peers,
        opened.outlets,
        (opened.guard, durable),
        stop,
        tasks,
    ))
}

/// Starts the tasks around openraft.
fn assemble<A: App>(
    config: &Config,
    raft: Raft,
    peers: Arc<Peers>,
    outlets: Outlets<A>,
    (guard, durable): (LogGuard, Durable),
    stop: CancellationToken,
    tasks: TaskTracker,
) -> Handle<A> {
    // A follower hears from its leader at every heartbeat; beyond two elections' time something is amiss.
    let health = Arc::new(Health::new(
        config.election.0,
        config.election.1 * 2,
        config.patience,
    ));
    let (status_tx, status_rx) = watch::channel(status(&raft.metrics().borrow(), false));
    let (fatal_tx, fatal_rx) = watch::channel(None);
    let (proposals_tx, proposals_rx) = mpsc::channel(proposals::QUEUE);
    let (reads_tx, reads_rx) = mpsc::channel(reads::QUEUE);
    let observer = Observer {
        metrics: raft.metrics(),
        health: Arc::clone(&health),
        status: status_tx,
        fatal: fatal_tx,
        durable: durable.clone(),
        stop: stop.clone(),
    };
    let batcher = Batcher {
        raft: raft.clone(),
        queue: proposals_rx,
        stop: stop.clone(),
    };
    let rounds = Rounds {
        raft: raft.clone(),
        queue: reads_rx,
        stop: stop.clone(),
    };
    let Outlets {
        published,
        applied,
        members,
    } = outlets;
    let membership = Membership {
        raft: raft.clone(),
        peers: Arc::clone(&peers),
        applied: applied.clone(),
        members,
        reads: reads_tx.clone(),
        stop: stop.clone(),
        away: config.away,
        past: Past::default(),
    };
    let elections = Elections {
        id: config.node_id,
        raft: raft.clone(),
        peers: Arc::clone(&peers),
        health: Arc::clone(&health),
        stop: stop.clone(),
    };
    tasks.spawn(observer.run());
    tasks.spawn(elections.run());
    tasks.spawn(batcher.run());
    tasks.spawn(rounds.run());
    tasks.spawn(membership.run());
    let core = Core {
        id: config.node_id,
        is_readable: A::is_readable,
        raft,
        peers,
        health,
        applied,
        status: status_rx,
        fatal: fatal_rx,
        proposals: proposals_tx,
        reads: reads_tx,
        durable,
        stop,
        tasks,
        log: Mutex::new(Some(guard)),
    };
    Handle {
        core: Arc::new(core),
        published,
    }
}
