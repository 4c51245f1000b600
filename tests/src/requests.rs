//! Requests that are under way while a test does something else.

use std::thread::{JoinHandle, spawn};

use anyhow::anyhow;

use crate::{
    cluster::{Cluster, PATIENCE},
    fpagent::{self, Answer},
    wait_for,
};

/// A request that is under way.
#[derive(Debug)]
pub struct Request(JoinHandle<anyhow::Result<Answer>>);

impl Request {
    /// Makes one through a node.
    pub fn begin(cluster: &Cluster, through: usize, args: &[&str]) -> Self {
        let address = cluster.node(through).address();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self(spawn(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            fpagent::run(Some(&address), &args)
        }))
    }

    /// Makes one, and gives its operation once that is open.
    pub fn begun(
        cluster: &Cluster,
        through: usize,
        args: &[&str],
    ) -> anyhow::Result<(Self, String)> {
        let request = Self::begin(cluster, through, args);
        let open = wait_for("the operation to be open", PATIENCE, || {
            let list = cluster.node(through).json(&["op", "ls"])?;
            let mut all = list["items"].as_array().into_iter().flatten();
            let open = all.find(|one| one["state"] == "open");
            Ok(open.and_then(|one| Some(one["id"].as_str()?.to_owned())))
        })?;
        Ok((request, open))
    }

    /// What it was answered.
    pub fn answer(self) -> anyhow::Result<Answer> {
        let joined = self.0.join();
        joined.map_err(|_| anyhow!("the client panicked"))?
    }
}
