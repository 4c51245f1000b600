//! A program in many forks at once: each item has one result, whatever fails on the way, and nothing is left.
//!
//! `FP_MAP`: how many items are done while a host is killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, is_alive, signal},
    fpagent::{self, Answer},
    guests::amount,
    requests::Request,
    wait_for,
};
use rustix::process::Signal;
use serde_json::Value;

/// A cluster with a guest on its first node.
fn cluster(nodes: usize, options: &[&str]) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start(nodes)?;
    if !options.is_empty() {
        for number in 1..=nodes {
            let agent = cluster.node_mut(number);
            agent.terminate()?;
            agent.set_options(options);
            agent.start()?;
            agent.wait_answers()?;
        }
        cluster.wait_online(nodes)?;
    }
    cluster.import("tiny", "")?;
    let create = [
        "vm", "create", "demo", "--image", "tiny", "--node", "node1", "--wait",
    ];
    cluster.node(1).fp(&create)?.success()?;
    Ok(cluster)
}

/// The results of `-o json`, a line each.
fn results(out: &str) -> anyhow::Result<Vec<Value>> {
    let lines = out.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Nothing is left but the VM that was forked: no fork, no lease, no snapshot, no process.
fn nothing_is_left(cluster: &Cluster, through: usize) -> anyhow::Result<()> {
    wait_for("nothing to be left", PATIENCE, || {
        let count = |args: &[&str]| -> anyhow::Result<usize> {
            let listed = cluster.node(through).json(args)?;
            Ok(listed["items"].as_array().map_or(0, Vec::len))
        };
        let left = (
            count(&["vm", "ls"])?,
            count(&["lease", "ls"])?,
            count(&["snapshot", "ls"])?,
            cluster.processes()?.len(),
        );
        Ok((left == (1, 0, 0, 1)).then_some(()))
    })
}

#[test]
fn results_come_as_they_are_and_nothing_is_left() -> anyhow::Result<()> {
    let cluster = cluster(1, &[])?;
    let node = cluster.node(1);
    let words = "echo $FP_INDEX of $FP_COUNT $WORD; echo oh >&2; exit $FP_INDEX";
    let answer = node.fp(&[
        "map", "demo", "-n", "3", "-o", "json", "--env", "WORD=x", "--", "sh", "-c", words,
    ])?;
    answer.refused(&["2 of 3 items failed", "1: it ended with 1"])?;
    let all = results(&answer.out)?;
    let by_index: BTreeMap<_, _> = all
        .iter()
        .map(|one| (one["index"].as_u64().unwrap_or(99), one))
        .collect();
    for index in 0..3 {
        let one = by_index.get(&index).context("a result is missing")?;
        assert_eq!(one["exitCode"], index, "{one}");
        assert_eq!(one["stdout"], format!("{index} of 3 x\n"), "{one}");
        assert_eq!(
            (&one["stderr"], &one["attempts"]),
            (&"oh\n".into(), &1.into())
        );
    }
    nothing_is_left(&cluster, 1)?;

    // Lines go in, files and one number come out.
    let (lines, into) = (cluster.folder().join("lines"), cluster.folder().join("out"));
    fs::write(&lines, "a\nbb\nccc")?;
    let answer = node.fp(&[
        "map",
        "demo",
        "--input",
        text(&lines)?,
        "--parallel",
        "2",
        "--collect",
        "/tmp/line",
        "--into",
        text(&into)?,
        "--reduce",
        "wc -l",
        "--",
        "sh",
        "-c",
        "tr a-z A-Z > /tmp/line; wc -c < /tmp/line",
    ])?;
    answer.success()?;
    let mut printed: Vec<&str> = answer.out.lines().collect();
    printed.sort_unstable();
    assert_eq!(printed, ["0: 2", "1: 3", "2: 3", "3"]);
    assert!(answer.err.contains("3 items in"), "{}", answer.err);
    for (index, line) in ["A\n", "BB\n", "CCC"].iter().enumerate() {
        let collected = into.join(index.to_string()).join("line");
        assert_eq!(fs::read_to_string(collected)?, *line);
    }
    nothing_is_left(&cluster, 1)?;

    // What cannot work is said at once, or when it shows, and leaves nothing.
    node.fp(&["map", "nobody", "-n", "2", "--", "true"])?
        .refused(&["nobody"])?;
    node.fp(&["map", "@nothing", "-n", "2", "--", "true"])?
        .refused(&["nothing"])?;
    node.fp(&["map", "demo", "-n", "1", "--", "no-such-program"])?
        .refused_with(1, "not started")?;
    let limit = [
        "map",
        "demo",
        "-n",
        "1",
        "--timeout",
        "1s",
        "--",
        "sleep",
        "60",
    ];
    node.fp(&limit)?.refused_with(1, "took longer")?;
    let missing = [
        "map",
        "demo",
        "-n",
        "1",
        "--collect",
        "/nowhere",
        "--into",
        text(&into)?,
        "--",
        "true",
    ];
    node.fp(&missing)?
        .refused_with(1, "nothing was collected")?;
    assert_eq!(node.fp(&["map", "demo", "--", "true"])?.code, 2);
    nothing_is_left(&cluster, 1)
}

trait RefusedWith {
    /// Fails when the command did not end so, or did not say this.
    fn refused_with(&self, code: i32, words: &str) -> anyhow::Result<()>;
}

impl RefusedWith for Answer {
    fn refused_with(&self, code: i32, words: &str) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.code == code && self.err.contains(words),
            "{}: {}",
            self.code,
            self.err
        );
        Ok(())
    }
}

