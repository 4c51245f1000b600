//! A program in many forks at once: each item has one result, whatever fails on the way, and nothing is left.
//!
//! `FP_MAP`: how many items are done while a host is killed, or who drives a map that is left to the cluster.

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
    users::Users,
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

/// Once forks run on a node, ends all of its host but the VM that is forked: its agent and its guests.
fn kill_host(cluster: &mut Cluster, number: usize, through: usize) -> anyhow::Result<()> {
    let name = format!("node{number}");
    let pids = wait_for("forks on the host", PATIENCE, || {
        let listed = cluster.node(through).json(&["vm", "ls"])?;
        let vms = listed["items"].as_array().into_iter().flatten();
        let forks = vms.filter(|vm| vm["name"] != "demo");
        let there = forks.filter(|vm| vm["node"] == name.as_str() && vm["state"] == "running");
        let pids: Vec<_> = there.filter_map(|vm| vm["pid"].as_u64()).collect();
        Ok((pids.len() >= 2 && pids.iter().all(|pid| *pid > 0)).then_some(pids))
    })?;
    cluster.node_mut(number).kill()?;
    for pid in pids {
        let pid = u32::try_from(pid)?;
        if is_alive(pid) {
            signal(pid, Signal::KILL)?;
        }
    }
    Ok(())
}

