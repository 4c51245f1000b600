//! Many VMs on one host: what merging saves is shown and the host's settings are put back; limits are enforced or said not to
//! be; memory that is short stops new work; and the kernel's killer takes processes in the order that is promised.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    lineage::fork,
    wait_for,
};
use qemu::ksm::Ksm;
use serde_json::Value;

/// A cluster of one agent with these options, and a guest `parent` that writes records.
fn cluster(options: &[&str], words: &str) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start(1)?;
    restart(&mut cluster, options)?;
    cluster.import("tiny", words)?;
    let create = ["vm", "create", "parent", "--image", "tiny", "--wait"];
    cluster.node(1).fp(&create)?.success()?;
    Ok(cluster)
}

fn restart(cluster: &mut Cluster, options: &[&str]) -> anyhow::Result<()> {
    let agent = cluster.node_mut(1);
    agent.terminate()?;
    agent.set_options(options);
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(1)
}

fn check(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    let answer = cluster.node(1).fp(&["doctor", "-o", "json"])?;
    let checks: Value = serde_json::from_str(&answer.out)?;
    let found = checks["items"]
        .as_array()
        .and_then(|all| all.iter().find(|check| check["name"] == name).cloned());
    found.with_context(|| format!("doctor does not look at {name}: {}", answer.out))
}

fn oom_score(pid: &Value) -> anyhow::Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    Ok(text.trim().parse()?)
}

#[test]
fn merging_saves_memory_and_leaves_the_host_as_it_was() -> anyhow::Result<()> {
    let ksm = Ksm::of_host().context("this kernel cannot merge memory")?;
    let found = ksm.settings()?;
    let options = ["--merge-memory", "on", "--qemu-aslr", "off"];
    let mut cluster = cluster(&options, "")?;
    let made = fork(&cluster, 1, &["parent", "-n", "10", "--name", "c"])?;
    assert_eq!(made["children"].as_array().map(Vec::len), Some(10));

    let memory = wait_for("merging to save 50 MiB", 2 * PATIENCE, || {
        let status = cluster.node(1).json(&["status"])?;
        let memory = status["memory"].clone();
        let saved = memory["guests"]["mergeProfitBytes"].as_i64();
        Ok((saved.context("nothing is said of it")? > 50 << 20).then_some(memory))
    })?;
    assert_eq!(memory["merging"]["setting"], "on");
    assert_eq!(memory["merging"]["running"], true);
    assert!(memory["merging"]["scannerSeconds"].as_f64() > Some(0.0));
    assert_eq!(memory["processes"], 11);
    // The scanner comes to one process after the other.
    let child = wait_for("c-1 to be merged too", 2 * PATIENCE, || {
        let child = cluster.vm(1, "c-1")?;
        let figures = [
            "privateBytes",
            "sharedBytes",
            "mergedBytes",
            "mergeProfitBytes",
        ];
        let all = figures.map(|figure| child["memoryUse"][figure].as_i64() > Some(1 << 20));
        Ok((all == [true; 4]).then_some(child))
    })?;
    let used = &child["memoryUse"];
    let merging = check(&cluster, "memory-merging")?;
    assert_eq!(merging["result"], "ok");
    let says = merging["found"].as_str().context("nothing was found")?;
    assert!(says.contains("laid out alike"), "{says}");
    // ADDR_NO_RANDOMIZE of personality(2), in hexadecimal.
    let personality = fs::read_to_string(format!("/proc/{}/personality", child["pid"]))?;
    assert_eq!(personality.trim(), "00040000");
    eprintln!("{memory:#}\n{used:#}");

    cluster.node_mut(1).terminate()?;
    assert_eq!(ksm.settings()?, found, "the host's settings");

    // The next one finds what one that was killed had changed, and puts that back as well.
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    let runs = || Ok(ksm.is_running()?.then_some(()));
    wait_for("merging to run", PATIENCE, runs)?;
    cluster.node_mut(1).kill()?;
    assert_ne!(ksm.settings()?, found);
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    wait_for("the next agent to take it over", PATIENCE, || {
        let status = cluster.node(1).json(&["status"])?;
        Ok((status["memory"]["merging"]["running"] == true).then_some(()))
    })?;
    cluster.node_mut(1).terminate()?;
    assert_eq!(ksm.settings()?, found, "the host's settings");
    Ok(())
}

