//! What is: the VMs' tasks, the operations under way, the files that are here.

use std::collections::BTreeSet;

use raft::state::{SnapshotId, State};

use super::plan::Observed;
use crate::{
    node::Node,
    vms::launch::{base_name, layer_name, stream_name},
};

/// Looks at everything that planning needs.
pub fn observe(node: &Node, state: &State) -> Observed {
    let wanted: BTreeSet<_> = state
        .vms
        .values()
        .filter(|vm| vm.node == node.id())
        .map(|vm| vm.spec.image)
        .collect();
    Observed {
        vms: node.vms.observe(),
        operations: node.forks.observe(),
        images: wanted
            .into_iter()
            .filter(|image| node.has_image(state, *image))
            .collect(),
        fetching: node.fetching(),
        snapshots: snapshots(node, state),
        snapshots_known: true,
    }
}

/// The snapshots of this node whose files are all there.
fn snapshots(node: &Node, state: &State) -> BTreeSet<SnapshotId> {
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
        whole.then_some(snapshot.id)
    })
    .collect()
}
