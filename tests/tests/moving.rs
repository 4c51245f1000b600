//! VMs that go on on another host: the same ones, each once, wherever they are when something fails.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    copies::agree,
    guests::{amount, shell},
    lineage::{files, histories, names},
    requests::Request,
    soundness::{goes_on, settled},
    wait_for,
};
use serde_json::Value;

/// How far apart the pause may be that is told and the one that is seen: two processors that others use, too.
const TOLERANCE: Duration = Duration::from_millis(400);

/// A cluster of three with a guest on the first node that writes records.
fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "fp.pulse")?;
    create(&cluster, "web", "node1")?;
    cluster.wait_pulses("web", 3)?;
    Ok(cluster)
}

fn create(cluster: &Cluster, name: &str, node: &str) -> anyhow::Result<()> {
    let create = [
        "vm",
        "create",
        name,
        "--image",
        "tiny",
        "--node",
        node,
        "--label",
        "team=blue",
        "--wait",
    ];
    cluster.node(2).fp(&create)?.success()
}

/// Nothing of VMs is left on a node, but of the image.
fn cleared(cluster: &Cluster, number: usize) -> anyhow::Result<()> {
    let data = &cluster.node(number).data;
    let what = format!("node{number} to have nothing of any VM");
    let mut left = Vec::new();
    let cleared = wait_for(&what, PATIENCE, || {
        left.clear();
        for folder in ["bases", "streams", "layers", "vms"] {
            for entry in fs::read_dir(data.join(folder))? {
                left.push(entry?.path().display().to_string());
            }
        }
        Ok(left.is_empty().then_some(()))
    });
    cleared.with_context(|| format!("left: {left:?}"))
}

/// It has one process, on the node where it is said to be.
fn runs_once(cluster: &Cluster, vm: &str) -> anyhow::Result<()> {
    let mut last = (Value::Null, Vec::new());
    let once = wait_for("one process of it", PATIENCE, || {
        last = (cluster.vm(3, vm)?, cluster.processes()?);
        let pid = last.0["pid"].as_u64();
        Ok((last.1.len() == 1 && pid == last.1.first().map(|pid| u64::from(*pid))).then_some(()))
    });
    once.with_context(|| format!("{last:?}"))
}

/// Processor time of each thread of QEMU processes, nanoseconds.
fn thread_times(pids: &[u32]) -> BTreeMap<(u32, String), u64> {
    let mut all = BTreeMap::new();
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let time = stat.split(' ').next().and_then(|time| time.parse().ok());
            if let Some(time) = time {
                let thread = task.file_name().to_string_lossy().into_owned();
                all.insert((*pid, thread), time);
            }
        }
    }
    all
}

type Sample = (Instant, BTreeMap<(u32, String), u64>);

/// How long a guest that never rests did not run, between its old process and its new one: by their virtual processors, which are the
/// threads that work most.
fn rested(samples: &[Sample], old: u32) -> anyhow::Result<Duration> {
    let spent = |is_old: bool| {
        let mut spent: BTreeMap<&(u32, String), u64> = BTreeMap::new();
        for pair in samples.windows(2) {
            // The first of a process loads what it goes on from.
            let all = pair[1].1.iter();
            for (thread, now) in all.filter(|((pid, thread), _)| *thread != pid.to_string()) {
                let before = pair[0].1.get(thread).unwrap_or(now);
                if (thread.0 == old) == is_old {
                    *spent.entry(thread).or_default() += now - before;
                }
            }
        }
        spent.into_iter().max_by_key(|(_, time)| *time)
    };
    let (from, to) = (spent(true), spent(false));
    let ((from, _), (to, _)) = (from.context("no old one")?, to.context("no new one")?);
    let ran = |thread| {
        let pairs = samples.windows(2);
        pairs.filter(
            move |pair| match (pair[0].1.get(thread), pair[1].1.get(thread)) {
                // More than what QEMU has it do for a moment that is loaded.
                (Some(before), Some(now)) => *now > before + 1_000_000,
                _ => false,
            },
        )
    };
    let last = ran(from).next_back().context("the old one did not run")?[1].0;
    let mut later = ran(to).filter(|pair| pair[0].0 >= last);
    let first = later.next().context("the new one did not run")?[0].0;
    Ok(first - last)
}

