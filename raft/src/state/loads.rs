//! What the VMs of each node take of it, counted as they come, go, start and stop: the planner asks for it, however many there are.

use std::collections::BTreeMap;

use super::{
    ids::{NodeId, VmId},
    model::{Phase, Vm},
    shared_map::SharedMap,
};

/// Private memory of a fork that has just been started, bytes: QEMU's own heap and buffers, and the pages that its stream brings.
/// Measured: 11 to 13 MiB under emulation.
pub const CHILD_BYTES: u64 = 16 << 20;
/// What QEMU takes besides a guest's memory, bytes.
pub const QEMU_BYTES: u64 = 64 << 20;
/// So much of a stream is in [`CHILD_BYTES`].
const SMALL_STREAM: u64 = 4 << 20;

/// The memory of a VM that boots, bytes: in the end its guest touches all of it.
pub fn memory_of_boot(memory_bytes: u64) -> u64 {
    memory_bytes.saturating_add(QEMU_BYTES)
}

/// The memory that is a fork's own when it begins, bytes: what its stream brings is, the base is not. What it writes to later is seen by its
/// node.
pub fn memory_of_fork(memory_bytes: u64, stream_bytes: u64) -> u64 {
    let brought = stream_bytes.saturating_sub(SMALL_STREAM);
    CHILD_BYTES
        .saturating_add(brought)
        .min(memory_of_boot(memory_bytes))
}

/// What the VMs of a node take of it that are to have a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Memory that is one VM's own each, bytes.
    pub own_bytes: u64,
    /// Memory that forks share, bytes: once for each lineage of which no VM was booted there.
    pub shared_bytes: u64,
    /// Of `own_bytes`, what is of VMs that have not been reported yet: the node may not have seen that they take it.
    pub unseen_bytes: u64,
    /// Virtual processors.
    pub cpus: u64,
}

impl Load {
    /// Memory that the VMs may take, as far as it was promised to them, bytes.
    pub fn promised_bytes(&self) -> u64 {
        self.own_bytes.saturating_add(self.shared_bytes)
    }
}

/// The VMs of one lineage on a node: its number, the lineage, and the memory of each.
type Line = (NodeId, VmId, u64);

/// How many there are that have memory of their own, and that share it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Members {
    whole: u32,
    forks: u32,
}

impl Members {
    /// What they share, where each has so much memory. Of a VM that was booted there that is counted as its own.
    fn shared(self, memory_bytes: u64) -> u64 {
        match self {
            Self {
                whole: 0,
                forks: 1..,
            } => memory_bytes,
            _ => 0,
        }
    }

    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// What one VM counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    line: Line,
    own_bytes: u64,
    is_unseen: bool,
    cpus: u64,
}

impl Part {
    /// Of a VM; `None` for one that is not to have a process, or whose process has ended and is not started again.
    pub(super) fn of(vm: &Vm) -> Option<Self> {
        let is_known = vm.reported_boot >= vm.boot;
        let has_ended = is_known && matches!(vm.phase, Phase::Failed | Phase::Stopped);
        let takes = vm.counts_as_running() && (vm.is_going_back || !has_ended);
        takes.then_some(Self {
            line: (vm.node, vm.lineage, vm.spec.memory_bytes),
            own_bytes: vm.own_bytes,
            is_unseen: !is_known,
            cpus: u64::from(vm.spec.cpus),
        })
    }

    fn unseen_bytes(self) -> u64 {
        if self.is_unseen { self.own_bytes } else { 0 }
    }

    fn members(self) -> Members {
        let (_, _, memory_bytes) = self.line;
        let is_whole = self.own_bytes >= memory_bytes;
        Members {
            whole: is_whole.into(),
            forks: (!is_whole).into(),
        }
    }
}

/// All nodes' loads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Loads {
    /// Only nodes that have some.
    nodes: BTreeMap<NodeId, Load>,
    lines: SharedMap<Line, Members>,
}

impl Loads {
    /// Of a node.
    pub(super) fn of(&self, node: NodeId) -> Load {
        self.nodes.get(&node).copied().unwrap_or_default()
    }

    /// Whether a lineage has VMs of this memory on a node.
    pub(super) fn has(&self, node: NodeId, lineage: VmId, memory_bytes: u64) -> bool {
        self.lines.contains_key(&(node, lineage, memory_bytes))
    }

    /// A VM changed, came (there was none before) or went (there is none after).
    pub(super) fn change(&mut self, before: Option<Part>, after: Option<Part>) {
        if before == after {
            return;
        }
        if let Some(part) = before {
            self.less(part);
        }
        if let Some(part) = after {
            self.more(part);
        }
    }

    fn more(&mut self, part: Part) {
        let (node, _, memory_bytes) = part.line;
        let one = part.members();
        let was = self.lines.get(&part.line).copied().unwrap_or_default();
        let is = Members {
            whole: was.whole + one.whole,
            forks: was.forks + one.forks,
        };
        self.lines.insert(part.line, is);
        let load = self.nodes.entry(node).or_default();
        load.own_bytes = load.own_bytes.saturating_add(part.own_bytes);
        load.unseen_bytes = load.unseen_bytes.saturating_add(part.unseen_bytes());
        load.cpus = load.cpus.saturating_add(part.cpus);
        load.shared_bytes = load
            .shared_bytes
            .saturating_sub(was.shared(memory_bytes))
            .saturating_add(is.shared(memory_bytes));
    }

    fn less(&mut self, part: Part) {
        let (node, _, memory_bytes) = part.line;
        let one = part.members();
        let was = self.lines.get(&part.line).copied().unwrap_or_default();
        let is = Members {
            whole: was.whole.saturating_sub(one.whole),
            forks: was.forks.saturating_sub(one.forks),
        };
        match is.is_none() {
            true => drop(self.lines.remove(&part.line)),
            false => drop(self.lines.insert(part.line, is)),
        }
        let Some(load) = self.nodes.get_mut(&node) else {
            return;
        };
        load.own_bytes = load.own_bytes.saturating_sub(part.own_bytes);
        load.unseen_bytes = load.unseen_bytes.saturating_sub(part.unseen_bytes());
        load.cpus = load.cpus.saturating_sub(part.cpus);
        load.shared_bytes = load
            .shared_bytes
            .saturating_sub(was.shared(memory_bytes))
            .saturating_add(is.shared(memory_bytes));
        if *load == Load::default() {
            self.nodes.remove(&node);
        }
    }
}
