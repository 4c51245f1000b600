//! Nodes come and go: who votes, who is refused, and what is left behind.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, is_alive},
    wait_for,
};
use serde_json::Value;

/// All nodes by name, as one shows them.
fn nodes(cluster: &Cluster, through: usize) -> anyhow::Result<BTreeMap<String, Value>> {
    let list = cluster.node(through).json(&["node", "ls"])?;
    let all = list["items"].as_array().context("no items")?;
    let name = |node: &Value| node["name"].as_str().unwrap_or_default().to_owned();
    Ok(all.iter().map(|node| (name(node), node.clone())).collect())
}

/// Waits until these vote and nobody else, as a node sees it.
fn wait_voters(cluster: &Cluster, through: usize, voters: &[&str]) -> anyhow::Result<()> {
    let mut last = Vec::new();
    let found = wait_for(&format!("the voters {voters:?}"), PATIENCE, || {
        let answer = cluster.node(through).fp(&["node", "ls", "-o", "json"])?;
        let Ok(list) = answer.json() else {
            return Ok(None);
        };
        let all = list["items"].as_array().context("no items")?;
        let voting = all.iter().filter(|node| node["role"] == "voter");
        let mut names: Vec<_> = voting.filter_map(|node| node["name"].as_str()).collect();
        names.sort_unstable();
        last = names.iter().map(|name| (*name).to_owned()).collect();
        Ok((names == voters).then_some(()))
    });
    found.with_context(|| format!("they are {last:?}"))
}

/// Waits until so many vote.
fn wait_count(cluster: &Cluster, through: usize, count: usize) -> anyhow::Result<()> {
    wait_for(&format!("{count} voters"), PATIENCE, || {
        let Ok(nodes) = nodes(cluster, through) else {
            return Ok(None);
        };
        let voters = nodes.values().filter(|node| node["role"] == "voter");
        let leads = nodes.values().any(|node| node["leader"] == true);
        Ok((voters.count() == count && leads).then_some(()))
    })
}

/// A node other than these.
fn other(cluster: &Cluster, not: &[usize]) -> anyhow::Result<usize> {
    (1..=cluster.agents.len())
        .find(|number| !not.contains(number))
        .context("no other node")
}

fn audited(cluster: &Cluster, number: usize, words: &str) -> bool {
    let log = fs::read_to_string(cluster.node(number).data.join("audit.log"));
    log.is_ok_and(|text| text.lines().any(|line| line.contains(words)))
}

#[test]
fn nodes_come_and_go() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    wait_voters(&cluster, 1, &["node1", "node2", "node3"])?;
    cluster.grow(2, "node4")?;
    cluster.wait_online(4)?;
    wait_voters(&cluster, 4, &["node1", "node2", "node3"])?;
    cluster.grow(3, "node5")?;
    wait_count(&cluster, 5, 5)?;

    // One that runs: it hears of it, says so, and ends.
    let leader = cluster.leader()?;
    let live = other(&cluster, &[leader])?;
    let name = cluster.node(live).name.clone();
    let through = other(&cluster, &[leader, live])?;
    let removed = cluster.node(through).json(&["node", "rm", &name])?;
    assert_eq!(removed["name"], name.as_str());
    let log = cluster.node_mut(live).wait_end()?;
    assert!(log.contains("was removed from the cluster"), "{log}");
    cluster
        .node(live)
        .refuses_to_run(&["was removed from its cluster", "new token"])?;
    wait_count(&cluster, through, 3)?;
    cluster.agents.remove(live - 1);

    // One that is dead. When it comes back it is refused by all, and told.
    let leader = cluster.leader()?;
    let dead = other(&cluster, &[leader])?;
    let name = cluster.node(dead).name.clone();
    cluster.node_mut(dead).kill()?;
    let through = other(&cluster, &[leader, dead])?;
    cluster
        .node(through)
        .fp(&["node", "rm", &name])?
        .success()?;
    wait_count(&cluster, through, 3)?;
    cluster.node_mut(dead).start()?;
    let log = cluster.node_mut(dead).wait_end()?;
    assert!(log.contains("was removed from the cluster"), "{log}");
    // By its own state, where the leader had not let it go yet; or by whoever refused it.
    let refused = (1..=4).any(|number| audited(&cluster, number, "was removed from the cluster"));
    let is_told = log.contains(", as node ");
    assert!(refused || !is_told, "nobody has a line of that");
    cluster.node(dead).refuses_to_run(&["was removed"])?;
    cluster.agents.remove(dead - 1);

    // The leader, by itself.
    let leader = cluster.leader()?;
    let name = cluster.node(leader).name.clone();
    let removed = cluster.node(leader).json(&["node", "rm", &name])?;
    assert_eq!(removed["name"], name.as_str());
    let log = cluster.node_mut(leader).wait_end()?;
    assert!(log.contains("was removed from the cluster"), "{log}");
    cluster.agents.remove(leader - 1);
    wait_count(&cluster, 1, 1)?;

    // The only voter, when nobody could take its place, and the last node.
    let voter = cluster.leader()?;
    let learner = other(&cluster, &[voter])?;
    let names = [voter, learner].map(|number| cluster.node(number).name.clone());
    cluster.node_mut(learner).kill()?;
    wait_for("the learner's lease to end", PATIENCE, || {
        let nodes = nodes(&cluster, voter)?;
        Ok((nodes[&names[1]]["state"] == "offline").then_some(()))
    })?;
    let refused = cluster.node(voter).fp(&["node", "rm", &names[0]])?;
    refused.refused(&["no majority", &names[1], "away"])?;
    cluster.node_mut(learner).start()?;
    cluster.node_mut(learner).wait_answers()?;
    cluster
        .node(learner)
        .fp(&["node", "rm", &names[0]])?
        .success()?;
    cluster.node_mut(voter).wait_end()?;
    wait_voters(&cluster, learner, &[&names[1]])?;
    let last = cluster.node(learner).fp(&["node", "rm", &names[1]])?;
    last.refused(&[])?;
    Ok(())
}

