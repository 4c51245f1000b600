//! Ten thousand VMs in the replicated state, on a host that only claims them, beside a cluster that has ten: what listing, deciding a
//! fork, an agent's memory, a newcomer and a restart come to.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use agent::trust::tls::connect::{Target, channel};
use anyhow::Context as _;
use futures::future::try_join_all;
use harness::{
    cluster::{Agent, Cluster, PATIENCE},
    wait_for,
};
use proto::v1::{
    GetStatusRequest, GetStatusResponse, cluster_service_client::ClusterServiceClient,
    vm_service_client::VmServiceClient,
};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::{
    fake_host::{FakeHost, line_name},
    host,
    many::all_vms,
    report::{Held, Report, Series},
};

const MANY: u32 = 10_000;
const FEW: u32 = 10;
/// Bounds: milliseconds, MiB, seconds.
const MOST_LS_MS: f64 = 100.0;
const MOST_MEMORY_MIB: f64 = 200.0;
const MOST_SYNC_S: f64 = 5.0;
const MOST_RESTART_S: f64 = 3.0;
/// "No slower" for two medians that are measured by turns on a machine that others use, too.
const MOST_RATIO: f64 = 1.1;
/// How many forks go on at once when it is writes that are wanted, so that each is an entry of its own.
const SIDE_BY_SIDE: u32 = 2;

/// Three agents and a host that has VMs.
pub struct Claimed {
    pub cluster: Cluster,
    pub host: FakeHost,
}

impl Claimed {
    /// A cluster with so many VMs.
    pub fn new(runtime: &Runtime, vms: u32) -> anyhow::Result<Self> {
        let mut cluster = Cluster::start(3)?;
        cluster.tells = false;
        let joined = newcomer(&cluster, "claims")?;
        let host = runtime.block_on(FakeHost::start(&joined.data))?;
        cluster.wait_online(4)?;
        runtime.block_on(host.have(vms))?;
        Ok(Self { cluster, host })
    }

    /// The whole life of a fork: decided, answered, deleted.
    pub async fn fork(&self, line: u32) -> anyhow::Result<()> {
        let operation = self.host.fork(&line_name(line), 1).await?;
        self.host.answer(operation, 1).await?;
        self.host.remove(operation).await
    }

    /// Forks until every agent has written a snapshot, so that its log no longer begins at the beginning.
    fn until_purged(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let has_snapshot = |agent: &Agent| {
            fs::read_dir(agent.data.join("raft/snapshots"))
                .is_ok_and(|mut files| files.next().is_some())
        };
        while !self.cluster.agents.iter().all(has_snapshot) {
            runtime.block_on(async {
                try_join_all((0..SIDE_BY_SIDE).map(|_| async {
                    for _ in 0..100 {
                        self.fork(0).await?;
                    }
                    anyhow::Ok(())
                }))
                .await
            })?;
        }
        Ok(())
    }
}

/// Prepares a node that joins.
pub fn newcomer(cluster: &Cluster, name: &str) -> anyhow::Result<Agent> {
    let agent = cluster.newcomer(name)?;
    let token = cluster.node(1).json(&["token", "create", "--ttl", "5m"])?;
    let token = token["token"].as_str().context("no token")?;
    Cluster::join(&agent, token)?.success()?;
    Ok(agent)
}

fn connect(agent: &Agent) -> anyhow::Result<Channel> {
    let address = agent.address();
    let socket = address.strip_prefix("unix://").context("no socket")?;
    Ok(channel(Target::Unix(Path::new(socket).to_owned())))
}

/// Measures, and adds what was measured to a report.
pub fn run(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let _entered = runtime.enter();
    let rounds = if quick { 50 } else { 300 };
    let few = Claimed::new(&runtime, FEW)?;
    let mut many = Claimed::new(&runtime, MANY)?;
    report.machine = host::describe(many.cluster.folder())?;
    report.held.extend(list(&runtime, &many.cluster)?);
    report.held.push(decide(&runtime, &few, &many, rounds)?);
    runtime.block_on(few.host.stop())?;
    drop(few.cluster);
    many.until_purged(&runtime)?;
    report.held.push(memory(&many.cluster)?);
    report.held.push(join(&runtime, &many)?);
    report.held.push(restart(&runtime, &mut many)?);
    runtime.block_on(many.host.stop())
}

