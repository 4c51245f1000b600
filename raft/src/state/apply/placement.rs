//! Where new VMs go: what the planner is told of the state, and of what is asked for. It is asked when a command is applied, which all
//! nodes do in one order, so that of two requests at the same time the second one finds what the first one took.

use std::collections::{BTreeMap, BTreeSet};

use super::{check_labels_in, invalid};
use crate::state::{
    command::{Candidate, Constraints, Placing, Room},
    ids::{NodeId, VmId},
    loads::{memory_of_boot, memory_of_fork},
    model::{Accelerator, Capacity, Content, Image, Labels, Node, State, VmSpec},
    names,
    owners::Actor,
    placement::{Host, Order, Refusal, Request, Unfit, places},
    response::{Kind, Rejection},
};

/// Disk that each new VM begins with, bytes: an overlay's tables, a record, a console.
const EACH_DISK: u64 = 1 << 20;
/// What a stream is taken to have while nobody knows, bytes.
const STREAM_GUESS: u64 = 1 << 20;
/// How many VMs and labels a request may be kept apart from.
const MAX_APART: usize = 16;
/// How long the name of one may be, with its owner's.
const MAX_VM: usize = 2 * names::MAX_NAME + 1;

/// What is asked for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// By whom: others' VMs are not there for somebody, also not to be apart from.
    pub by: &'a Actor,
    /// The labels that the VMs will have.
    pub labels: &'a Labels,
    /// Which nodes may take them.
    pub constraints: &'a Constraints,
    /// Which nodes are online, and what they have free.
    pub candidates: &'a [Candidate],
    /// How many.
    pub count: u32,
}

/// Refuses constraints that can never be right.
pub(super) fn check(constraints: &Constraints) -> Result<(), Rejection> {
    check_labels_in("nodeLabels", &constraints.node_labels)?;
    let apart_from = &constraints.apart_from;
    if apart_from.len() > MAX_APART {
        return Err(invalid("apartFrom", format!("must be at most {MAX_APART}")));
    }
    for what in apart_from {
        match what.split_once('=') {
            Some((key, value)) => {
                let label = Labels::from([(key.to_owned(), value.to_owned())]);
                check_labels_in("apartFrom", &label)?;
            }
            None if what.is_empty() || what.len() > MAX_VM => {
                return Err(invalid("apartFrom", "must name VMs, or be KEY=VALUE"));
            }
            None => {}
        }
    }
    Ok(())
}

/// The node for a VM that boots from an image.
pub(super) fn of_vm(
    state: &State,
    wanted: &Wanted<'_>,
    asked: Option<&str>,
    spec: &VmSpec,
    image: &Image,
) -> Result<NodeId, Rejection> {
    let nodes = Nodes::of(state, wanted, asked)?;
    let request = Request {
        count: wanted.count,
        order: Order::Lightest,
        memory_bytes: memory_of_boot(spec.memory_bytes),
        cpus: spec.cpus,
        disk_bytes: EACH_DISK,
        one_each: nodes.one_each,
    };
    let image_bytes = bytes_of(image);
    let hosts = nodes.hosts(|node, host| {
        host.unfit = host.unfit.or_else(|| unable(node, spec.accelerator));
        if !image.nodes.contains(&node.id) {
            (host.moves_bytes, host.disk_bytes) = (image_bytes, image_bytes);
        }
    });
    let chosen = places(&request, &hosts).map_err(|refusal| refused(wanted, refusal))?;
    // All that were asked for have a place.
    chosen.first().copied().ok_or(Rejection::NoCapacity {
        short: wanted.count,
        wanted: wanted.count,
        reasons: Vec::new(),
    })
}

/// A moment of a VM, and what restoring it takes.
pub(super) struct Moment<'a> {
    /// Where it is, or one of the nodes that hold it.
    pub node: NodeId,
    /// All of them.
    pub holders: &'a BTreeSet<NodeId>,
    pub lineage: VmId,
    pub spec: &'a VmSpec,
    /// What is in it; `None` while it is to be captured.
    pub content: Option<&'a Content>,
    pub accelerator: Accelerator,
    pub processor: String,
    pub qemu_version: String,
}