#[test]
fn limits_are_enforced_or_said_not_to_be() -> anyhow::Result<()> {
    let cluster = cluster(&[], "")?;
    let limits = [
        "--cpu-limit",
        "1.5",
        "--memory-limit",
        "512M",
        "--pids-limit",
        "100",
    ];
    let create = ["vm", "create", "limited", "--image", "tiny", "--wait"];
    cluster
        .node(1)
        .fp(&[&create[..], &limits].concat())?
        .success()?;
    fork(&cluster, 1, &["limited", "--name", "child"])?;
    let doctor = check(&cluster, "limits")?;
    let found = doctor["found"].as_str().unwrap_or_default().to_owned();
    let controllers = fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4).map(PathBuf::from))
        .map(|mount| fs::read_to_string(mount.join("cgroup.controllers")))
        .transpose()?
        .unwrap_or_default();
    for name in ["limited", "child"] {
        let vm = cluster.vm(1, name)?;
        let shown = serde_json::json!({"cpuPercent": 150, "memoryBytes": 536_870_912, "pids": 100});
        assert_eq!(vm["limits"], shown);
        let warnings = vm["warnings"].to_string();
        for (limit, controller) in [("CPU", "cpu"), ("memory", "memory"), ("thread", "pids")] {
            let there = controllers.split_whitespace().any(|one| one == controller);
            let warned = warnings.contains(&format!("the {limit} limit is not enforced"));
            assert_eq!(warned, !there, "{name}, {controller}: {warnings}");
            assert_eq!(found.contains(controller), !there);
        }
    }
    // Nothing is said of what was not asked for.
    assert_eq!(cluster.vm(1, "parent")?["warnings"], serde_json::json!([]));

    let refused = |limit: [&str; 2], words: &[&str]| {
        let create = ["vm", "create", "x", "--image", "tiny"];
        let answer = cluster.node(1).fp(&[&create[..], &limit].concat())?;
        answer.refused(words)
    };
    refused(["--memory-limit", "32M"], &["limits.memory", "64 MiB"])?;
    refused(["--cpu-limit", "300"], &["limits.cpu"])
}

#[test]
fn the_kernels_killer_takes_what_is_cheapest_first() -> anyhow::Result<()> {
    let cluster = cluster(&[], "")?;
    let node = cluster.node(1);
    let agent = Value::from(node.pid().context("the agent runs")?);
    // Lowering it takes a capability (CAP_SYS_RESOURCE) that root in a container may lack.
    let order = check(&cluster, "oom-order")?;
    let expected = match fs::write("/proc/self/oom_score_adj", "-1") {
        Ok(()) => (-900, "ok"),
        Err(_) => (0, "warning"),
    };
    assert_eq!(
        (
            oom_score(&agent)?,
            order["result"].as_str().unwrap_or_default()
        ),
        expected
    );
    fork(&cluster, 1, &["parent", "--name", "child"])?;
    let (parent, child) = (cluster.vm(1, "parent")?, cluster.vm(1, "child")?);
    assert_eq!(oom_score(&parent["pid"])?, 200);
    assert_eq!(oom_score(&child["pid"])?, 500);

    node.fp(&["snapshot", "create", "parent", "s"])?.success()?;
    node.fp(&["snapshot", "warm", "s", "-n", "1"])?.success()?;
    let waiting = wait_for("a fork to be ready", PATIENCE, || {
        let shown = node.json(&["snapshot", "show", "s"])?;
        let vms = [&parent["pid"], &child["pid"]].map(Value::as_u64);
        let mut others = cluster.processes()?;
        others.retain(|pid| !vms.contains(&Some(u64::from(*pid))));
        Ok((shown["ready"] == 1 && others.len() == 1).then(|| others[0]))
    })?;
    assert_eq!(oom_score(&waiting.into())?, 900);
    fork(&cluster, 1, &["@s", "--name", "taken"])?;
    let taken = cluster.vm(1, "taken")?;
    assert_eq!(taken["pid"], waiting);
    assert_eq!(oom_score(&taken["pid"])?, 500);
    Ok(())
}

