//! Which node does what of an operation: a fork's children may be on several.

use super::{
    ids::{NodeId, OperationId},
    model::{Operation, OperationKind, OperationState, State},
};

impl State {
    /// The node that says what becomes of a fork's child: where that is to live, or, when it was deleted, the operation's.
    pub fn node_of_child(&self, operation: &Operation, number: u32) -> NodeId {
        let child = self.vms.get(&operation.id.child(number));
        child.map_or(operation.node, |child| child.node)
    }

    /// Whether a node has something left to do of an operation that is open: its capture, or a child of which nothing is known yet.
    pub fn has_part(&self, operation: &Operation, node: NodeId) -> bool {
        match operation.kind {
            OperationKind::Fork => {}
            // Who gives it away and who takes it; once it has arrived they are one.
            OperationKind::Move if !operation.has_arrived() => {
                return operation.node == node || operation.to == Some(node);
            }
            OperationKind::Move
            | OperationKind::Snapshot
            | OperationKind::Reset
            | OperationKind::Suspend => {
                return operation.node == node;
            }
        }
        self.is_to_capture(operation, node) || self.open_children(operation, node).next().is_some()
    }

    /// Whether a node has still to capture what an operation makes a snapshot of, or forks.
    pub(super) fn is_to_capture(&self, operation: &Operation, node: NodeId) -> bool {
        let snapshot = self.snapshots.get(&operation.snapshot);
        operation.node == node
            && operation.vm.is_some()
            && snapshot.is_none_or(|snapshot| snapshot.content.is_none())
    }

    /// The children of which nothing is known yet, and a node says what becomes of them.
    pub(super) fn open_children<'a>(
        &'a self,
        operation: &'a Operation,
        node: NodeId,
    ) -> impl Iterator<Item = u32> + 'a {
        (0..operation.count)
            .filter(|number| !operation.results.contains_key(number))
            .filter(move |number| self.node_of_child(operation, *number) == node)
    }

    /// The captures and forks that wait for a node.
    pub fn parts_of(&self, node: NodeId) -> Vec<OperationId> {
        let waits = |operation: &Operation| {
            operation.state == OperationState::Open
                && matches!(
                    operation.kind,
                    OperationKind::Snapshot | OperationKind::Fork
                )
                && self.has_part(operation, node)
        };
        let all = self.operations.values();
        all.filter(|operation| waits(operation))
            .map(|operation| operation.id)
            .collect()
    }
}