fn text(path: &std::path::Path) -> anyhow::Result<&str> {
    path.to_str().context("no text")
}

#[test]
fn a_host_that_is_killed_costs_no_result() -> anyhow::Result<()> {
    let mut cluster = cluster(3, &["--lost-after", "6s"])?;
    let count = amount("FP_MAP", 18);
    let n = count.to_string();
    let program = ["sh", "-c", "sleep 1; echo $FP_INDEX"];
    let map = ["map", "demo", "-n", &n, "--parallel", "9", "--spread"];
    let args = [&map[..], &["-o", "json", "--"], &program].concat();
    let map = Request::begin(&cluster, 2, &args);
    // All of a host goes at once, in the middle: its agent and its guests.
    let pids = wait_for("forks on the third host", PATIENCE, || {
        let listed = cluster.node(1).json(&["vm", "ls"])?;
        let vms = listed["items"].as_array().into_iter().flatten();
        let there = vms.filter(|vm| vm["node"] == "node3" && vm["state"] == "running");
        let pids: Vec<_> = there.filter_map(|vm| vm["pid"].as_u64()).collect();
        Ok((pids.len() >= 2 && pids.iter().all(|pid| *pid > 0)).then_some(pids))
    })?;
    cluster.node_mut(3).kill()?;
    for pid in pids {
        let pid = u32::try_from(pid)?;
        if is_alive(pid) {
            signal(pid, Signal::KILL)?;
        }
    }
    let answer = map.answer()?;
    answer.success()?;
    let all = results(&answer.out)?;
    let mut seen = BTreeSet::new();
    for one in &all {
        assert_eq!(one["stdout"], format!("{}\n", one["index"]), "{one}");
        assert!(seen.insert(one["index"].as_u64()), "a second result: {one}");
    }
    assert_eq!(seen.len(), count);
    assert!(
        all.iter().any(|one| one["attempts"].as_u64() > Some(1)),
        "none was done again: {all:?}"
    );
    cluster.node_mut(3).start()?;
    cluster.node_mut(3).wait_answers()?;
    nothing_is_left(&cluster, 1)
}

/// A map that goes on for long, once its first program runs.
fn long_map(cluster: &Cluster) -> anyhow::Result<Child> {
    let program = ["sleep", "600"];
    let map = ["map", "demo", "-n", "2", "--lease", "10s", "--"];
    let args = [&map[..], &program].concat();
    let mut child = fpagent::command(None, Some(&cluster.node(1).address()), &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    wait_for("its forks", PATIENCE, || {
        let listed = cluster.node(1).json(&["vm", "ls"])?;
        Ok((listed["items"].as_array().map(Vec::len) >= Some(3)).then_some(()))
    })
    .inspect_err(|_| drop(child.kill()))?;
    Ok(child)
}

#[test]
fn nothing_stays_of_a_client_that_is_gone() -> anyhow::Result<()> {
    let cluster = cluster(1, &[])?;
    let mut interrupted = long_map(&cluster)?;
    signal(interrupted.id(), Signal::INT)?;
    assert_eq!(interrupted.wait()?.code(), Some(130));
    let errors = interrupted.stderr.take().context("no errors")?;
    let said: Vec<_> = BufReader::new(errors).lines().collect::<Result<_, _>>()?;
    assert!(
        said.iter().any(|line| line.contains("interrupted")),
        "{said:?}"
    );
    nothing_is_left(&cluster, 1)?;

    let mut killed = long_map(&cluster)?;
    // It renews its lease for as long as it is there.
    std::thread::sleep(Duration::from_secs(12));
    let leases = cluster.node(1).json(&["lease", "ls"])?;
    assert!(leases["items"][0]["vms"].as_u64() >= Some(2), "{leases}");
    killed.kill()?;
    killed.wait()?;
    nothing_is_left(&cluster, 1)
}
