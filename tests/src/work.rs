//! Running programs in guests, as a user does.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::{cluster::Cluster, fpagent};

/// What a program in a guest printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code of `fpagent exec`.
    pub code: i32,
    /// Its standard output.
    pub out: Vec<u8>,
    /// Its standard error.
    pub err: String,
}

/// `fpagent exec`, as a command that is not started yet.
pub fn command(
    cluster: &Cluster,
    through: usize,
    options: &[&str],
    vm: &str,
    words: &[&str],
) -> Command {
    let mut command = Command::new(fpagent::binary());
    command
        .args(["exec", "--addr", &cluster.node(through).address()])
        .args(options)
        .arg(vm)
        .arg("--")
        .args(words);
    command
}

/// Runs a program in a VM, through a node, without input.
pub fn exec(cluster: &Cluster, through: usize, vm: &str, words: &[&str]) -> anyhow::Result<Output> {
    let mut command = command(cluster, through, &[], vm, words);
    output(command.stdin(Stdio::null()), &[])
}

/// The same, with input.
pub fn exec_with(
    cluster: &Cluster,
    through: usize,
    vm: &str,
    words: &[&str],
    input: &[u8],
) -> anyhow::Result<Output> {
    let mut command = command(cluster, through, &["-i"], vm, words);
    output(command.stdin(Stdio::piped()), input)
}

fn output(command: &mut Command, input: &[u8]) -> anyhow::Result<Output> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let writer = child.stdin.take().map(|mut stdin| {
        let input = input.to_vec();
        // A program that ends before it has read all is no failure of this.
        std::thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let output = child.wait_with_output()?;
    if let Some(writer) = writer {
        writer.join().ok().context("the writer panicked")?;
    }
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
