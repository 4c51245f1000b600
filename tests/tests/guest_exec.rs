//! Programs that are run in guests, through nodes that do not hold them: all that a program and its user can say to each other comes
//! through whole, nobody waits for somebody else, and a program goes when its user does.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, signal},
    fpagent,
    guests::{Program, amount, boot, exec, exec_with, put_script, shell, wait_still},
    processes, wait_for,
};
use rustix::{
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// A cluster with a guest `v` on its second node.
fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::with_guests(3)?;
    boot(&cluster, 1, &[("v", &["--node", "node2"])])?;
    Ok(cluster)
}

/// Runs a program through a node that does not hold the VM: its exit code, output and errors.
fn run(
    cluster: &Cluster,
    options: &[&str],
    argv: &[&str],
) -> anyhow::Result<(i32, String, String)> {
    let output = exec_with(cluster, 3, "v", options, argv, b"")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().context("the client was killed")?;
    Ok((code, text(&output.stdout), text(&output.stderr)))
}

#[test]
fn programs_run_as_they_are_asked_to() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let script = |options: &[&str], script: &str| run(&cluster, options, &["sh", "-c", script]);

    // Its three streams, each for itself, and its exit code.
    let talk = "read -r line; echo \"out $line\"; echo \"err $line\" >&2; exit 7";
    let output = exec_with(&cluster, 1, "v", &[], &["sh", "-c", talk], b"word\n")?;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out word\n"[..], &b"err word\n"[..])
    );
    // Without -i it reads an end at once.
    assert_eq!(exec(&cluster, 3, "v", &["cat"])?, "");
    assert_eq!(
        run(&cluster, &[], &["true"])?,
        (0, String::new(), String::new())
    );

    // Signals are what a shell says of them: 128 and their number.
    assert_eq!(script(&[], "kill -9 $$")?.0, 137);
    assert_eq!(script(&[], "kill -TERM $$")?.0, 143);

    // A program that takes too long is ended, with all that it started, even where it does not want to.
    let stubborn = "trap '' TERM; sleep 1111 & while :; do sleep 1; done";
    let (code, _, problem) = script(&["--timeout", "1s"], stubborn)?;
    assert_eq!(code, 124, "{problem}");
    is_gone(&cluster, "sleep 1111")?;

    let (code, out, _) = script(
        &["--env", "WORD=two words", "--env", "OTHER=x"],
        "echo $WORD-$OTHER-$HOME",
    )?;
    assert_eq!((code, out.as_str()), (0, "two words-x-/root\n"));
    assert_eq!(script(&["--cwd", "/var/log"], "pwd")?.1, "/var/log\n");
    // Arguments come as they are.
    let words = ["printf", "%s.", "a b", "", "*", "é\n"];
    assert_eq!(run(&cluster, &[], &words)?.1, "a b..*.é\n.");

    shell(
        &cluster,
        1,
        "v",
        "echo 'ann:x:1000:1001::/tmp:/bin/sh' >>/etc/passwd; echo 'sound:x:29:ann' >>/etc/group",
    )?;
    for user in ["ann", "1000"] {
        let (code, out, problem) = script(
            &["--user", user],
            "id -u; id -g; id -G; pwd; echo $USER $HOME",
        )?;
        assert_eq!(
            (code, out.as_str()),
            (0, "1000\n1001\n1001 29\n/tmp\nann /tmp\n"),
            "{problem}"
        );
    }
    let (code, _, problem) = script(&["--user", "nobody-there"], "true")?;
    assert_eq!(code, 127, "{problem}");
    anyhow::ensure!(problem.contains("nobody-there"), "{problem}");

    // What cannot be started says why, in one line.
    for (options, argv) in [
        (&[][..], &["no-such-program"][..]),
        (&["--cwd", "/no/such/folder"], &["true"]),
        (&[], &["/etc"]),
    ] {
        let (code, out, problem) = run(&cluster, options, argv)?;
        assert_eq!((code, out.as_str()), (127, ""), "{argv:?}: {problem}");
        assert_eq!(problem.trim().lines().count(), 1, "{problem}");
    }
    run_nobody(&cluster)?;

    // With the client goes the program, and what it started.
    let asked = ["sh", "-c", "echo here; sleep 2222 & wait"];
    let program = Program::start(&cluster, 3, "v", &[], &asked)?;
    assert_eq!(program.line()?, "here");
    signal(program.pid(), Signal::KILL)?;
    is_gone(&cluster, "sleep 2222")
}

/// A VM that is not there.
fn run_nobody(cluster: &Cluster) -> anyhow::Result<()> {
    let answer = cluster.node(3).fp(&["exec", "nobody", "--", "true"])?;
    answer.refused(&["nobody"])
}

