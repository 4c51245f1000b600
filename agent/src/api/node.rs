//! Nodes.

use std::{collections::BTreeSet, time::Duration};

use proto::v1::{
    CordonNodeRequest, DeleteNodeRequest, DeleteNodeResponse, DrainNodeRequest, GetNodeRequest,
    LabelNodeRequest, ListNodesRequest, ListNodesResponse, Node, NodeRoom,
    node_service_server::NodeService,
};
use raft::state::{Actor, Command, Kind, NodeId, Rejection, Response as Outcome, State, names};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

use super::{Api, asker::asked, request_key, unexpected};
use crate::{audit, convert, errors::ApiError, leases::LEASE};

/// How often is looked whether nodes are back, or the consensus has let one go.
const LOOK: Duration = Duration::from_millis(50);

#[tonic::async_trait]
impl NodeService for Api {
    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let mut nodes: Vec<_> = state
            .nodes
            .values()
            .map(|node| self.node_message(&state, &by, node))
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(ListNodesResponse { nodes }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let node = names::node(&state, &request.into_inner().node).map_err(ApiError::from)?;
        Ok(Response::new(self.node_message(&state, &by, node)))
    }

    async fn label_node(
        &self,
        request: Request<LabelNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let set = request.set;
        let command = Command::LabelNode {
            node: request.node,
            set,
            remove: request.remove,
        };
        Ok(Response::new(self.changed_node(
            &by,
            self.change(&by, key, command, deadline).await?,
        )?))
    }

    async fn cordon_node(
        &self,
        request: Request<CordonNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let command = Command::CordonNode {
            node: request.node,
            schedulable: request.schedulable,
        };
        Ok(Response::new(self.changed_node(
            &by,
            self.change(&by, key, command, deadline).await?,
        )?))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let key = request_key(&request, |request| &mut request.request_id);
        let (voters, silent) = self.voters_for_drain(&request, deadline).await?;
        let command = Command::DrainNode {
            node: request.node,
            voters,
            silent,
            force: request.force,
            rest: request.suspend,
        };
        Ok(Response::new(self.changed_node(
            &by,
            self.change(&by, key, command, deadline).await?,
        )?))
    }

    async fn delete_node(
        &self,
        request: Request<DeleteNodeRequest>,
    ) -> Result<Response<DeleteNodeResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        audit::about(|| format!("node {}", request.node));
        let key = request_key(&request, |request| &mut request.request_id);
        // One that is sent again is about a node that is gone.
        self.read(deadline).await?;
        if !self.was_carried_out(&by, &key) {
            self.check_majority_without(&request.node, deadline).await?;
        }
        let command = Command::DeleteNode {
            node: request.node,
            force: request.force,
        };
        let id = match self.change(&by, key, command, deadline).await? {
            Outcome::DeletedNode(id) => id,
            other => return Err(unexpected(other).into()),
        };
        let removed = self.node.state().removed.get(&id).cloned();
        let removed = removed.ok_or_else(|| {
            ApiError::Internal(format!("nobody remembers any more what node {id} was"))
        })?;
        tracing::info!(node = id, name = removed.name, "a node was removed");
        self.until_let_go(id, &removed.name, deadline).await?;
        let names = |all: Vec<&String>| all.into_iter().cloned().collect();
        Ok(Response::new(DeleteNodeResponse {
            id,
            name: removed.name.clone(),
            vms: names(removed.vms.values().map(|vm| &vm.name).collect()),
            snapshots: names(removed.snapshots.values().collect()),
            images: names(removed.images.values().collect()),
        }))
    }
}

impl Api {
    /// Refuses to remove a node without which no majority of the voters would be online. Right after an election nobody is known to
    /// be: that is waited for.
    async fn check_majority_without(&self, node: &str, deadline: Instant) -> Result<(), ApiError> {
        let patience = deadline.min(Instant::now() + LEASE);
        loop {
            let state = self.read(deadline).await?;
            let node = names::node(&state, node)?;
            let online = self.node.leases.online().unwrap_or_default();
            let voters = self.node.raft.status().voters;
            let Some(away) = away_without(&state, node.id, &voters, &online) else {
                return Ok(());
            };
            if Instant::now() >= patience {
                let name = node.name.clone();
                let problem = format!(
                    "cannot be removed now: without it no majority of the voters would be online ({} away: start the agents there, \
                     or remove those nodes first)",
                    match away.len() {
                        1 => format!("node {} is", away[0]),
                        _ => format!("nodes {} are", away.join(", ")),
                    }
                );
                return Err(Rejection::WrongState {
                    kind: Kind::Node,
                    name,
                    problem,
                }
                .into());
            }
            sleep(LOOK).await;
        }
    }

