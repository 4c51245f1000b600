//! Groups: VMs with a network between them, forked together, at one instant.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, is_alive, signal},
    guests::{boot, put_script, ready, shell},
    lineage::fork,
    processes, wait_for,
};
use rustix::process::Signal;
use serde_json::Value;

/// What db listens on and says to each that asks: everything it is sent. It notes what came, with its name at that time.
const DB: &str = "while read -r n who; do echo $n $who >>/run/got; echo $n; done";
/// What web does: it counts, says the number with its own name, and waits for it to come back.
const WEB: &str = "n=0
while :; do
    n=$((n + 1)); read -r who </proc/sys/kernel/hostname
    echo $n $who >>/run/sent; echo $n $who
    read -r back || exit 1
    echo $back >>/run/back
done";

/// Makes a group of two whose members speak to each other over one connection.
fn group(cluster: &Cluster, name: &str, db: &str, web: &str) -> anyhow::Result<()> {
    boot(
        cluster,
        1,
        &[(db, &["--group", name]), (web, &["--group", name])],
    )?;
    put_script(cluster, 1, db, "/run/db", DB)?;
    put_script(cluster, 1, web, "/run/web", WEB)?;
    let listen = "setsid busybox nc -ll -p 7000 -e /run/db >/dev/null 2>&1 </dev/null &";
    shell(cluster, 1, db, listen)?;
    // db is the first member.
    let ask = "for i in $(seq 50); do busybox nc -w 1 10.87.0.1 7000 </dev/null >/dev/null && break; sleep 0.1; done
        setsid busybox nc 10.87.0.1 7000 -e /run/web >/run/nc 2>&1 </dev/null &";
    shell(cluster, 1, web, ask)?;
    goes_on(cluster, web)
}