/// Waits until no program with this command line is in the guest. The one that looks is another.
fn is_gone(cluster: &Cluster, command: &str) -> anyhow::Result<()> {
    let (head, tail) = command.split_at(1);
    let look = format!("busybox ps -o args | grep -c '^[{head}]{tail}$' || true");
    wait_for(&format!("{command:?} to be gone"), PATIENCE, || {
        let count = shell(cluster, 1, "v", &look)?;
        Ok((count.trim() == "0").then_some(()))
    })
}

/// A terminal of a user, which a client has as its own.
struct Terminal {
    controller: File,
    client: std::process::Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

fn sized(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Terminal {
    /// `fpagent exec -it v` through the third node.
    fn open(
        cluster: &Cluster,
        size: Winsize,
        options: &[&str],
        argv: &[&str],
    ) -> anyhow::Result<Self> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        tcsetwinsize(&controller, size)?;
        let name = ptsname(&controller, Vec::new())?;
        let terminal = File::options()
            .read(true)
            .write(true)
            .open(name.to_str()?)?;
        // It is its own, so that the kernel tells it of a new size.
        let client = Command::new("setsid")
            .arg("--ctty")
            .arg(fpagent::binary())
            .args(["exec", "v", "-it"])
            .args(options)
            .arg("--")
            .args(argv)
            .env("FPAGENT_ADDR", cluster.node(3).address())
            .stdin(Stdio::from(OwnedFd::from(terminal.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(terminal.try_clone()?)))
            .stderr(Stdio::from(OwnedFd::from(terminal)))
            .spawn()?;
        let controller = File::from(controller);
        let mut reader = controller.try_clone()?;
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The end of a terminal is an error.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            controller,
            client,
            output,
            seen: String::new(),
        })
    }

    fn send(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.controller.write_all(text.as_bytes())?)
    }

    fn wait_for(&mut self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let chunk = self.output.recv_timeout(left);
            let chunk = chunk.with_context(|| format!("no {text:?} in {:?}", self.seen))?;
            self.seen.push_str(&String::from_utf8_lossy(&chunk));
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.client.kill();
        let _reaped = self.client.wait();
    }
}

#[test]
fn a_program_has_a_terminal_with_its_users_size() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let mut terminal = Terminal::open(&cluster, sized(33, 101), &[], &["sh"])?;
    // The terminal echoes what is typed: words are found in answers only.
    terminal.send("echo th''ere-$(tty)-$TERM\n")?;
    terminal.wait_for("there-/dev/pts/")?;
    terminal.send("echo si''ze-$(stty size)\n")?;
    terminal.wait_for("size-33 101")?;
    tcsetwinsize(&terminal.controller, sized(44, 155))?;
    terminal.send("until [ \"$(stty size)\" = '44 155' ]; do :; done; echo re''sized\n")?;
    terminal.wait_for("resized")?;
    // Keys that are signals go to the program there, not to the client here.
    terminal.send("echo wai''ting; sleep 3333\n")?;
    terminal.wait_for("waiting")?;
    wait_for("the program to run", PATIENCE, || {
        let look = shell(
            &cluster,
            1,
            "v",
            "busybox ps -o args | grep -c '^[s]leep 3333$' || true",
        )?;
        Ok((look.trim() == "1").then_some(()))
    })?;
    terminal.send("\x03")?;
    is_gone(&cluster, "sleep 3333")?;
    terminal.send("echo st''ill; exit 5\n")?;
    terminal.wait_for("still")?;
    let status = wait_for("the client's end", PATIENCE, || {
        Ok(terminal.client.try_wait()?)
    })?;
    assert_eq!(status.code(), Some(5));

    // Another user's is that user's own.
    let asked = "echo 'ann:x:1000:1001::/tmp:/bin/sh' >>/etc/passwd";
    shell(&cluster, 1, "v", asked)?;
    let script = "echo mi''ne-$(stat -c %u:%g $(tty))-$(echo test >/dev/tty && id -u)";
    let mut terminal = Terminal::open(
        &cluster,
        sized(24, 80),
        &["--user", "ann"],
        &["sh", "-c", script],
    )?;
    terminal.wait_for("mine-1000:1001-1000")?;

    // One that is closed hangs up.
    let mut terminal = Terminal::open(
        &cluster,
        sized(24, 80),
        &[],
        &["sh", "-c", "echo here; sleep 4444"],
    )?;
    terminal.wait_for("here")?;
    drop(terminal);
    is_gone(&cluster, "sleep 4444")
}

