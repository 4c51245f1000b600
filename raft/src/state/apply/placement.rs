//! Where a new VM goes.

use crate::state::{
    ids::NodeId,
    model::{Accelerator, Node, State},
    names,
    response::{Kind, Rejection},
};

/// What a VM needs of its node. Processors are no limit: more virtual than real ones are allowed.
pub(super) struct Needs {
    pub memory_bytes: u64,
    pub accelerator: Accelerator,
}

/// The node for a new VM: the user's choice if it can take it, else the candidate with the fewest VMs, the lowest number
/// first.
pub(super) fn choose(
    state: &State,
    asked: Option<&str>,
    candidates: &[NodeId],
    needs: &Needs,
) -> Result<NodeId, Rejection> {
    let consider = |node: &Node| -> Result<(), String> {
        if !candidates.contains(&node.id) {
            return Err(format!("node {} is offline", node.name));
        }
        fits(node, needs)
    };
    if let Some(asked) = asked {
        let node = names::node(state, asked)?;
        check_schedulable(node)?;
        consider(node).map_err(|reason| Rejection::NoCapacity {
            reasons: vec![reason],
        })?;
        return Ok(node.id);
    }

    let (mut fit, mut reasons) = (Vec::new(), Vec::new());
    for node in state.nodes.values() {
        let verdict = if node.schedulable {
            consider(node)
        } else {
            Err(format!("node {} is cordoned", node.name))
        };
        match verdict {
            Ok(()) => fit.push((state.vms.count_of(node.id), node.id)),
            Err(reason) => reasons.push(reason),
        }
    }
    fit.into_iter()
        .min()
        .map(|(_, node)| node)
        .ok_or(Rejection::NoCapacity { reasons })
}

/// Refuses a node that new VMs may not be placed on.
pub(super) fn check_schedulable(node: &Node) -> Result<(), Rejection> {
    if node.schedulable {
        return Ok(());
    }
    Err(Rejection::WrongState {
        kind: Kind::Node,
        name: node.name.clone(),
        problem: "is cordoned: new VMs are not placed there until it is uncordoned".to_owned(),
    })
}

fn fits(node: &Node, needs: &Needs) -> Result<(), String> {
    let name = &node.name;
    let Some(capacity) = &node.capacity else {
        return Err(format!("node {name} has not reported what it can do yet"));
    };
    if capacity.qemu_version.is_empty() {
        return Err(format!("node {name} has no usable QEMU"));
    }
    if needs.memory_bytes > capacity.memory_bytes {
        return Err(format!(
            "node {name} has {} bytes of memory, {} are asked for",
            capacity.memory_bytes, needs.memory_bytes
        ));
    }
    let has = |accelerator: Accelerator| capacity.accelerators.contains(&accelerator);
    match needs.accelerator {
        Accelerator::Auto if capacity.accelerators.is_empty() => Err(format!(
            "node {name} has no accelerator, not even emulation"
        )),
        Accelerator::Kvm if !has(Accelerator::Kvm) => Err(format!("node {name} has no usable KVM")),
        Accelerator::Tcg if !has(Accelerator::Tcg) => {
            Err(format!("node {name} has no software emulation"))
        }
        Accelerator::Auto | Accelerator::Kvm | Accelerator::Tcg => Ok(()),
    }
}
