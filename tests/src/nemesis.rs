//! What goes wrong in a cluster whose agents are apart: links, processes, all at random from a seed, and back again.

use std::{
    collections::BTreeSet,
    fmt,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::Signal;

use crate::{
    cluster::{Cluster, signal},
    random::Random,
};

/// How long a stopped agent stands still.
const STOPPED: Duration = Duration::from_secs(5);
/// How often a link goes down and up again.
const FLAPS: u64 = 8;

/// One thing that goes wrong. Nodes count from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node's link is down: nobody reaches it, clients do not either.
    Unplugged(usize),
    /// What a node sends to other nodes is lost.
    Mute(usize),
    /// What other nodes send to a node is lost.
    Deaf(usize),
    /// Nodes are on two sides, and no packet gets from one to the other. Clients reach all.
    Split(BTreeSet<usize>),
    /// Two nodes do not reach each other; all others do.
    Apart(usize, usize),
    /// A node's link goes down and up, again and again.
    Flapping(usize),
    /// A node's agent stands still.
    Stopped(usize),
    /// Agents are killed at one moment, and started again.
    Killed(BTreeSet<usize>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplugged(node) => write!(f, "node{node} is unplugged"),
            Self::Mute(node) => write!(f, "node{node} is not heard by the others"),
            Self::Deaf(node) => write!(f, "node{node} does not hear the others"),
            Self::Split(side) => write!(f, "{side:?} are split from the others"),
            Self::Apart(one, other) => write!(f, "node{one} and node{other} are apart"),
            Self::Flapping(node) => write!(f, "the link of node{node} flaps"),
            Self::Stopped(node) => write!(f, "node{node} stands still"),
            Self::Killed(nodes) => write!(f, "{nodes:?} are killed"),
        }
    }
}

/// Chooses what goes wrong.
#[derive(Debug)]
pub struct Nemesis {
    random: Random,
    begun: Instant,
    /// Splits that did not come up yet: all come up before any does again.
    splits: Vec<BTreeSet<usize>>,
    /// How often each kind came up.
    kinds: [u32; KINDS],
}

const KINDS: usize = 8;

impl Nemesis {
    /// With the numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            begun: Instant::now(),
            splits: Vec::new(),
            kinds: [0; KINDS],
        }
    }

    /// Does something, undoes it, and gives the cluster a moment. Says what.
    pub fn strike(&mut self, cluster: &mut Cluster) -> anyhow::Result<Fault> {
        none_ended(cluster)?;
        let fault = self.choose(cluster);
        let hold = self.random.millis(300, 4_000);
        self.inflict(cluster, &fault, hold)?;
        // Sometimes the next comes before the cluster has found itself again.
        let calm = self.random.millis(0, 2_500);
        sleep(calm);
        Ok(fault)
    }

    /// Has one fault last so long.
    pub fn inflict(
        &mut self,
        cluster: &mut Cluster,
        fault: &Fault,
        hold: Duration,
    ) -> anyhow::Result<()> {
        let at = self.begun.elapsed();
        eprintln!("{:8.3} s: {fault}, for {hold:?}", at.as_secs_f64());
        match fault {
            Fault::Flapping(node) => {
                for _ in 0..FLAPS {
                    cluster.network()?.unplug(*node)?;
                    sleep(self.random.millis(20, 400));
                    cluster.network()?.plug(*node)?;
                    sleep(self.random.millis(20, 400));
                }
                Ok(())
            }
            Fault::Stopped(node) => {
                let pid = cluster.node(*node).pid().context("it does not run")?;
                signal(pid, Signal::STOP)?;
                sleep(STOPPED);
                signal(pid, Signal::CONT)
            }
            Fault::Killed(nodes) => {
                for node in nodes {
                    let pid = cluster.node(*node).pid().context("it does not run")?;
                    signal(pid, Signal::KILL)?;
                }
                for node in nodes {
                    cluster.node_mut(*node).kill()?;
                }
                sleep(hold / 2);
                for node in nodes {
                    cluster.node_mut(*node).start()?;
                }
                Ok(())
            }
            Fault::Unplugged(node) => {
                cluster.network()?.unplug(*node)?;
                sleep(hold);
                cluster.network()?.plug(*node)
            }
            Fault::Mute(_) | Fault::Deaf(_) | Fault::Split(_) | Fault::Apart(..) => {
                let ways = lost_ways(fault, cluster.agents.len());
                for (from, to) in &ways {
                    cluster.network()?.cut(*from, *to)?;
                }
                sleep(hold);
                for (from, to) in &ways {
                    cluster.network()?.join(*from, *to)?;
                }
                Ok(())
            }
        }
    }

    fn choose(&mut self, cluster: &Cluster) -> Fault {
        let nodes = cluster.agents.len();
        // All kinds come up about as often, those first that did least.
        let least = self.kinds.iter().min().copied().unwrap_or_default();
        let mut open: Vec<usize> = (0..KINDS)
            .filter(|kind| self.kinds[*kind] <= least + 1)
            .collect();
        let kind = self.random.pick(&mut open);
        self.kinds[kind] += 1;
        // Half of the time it is the leader's turn, if anybody knows one.
        let leader = leader_now(cluster).filter(|_| self.random.percent(50));
        let node = leader.unwrap_or_else(|| self.node(nodes));
        match kind {
            0 => Fault::Unplugged(node),
            1 => Fault::Mute(node),
            2 => Fault::Deaf(node),
            3 => Fault::Split(self.split(nodes)),
            4 => Fault::Apart(node, node % nodes + 1),
            5 => Fault::Flapping(node),
            6 => Fault::Stopped(node),
            _ => Fault::Killed(match self.random.below(3) {
                0 => (1..=nodes).collect(),
                1 => [node, node % nodes + 1].into(),
                _ => [node].into(),
            }),
        }
    }

    fn node(&mut self, nodes: usize) -> usize {
        self.random.below(nodes as u64) as usize + 1
    }

    fn split(&mut self, nodes: usize) -> BTreeSet<usize> {
        if self.splits.is_empty() {
            self.splits = splits(nodes);
        }
        self.random.pick(&mut self.splits)
    }
}

