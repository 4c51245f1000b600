//! Callers who want to wear an agent out: connections that say nothing, and messages that are larger than any may be.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use agent::peers::INCARNATION;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use harness::{channels, cluster::Cluster, fpagent, processes, wait_for};
use http_body::Frame;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tonic::{
    Code, Status,
    codegen::{Body, http},
    transport::Channel,
};
use tower::{Service as _, ServiceExt as _};

/// Connections of which nobody says anything.
const SILENT: usize = 10_000;
/// The most descriptors that they may cost the agent: its bound on handshakes, and what it has anyway.
const MOST_FILES: usize = 1024 + 200;
/// And the most memory, bytes.
const MOST_MEMORY: u64 = 96 << 20;
/// How long somebody else may wait for an answer meanwhile, on two processors that others use too.
const PROMPT: Duration = Duration::from_secs(5);
/// How long one may stand that says nothing: the agent gives it 10 s.
const LONGEST: Duration = Duration::from_secs(20);

#[test]
fn ten_thousand_connections_that_say_nothing_keep_nobody_out() -> anyhow::Result<()> {
    let files = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            ..files
        },
    )?;
    let cluster = Cluster::start(1)?;
    let node = cluster.node(1);
    let pid = node.pid().context("no agent")?;
    let certs = node.data.join("certs/admin").display().to_string();
    let address = format!("https://{}", node.listen);
    let ask = || -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let options = ["--addr", &address, "--certs", &certs, "--timeout", "20s"];
        fpagent::run(None, &[&["node", "ls"], &options[..]].concat())?.success()?;
        Ok(begun.elapsed())
    };
    let alone = ask()?;
    processes::forget_peak(pid)?;
    let (_, before) = processes::memory(pid)?;

    let begun = Instant::now();
    let mut silent = Vec::with_capacity(SILENT);
    let (mut longest, mut most_files) = (alone, 0);
    for number in 0..SILENT {
        silent.push((TcpStream::connect(&node.listen)?, Instant::now()));
        if number % 500 == 499 {
            longest = longest.max(ask()?);
            most_files = most_files.max(fs::read_dir(format!("/proc/{pid}/fd"))?.count());
        }
    }
    let opened = begun.elapsed();
    longest = longest.max(ask()?);
    node.fp(&["status"])?.success()?;
    // All of them are closed, by themselves.
    for (connection, since) in &mut silent {
        let left = LONGEST.saturating_sub(since.elapsed());
        connection.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match connection.read(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                anyhow::bail!("one stands for {:?}", since.elapsed())
            }
            // Closed, or broken off.
            Ok(0) | Err(_) => {}
            Ok(_) => anyhow::bail!("one was answered"),
        }
    }
    let (peak, _) = processes::memory(pid)?;
    let more = peak.saturating_sub(before);
    eprintln!(
        "{SILENT} connections in {opened:.1?}: an answer took {longest:.1?} at most, {alone:.1?} before; {most_files} descriptors, {} KiB more",
        more >> 10
    );
    ensure!(longest < PROMPT, "somebody else waited for {longest:?}");
    ensure!(
        most_files < MOST_FILES,
        "the agent had {most_files} descriptors"
    );
    ensure!(more < MOST_MEMORY, "the agent took {more} bytes");
    wait_for("the descriptors to be closed", LONGEST, || {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok((files < 200).then_some(()))
    })?;
    // They are told of, and not each of them.
    let log = fs::read_to_string(node.data.join("audit.log"))?;
    let told = log
        .lines()
        .filter(|line| line.contains("said nothing") || line.contains("took too long"));
    let told = told.count();
    ensure!((1..=100).contains(&told), "{told} lines");
    Ok(())
}

/// What a message says that it has, bytes.
const ANNOUNCED: u32 = 1 << 30;
/// What may have been sent of it until it is refused: what is on its way in any case.
const MOST_SENT: u64 = 64 << 20;

