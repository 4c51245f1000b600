//! The gRPC services of a node, and who may call what ([`access`]).

pub mod access;
mod asker;
pub mod authority;
mod carry;
mod cluster;
mod console;
mod event;
mod follow;
mod fork;
mod group;
mod guest;
mod image;
mod lease;
mod lists;
mod map;
mod moving;
mod node;
mod operation;
mod owner;
mod peer;
mod reset;
mod secrets;
mod snapshot;
mod vm;
mod wait;

pub use guest::answer_guests;
pub use peer::renew_leases;

use std::sync::Arc;

use prost::Message;
use proto::{
    peer::peer_service_server::PeerServiceServer,
    v1::{
        cluster_service_server::ClusterServiceServer, event_service_server::EventServiceServer,
        guest_service_server::GuestServiceServer, image_service_server::ImageServiceServer,
        join_service_server::JoinServiceServer, lease_service_server::LeaseServiceServer,
        map_service_server::MapServiceServer, node_service_server::NodeServiceServer,
        operation_service_server::OperationServiceServer, owner_service_server::OwnerServiceServer,
        snapshot_service_server::SnapshotServiceServer, vm_service_server::VmServiceServer,
    },
};
use raft::state::{
    Actor, Command, ForkSource, LOCAL_OWNER, ObjectName, RequestKey, Response, State,
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::{Request, service::Routes};
use ulid::Ulid;

use crate::{
    audit,
    errors::ApiError,
    node::Node,
    trust::{
        authority::unit_of,
        tls::{accept::Peer, server::PeerRole},
    },
};

/// How long a call may take whose caller does not say.
const DEFAULT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// The longest that a caller may ask for.
const LONGEST_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3600);

/// What all services share.
#[derive(Debug, Clone)]
pub struct Api {
    node: Arc<Node>,
}

/// Everything that a node serves, behind [`access`]. `raft` is the consensus's own service.
pub fn routes(
    node: &Arc<Node>,
    raft: raft::node::Service,
) -> Result<Routes, tonic_reflection::server::Error> {
    let api = Api {
        node: Arc::clone(node),
    };
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let (health, health_service) = tonic_health::server::health_reporter();
    // An agent that serves is healthy; what else is wrong is said by `GetStatus`.
    node.tasks.spawn(async move {
        health
            .set_service_status("", tonic_health::ServingStatus::Serving)
            .await
    });

    Ok(Routes::new(ClusterServiceServer::new(api.clone()))
        .add_service(NodeServiceServer::new(api.clone()))
        .add_service(ImageServiceServer::new(api.clone()))
        .add_service(VmServiceServer::new(api.clone()))
        .add_service(SnapshotServiceServer::new(api.clone()))
        .add_service(GuestServiceServer::new(api.clone()))
        .add_service(OperationServiceServer::new(api.clone()))
        .add_service(OwnerServiceServer::new(api.clone()))
        .add_service(LeaseServiceServer::new(api.clone()))
        .add_service(EventServiceServer::new(api.clone()))
        .add_service(MapServiceServer::new(api.clone()))
        .add_service(reflection)
        .add_service(health_service)
        .add_service(JoinServiceServer::new(api.clone()))
        .add_service(PeerServiceServer::new(api))
        .add_service(raft))
}

fn role<T>(request: &Request<T>) -> Option<&PeerRole> {
    request.extensions().get::<Peer>().map(|peer| &peer.role)
}

/// When a call's caller stops waiting, by its `grpc-timeout`; a little before, so that the answer still arrives.
fn deadline<T>(request: &Request<T>) -> Instant {
    deadline_within(request, LONGEST_PATIENCE)
}

/// The same, where a caller may ask for more or less than usual.
fn deadline_within<T>(request: &Request<T>, longest: std::time::Duration) -> Instant {
    let header = request
        .metadata()
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok());
    let patience = header
        .and_then(timeout_header)
        .unwrap_or(DEFAULT_PATIENCE)
        .min(longest);
    Instant::now() + patience.mul_f64(0.95)
}