#[test]
fn voters_are_spread_over_zones_and_replaced_when_they_are_away_for_long() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(4)?;
    for number in 1..=4 {
        let agent = cluster.node_mut(number);
        agent.set_options(&["--voter-away", "3s"]);
        agent.terminate()?;
        agent.start()?;
        agent.wait_answers()?;
    }
    cluster.wait_online(4)?;
    let leader = cluster.leader()?;
    // The leader and another one share a zone.
    let rest: Vec<usize> = (1..=4).filter(|number| *number != leader).collect();
    let [same, second, third] = rest[..] else {
        anyhow::bail!("{rest:?}")
    };
    for (number, zone) in [(leader, "a"), (same, "a"), (second, "b"), (third, "c")] {
        let name = cluster.node(number).name.clone();
        let label = format!("zone={zone}");
        cluster
            .node(leader)
            .fp(&["node", "label", &name, &label])?
            .success()?;
    }
    let name = |number: usize| format!("node{number}");
    let sorted = |numbers: [usize; 3]| {
        let mut names = numbers.map(name);
        names.sort();
        names
    };
    let spread = sorted([leader, second, third]);
    let spread = spread.each_ref().map(String::as_str);
    wait_voters(&cluster, leader, &spread)?;
    // A zone is lost: its voter gives way, until it is back.
    cluster.node_mut(third).kill()?;
    let without = sorted([leader, same, second]);
    wait_voters(&cluster, leader, &without.each_ref().map(String::as_str))?;
    cluster.node_mut(third).start()?;
    wait_voters(&cluster, leader, &spread)
}

#[test]
fn a_node_that_moves_is_found() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2)?;
    // A learner waits until it hears of its leader; a leader is where all look.
    for number in [2, 1] {
        let place = cluster.newcomer("place")?.listen;
        let agent = cluster.node_mut(number);
        agent.terminate()?;
        agent.set_options(&["--listen", &place]);
        agent.start()?;
        agent.wait_answers()?;
        let name = agent.name.clone();
        wait_for("the new address", PATIENCE, || {
            let Ok(nodes) = nodes(&cluster, 3 - number) else {
                return Ok(None);
            };
            let node = &nodes[&name];
            Ok((node["address"] == place.as_str() && node["state"] == "online").then_some(()))
        })?;
        // It stays there without being told again.
        let agent = cluster.node_mut(number);
        agent.terminate()?;
        agent.set_options(&[]);
        agent.start()?;
        agent.wait_answers()?;
        cluster.wait_online(2)?;
        let nodes = nodes(&cluster, 1)?;
        assert_eq!(nodes[&name]["address"], place.as_str());
    }
    Ok(())
}