/// The results, of which each item has one, that is its own.
fn each_once(out: &str, count: usize) -> anyhow::Result<Vec<Value>> {
    let all = results(out)?;
    let mut seen = BTreeSet::new();
    for one in &all {
        assert_eq!(one["stdout"], format!("{}\n", one["index"]), "{one}");
        assert!(seen.insert(one["index"].as_u64()), "a second result: {one}");
    }
    assert_eq!(seen.len(), count);
    Ok(all)
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
    kill_host(&mut cluster, 3, 1)?;
    let answer = map.answer()?;
    answer.success()?;
    let all = each_once(&answer.out, count)?;
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

/// Leaves a map to the cluster, through a node, and gives its id.
fn detach(cluster: &Cluster, through: usize, args: &[&str]) -> anyhow::Result<String> {
    let args = [&["map", "demo", "--detach"][..], args].concat();
    let answer = cluster.node(through).fp(&args)?;
    answer.success()?;
    Ok(answer.out.trim().to_owned())
}

fn shown(cluster: &Cluster, through: usize, map: &str) -> anyhow::Result<Value> {
    cluster.node(through).json(&["maps", "show", map])
}

fn has_result(cluster: &Cluster, through: usize, map: &str) -> anyhow::Result<()> {
    wait_for("a result", PATIENCE, || {
        let done = shown(cluster, through, map)?["done"].as_u64();
        Ok((done > Some(0)).then_some(()))
    })
}

/// How often somebody began to drive a map, as events tell it: the nodes.
fn drivers(cluster: &Cluster, map: &str) -> anyhow::Result<Vec<String>> {
    let events = ["events", "--kind", "map.driven", "-o", "json"];
    let told = cluster.node(1).fp(&events)?;
    let told = results(&told.out)?.into_iter();
    let of_map = told.filter(|event| event["id"] == map);
    let node = |event: Value| event["node"].as_str().unwrap_or_default().to_owned();
    Ok(of_map.map(node).collect())
}

#[test]
fn one_that_is_left_to_the_cluster_outlives_who_drives_it() -> anyhow::Result<()> {
    let mut cluster = cluster(3, &["--lost-after", "6s"])?;
    let count = amount("FP_MAP", 18);
    let n = count.to_string();
    let program = ["sh", "-c", "sleep 1; echo $FP_INDEX"];
    let map = ["-n", &n, "--parallel", "9", "--spread", "--"];
    let args = [&map[..], &program].concat();
    // The one that was asked drives it. Somebody reads through another.
    let id = detach(&cluster, 3, &args)?;
    assert_eq!(shown(&cluster, 2, &id)?["driver"], "node3");
    let read = Request::begin(&cluster, 2, &["maps", "results", &id, "-o", "json"]);
    kill_host(&mut cluster, 3, 1)?;
    let answer = read.answer()?;
    answer.success()?;
    each_once(&answer.out, count)?;
    // From the beginning once more, through the third.
    let again = cluster
        .node(1)
        .fp(&["maps", "results", &id, "-o", "json"])?;
    again.success()?;
    assert_eq!(again.out, answer.out);
    let drove = drivers(&cluster, &id)?;
    assert!(drove.len() >= 2 && drove[0] == "node3", "{drove:?}");
    assert_ne!(drove.last().map(String::as_str), Some("node3"));
    cluster.node_mut(3).start()?;
    cluster.node_mut(3).wait_answers()?;
    cluster.wait_online(3)?;
    nothing_is_left(&cluster, 1)?;

    // One whose driver has the VM, and had its moment alone.
    let id = detach(&cluster, 1, &args)?;
    wait_for("a second holder of the moment", PATIENCE, || {
        let listed = cluster.node(2).json(&["snapshot", "ls"])?;
        let nodes = listed["items"][0]["nodes"].as_array().map(Vec::len);
        Ok((nodes >= Some(2)).then_some(()))
    })?;
    kill_host(&mut cluster, 1, 2)?;
    let answer = cluster
        .node(2)
        .fp(&["maps", "results", &id, "-o", "json"])?;
    answer.success()?;
    each_once(&answer.out, count)?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    cluster.wait_online(3)?;
    nothing_is_left(&cluster, 2)?;

    // One whose driver only stood still: when it goes on, nobody listens to it.
    let id = detach(&cluster, 3, &args)?;
    has_result(&cluster, 1, &id)?;
    let stopped = cluster.node(3).pid().context("it does not run")?;
    signal(stopped, Signal::STOP)?;
    let answer = cluster.node(2).fp(&["maps", "results", &id, "-o", "json"]);
    signal(stopped, Signal::CONT)?;
    each_once(&answer?.out, count)?;
    cluster.wait_online(3)?;
    assert_ne!(
        drivers(&cluster, &id)?.last().map(String::as_str),
        Some("node3")
    );
    nothing_is_left(&cluster, 1)?;

    // A drain hands it over, whatever else becomes of that node.
    let id = detach(&cluster, 2, &args)?;
    has_result(&cluster, 1, &id)?;
    let drain = ["node", "drain", "node2", "--force"];
    cluster.node(1).fp(&drain)?.success()?;
    let answer = cluster
        .node(2)
        .fp(&["maps", "results", &id, "-o", "json"])?;
    answer.success()?;
    each_once(&answer.out, count)?;
    let drove = drivers(&cluster, &id)?;
    assert!(drove.len() >= 2 && drove[0] == "node2", "{drove:?}");
    assert_ne!(drove.last().map(String::as_str), Some("node2"));
    nothing_is_left(&cluster, 1)
}

#[test]
fn one_that_is_left_to_the_cluster_ends_with_all_it_made() -> anyhow::Result<()> {
    let mut cluster = cluster(1, &[])?;
    let sleeps = ["-n", "2", "--name", "long", "--", "sleep", "600"];
    let forks = |cluster: &Cluster| {
        wait_for("its forks", PATIENCE, || {
            let listed = cluster.node(1).json(&["vm", "ls"])?;
            Ok((listed["items"].as_array().map(Vec::len) >= Some(3)).then_some(()))
        })
    };
    detach(&cluster, 1, &sleeps)?;
    let fp = |args: &[&str]| cluster.node(1).fp(args);
    fp(&[&["map", "demo", "--detach"][..], &sleeps].concat())?.refused(&["long"])?;
    forks(&cluster)?;
    fp(&["maps", "rm", "long"])?.refused(&["is running", "--force"])?;
    fp(&["maps", "cancel", "long"])?.success()?;
    nothing_is_left(&cluster, 1)?;
    for how in ["results", "wait"] {
        fp(&["maps", how, "long"])?.refused(&["was cancelled"])?;
    }
    fp(&["maps", "cancel", "long"])?.refused(&["has ended"])?;
    fp(&["maps", "rm", "long"])?.success()?;
    fp(&["maps", "show", "long"])?.refused(&["there is no map"])?;

    // One that was forced.
    detach(&cluster, 1, &sleeps)?;
    forks(&cluster)?;
    fp(&["maps", "rm", "long", "--force"])?.success()?;
    nothing_is_left(&cluster, 1)?;

    // What cannot be left is refused, and what fails is told as the map itself would.
    let collect = [
        "map",
        "demo",
        "--detach",
        "-n",
        "1",
        "--collect",
        "/tmp/x",
        "--into",
        "out",
        "--",
        "true",
    ];
    fp(&collect)?.refused_with(2, "--collect")?;
    fp(&["map", "nobody", "--detach", "-n", "1", "--", "true"])?.refused(&["nobody"])?;
    let many = ["map", "demo", "--detach", "-n", "20000", "--", "true"];
    fp(&many)?.refused(&["10000"])?;
    let id = detach(
        &cluster,
        1,
        &["-n", "3", "--", "sh", "-c", "exit $FP_INDEX"],
    )?;
    for how in ["results", "wait"] {
        let failed = ["2 of 3 items failed", "1: it ended with 1"];
        fp(&["maps", how, &id, "-o", "json"])?.refused(&failed)?;
    }

    // Lines go in, and one number comes out, also when the agent is another one meanwhile.
    let lines = cluster.folder().join("lines");
    fs::write(&lines, "a\nbb\nccc\ndddd\n")?;
    let reduce = "sleep 1; cat > /tmp/all; wc -l < /tmp/all; exit 7";
    let job = [
        "--parallel",
        "1",
        "--keep-for",
        "1h",
        "--reduce",
        reduce,
        "--",
        "sh",
        "-c",
        "sleep 1; wc -c",
    ];
    let id = detach(
        &cluster,
        1,
        &[&["--input", text(&lines)?][..], &job].concat(),
    )?;
    let read = Request::begin(&cluster, 1, &["maps", "results", &id]);
    has_result(&cluster, 1, &id)?;
    let agent = cluster.node_mut(1);
    agent.terminate()?;
    agent.start()?;
    agent.wait_answers()?;
    // A client waits for its only agent for a little while only.
    drop(read.answer()?);
    let answer = cluster.node(1).fp(&["maps", "results", &id])?;
    assert_eq!(answer.code, 7, "{}", answer.err);
    let mut printed: Vec<&str> = answer.out.lines().collect();
    printed.sort_unstable();
    assert_eq!(printed, ["0: 2", "1: 3", "2: 4", "3: 5", "4"]);
    let map = shown(&cluster, 1, &id)?;
    assert!(map["drives"].as_u64() >= Some(2), "{map}");
    assert_eq!(
        (&map["state"], &map["reduce"]["stdout"]),
        (&"finished".into(), &"4\n".into())
    );
    nothing_is_left(&cluster, 1)
}

#[test]
fn one_that_is_left_to_the_cluster_may_do_what_its_asker_may() -> anyhow::Result<()> {
    let cluster = cluster(1, &[])?;
    let node = cluster.node(1);
    let users = Users::of(
        &cluster,
        &[
            ("ann", "operator", "ann"),
            ("bob", "operator", "bob"),
            ("vic", "viewer", "ann"),
        ],
    )?;
    node.fp(&["share", "vm", "demo", "--with", "ann"])?
        .success()?;
    let map = [
        "map", "demo", "--detach", "--name", "hers", "-n", "2", "--lease", "10s", "--",
    ];
    let sleeps = [&map[..], &["sleep", "600"]].concat();
    users.run(node, "bob", &sleeps)?.refused(&["demo"])?;
    users
        .run(node, "vic", &sleeps)?
        .refused(&["role operator"])?;
    users.run(node, "ann", &sleeps)?.success()?;
    let hers = wait_for("its forks", PATIENCE, || {
        let listed = users.json(node, "ann", &["vm", "ls"])?;
        let all = listed["items"].as_array().cloned().unwrap_or_default();
        Ok((all.len() >= 3).then_some(all))
    })?;
    assert_eq!(hers.iter().filter(|vm| vm["owner"] == "ann").count(), 2);
    let listed = users.json(node, "bob", &["maps", "ls"])?;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(0));
    for how in ["show", "results", "cancel", "rm"] {
        users
            .run(node, "bob", &["maps", how, "ann/hers"])?
            .refused(&["there is no map"])?;
    }
    users
        .run(node, "vic", &["maps", "show", "hers"])?
        .success()?;
    node.fp(&["maps", "show", "ann/hers"])?.success()?;
    // With the certificate ends what it allows.
    node.fp(&["cert", "revoke", "ann"])?.success()?;
    node.fp(&["maps", "wait", "ann/hers"])?
        .refused(&["map hers failed", "was revoked"])?;
    nothing_is_left(&cluster, 1)
}
