//! A real distribution as a guest: Debian with systemd and OpenSSH, of which forks are as distinct as machines that were installed apart,
//! and in which a Python program forks the machine that it runs in.

use std::{collections::BTreeSet, env, fs};

use anyhow::Context as _;
use harness::{
    cluster::Cluster,
    repository,
    work::{Output, exec, exec_with},
};
use serde_json::Value;

/// The forks of the first test; a hundred by hand.
const FORKS: &str = "FP_FORKS";
/// How deep the Python program forks, and how many each time, such as "3 3".
const TREE: &str = "FP_FORK_TREE";

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

const HOOK: &str = "#!/bin/sh\nkill -USR1 $(cat /run/lottery.pid)\nfor i in $(seq 50); do [ -s /run/lottery ] && exit; sleep 0.1; done\nexit 1\n";

fn debian() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(3)?;
    let folder = env::var_os("FP_TEST_DEBIAN").map_or_else(
        || repository().join(".local/image/debian"),
        std::path::PathBuf::from,
    );
    let file = |name: &str| folder.join(name).display().to_string();
    let env = fs::read_to_string(folder.join("image.env")).with_context(|| {
        format!(
            "{}: run deploy/build-image.sh debian .local/image/debian",
            folder.display()
        )
    })?;
    let setting = |key: &str| {
        let line = env.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim_start_matches('=').trim_matches('"').to_owned())
            .with_context(|| format!("image.env has no {key}"))
    };
    let (kernel, initrd, disk) = (file("vmlinuz"), file("initrd"), file("disk.qcow2"));
    let (cmdline, ready) = (setting("CMDLINE")?, setting("READY_LINE")?);
    let import = [
        "image",
        "import",
        "debian",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--disk",
        &disk,
        "--cmdline",
        &cmdline,
        "--ready-line",
        &ready,
        "--boot-timeout",
        "120s",
    ];
    cluster.node(1).fp(&import)?.success()?;
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

/// What must be another in each.
fn traits(cluster: &Cluster, through: usize, name: &str) -> anyhow::Result<Vec<String>> {
    let ready = ["vm", "wait", name, "--for", "ready", "--timeout", "2m"];
    cluster.node(through).fp(&ready)?.success()?;
    let script = "hostname; cat /etc/machine-id; cat /sys/class/net/eth0/address; \
                  fpguest identity | tr , '\\n' | grep forkId; head -c 32 /dev/urandom | od -An -v -tx1 | tr -d '\\n'; echo; \
                  cat /run/lottery; echo; cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub";
    let Output { code, out, err } = exec(cluster, through, name, &["sh", "-c", script])?;
    anyhow::ensure!(code == 0, "{name}: {err}");
    let mut all: Vec<String> = String::from_utf8(out)?.lines().map(str::to_owned).collect();
    anyhow::ensure!(all.len() == 7, "{name}: {all:?}");
    // The key that its SSH server shows, at the port that leads to it and to no other.
    let vm = cluster.vm(through, name)?;
    let (address, port) = published(&vm)?;
    let shown = std::process::Command::new("ssh-keyscan")
        .args(["-t", "ed25519", "-p", &port, &address])
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
    all.push(format!("{}:{port}", vm["node"]));
    Ok(all)
}

fn published(vm: &Value) -> anyhow::Result<(String, String)> {
    let port = &vm["ports"][0];
    let address = port["address"].as_str().context("no address")?;
    Ok((address.to_owned(), port["port"].to_string()))
}

#[test]
fn forks_of_debian_are_as_distinct_as_machines_that_were_installed_apart() -> anyhow::Result<()> {
    let cluster = debian()?;
    for (path, mode, text) in [
        ("/root/lottery.py", "644", LOTTERY),
        ("/etc/forkypig/fork.d/lottery", "755", HOOK),
    ] {
        let write = format!("cat > {path} && chmod {mode} {path}");
        let written = exec_with(&cluster, 1, "v", &["sh", "-c", &write], text.as_bytes())?;
        anyhow::ensure!(written.code == 0, "{}", written.err);
    }
    let start = "setsid python3 /root/lottery.py </dev/null >/dev/null 2>&1 & \
                 for i in $(seq 100); do [ -s /run/lottery.pid ] && exit 0; sleep 0.1; done; exit 1";
    let started = exec(&cluster, 1, "v", &["sh", "-c", start])?;
    anyhow::ensure!(started.code == 0, "{}", started.err);

    let count: usize = env::var(FORKS).map_or(Ok(3), |count| count.parse())?;
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

/// fork(2) for machines. By hand until it has been seen to end in time on a busy machine.
#[test]
#[ignore = "takes minutes where a guest is emulated: FP_FORK_TREE=\"3 3\" for all of it"]
fn a_python_program_forks_the_machine_that_it_runs_in() -> anyhow::Result<()> {
    let cluster = debian()?;
    let program = fs::read(repository().join("docs/fork.py"))?;
    let write = ["sh", "-c", "cat > /root/fork.py"];
    let written = exec_with(&cluster, 1, "v", &write, &program)?;
    anyhow::ensure!(written.code == 0, "{}", written.err);
    let tree = env::var(TREE).unwrap_or_else(|_| "2 2".to_owned());
    let words: Vec<&str> = tree.split(' ').collect();
    let [depth, width] = words[..] else {
        anyhow::bail!("{TREE} is DEPTH COUNT");
    };
    let answer = exec(
        &cluster,
        3,
        "v",
        &["python3", "/root/fork.py", depth, width],
    )?;
    anyhow::ensure!(answer.code == 0, "{}", answer.err);
    let (depth, width): (u32, usize) = (depth.parse()?, width.parse()?);
    let below: usize = (1..=depth).map(|level| width.pow(level)).sum();
    assert_eq!(String::from_utf8(answer.out)?.trim(), below.to_string());
    let tree = cluster.node(1).fp(&["tree", "v"])?;
    tree.success()?;
    assert!(tree.out.contains("v-1-1"), "{}", tree.out);
    Ok(())
}
