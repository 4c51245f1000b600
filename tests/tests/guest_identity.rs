//! Forks that know who they are: no two agree on anything by which a machine is told from another, whichever node they are asked through.

use std::{collections::BTreeSet, fs};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    guests::{amount, boot, clock_offset, published, put_script, read_all, ready, shell},
    lineage::{fork, names},
    secrecy::{files_with, processes_with},
    wait_for,
};
use serde_json::Value;

/// How far a guest's clock may be from its host's, seconds.
const CLOCK: f64 = 0.05;
/// The port that is published.
const PORT: u16 = 7000;
/// What only the forks are told.
const SECRET: &str = "correct-horse-7e02b9";

/// Says all that tells a machine from others, a line each. Random bytes first: nothing that follows has a part in them.
const WHO: &str = "
echo random $(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')
echo hostname $(hostname)
echo machine-id $(cat /etc/machine-id)
echo mac $(cat /sys/class/net/eth0/address)
echo fork-id $(fpguest identity | sed 's/.*\"forkId\":\"\\([^\"]*\\)\".*/\\1/')
";
/// What only a fork has.
const GIVEN: &str = "
echo hook $(cat /run/hook)
echo role $(fpguest get role)
echo key $(fpguest get key)
";
/// Writes down what a hook is told.
const HOOK: &str = "echo $FP_FORK_ID $FP_NAME $FP_INDEX $FP_COUNT $FP_PARENT >/run/hook";

/// The words after the first of the line that begins with it.
fn said<'a>(lines: &'a str, what: &str) -> anyhow::Result<&'a str> {
    let line = lines.lines().find_map(|line| {
        let (name, rest) = line.split_once(' ')?;
        (name == what).then_some(rest)
    });
    line.with_context(|| format!("no {what} in {lines}"))
}

/// Each value of one kind once.
fn all_differ(what: &str, values: &[String]) -> anyhow::Result<()> {
    let distinct: BTreeSet<_> = values.iter().collect();
    anyhow::ensure!(
        distinct.len() == values.len(),
        "not all of {what} differ: {values:?}"
    );
    Ok(())
}

#[test]
fn no_two_forks_agree_on_who_they_are() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(3)?;
    let port = PORT.to_string();
    boot(
        &cluster,
        1,
        &[("parent", &["--node", "node2", "--publish", &port])],
    )?;
    put_script(&cluster, 1, "parent", "/etc/forkypig/fork.d/10-note", HOOK)?;
    // Answers with the name of the guest that it runs in.
    let serve = format!("setsid busybox nc -ll -p {PORT} -e hostname >/dev/null 2>&1 </dev/null &");
    shell(&cluster, 3, "parent", &serve)?;
    let capture = ["snapshot", "create", "parent", "s"];
    cluster.node(1).fp(&capture)?.success()?;

    let elsewhere = tempfile::tempdir()?;
    let file = elsewhere.path().join("key");
    fs::write(&file, SECRET)?;
    let secret = format!("key=@{}", file.display());
    let count = amount("FP_FORKS", 12);
    let number = count.to_string();
    let args = [
        "@s",
        "-n",
        &number,
        "--name",
        "c",
        "--set",
        "role=worker",
        "--secret",
        &secret,
    ];
    let made = fork(&cluster, 1, &args)?;
    let children = names(&made);
    anyhow::ensure!(children.len() == count, "{made}");

    // The parent, which stood still, and the forks, each through another node than the one before.
    let mut vms = vec!["parent".to_owned()];
    vms.extend(children);
    let mut lines = Vec::new();
    let mut reached = Vec::new();
    for (place, vm) in vms.iter().enumerate() {
        let through = place % 3 + 1;
        ready(&cluster, through, vm)?;
        let given = if place > 0 { GIVEN } else { "" };
        lines.push(shell(&cluster, through, vm, &format!("{WHO}{given}"))?);
        clock_offset(&cluster, through, vm, CLOCK)?;
        let address = published(&cluster, through, vm, PORT)?;
        assert_eq!(read_all(address)?.trim(), vm, "who answers there");
        reached.push(address.to_string());
    }

    all_differ("where they are reached", &reached)?;
    for (what, length) in [
        ("random", 64),
        ("hostname", 1),
        ("machine-id", 32),
        ("mac", 17),
        ("fork-id", 26),
    ] {
        let of_each = lines.iter().map(|lines| Ok(said(lines, what)?.to_owned()));
        let values = of_each.collect::<anyhow::Result<Vec<_>>>()?;
        let long_enough = values.iter().all(|value| value.len() >= length);
        anyhow::ensure!(long_enough, "{what} is no such thing: {values:?}");
        all_differ(what, &values)?;
    }
    for (place, (vm, lines)) in vms.iter().zip(&lines).enumerate() {
        let shown = cluster.vm(place % 3 + 1, vm)?;
        assert_eq!(said(lines, "hostname")?, vm);
        assert_eq!(said(lines, "fork-id")?, shown["id"]);
        assert_eq!(shown["guest"]["hostname"], **vm, "{shown}");
        assert_eq!(shown["failedSteps"], Value::Array(Vec::new()), "{shown}");
        if place > 0 {
            let id = shown["id"].as_str().context("no id")?;
            let index = place - 1;
            let told = format!("{id} {vm} {index} {count} parent");
            assert_eq!(said(lines, "hook")?, told);
            assert_eq!(
                (said(lines, "role")?, said(lines, "key")?),
                ("worker", SECRET)
            );
            assert_eq!(shown["settings"]["role"], "worker");
        }
    }

    // The secret has come to where it shall be, and is nowhere else.
    let found = files_with(cluster.folder(), SECRET)?;
    anyhow::ensure!(found.is_empty(), "the secret is in {found:?}");
    let found = processes_with(SECRET)?;
    anyhow::ensure!(found.is_empty(), "the secret is in {found:?}");
    let found = files_with(cluster.folder(), "worker")?;
    anyhow::ensure!(!found.is_empty(), "what is no secret is found");
    Ok(())
}

/// A hook that fails is told of; whether the fork is then held is its parent's policy.
#[test]
fn a_step_that_fails_is_told_and_the_fork_is_held_where_asked() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(1)?;
    boot(
        &cluster,
        1,
        &[("free", &[]), ("held", &["--unready", "hold"])],
    )?;
    for (parent, state) in [("free", "running"), ("held", "paused")] {
        let hook = "/etc/forkypig/fork.d/90-fails";
        put_script(&cluster, 1, parent, hook, "echo no luck >&2; exit 3")?;
        cluster
            .node(1)
            .fp(&["fork", parent, "--name", &format!("{parent}-child")])?
            .success()?;
        let child = format!("{parent}-child");
        let shown = wait_for("the failed step to be told", PATIENCE, || {
            let shown = cluster.vm(1, &child)?;
            let told = shown["failedSteps"]
                .as_array()
                .is_some_and(|all| !all.is_empty());
            Ok((told && shown["state"] == state).then_some(shown))
        })
        .with_context(|| format!("{:?}", cluster.vm(1, &child)))?;
        let step = shown["failedSteps"][0].as_str().context("no step")?;
        for word in ["90-fails", "3", "no luck"] {
            anyhow::ensure!(step.contains(word), "{word:?} is not in {step:?}");
        }
        assert_eq!(cluster.vm(1, parent)?["state"], "running");
    }
    // One that is held can be let go on, and worked in.
    cluster
        .node(1)
        .fp(&["vm", "resume", "held-child"])?
        .success()?;
    let hostname = shell(&cluster, 1, "held-child", "hostname")?;
    assert_eq!(hostname.trim(), "held-child");
    Ok(())
}