/// Every way to split nodes in two: the side without the last of them.
pub fn splits(nodes: usize) -> Vec<BTreeSet<usize>> {
    (1..1 << (nodes - 1))
        .map(|side: usize| {
            (1..nodes)
                .filter(|node| side & (1 << (node - 1)) != 0)
                .collect()
        })
        .collect()
}

/// From where to where nothing gets through.
fn lost_ways(fault: &Fault, nodes: usize) -> Vec<(usize, usize)> {
    let lost = |from: usize, to: usize| match fault {
        Fault::Mute(node) => from == *node,
        Fault::Deaf(node) => to == *node,
        Fault::Split(side) => side.contains(&from) != side.contains(&to),
        Fault::Apart(one, other) => (from, to) == (*one, *other) || (to, from) == (*one, *other),
        _ => false,
    };
    (1..=nodes)
        .flat_map(|from| (1..=nodes).map(move |to| (from, to)))
        .filter(|(from, to)| from != to && lost(*from, *to))
        .collect()
}

/// Who leads, as the first that knows tells, without waiting for anything.
fn leader_now(cluster: &Cluster) -> Option<usize> {
    cluster.agents.iter().find_map(|agent| {
        let status = agent.json(&["status", "--timeout", "1s"]).ok()?;
        let leader = status["leader"].as_str()?;
        let at = cluster.agents.iter().position(|one| one.name == leader)?;
        Some(at + 1)
    })
}

/// Fails when an agent has ended by itself.
pub fn none_ended(cluster: &mut Cluster) -> anyhow::Result<()> {
    for agent in &mut cluster.agents {
        anyhow::ensure!(
            !agent.has_ended()?,
            "{} has ended by itself:\n{}",
            agent.name,
            agent.log_tail()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_splits_come_up_and_none_twice() {
        assert_eq!(splits(3).len(), 3);
        let five = splits(5);
        assert_eq!(five.len(), 15);
        let different: BTreeSet<_> = five.iter().collect();
        assert_eq!(different.len(), 15);
        assert!(five.iter().all(|side| !side.is_empty() && side.len() < 5));
    }

    #[test]
    fn what_is_lost_is_lost_on_the_ways_that_were_meant() {
        assert_eq!(lost_ways(&Fault::Mute(2), 3), [(2, 1), (2, 3)]);
        assert_eq!(lost_ways(&Fault::Deaf(2), 3), [(1, 2), (3, 2)]);
        assert_eq!(lost_ways(&Fault::Apart(1, 3), 3), [(1, 3), (3, 1)]);
        let split = lost_ways(&Fault::Split([1, 2].into()), 3);
        assert_eq!(split, [(1, 3), (2, 3), (3, 1), (3, 2)]);
    }
}
