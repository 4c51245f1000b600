//! Those who use a cluster over the network, each with a certificate.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    cluster::{Agent, Cluster},
    fpagent::{self, Answer},
    session::Session,
};

/// Users with their certificates.
#[derive(Debug)]
pub struct Users {
    folder: tempfile::TempDir,
}

impl Users {
    /// Makes each a certificate: name, role and owner.
    pub fn of(cluster: &Cluster, users: &[(&str, &str, &str)]) -> anyhow::Result<Self> {
        let all = Self {
            folder: tempfile::tempdir()?,
        };
        for (name, role, owner) in users {
            let out = all.certs(name);
            let out = out.to_str().context("no text")?;
            let create = ["cert", "create", name, "--role", role, "--owner", owner];
            let made = cluster
                .node(1)
                .json(&[&create[..], &["--out", out]].concat())?;
            anyhow::ensure!(made["owner"] == *owner, "{made}");
        }
        Ok(all)
    }

    /// The folder with somebody's certificate.
    pub fn certs(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command as somebody gives it to an agent.
    fn command(&self, agent: &Agent, name: &str, args: &[&str]) -> anyhow::Result<Vec<String>> {
        let address = format!("https://{}", agent.listen);
        let certs = self.certs(name);
        let certs = certs.to_str().context("no text")?;
        let options = ["--addr", &address, "--certs", certs];
        Ok([&options, args]
            .concat()
            .iter()
            .map(|one| (*one).to_owned())
            .collect())
    }

    /// Runs one.
    pub fn run(&self, agent: &Agent, name: &str, args: &[&str]) -> anyhow::Result<Answer> {
        let command = self.command(agent, name, args)?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        fpagent::run(None, &[&["--timeout", "20s"], &command[..]].concat())
    }

    /// The same with its output as JSON.
    pub fn json(&self, agent: &Agent, name: &str, args: &[&str]) -> anyhow::Result<Value> {
        self.run(agent, name, &[&["-o", "json"], args].concat())?
            .json()
            .with_context(|| format!("{name}: {args:?}"))
    }

    /// One that goes on.
    pub fn session(&self, agent: &Agent, name: &str, args: &[&str]) -> anyhow::Result<Session> {
        let command = self.command(agent, name, args)?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        Session::of(&command)
    }
}