    /// Who votes, and who of those is silent. Right after an election nobody is known to be online: where that would have the drain be
    /// refused, it is waited for.
    async fn voters_for_drain(
        &self,
        request: &DrainNodeRequest,
        deadline: Instant,
    ) -> Result<(Vec<NodeId>, Vec<NodeId>), ApiError> {
        let patience = deadline.min(Instant::now() + LEASE);
        loop {
            let state = self.read(deadline).await?;
            let node = names::node(&state, &request.node)?;
            let online = self.node.leases.online().unwrap_or_default();
            let voters: Vec<NodeId> = self.node.raft.status().voters.into_iter().collect();
            let is_silent = |voter: &NodeId| !online.contains(voter);
            let silent: Vec<NodeId> = voters.iter().copied().filter(is_silent).collect();
            let is_refused = state.check_drain(node, &voters, &silent).is_err();
            // What is drained stays so: the state says that.
            let by_silence = is_refused && state.check_drain(node, &voters, &[]).is_ok();
            if request.force || !by_silence || Instant::now() >= patience {
                return Ok((voters, silent));
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until others vote in a removed node's place: its host can be switched off then.
    async fn until_let_go(
        &self,
        node: NodeId,
        name: &str,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let let_go = async {
            if node == self.node.id() {
                return self.node.raft.removed(node).await;
            }
            loop {
                let status = self.node.raft.status();
                let is_led = status.leader.is_some_and(|leader| leader != node);
                if is_led && !status.changing && !status.voters.contains(&node) {
                    return;
                }
                sleep(LOOK).await;
            }
        };
        timeout_at(deadline, let_go)
            .await
            .map_err(|_| ApiError::Pending {
                what: format!(
                    "node {name} is a member no more; that others vote in its place (leave it running until then)"
                ),
                operation: None,
            })
    }

    fn node_message(&self, state: &State, by: &Actor, node: &raft::state::Node) -> Node {
        let mut message = convert::node(
            state,
            by,
            node,
            self.node.leases.online().as_ref(),
            &self.node.raft.status(),
        );
        let candidates = self.node.leases.candidates().unwrap_or_default();
        let said = candidates.iter().find(|one| one.node == node.id);
        let bytes = |mib: u32| u64::from(mib) << 20;
        message.room = said.and_then(|said| said.room).map(|room| NodeRoom {
            free_memory_bytes: bytes(room.memory_mib),
            free_disk_bytes: bytes(room.disk_mib),
            promised_memory_bytes: state.vms.load_of(node.id).promised_bytes(),
        });
        message
    }

    fn changed_node(&self, by: &Actor, outcome: Outcome) -> Result<Node, ApiError> {
        let Outcome::Node(id) = outcome else {
            return Err(unexpected(outcome));
        };
        let state = self.node.state();
        let node = names::node(&state, &id.to_string())?;
        Ok(self.node_message(&state, by, node))
    }
}

/// The nodes that are away, by name, where no majority of the voters would be online without a node. A learner that is online takes
/// its place.
fn away_without(
    state: &State,
    node: NodeId,
    voters: &BTreeSet<NodeId>,
    online: &BTreeSet<NodeId>,
) -> Option<Vec<String>> {
    let others = || {
        let others = state.nodes.values();
        others.filter(|other| other.id != node && other.has_started())
    };
    let left = others().filter(|other| voters.contains(&other.id)).count();
    let live = others().filter(|other| voters.contains(&other.id) && online.contains(&other.id));
    let stands_in = voters.contains(&node)
        && others().any(|other| !voters.contains(&other.id) && online.contains(&other.id));
    let (left, live) = (
        left + usize::from(stands_in),
        live.count() + usize::from(stands_in),
    );
    // Of the last one the state says so.
    if live * 2 > left || others().next().is_none() {
        return None;
    }
    let away = others().filter(|other| !online.contains(&other.id));
    Some(away.map(|other| other.name.clone()).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Nodes 1 to `count`, named n1, ….
    fn state(count: u64) -> State {
        let mut state = State::new();
        for id in 1..=count {
            let node = raft::state::Node {
                id,
                name: format!("n{id}"),
                address: "h:1".to_owned(),
                schedulable: true,
                labels: Default::default(),
                created_at: 1,
                capacity: None,
                start_by: None,
                trust: None,
                drain: None,
            };
            state.nodes.insert(id, Arc::new(node));
        }
        state
    }

    #[test]
    fn a_majority_of_the_voters_that_are_left_must_be_online() {
        let away = |count, node, voters: &[u64], online: &[u64]| {
            let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
            away_without(&state(count), node, &set(voters), &set(online))
        };
        let names = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(away(3, 2, &[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(away(3, 3, &[1, 2, 3], &[1, 2]), None, "it is dead itself");
        assert_eq!(away(3, 2, &[1, 2, 3], &[1, 2]), names(&["n3"]));
        assert_eq!(
            away(4, 2, &[1, 2, 3], &[1, 2, 4]),
            None,
            "4 takes its place"
        );
        assert_eq!(away(4, 4, &[1, 2, 3], &[1, 2]), None, "it has no vote");
        assert_eq!(away(2, 1, &[1], &[1, 2]), None);
        assert_eq!(away(2, 1, &[1], &[1]), names(&["n2"]));
        let five = &[1, 2, 3, 4, 5];
        assert_eq!(away(5, 5, five, &[1, 2, 3]), None);
        assert_eq!(away(5, 3, five, &[1, 2, 3]), names(&["n4", "n5"]));
    }
}
