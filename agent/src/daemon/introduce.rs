//! What a node tells its cluster when it starts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use qemu::host;
use raft::state::{Accelerator, Capacity, Command};

use crate::{
    node::Node,
    trust::authority::{self, load_certificate},
};

/// Has the state know of the certificate that `fpagent init` made, so that it is listed and can be revoked. Its owner may have taken it away
/// before the agent started first.
async fn note_first_admin(node: &Node, certs: &Path) {
    let file = certs.join("cert.pem");
    let certificate = match load_certificate(&file) {
        Ok(certificate) => certificate,
        Err(error) => {
            tracing::debug!(%error, "the first administrator's certificate is elsewhere");
            return;
        }
    };
    let authority = node.authority();
    let read = authority::user_of(&certificate)
        .and_then(|user| Ok((user, authority.has_signed(&certificate)?)));
    match read {
        // One of an authority that was replaced was noted before, or counts no more.
        Ok((user, true)) if !node.state().certificates.contains_key(&user.certificate) => {
            let command = Command::IssueCertificate {
                id: user.certificate,
                name: user.name,
                owner: user.owner,
                role: user.role,
                expires_at: user.expires_at,
                authority: authority.fingerprint(),
                replace: false,
            };
            node.report(command).await;
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "it is not known whose certificate this is");
        }
    }
}

/// Founds the cluster if this is its first node, and tells the cluster what this node has to offer.
pub(super) async fn introduce(node: Arc<Node>, admin_certs: PathBuf) {
    if node.identity.is_founder() && node.state().cluster.is_none() {
        if let Err(error) = node.raft.initialize().await {
            tracing::error!(%error, "the cluster cannot be founded");
        }
        let command = Command::Found {
            cluster: node.cluster(),
            name: node.identity.name.clone(),
            address: node.identity.advertise.clone(),
        };
        node.report(command).await;
    }
    if node.identity.is_founder() {
        note_first_admin(&node, &admin_certs).await;
    }
    let checks = crate::doctor::check(&node);
    let accelerators = host::accelerators()
        .into_iter()
        .map(|accelerator| match accelerator {
            qemu::spec::Accelerator::Kvm => Accelerator::Kvm,
            qemu::spec::Accelerator::Tcg => Accelerator::Tcg,
        });
    let capacity = Capacity {
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_bytes: host::memory_bytes(),
        qemu_version: node.fitness.qemu.clone().unwrap_or_default(),
        accelerators: accelerators.collect(),
        processor: node.fitness.processor.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        newest_version: raft::version::newest(),
        problems: crate::doctor::problems(&checks),
    };
    let address = node.identity.advertise.clone();
    node.report(Command::ReportNode {
        node: node.id(),
        address,
        capacity,
    })
    .await;
}
