//! Running the `fpagent` command.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context as _;
use serde_json::Value;

use crate::network::Namespace;

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("FPAGENT").map_or_else(
        || crate::repository().join("target/release/fpagent"),
        PathBuf::from,
    )
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Answer {
    /// The output as JSON, when the command succeeded.
    pub fn json(&self) -> anyhow::Result<Value> {
        self.success()?;
        serde_json::from_str(&self.out).with_context(|| format!("not JSON: {}", self.out))
    }

    /// Fails when the command did.
    pub fn success(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.code == 0,
            "exit code {}: {}",
            self.code,
            self.err.trim()
        );
        Ok(())
    }

    /// Fails when the command did not, or said something else. Its error is one line.
    pub fn refused(&self, words: &[&str]) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.code == 1,
            "expected a refusal, got exit code {}: {}{}",
            self.code,
            self.out,
            self.err
        );
        let line = self.err.trim();
        anyhow::ensure!(!line.contains('\n'), "more than one line: {line}");
        for word in words {
            anyhow::ensure!(line.contains(word), "{word:?} is not in: {line}");
        }
        Ok(())
    }
}

/// Runs `fpagent` with these arguments against the agent at this address.
pub fn run(address: Option<&str>, args: &[&str]) -> anyhow::Result<Answer> {
    run_on(None, address, args)
}

/// The same, on a host.
pub fn run_on(
    host: Option<&Namespace>,
    address: Option<&str>,
    args: &[&str],
) -> anyhow::Result<Answer> {
    let mut command = command(host, address, args);
    let output = command.output().with_context(|| {
        format!(
            "{}: build it with `cargo build --release -p fp-agent`",
            binary().display()
        )
    })?;
    Ok(Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The command as it would be run.
pub fn command(host: Option<&Namespace>, address: Option<&str>, args: &[&str]) -> Command {
    let mut command = match host {
        Some(host) => host.command(binary()),
        None => Command::new(binary()),
    };
    command
        .args(args)
        .stdin(Stdio::null())
        .env_remove("FPAGENT_ADDR")
        .env_remove("FPAGENT_CERTS");
    if let Some(address) = address {
        command.env("FPAGENT_ADDR", address);
    }
    command
}

/// Changes and reads, one after the other, through whichever node answers, until it is told to end: how often. None may fail.
pub fn work(addresses: &str, goes_on: &AtomicBool) -> anyhow::Result<u32> {
    let mut rounds = 0;
    while goes_on.load(Ordering::Relaxed) {
        rounds += 1;
        let label = format!("round={rounds}");
        run(Some(addresses), &["node", "label", "node1", &label])?.success()?;
        let node = run(Some(addresses), &["node", "show", "node1", "-o", "json"])?;
        let label = node.json()?["labels"]["round"].clone();
        let is_new = label.as_str() == Some(rounds.to_string().as_str());
        anyhow::ensure!(is_new, "round {rounds}: {label}");
    }
    Ok(rounds)
}
