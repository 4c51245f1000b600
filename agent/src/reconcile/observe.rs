//! What is: the VMs' tasks, the operations under way, the files that are here.

use std::collections::{BTreeMap, BTreeSet};

use raft::state::{SnapshotId, State};

use super::plan::{Files, Observed};
use crate::{
    node::Node,
    store::Look,
    vms::launch::{base_name, layer_name, stream_name},
};

/// Looks at everything that planning needs.
pub fn observe(node: &Node, state: &State) -> Observed {
    let wanted: BTreeSet<_> = state.vms.of(node.id()).map(|vm| vm.spec.image).collect();
    Observed {
        vms: node.vms.observe(),
        operations: node.forks.observe(),
        images: wanted
            .into_iter()
            .filter(|image| node.has_image(state, *image))
            .collect(),
        fetching: node.fetching(),
        held: node.pool.held(),
        snapshots: snapshots(node, state),
        storing: node.store.is_busy(),
    }
}

/// How the files of this node's snapshots are.
fn snapshots(node: &Node, state: &State) -> BTreeMap<SnapshotId, Files> {
    let layout = &node.vms.engine().layout;
    let ours = state
        .snapshots
        .values()
        .filter(|snapshot| snapshot.nodes.contains(&node.id()));
    ours.filter_map(|snapshot| {
        let content = snapshot.content.as_ref()?;
        let whole = layout.base(&base_name(content.base)).exists()
            && layout.stream(&stream_name(content.stream)).exists()
            && content
                .layers
                .iter()
                .all(|layer| layout.layer(&layer_name(*layer)).exists());
        let files = match node.store.look(content) {
            _ if !whole => Files::Gone,
            Look::Good => Files::Good,
            Look::Unverified => Files::Unverified,
            Look::Damaged(reason) => Files::Damaged(reason),
        };
        Some((snapshot.id, files))
    })
    .collect()
}