#[test]
fn a_running_vm_goes_on_as_it_was_on_another_host() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let before = cluster.vm(1, "web")?;
    shell(
        &cluster,
        1,
        "web",
        "echo moved >/dev/shm/note; (while :; do :; done) >/dev/null 2>&1 &",
    )?;
    let old = before["pid"].as_u64().context("no pid")? as u32;
    let done = AtomicBool::new(false);
    let (moved, seen) = thread::scope(|scope| {
        let watching = scope.spawn(|| -> anyhow::Result<Vec<Sample>> {
            let mut samples = Vec::new();
            while !done.load(Ordering::Acquire) {
                samples.push((Instant::now(), thread_times(&cluster.processes()?)));
                thread::sleep(Duration::from_millis(2));
            }
            Ok(samples)
        });
        // Through a node that is neither end.
        let moved = cluster
            .node(3)
            .json(&["vm", "move", "web", "--node", "node2"]);
        thread::sleep(Duration::from_millis(500));
        done.store(true, Ordering::Release);
        let seen = watching.join().map_err(|_| anyhow::anyhow!("it panicked"));
        (moved, seen)
    });
    let (moved, seen) = (moved?, rested(&seen??, old)?);
    let pause = Duration::from_secs_f64(moved["pauseMs"].as_f64().context("no pause")? / 1e3);
    println!("told: {pause:?}, seen from outside: {seen:?}");
    let apart = pause.max(seen) - pause.min(seen);
    assert!(
        !pause.is_zero() && !seen.is_zero() && apart < TOLERANCE,
        "{pause:?} {seen:?}"
    );

    let after = cluster.vm(1, "web")?;
    for same in [
        "id",
        "name",
        "owner",
        "labels",
        "image",
        "createdAt",
        "parent",
    ] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_eq!(
        (&after["node"], &after["state"]),
        (&"node2".into(), &"running".into())
    );
    let says = shell(&cluster, 3, "web", "cat /dev/shm/note; hostname")?;
    assert_eq!(
        says.split_whitespace().collect::<Vec<_>>(),
        ["moved", "web"]
    );
    runs_once(&cluster, "web")?;
    cleared(&cluster, 1)?;
    let shown =
        cluster
            .node(2)
            .json(&["op", "show", moved["operation"].as_str().context("no id")?])?;
    assert_eq!(
        (&shown["kind"], &shown["state"]),
        (&"move".into(), &"complete".into())
    );
    assert_eq!(
        (&shown["to"], &shown["pauseMs"]),
        (&"node2".into(), &moved["pauseMs"])
    );

    // On, to wherever there is room; and back.
    shell(&cluster, 1, "web", "killall sh 2>/dev/null; :").unwrap_or_default();
    let moved = cluster.node(1).json(&["vm", "move", "web"])?;
    assert_ne!(moved["vm"]["node"], "node2");
    println!("the second time: {} ms", moved["pauseMs"]);
    cluster.wait_pulses("web", 2)?;
    let back = cluster
        .node(1)
        .json(&["vm", "move", "web", "--node", "node2"])?;
    println!("back: {} ms", back["pauseMs"]);
    cluster.wait_pulses("web", 3)?;
    runs_once(&cluster, "web")?;
    // All that it ever wrote, on the disk and in memory.
    histories(&cluster, &["web".to_owned()])?;
    cluster.node(2).fp(&["vm", "start", "web"])?.success()?;
    cluster.wait_vm(3, "web", "running")?;
    cluster
        .node(2)
        .fp(&["vm", "rm", "--force", "web"])?
        .success()?;
    cluster.node(2).fp(&["image", "rm", "tiny"])?.success()?;
    wait_for("every file and process to be gone", PATIENCE, || {
        Ok((cluster.processes()?.is_empty() && files(&cluster)?.is_empty()).then_some(()))
    })
    .with_context(|| format!("left: {:?}", files(&cluster)))
}

