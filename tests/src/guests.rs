//! Working in guests, as a user does: `fpagent exec` and `fpagent forward`.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    cluster::{Cluster, PATIENCE},
    fpagent,
    image::Image,
    wait_for,
};

/// Boots VMs of a cluster's image of guests, with these options each, and waits until their guests are ready.
pub fn boot(cluster: &Cluster, through: usize, vms: &[(&str, &[&str])]) -> anyhow::Result<()> {
    let memory = Image::of_guests()?.memory();
    for (name, options) in vms {
        let create = ["vm", "create", name, "--image", "guest", "--memory", memory];
        let create = [&create, *options].concat();
        cluster.node(through).fp(&create)?.success()?;
    }
    for (name, _) in vms {
        ready(cluster, through, name)?;
    }
    Ok(())
}

/// Waits until a guest is ready; several that boot at once take their time.
pub fn ready(cluster: &Cluster, through: usize, vm: &str) -> anyhow::Result<()> {
    let wait = ["vm", "wait", vm, "--for", "ready", "--timeout", "2m"];
    let answer = cluster.node(through).fp(&wait)?;
    answer
        .success()
        .with_context(|| format!("{vm} is not ready"))
}

/// `fpagent exec` in a VM through a node, not started yet.
fn command(
    cluster: &Cluster,
    through: usize,
    vm: &str,
    options: &[&str],
    argv: &[&str],
) -> Command {
    let mut command = Command::new(fpagent::binary());
    command
        .args(["exec", vm])
        .args(options)
        .arg("--")
        .args(argv)
        .env("FPAGENT_ADDR", cluster.node(through).address())
        .env_remove("FPAGENT_CERTS");
    command
}