fn lines(cluster: &Cluster, vm: &str, file: &str) -> anyhow::Result<Vec<String>> {
    let text = shell(cluster, 1, vm, &format!("cat {file} 2>/dev/null; :"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// How many numbers have come back to a web.
fn back(cluster: &Cluster, web: &str) -> anyhow::Result<usize> {
    let count = shell(cluster, 1, web, "wc -l </run/back 2>/dev/null || echo 0")?;
    count.trim().parse().with_context(|| format!("{count:?}"))
}

/// Waits until more numbers have come back to a web.
fn goes_on(cluster: &Cluster, web: &str) -> anyhow::Result<()> {
    let before = back(cluster, web)?;
    wait_for(&format!("{web}'s connection to go on"), PATIENCE, || {
        Ok((back(cluster, web)? > before + 3).then_some(()))
    })
}

/// Holds what a pair has noted against what must be: every number was sent, came, and came back, once and in order, and each end has
/// only what its own peer said: `names` are those that web had, in their order. Gives how many were noted.
fn agree(cluster: &Cluster, (db, web): (&str, &str), names: &[&str]) -> anyhow::Result<usize> {
    // In this order: what is noted later can only be more.
    let back = lines(cluster, web, "/run/back")?;
    let got = lines(cluster, db, "/run/got")?;
    let sent = lines(cluster, web, "/run/sent")?;
    for (index, number) in back.iter().enumerate() {
        anyhow::ensure!(
            *number == (index + 1).to_string(),
            "{web}: {number} came back as number {index}"
        );
    }
    anyhow::ensure!(
        back.len() <= got.len() && got.len() <= sent.len(),
        "{web}: {} came back, {} came to {db}, {} were sent",
        back.len(),
        got.len(),
        sent.len()
    );
    anyhow::ensure!(sent.starts_with(&got), "{db} has what {web} did not send");
    let mut seen: Vec<&str> = Vec::new();
    for (index, line) in sent.iter().enumerate() {
        let (number, name) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
        anyhow::ensure!(
            number == (index + 1).to_string(),
            "{web} sent {line:?} as number {index}"
        );
        if seen.last() != Some(&name) {
            seen.push(name);
        }
    }
    anyhow::ensure!(seen == names, "{web} was called {seen:?}, not {names:?}");
    Ok(got.len())
}

fn fork_group(cluster: &Cluster, args: &[&str]) -> anyhow::Result<Value> {
    let forked = cluster.node(1).json(&[&["group", "fork"], args].concat())?;
    println!(
        "the group stood still for {} ms: {}",
        forked["pauseMs"],
        forked["members"]
            .as_array()
            .context("no members")?
            .iter()
            .map(|member| format!("{} {} ms", member["name"], member["pauseMs"]))
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(forked)
}

/// The process ids of a node's switch.
fn switches(data: &Path) -> anyhow::Result<Vec<u32>> {
    let socket = fs::canonicalize(data)?.join("run/switch.sock");
    let text = fs::read_to_string("/proc/net/unix")?;
    let inodes: BTreeSet<String> = text
        .lines()
        .filter(|line| line.ends_with("switch.sock"))
        .filter_map(|line| line.split_whitespace().nth(6).map(str::to_owned))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    anyhow::ensure!(socket.parent().is_some_and(Path::exists), "no run folder");
    let mut found = Vec::new();
    for (pid, line) in processes::all("cmdline")? {
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if words.get(1) != Some(&&b"switch"[..]) {
            continue;
        }
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?;
        let holds = files.flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|to| inodes.contains(&*to.to_string_lossy()))
        });
        // Of this node, by the file that it prints to.
        let log = fs::read_link(format!("/proc/{pid}/fd/1")).unwrap_or_default();
        let ours = log == fs::canonicalize(data)?.join("run/switch.log");
        if holds && ours {
            found.push(pid);
        }
    }
    Ok(found)
}

#[test]
fn a_group_is_forked_at_one_instant_and_each_copy_sees_only_itself() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(1)?;
    let node = cluster.node(1);
    group(&cluster, "app", "db", "web")?;
    let shown = node.json(&["group", "show", "app"])?;
    assert_eq!(shown["members"][1]["name"], "web", "{shown}");
    assert_eq!(shown["members"][1]["address"], "10.87.0.2");
    let single = node.json(&["fork", "db", "--name", "warm-up"])?;
    println!(
        "a fork of one member stood still for {} ms",
        single["pauseMs"]
    );
    node.fp(&["vm", "rm", "--force", "warm-up"])?.success()?;

    let forked = fork_group(&cluster, &["app", "-n", "2"])?;
    let copies = forked["copies"].as_array().context("no copies")?;
    assert_eq!(copies.len(), 2, "{forked}");
    for copy in copies {
        assert_eq!(copy["error"], "", "{copy}");
    }
    for web in ["web", "web-1", "web-2"] {
        goes_on(&cluster, web)?;
    }
    // Again, of a copy, while all of them speak.
    fork_group(&cluster, &["app-1", "--name", "again"])?;
    for web in ["web", "web-1", "web-2", "again-web-1"] {
        goes_on(&cluster, web)?;
    }
    let all: [(_, &[&str]); 4] = [
        (("db", "web"), &["web"]),
        (("db-1", "web-1"), &["web", "web-1"]),
        (("db-2", "web-2"), &["web", "web-2"]),
        (
            ("again-db-1", "again-web-1"),
            &["web", "web-1", "again-web-1"],
        ),
    ];
    let mut counts = Vec::new();
    for (pair, names) in all {
        counts.push(agree(&cluster, pair, names)?);
    }
    println!("numbers that came: {counts:?}");
    let listed = node.json(&["group", "ls"])?;
    let names: Vec<&str> = listed["items"]
        .as_array()
        .context("no items")?
        .iter()
        .filter_map(|group| group["name"].as_str())
        .collect();
    assert_eq!(names, ["again", "app", "app-1", "app-2"]);

    // The parent's connection is its own: what a copy does to its own is nothing to it.
    node.fp(&["group", "rm", "app-2"])?
        .refused(&["running", "--force"])?;
    node.fp(&["group", "rm", "app-2", "--force"])?.success()?;
    node.fp(&["vm", "rm", "db-1", "--force"])?.success()?;
    for web in ["web", "again-web-1"] {
        goes_on(&cluster, web)?;
    }
    node.fp(&["group", "show", "app-2"])?
        .refused(&["no group"])?;
    Ok(())
}

