//! Finds an agent and calls it: addresses are tried in turn, calls are sent again under the same request id.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use proto::v1::{
    Group, ListGroupsRequest, ListMapsRequest, ListOperationsRequest, ListSnapshotsRequest,
    ListVmsRequest, Map, Operation, Snapshot, Vm, cluster_service_client::ClusterServiceClient,
    event_service_client::EventServiceClient, guest_service_client::GuestServiceClient,
    image_service_client::ImageServiceClient, join_service_client::JoinServiceClient,
    lease_service_client::LeaseServiceClient, map_service_client::MapServiceClient,
    node_service_client::NodeServiceClient, operation_service_client::OperationServiceClient,
    owner_service_client::OwnerServiceClient, snapshot_service_client::SnapshotServiceClient,
    vm_service_client::VmServiceClient,
};
use rustls::ClientConfig;
use tokio::time::{self, Instant};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use super::{
    failure::{Failure, FailureKind},
    retry::{Patience, Step, Trouble, classify},
};
use crate::trust::{
    names,
    tls::{
        AGENT_SERVER_NAME, client,
        connect::{Target, channel},
    },
    token::JoinToken,
};

/// What is said of 1,000 forks comes in one message.
const MAX_ANSWER: usize = 64 << 20;

/// Where an agent is, as the user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix:///run/fpagent/agent.sock`
    Unix(PathBuf),
    /// `https://HOST:PORT`
    Https(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(path) = text
            .strip_prefix("unix://")
            .filter(|path| path.starts_with('/'))
        {
            return Ok(Self::Unix(path.into()));
        }
        let address = text
            .strip_prefix("https://")
            .map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        match address {
            Some(address) => match names::check_address(address) {
                Ok(()) => Ok(Self::Https(address.to_owned())),
                Err(error) => Err(error.to_string()),
            },
            None => Err(format!(
                "{text:?} is neither unix:///PATH nor https://HOST:PORT"
            )),
        }
    }
}

/// The agents that can be asked.
#[derive(Debug)]
pub struct Reach {
    agents: Vec<Channel>,
    /// The one that answered last: it is asked first.
    preferred: Cell<usize>,
    timeout: Duration,
}

/// One try of a call.
#[derive(Debug, Clone)]
pub struct Attempt {
    channel: Channel,
    remaining: Duration,
}

macro_rules! services {
    ($($(#[$doc:meta])* $name:ident: $client:ident,)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
        }
    )*};
}

impl Attempt {
    /// A request with the time that is left as its deadline.
    pub fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.remaining);
        request
    }

    services! {
        /// The cluster and its tokens.
        cluster: ClusterServiceClient,
        /// For newcomers.
        join: JoinServiceClient,
        /// Nodes.
        nodes: NodeServiceClient,
        /// Working inside VMs.
        guests: GuestServiceClient,
        /// Images.
        images: ImageServiceClient,
        /// VMs and forks.
        vms: VmServiceClient,
        /// Snapshots.
        snapshots: SnapshotServiceClient,
        /// Operations.
        operations: OperationServiceClient,
        /// Owners.
        owners: OwnerServiceClient,
        /// Leases, and how long things are kept.
        leases: LeaseServiceClient,
        /// Maps that are left to the cluster.
        maps: MapServiceClient,
        /// What happens.
        events: EventServiceClient,
    }
}

impl Attempt {
    /// All VMs.
    ///
    /// # Errors
    /// As the agent answers.
    pub async fn list_vms<T: From<Vm>>(&self) -> Result<Response<Vec<T>>, Status> {
        let request = self.request(ListVmsRequest {});
        whole(self.vms().list_vms(request).await?, |part| part.vms).await
    }

    /// All groups.
    ///
    /// # Errors
    /// As the agent answers.
    pub async fn list_groups<T: From<Group>>(&self) -> Result<Response<Vec<T>>, Status> {
        let request = self.request(ListGroupsRequest {});
        let parts = self.vms().list_groups(request).await?;
        whole(parts, |part| part.groups).await
    }

    /// All maps that are left to the cluster.
    ///
    /// # Errors
    /// As the agent answers.
    pub async fn list_maps<T: From<Map>>(&self) -> Result<Response<Vec<T>>, Status> {
        let request = self.request(ListMapsRequest {});
        whole(self.maps().list_maps(request).await?, |part| part.maps).await
    }

    /// All snapshots.
    ///
    /// # Errors
    /// As the agent answers.
    pub async fn list_snapshots<T: From<Snapshot>>(&self) -> Result<Response<Vec<T>>, Status> {
        let request = self.request(ListSnapshotsRequest {});
        let parts = self.snapshots().list_snapshots(request).await?;
        whole(parts, |part| part.snapshots).await
    }

    /// All operations.
    ///
    /// # Errors
    /// As the agent answers.
    pub async fn list_operations<T: From<Operation>>(&self) -> Result<Response<Vec<T>>, Status> {
        let request = self.request(ListOperationsRequest {});
        let parts = self.operations().list_operations(request).await?;
        whole(parts, |part| part.operations).await
    }
}

