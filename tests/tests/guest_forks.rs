//! A VM is forked in the middle of work that is done in it: in the parent it goes on unharmed, the child has none of it, and new work is
//! done in both at once. And connections that are forwarded into a guest end as connections do, each side for itself.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    guests::{Forward, Program, boot, connect, exec, put_script, shell, wait_still},
    lineage::fork,
    wait_for,
};

/// Where the guest sends back what it is sent.
const ECHO: u16 = 7001;
/// How many connections are there.
const CONNECTIONS: usize = 20;

/// Has a guest send back what comes to [`ECHO`].
fn serve_echo(cluster: &Cluster, vm: &str) -> anyhow::Result<()> {
    let serve = format!("setsid busybox nc -ll -p {ECHO} -e cat >/dev/null 2>&1 </dev/null &");
    shell(cluster, 1, vm, &serve)?;
    let port = format!("port:{ECHO}");
    cluster
        .node(1)
        .fp(&["vm", "wait", vm, "--for", &port])?
        .success()
}

/// A number there and back.
fn echo(connection: &mut BufReader<TcpStream>, number: u64) -> anyhow::Result<()> {
    connection
        .get_mut()
        .write_all(format!("{number}\n").as_bytes())?;
    let mut line = String::new();
    connection.read_line(&mut line)?;
    anyhow::ensure!(
        line == format!("{number}\n"),
        "{number} came back as {line:?}"
    );
    Ok(())
}

/// Speaks on a connection until it is told to end: how often. Nothing is lost, repeated or changed.
fn speak(connection: TcpStream, goes_on: &AtomicBool) -> anyhow::Result<u64> {
    let mut connection = BufReader::new(connection);
    let mut number = 0;
    while goes_on.load(Ordering::Relaxed) {
        echo(&mut connection, number)?;
        number += 1;
    }
    // Its end is heard there, and the other's here.
    connection.get_mut().shutdown(Shutdown::Write)?;
    let mut rest = String::new();
    connection.read_to_string(&mut rest)?;
    anyhow::ensure!(rest.is_empty(), "{rest:?} came when all was said");
    Ok(number)
}

/// Reads numbers until one is at least this, each of them one more than the last.
fn count_to(counter: &Program, next: &mut u64, least: u64) -> anyhow::Result<()> {
    while *next < least {
        let line = counter.line()?;
        anyhow::ensure!(
            line == next.to_string(),
            "{line:?} came in the place of {next}"
        );
        *next += 1;
    }
    Ok(())
}

#[test]
fn what_is_under_way_goes_on_in_the_parent_and_not_in_the_child() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(3)?;
    boot(&cluster, 1, &[("v", &["--node", "node2"])])?;
    serve_echo(&cluster, "v")?;
    let counts = "i=0; while :; do echo $i; i=$((i + 1)); done";
    let counter = Program::start(&cluster, 3, "v", &[], &["sh", "-c", counts])?;
    let mut next = 0;
    count_to(&counter, &mut next, 1000)?;
    let mut waits = Program::start(&cluster, 1, "v", &[], &["cat"])?;
    waits.say("before")?;
    assert_eq!(waits.line()?, "before");
    let forwards = [1, 2, 3].map(|through| Forward::start(&cluster, through, "v", ECHO));
    let forwards = forwards.into_iter().collect::<anyhow::Result<Vec<_>>>()?;

    let goes_on = AtomicBool::new(true);
    thread::scope(|scope| -> anyhow::Result<()> {
        let speakers: Vec<_> = (0..CONNECTIONS)
            .map(|number| -> anyhow::Result<_> {
                let mut connection = BufReader::new(forwards[number % 3].connect()?);
                echo(&mut connection, 0)?;
                let connection = connection.into_inner();
                let goes_on = &goes_on;
                Ok(scope.spawn(move || speak(connection, goes_on)))
            })
            .collect();
        let forked = (|| {
            for child in ["c-1", "c-2"] {
                fork(&cluster, 3, &["v", "--name", child])?;
                in_a_child(&cluster, child)?;
                // All that was said before the fork, and more.
                let more = next + 1000;
                count_to(&counter, &mut next, more)?;
            }
            Ok(())
        })();
        goes_on.store(false, Ordering::Relaxed);
        for speaker in speakers {
            let said = speaker?.join();
            let said = said.map_err(|_| anyhow::anyhow!("a speaker panicked"))??;
            anyhow::ensure!(said > 0, "one said nothing");
        }
        forked
    })?;

    waits.say("after")?;
    assert_eq!(waits.line()?, "after");
    let (code, problem) = waits.end()?;
    assert_eq!(code, Some(0), "{problem}");
    wait_for("the connections to be gone in the parent", PATIENCE, || {
        Ok((connections(&cluster, 1, "v")? == 0).then_some(()))
    })
}

