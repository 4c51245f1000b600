//! How long the loss of an agent is felt: the leader is killed, and a follower is stopped, again and again, while each node is
//! written through. `deploy/bench.sh failover` builds and runs it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use agent::client::reach::Reach;
use anyhow::Context as _;
use clap::Parser;
use harness::{
    cluster::{Cluster, signal},
    network::Namespace,
    wait_for,
};
use proto::v1::LabelNodeRequest;
use rustix::process::Signal;

/// How long a stopped agent stands still.
const STOPPED: Duration = Duration::from_secs(5);
/// How long a cluster is left alone between losses.
const CALM: Duration = Duration::from_secs(2);
/// A loss that is felt for longer is to be looked into.
const LATE: Duration = Duration::from_millis(1_500);
/// Longer than any loss is felt: a write that takes longer fails the run.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Options {
    /// How often the leader is killed.
    #[arg(long, default_value_t = 30)]
    kills: u32,
    /// How often a follower is stopped.
    #[arg(long, default_value_t = 10)]
    stops: u32,
}

/// A write that was answered.
#[derive(Clone, Copy)]
struct Write {
    /// Through which node.
    node: usize,
    begun: Instant,
    ended: Instant,
}

type Writes = Arc<Mutex<Vec<Write>>>;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut cluster = Cluster::start_apart(3)?;
    cluster.tells = false;
    let writes = Writes::default();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=3)
        .map(|node| {
            let host = cluster.network()?.clients().share()?;
            let reach = (
                format!("https://{}", cluster.node(node).listen),
                cluster.node(1).data.join("certs/admin"),
            );
            let (writes, stop) = (Arc::clone(&writes), Arc::clone(&stop));
            Ok(thread::spawn(move || {
                write(&host, node, reach, &writes, &stop)
            }))
        })
        .collect::<anyhow::Result<_>>()?;
    let measured = measure(&mut cluster, &options, &writes);
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let ended = writer.join();
        ended.map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    measured
}

fn measure(cluster: &mut Cluster, options: &Options, writes: &Writes) -> anyhow::Result<()> {
    thread::sleep(CALM);
    let mut felt = Vec::new();
    for _ in 0..options.kills {
        let leader = cluster.leader()?;
        let killed = Instant::now();
        cluster.node_mut(leader).kill()?;
        let first = wait_for("a write after the leader was killed", PATIENCE, || {
            let all = all(writes).into_iter();
            // One that was begun before may have been committed before.
            let since = all.filter(|write| write.node != leader && write.begun > killed);
            Ok(since.map(|write| write.ended - killed).min())
        });
        let first = first?;
        if first > LATE {
            eprintln!(
                "{first:?} after the kill of node{leader}:\n{}",
                cluster.logs()
            );
        }
        felt.push(first);
        cluster.node_mut(leader).start()?;
        cluster.node_mut(leader).wait_answers()?;
        cluster.wait_online(3)?;
        thread::sleep(CALM);
    }
    tell(
        "leader killed: until the first write through another node",
        felt,
    );
    let mut longest = Vec::new();
    for _ in 0..options.stops {
        let follower = cluster.leader()? % 3 + 1;
        let pid = cluster.node(follower).pid().context("it does not run")?;
        let begun = Instant::now();
        signal(pid, Signal::STOP)?;
        thread::sleep(STOPPED);
        signal(pid, Signal::CONT)?;
        thread::sleep(CALM);
        let others = all(writes).into_iter();
        let others = others.filter(|write| write.node != follower && write.ended > begun);
        let took = others.map(|write| write.ended - write.begun).max();
        longest.push(took.context("nothing was written")?);
    }
    tell(
        "follower stopped for 5 s: the longest write through another node",
        longest,
    );
    Ok(())
}

fn all(writes: &Writes) -> Vec<Write> {
    writes
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let Some(last) = times.len().checked_sub(1) else {
        return;
    };
    println!(
        "{what}: {} times, least {:.0} ms, median {:.0} ms, most {:.0} ms",
        times.len(),
        times[0].as_secs_f64() * 1e3,
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[last].as_secs_f64() * 1e3
    );
}

/// Writes through one node until it is told to stop, with the client's own retries.
fn write(
    host: &Namespace,
    node: usize,
    (address, certs): (String, std::path::PathBuf),
    writes: &Writes,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    host.enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let address = address.parse().map_err(anyhow::Error::msg)?;
        let reach = Reach::for_user(&[address], Some(&certs), PATIENCE)
            .map_err(|failure| anyhow::anyhow!("{}", failure.line()))?;
        let mut count = 0u64;
        while !stop.load(Ordering::Relaxed) {
            count += 1;
            let request = LabelNodeRequest {
                node: "node1".to_owned(),
                set: [(format!("through-{node}"), count.to_string())].into(),
                request_id: format!("failover-{node}-{count}"),
                ..Default::default()
            };
            let begun = Instant::now();
            let answer = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.nodes().label_node(request).await
            });
            // Its own agent may be the one that is killed.
            if answer.await.is_ok() {
                let ended = Instant::now();
                let write = Write { node, begun, ended };
                let mut writes = writes.lock().unwrap_or_else(PoisonError::into_inner);
                writes.push(write);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    })
}