#[test]
fn a_fork_moves_with_what_it_shares_and_is_forked_where_it_is() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let fork = ["fork", "web", "--name", "child", "--set", "role=far"];
    cluster.node(1).fp(&fork)?.success()?;
    cluster
        .node(1)
        .fp(&["vm", "move", "child", "--node", "node2"])?
        .success()?;
    let says = shell(&cluster, 1, "child", "hostname; fpguest get role")?;
    assert_eq!(
        says.split_whitespace().collect::<Vec<_>>(),
        ["child", "far"]
    );
    cluster
        .node(3)
        .fp(&["fork", "child", "--name", "grandchild"])?
        .success()?;
    cluster
        .node(3)
        .fp(&["snapshot", "create", "child", "kept"])?
        .success()?;
    cluster
        .node(3)
        .fp(&["fork", "@kept", "--node", "node3", "--name", "third"])?
        .success()?;
    for name in ["web", "child", "grandchild", "third"] {
        goes_on(&cluster, name)?;
    }
    agree(&cluster)
}

#[test]
fn what_stands_still_or_has_no_process_moves_too() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let fp = |args: &[&str]| cluster.node(3).fp(args)?.success();
    shell(&cluster, 1, "web", "echo here >/root/note; sync")?;
    fp(&["vm", "pause", "web"])?;
    fp(&["vm", "move", "web", "--node", "node2"])?;
    let vm = cluster.vm(1, "web")?;
    assert_eq!(
        (&vm["state"], &vm["node"]),
        (&"paused".into(), &"node2".into())
    );
    cleared(&cluster, 1)?;
    fp(&["vm", "resume", "web"])?;
    cluster.wait_pulses("web", 2)?;

    fp(&["vm", "suspend", "web"])?;
    fp(&["vm", "move", "web", "--node", "node3"])?;
    let vm = cluster.vm(1, "web")?;
    assert_eq!(
        (&vm["state"], &vm["node"]),
        (&"suspended".into(), &"node3".into())
    );
    fp(&["vm", "resume", "web"])?;
    cluster.wait_pulses("web", 2)?;

    // Suspended, moved, and then started from its disk.
    fp(&["vm", "suspend", "web"])?;
    fp(&["vm", "move", "web", "--node", "node1"])?;
    fp(&["vm", "stop", "web"])?;
    fp(&["vm", "start", "web"])?;
    cluster.wait_vm(3, "web", "running")?;
    assert_eq!(shell(&cluster, 1, "web", "cat /root/note")?.trim(), "here");

    fp(&["vm", "stop", "--force", "web"])?;
    for node in ["node2", "node3", "node1"] {
        fp(&["vm", "move", "web", "--node", node])?;
        let vm = cluster.vm(1, "web")?;
        assert_eq!(
            (&vm["state"], &vm["node"]),
            (&"stopped".into(), &node.into())
        );
    }
    for other in [2, 3] {
        // What it was resumed from is still there.
        let vms = cluster.node(other).data.join("vms");
        wait_for("its folder to be gone", PATIENCE, || {
            Ok(fs::read_dir(&vms)?.next().is_none().then_some(()))
        })?;
    }
    fp(&["vm", "start", "web"])?;
    cluster.wait_vm(3, "web", "running")?;
    assert_eq!(shell(&cluster, 1, "web", "cat /root/note")?.trim(), "here");
    runs_once(&cluster, "web")
}

#[test]
fn what_cannot_be_moved_goes_on_where_it_is() -> anyhow::Result<()> {
    let mut cluster = cluster()?;
    let pid = cluster.vm(1, "web")?["pid"].clone();
    for (node, words) in [("node1", &["already"][..]), ("node9", &["node9"])] {
        let answer = cluster.node(2).fp(&["vm", "move", "web", "--node", node])?;
        answer.refused(words)?;
    }
    for node in ["node2", "node3"] {
        cluster.node(1).fp(&["node", "cordon", node])?.success()?;
    }
    let answer = cluster.node(2).fp(&["vm", "move", "web"])?;
    answer.refused(&[
        "node2 is cordoned",
        "node3 is cordoned",
        "node1 is where it lives",
    ])?;
    for node in ["node2", "node3"] {
        cluster.node(1).fp(&["node", "uncordon", node])?.success()?;
    }
    // No room: all of the disk is kept back.
    let agent = cluster.node_mut(2);
    agent.terminate()?;
    agent.set_options(&["--reserve-disk", "900T"]);
    agent.start()?;
    agent.wait_answers()?;
    cluster.wait_online(3)?;
    let answer = cluster
        .node(3)
        .fp(&["vm", "move", "web", "--node", "node2"])?;
    answer.refused(&["disk"])?;
    goes_on(&cluster, "web")?;
    cleared(&cluster, 2)?;
    let vm = cluster.vm(1, "web")?;
    assert_eq!((&vm["node"], &vm["pid"]), (&"node1".into(), &pid));
    runs_once(&cluster, "web")?;
    cluster.wait_pulses("web", 2)
}

