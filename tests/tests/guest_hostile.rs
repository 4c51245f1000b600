//! Guests whose agents lie to their host: whatever one sends, or does not, its own VM's `exec` fails with an error, the agent keeps its
//! memory, other VMs go on, and its VM is still paused, forked and deleted.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::cluster::Cluster;

/// The most memory that a guest may cost its host's agent, KiB.
const MOST_MEMORY: u64 = 64 << 10;
/// How long `exec` may take in a VM that lies: 5 s pass before a guest counts as silent, or as late.
const BOUNDED: Duration = Duration::from_secs(20);
/// And in another VM meanwhile, while two processors emulate both.
const PROMPT: Duration = Duration::from_secs(8);

/// What those are told that take it up and never end it.
const LATE: &str = "did not end the program in time";

/// What guests do, and what is said of it: one of these. One that has not been found out yet does not answer.
const KINDS: [(&str, &[&str]); 13] = [
    ("silent", &["does not answer"]),
    ("deaf", &[LATE]),
    ("rubbish", &["does not answer", "sends other things"]),
    ("zeros", &["does not answer", "no frame"]),
    ("version", &["no form of the protocol"]),
    ("another", &["another VM"]),
    ("length", &["another length"]),
    ("endless", &["longer than"]),
    ("tiny", &[LATE]),
    ("overrun", &["more was sent than there is room for"]),
    ("opens", &["too many answers"]),
    ("credits", &["more was sent than there is room for"]),
    ("foreign", &["never began"]),
];

/// The first so many of them do nothing, and are looked at together.
const IDLE: usize = 2;

#[test]
fn a_guest_that_lies_harms_nobody_but_itself() -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    cluster.import("lies", "fp.hostile=name")?;
    let node = cluster.node(1);
    let create = [
        "vm", "create", "liar", "--image", "lies", "--memory", "128M", "--wait",
    ];
    node.fp(&create)?.success()?;
    // Only one is booted, which takes long where it is emulated.
    node.fp(&["fork", "liar", "--name", "honest"])?.success()?;
    node.fp(&["exec", "honest", "--", "true"])?.success()?;

    let (idle, busy) = KINDS.split_at(IDLE);
    for kinds in std::iter::once(idle).chain(busy.chunks(1)) {
        let memory = Memory::begin(&cluster)?;
        std::thread::scope(|scope| {
            let checks: Vec<_> = kinds
                .iter()
                .map(|(kind, said)| scope.spawn(|| check(&cluster, kind, said)))
                .collect();
            checks.into_iter().try_for_each(|check| join(check.join()))
        })
        .with_context(|| format!("{kinds:?}"))?;
        let more = memory.most()?;
        eprintln!("{kinds:?}: {more} KiB");
        assert!(more < MOST_MEMORY, "{kinds:?}: {more} KiB more");
    }
    Ok(())
}

fn join<T>(result: std::thread::Result<anyhow::Result<T>>) -> anyhow::Result<T> {
    result.map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

fn check(cluster: &Cluster, vm: &str, said: &[&str]) -> anyhow::Result<()> {
    let node = cluster.node(1);
    // One that has said nothing yet, and does what its name is.
    node.fp(&["fork", "liar", "--name", vm])?.success()?;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let lied_to = scope.spawn(|| {
            let begun = Instant::now();
            let answer = match said {
                [LATE] => node.fp(&["exec", "--timeout", "2s", vm, "--", "true"])?,
                _ => node.fp(&["exec", vm, "--", "true"])?,
            };
            anyhow::Ok((answer, begun.elapsed()))
        });
        // In the midst of it.
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        node.fp(&["exec", "honest", "--", "true"])?.success()?;
        let took = begun.elapsed();
        anyhow::ensure!(took < PROMPT, "another VM answers after {took:?}");
        let (answer, took) = join(lied_to.join())?;
        answer.refused(&[vm])?;
        eprintln!("{vm}: after {took:.1?}: {}", answer.err.trim());
        anyhow::ensure!(
            said.iter().any(|words| answer.err.contains(words)),
            "it says: {}",
            answer.err
        );
        anyhow::ensure!(took < BOUNDED, "it takes {took:?}");
        Ok(())
    })?;
    node.fp(&["vm", "pause", vm])?.success()?;
    let child = format!("{vm}-child");
    node.fp(&["fork", vm, "--name", &child])?.success()?;
    node.fp(&["vm", "rm", "--force", vm, &child])?.success()
}

/// What the agent's process takes of memory above what it took at first.
struct Memory {
    pid: u32,
    before: u64,
}

impl Memory {
    fn begin(cluster: &Cluster) -> anyhow::Result<Self> {
        let pid = cluster.node(1).pid().context("no agent")?;
        // The most that it ever took is counted anew.
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        let before = Self::read(pid, "VmRSS:")?;
        Ok(Self { pid, before })
    }

    fn most(&self) -> anyhow::Result<u64> {
        let most = Self::read(self.pid, "VmHWM:")?;
        Ok(most.saturating_sub(self.before))
    }

    /// KiB.
    fn read(pid: u32, field: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no such field")?.parse()?)
    }
}
