//! Mutual TLS 1.3 between agents and from clients, and plain connections over the local Unix socket.
//!
//! [`server`] decides who a peer is, [`own`] has what a node shows of itself, [`accept`] turns listeners into connections that know their peer, [`connect`] makes
//! channels to agents, [`within`] an agent's to itself.

pub mod accept;
pub mod client;
pub mod connect;
pub mod own;
pub mod server;
mod signatures;
pub mod trusted;
pub mod within;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The server name that clients and newcomers ask for: every node answers to it.
pub const AGENT_SERVER_NAME: &str = "agent.forkypig";

/// The server name that other nodes ask for: only this node answers to it.
pub fn node_server_name(id: u64) -> String {
    format!("node-{id}.forkypig")
}

/// The number in such a name.
fn node_of_server_name(name: &str) -> Option<u64> {
    name.strip_prefix("node-")?
        .strip_suffix(".forkypig")?
        .parse()
        .ok()
}

/// What both sides speak.
const ALPN_HTTP2: &[u8] = b"h2";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests;
