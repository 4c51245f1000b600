//! Writes side by side with etcd: three agents and three members of etcd on this machine, their data on the same disk, TLS between
//! all of them and to the clients; by turns, so that what else the machine does hits both.

use std::{sync::Arc, time::Duration};

use agent::trust::tls::{
    AGENT_SERVER_NAME, client,
    connect::{Target, channel},
};
use anyhow::Context as _;
use harness::cluster::Cluster;
use proto::v1::node_service_client::NodeServiceClient;
use rustls::ClientConfig;
use tokio::runtime::Runtime;

use crate::{
    etcd::Etcd,
    host,
    report::{Held, Report, Series, Writes},
    writers::{self, Numbers, Until, Writer, Written},
};

/// How many times etcd's a single writer's median may take.
const MOST_LATENCY: f64 = 1.15;
/// How many times etcd's throughput many writers must reach.
const LEAST_THROUGHPUT: f64 = 1.5;
/// How many are many.
const MANY: u32 = 64;

/// How much is measured.
struct Extent {
    rounds: u32,
    /// Writes of the single writer in a round.
    count: u32,
    /// How long the many write in a round.
    time: Duration,
}

impl Extent {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self {
                rounds: 3,
                count: 300,
                time: Duration::from_secs(1),
            },
            false => Self {
                rounds: 8,
                count: 500,
                time: Duration::from_secs(3),
            },
        }
    }
}

/// One of the two that are compared.
struct Side {
    name: &'static str,
    writers: Vec<Writer>,
    pids: Vec<u32>,
}

/// Measures, and adds what was measured to a report.
pub fn run(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let _entered = runtime.enter();
    let mut cluster = Cluster::start(3)?;
    cluster.tells = false;
    report.machine = host::describe(cluster.folder())?;
    let etcd = Etcd::start(&cluster.folder().join("etcd"))?;
    let (leader, version) = etcd.leader(&runtime)?;
    report.machine.push((
        "etcd".to_owned(),
        format!("{version} (Debian), three members, TLS"),
    ));
    report.machine.push((
        "a write".to_owned(),
        format!(
            "{} bytes: NodeService.LabelNode at the leading agent, KV.Put at etcd's leader",
            writers::request_bytes()
        ),
    ));
    let leading = cluster.leader()?;
    let ours = Side {
        name: "fpagent",
        writers: ours(&cluster, leading)?,
        pids: cluster
            .agents
            .iter()
            .filter_map(|agent| agent.pid())
            .collect(),
    };
    let theirs = Side {
        name: "etcd",
        writers: (0..MANY)
            .map(|_| etcd.connect(leader).map(Writer::Etcd))
            .collect::<anyhow::Result<_>>()?,
        pids: etcd.pids(),
    };
    let measured = measure(&runtime, &[theirs, ours], &Extent::new(quick))?;
    anyhow::ensure!(
        cluster.leader()? == leading && etcd.leader(&runtime)?.0 == leader,
        "the leader changed meanwhile: nothing was measured"
    );
    let find = |name: &str, writers: u32| {
        let found = measured
            .iter()
            .find(|one| one.who == name && one.writers == writers);
        found.context("not measured")
    };
    let (one, theirs) = (find("fpagent", 1)?, find("etcd", 1)?);
    let latency = Held::at_most(
        "raft",
        "one writer: the median, as a part of etcd's",
        one.ms.median / theirs.ms.median,
        MOST_LATENCY,
        "",
    );
    let (many, theirs) = (find("fpagent", MANY)?, find("etcd", MANY)?);
    let throughput = Held::at_least(
        "raft",
        &format!("{MANY} writers: writes a second, as a part of etcd's"),
        many.per_second / theirs.per_second,
        LEAST_THROUGHPUT,
        "",
    );
    report.held.extend([latency, throughput]);
    report.writes = measured;
    Ok(())
}

/// Connections to the leading agent, with the administrator's certificate.
fn ours(cluster: &Cluster, leading: usize) -> anyhow::Result<Vec<Writer>> {
    let config = client::for_user(&cluster.node(1).data.join("certs/admin"))?;
    let address = &cluster.node(leading).listen;
    let connect = |config: &Arc<ClientConfig>| {
        NodeServiceClient::new(channel(Target::Tls {
            address: address.clone(),
            server_name: AGENT_SERVER_NAME.to_owned(),
            config: Arc::clone(config),
        }))
    };
    // Each node has one label: what is answered does not grow.
    let nodes = cluster.agents.iter().map(|agent| agent.name.clone());
    Ok(nodes
        .cycle()
        .take(MANY as usize)
        .map(|node| Writer::Agent {
            client: connect(&config),
            node,
        })
        .collect())
}

/// By turns, and who begins changes with each round.
fn measure(runtime: &Runtime, sides: &[Side; 2], extent: &Extent) -> anyhow::Result<Vec<Writes>> {
    let numbers = Numbers::default();
    let mut all = Vec::new();
    for (writers, until) in [
        (1, Until::Count(extent.count)),
        (MANY, Until::Elapsed(extent.time)),
    ] {
        let mut turns: [Vec<(Written, f64)>; 2] = Default::default();
        // The first round makes connections and warms both up.
        for round in 0..=extent.rounds {
            for place in [round as usize % 2, (round as usize + 1) % 2] {
                let side = &sides[place];
                let cpu = cpu_ms(side);
                let some = &side.writers[..writers as usize];
                let written = runtime
                    .block_on(writers::write(some, &numbers, until))
                    .with_context(|| side.name)?;
                let spent = cpu_ms(side) - cpu;
                eprintln!(
                    "    {:8} {writers:3} writers: {:6.0} writes/s",
                    side.name,
                    written.ms.len() as f64 / written.took.as_secs_f64()
                );
                if round > 0 {
                    turns[place].push((written, spent));
                }
            }
        }
        for (side, turns) in sides.iter().zip(turns) {
            all.push(writes(side.name, writers, turns)?);
        }
    }
    Ok(all)
}

fn cpu_ms(side: &Side) -> f64 {
    side.pids.iter().map(|pid| host::cpu_ms(*pid)).sum()
}

fn writes(who: &str, writers: u32, turns: Vec<(Written, f64)>) -> anyhow::Result<Writes> {
    let seconds: f64 = turns.iter().map(|(turn, _)| turn.took.as_secs_f64()).sum();
    let spent: f64 = turns.iter().map(|(_, spent)| spent).sum();
    let ms: Vec<f64> = turns.into_iter().flat_map(|(turn, _)| turn.ms).collect();
    let count = ms.len() as f64;
    Ok(Writes {
        who: who.to_owned(),
        writers,
        ms: Series::of(ms).context("nothing was written")?,
        per_second: count / seconds,
        cpu_ms: spent / count,
    })
}