/// `vm ls` of all, by the command and by the call alone, at an agent that does not lead.
fn list(runtime: &Runtime, cluster: &Cluster) -> anyhow::Result<[Held; 2]> {
    let leading = cluster.leader()?;
    let agent = cluster.node(if leading == 1 { 2 } else { 1 });
    let service = VmServiceClient::new(connect(agent)?);
    let (mut by_command, mut by_call) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let begun = Instant::now();
        let answer = agent.fp(&["vm", "ls"])?;
        by_command.push(millis(begun));
        answer.success()?;
        let begun = Instant::now();
        let listed = runtime.block_on(all_vms(&service))?.len();
        by_call.push(millis(begun));
        anyhow::ensure!(listed == MANY as usize, "{listed} VMs are listed");
    }
    let held = |what: &str, ms: Vec<f64>| -> anyhow::Result<Held> {
        let ms = Series::of(ms).context("nothing was measured")?;
        let what = format!("{MANY} VMs: {what}, median");
        let held = Held::at_most("state", &what, ms.median, MOST_LS_MS, "ms");
        Ok(held.noted(format!("the slowest of {} {:.1}", ms.n, ms.max)))
    };
    Ok([
        held("vm ls, from the command's start to its end", by_command)?,
        held("the call alone", by_call)?,
    ])
}

/// How long it takes until a fork is decided, by turns.
fn decide(runtime: &Runtime, few: &Claimed, many: &Claimed, rounds: u32) -> anyhow::Result<Held> {
    let mut ms = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for place in [round as usize % 2, (round as usize + 1) % 2] {
            let claimed = [few, many][place];
            let begun = Instant::now();
            let operation = runtime.block_on(claimed.host.fork(&line_name(0), 1))?;
            ms[place].push(millis(begun));
            runtime.block_on(async {
                claimed.host.answer(operation, 1).await?;
                claimed.host.remove(operation).await
            })?;
        }
    }
    let [few, many] = ms.map(Series::of);
    let (few, many) = (few.context("no rounds")?, many.context("no rounds")?);
    let held = Held::at_most(
        "state",
        &format!("a fork's commit with {MANY} VMs, as a part of that with {FEW}"),
        many.median / few.median,
        MOST_RATIO,
        "",
    );
    Ok(held.noted(format!(
        "medians {:.2} and {:.2} ms, 99th percentiles {:.2} and {:.2}, of {} each",
        many.median, few.median, many.p99, few.p99, many.n
    )))
}

fn memory(cluster: &Cluster) -> anyhow::Result<Held> {
    let mut most = 0;
    for agent in &cluster.agents {
        most = most.max(host::resident(agent.pid().context("no agent")?)?);
    }
    let what = format!("{MANY} VMs: an agent's memory, the largest");
    let mib = most as f64 / f64::from(1 << 20);
    Ok(Held::at_most("state", &what, mib, MOST_MEMORY_MIB, "MiB"))
}

/// From the beginning of `fpagent join` until the new agent has all.
fn join(runtime: &Runtime, many: &Claimed) -> anyhow::Result<Held> {
    let index = many.host.applied();
    let begun = Instant::now();
    let mut late = newcomer(&many.cluster, "late")?;
    let joined = begun.elapsed();
    late.start()?;
    until_in_sync(runtime, &late, index)?;
    let took = begun.elapsed();
    late.terminate()?;
    let held = Held::at_most(
        "state",
        &format!("{MANY} VMs: a new node in sync"),
        took.as_secs_f64(),
        MOST_SYNC_S,
        "s",
    );
    Ok(held.noted(format!(
        "of them {:.2} for fpagent join",
        joined.as_secs_f64()
    )))
}

/// From an agent's start until it has all it had, and says so; the slowest of the three, each ended in order.
fn restart(runtime: &Runtime, many: &mut Claimed) -> anyhow::Result<Held> {
    let mut slowest = Duration::ZERO;
    for number in 1..=3 {
        let index = many.host.applied();
        let agent = many.cluster.node_mut(number);
        agent.terminate()?;
        let begun = Instant::now();
        agent.start()?;
        until_in_sync(runtime, agent, index)?;
        slowest = slowest.max(begun.elapsed());
        many.cluster.leader()?;
    }
    Ok(Held::at_most(
        "state",
        &format!("{MANY} VMs: an agent started again, the slowest of three"),
        slowest.as_secs_f64(),
        MOST_RESTART_S,
        "s",
    ))
}

fn until_in_sync(runtime: &Runtime, agent: &Agent, index: u64) -> anyhow::Result<()> {
    let mut service = ClusterServiceClient::new(connect(agent)?);
    wait_for("an agent in sync", PATIENCE, || {
        // It may not serve yet.
        let status: Option<GetStatusResponse> = runtime
            .block_on(service.get_status(GetStatusRequest::default()))
            .ok()
            .map(tonic::Response::into_inner);
        let in_sync = |status: GetStatusResponse| {
            (status.applied_index >= index && status.vms == MANY).then_some(())
        };
        Ok(status.and_then(in_sync))
    })
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
