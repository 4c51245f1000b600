//! Putting the processes of groups' members on their groups' networks.

use std::{sync::Arc, time::Duration};

use raft::state::{InGroup, State, VmId};
use tokio::time::sleep;

use super::{VmHandle, command::Command};
use crate::{node::Node, switch::Member};

/// After a try that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Plugs a VM in that has a process and is not: into its group's network or, where it has left its group, into one where nobody else is, so
/// that what it sends is taken from it.
pub fn plug_soon(node: &Arc<Node>, state: &State, vm: VmId) {
    let group = state.vms.get(&vm).map(|vm| vm.group.clone());
    let (Some(group), Some(handle)) = (group, node.vms.get(vm)) else {
        return;
    };
    if !node.switch.begin(vm) {
        return;
    }
    let context = Arc::clone(node);
    let plugging = async move {
        if let Err(problem) = plug_begun(&context, vm, &handle, group.as_ref()).await {
            tracing::warn!(%vm, problem, "a VM is not on its group's network; trying again");
            tokio::select! {
                () = context.cancel.cancelled() => {}
                () = sleep(PAUSE) => {}
            }
            context.wake.notify_one();
        }
    };
    node.tasks.spawn_on(plugging, node.vms.threads());
}

/// Plugs a process in, and returns when it is.
pub async fn plug(node: &Node, vm: VmId, handle: &VmHandle, group: &InGroup) -> Result<(), String> {
    // Nobody else has the turn for one that does not run yet.
    node.switch.begin(vm);
    plug_begun(node, vm, handle, Some(group)).await
}

async fn plug_begun(
    node: &Node,
    vm: VmId,
    handle: &VmHandle,
    group: Option<&InGroup>,
) -> Result<(), String> {
    let member = match group {
        Some(group) => Member {
            group: group.id,
            number: number(group),
        },
        None => Member {
            group: vm,
            number: 0,
        },
    };
    let plugged = async {
        let asked = handle.ask(|done| Command::GroupEnd { done }).await;
        let (end, pid) = asked.map_err(|error| error.to_string()).flatten()?;
        node.switch.plug(&member, &end).await?;
        Ok::<_, String>(pid)
    };
    let (pid, outcome) = match plugged.await {
        Ok(pid) => (pid, Ok(())),
        Err(problem) => (0, Err(problem)),
    };
    node.switch.end(vm, pid, outcome.clone());
    outcome
}

/// A member's number, of which there are not more than a group may have.
pub fn number(group: &InGroup) -> u8 {
    u8::try_from(group.number).unwrap_or(u8::MAX)
}
