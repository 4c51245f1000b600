//! Groups: asking for their forks, and what is answered of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::future::join_all;
use proto::v1::{
    CapturedMember, DeleteGroupRequest, DeleteGroupResponse, ForkGroupRequest, ForkGroupResponse,
    ForkedVm, Group, GroupCopy, GroupMember, ListGroupsResponse,
};
use raft::state::{
    Actor, Command, NodeId, ObjectId, Operation, OperationId, Response, State, Vm, VmId, names,
};
use tokio::time::Instant;
use ulid::Ulid;

use super::{Api, carry::Answers, fork::child_message, lists::in_parts, request_key, unexpected};
use crate::{convert, errors::ApiError};

impl Api {
    /// Carries a group's fork out and waits for its end.
    pub(super) async fn fork_group_as_asked(
        &self,
        by: &Actor,
        request: ForkGroupRequest,
        arrived: Instant,
        deadline: Instant,
    ) -> Result<ForkGroupResponse, ApiError> {
        self.has_room()?;
        let key = request_key(&request, |request| &mut request.request_id);
        let mode = convert::capture_mode(request.mode());
        let command = Command::ForkGroup {
            operation: OperationId::from_ulid(Ulid::new().0),
            count: request.count,
            name: Some(request.name).filter(|name| !name.is_empty()),
            mode,
            life: self.life(request.keep.as_ref())?,
            candidates: self.node.candidates(),
            expires_at: self.expiry(),
            group: request.group,
        };
        let id = match self.change(by, key, command, deadline).await? {
            Response::Operation(id) => id,
            other => return Err(unexpected(other)),
        };
        let committed = arrived.elapsed();
        // All of them end together.
        self.ended_operation(id, deadline).await?;
        let state = self.node.state();
        let parts = state.parts_of_group(Some(id)).into_iter();
        let parts: Vec<Arc<Operation>> = parts
            .filter_map(|part| state.operations.get(&part).cloned())
            .collect();
        let ahead = |_: NodeId| committed;
        let copies = (0..parts.first().map_or(0, |first| first.count)).map(|number| {
            let members = parts.iter();
            let members = members.map(|part| child_message(&state, by, part, number, &ahead));
            copy_message(&state, id.child(number), members.collect())
        });
        let copies = copies.collect();
        let members: Vec<CapturedMember> = parts
            .iter()
            .map(|part| captured_message(&state, part))
            .collect();
        let pauses = members
            .iter()
            .filter_map(|member| Some(member.capture.as_ref()?.agent_pause_ms));
        Ok(ForkGroupResponse {
            operation: id.to_string(),
            // Each begins when all are ready, and ends when all are captured.
            pause_ms: pauses.fold(0.0, f64::max),
            members,
            copies,
        })
    }

    /// The groups that somebody has, by their names and owners.
    pub(super) fn groups(&self, state: Arc<State>, by: Actor) -> Answers<ListGroupsResponse> {
        let mut groups: BTreeMap<(String, String), Vec<Arc<Vm>>> = BTreeMap::new();
        for vm in state.vms.values() {
            let Some(group) = vm.group.as_ref().filter(|_| by.sees(&vm.ownership.owner)) else {
                continue;
            };
            let key = (group.name.clone(), vm.ownership.owner.clone());
            groups.entry(key).or_default().push(Arc::clone(vm));
        }
        let mut groups: Vec<Vec<Arc<Vm>>> = groups.into_values().collect();
        for members in &mut groups {
            members.sort_by_key(|vm| vm.group.as_ref().map(|group| group.number));
        }
        let online = self.node.leases.online();
        let shown = move |members: &Vec<Arc<Vm>>| {
            let members: Vec<&Arc<Vm>> = members.iter().collect();
            Some(message(&state, &by, &members, online.as_ref()))
        };
        in_parts(groups, shown, |groups| ListGroupsResponse { groups })
    }

    /// Deletes a group, and waits until its node has done that.
    pub(super) async fn delete_group_as_asked(
        &self,
        by: &Actor,
        request: DeleteGroupRequest,
        deadline: Instant,
    ) -> Result<DeleteGroupResponse, ApiError> {
        let key = request_key(&request, |request| &mut request.request_id);
        let state = self.read(deadline).await?;
        // Of one that is not there, or was deleted by the same request, that is said by who carries it out.
        let members: Vec<VmId> = names::group(&state, by, &request.group)
            .map(|members| members.iter().map(|vm| vm.id).collect())
            .unwrap_or_default();
        let command = Command::DeleteGroup {
            group: request.group,
            force: request.force,
        };
        match self.change(by, key, command, deadline).await? {
            Response::Done => {}
            other => return Err(unexpected(other)),
        }
        let purged = members
            .into_iter()
            .map(|vm| self.purged(ObjectId::Vm(vm), deadline));
        let purged = join_all(purged).await;
        Ok(DeleteGroupResponse {
            completed: purged.into_iter().all(|done| done),
        })
    }
}

/// A group, of its members. `online`: the nodes that are there, where that is known.
pub(super) fn message(
    state: &State,
    by: &Actor,
    members: &[&Arc<Vm>],
    online: Option<&BTreeSet<NodeId>>,
) -> Group {
    let first = members.first();
    let group = first.and_then(|vm| vm.group.as_ref());
    let member = |vm: &&Arc<Vm>| {
        let is_online = online.is_none_or(|online| online.contains(&vm.node));
        let shown = convert::vm(state, by, vm, None, is_online);
        GroupMember {
            number: shown.group_number,
            address: shown.group_address.clone(),
            state: shown.state,
            id: shown.id,
            name: shown.name,
            reason: shown.reason,
        }
    };
    Group {
        id: group.map_or_else(String::new, |group| group.id.to_string()),
        name: group.map_or_else(String::new, |group| group.name.clone()),
        owner: first.map_or_else(String::new, |vm| vm.ownership.owner.clone()),
        node: first.map_or_else(String::new, |vm| convert::node_name(state, vm.node)),
        members: members.iter().map(member).collect(),
    }
}

/// A copy whose members may have been deleted again.
fn copy_message(state: &State, id: VmId, members: Vec<ForkedVm>) -> GroupCopy {
    let there = members
        .iter()
        .find_map(|member| state.vms.get(&member.id.parse().ok()?)?.group.clone());
    let failed = members.iter().find(|member| !member.error.is_empty());
    GroupCopy {
        id: id.to_string(),
        name: there.map_or_else(String::new, |group| group.name),
        error: failed.map_or_else(String::new, |member| member.error.clone()),
        members,
    }
}

fn captured_message(state: &State, part: &Operation) -> CapturedMember {
    let snapshot = state.snapshots.get(&part.snapshot);
    let report = snapshot.and_then(|snapshot| Some(&snapshot.content.as_ref()?.report));
    CapturedMember {
        name: snapshot.map_or_else(String::new, |snapshot| snapshot.vm.name.clone()),
        operation: part.id.to_string(),
        snapshot: part.snapshot.to_string(),
        pause_ms: report.map_or(0.0, |report| convert::ms(report.pause_us)),
        capture: report.map(convert::report_message),
    }
}
