//! Hosts' clocks that jump: the cluster goes by most of its voters' clocks, so that nothing ends, or is forgotten, that is not over. Agents
//! are told the time by libfaketime, from a file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use harness::{
    cluster::{Agent, Cluster, PATIENCE},
    fpagent, wait_for,
};
use serde_json::Value;

/// The one for programs with threads: the other gives times that never were while its file changes.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Days that a clock jumps: further than anything lasts.
const DAYS: i64 = 800;

fn clock_of(agent: &Agent) -> PathBuf {
    agent.data.with_extension("clock")
}

/// Sets an agent's clock so many days ahead.
fn set(agent: &Agent, days: i64) -> anyhow::Result<()> {
    // Written beside and put in its place: it is read at any moment.
    let (file, new) = (clock_of(agent), agent.data.with_extension("clock.new"));
    fs::write(&new, format!("{days:+}d\n"))?;
    fs::rename(&new, &file).with_context(|| file.display().to_string())
}

/// What the library leaves of these processes, though it is told to share nothing.
#[derive(Default)]
struct Leftovers(Vec<u32>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        for pid in &self.0 {
            for name in [
                format!("faketime_shm_{pid}"),
                format!("sem.faketime_sem_{pid}"),
            ] {
                // Versions differ in what they leave.
                drop(fs::remove_file(Path::new("/dev/shm").join(name)));
            }
        }
    }
}

/// Three agents whose clocks can be set.
fn cluster() -> anyhow::Result<(Leftovers, Cluster)> {
    ensure!(
        fs::exists(LIBRARY)?,
        "{LIBRARY} is not there: deploy/deps.sh --test installs it"
    );
    let mut leftovers = Leftovers::default();
    let mut cluster = Cluster::with_image(3)?;
    for number in 1..=3 {
        let agent = cluster.node_mut(number);
        set(agent, 0)?;
        let file = clock_of(agent).display().to_string();
        agent.terminate()?;
        for (name, value) in [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
        ] {
            agent.set_variable(name, value);
        }
        agent.start()?;
        leftovers.0.extend(agent.pid());
        agent.wait_answers()?;
    }
    cluster.wait_online(3)?;
    Ok((leftovers, cluster))
}

/// What the host's check says of an agent's clock.
fn check(agent: &Agent) -> anyhow::Result<(String, String)> {
    let checks = agent.json(&["doctor"])?;
    let all = checks["items"].as_array().context("no checks")?;
    let clock = all.iter().find(|one| one["name"] == "clock");
    let clock = clock.with_context(|| format!("no check of the clock: {checks}"))?;
    let text = |field: &str| clock[field].as_str().unwrap_or_default().to_owned();
    Ok((text("result"), text("found")))
}

fn wait_check(agent: &Agent, words: &str) -> anyhow::Result<()> {
    wait_for(words, PATIENCE, || {
        Ok(check(agent)?.1.contains(words).then_some(()))
    })
}

fn names(list: &Value, name: &str) -> Vec<String> {
    let all = list["items"].as_array().into_iter().flatten();
    all.filter_map(|one| one[name].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn one_clock_that_jumps_ends_nothing_and_forgets_nothing() -> anyhow::Result<()> {
    let (_leftovers, cluster) = cluster()?;
    let create = [
        "vm", "create", "a", "--image", "tiny", "--node", "node2", "--wait",
    ];
    cluster.node(1).fp(&create)?.success()?;
    let pid = cluster.vm(1, "a")?["pid"].clone();

    // Something that ends, and somebody whose certificate was revoked, which must not be forgotten before it has ended.
    let folder = cluster.folder().join("ann");
    let ann = folder.display().to_string();
    let create = ["cert", "create", "ann", "--role", "viewer", "--out", &ann];
    cluster.node(1).fp(&create)?.success()?;
    let as_ann = |node: usize| {
        let address = format!("https://{}", cluster.node(node).listen);
        let list = [
            "node",
            "ls",
            "--addr",
            &address,
            "--certs",
            &ann,
            "--timeout",
            "5s",
        ];
        fpagent::run(None, &list)
    };
    as_ann(1)?.success()?;
    cluster.node(1).fp(&["cert", "revoke", "ann"])?.success()?;
    let token = cluster.node(1).json(&["token", "create", "--ttl", "1h"])?;
    let token = token["id"].as_str().context("no token")?.to_owned();

    let leader = cluster.leader()?;
    let follower = leader % 3 + 1;
    let mut round = 0;
    for number in [leader, follower] {
        for days in [DAYS, -DAYS] {
            round += 1;
            let agent = cluster.node(number);
            set(agent, days)?;
            let way = if days > 0 { "ahead of" } else { "behind" };
            wait_check(agent, way)?;
            // Nobody would believe what it signs. What is made there forgets what is over.
            let bob = cluster.folder().join("bob").display().to_string();
            let create = ["cert", "create", "bob", "--role", "viewer", "--out", &bob];
            let refused = agent.fp(&create)?;
            assert_ne!(refused.code, 0);
            assert!(refused.err.contains("clock"), "{refused:?}");
            let made = agent.json(&["token", "create", "--ttl", "10m"])?;
            let made = made["id"].as_str().context("no token")?.to_owned();
            let child = format!("child{round}");
            let fork = ["fork", "a", "--name", &child, "--timeout", "60s"];
            agent.fp(&fork)?.success()?;
            for node in 1..=3 {
                let tokens = names(&cluster.node(node).json(&["token", "ls"])?, "id");
                for token in [&token, &made] {
                    assert!(
                        tokens.contains(token),
                        "node{number} {days:+} days, seen by node{node}: {tokens:?}"
                    );
                }
                let refused = as_ann(node)?;
                assert!(
                    refused.err.contains("revoked"),
                    "{number} {days:+}: {refused:?}"
                );
            }
            assert_eq!(cluster.vm(1, "a")?["pid"], pid, "it ran on");
            cluster.wait_vm(1, &child, "running")?;
            assert!(cluster.is_online(3)?);
            set(agent, 0)?;
            wait_check(agent, "as the cluster's")?;
        }
    }
    Ok(())
}
