//! Channels to agents, as programs other than `fpagent` have them, and all calls that there are.

use std::{fs, path::Path};

use agent::trust::{
    tls::{
        AGENT_SERVER_NAME, client,
        connect::{Target, channel},
    },
    token::JoinToken,
};
use anyhow::Context as _;
use tonic::transport::Channel;

use crate::cluster::Agent;

/// As somebody with a certificate: `ca.pem`, `cert.pem` and `key.pem` in a folder.
pub fn as_user(agent: &Agent, certs: &Path) -> anyhow::Result<Channel> {
    Ok(channel(Target::Tls {
        address: agent.listen.clone(),
        server_name: AGENT_SERVER_NAME.to_owned(),
        config: client::for_user(certs)?,
    }))
}

/// As the cluster's first administrator.
pub fn as_admin(agent: &Agent) -> anyhow::Result<Channel> {
    as_user(agent, &agent.data.join("certs/admin"))
}

/// As whoever has a token.
pub fn as_joiner(agent: &Agent, token: &str) -> anyhow::Result<Channel> {
    let token: JoinToken = token.parse()?;
    Ok(channel(Target::Tls {
        address: agent.listen.clone(),
        server_name: AGENT_SERVER_NAME.to_owned(),
        config: client::for_joiner(&token)?,
    }))
}

/// With a node's own certificate, as one who took it would have it, in a folder that is made for it.
pub fn as_node(agent: &Agent, of: &Agent, folder: &Path) -> anyhow::Result<Channel> {
    copy_node_certificate(of, folder)?;
    as_user(agent, folder)
}

/// Copies a node's certificate to where a client takes one from.
pub fn copy_node_certificate(of: &Agent, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    for (from, to) in [
        ("ca.pem", "ca.pem"),
        ("node.pem", "cert.pem"),
        ("node.key.pem", "key.pem"),
    ] {
        fs::copy(of.data.join("certs").join(from), folder.join(to))
            .with_context(|| format!("{from} of {}", of.name))?;
    }
    Ok(())
}