#[test]
fn members_reach_each_other_and_nobody_else_and_the_switch_comes_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_guests(1)?;
    group(&cluster, "app", "db", "web")?;
    boot(
        &cluster,
        1,
        &[("other", &["--group", "other"]), ("alone", &[])],
    )?;
    let ping = |vm: &str, to: &str| -> anyhow::Result<bool> {
        let ping = format!("busybox ping -c 1 -W 2 {to} >/dev/null 2>&1 && echo yes || echo no");
        Ok(shell(&cluster, 1, vm, &ping)?.trim() == "yes")
    };
    assert!(ping("web", "10.87.0.1")? && ping("db", "10.87.0.2")?);
    // It has the first address in its own group, and there is nobody else.
    assert!(
        !ping("other", "10.87.0.2")?,
        "another group's member is reached"
    );
    assert!(
        !ping("alone", "10.87.0.1")?,
        "a member is reached from outside"
    );

    // A fork of one member has left the group: it is alone.
    let alone = fork(&cluster, 1, &["web", "--name", "left"])?;
    println!("a fork of one member: {alone:?}");
    ready(&cluster, 1, "left")?;
    assert!(
        !ping("left", "10.87.0.1")?,
        "a fork of one member reaches its parent's group"
    );
    let left = cluster.vm(1, "left")?;
    assert_eq!(left["group"], "", "{left}");
    goes_on(&cluster, "web")?;

    // The switch is ended; the agent starts another.
    let data = cluster.node(1).data.clone();
    let one = switches(&data)?;
    assert_eq!(one.len(), 1, "{one:?}");
    signal(one[0], Signal::KILL)?;
    goes_on(&cluster, "web")?;
    let other = switches(&data)?;
    assert!(other.len() == 1 && other != one, "{one:?}, {other:?}");
    let user = fs::read_to_string(format!("/proc/{}/status", other[0]))?;
    let uid = user
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .context("no user")?;
    assert!(!uid.split_whitespace().any(|id| id == "0"), "{uid}");

    // Without an agent the network goes on, and the next agent has the same switch.
    let noted = || fs::read_to_string("/proc/uptime");
    println!("the agent is killed at {}", noted()?.trim());
    cluster.node_mut(1).kill()?;
    std::thread::sleep(Duration::from_secs(1));
    assert!(is_alive(other[0]));
    cluster.node_mut(1).start()?;
    cluster.node_mut(1).wait_answers()?;
    goes_on(&cluster, "web")?;
    assert_eq!(switches(&data)?, other);

    for vm in ["left", "alone"] {
        cluster
            .node(1)
            .fp(&["vm", "rm", vm, "--force"])?
            .success()?;
    }
    for group in ["app", "other"] {
        cluster
            .node(1)
            .fp(&["group", "rm", group, "--force"])?
            .success()?;
    }
    wait_for("the switch to end with the last member", PATIENCE, || {
        Ok((switches(&data)?.is_empty() && !data.join("run/switch.sock").exists()).then_some(()))
    })?;
    wait_for("all processes to be gone", PATIENCE, || {
        Ok(cluster.processes()?.is_empty().then_some(()))
    })
}

#[test]
fn members_stay_together_and_what_would_part_them_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(2)?;
    boot(
        &cluster,
        1,
        &[
            ("db", &["--group", "app", "--node", "node2"]),
            ("web", &["--group", "app", "--machine", "q35"]),
        ],
    )?;
    let node = cluster.node(1);
    for vm in ["db", "web"] {
        assert_eq!(cluster.vm(1, vm)?["node"], "node2");
    }
    let elsewhere = [
        "vm", "create", "x", "--image", "guest", "--group", "app", "--node", "node1",
    ];
    node.fp(&elsewhere)?.refused(&["node2", "live together"])?;
    node.fp(&["vm", "move", "db", "--node", "node1"])?
        .refused(&["group \"app\"", "stay on one node"])?;

    // Reset, suspended and gone on, a member is on its network again.
    let ping = || -> anyhow::Result<()> {
        let ping = "for i in $(seq 50); do busybox ping -c 1 -W 1 10.87.0.1 >/dev/null 2>&1 && exit 0; done; exit 1";
        shell(&cluster, 1, "web", ping).map(drop)
    };
    ping()?;
    node.fp(&["snapshot", "create", "web", "then"])?.success()?;
    node.fp(&["vm", "reset", "web", "--to", "then"])?
        .success()?;
    ping()?;
    node.fp(&["vm", "reset", "db", "--to", "then"])?
        .refused(&["member 1"])?;
    node.fp(&["vm", "suspend", "web"])?.success()?;
    node.fp(&["group", "fork", "app"])?
        .refused(&["suspended"])?;
    node.fp(&["vm", "resume", "web"])?.success()?;
    ping()?;
    node.fp(&["vm", "restart", "web"])?.success()?;
    ready(&cluster, 1, "web")?;
    ping()?;

    // A copy's names are free, or nothing is made.
    node.fp(&["group", "fork", "app", "--name", "app"])?
        .refused(&["group \"app\""])?;
    let forked = fork_group(&cluster, &["app"])?;
    assert_eq!(forked["copies"][0]["name"], "app-1", "{forked}");
    let next = fork_group(&cluster, &["app"])?;
    assert_eq!(next["copies"][0]["name"], "app-2", "{next}");

    // A node that is drained says which cannot be moved, and why.
    node.fp(&[
        "vm", "create", "free", "--image", "guest", "--node", "node2", "--wait",
    ])?
    .success()?;
    node.fp(&["node", "drain", "node2", "--force", "--timeout", "20s"])?;
    let drained = wait_for("the drain to come to its end", PATIENCE, || {
        let shown = node.json(&["node", "show", "node2"])?;
        let stays = shown["drain"]["stays"].as_array().map_or(0, Vec::len);
        Ok((stays == 6).then_some(shown))
    })?;
    let stays = drained["drain"]["stays"].to_string();
    assert!(stays.contains("stay on one node"), "{stays}");
    assert_eq!(cluster.vm(1, "free")?["node"], "node1");
    node.fp(&["node", "uncordon", "node2"])?.success()
}
