//! Where a new VM goes.

use std::collections::BTreeSet;

use crate::state::{
    command::Placing,
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
    let takes = |node: &Node| consider(node, candidates).and_then(|()| fits(node, needs));
    if let Some(asked) = asked {
        let node = names::node(state, asked)?;
        check_schedulable(node)?;
        takes(node).map_err(|reason| Rejection::NoCapacity {
            reasons: vec![reason],
        })?;
        return Ok(node.id);
    }

    let (mut fit, mut reasons) = (Vec::new(), Vec::new());
    for node in state.nodes.values() {
        match takes(node) {
            Ok(()) => fit.push((state.vms.count_of(node.id), node.id)),
            Err(reason) => reasons.push(reason),
        }
    }
    fit.into_iter()
        .min()
        .map(|(_, node)| node)
        .ok_or(Rejection::NoCapacity { reasons })
}

/// A moment of a VM, and what restoring it takes.
pub(super) struct Moment {
    /// Where it is, or one of the nodes that hold it.
    pub node: NodeId,
    /// All of them.
    pub holders: BTreeSet<NodeId>,
    pub memory_bytes: u64,
    pub accelerator: Accelerator,
    pub processor: String,
    pub qemu_version: String,
}

impl Moment {
    /// Why it cannot be restored on a node; what is the same as where it was captured is not looked at there.
    fn check(&self, node: &Node) -> Result<(), String> {
        let needs = Needs {
            memory_bytes: self.memory_bytes,
            accelerator: self.accelerator,
        };
        fits(node, &needs)?;
        let (name, Some(capacity)) = (&node.name, &node.capacity) else {
            return Ok(());
        };
        if capacity.qemu_version != self.qemu_version {
            return Err(format!(
                "node {name} has QEMU {}, and QEMU {} captured it",
                capacity.qemu_version, self.qemu_version
            ));
        }
        if self.accelerator == Accelerator::Kvm && capacity.processor != self.processor {
            return Err(format!(
                "node {name} has another processor ({}) than it was captured on ({})",
                capacity.processor, self.processor
            ));
        }
        Ok(())
    }
}

/// The nodes for forks of one request, in the order of their numbers.
///
/// Spread, each goes to a node that has the fewest of the request's; of equals to one that holds what is forked, then to
/// the one with the fewest VMs, then to the one with the lowest number.
pub(super) fn of_forks(
    state: &State,
    moment: &Moment,
    placing: &Placing,
    candidates: &[NodeId],
    count: u32,
) -> Result<Vec<NodeId>, Rejection> {
    let only = match placing {
        Placing::WithSource => {
            // One that is away carries it out when it is back.
            if let Some(node) = state.nodes.get(&moment.node) {
                check_schedulable(node)?;
            }
            return Ok(vec![moment.node; count as usize]);
        }
        Placing::On(node) => {
            let node = names::node(state, node)?;
            check_schedulable(node)?;
            Some(node.id)
        }
        Placing::Spread => None,
    };
    let (mut fit, mut reasons) = (BTreeSet::new(), Vec::new());
    for node in state.nodes.values() {
        if only.is_some_and(|only| only != node.id) {
            continue;
        }
        match consider(node, candidates).and_then(|()| moment.check(node)) {
            Ok(()) => {
                let is_far = !moment.holders.contains(&node.id);
                fit.insert((0u32, is_far, state.vms.count_of(node.id), node.id));
            }
            Err(reason) => reasons.push(reason),
        }
    }
    if fit.is_empty() {
        return Err(Rejection::NoCapacity { reasons });
    }
    let mut next = || {
        let (here, is_far, vms, node) = fit.pop_first()?;
        fit.insert((here + 1, is_far, vms, node));
        Some(node)
    };
    Ok((0..count).filter_map(|_| next()).collect())
}

/// Why a node is not given new VMs.
fn consider(node: &Node, candidates: &[NodeId]) -> Result<(), String> {
    if !node.schedulable {
        return Err(format!("node {} is cordoned", node.name));
    }
    if !candidates.contains(&node.id) {
        return Err(format!("node {} is offline", node.name));
    }
    Ok(())
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
