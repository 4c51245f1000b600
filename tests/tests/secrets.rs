//! What only a fork's guest may know: it reaches the node that would fork, and no file, log, Raft entry or process list of the
//! hosts. The guests here never come up, which the agents' part of it does not need.

use std::fs;

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    secrecy::files_with,
    wait_for,
};

/// What must be found nowhere.
const SECRET: &str = "hunter2-0b5c7d1e";

/// A cluster with a VM `v` on its second node that failed: its kernel is none.
fn with_a_failed_vm() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(3)?;
    let node = cluster.node(1);
    let kernel = cluster.folder().join("kernel");
    fs::write(&kernel, b"\x7fELF and nothing else")?;
    let kernel = kernel.display().to_string();
    node.fp(&["image", "import", "none", "--kernel", &kernel])?
        .success()?;
    let create = [
        "vm",
        "create",
        "v",
        "--image",
        "none",
        "--node",
        "node2",
        "--allow-self-fork",
        "3",
    ];
    node.fp(&create)?.success()?;
    cluster.wait_vm(1, "v", "failed")?;
    Ok(cluster)
}

#[test]
fn a_secret_is_handed_over_and_kept_nowhere() -> anyhow::Result<()> {
    let mut cluster = with_a_failed_vm()?;
    let elsewhere = tempfile::tempdir()?;
    let file = |name: &str, value: &str| -> anyhow::Result<String> {
        let path = elsewhere.path().join(name);
        fs::write(&path, value)?;
        Ok(format!("key=@{}", path.display()))
    };
    let (secret, another) = (file("s", SECRET)?, file("t", "another")?);
    let fork = |secret: &str, request: &str| {
        cluster.node(1).fp(&[
            "fork",
            "v",
            "--set",
            "role=visible-setting",
            "--secret",
            secret,
            "--request-id",
            request,
        ])
    };
    // It is handed over, and then refused for what it would be refused for without one.
    fork(&secret, "r-1")?.refused(&["\"v\" is not running"])?;
    // Another value makes no other request of it.
    fork(&another, "r-1")?.refused(&["\"v\" is not running"])?;

    let found = files_with(cluster.folder(), SECRET)?;
    anyhow::ensure!(found.is_empty(), "it is in {found:?}");
    let found = files_with(cluster.folder(), "visible-setting")?;
    anyhow::ensure!(!found.is_empty(), "what is stored is found");

    cluster.node_mut(2).kill()?;
    wait_for("node2 to be offline", PATIENCE, || {
        let node = cluster.node(1).json(&["node", "show", "node2"])?;
        Ok((node["state"] == "offline").then_some(()))
    })?;
    let fork = |more: &[&str]| cluster.node(1).fp(&[&["fork", "v"], more].concat());
    fork(&["--secret", &secret])?.refused(&["node node2 cannot be reached"])?;
    fork(&[])?.refused(&["\"v\" is not running"])
}

#[test]
fn a_vm_is_waited_for() -> anyhow::Result<()> {
    let cluster = with_a_failed_vm()?;
    // Through a node that does not hold it.
    let wait = |what: &str, timeout: &str| {
        let args = ["vm", "wait", "v", "--for", what, "--timeout", timeout];
        cluster.node(3).fp(&args)
    };
    wait("running", "10s")?.refused(&["\"v\" failed"])?;
    let ended = wait("exit", "10s")?;
    ended.refused(&["v failed"])?;
    anyhow::ensure!(ended.out.contains("failed"), "it is printed: {}", ended.out);
    wait("ready", "10s")?.refused(&["\"v\" failed"])?;
    let nobody = ["vm", "wait", "nobody", "--for", "exit"];
    cluster.node(3).fp(&nobody)?.refused(&["nobody", "vm ls"])?;

    // One that changes while it is waited for.
    let stopped = cluster.node(1).fp(&["vm", "stop", "v"])?;
    stopped.success()?;
    let vm = cluster.vm(1, "v")?;
    anyhow::ensure!(vm["selfFork"] == 3 && vm["family"] == vm["id"], "{vm}");
    let running = wait("running", "2s")?;
    anyhow::ensure!(running.code == 124, "{} {}", running.code, running.err);
    let address = cluster.node(3).address();
    let waiting = std::thread::spawn(move || {
        let args = ["vm", "wait", "v", "--for", "running", "--timeout", "50s"];
        harness::fpagent::run(Some(&address), &args)
    });
    cluster
        .node(1)
        .fp(&["vm", "start", "v", "--no-wait"])?
        .success()?;
    let answer = waiting
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))?;
    answer
        .context("it could not be run")?
        .refused(&["\"v\" failed"])
}
