//! What happens is told once and in one order, whichever agents are there to tell it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    fpagent, wait_for,
};
use serde_json::Value;

/// `fpagent events -f` that runs, and what it has printed.
struct Follower {
    client: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Follower {
    /// Asks these agents, in turn.
    fn start(addresses: &str) -> anyhow::Result<Self> {
        let args = ["events", "-f", "--since", "oldest", "-o", "json"];
        let mut command = fpagent::command(None, Some(addresses), &args);
        let mut client = command.stdout(Stdio::piped()).spawn()?;
        let out = client.stdout.take().context("no output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        // It ends with its client.
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut lines = kept.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push(line);
            }
        });
        Ok(Self { client, lines })
    }

    fn printed(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    }

    /// Returns once it has told of something.
    fn wait_for(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        wait_for(what, PATIENCE, || {
            let events = parse(&self.printed())?;
            Ok(events.iter().any(&is_it).then_some(()))
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _gone = self.client.kill();
        let _gone = self.client.wait();
    }
}

fn parse(lines: &[String]) -> anyhow::Result<Vec<Value>> {
    let read = |line: &String| serde_json::from_str(line).with_context(|| line.clone());
    lines.iter().map(read).collect()
}

fn number(event: &Value) -> anyhow::Result<u64> {
    let position = event["position"].as_str().context("no position")?;
    let (_, number) = position.rsplit_once('.').context("no number")?;
    Ok(number.parse()?)
}

/// What a node lists.
fn listed(cluster: &Cluster, through: usize, how: &[&str]) -> anyhow::Result<Vec<String>> {
    let answer = cluster
        .node(through)
        .fp(&[&["events", "-o", "json"], how].concat())?;
    answer.success()?;
    Ok(answer.out.lines().map(str::to_owned).collect())
}

/// The kinds of what a node lists.
fn kinds(cluster: &Cluster, through: usize, how: &[&str]) -> anyhow::Result<Vec<String>> {
    let events = parse(&listed(cluster, through, how)?)?;
    let kind = |event: &Value| event["kind"].as_str().unwrap_or_default().to_owned();
    Ok(events.iter().map(kind).collect())
}

fn is(kind: &str, name: &str) -> impl Fn(&Value) -> bool {
    move |event: &Value| event["kind"] == kind && event["name"] == name
}

#[test]
fn a_follower_is_told_each_event_once_whatever_agent_is_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    let address = |node: usize| cluster.node(node).address();
    let follower = Follower::start(&[address(2), address(3), address(1)].join(","))?;
    let node = cluster.node(1);
    let create = [
        "vm", "create", "web", "--image", "tiny", "--node", "node1", "--wait",
    ];
    node.fp(&create)?.success()?;
    follower.wait_for("the VM to be told of", is("vm.running", "web"))?;

    // The agent that tells is killed while things happen; then the next one.
    for (killed, fork) in [(2, "two"), (3, "three")] {
        cluster.node_mut(killed).kill()?;
        let asked = cluster
            .node(1)
            .fp(&["fork", "web", "-n", "2", "--name", fork])?;
        asked.success()?;
        let last = format!("{fork}-2");
        follower.wait_for("forks to be told of", is("vm.running", &last))?;
        cluster.node_mut(killed).start()?;
        cluster.node_mut(killed).wait_answers()?;
        cluster.wait_online(3)?;
    }
    cluster
        .node(1)
        .fp(&["vm", "rm", "--force", "two-1"])?
        .success()?;
    follower.wait_for("the deletion to be told of", is("vm.deleted", "two-1"))?;

    // All tell the same, agents that were restarted too, and so did the follower: each once, and in order.
    wait_for("all to tell the same", PATIENCE, || {
        let all = listed(&cluster, 1, &[])?;
        let same = listed(&cluster, 2, &[])? == all && listed(&cluster, 3, &[])? == all;
        Ok((same && follower.printed() == all).then_some(()))
    })?;
    let events = parse(&follower.printed())?;
    for (event, expected) in events.iter().zip(1..) {
        anyhow::ensure!(number(event)? == expected, "{expected}: {event}");
    }
    let of_vm = [
        "vm.created",
        "vm.running",
        "operation.begun",
        "snapshot.begun",
        "snapshot.ready",
        "operation.complete",
    ];
    let told = kinds(&cluster, 3, &["--vm", "web"])?;
    for kind in of_vm {
        anyhow::ensure!(told.iter().any(|told| told == kind), "{kind}: {told:?}");
    }
    // One that is gone is found by its name, and a position is gone on from on another node.
    let of_gone = ["--vm", "two-1", "--kind", "vm"];
    let told = kinds(&cluster, 2, &of_gone)?;
    anyhow::ensure!(
        told == ["vm.created", "vm.running", "vm.deleted"],
        "{told:?}"
    );
    let first = parse(&listed(&cluster, 2, &of_gone)?)?[0].clone();
    let position = first["position"].as_str().context("no position")?;
    let rest = listed(&cluster, 3, &["--since", position])?;
    anyhow::ensure!(number(&parse(&rest)?[0])? == number(&first)? + 1);
    let table = cluster.node(3).fp(&["events", "--kind", "cluster"])?.out;
    anyhow::ensure!(table.contains("cluster.founded"), "{table}");

    let node = cluster.node(2);
    let elsewhere = "01J9ZK3A8GQ4W3X7N5T2R6V0YB.1";
    for (since, why) in [
        (elsewhere, "another incarnation"),
        ("99999999", "no event 99999999 yet"),
        ("yesterday", "no position"),
    ] {
        node.fp(&["events", "--since", since])?
            .refused(&[why, "--since oldest"])?;
    }
    node.fp(&["events", "--kind", "vm.fails"])?
        .refused(&["vm.fails", "events --help"])?;
    node.fp(&["events", "--vm", "nobody"])?
        .refused(&["there is no VM"])
}
