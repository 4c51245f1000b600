//! The network of one VM: its own, which reaches out unless it may not, and is reached by published ports and by forwarding, through
//! whichever node.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    fpagent,
    guests::{Forward, boot, connect, published, put_script, read_all, ready, shell},
    lineage::fork,
    wait_for,
};

/// The port that is published.
const PORT: u16 = 7000;
/// This host, as guests see it.
const HOST: &str = "10.0.2.2";

/// Somebody on this host whom guests try to reach.
struct Outside(TcpListener);

impl Outside {
    fn new() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// What a guest does to say a word here. It goes on until the word was heard, or nobody is reached.
    fn call(&self, word: &str) -> anyhow::Result<String> {
        let port = self.0.local_addr()?.port();
        Ok(format!(
            "(echo {word} | timeout 20 busybox nc -w 3 {HOST} {port})"
        ))
    }

    fn hear(&self) -> anyhow::Result<String> {
        let (mut connection, _) =
            wait_for("a guest to call", PATIENCE, || match self.0.accept() {
                Ok(accepted) => Ok(Some(accepted)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            })?;
        connection.set_nonblocking(false)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let mut word = String::new();
        connection.read_to_string(&mut word)?;
        Ok(word.trim().to_owned())
    }

    fn heard_nobody(&self) -> bool {
        matches!(self.0.accept(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Has a guest answer on [`PORT`] with its name, in its present and its forks' futures.
fn serve(cluster: &Cluster, vm: &str) -> anyhow::Result<()> {
    let serve = format!("setsid busybox nc -ll -p {PORT} -e hostname >/dev/null 2>&1 </dev/null &");
    shell(cluster, 1, vm, &serve).map(drop)
}

fn wait_port(
    cluster: &Cluster,
    through: usize,
    vm: &str,
    timeout: &str,
) -> anyhow::Result<fpagent::Answer> {
    let port = format!("port:{PORT}");
    cluster
        .node(through)
        .fp(&["vm", "wait", vm, "--for", &port, "--timeout", timeout])
}

#[test]
fn a_guest_reaches_out_where_it_may_and_is_reached_where_it_is_published() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_guests(2)?;
    let port = PORT.to_string();
    let all = [
        ("open", &["--node", "node2", "--publish", &port][..]),
        (
            "closed",
            &["--node", "node2", "--publish", &port, "--no-egress"],
        ),
        ("none", &["--node", "node2", "--network", "none"]),
    ];
    boot(&cluster, 1, &all)?;
    let both = [
        "vm",
        "create",
        "x",
        "--image",
        "guest",
        "--network",
        "none",
        "--publish",
        &port,
    ];
    cluster
        .node(1)
        .fp(&both)?
        .refused(&["publish", "without a network"])?;

    let outside = Outside::new()?;
    shell(
        &cluster,
        1,
        "open",
        &format!("{} &", outside.call("hello")?),
    )?;
    assert_eq!(outside.hear()?, "hello");
    for vm in ["closed", "none"] {
        let call = format!("{} && echo reached; :", outside.call(vm)?);
        let said = shell(&cluster, 1, vm, &call)?;
        anyhow::ensure!(
            !said.contains("reached") && outside.heard_nobody(),
            "{vm}: {said}"
        );
    }
    // Where there is a network, it is as it is told; where there is none, there is no card.
    for vm in ["open", "closed"] {
        let shown = cluster.vm(1, vm)?;
        let addresses = shown["guest"]["addresses"]
            .as_array()
            .context("no addresses")?;
        anyhow::ensure!(addresses.iter().any(|one| one == "10.0.2.15"), "{shown}");
        let card = shell(&cluster, 1, vm, "ip route; cat /etc/resolv.conf")?;
        anyhow::ensure!(
            card.contains("default via 10.0.2.2") && card.contains("10.0.2.3"),
            "{card}"
        );
    }
    assert_eq!(
        shell(&cluster, 1, "none", "ls /sys/class/net")?.trim(),
        "lo"
    );

    // A port is waited for while nobody listens to it, and until somebody does.
    let answer = wait_port(&cluster, 1, "open", "1s")?;
    assert_eq!(answer.code, 124, "{}", answer.err);
    let waits = Arc::new(cluster.node(1).address());
    let waiting = {
        let (address, port) = (Arc::clone(&waits), format!("port:{PORT}"));
        thread::spawn(move || fpagent::run(Some(&address), &["vm", "wait", "open", "--for", &port]))
    };
    for (vm, _) in all {
        serve(&cluster, vm)?;
        wait_port(&cluster, 2, vm, "30s")?.success()?;
        // Through its published port, and through a node that does not hold it; that needs no network.
        if vm != "none" {
            assert_eq!(read_all(published(&cluster, 1, vm, PORT)?)?.trim(), vm);
        }
        let forward = Forward::start(&cluster, 1, vm, PORT)?;
        assert_eq!(read_all(forward.address)?.trim(), vm);
    }
    let answer = waiting
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))?;
    answer?.success()?;

    // Forks have ports of their own, each of which leads to its own guest; they share no network, though the addresses in it are the same.
    let capture = ["snapshot", "create", "open", "s"];
    cluster.node(1).fp(&capture)?.success()?;
    fork(&cluster, 1, &["@s", "-n", "2", "--name", "c"])?;
    let vms = ["open", "closed", "c-1", "c-2"];
    let mut reached: Vec<SocketAddr> = Vec::new();
    for vm in vms {
        ready(&cluster, 1, vm)?;
        let address = published(&cluster, 1, vm, PORT)?;
        assert_eq!(read_all(address)?.trim(), vm);
        reached.push(address);
    }
    assert_eq!(
        reached.iter().collect::<BTreeSet<_>>().len(),
        vms.len(),
        "{reached:?}"
    );
    for vm in ["c-1", "c-2"] {
        shell(&cluster, 1, vm, &format!("{} &", outside.call(vm)?))?;
        assert_eq!(outside.hear()?, vm);
    }
    // What comes through a published port ends as connections do, each side for itself.
    put_script(&cluster, 1, "c-1", "/root/count", "cat | wc -c")?;
    let swap = format!(
        "for each in /proc/[0-9]*; do
            case $(tr '\\0' ' ' <$each/cmdline) in 'busybox nc '*) kill ${{each#/proc/}} ;; esac
        done
        setsid busybox nc -ll -p {PORT} -e /root/count >/dev/null 2>&1 </dev/null &"
    );
    shell(&cluster, 1, "c-1", &swap)?;
    wait_port(&cluster, 1, "c-1", "30s")?.success()?;
    let mut connection = connect(published(&cluster, 1, "c-1", PORT)?)?;
    connection.write_all(&[7; 1 << 20])?;
    connection.shutdown(Shutdown::Write)?;
    let mut counted = String::new();
    connection.read_to_string(&mut counted)?;
    assert_eq!(counted.trim(), (1 << 20).to_string());

    // They are the same after the agent was started anew.
    let agent = cluster.node_mut(2);
    agent.kill()?;
    agent.start()?;
    agent.wait_answers()?;
    for (vm, before) in vms.iter().zip(&reached) {
        ready(&cluster, 2, vm)?;
        let after = published(&cluster, 2, vm, PORT)?;
        assert_eq!(after, *before, "{vm}");
    }
    assert_eq!(read_all(reached[3])?.trim(), "c-2");
    Ok(())
}
