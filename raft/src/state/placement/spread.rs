//! As many in each zone, and on each node of one.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{Request, Taker};
use crate::state::ids::NodeId;

/// The next place of a node: how many of the request are before it there, what has to be brought, the load with it, how many VMs the node
/// has, its number; and its number among those that take some.
type Place = (u32, u64, u64, usize, NodeId, usize);

/// A zone's next places, the best first, and how many of the request it has.
#[derive(Default)]
struct Zone {
    places: BinaryHeap<Reverse<Place>>,
    here: u32,
}

/// One after the other goes to a zone that has the fewest, there to a node that has the fewest.
pub(super) fn spread(request: &Request, takers: &[Taker<'_>]) -> Vec<NodeId> {
    let place = |number: usize, here: u32| -> Option<Reverse<Place>> {
        let Taker { host, most } = takers[number];
        let load = host.load_with(request, here + 1);
        let vms = host.vms + here as usize;
        let place = (here, host.moves_bytes, load, vms, host.node, number);
        (here < most).then_some(Reverse(place))
    };
    let mut zones: BTreeMap<&str, Zone> = BTreeMap::new();
    for (number, taker) in takers.iter().enumerate() {
        let zone = zones.entry(taker.host.zone).or_default();
        zone.places.extend(place(number, 0));
    }
    let mut zones: Vec<Zone> = zones.into_values().collect();
    let best = |zones: &[Zone], number: usize| {
        let Zone { places, here } = &zones[number];
        places
            .peek()
            .map(|Reverse(place)| Reverse((*here, *place, number)))
    };
    let mut next: BinaryHeap<_> = (0..zones.len())
        .filter_map(|number| best(&zones, number))
        .collect();
    let mut nodes = Vec::with_capacity(request.count as usize);
    while nodes.len() < request.count as usize {
        let Some(Reverse((_, (here, _, _, _, node, taker), number))) = next.pop() else {
            break;
        };
        nodes.push(node);
        let zone = &mut zones[number];
        zone.places.pop();
        zone.places.extend(place(taker, here + 1));
        zone.here += 1;
        next.extend(best(&zones, number));
    }
    nodes
}
