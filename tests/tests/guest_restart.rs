//! The host's agent is killed while its guests are worked in, and started again: what was under way is over and said to be, guests wait
//! for the new agent without doing anything, and answer it at once.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    guests::{Forward, Program, boot, exec, put_script, ready, shell},
    lineage::fork,
    processes::processor_time,
    wait_for,
};

/// How long the guests are watched.
const WATCHED: Duration = Duration::from_secs(3);
/// How much of that an idle guest may use, however slow its host: a guest that is at something all the time would use most of it.
const IDLE: Duration = Duration::from_millis(600);

/// Processor time that processes use while they are watched, each.
fn watch(pids: &[u32]) -> anyhow::Result<Vec<Duration>> {
    let before = pids.iter().map(|pid| processor_time(*pid));
    let before = before.collect::<anyhow::Result<Vec<_>>>()?;
    // Not to wait for something: this is the time that it is measured over.
    thread::sleep(WATCHED);
    let used = pids.iter().zip(before);
    used.map(|(pid, before)| Ok(processor_time(*pid)? - before))
        .collect()
}

/// How long after an agent served, by its own log since it was started last, guests answered it.
fn until_answered(log: &str) -> anyhow::Result<Vec<Duration>> {
    let begun = log.rfind(" starting ").context("it was not started")?;
    let times = |what: &str| -> anyhow::Result<Vec<Duration>> {
        let lines = log[begun..].lines().filter(|line| line.contains(what));
        lines.map(time_of_day).collect()
    };
    let serving = *times(" serving ")?.first().context("it does not serve")?;
    let answers = times("a guest's agent answers")?;
    // One that answered before is no later.
    Ok(answers
        .iter()
        .map(|time| time.saturating_sub(serving))
        .collect())
}

/// When a line was logged.
fn time_of_day(line: &str) -> anyhow::Result<Duration> {
    let (_, rest) = line.split_once('T').context("no time")?;
    let (text, _) = rest.split_once('Z').context("no time")?;
    let parts = text.split(':').map(str::parse::<f64>);
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let [hours, minutes, seconds] = parts[..] else {
        anyhow::bail!("no time: {text}");
    };
    Ok(Duration::from_secs_f64(
        (hours * 60.0 + minutes) * 60.0 + seconds,
    ))
}

