//! What is known of a VM's guest, and how it is reached.

use proto::v1;
use serde::Serialize;

use super::image::guest_agent_word;

/// What a guest says about itself, as it is printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct GuestView {
    pub agent: &'static str,
    pub agent_version: String,
    pub os: String,
    pub kernel: String,
    pub hostname: String,
    pub addresses: Vec<String>,
    pub memory_bytes: u64,
    pub available_bytes: u64,
}

impl From<v1::GuestInfo> for GuestView {
    fn from(guest: v1::GuestInfo) -> Self {
        Self {
            agent: guest_agent_word(guest.agent()),
            agent_version: guest.agent_version,
            os: guest.os,
            kernel: guest.kernel,
            hostname: guest.hostname,
            addresses: guest.addresses,
            memory_bytes: guest.memory_bytes,
            available_bytes: guest.available_bytes,
        }
    }
}

/// A VM's network, as it is printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct NetworkView {
    pub kind: &'static str,
    pub no_egress: bool,
}

impl From<v1::Network> for NetworkView {
    fn from(network: v1::Network) -> Self {
        Self {
            kind: match network.kind() {
                v1::NetworkKind::Unspecified | v1::NetworkKind::User => "user",
                v1::NetworkKind::None => "none",
            },
            no_egress: network.no_egress,
        }
    }
}

/// Where a published port is reached, as it is printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct PortView {
    pub guest_port: u32,
    pub address: String,
    pub port: u32,
}

impl From<v1::PublishedPort> for PortView {
    fn from(port: v1::PublishedPort) -> Self {
        Self {
            guest_port: port.guest_port,
            address: port.address,
            port: port.port,
        }
    }
}

/// A network and its ports in a column.
pub(super) fn network_text(network: &NetworkView, publish: &[u32]) -> String {
    let egress = if network.no_egress { ",no-egress" } else { "" };
    let ports: String = publish.iter().map(|port| format!(",{port}")).collect();
    format!("{}{egress}{ports}", network.kind)
}