impl Moment<'_> {
    fn stream_bytes(&self) -> u64 {
        self.content.map_or(0, |content| content.stream_bytes)
    }

    /// Memory of its own that a fork begins with, as far as is known.
    pub(super) fn own_bytes(&self) -> u64 {
        memory_of_fork(self.spec.memory_bytes, self.stream_bytes())
    }

    /// Why it cannot be restored on a node.
    fn unfit<'a>(&'a self, node: &'a Node) -> Option<Unfit<'a>> {
        if let Some(unable) = unable(node, self.accelerator) {
            return Some(unable);
        }
        let Capacity {
            qemu_version,
            processor,
            ..
        } = node.capacity.as_ref()?;
        if *qemu_version != self.qemu_version {
            return Some(Unfit::OtherQemu {
                has: qemu_version,
                wanted: &self.qemu_version,
            });
        }
        let is_other = self.accelerator == Accelerator::Kvm && *processor != self.processor;
        is_other.then_some(Unfit::OtherProcessor {
            has: processor,
            wanted: &self.processor,
        })
    }

    /// What a node lacks of it, bytes: all, and what of that is known.
    fn lacking(&self, state: &State, node: NodeId) -> (u64, u64) {
        if self.holders.contains(&node) {
            return (0, 0);
        }
        let image = state.images.get(&self.spec.image);
        let image = image.filter(|image| !image.nodes.contains(&node));
        let image = image.map_or(0, |image| bytes_of(image));
        let has_base = state
            .vms
            .has_line(node, self.lineage, self.spec.memory_bytes);
        let (moves, known) = match (self.content, has_base) {
            (Some(content), true) => (content.stream_bytes, content.stream_bytes),
            (Some(content), false) => {
                let all = content.stream_bytes.saturating_add(content.base_bytes);
                (all.saturating_add(content.layer_bytes), all)
            }
            (None, true) => (STREAM_GUESS, 0),
            (None, false) => (self.spec.memory_bytes, 0),
        };
        // Whatever is there, it does not hold it.
        let moves = moves.saturating_add(image).max(1);
        (moves, known.saturating_add(image))
    }
}

/// The nodes for forks of one request, in the order of their numbers.
pub(super) fn of_forks(
    state: &State,
    moment: &Moment<'_>,
    placing: &Placing,
    wanted: &Wanted<'_>,
) -> Result<Vec<NodeId>, Rejection> {
    let (nodes, order) = match placing {
        Placing::WithSource => (Nodes::with_source(state, wanted, moment.node)?, Order::Near),
        Placing::On(node) => (Nodes::of(state, wanted, Some(node))?, Order::Near),
        Placing::Near => (Nodes::of(state, wanted, None)?, Order::Near),
        Placing::Spread => (Nodes::of(state, wanted, None)?, Order::Spread),
    };
    let request = Request {
        count: wanted.count,
        order,
        memory_bytes: moment.own_bytes(),
        cpus: moment.spec.cpus,
        disk_bytes: EACH_DISK,
        one_each: nodes.one_each,
    };
    let stays = *placing == Placing::WithSource;
    let memory_bytes = moment.spec.memory_bytes;
    let hosts = nodes.hosts(|node, host| {
        if !stays {
            host.unfit = host.unfit.or_else(|| moment.unfit(node));
        }
        (host.moves_bytes, host.disk_bytes) = moment.lacking(state, node.id);
        if !state.vms.has_line(node.id, moment.lineage, memory_bytes) {
            host.shared_bytes = memory_bytes;
        }
    });
    places(&request, &hosts).map_err(|refusal| refused(wanted, refusal))
}

/// The nodes that are looked at, and what matters of a request to them.
struct Nodes<'a> {
    state: &'a State,
    looked_at: Vec<&'a Node>,
    rooms: BTreeMap<NodeId, Option<Room>>,
    /// Whether what is away is taken all the same.
    waits: bool,
    node_labels: &'a Labels,
    /// Nodes that have what the request is to be apart from, and what.
    apart: BTreeMap<NodeId, &'a str>,
    /// Whether each takes one of the request at most.
    one_each: bool,
}

impl<'a> Nodes<'a> {
    /// All, or the one that is asked for.
    fn of(state: &'a State, wanted: &Wanted<'a>, asked: Option<&str>) -> Result<Self, Rejection> {
        let looked_at: Vec<&Node> = match asked {
            None => state.nodes.values().map(|node| &**node).collect(),
            Some(asked) => {
                let node = names::node(state, asked)?;
                check_schedulable(node)?;
                vec![node]
            }
        };
        Self::new(state, wanted, looked_at, false)
    }