#[test]
fn guests_wait_for_their_hosts_agent_and_answer_at_once() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_guests(3)?;
    boot(&cluster, 1, &[("v", &["--node", "node2"])])?;
    let elsewhere = tempfile::tempdir()?;
    let file = elsewhere.path().join("key");
    fs::write(&file, "told-once")?;
    let secret = format!("key=@{}", file.display());
    fork(&cluster, 1, &["v", "--name", "idle", "--secret", &secret])?;
    shell(
        &cluster,
        1,
        "v",
        "setsid busybox nc -ll -p 7001 -e cat >/dev/null 2>&1 </dev/null &",
    )?;
    cluster
        .node(1)
        .fp(&["vm", "wait", "v", "--for", "port:7001"])?
        .success()?;

    let mut program = Program::start(&cluster, 3, "v", &[], &["sh", "-c", "sleep 6666 & cat"])?;
    program.say("here")?;
    assert_eq!(program.line()?, "here");
    let forward = Forward::start(&cluster, 1, "v", 7001)?;
    let mut connections = Vec::new();
    for _ in 0..5 {
        let mut connection = BufReader::new(forward.connect()?);
        connection.get_mut().write_all(b"here\n")?;
        let mut line = String::new();
        connection.read_line(&mut line)?;
        assert_eq!(line, "here\n");
        connections.push(connection);
    }
    let mut pids = Vec::new();
    for vm in ["v", "idle"] {
        ready(&cluster, 1, vm)?;
        let pid = cluster.vm(1, vm)?["pid"].as_u64().context("no pid")?;
        pids.push(u32::try_from(pid)?);
    }
    let with_agent = watch(&pids)?;

    cluster.node_mut(2).kill()?;
    // Whoever worked in a guest is told.
    let (code, problem) = program.end()?;
    assert_eq!(code, Some(1), "{problem}");
    assert_eq!(problem.trim().lines().count(), 1, "{problem}");
    for mut connection in connections {
        let mut rest = Vec::new();
        // It is closed, or broken off.
        let closed = connection.read_to_end(&mut rest);
        anyhow::ensure!(
            rest.is_empty()
                && closed
                    .as_ref()
                    .err()
                    .is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
            "{closed:?}"
        );
    }
    let without = watch(&pids)?;
    println!(
        "processor time of the guests in {WATCHED:?}: {with_agent:?} with an agent, {without:?} without"
    );
    for used in &without {
        anyhow::ensure!(
            *used < IDLE,
            "a guest used {used:?} of {WATCHED:?} with nobody there"
        );
    }

    let agent = cluster.node_mut(2);
    agent.start()?;
    agent.wait_answers()?;
    let up = Instant::now();
    for vm in ["v", "idle"] {
        ready(&cluster, 2, vm)?;
        exec(&cluster, 2, vm, &["true"])?;
    }
    println!(
        "both guests were ready and worked in {:?} after the agent was up",
        up.elapsed()
    );
    let took = until_answered(&cluster.node(2).log_text())?;
    assert_eq!(took.len(), 2, "{took:?}");
    println!("from serving to answers: {took:?}");
    for took in took {
        // The issue's own bound, by the agent's own clock: what the commands of a user take on a busy machine is no part of it.
        anyhow::ensure!(
            took < Duration::from_secs(1),
            "a guest answered {took:?} after"
        );
    }
    // What the old agent had run is over, and what a guest was told it knows.
    wait_for("what was run to be gone", PATIENCE, || {
        let look = shell(
            &cluster,
            3,
            "v",
            "busybox ps -o args | grep -c '^[s]leep 6666' || true",
        )?;
        Ok((look.trim() == "0").then_some(()))
    })?;
    assert_eq!(
        exec(&cluster, 3, "idle", &["fpguest", "get", "key"])?,
        "told-once"
    );
    // The same program serves on.
    let mut connection = BufReader::new(forward.connect()?);
    connection.get_mut().write_all(b"again\n")?;
    let mut line = String::new();
    connection.read_line(&mut line)?;
    assert_eq!(line, "again\n");
    Ok(())
}

/// The guest's agent ends, and is started again by the guest's first process: its host notices, and it is worked in as before.
#[test]
fn a_guests_agent_that_ends_comes_back() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(1)?;
    boot(&cluster, 1, &[("v", &[])])?;
    put_script(
        &cluster,
        1,
        "v",
        "/etc/forkypig/fork.d/10-note",
        "echo ran >>/run/hook",
    )?;
    fork(
        &cluster,
        1,
        &["v", "--name", "child", "--set", "role=worker"],
    )?;
    ready(&cluster, 1, "child")?;
    let before = exec(&cluster, 1, "child", &["fpguest", "identity"])?;
    let kill = "for each in /proc/[0-9]*; do
        [ \"$(tr '\\0' ' ' <$each/cmdline | sed 's|^.*/||')\" = 'fpguest agent ' ] && agent=${each#/proc/}; done
        echo found; read -r word; kill -9 $agent; sleep 7777";
    let mut killer = Program::start(&cluster, 1, "child", &[], &["sh", "-c", kill])?;
    assert_eq!(killer.line()?, "found");
    killer.say("now")?;
    // What was under way is over, and why is told.
    let (code, problem) = killer.end()?;
    assert_eq!(code, Some(1), "{problem}");
    anyhow::ensure!(problem.contains("started anew"), "{problem}");

    ready(&cluster, 1, "child")?;
    assert_eq!(
        exec(&cluster, 1, "child", &["fpguest", "identity"])?,
        before
    );
    assert_eq!(
        exec(&cluster, 1, "child", &["fpguest", "get", "role"])?,
        "worker"
    );
    assert_eq!(exec(&cluster, 1, "child", &["cat", "/run/hook"])?, "ran\n");
    Ok(())
}