/// `grpc-timeout` as gRPC over HTTP/2 defines it: up to eight digits and a unit.
fn timeout_header(text: &str) -> Option<std::time::Duration> {
    use std::time::Duration;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count.checked_mul(3600)?)),
        "M" => Some(Duration::from_secs(count.checked_mul(60)?)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A request's key: its id, or one made here, and the hash of everything else in it. `id` is the field in `body` that holds
/// the id, which is emptied so that it does not count.
fn request_key<M: Message + Clone>(body: &M, id: impl FnOnce(&mut M) -> &mut String) -> RequestKey {
    let mut body = body.clone();
    let id = std::mem::take(id(&mut body));
    let id = if id.is_empty() {
        Ulid::new().to_string()
    } else {
        id
    };
    let name = std::any::type_name::<M>();
    let digest = Sha256::new()
        .chain_update(name)
        .chain_update([0])
        .chain_update(body.encode_to_vec())
        .finalize();
    RequestKey {
        id,
        body: digest.into(),
    }
}

impl Api {
    /// Makes a change, as a request of somebody asks for it.
    async fn change(
        &self,
        by: &Actor,
        key: RequestKey,
        command: Command,
        deadline: Instant,
    ) -> Result<Response, ApiError> {
        audit::about(|| subject(by, &command));
        let outcome = self.node.propose_for(by, Some(key), command, deadline);
        Ok(outcome.await??)
    }

    /// Whether a request of somebody was carried out before, as far as this node knows: then there is nothing to prepare for.
    fn was_carried_out(&self, by: &Actor, key: &RequestKey) -> bool {
        let state = self.node.state();
        state.requests.get(&by.owner, &key.id).is_some()
    }

    /// The state, not older than the call.
    async fn read(&self, deadline: Instant) -> Result<Arc<State>, ApiError> {
        self.node.raft.read_barrier(deadline).await?;
        Ok(self.node.state())
    }

    /// Refuses new work while the disk is so full that the log might not go on.
    fn has_room(&self) -> Result<(), ApiError> {
        let free = self
            .node
            .free_bytes()
            .map_err(|error| ApiError::Internal(error.to_string()))?;
        if free < self.node.reserves.disk {
            return Err(ApiError::DiskFull(format!(
                "node {} has {} MiB left on its disk, and {} MiB are kept for its log",
                self.node.identity.name,
                free >> 20,
                self.node.reserves.disk >> 20
            )));
        }
        Ok(())
    }
}

/// What a change of somebody is about, for the audit log.
fn subject(by: &Actor, command: &Command) -> String {
    match command {
        Command::RevokeToken { id } => format!("token {id}"),
        Command::IssueCertificate {
            id,
            name,
            owner,
            role,
            ..
        } => {
            let role = unit_of(*role);
            match owner == name {
                true => format!("certificate {id} of {name}, {role}"),
                false => format!("certificate {id} of {name}, {role}, owner {owner}"),
            }
        }
        Command::RevokeCertificate { certificate } => format!("certificate {certificate}"),
        Command::ReplaceAuthority { is_compromised, .. } => match is_compromised {
            true => "authority, compromised".to_owned(),
            false => "authority".to_owned(),
        },
        Command::Join { name, address, .. } => format!("node {name} at {address}"),
        Command::LabelNode { node, .. }
        | Command::CordonNode { node, .. }
        | Command::DrainNode { node, .. }
        | Command::DeleteNode { node, .. } => {
            format!("node {node}")
        }
        Command::ImportImage { name, .. } => made(by, format!("image {name}")),
        Command::DeleteImage { image } => format!("image {image}"),
        Command::CreateVm { name, .. } => made(by, format!("VM {name}")),
        Command::SetPower { vm, action } => format!("VM {vm}, {action:?}"),
        Command::DeleteVm { vm, .. }
        | Command::ResetVm { vm, .. }
        | Command::ProtectVm { vm, .. }
        | Command::SuspendVm { vm, .. } => format!("VM {vm}"),
        Command::MoveVm { vm, node, .. } => match node {
            Some(node) => format!("VM {vm}, to node {node}"),
            None => format!("VM {vm}"),
        },
        Command::CreateSnapshot { vm, .. } => made(by, format!("VM {vm}")),
        Command::Fork { source, .. } => forked(by, source),
        Command::ForkGroup { group, .. } => made(by, format!("group {group}")),
        Command::DeleteGroup { group, .. } => format!("group {group}"),
        Command::CancelOperation { operation } => format!("operation {operation}"),
        Command::TagSnapshot { snapshot, .. }
        | Command::WarmSnapshot { snapshot, .. }
        | Command::ReplicateSnapshot { snapshot, .. }
        | Command::DeleteSnapshot { snapshot } => format!("snapshot {snapshot}"),
        Command::Share { object, with, stop } => {
            let what = called(object);
            let with = with.as_deref().unwrap_or("everyone");
            let shared = if *stop { "not shared" } else { "shared" };
            format!("{what}, {shared} with {with}")
        }
        Command::CreateLease { id, .. } => made(by, format!("lease {id}")),
        Command::RenewLease { lease } | Command::EndLease { lease } => format!("lease {lease}"),
        Command::StartMap { id, source, .. } => format!("map {id} of {}", forked(by, source)),
        Command::CancelMap { map } | Command::DeleteMap { map, .. } => format!("map {map}"),
        Command::SetLife { object, .. } => called(object),
        Command::SetQuota { owner, .. } | Command::DeleteQuota { owner } => {
            format!("quota of {owner}")
        }
        // What has no name of its own yet, and what nodes say by themselves.
        Command::CreateToken { id, .. } => format!("token {id}"),
        Command::Found { .. }
        | Command::WithdrawJoin { .. }
        | Command::ForgetNewcomers
        | Command::MoveNode { .. }
        // Told by who finishes it.
        | Command::FinishAuthority { .. }
        | Command::SignWithNewAuthority { .. }
        | Command::ReportTrust { .. }
        | Command::ReportNode { .. }
        | Command::RaiseVersion { .. }
        | Command::ReportImage { .. }
        | Command::ReportVms { .. }
        | Command::ReportSteps { .. }
        | Command::SnapshotReady { .. }
        | Command::GroupCaptured { .. }
        | Command::ReportGroup { .. }
        | Command::Arrive { .. }
        | Command::StayOnNode { .. }
        | Command::ReportChildren { .. }
        | Command::FailOperation { .. }
        | Command::CloseParts { .. }
        | Command::PlaceMap { .. }
        | Command::TakeMap { .. }
        | Command::ReportMap { .. }
        | Command::EndMap { .. }
        | Command::Expire
        | Command::LostSnapshot { .. }
        | Command::HoldSnapshot { .. }
        | Command::PlaceCopies { .. }
        | Command::TakeScheduled { .. }
        | Command::WakeNode { .. }
        | Command::GuardVms { .. }
        | Command::RestoreVms { .. }
        | Command::SecureSnapshot { .. }
        | Command::Purged { .. } => String::new(),
    }
}

/// An object as it was named.
fn called(object: &ObjectName) -> String {
    match object {
        ObjectName::Image(name) => format!("image {name}"),
        ObjectName::Vm(name) => format!("VM {name}"),
        ObjectName::Snapshot(name) => format!("snapshot {name}"),
    }
}

/// What a fork is about.
fn forked(by: &Actor, source: &ForkSource) -> String {
    let source = match source {
        ForkSource::Vm(vm) => format!("VM {vm}"),
        ForkSource::Snapshot { snapshot, vm } => {
            format!("snapshot {}@{snapshot}", vm.as_deref().unwrap_or_default())
        }
    };
    made(by, source)
}

/// With whose it is to be what comes of it, where an administrator may have said another owner.
fn made(by: &Actor, subject: String) -> String {
    match by.is_admin && by.owner != LOCAL_OWNER {
        true => format!("{subject}, owner {}", by.owner),
        false => subject,
    }
}

/// An answer of the state that does not fit the question.
fn unexpected(response: Response) -> ApiError {
    ApiError::Internal(format!("the state answered {response:?}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(timeout_header("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout_header("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout_header("x"), None);
        assert_eq!(timeout_header(""), None);
        assert_eq!(timeout_header("ß"), None);
    }

    #[test]
    fn the_id_does_not_count_for_the_body() {
        use proto::v1::DeleteVmRequest;
        let request = |vm: &str, id: &str| DeleteVmRequest {
            vm: vm.into(),
            force: false,
            request_id: id.into(),
        };
        let key = |request| request_key(&request, |r: &mut DeleteVmRequest| &mut r.request_id);
        assert_eq!(key(request("a", "1")).body, key(request("a", "2")).body);
        assert_ne!(key(request("a", "1")).body, key(request("b", "1")).body);
        assert!(!key(request("a", "")).id.is_empty());
    }

    #[test]
    fn maps_count_for_the_body_in_one_order() {
        use proto::v1::ForkRequest;
        let key = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            let request = ForkRequest {
                labels: labels.collect(),
                ..Default::default()
            };
            request_key(&request, |r: &mut ForkRequest| &mut r.request_id).body
        };
        let labels: Vec<(String, String)> =
            (0..20).map(|n| (n.to_string(), n.to_string())).collect();
        let mut labels: Vec<_> = labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let first = key(&labels);
        labels.reverse();
        assert_eq!(key(&labels), first);
        labels.pop();
        assert_ne!(key(&labels), first);
    }
}