#[test]
fn a_newcomer_that_does_not_start_is_forgotten() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let agent = cluster.node_mut(1);
    agent.terminate()?;
    agent.set_options(&["--newcomer-patience", "1s"]);
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(1)?;

    // As if the answer had got lost: the same token, the same name, and another number.
    let token = cluster.token(1, "5m")?;
    let mut first = cluster.newcomer("first")?;
    first.name = "late".to_owned();
    Cluster::join(&first, &token)?.success()?;
    let mut again = cluster.newcomer("again")?;
    again.name = "late".to_owned();
    Cluster::join(&again, &token)?.success()?;
    let known = nodes(&cluster, 1)?;
    assert_eq!(
        (&known["late"]["id"], known.len()),
        (&Value::from(3), 2),
        "{known:?}"
    );
    first.start()?;
    let log = first.wait_end()?;
    assert!(log.contains("was removed from the cluster"), "{log}");
    again.start()?;
    again.wait_answers()?;
    cluster.agents.push(again);
    cluster.wait_online(2)?;
    // It has started: nobody comes in with its token any more.
    let thief = cluster.newcomer("thief")?;
    assert_ne!(Cluster::join(&thief, &token)?.code, 0);

    let token = cluster.token(1, "2s")?;
    let never = cluster.newcomer("never")?;
    Cluster::join(&never, &token)?.success()?;
    assert!(nodes(&cluster, 1)?.contains_key("never"));
    wait_for("the newcomer to be forgotten", PATIENCE, || {
        Ok((!nodes(&cluster, 1)?.contains_key("never")).then_some(()))
    })?;
    wait_voters(&cluster, 1, &["node1"])
}

#[test]
fn a_node_that_lost_its_disk_joins_anew_and_the_old_one_is_refused() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let lost = 3;
    cluster.node_mut(lost).kill()?;
    let mut old = cluster.agents.remove(lost - 1);
    let backup = old.data.with_file_name("backup");
    fs::rename(&old.data, &backup)?;
    // Nothing is there, an empty folder, a folder without its log: all are errors.
    let empty = ["holds no node", "lost its disk"];
    old.refuses_to_run(&empty)?;
    fs::create_dir(&old.data)?;
    old.refuses_to_run(&empty)?;
    fs::remove_dir(&old.data)?;
    old.data.clone_from(&backup);
    let (log, kept) = (backup.join("raft"), backup.join("kept"));
    fs::rename(&log, &kept)?;
    let no_log = ["no log", "disk counts as lost"];
    old.refuses_to_run(&no_log)?;
    if log.exists() {
        fs::remove_dir_all(&log)?;
    }
    fs::create_dir(&log)?;
    old.refuses_to_run(&no_log)?;
    fs::remove_dir_all(&log)?;
    fs::rename(&kept, &log)?;

    cluster
        .node(1)
        .fp(&["node", "rm", "node3", "--force"])?
        .success()?;
    let new = cluster.grow(2, "node3")?;
    cluster.wait_online(3)?;
    assert_eq!(nodes(&cluster, new)?["node3"]["id"], 4);
    wait_voters(&cluster, new, &["node1", "node2", "node3"])?;
    old.start()?;
    let log = old.wait_end()?;
    assert!(log.contains("was removed from the cluster"), "{log}");
    wait_voters(&cluster, 1, &["node1", "node2", "node3"])
}

#[test]
fn what_is_given_up_with_a_node_is_told_and_ended() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(2)?;
    let create = [
        "vm", "create", "web", "--image", "tiny", "--node", "node2", "--wait",
    ];
    cluster.node(1).fp(&create)?.success()?;
    cluster
        .node(1)
        .fp(&["snapshot", "create", "web", "gold"])?
        .success()?;
    let processes = cluster.processes()?;
    assert!(!processes.is_empty());
    let refused = cluster.node(1).fp(&["node", "rm", "node2"])?;
    refused.refused(&["VM web", "snapshot gold", "--force"])?;
    let removed = cluster.node(1).json(&["node", "rm", "node2", "--force"])?;
    assert_eq!(removed["vms"], serde_json::json!(["web"]));
    assert_eq!(removed["snapshots"], serde_json::json!(["gold"]));
    cluster.node_mut(2).wait_end()?;
    let gone = || processes.iter().all(|pid| !is_alive(*pid));
    wait_for("the guests' end", Duration::from_secs(5), || {
        Ok(gone().then_some(()))
    })?;
    let shown = cluster.node(1).fp(&["vm", "show", "web"])?;
    shown.refused(&["given up", "node2 was removed"])?;
    let gold = cluster.node(1).json(&["snapshot", "show", "gold"])?;
    assert!(gold.to_string().contains("node2 was removed"), "{gold}");
    // The name is free.
    let create = ["vm", "create", "web", "--image", "tiny", "--wait"];
    cluster.node(1).fp(&create)?.success()
}
