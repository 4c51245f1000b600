//! A thousand forks at once on one host, more than it has processors for: slow is allowed, lost is not.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use agent::trust::tls::connect::{Target, channel};
use anyhow::Context as _;
use futures::{TryStreamExt as _, future::try_join_all};
use harness::wait_for;
use proto::v1::{ConsoleRequest, ListVmsRequest, Vm, VmState, vm_service_client::VmServiceClient};
use qemu::{ksm::Ksm, layout::Layout, record::VmName};
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    host,
    qmp::Session,
    report::{Row, Series},
    run::Bench,
    scenario,
};

/// What the request, and everything until the last answer, may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a guest takes until it has written what it wrote in memory while it booted to its disk. Otherwise every fork does that
/// at the same moment.
const SETTLED: Duration = Duration::from_secs(45);
/// How many guests are asked over one connection: all of them are asked at once.
const ASKED_TOGETHER: usize = 100;
/// Merging is done when it has saved less than this in a while, bytes and time.
const LITTLE: u64 = 64 << 20;
/// See there.
const WHILE: Duration = Duration::from_secs(30);
/// How often in a row.
const STILL: u32 = 6;
/// How long merging is given.
const MERGING: Duration = Duration::from_secs(600);

impl Bench {
    /// So many forks of one snapshot in one request: how long until each has answered, what they take of memory once it is
    /// merged, and that nothing else suffers.
    pub fn many(&mut self, forks: u32) -> anyhow::Result<Vec<Row>> {
        let ksm = Ksm::of_host().context("this kernel cannot merge memory")?;
        let settings = ksm.settings()?;
        self.restart_holder(&[
            "--ready-forks",
            "0",
            "--merge-memory",
            "on",
            "--qemu-aslr",
            "off",
        ])?;
        self.boot("parent", scenario::IDLE)?;
        sleep(SETTLED);
        self.fp(&["snapshot", "create", "parent", "s"])?;
        self.fp(&["vm", "pause", "parent"])?;
        sleep(Duration::from_secs(3));
        let before = Traces::of(self)?;
        let term = self.term()?;
        let free = host::available()?;

        let begun = Instant::now();
        let count = forks.to_string();
        let (_, names) = self.fork(self.other, &["@s", "-n", &count, "--timeout", "10m"])?;
        let running = begun.elapsed();
        anyhow::ensure!(
            names.len() == forks as usize,
            "{} forks of {forks}",
            names.len()
        );
        let socket = self.cluster.node(self.other).address();
        let socket = socket.strip_prefix("unix://").context("no socket")?;
        let runtime = tokio::runtime::Runtime::new()?;
        let _entered = runtime.enter();
        let connect = || {
            VmServiceClient::new(channel(Target::Unix(PathBuf::from(socket))))
                .max_decoding_message_size(64 << 20)
        };
        let service = connect();
        let paused = runtime.block_on(not_running(&service, &names))?;
        anyhow::ensure!(paused.is_empty(), "do not run: {paused:?}");
        runtime.block_on(all_answer(connect, &names))?;
        let answered = begun.elapsed();

        let mut listed = Vec::new();
        for _ in 0..10 {
            let begun = Instant::now();
            runtime.block_on(all_vms(&service))?;
            listed.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        eprintln!(
            "    {} until all ran, {} until all had answered, vm ls in {listed:?} ms",
            running.as_secs_f64(),
            answered.as_secs_f64()
        );
        let unmerged = free.saturating_sub(host::available()?);
        let merged = merged(free)?;
        let agent = self.cluster.node(2).pid().context("no agent")?;
        let resident = host::resident(agent)?;
        let term_after = self.term()?;

        self.all_run_by_qemus_word(forks)?;

        let begun = Instant::now();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        self.fp(&[&["vm", "rm", "--force", "--timeout", "10m"], &all[..]].concat())?;
        let removed = begun.elapsed();
        let after = wait_for("everything to be as before", PATIENCE, || {
            let after = Traces::of(self)?;
            Ok((after == before).then_some(()))
        });
        after.with_context(|| {
            format!(
                "left over, {:?} before and {:?} now",
                before,
                Traces::of(self)
            )
        })?;
        sleep(Duration::from_secs(5));
        let back = free as i64 - host::available()? as i64;
        let holder = self.cluster.node_mut(2);
        holder.terminate()?;
        let put_back = ksm.settings()?;
        if put_back != settings {
            eprintln!("{}", holder.log_tail());
        }

        let per_fork = |bytes: u64| bytes as f64 / f64::from(1 << 20) / f64::from(forks);
        let row = |what: &str, figure: String| Row {
            what: format!("{forks} forks: {what}"),
            forks,
            note: figure,
            ..Row::default()
        };
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        Ok(vec![
            Row {
                running_ms: Series::of(vec![running.as_secs_f64() * 1e3]),
                memory_mib: Some(per_fork(unmerged)),
                ..row(
                    "until the request was answered",
                    format!(
                        "all running by query-status; {} until each had said a word on its console",
                        seconds(answered)
                    ),
                )
            },
            Row {
                memory_mib: Some(per_fork(merged.least)),
                ..row(
                    "memory once merged",
                    format!(
                        "after {}; after {}, in which guests went on to take more, {:.1}",
                        seconds(merged.after),
                        seconds(merged.end),
                        per_fork(merged.last)
                    ),
                )
            },
            Row {
                running_ms: Series::of(listed),
                ..row("vm ls", "in place of request to running".to_owned())
            },
            row(
                "the agent's memory",
                format!(
                    "{} MiB; Raft term {term} before, {term_after} after",
                    resident >> 20
                ),
            ),
            row(
                "the host's settings for merging",
                if put_back == settings {
                    "put back".to_owned()
                } else {
                    format!("not put back: {put_back:?}, before {settings:?}")
                },
            ),
            row(
                "all removed",
                format!(
                    "{}; {} MiB less available than before",
                    seconds(removed),
                    back >> 20
                ),
            ),
        ])
    }

    /// Asks each QEMU itself whether its guest runs. QMP takes one client at a time, so the agent is away meanwhile, and finds all
    /// of them again when it returns.
    fn all_run_by_qemus_word(&mut self, forks: u32) -> anyhow::Result<()> {
        let holder = self.cluster.node_mut(2);
        holder.terminate()?;
        let layout = Layout::create(&holder.data, None)?;
        let names = fs::read_dir(layout.vms())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<String>>>()?;
        // All at once: each takes its time where so many want to run.
        let stati = thread::scope(|scope| {
            let ask = |name: String| scope.spawn(|| status(&layout, name));
            let asked: Vec<_> = names.into_iter().map(ask).collect();
            let answers = asked.into_iter().map(|thread| thread.join());
            answers
                .map(|answer| answer.map_err(|_| anyhow::anyhow!("a thread panicked"))?)
                .collect::<anyhow::Result<Vec<String>>>()
        })?;
        let of = |wanted: &str| stati.iter().filter(|status| *status == wanted).count() as u32;
        // And the parent.
        anyhow::ensure!(of("paused") <= 1, "paused: {}", of("paused"));
        let running = of("running");
        anyhow::ensure!(running == forks, "{running} of {forks} run");
        let holder = self.cluster.node_mut(2);
        holder.start()?;
        wait_for("the agent to find its VMs again", PATIENCE, || {
            let listed = self.json(&["vm", "ls"])?;
            let items = listed["items"].as_array().context("no items")?;
            let there = items
                .iter()
                .filter(|vm| vm["state"] == "running" && vm["pid"] != 0);
            Ok((there.count() == forks as usize).then_some(()))
        })
    }

    fn term(&self) -> anyhow::Result<u64> {
        let status = self.json(&["status"])?;
        status["term"]
            .as_u64()
            .with_context(|| format!("no term in {status}"))
    }
}

/// A guest's state by its QEMU's word.
fn status(layout: &Layout, name: String) -> anyhow::Result<String> {
    let socket = layout.vm(&VmName(name.clone())).socket("qmp")?;
    let mut session = Session::begin(UnixStream::connect(socket.path())?)?;
    let status = session.ask("query-status", json!({}))?;
    let word = status["status"].as_str();
    Ok(word
        .with_context(|| format!("{name}: {status}"))?
        .to_owned())
}

/// What VMs leave on a host.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    processes: BTreeSet<u32>,
    files: BTreeSet<PathBuf>,
    vms: usize,
}

