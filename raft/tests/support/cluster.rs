//! Members that can be started, stopped, and cut off.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use raft::consensus::{Config, DialError, Dialer, Handle, Proposed, Status, start_on};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};

use super::{
    app::{Ask, TextApp, Texts},
    disk::{Disk, Faulty, Mood},
};

/// The longest that anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where the members are.
#[derive(Default)]
struct Addresses(Mutex<BTreeMap<u64, SocketAddr>>);

#[async_trait::async_trait]
impl Dialer for Addresses {
    async fn channel(&self, node: u64) -> Result<Channel, DialError> {
        let address = self.0.lock().unwrap().get(&node).copied();
        let failed = |source| DialError { node, source };
        let address = address.ok_or_else(|| failed("it is not there".into()))?;
        Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| failed(e.into()))?
            .connect_timeout(Duration::from_secs(1))
            .connect()
            .await
            .map_err(|e| failed(e.into()))
    }
}

/// One running member.
struct Member {
    handle: Handle<TextApp>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

/// A cluster in a temporary folder.
pub struct Cluster {
    dir: TempDir,
    addresses: Arc<Addresses>,
    members: BTreeMap<u64, Member>,
    disks: BTreeMap<u64, Arc<Disk>>,
    requests: AtomicU64,
    tune: fn(&mut Config),
}

impl Cluster {
    /// One member, which names itself.
    pub async fn of_one(tune: fn(&mut Config)) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut cluster = Self::none_in(dir, tune);
        cluster.start(1, true).await;
        cluster.handle(1).initialize().await.unwrap();
        cluster.set_members(1, &[1]).await;
        cluster
    }

    fn none_in(dir: TempDir, tune: fn(&mut Config)) -> Self {
        Self {
            dir,
            addresses: Arc::default(),
            members: BTreeMap::new(),
            disks: BTreeMap::new(),
            requests: AtomicU64::new(0),
            tune,
        }
    }

    /// So many members that were there before, from what is in a folder. Requests are numbered from far above what they were.
    pub async fn back(dir: TempDir, count: u64, tune: fn(&mut Config)) -> Self {
        let mut cluster = Self::none_in(dir, tune);
        cluster.requests = AtomicU64::new(1 << 32);
        for id in 1..=count {
            cluster.start(id, false).await;
        }
        cluster
    }

    /// So many voting members.
    pub async fn of(count: u64, tune: fn(&mut Config)) -> Self {
        let mut cluster = Self::of_one(tune).await;
        for id in 2..=count {
            cluster.start(id, true).await;
        }
        let ids: Vec<u64> = (1..=count).collect();
        cluster.set_members(1, &ids).await;
        for id in ids {
            let settled = |status: &Status| {
                let voters = status.voters.iter().copied();
                status.leader.is_some() && !status.changing && voters.eq(1..=count)
            };
            cluster.until_status(id, "all vote", settled).await;
        }
        cluster
    }

    /// The folder of a member.
    pub fn dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// What dials the members.
    pub fn dialer(&self) -> Arc<dyn Dialer> {
        Arc::clone(&self.addresses) as Arc<dyn Dialer>
    }

    /// Starts a member, at a new address.
    pub async fn start(&mut self, id: u64, create: bool) {
        self.start_in(id, create, "test", self.dir(id)).await;
    }

    /// The same in a cluster and a folder of the caller's choice.
    pub async fn start_in(&mut self, id: u64, create: bool, cluster: &str, dir: PathBuf) {
        let mut config = Config::new(id, cluster, dir);
        config.create = create;
        (self.tune)(&mut config);
        let disk = Arc::clone(self.disks.entry(id).or_default());
        let engine = move |path: &_, create| Faulty::open(path, create, &disk);
        let started = start_on::<TextApp, _>(config, self.dialer(), engine).await;
        let handle = started.unwrap();
        let member = self.serve(id, handle).await;
        assert!(self.members.insert(id, member).is_none());
    }