#[test]
fn a_move_that_is_cancelled_leaves_nothing() -> anyhow::Result<()> {
    let mut cluster = cluster()?;
    let giver = cluster.node_mut(1);
    giver.terminate()?;
    giver.set_options(&["--transfer-rate", "4M"]);
    giver.start()?;
    giver.wait_answers()?;
    cluster.wait_online(3)?;
    let (request, operation) =
        Request::begun(&cluster, 3, &["vm", "move", "web", "--node", "node2"])?;
    wait_for("some of it to come", PATIENCE, || {
        let shown = cluster.node(3).json(&["op", "show", &operation])?;
        let moved = &shown["transfers"][0]["movedBytes"];
        Ok((moved.as_u64().unwrap_or_default() >= 1 << 20).then_some(()))
    })?;
    cluster
        .node(3)
        .fp(&["op", "cancel", &operation])?
        .success()?;
    request.answer()?.refused(&["cancelled"])?;
    cleared(&cluster, 2)?;
    assert_eq!(cluster.vm(2, "web")?["node"], "node1");
    cluster.wait_pulses("web", 2)?;
    runs_once(&cluster, "web")
}

/// Waits until nothing more is tried of draining a node.
fn drained(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    wait_for(&format!("{name} to be drained"), 2 * PATIENCE, || {
        let shown = cluster.node(3).json(&["node", "show", name])?;
        Ok((shown["drain"]["done"] == true).then_some(shown))
    })
}

/// From one mark of a guest's to its next, which is what an echo from outside is.
const BEAT: Duration = Duration::from_millis(200);
/// How much longer than is told one guest may be silent, and the half of them: two processors do all, also for those that go on.
const ECHO_TOLERANCE: Duration = Duration::from_millis(400);
/// See there.
const USUAL_TOLERANCE: Duration = Duration::from_millis(100);
/// How much shorter it may seem: whoever looks comes later, too.
const LOOK_TOLERANCE: Duration = Duration::from_millis(60);

/// When each VM's guest beat, by the node on which it did.
type Beats = BTreeMap<(String, usize), Vec<Instant>>;

/// Looks at the consoles of VMs, on all nodes, until it is done. Nothing but marks is printed there.
fn listen(cluster: &Cluster, ids: &[String], done: &AtomicBool) -> anyhow::Result<Beats> {
    let (mut read, mut beats) = (BTreeMap::new(), Beats::new());
    let mut is_first = true;
    while !done.load(Ordering::Acquire) {
        for id in ids {
            for (number, agent) in cluster.agents.iter().enumerate() {
                let console = agent.data.join("vms").join(id).join("console.log");
                let Ok(length) = fs::metadata(&console).map(|found| found.len()) else {
                    continue;
                };
                let known = read.insert((id, number), length).unwrap_or(0);
                if known >= length || is_first {
                    continue;
                }
                let mut new = vec![0; (length - known) as usize];
                // It may have been removed meanwhile.
                let read = File::open(&console).and_then(|log| log.read_exact_at(&mut new, known));
                if read.is_ok() && new.contains(&b'.') {
                    let beats = beats.entry((id.clone(), number)).or_default();
                    beats.push(Instant::now());
                }
            }
        }
        is_first = false;
        thread::sleep(Duration::from_millis(4));
    }
    Ok(beats)
}

/// How long a VM did not answer between the node that it left and the one where it is; an error when it did so on the old one after it had
/// on the new one.
fn silence(beats: &Beats, id: &str) -> anyhow::Result<Duration> {
    let times = |number| beats.get(&(id.to_owned(), number));
    let old = times(0).with_context(|| format!("{id} did not beat where it was"))?;
    let elsewhere: Vec<_> = (1..3).filter_map(times).collect();
    let [new] = elsewhere.as_slice() else {
        anyhow::bail!("{id} beat on {} nodes besides", elsewhere.len());
    };
    let (last, first) = (old.last().context("none")?, new.first().context("none")?);
    anyhow::ensure!(last < first, "{id} beat on two nodes at once");
    // By its own clock, which stood still with it, it is one beat.
    Ok((*first - *last).saturating_sub(BEAT))
}