impl Traces {
    fn of(bench: &Bench) -> anyhow::Result<Self> {
        let mut files = BTreeSet::new();
        for folder in ["vms", "layers", "streams", "bases"] {
            for entry in fs::read_dir(bench.cluster.folder().join("node2").join(folder))? {
                files.insert(entry?.path());
            }
        }
        let listed = bench.json(&["vm", "ls"])?;
        Ok(Self {
            processes: bench.cluster.processes()?.into_iter().collect(),
            files,
            vms: listed["items"].as_array().map_or(0, Vec::len),
        })
    }
}

/// All VMs, by the call alone.
pub async fn all_vms(service: &VmServiceClient<Channel>) -> anyhow::Result<Vec<Vm>> {
    let parts = service.clone().list_vms(ListVmsRequest {}).await?;
    let parts: Vec<_> = parts.into_inner().try_collect().await?;
    Ok(parts.into_iter().flat_map(|part| part.vms).collect())
}

/// Those that QEMU does not say are running.
async fn not_running(
    service: &VmServiceClient<Channel>,
    names: &[String],
) -> anyhow::Result<Vec<String>> {
    let names: BTreeSet<&String> = names.iter().collect();
    let mut missing: BTreeSet<String> = names.iter().map(|name| (*name).clone()).collect();
    let listed = all_vms(service).await?;
    for vm in listed.iter().filter(|vm| names.contains(&vm.name)) {
        if vm.state() == VmState::Running {
            missing.remove(&vm.name);
        }
    }
    Ok(missing.into_iter().collect())
}

