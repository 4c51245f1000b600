//! The least load.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{Request, Taker};
use crate::state::ids::NodeId;

/// One after the other goes where the load is the least with it. So the largest load is as small as it can be: each place has a load that grows
/// with those before it on its host, and the lightest places are taken.
pub(super) fn balance(request: &Request, takers: &[Taker<'_>]) -> Vec<NodeId> {
    let next = |number: usize, here: u32| {
        let Taker { host, most } = takers[number];
        let load = host.load_with(request, here + 1);
        let moves = if here == 0 { host.moves_bytes } else { 0 };
        let vms = host.vms + here as usize;
        (here < most).then_some(Reverse((load, moves, vms, host.node, number, here)))
    };
    let mut places: BinaryHeap<_> = (0..takers.len())
        .filter_map(|number| next(number, 0))
        .collect();
    let mut nodes = Vec::with_capacity(request.count as usize);
    while nodes.len() < request.count as usize {
        let Some(Reverse((_, _, _, node, number, here))) = places.pop() else {
            break;
        };
        nodes.push(node);
        places.extend(next(number, here + 1));
    }
    nodes
}