/// How long each VM stood still that was moved, by its id, as operations tell it.
fn told_pauses(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, Duration>> {
    let operations = cluster.node(3).json(&["op", "ls"])?;
    let operations = operations["items"].as_array().context("no items")?;
    let mut told = BTreeMap::new();
    for operation in operations.iter().filter(|one| one["kind"] == "move") {
        let id = operation["id"].as_str().context("no id")?;
        let shown = cluster.node(3).json(&["op", "show", id])?;
        let pause = shown["pauseMs"].as_f64().context("no pause")?;
        let vm = shown["source"].as_str().context("no VM")?.to_owned();
        let again = told.insert(vm, Duration::from_secs_f64(pause / 1e3));
        anyhow::ensure!(again.is_none(), "moved twice: {shown}");
    }
    Ok(told)
}

#[test]
fn vms_of_a_drained_node_stood_still_as_long_as_is_told_and_none_was_twice() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", &format!("fp.beat={}", BEAT.as_millis()))?;
    create(&cluster, "web", "node1")?;
    // They write to their disks and memory all the time, and leave the processors something.
    let load = "fpguest pulse --disk /var/lib/pulse --interval-ms 1000 >/dev/null 2>&1 &";
    shell(&cluster, 1, "web", load)?;
    let count = amount("FP_DRAIN", 4);
    let forks = (count - 1).to_string();
    let fork = cluster.node(3).json(&["fork", "web", "-n", &forks])?;
    let mut all = names(&fork);
    all.push("web".to_owned());
    let mut ids = Vec::new();
    for name in &all {
        let vm = cluster.vm(2, name)?;
        assert_eq!(vm["node"], "node1", "{vm}");
        ids.push(vm["id"].as_str().context("no id")?.to_owned());
    }
    let done = AtomicBool::new(false);
    let begun = Instant::now();
    let (drained, beats) = thread::scope(|scope| {
        let listening = scope.spawn(|| listen(&cluster, &ids, &done));
        thread::sleep(Duration::from_secs(1));
        let drain = ["node", "drain", "node1", "--timeout", "5m"];
        let drained = cluster
            .node(2)
            .fp(&drain)
            .and_then(|answer| answer.success());
        thread::sleep(Duration::from_secs(2));
        done.store(true, Ordering::Release);
        let beats = listening.join().map_err(|_| anyhow::anyhow!("it panicked"));
        (drained, beats)
    });
    drained?;
    let (took, beats) = (begun.elapsed(), beats??);
    let told = told_pauses(&cluster)?;
    let mut longer = Vec::new();
    for (name, id) in all.iter().zip(&ids) {
        let vm = cluster.vm(3, name)?;
        assert_eq!(vm["state"], "running", "{vm}");
        assert_ne!(vm["node"], "node1", "{vm}");
        let moved = told.get(id);
        let told = *moved.with_context(|| format!("no move of {name}: {told:?}"))?;
        let silent = silence(&beats, id)?;
        println!("{name}: told {told:?}, silent {silent:?}");
        assert!(
            silent < told + ECHO_TOLERANCE,
            "{name} was silent for longer"
        );
        assert!(
            silent + LOOK_TOLERANCE > told,
            "{name} was not silent as long"
        );
        longer.push(silent.saturating_sub(told));
    }
    longer.sort();
    let usual = longer[longer.len() / 2];
    println!(
        "{count} VMs, {took:?}; the half was silent for no more than {usual:?} beyond what is told"
    );
    assert!(usual < USUAL_TOLERANCE, "{longer:?}");
    wait_for("a process of each", PATIENCE, || {
        Ok((cluster.processes()?.len() == count).then_some(()))
    })
}

