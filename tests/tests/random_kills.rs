//! The agent is killed at random moments while a client forks, captures, deletes and makes ready: on its return nothing listed is
//! unusable, nothing usable is lost, nothing is left over, no parent stands still.
//!
//! `FP_KILLS` says how often (30), `FP_KILL_SEED` with which numbers; a failure prints how to repeat it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    fpagent,
    random::{Random, seed, setting},
    soundness::{Acknowledged, Ground, goes_on, listed_well, settled, usable},
    wait_for,
};

/// How often the agent is killed, unless it is said.
const KILLS: u64 = 30;
/// After so many kills everything is looked at and deleted.
const ROUND: u64 = 20;
/// A client's requests are cut at most so long after it began with them, microseconds.
const LATEST: u64 = 250_000;
/// How much the client keeps of each kind.
const MANY: usize = 4;

/// What a client made, and what it did since it last was asked.
struct Client {
    random: Random,
    count: u64,
    vms: Vec<String>,
    snapshots: Vec<String>,
    /// What was deleted, or may have been.
    deleted_vms: Vec<String>,
    deleted_snapshots: Vec<String>,
    /// What was made and acknowledged.
    made_vms: Vec<String>,
    made_snapshots: Vec<String>,
    did: Vec<String>,
}

impl Client {
    /// Makes requests until it is told to stop: the last is sent again until it is answered.
    fn work(&mut self, address: &str, stop: &AtomicBool) -> anyhow::Result<()> {
        for made in [
            &mut self.deleted_vms,
            &mut self.deleted_snapshots,
            &mut self.made_vms,
            &mut self.made_snapshots,
            &mut self.did,
        ] {
            made.clear();
        }
        while !stop.load(Ordering::Relaxed) {
            self.one(address)?;
        }
        Ok(())
    }

    fn one(&mut self, address: &str) -> anyhow::Result<()> {
        self.count += 1;
        let mut ask = |args: &[&str]| -> anyhow::Result<()> {
            self.did.push(args.join(" "));
            let answer = fpagent::run(Some(address), args)?;
            answer.success().with_context(|| args.join(" "))
        };
        let name = format!("n{}", self.count);
        let full = self.vms.len() >= MANY;
        match self.random.below(8) {
            0 | 1 if !full => {
                ask(&["fork", "parent", "--name", &name])?;
                self.made_vms.push(name.clone());
                self.vms.push(name);
            }
            2 | 3 if !full => {
                ask(&["fork", "@kept", "-n", "2", "--paused", "--name", &name])?;
                for number in 1..=2 {
                    self.made_vms.push(format!("{name}-{number}"));
                    self.vms.push(format!("{name}-{number}"));
                }
            }
            4 | 5 if self.snapshots.len() < MANY => {
                ask(&["snapshot", "create", "parent", &name])?;
                self.made_snapshots.push(name.clone());
                self.snapshots.push(name);
            }
            6 => {
                let count = self.random.below(3).to_string();
                ask(&["snapshot", "warm", "@kept", "-n", &count])?;
            }
            _ if !self.vms.is_empty() && (full || self.snapshots.is_empty()) => {
                let vm = self.random.pick(&mut self.vms);
                self.deleted_vms.push(vm.clone());
                ask(&["vm", "rm", "--force", &vm])?;
            }
            _ if !self.snapshots.is_empty() => {
                let snapshot = self.random.pick(&mut self.snapshots);
                self.deleted_snapshots.push(snapshot.clone());
                ask(&["snapshot", "rm", &snapshot])?;
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn killed_at_random_moments() -> anyhow::Result<()> {
    let kills = setting("FP_KILLS")?.unwrap_or(KILLS);
    let seed = seed("FP_KILL_SEED")?;
    let mut done = 0;
    run(kills, seed, &mut done).with_context(|| {
        format!(
            "kill {done} of {kills}; again: FP_KILL_SEED={seed} FP_KILLS={kills} cargo nextest run -p fp-tests --test random_kills"
        )
    })
}

fn run(kills: u64, seed: u64, done: &mut u64) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    cluster.import("tiny", "fp.pulse")?;
    let agent = cluster.node_mut(1);
    agent.terminate()?;
    // None is ready that nobody asked for.
    agent.set_options(&["--ready-forks", "0"]);
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(1)?;
    let create = ["vm", "create", "parent", "--image", "tiny", "--wait"];
    cluster.node(1).fp(&create)?.success()?;
    cluster.wait_pulses("parent", 3)?;
    let create = ["snapshot", "create", "parent", "kept"];
    cluster.node(1).fp(&create)?.success()?;
    let ground = Ground::of(&cluster, "parent", "@kept")?;

    let mut random = Random::new(seed);
    let mut client = Client {
        random: Random::new(seed ^ 1),
        count: 0,
        vms: Vec::new(),
        snapshots: Vec::new(),
        deleted_vms: Vec::new(),
        deleted_snapshots: Vec::new(),
        made_vms: Vec::new(),
        made_snapshots: Vec::new(),
        did: Vec::new(),
    };
    while *done < kills {
        *done += 1;
        let acknowledged = Acknowledged::now(&cluster)?;
        let delay = Duration::from_micros(random.below(LATEST));
        cut(&mut cluster, &mut client, delay)
            .and_then(|()| check(&cluster, &client, acknowledged))
            .with_context(|| format!("after {delay:?} of {:?}", client.did))?;
        if done.is_multiple_of(ROUND) || *done == kills {
            usable(&cluster)?;
            ground.undo(&cluster)?;
            client.vms.clear();
            client.snapshots.clear();
        }
    }
    Ok(())
}

/// Kills the agent so long after the client began, and starts it again; the parent does not stand still.
fn cut(cluster: &mut Cluster, client: &mut Client, delay: Duration) -> anyhow::Result<()> {
    let address = cluster.node(1).address();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| client.work(&address, &stop));
        thread::sleep(delay);
        stop.store(true, Ordering::Relaxed);
        let back = cluster
            .node_mut(1)
            .kill()
            .and_then(|()| cluster.node_mut(1).start())
            .and_then(|()| cluster.node_mut(1).wait_answers())
            .and_then(|()| goes_on(cluster, "parent"));
        let worked = work
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        back.and(worked)
    })
}

fn check(cluster: &Cluster, client: &Client, mut acknowledged: Acknowledged) -> anyhow::Result<()> {
    settled(cluster)?;
    listed_well(cluster)?;
    for snapshot in &client.made_snapshots {
        acknowledged.note_snapshot(snapshot);
    }
    for snapshot in &client.deleted_snapshots {
        acknowledged.forget_snapshot(snapshot);
    }
    for vm in &client.deleted_vms {
        acknowledged.forget_vm(vm);
    }
    acknowledged.is_there(cluster)?;
    for name in client
        .made_vms
        .iter()
        .filter(|name| !client.deleted_vms.contains(name))
    {
        cluster.vm(1, name)?;
    }
    for name in &client.deleted_vms {
        wait_for(&format!("{name} to be gone"), PATIENCE, || {
            Ok((cluster.node(1).fp(&["vm", "show", name])?.code == 1).then_some(()))
        })?;
    }
    Ok(())
}