    async fn serve(&self, id: u64, handle: Handle<TextApp>) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        // Connections end with the server: a member that is gone answers nobody.
        let server = Server::builder()
            .add_service(handle.service())
            .serve_with_incoming(TcpListenerStream::new(listener));
        let stopped = stop.clone();
        let server = tokio::spawn(async move {
            tokio::select! {
                served = server => served.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        self.addresses.0.lock().unwrap().insert(id, address);
        Member {
            handle,
            stop,
            server,
        }
    }

    /// Has a member's disk behave otherwise.
    pub fn set_disk(&self, id: u64, mood: Mood) {
        self.disks[&id].set(mood);
    }

    /// Stops a member; its disk stays.
    pub async fn stop(&mut self, id: u64) {
        let member = self.members.remove(&id).unwrap();
        self.addresses.0.lock().unwrap().remove(&id);
        member.stop.cancel();
        member.server.await.unwrap();
        member.handle.shutdown().await;
    }

    /// Stops all members.
    pub async fn end(mut self) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            self.stop(id).await;
        }
    }

    pub fn handle(&self, id: u64) -> Handle<TextApp> {
        self.members[&id].handle.clone()
    }

    /// What a member's state holds.
    pub fn texts(&self, id: u64) -> Arc<Texts> {
        Arc::clone(&self.members[&id].handle.view().borrow().view)
    }

    /// The next text to propose, under a request id of its own.
    pub fn ask(&self, text: &str) -> Vec<u8> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        Ask::Text(request, text.into()).bytes()
    }

    /// Proposes a text through a member.
    pub async fn write(&self, id: u64, text: &str) -> Proposed {
        let ask = self.ask(text);
        self.handle(id)
            .propose(ask, Instant::now() + PATIENCE)
            .await
            .unwrap()
    }

    pub async fn set_members(&self, id: u64, members: &[u64]) {
        let members: Vec<_> = members.iter().map(|id| (*id, "")).collect();
        self.set_zones(id, &members).await;
    }

    /// The same, each with its zone.
    pub async fn set_zones(&self, id: u64, members: &[(u64, &str)]) {
        let members = members.iter().map(|(id, zone)| (*id, (*zone).to_owned()));
        let ask = Ask::Members(members.collect()).bytes();
        self.handle(id)
            .propose(ask, Instant::now() + PATIENCE)
            .await
            .unwrap();
    }

    /// Waits for something about a member's status.
    pub async fn until_status(&self, id: u64, what: &str, is: impl Fn(&Status) -> bool) {
        let handle = self.handle(id);
        let reached = handle
            .metrics_changed()
            .wait_for(|status| is(status))
            .await
            .map(|_| ());
        reached.unwrap_or_else(|_| panic!("node {id} ended before: {what}"));
    }

    /// Waits for the leader that a member knows, other than some.
    pub async fn leader(&self, id: u64, not: &[u64]) -> u64 {
        let known = |status: &Status| status.leader.is_some_and(|leader| !not.contains(&leader));
        self.until_status(id, "a leader", known).await;
        self.handle(id).status().leader.unwrap()
    }

    /// Waits until a member's state holds a text.
    pub async fn until_text(&self, id: u64, text: &str) {
        let mut view = self.handle(id).view();
        let there = view.wait_for(|published| published.view.list.iter().any(|t| t == text));
        there.await.unwrap();
    }

    /// All members' ids.
    pub fn ids(&self) -> BTreeSet<u64> {
        self.members.keys().copied().collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Threads that wait for a disk would hold up a test that failed.
        for disk in self.disks.values() {
            disk.set(Mood::Works);
        }
    }
}

/// Runs a test, and fails it when it takes too long.
pub async fn within(limit: Duration, test: impl Future<Output = ()>) {
    tokio::time::timeout(limit, test)
        .await
        .expect("the test waits in vain");
}