#[test]
fn a_drained_node_has_no_vms_and_says_what_stays() -> anyhow::Result<()> {
    let cluster = cluster()?;
    cluster.node(1).fp(&["fork", "web", "-n", "3"])?.success()?;
    cluster
        .node(1)
        .fp(&["snapshot", "create", "web", "kept"])?
        .success()?;
    cluster.node(1).fp(&["vm", "suspend", "web-2"])?.success()?;
    cluster
        .node(1)
        .fp(&["vm", "stop", "--force", "web-3"])?
        .success()?;
    let answer = cluster
        .node(2)
        .fp(&["node", "drain", "node1", "--timeout", "2m"])?;
    answer.success()?;
    assert!(
        answer.out.contains("drained") && answer.out.contains("kept"),
        "{}",
        answer.out
    );
    let shown = cluster.node(1).json(&["node", "show", "node1"])?;
    assert_eq!(
        (&shown["state"], &shown["vms"]),
        (&"drained".into(), &0.into())
    );
    for (name, state) in [
        ("web", "running"),
        ("web-1", "running"),
        ("web-2", "suspended"),
        ("web-3", "stopped"),
    ] {
        let vm = cluster.wait_vm(2, name, state)?;
        assert_ne!(vm["node"], "node1", "{vm}");
    }
    wait_for("two processes", PATIENCE, || {
        Ok((cluster.processes()?.len() == 2).then_some(()))
    })?;
    goes_on(&cluster, "web")?;
    goes_on(&cluster, "web-1")?;
    for (name, action) in [("web-2", "resume"), ("web-3", "start")] {
        cluster.node(1).fp(&["vm", action, name])?.success()?;
        cluster.wait_vm(1, name, "running")?;
        goes_on(&cluster, name)?;
    }
    let refused = ["vm", "create", "more", "--image", "tiny", "--node", "node1"];
    cluster.node(1).fp(&refused)?.refused(&["cordoned"])?;

    // There is nowhere to go from the others any more but one.
    cluster
        .node(1)
        .fp(&["node", "cordon", "node3"])?
        .success()?;
    let drain = ["node", "drain", "node2", "--timeout", "2m"];
    // Both could be switched off, and one alone is no majority.
    cluster.node(3).fp(&drain)?.refused(&[
        "2 of 3 voters",
        "node1 is drained",
        "uncordon node1",
    ])?;
    let answer = cluster.node(3).fp(&[&drain[..], &["--force"]].concat())?;
    let here = cluster.node(3).json(&["vm", "ls"])?;
    let stays: Vec<&Value> = here["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|vm| vm["node"] == "node2")
        .collect();
    assert!(!stays.is_empty());
    answer.refused(&[
        "could not be moved",
        stays[0]["name"].as_str().unwrap_or_default(),
    ])?;
    for vm in &stays {
        goes_on(&cluster, vm["name"].as_str().unwrap_or_default())?;
    }
    let shown = cluster.node(1).json(&["node", "show", "node2"])?;
    assert_eq!(shown["state"], "draining");
    cluster
        .node(1)
        .fp(&["node", "uncordon", "node2"])?
        .success()?;
    let shown = cluster.node(1).json(&["node", "show", "node2"])?;
    assert_eq!(
        (&shown["state"], &shown["drain"]),
        (&"online".into(), &Value::Null)
    );
    Ok(())
}

#[test]
fn a_drain_goes_on_when_agents_were_killed() -> anyhow::Result<()> {
    let mut cluster = cluster()?;
    cluster.node(1).fp(&["fork", "web", "-n", "3"])?.success()?;
    let drain = ["node", "drain", "node1", "--no-wait"];
    cluster.node(2).fp(&drain)?.success()?;
    wait_for("the first to be moved", PATIENCE, || {
        let shown = cluster.node(3).json(&["node", "show", "node1"])?;
        Ok((shown["vms"].as_u64() < Some(4)).then_some(()))
    })?;
    // The one that is drained, and whoever leads.
    cluster.node_mut(1).kill()?;
    let leader = cluster.leader().unwrap_or(1);
    if leader != 1 {
        cluster.node_mut(leader).kill()?;
        cluster.node_mut(leader).start()?;
    }
    cluster.node_mut(1).start()?;
    for number in [1, leader] {
        cluster.node_mut(number).wait_answers()?;
    }
    let shown = drained(&cluster, "node1")?;
    assert_eq!(
        shown["drain"]["stays"].as_array().map(Vec::len),
        Some(0),
        "{shown}"
    );
    settled(&cluster)?;
    for name in ["web", "web-1", "web-2", "web-3"] {
        let vm = cluster.wait_vm(2, name, "running")?;
        assert_ne!(vm["node"], "node1");
        goes_on(&cluster, name)?;
    }
    wait_for("a process for each", PATIENCE, || {
        Ok((cluster.processes()?.len() == 4).then_some(()))
    })?;
    agree(&cluster)
}
