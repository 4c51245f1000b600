//! What is: the VMs' tasks, the operations under way, the files that are here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use raft::state::{SnapshotId, State};

use super::plan::{Files, Observed};
use crate::{
    node::Node,
    store::Look,
    vms::launch::{base_name, layer_name, stream_name},
};

/// Looks at everything that planning needs, and gives the state that it is to be planned with. That is taken last: of what an earlier one
/// does not know yet, what others have begun already would look like what nobody asked for.
pub fn observe(node: &Node, latest: impl FnOnce() -> Arc<State>) -> (Arc<State>, Observed) {
    let (vms, operations, held) = (node.vms.observe(), node.forks.observe(), node.pool.held());
    let (fetching, storing) = (node.fetching(), node.store.is_busy());
    let coming = node.transfers.coming();
    let plugged = node.switch.observe(|vm| node.pid_of(vm));
    // Before the state: it has been the cluster's then.
    let caught_up = node.forks.has_caught_up();
    let state = latest();
    let copies = state.snapshots.values();
    let copies = copies.filter(|snapshot| snapshot.copies.contains(&node.id()));
    let vms_here = state.vms.of(node.id()).map(|vm| vm.spec.image);
    let wanted: BTreeSet<_> = vms_here
        .chain(copies.map(|snapshot| snapshot.spec.image))
        .collect();
    let observed = Observed {
        vms,
        caught_up,
        operations,
        images: wanted
            .into_iter()
            .filter(|image| node.has_image(&state, *image))
            .collect(),
        fetching,
        held,
        snapshots: snapshots(node, &state),
        storing,
        coming,
        plugged,
    };
    (state, observed)
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
