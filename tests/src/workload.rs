//! Clients that create, fork, rename, label, delete and read at the same time, each over its own connections, and the history of
//! what they did: for every object apart, since what is linearizable for each is for all.
//!
//! The objects: names of VMs, which are created (of an image that does not start, so that no guest has to run), forked into being
//! (from a guest that does run) and deleted; labels of nodes; and the name of a snapshot, which is the one thing that the API
//! renames. All of them are a [`Cell`].

mod client;
mod history;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Context as _;

pub use self::history::{Cell, History, Operation};
use self::{client::Client, history::Keys};
use crate::{
    cluster::{Cluster, PATIENCE},
    linear::{Verdict, check},
    network::Namespace,
    random::Random,
    wait_for,
};

/// How many configurations the check of one object may try. A few hundred thousand are a second.
const MOST: usize = 3_000_000;

/// The image of VMs that do not start.
const HOLLOW: &str = "hollow";
/// The guest that is forked.
const PARENT: &str = "parent";

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Shared {
    history: Mutex<History>,
    keys: Mutex<Keys>,
    stop: AtomicBool,
    seed: u64,
    /// The agents, as clients on their host reach them.
    addresses: Vec<String>,
    certs: PathBuf,
    /// The id of the snapshot that is renamed and forked.
    snapshot: String,
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Clients that do everything but fork.
    pub clients: usize,
    /// Clients that fork.
    pub forkers: usize,
}

/// Clients at work.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Workload {
    /// Makes what the clients work on, on a cluster whose agents are apart and have the image `tiny`, and has them begin. Another
    /// workload on the same cluster needs another seed.
    pub fn begin(cluster: &Cluster, load: Load, seed: u64) -> anyhow::Result<Self> {
        let node = cluster.node(1);
        if load.forkers > 0 {
            let create = ["vm", "create", PARENT, "--image", "tiny", "--wait"];
            node.fp(&create)?.success()?;
        }
        let snapshot = match load.forkers {
            0 => String::new(),
            _ => {
                let made = node.json(&["snapshot", "create", PARENT, "kept"])?;
                made["id"].as_str().context("no id")?.to_owned()
            }
        };
        // Its kernel is none: what is made of it does not start.
        let kernel = cluster.folder().join("hollow");
        fs::write(&kernel, b"\x7fELF and nothing else")?;
        let kernel = kernel.display().to_string();
        node.fp(&["image", "import", HOLLOW, "--kernel", &kernel])?
            .success()?;
        let shared = Arc::new(Shared {
            history: Mutex::new(History::new()),
            keys: Mutex::new(Keys::new(cluster.agents.len(), seed)),
            seed,
            stop: AtomicBool::new(false),
            addresses: cluster
                .agents
                .iter()
                .map(|agent| format!("https://{}", agent.listen))
                .collect(),
            certs: node.data.join("certs/admin"),
            snapshot,
        });
        let host = Arc::new(cluster.network()?.clients().share()?);
        let clients = (0..load.clients + load.forkers)
            .map(|number| {
                let (shared, host) = (Arc::clone(&shared), Arc::clone(&host));
                let forks = number >= load.clients;
                let random = Random::new(seed ^ (number as u64 + 1) << 32);
                thread::spawn(move || run(&host, shared, number, forks, random))
            })
            .collect();
        Ok(Self { shared, clients })
    }

    /// How many operations were answered so far.
    pub fn answered(&self) -> usize {
        self.shared.history().answered()
    }

    /// Whether a client has ended: it does before its time when it was answered what it never should be.
    pub fn is_broken(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }

    /// Ends the clients, reads everything once more through every node, which must all be reachable, and gives the history.
    pub fn end(mut self, cluster: &Cluster) -> anyhow::Result<History> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let ended = client.join();
            ended.map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        let host = cluster.network()?.clients();
        let shared = Arc::clone(&self.shared);
        thread::scope(|scope| {
            let last = scope.spawn(|| {
                host.enter()?;
                let runtime = runtime()?;
                runtime.block_on(async {
                    let mut client = Client::new(shared, 0, Random::new(0))?;
                    client.read_everything().await
                })
            });
            let read = last.join();
            read.map_err(|_| anyhow::anyhow!("a client panicked"))?
        })?;
        Ok(std::mem::take(&mut *self.shared.history()))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

fn run(
    host: &Namespace,
    shared: Arc<Shared>,
    number: usize,
    forks: bool,
    random: Random,
) -> anyhow::Result<()> {
    host.enter()?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut client = Client::new(Arc::clone(&shared), number, random)?;
        while !shared.stop.load(Ordering::Relaxed) {
            match forks {
                true => client.fork().await?,
                false => client.work().await?,
            }
        }
        Ok(())
    })
}

/// Sees that a history is linearizable, object by object.
pub fn is_linearizable(history: &History) -> anyhow::Result<()> {
    for (object, spans) in history.objects() {
        match check::<Cell>(spans, MOST) {
            Verdict::Linearizable => {}
            Verdict::Violation(order) => {
                anyhow::bail!(
                    "the history of {object} is not linearizable:\n{}",
                    history::told(spans, &order)
                )
            }
            Verdict::Undecided => anyhow::bail!(
                "the history of {object}, of {} operations, cannot be decided",
                spans.len()
            ),
        }
    }
    Ok(())
}

/// Waits until all nodes have the same state; they have by their digests.
pub fn agree(cluster: &Cluster) -> anyhow::Result<()> {
    let mut last = Vec::new();
    let agreed = wait_for("all nodes to have one state", PATIENCE, || {
        last.clear();
        for agent in &cluster.agents {
            let status = agent.json(&["status"])?;
            last.push((
                status["appliedIndex"].clone(),
                status["stateDigest"].clone(),
            ));
        }
        let one_index = last.windows(2).all(|pair| pair[0].0 == pair[1].0);
        let one_digest = last.windows(2).all(|pair| pair[0].1 == pair[1].1);
        anyhow::ensure!(
            one_digest || !one_index,
            "nodes have different states at one index"
        );
        Ok((one_index && one_digest).then_some(()))
    });
    agreed.with_context(|| format!("{last:?}"))
}