    /// The one that has what is forked. If it is away it carries it out when it is back.
    fn with_source(
        state: &'a State,
        wanted: &Wanted<'a>,
        source: NodeId,
    ) -> Result<Self, Rejection> {
        let node = state.nodes.get(&source);
        if let Some(node) = node {
            check_schedulable(node)?;
        }
        let looked_at = node.map(|node| &**node).into_iter().collect();
        Self::new(state, wanted, looked_at, true)
    }

    fn new(
        state: &'a State,
        wanted: &Wanted<'a>,
        looked_at: Vec<&'a Node>,
        waits: bool,
    ) -> Result<Self, Rejection> {
        let Constraints {
            node_labels,
            apart_from,
        } = wanted.constraints;
        let by = wanted.by;
        let whose = (!by.is_admin).then_some(by.owner.as_str());
        let (mut apart, mut one_each) = (BTreeMap::new(), false);
        for what in apart_from {
            match what.split_once('=') {
                Some((key, value)) => {
                    let there = state.vms.nodes_labelled(key, value, whose);
                    apart.extend(there.map(|node| (node, what.as_str())));
                    one_each |= wanted.labels.get(key).is_some_and(|has| has == value);
                }
                None => {
                    apart.insert(names::vm(state, by, what)?.node, what.as_str());
                }
            }
        }
        let rooms = wanted.candidates.iter();
        Ok(Self {
            state,
            looked_at,
            rooms: rooms.map(|one| (one.node, one.room)).collect(),
            waits,
            node_labels,
            apart,
            one_each,
        })
    }

    /// What the planner is told of each; `more`: what only who asks knows.
    fn hosts<'n>(&'n self, more: impl Fn(&'n Node, &mut Host<'n>)) -> Vec<Host<'n>> {
        let host = |node: &&'n Node| {
            let node: &'n Node = node;
            let capacity = node.capacity.as_ref();
            let mut host = Host {
                node: node.id,
                name: &node.name,
                zone: node.zone(),
                unfit: self.unfit(node),
                // Of who has not said yet and is not asked to, nothing is known.
                memory_bytes: capacity.map_or(u64::MAX, |capacity| capacity.memory_bytes),
                cpus: capacity.map_or(1, |capacity| capacity.cpus),
                load: self.state.vms.load_of(node.id),
                vms: self.state.vms.count_of(node.id),
                room: self.rooms.get(&node.id).copied().flatten(),
                shared_bytes: 0,
                moves_bytes: 0,
                disk_bytes: 0,
            };
            more(node, &mut host);
            host
        };
        self.looked_at.iter().map(host).collect()
    }

    /// Why a node takes none, whatever is placed.
    fn unfit(&self, node: &'a Node) -> Option<Unfit<'a>> {
        if !node.schedulable {
            return Some(Unfit::Cordoned);
        }
        if !self.waits && !self.rooms.contains_key(&node.id) {
            return Some(Unfit::Offline);
        }
        let mut lacking = self.node_labels.iter();
        if let Some((key, value)) =
            lacking.find(|(key, value)| node.labels.get(*key) != Some(value))
        {
            return Some(Unfit::Unlabelled { key, value });
        }
        self.apart.get(&node.id).map(|what| Unfit::Has(what))
    }
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

fn refused(wanted: &Wanted<'_>, refusal: Refusal) -> Rejection {
    Rejection::NoCapacity {
        short: refusal.short,
        wanted: wanted.count,
        reasons: refusal.reasons,
    }
}

/// Bytes of an image's files.
fn bytes_of(image: &Image) -> u64 {
    let files = [&image.kernel, &image.initrd].into_iter().flatten();
    let files = files.chain(image.disk.as_ref().map(|disk| &disk.blob));
    files.fold(0, |sum, blob| sum.saturating_add(blob.size_bytes))
}

/// Why a node cannot run what takes this accelerator.
fn unable(node: &Node, accelerator: Accelerator) -> Option<Unfit<'_>> {
    let Some(capacity) = &node.capacity else {
        return Some(Unfit::Unreported);
    };
    if capacity.qemu_version.is_empty() {
        return Some(Unfit::NoQemu);
    }
    let has = match accelerator {
        Accelerator::Auto => !capacity.accelerators.is_empty(),
        Accelerator::Kvm | Accelerator::Tcg => capacity.accelerators.contains(&accelerator),
    };
    (!has).then_some(Unfit::Lacks(accelerator))
}