/// Bytes that are not the same anywhere.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// How much more memory anybody may need for a program's data at a time, however much it is: windows of some hundred KiB a stream, what
/// gRPC keeps for a connection, and what allocators keep for themselves.
const BOUND: u64 = 16 << 20;

#[test]
fn data_comes_back_whole_in_bounded_memory() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let mib = amount("FP_EXEC_MIB", 32);
    let data = noise(mib << 20);
    let pids = [2, 3].map(|number| cluster.node(number).pid());
    let mut before = Vec::new();
    for pid in pids {
        let pid = pid.context("it does not run")?;
        processes::forget_peak(pid)?;
        before.push((pid, processes::memory(pid)?.1));
    }
    // The guest's agent, among the processes that are fpguest's.
    let script = "for each in /proc/[0-9]*; do
        [ \"$(tr '\\0' ' ' <$each/cmdline | sed 's|^.*/||')\" = 'fpguest agent ' ] && agent=$each; done
        case $1 in
            forget) echo 5 >$agent/clear_refs ;;
        esac
        grep -E 'VmHWM|VmRSS' $agent/status";
    put_script(&cluster, 1, "v", "/root/agent", script)?;
    let in_guest = exec(&cluster, 1, "v", &["/root/agent", "forget"])?;
    let had = processes::field(&in_guest, "VmRSS")?;

    let begun = Instant::now();
    let output = exec_with(&cluster, 3, "v", &[], &["cat"], &data)?;
    let took = begun.elapsed();
    anyhow::ensure!(output.status.success(), "{}", output.status);
    assert_eq!(output.stdout.len(), data.len());
    // Not assert_eq: it would print all of it.
    assert!(output.stdout == data, "it came back as something else");
    println!("{mib} MiB there and back in {took:?}");

    for (pid, before) in before {
        let (peak, _) = processes::memory(pid)?;
        println!("agent {pid}: {before} bytes before, {peak} at most");
        anyhow::ensure!(
            peak < before + BOUND,
            "an agent needed {} bytes more",
            peak - before
        );
    }
    let in_guest = exec(&cluster, 1, "v", &["/root/agent"])?;
    let peak = processes::field(&in_guest, "VmHWM")?;
    println!("the guest's agent: {had} bytes before, {peak} at most");
    anyhow::ensure!(
        peak < had + BOUND,
        "the guest's agent needed {} bytes more",
        peak - had
    );
    Ok(())
}

#[test]
fn many_run_at_once_and_one_that_stalls_holds_up_itself() -> anyhow::Result<()> {
    let cluster = cluster()?;
    // 64 that are all there at the same time: none goes before all have come.
    let asked = ["sh", "-c", "echo here; read -r line; echo $line; exit 3"];
    let started: Vec<_> = (0..64)
        .map(|_| Program::start(&cluster, 3, "v", &[], &asked))
        .collect();
    let mut programs = started.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for program in &programs {
        assert_eq!(program.line()?, "here");
    }
    for (number, program) in programs.iter_mut().enumerate() {
        program.say(&format!("word-{number}"))?;
    }
    for (number, program) in programs.into_iter().enumerate() {
        assert_eq!(program.line()?, format!("word-{number}"));
        let (code, problem) = program.end()?;
        assert_eq!(code, Some(3), "{problem}");
    }

    // One whose client does not read, through each node; the program that it belongs to stands still.
    let mut stalled = Vec::new();
    for (through, name) in [(1, "one"), (2, "two"), (3, "three")] {
        let script = format!("exec /bin/busybox yes {name} $(seq 100)");
        let program = Program::start(&cluster, through, "v", &[], &["sh", "-c", &script])?;
        program.line()?;
        signal(program.pid(), Signal::STOP)?;
        stalled.push((name, program));
    }
    for (name, _) in &stalled {
        // What it may send ahead has been sent.
        wait_still(&cluster, "v", &format!("/bin/busybox yes {name}"))?;
    }
    // The others go on: some twenty milliseconds each where nobody else works, and far from what any time-out would take.
    let others = 20;
    let begun = Instant::now();
    for number in 0..others {
        let output = exec_with(&cluster, number % 3 + 1, "v", &[], &["cat"], b"through")?;
        assert_eq!(output.stdout, b"through");
    }
    let each = begun.elapsed() / others as u32;
    println!("{each:?} for each of the others");
    anyhow::ensure!(
        each < Duration::from_secs(1),
        "the others took {each:?} each"
    );

    // And it goes on itself as soon as its reader does.
    for (_, program) in &stalled {
        signal(program.pid(), Signal::CONT)?;
        // More than anybody on the way keeps.
        for _ in 0..20_000 {
            program.line()?;
        }
    }
    Ok(())
}
