//! What working inside a VM costs: becoming itself, running a program, bytes through one.

use std::{path::PathBuf, time::Instant};

use agent::trust::tls::connect::{Target, channel};
use anyhow::Context as _;
use proto::v1::{
    ExecRequest, ExecStart, exec_request::Part as In, exec_response::Part as Out,
    guest_service_client::GuestServiceClient,
};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    report::{Row, Series},
    run::Bench,
    scenario::IDLE,
};

/// A piece of what goes through a program.
const PIECE: usize = 64 << 10;

/// A call that runs a program: how long it took, how long the guest says it did, and what was printed, bytes. Milliseconds.
struct Ran {
    took: f64,
    inside: f64,
    bytes: u64,
}

impl Bench {
    /// Forks of a snapshot, one after the other, and in the last of them programs.
    pub fn inside(&self, rounds: u32, mib: u32) -> anyhow::Result<Vec<Row>> {
        self.boot("p", IDLE)?;
        self.fp(&["vm", "wait", "p", "--for", "ready"])?;
        self.fp(&["snapshot", "create", "p", "warm"])?;
        let (mut running, mut becoming, mut last) = (Vec::new(), Vec::new(), None);
        for round in 1..=rounds {
            let (fork, names) = self.fork(self.other, &["@warm"])?;
            let child = &fork["children"][0];
            let ms = |field: &str| child[field].as_f64().context("no time");
            anyhow::ensure!(child["failedSteps"] == Value::Array(vec![]), "{child}");
            running.push(ms("runningMs")?);
            becoming.push(ms("readyMs")? - ms("runningMs")?);
            match round {
                _ if round < rounds => self.remove(&names)?,
                _ => last = names.into_iter().next(),
            }
        }
        let vm = last.context("no round was asked for")?;
        self.fp(&["vm", "wait", &vm, "--for", "ready"])?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let (calls, copied) = runtime.block_on(async {
            let address = self.cluster.node(self.other).address();
            let socket = PathBuf::from(address.strip_prefix("unix://").context("no socket")?);
            let channel = channel(Target::Unix(socket));
            let mut calls = Vec::new();
            for _ in 0..20 {
                // A warm one is measured.
                run(&channel, &vm, &["true"], 0).await?;
            }
            for _ in 0..200 {
                calls.push(run(&channel, &vm, &["true"], 0).await?);
            }
            let copied = run(&channel, &vm, &["cat"], u64::from(mib) << 20).await?;
            Ok::<_, anyhow::Error>((calls, copied))
        })?;
        anyhow::ensure!(
            copied.bytes == u64::from(mib) << 20,
            "{} bytes came",
            copied.bytes
        );
        let over: Vec<f64> = calls.iter().map(|ran| ran.took - ran.inside).collect();
        let series = |what: &str, values: Vec<f64>, note: String| Row {
            what: what.to_owned(),
            running_ms: Series::of(values),
            note,
            ..Row::default()
        };
        let rate = f64::from(mib) / (copied.took / 1e3);
        Ok(vec![
            series("a fork of a snapshot: running", running, String::new()),
            series(
                "a fork of a snapshot: from running to ready",
                becoming,
                String::new(),
            ),
            series(
                "exec of true, node that does not hold the VM",
                calls.iter().map(|ran| ran.took).collect(),
                String::new(),
            ),
            series(
                "exec of true: as the guest sees it",
                calls.iter().map(|ran| ran.inside).collect(),
                String::new(),
            ),
            series("exec of true: what is above that", over, String::new()),
            series(
                &format!("{mib} MiB through exec of cat and back"),
                vec![copied.took],
                format!("{rate:.0} MiB/s"),
            ),
        ])
    }
}

async fn run(channel: &Channel, vm: &str, words: &[&str], input: u64) -> anyhow::Result<Ran> {
    let begun = Instant::now();
    let (requests, receiver) = mpsc::channel(4);
    let start = ExecStart {
        vm: vm.to_owned(),
        argv: words.iter().map(|word| word.to_string().into()).collect(),
        input: input > 0,
        ..ExecStart::default()
    };
    let part = |part| ExecRequest { part: Some(part) };
    requests.send(part(In::Start(start))).await?;
    let sending = tokio::spawn(async move {
        let piece = bytes::Bytes::from(vec![7; PIECE]);
        let mut left = input;
        while left > 0 {
            let next = piece.slice(..(left as usize).min(PIECE));
            left -= next.len() as u64;
            if requests.send(part(In::Input(next))).await.is_err() {
                return;
            }
        }
        // The call may have ended, which its answers tell.
        let _ended = requests.send(part(In::InputEnd(true))).await;
        requests.closed().await;
    });
    let mut client = GuestServiceClient::new(channel.clone());
    let mut answers = client
        .exec(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let mut bytes = 0;
    loop {
        let answer = answers
            .message()
            .await?
            .context("it ended without an end")?;
        match answer.part {
            Some(Out::Output(piece)) => bytes += piece.len() as u64,
            Some(Out::End(end)) => {
                sending.abort();
                return Ok(Ran {
                    took: begun.elapsed().as_secs_f64() * 1e3,
                    inside: end.took_us as f64 / 1e3,
                    bytes,
                });
            }
            Some(Out::Errors(_)) | None => {}
        }
    }
}