/// Has every guest say a word on its console that it could not know.
async fn all_answer(
    connect: impl Fn() -> VmServiceClient<Channel>,
    names: &[String],
) -> anyhow::Result<()> {
    let parts = names.chunks(ASKED_TOGETHER).map(|part| (connect(), part));
    let asked = parts.flat_map(|(service, part)| {
        part.iter().map(move |name| {
            let service = service.clone();
            async move {
                let answer = tokio::time::timeout(PATIENCE, answer(service, name)).await;
                answer
                    .with_context(|| format!("{name} does not answer"))?
                    .with_context(|| format!("{name} cannot be asked"))
            }
        })
    });
    try_join_all(asked).await.map(drop)
}

async fn answer(mut service: VmServiceClient<Channel>, vm: &str) -> anyhow::Result<()> {
    let mut nonce = [0; 8];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut nonce)?;
    let nonce = format!("{:016x}", u64::from_ne_bytes(nonce));
    let (sender, inputs) = tokio::sync::mpsc::channel(2);
    // The terminal echoes the two halves apart: what has them together is the shell's answer.
    let (head, tail) = nonce.split_at(8);
    let first = ConsoleRequest {
        vm: vm.to_owned(),
        input: format!("echo {head}''{tail}\n").into(),
    };
    sender.send(first).await?;
    let mut outputs = service
        .console(ReceiverStream::new(inputs))
        .await?
        .into_inner();
    let mut seen = Vec::new();
    while let Some(part) = outputs.message().await? {
        seen.extend_from_slice(&part.output);
        if String::from_utf8_lossy(&seen).contains(&nonce) {
            return Ok(());
        }
    }
    anyhow::bail!("it ended after {:?}", String::from_utf8_lossy(&seen))
}

/// What was taken of the host's memory while it was merged, bytes.
struct Merged {
    least: u64,
    after: Duration,
    last: u64,
    end: Duration,
}

/// Waits until merging has saved little more for a while. Guests that still take memory hide what is saved.
fn merged(free: u64) -> anyhow::Result<Merged> {
    let begun = Instant::now();
    let mut still = 0;
    let mut merged = Merged {
        least: free.saturating_sub(host::available()?),
        after: Duration::ZERO,
        last: 0,
        end: Duration::ZERO,
    };
    while merged.end < MERGING && still < STILL {
        sleep(WHILE);
        merged.last = free.saturating_sub(host::available()?);
        merged.end = begun.elapsed();
        eprintln!("    {} MiB taken", merged.last >> 20);
        still = if merged.last + LITTLE < merged.least {
            0
        } else {
            still + 1
        };
        if merged.last < merged.least {
            (merged.least, merged.after) = (merged.last, merged.end);
        }
    }
    Ok(merged)
}