#[test]
fn memory_that_is_short_stops_new_work_and_nothing_else() -> anyhow::Result<()> {
    let mut cluster = cluster(&[], "fp.pulse")?;
    let node = cluster.node(1);
    node.fp(&["snapshot", "create", "parent", "s"])?.success()?;
    node.fp(&["snapshot", "warm", "s", "-n", "1"])?.success()?;
    let ready = |cluster: &Cluster, count: u64| {
        wait_for(&format!("{count} forks to be ready"), PATIENCE, || {
            let shown = cluster.node(1).json(&["snapshot", "show", "s"])?;
            Ok((shown["ready"] == count).then_some(()))
        })
    };
    ready(&cluster, 1)?;
    assert_eq!(node.json(&["status"])?["memory"]["pressure"], "none");

    // No host has all of its memory available.
    restart(&mut cluster, &["--pressure-high", "100"])?;
    let node = cluster.node(1);
    let status = wait_for("pressure to be seen", PATIENCE, || {
        let status = node.json(&["status"])?;
        Ok((status["memory"]["pressure"] == "high").then_some(status))
    })?;
    assert!(status["problems"].to_string().contains("memory is short"));
    assert_eq!(check(&cluster, "memory-pressure")?["result"], "failed");
    ready(&cluster, 0)?;
    for source in ["parent", "@s"] {
        node.fp(&["fork", source])?.refused(&["memory is short"])?;
    }
    let create = ["vm", "create", "x", "--image", "tiny", "--wait"];
    node.fp(&create)?.refused(&["memory is short"])?;
    cluster.wait_pulses("parent", 2)?;
    wait_for("nothing but the parent's process", PATIENCE, || {
        Ok((cluster.processes()?.len() == 1).then_some(()))
    })?;

    restart(&mut cluster, &[])?;
    ready(&cluster, 1)?;
    fork(&cluster, 1, &["@s", "--name", "after"])?;
    Ok(())
}

/// A control group with a memory limit that is none of the agent's, gone with the value.
struct Tight(PathBuf);

impl Tight {
    /// Whichever version of control groups has the memory controller here.
    fn new(bytes: u64) -> anyhow::Result<Self> {
        let name = format!("fpagent-test-{}", std::process::id());
        let found = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ]
        .into_iter()
        .find_map(|(mount, file)| {
            let path = PathBuf::from(mount).join(&name);
            fs::create_dir(&path).ok()?;
            let tight = Self(path);
            fs::write(tight.0.join(file), bytes.to_string()).ok()?;
            Some(tight)
        });
        found.context("this host cannot limit memory")
    }
}

impl Drop for Tight {
    fn drop(&mut self) {
        // It holds the process until the kernel has let go of it.
        let gone = wait_for("the group's end", Duration::from_secs(10), || {
            Ok(fs::remove_dir(&self.0).is_ok().then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

#[test]
fn a_vm_that_the_kernel_ended_for_want_of_memory_says_so() -> anyhow::Result<()> {
    let tight = Tight::new(8 << 20)?;
    // It writes much more than that, over and over.
    let cluster = cluster(&[], "fp.churn=64")?;
    let paused = ["fork", "parent", "--name", "child", "--paused"];
    cluster.node(1).fp(&paused)?.success()?;
    let pid = cluster.vm(1, "child")?["pid"].to_string();
    fs::write(tight.0.join("cgroup.procs"), pid)?;
    // It may end before this is answered.
    cluster.node(1).fp(&["vm", "resume", "child"])?;
    let vm = cluster.wait_vm(1, "child", "failed")?;
    let reason = vm["reason"].as_str().unwrap_or_default();
    assert!(
        reason.starts_with("out-of-memory: the kernel ended it"),
        "{reason}"
    );
    assert_eq!(cluster.vm(1, "parent")?["state"], "running");

    // Another's kill is not taken for the kernel's.
    let pid = cluster.vm(1, "parent")?["pid"]
        .as_u64()
        .context("it runs")?;
    harness::cluster::signal(pid as u32, rustix::process::Signal::KILL)?;
    let vm = cluster.wait_vm(1, "parent", "failed")?;
    let reason = vm["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("signal 9") && !reason.contains("memory"),
        "{reason}"
    );
    Ok(())
}