/// A list that comes in parts, each made into what is wanted while the next is on its way.
async fn whole<P, M, T: From<M>>(
    parts: Response<Streaming<P>>,
    items: impl Fn(P) -> Vec<M>,
) -> Result<Response<Vec<T>>, Status> {
    let mut parts = parts.into_inner();
    let mut all = Vec::new();
    while let Some(part) = parts.message().await? {
        all.extend(items(part).into_iter().map(T::from));
    }
    Ok(Response::new(all))
}

impl Reach {
    /// For a user: over the network with the certificates in a folder.
    ///
    /// # Errors
    /// A wrong usage when an `https` address comes without certificates; what is wrong with those.
    pub fn for_user(
        addresses: &[Address],
        certs: Option<&Path>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let mut tls: Option<Arc<ClientConfig>> = None;
        let mut agents = Vec::with_capacity(addresses.len());
        for address in addresses {
            let target = match address {
                Address::Unix(path) => Target::Unix(path.clone()),
                Address::Https(address) => {
                    let config = match &tls {
                        Some(config) => config.clone(),
                        None => tls.insert(user_tls(certs)?).clone(),
                    };
                    tls_target(address, config)
                }
            };
            agents.push(channel(target));
        }
        Ok(Self::new(agents, timeout))
    }

    /// For the agent itself, on a connection of somebody's to its own API.
    pub fn within(agent: Channel, timeout: Duration) -> Self {
        Self::new(vec![agent], timeout)
    }

    /// For a newcomer with a token.
    pub fn for_joiner(token: &JoinToken, timeout: Duration) -> Result<Self, Failure> {
        let config = client::for_joiner(token)?;
        let agents = token
            .addresses
            .iter()
            .map(|address| channel(tls_target(address, config.clone())))
            .collect();
        Ok(Self::new(agents, timeout))
    }

    fn new(agents: Vec<Channel>, timeout: Duration) -> Self {
        Self {
            agents,
            preferred: Cell::new(0),
            timeout,
        }
    }

    /// Asks for something. The call is sent again, to one agent after the other, as long as `retry` finds it worthwhile.
    pub async fn call<T>(
        &self,
        call: impl AsyncFn(Attempt) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.until_answered(call, "").await
    }

    /// Changes something, like [`Reach::call`]: every try must carry this request id, so that nothing happens twice.
    pub async fn change<T>(
        &self,
        request_id: &str,
        call: impl AsyncFn(Attempt) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let hint = format!(
            "it may still happen: look, or repeat the command with --request-id {request_id}"
        );
        self.until_answered(call, &hint).await
    }

    async fn until_answered<T>(
        &self,
        call: impl AsyncFn(Attempt) -> Result<Response<T>, Status>,
        when_open: &str,
    ) -> Result<T, Failure> {
        let timed_out = || {
            Failure::new(
                FailureKind::TimedOut,
                format!("no answer within {:?}", self.timeout),
                when_open,
            )
        };
        let begun = Instant::now();
        let mut patience = Patience::new(self.agents.len(), self.timeout);
        loop {
            let Some(remaining) = self
                .timeout
                .checked_sub(begun.elapsed())
                .filter(|left| !left.is_zero())
            else {
                return Err(timed_out());
            };
            let attempt = Attempt {
                channel: self.agents[self.preferred.get()].clone(),
                remaining,
            };
            let status = match time::timeout(remaining, call(attempt)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(timed_out()),
            };
            let trouble = classify(&status);
            match patience.after(trouble, begun.elapsed()) {
                Step::Again(pause) => {
                    self.preferred
                        .set((self.preferred.get() + 1) % self.agents.len());
                    time::sleep(pause).await;
                }
                Step::GiveUp => {
                    return Err(match trouble {
                        Trouble::TimedOut => timed_out(),
                        Trouble::Broken => broken(&status, when_open),
                        _ => status.into(),
                    });
                }
            }
        }
    }
}

/// What to say when a connection broke, and what to do about it.
pub fn broken(status: &Status, hint: &str) -> Failure {
    let message = format!("the connection to the agent broke: {}", status.message());
    Failure::new(FailureKind::Unreachable, message, hint)
}

fn tls_target(address: &str, config: Arc<ClientConfig>) -> Target {
    Target::Tls {
        address: address.to_owned(),
        server_name: AGENT_SERVER_NAME.to_owned(),
        config,
    }
}

fn user_tls(certs: Option<&Path>) -> Result<Arc<ClientConfig>, Failure> {
    let hint = "name the folder with --certs or FPAGENT_CERTS: `fpagent init` makes one, DATA_DIR/certs/admin";
    let certs = certs.ok_or_else(|| Failure::usage("an https address needs certificates", hint))?;
    client::for_user(certs).map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("unix:///a/b".parse(), Ok(Address::Unix("/a/b".into())));
        assert_eq!("https://h:1/".parse(), Ok(Address::Https("h:1".to_owned())));
        for text in [
            "",
            "h:1",
            "http://h:1",
            "https://h",
            "unix://a",
            "https://h:1/x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn https_needs_certificates() {
        let addresses = [Address::Https("h:1".to_owned())];
        let failure = Reach::for_user(&addresses, None, Duration::from_secs(1)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
    }
}