/// Runs a program in a guest, which must end with 0, and gives what it printed. What it waits for in there must come in time.
pub fn exec(cluster: &Cluster, through: usize, vm: &str, argv: &[&str]) -> anyhow::Result<String> {
    let limit = format!("{}s", PATIENCE.as_secs());
    let output = command(cluster, through, vm, &["--timeout", &limit], argv)
        .stdin(Stdio::null())
        .output()?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{argv:?} in {vm}: {}: {out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(out)
}

/// The same for a script of the guest's shell.
pub fn shell(cluster: &Cluster, through: usize, vm: &str, script: &str) -> anyhow::Result<String> {
    exec(cluster, through, vm, &["sh", "-c", script])
}

/// Runs a program in a guest on all of an input: what it wrote and how it ended.
pub fn exec_with(
    cluster: &Cluster,
    through: usize,
    vm: &str,
    options: &[&str],
    argv: &[&str],
    input: &[u8],
) -> anyhow::Result<Output> {
    let options = [options, &["-i"]].concat();
    let mut child = command(cluster, through, vm, &options, argv)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut to = child.stdin.take().context("no input")?;
    thread::scope(|scope| {
        // A program that does not read to the end has had enough.
        scope.spawn(move || drop(to.write_all(input)));
        Ok(child.wait_with_output()?)
    })
}

/// Waits until a program in a guest, by its path and first arguments, stands still: it waits in the kernel, and does not run again.
pub fn wait_still(cluster: &Cluster, vm: &str, command: &str) -> anyhow::Result<()> {
    let look = format!(
        "for pid in $(busybox ps -o pid,args | awk '{{ pid = $1; $1 = \"\"; if (index($0 \" \", \" {command} \") == 1) print pid }}'); do
            grep -E '^State|ctxt' /proc/$pid/status
        done; :"
    );
    let (mut last, mut times) = (String::new(), 0);
    let still = wait_for(&format!("{command:?} to stand still"), PATIENCE, || {
        let now = shell(cluster, 2, vm, &look)?;
        let same = now == last && now.contains("S (sleeping)");
        times = if same { times + 1 } else { 0 };
        last = now;
        // One that only waits its turn on a busy host looks so once or twice.
        Ok((times == 5).then_some(()))
    });
    still.with_context(|| last)
}

/// Puts a script into a guest, to be run.
pub fn put_script(
    cluster: &Cluster,
    through: usize,
    vm: &str,
    path: &str,
    script: &str,
) -> anyhow::Result<()> {
    let write = format!("cat >{path} && chmod 755 {path}");
    let text = format!("#!/bin/sh\n{script}\n");
    let output = exec_with(
        cluster,
        through,
        vm,
        &[],
        &["sh", "-c", &write],
        text.as_bytes(),
    )?;
    anyhow::ensure!(output.status.success(), "{path}: {output:?}");
    Ok(())
}

/// A program that goes on in a guest, and is spoken to in lines. It is ended when this is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Program {
    /// Starts one, with these options of `fpagent exec` besides `-i`.
    pub fn start(
        cluster: &Cluster,
        through: usize,
        vm: &str,
        options: &[&str],
        argv: &[&str],
    ) -> anyhow::Result<Self> {
        let options = [options, &["-i"]].concat();
        let mut child = command(cluster, through, vm, &options, argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            input: child.stdin.take(),
            child,
            lines,
        })
    }

    /// The client's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a line.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("its input is closed")?;
        input.write_all(format!("{line}\n").as_bytes())?;
        Ok(input.flush()?)
    }

    /// Ends its input.
    pub fn close_input(&mut self) {
        drop(self.input.take());
    }

    /// The next line that it printed; `None` when nothing more comes.
    pub fn next_line(&self) -> anyhow::Result<Option<String>> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => anyhow::bail!("the program said nothing in time"),
        }
    }

    /// The next line, which must come.
    pub fn line(&self) -> anyhow::Result<String> {
        self.next_line()?.context("the program's output ended")
    }

    /// Its exit code and what it complained of, at its own end.
    pub fn end(mut self) -> anyhow::Result<(Option<i32>, String)> {
        self.close_input();
        let mut problems = String::new();
        let mut errors = self.child.stderr.take().context("no errors")?;
        errors.read_to_string(&mut problems)?;
        Ok((self.child.wait()?.code(), problems))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A `fpagent forward` to one port of a guest that runs.
#[derive(Debug)]
pub struct Forward {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Forward {
    /// Starts one through a node.
    pub fn start(cluster: &Cluster, through: usize, vm: &str, port: u16) -> anyhow::Result<Self> {
        let mut child = Command::new(fpagent::binary())
            .args(["forward", vm, &format!("0:{port}")])
            .env("FPAGENT_ADDR", cluster.node(through).address())
            .env_remove("FPAGENT_CERTS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let address = line.split_whitespace().nth(1);
        let address = address.and_then(|address| address.parse().ok());
        let Some(address) = address else {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("it does not say where it listens: {line:?}");
        };
        Ok(Self { child, address })
    }

    /// Connects through it.
    pub fn connect(&self) -> anyhow::Result<TcpStream> {
        connect(self.address)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A connection on which nothing is waited for without an end.
pub fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// All that comes on a new connection until its end.
pub fn read_all(address: SocketAddr) -> anyhow::Result<String> {
    let mut text = String::new();
    connect(address)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Where a VM's published port is reached, as a node tells it.
pub fn published(
    cluster: &Cluster,
    through: usize,
    vm: &str,
    port: u16,
) -> anyhow::Result<SocketAddr> {
    let shown = cluster.vm(through, vm)?;
    let ports = shown["ports"].as_array().context("no ports")?;
    let found = ports.iter().find(|one| one["guestPort"] == port);
    let found = found.with_context(|| format!("{vm} has no port {port}: {}", shown["ports"]))?;
    let host = found["address"].as_str().context("no address")?;
    let number = found["port"].as_u64().context("no port")?;
    Ok(format!("{host}:{number}").parse()?)
}

/// A script that says what time it is as often as it is asked: seconds. The tiny image's `date` knows no fractions of one.
const CLOCK: &str = r#"
show() { date +%s.%N; }
case $(date +%N) in
    *N) show() { adjtimex | awk '/tv_sec/ { s = $NF } /tv_usec/ { printf "%d.%06d\n", s, $NF }'; } ;;
esac
while read -r word; do show; done
"#;

/// How far a guest's clock is from this host's, seconds, as bounds: see [`clock_within`].
pub fn clock_offset(
    cluster: &Cluster,
    through: usize,
    vm: &str,
    most: f64,
) -> anyhow::Result<(f64, f64)> {
    // One program that is asked again and again: each look takes little.
    let asked = ["sh", "-c", CLOCK];
    let mut clock = Program::start(cluster, through, vm, &[], &asked)?;
    clock_within(vm, most, || {
        clock.say("look")?;
        Ok(clock.line()?.trim().parse()?)
    })
}

/// How long a clock is looked at until enough is known of it: with a hundred guests on two processors, an answer takes its time.
const LOOKS: Duration = Duration::from_secs(300);

/// How far a clock that can be looked at is from this host's, seconds, as bounds: what is known after some looks at both. Fails when that
/// is not within `most` either way; looks again while it is not known whether it is.
pub fn clock_within(
    vm: &str,
    most: f64,
    mut look: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<(f64, f64)> {
    let (mut least, mut greatest) = (f64::NEG_INFINITY, f64::INFINITY);
    let begun = Instant::now();
    loop {
        // What a look takes is bounded from both sides by this host's clock, and the bounds of all looks hold at the same time.
        let before = host_clock()?;
        let guest = look()?;
        let after = host_clock()?;
        least = least.max(guest - after);
        greatest = greatest.min(guest - before);
        anyhow::ensure!(
            least <= most && greatest >= -most,
            "the clock of {vm} is off by {least} to {greatest} s"
        );
        if least >= -most && greatest <= most {
            return Ok((least, greatest));
        }
        anyhow::ensure!(
            begun.elapsed() < LOOKS,
            "all that is known is that the clock of {vm} is off by {least} to {greatest} s"
        );
    }
}

fn host_clock() -> anyhow::Result<f64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.as_secs_f64())
}

/// A number from the environment: as much as is asked for by hand, or as little as shows it.
pub fn amount(variable: &str, otherwise: usize) -> usize {
    let set = std::env::var(variable).ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