/// A message of [`ANNOUNCED`] bytes, sent as fast as it is taken.
struct Endless {
    sent: Arc<AtomicU64>,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        static CHUNK: [u8; 1 << 16] = [b'x'; 1 << 16];
        let sent = self.sent.load(Ordering::Relaxed);
        let data = match sent {
            // Not compressed, and so long.
            0 => Bytes::from([&[0][..], &ANNOUNCED.to_be_bytes()].concat()),
            sent if sent >= u64::from(ANNOUNCED) => return Poll::Ready(None),
            _ => Bytes::from_static(&CHUNK),
        };
        self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

/// Sends it to a call. What the answer's status is, and how much was sent until then.
async fn send(channel: &Channel, call: &str, incarnation: &str) -> anyhow::Result<(Status, u64)> {
    let sent = Arc::new(AtomicU64::new(0));
    let body = Endless {
        sent: Arc::clone(&sent),
    };
    let request = http::Request::post(format!("http://agent.forkypig/{call}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(INCARNATION, incarnation)
        .body(tonic::body::Body::new(body))?;
    let mut channel = channel.clone();
    let answering = async {
        let answer = channel.ready().await?.call(request).await?;
        let said = Status::from_header_map(answer.headers());
        let mut body = std::pin::pin!(answer.into_body());
        let mut status = said;
        while status.is_none() {
            let frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await;
            match frame.transpose()? {
                Some(frame) => {
                    status = frame.trailers_ref().and_then(Status::from_header_map);
                }
                None => anyhow::bail!("it ends without a status"),
            }
        }
        status.context("no status")
    };
    let status = tokio::time::timeout(Duration::from_secs(30), answering).await;
    let status = status.with_context(|| format!("{call} hangs"))??;
    Ok((status, sent.load(Ordering::Relaxed)))
}

#[tokio::test]
async fn a_message_of_a_gibibyte_is_refused_at_its_beginning() -> anyhow::Result<()> {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await??;
    let node = cluster.node(1);
    let pid = node.pid().context("no agent")?;
    let folder = tempfile::tempdir()?;
    let token = node.json(&["token", "create"])?;
    let token = token["token"].as_str().context("no token")?;
    let status = node.json(&["status"])?;
    let before = status["stateDigest"].clone();
    let incarnation = status["incarnation"].as_str().context("no incarnation")?;
    let (admin, peer) = (
        channels::as_admin(node)?,
        channels::as_node(node, node, &folder.path().join("node"))?,
    );
    processes::forget_peak(pid)?;
    let (_, memory) = processes::memory(pid)?;

    let all = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET)?;
    let mut calls = Vec::new();
    for file in &all.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            calls.extend(
                service
                    .method
                    .iter()
                    .map(|method| format!("{name}/{}", method.name())),
            );
        }
    }
    ensure!(calls.len() > 50, "{calls:?}");
    for call in &calls {
        let channel = if call.starts_with("forkypig.peer.") {
            peer.clone()
        } else if call.starts_with("forkypig.v1.JoinService") {
            channels::as_joiner(node, token)?
        } else {
            admin.clone()
        };
        let (status, sent) = send(&channel, call, incarnation)
            .await
            .with_context(|| call.clone())?;
        ensure!(status.code() == Code::OutOfRange, "{call}: {status:?}");
        ensure!(sent < MOST_SENT, "{call} took {sent} bytes");
    }
    let (peak, _) = processes::memory(pid)?;
    let more = peak.saturating_sub(memory);
    eprintln!("{} calls: {} KiB more", calls.len(), more >> 10);
    ensure!(more < MOST_MEMORY, "the agent took {more} bytes");
    let after = node.json(&["status"])?["stateDigest"].clone();
    ensure!(before.is_string() && before == after, "something changed");
    let log = fs::read_to_string(node.data.join("audit.log"))?;
    for call in &calls {
        let line = log.lines().find(|line| {
            line.contains(&format!("\"call\":\"{call}\"")) && line.contains("out-of-range")
        });
        ensure!(line.is_some(), "no line about {call}");
    }
    // The token is still good.
    let newcomer = cluster.newcomer("node2")?;
    Cluster::join(&newcomer, token)?.success()
}
