//! Which node does what of an operation: a fork's children may be on several.

use super::{
    ids::NodeId,
    model::{Operation, OperationKind, State},
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
        let is_to_capture = || {
            let snapshot = self.snapshots.get(&operation.snapshot);
            operation.vm.is_some() && snapshot.is_none_or(|snapshot| snapshot.content.is_none())
        };
        let is_open = |number: &u32| !operation.results.contains_key(number);
        (operation.node == node && is_to_capture())
            || (0..operation.count)
                .filter(is_open)
                .any(|number| self.node_of_child(operation, number) == node)
    }
}