/// Connections to the port that are there in a guest.
fn connections(cluster: &Cluster, through: usize, vm: &str) -> anyhow::Result<usize> {
    let look = format!("busybox netstat -tn | grep -c ':{ECHO} .*ESTABLISHED' || true");
    let count = shell(cluster, through, vm, &look)?;
    count.trim().parse().context("no count")
}

/// A child was made in the middle of all that: new work is done at once, and nothing is left of its parent's.
fn in_a_child(cluster: &Cluster, child: &str) -> anyhow::Result<()> {
    // Nothing is waited for.
    assert_eq!(exec(cluster, 1, child, &["hostname"])?.trim(), child);
    let forward = Forward::start(cluster, 2, child, ECHO)?;
    let mut connection = BufReader::new(forward.connect()?);
    for number in 0..10 {
        echo(&mut connection, number)?;
    }
    // Both ends of the one that is new, and of none that is older.
    wait_for("its parent's connections to be gone", PATIENCE, || {
        Ok((connections(cluster, 3, child)? == 2).then_some(()))
    })
    .with_context(|| format!("{:?}", connections(cluster, 3, child)))?;
    let mut program = Program::start(cluster, 3, child, &[], &["cat"])?;
    program.say("new")?;
    assert_eq!(program.line()?, "new");
    // It is not its parent's counter's or anybody else's affair.
    let (code, problem) = program.end()?;
    assert_eq!(code, Some(0), "{problem}");
    // Two of these that count are enough for two processors.
    cluster.node(1).fp(&["vm", "pause", child])?.success()
}

/// More than anybody on the way keeps.
const MUCH: usize = 4 << 20;

#[test]
fn each_side_of_a_connection_ends_for_itself() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(3)?;
    boot(&cluster, 1, &[("v", &["--node", "node2"])])?;
    for through in [2, 3] {
        let serve = |port: u16, command: &str| -> anyhow::Result<Forward> {
            let start = format!("rm -f /tmp/came; setsid {command} >/tmp/came 2>/dev/null & :");
            shell(&cluster, 1, "v", &start.replace("PORT", &port.to_string()))?;
            let listens = format!("until busybox netstat -tln | grep -q ':{port} '; do :; done");
            shell(&cluster, 1, "v", &listens)?;
            Forward::start(&cluster, through, "v", port)
        };
        let port = 7100 + 10 * u16::try_from(through)?;

        // The caller has said all, and is answered then.
        put_script(&cluster, 1, "v", "/root/count", "cat | wc -c; echo done")?;
        let forward = serve(port, "busybox nc -l -p PORT -e /root/count")?;
        let mut connection = forward.connect()?;
        connection.write_all(&vec![7; MUCH])?;
        connection.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        assert_eq!(answer, format!("{MUCH}\ndone\n"));

        // The guest has said all, and hears on.
        let forward = serve(port + 1, "sh -c 'echo hello | busybox nc -l -p PORT'")?;
        let mut connection = forward.connect()?;
        let mut greeting = String::new();
        connection.read_to_string(&mut greeting)?;
        assert_eq!(greeting, "hello\n");
        connection.write_all(&vec![8; MUCH])?;
        connection.shutdown(Shutdown::Write)?;
        let came = format!("until [ \"$(wc -c </tmp/came)\" = {MUCH} ]; do :; done");
        shell(&cluster, 1, "v", &came)?;

        // A caller who does not read what comes is heard all the same.
        let flood = "/bin/busybox cat /dev/zero & cat >/tmp/heard";
        put_script(&cluster, 1, "v", "/root/flood", flood)?;
        let forward = serve(port + 2, "busybox nc -l -p PORT -e /root/flood")?;
        let mut connection = forward.connect()?;
        let mut first = [1];
        connection.read_exact(&mut first)?;
        assert_eq!(first, [0]);
        wait_still(&cluster, "v", "/bin/busybox cat /dev/zero")?;
        connection.write_all(&vec![9; MUCH])?;
        let heard = format!("until [ \"$(wc -c </tmp/heard)\" = {MUCH} ]; do :; done");
        shell(&cluster, 1, "v", &heard)?;
        // One that breaks off is broken off there, too.
        drop(connection);
        wait_for("the flood to end", PATIENCE, || {
            let look = shell(
                &cluster,
                1,
                "v",
                "busybox ps -o args | grep -c '^/bin/busybox cat' || true",
            )?;
            Ok((look.trim() == "0").then_some(()))
        })?;
    }

    // Where nobody listens the connection is closed at once, and why is told.
    let forward = Forward::start(&cluster, 3, "v", 9)?;
    let mut rest = Vec::new();
    connect(forward.address)?.read_to_end(&mut rest)?;
    assert_eq!(rest, b"");
    Ok(())
}
