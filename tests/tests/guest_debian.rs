//! A real distribution as a guest: Debian with systemd and OpenSSH, of which forks are as distinct as machines that were installed apart,
//! and in which a Python program forks the machine that it runs in.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::Context as _;
use harness::{
    cluster::Cluster,
    guests::{amount, clock_offset, exec_with, published, put_script, ready, shell},
    image::Image,
    repository,
};
use serde_json::Value;

/// The forks of the first test; a hundred by hand.
const FORKS: &str = "FP_FORKS";

/// A program that was seeded before the fork, and is told by a hook that it is another one.
const LOTTERY: &str = r#"
import random, signal, sys, time
random.seed(42)
def again(*_):
    random.seed()
    with open("/run/lottery", "w") as out:
        out.write(repr([random.random() for _ in range(4)]))
signal.signal(signal.SIGUSR1, again)
with open("/run/lottery.pid", "w") as out:
    out.write(str(__import__("os").getpid()))
while True:
    signal.pause()
"#;

/// How far a guest's clock may be from its host's, seconds.
const CLOCK: f64 = 0.05;

const HOOK: &str = "kill -USR1 $(cat /run/lottery.pid)
for i in $(seq 50); do [ -s /run/lottery ] && exit; sleep 0.1; done
exit 1";

fn debian() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(3)?;
    cluster.import_image("debian", Image::Debian, "")?;
    let create = [
        "vm",
        "create",
        "v",
        "--image",
        "debian",
        "--memory",
        "512M",
        "--cpus",
        "2",
        "--node",
        "node2",
        "--publish",
        "22",
        "--allow-self-fork",
        "100",
        "--wait",
        "--timeout",
        "5m",
    ];
    cluster.node(1).fp(&create)?.success()?;
    cluster
        .node(3)
        .fp(&["vm", "wait", "v", "--for", "port:22", "--timeout", "2m"])?
        .success()?;
    Ok(cluster)
}

fn put_file(cluster: &Cluster, path: &str, text: &str) -> anyhow::Result<()> {
    let write = ["sh", "-c", &format!("cat > {path}")];
    let written = exec_with(cluster, 1, "v", &[], &write, text.as_bytes())?;
    anyhow::ensure!(written.status.success(), "{path}: {written:?}");
    Ok(())
}

/// What must be another in each.
fn traits(cluster: &Cluster, through: usize, name: &str) -> anyhow::Result<Vec<String>> {
    ready(cluster, through, name)?;
    let script = "hostname; cat /etc/machine-id; cat /sys/class/net/eth0/address; \
                  fpguest identity | tr , '\\n' | grep forkId; head -c 32 /dev/urandom | od -An -v -tx1 | tr -d '\\n'; echo; \
                  cat /run/lottery; echo; cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub";
    let said = shell(cluster, through, name, script)?;
    let mut all: Vec<String> = said.lines().map(str::to_owned).collect();
    anyhow::ensure!(all.len() == 7, "{name}: {all:?}");
    // The key that its SSH server shows, at the port that leads to it and to no other.
    let address = published(cluster, through, name, 22)?;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let shown = Command::new("ssh-keyscan")
        .args(["-t", "ed25519", "-p", &port, &host])
        .output()?;
    let shown = String::from_utf8(shown.stdout)?;
    let key = shown
        .split_whitespace()
        .nth(2)
        .unwrap_or_default()
        .to_owned();
    anyhow::ensure!(
        all.last() == Some(&key),
        "{name}: its server shows {shown:?}, and its key is {:?}",
        all.last()
    );
    clock_offset(cluster, through, name, CLOCK)?;
    let vm = cluster.vm(through, name)?;
    anyhow::ensure!(vm["failedSteps"] == Value::Array(Vec::new()), "{vm}");
    all.push(format!("{}:{port}", vm["node"]));
    Ok(all)
}

#[test]
fn forks_of_debian_are_as_distinct_as_machines_that_were_installed_apart() -> anyhow::Result<()> {
    let cluster = debian()?;
    put_file(&cluster, "/root/lottery.py", LOTTERY)?;
    put_script(&cluster, 1, "v", "/etc/forkypig/fork.d/lottery", HOOK)?;
    let start = "setsid python3 /root/lottery.py </dev/null >/dev/null 2>&1 & \
                 for i in $(seq 100); do [ -s /run/lottery.pid ] && exit 0; sleep 0.1; done; exit 1";
    shell(&cluster, 1, "v", start)?;

    let count = amount(FORKS, 3);
    cluster
        .node(1)
        .fp(&["snapshot", "create", "v", "warm"])?
        .success()?;
    let mut names = Vec::new();
    for through in 1..=3 {
        // A third through each of the nodes.
        let share = (count + 3 - through) / 3;
        let (prefix, share) = (format!("f{through}"), share.to_string());
        let fork = [
            "fork",
            "@warm",
            "-n",
            &share,
            "--name",
            &prefix,
            "-o",
            "json",
            "--timeout",
            "10m",
        ];
        let made = cluster.node(through).fp(&fork)?.json()?;
        for child in made["children"].as_array().context("no children")? {
            anyhow::ensure!(child["failedSteps"] == Value::Array(Vec::new()), "{child}");
            names.push(child["name"].as_str().context("no name")?.to_owned());
        }
    }
    let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 8];
    for (number, name) in names.iter().enumerate() {
        let traits = traits(&cluster, number % 3 + 1, name)?;
        for (place, one) in traits.into_iter().enumerate() {
            anyhow::ensure!(
                seen[place].insert(one.clone()),
                "{name}: {one:?} is another's already (trait {place})"
            );
        }
    }
    assert_eq!(names.len(), count);
    Ok(())
}

/// How deep the Python program forks, and how many each time.
const TREE: (u32, usize) = (3, 3);

/// fork(2) for machines.
#[test]
fn a_python_program_forks_the_machine_that_it_runs_in() -> anyhow::Result<()> {
    let cluster = debian()?;
    let program = fs::read_to_string(repository().join("docs/fork.py"))?;
    put_file(&cluster, "/root/fork.py", &program)?;
    let (depth, width) = TREE;
    let words = [depth.to_string(), width.to_string()];
    let run = ["python3", "/root/fork.py", &words[0], &words[1]];
    // All of a tree take their time where they share two processors, and nobody waits for a program that hangs.
    let output = exec_with(&cluster, 3, "v", &["--timeout", "5m"], &run, &[])?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout)?;
    let below: usize = (1..=depth).map(|level| width.pow(level)).sum();
    assert_eq!(said.trim(), below.to_string());
    let tree = cluster.node(1).fp(&["tree", "v"])?;
    tree.success()?;
    for name in ["v-1 ", "v-3-2 ", "v-2-1-3 "] {
        assert!(tree.out.contains(name), "{}", tree.out);
    }
    Ok(())
}
