//! The VMs of the state, found by their ids, their names and their nodes: commands ask by all three, and the cluster may have ten
//! thousand of them.

use std::{
    collections::BTreeMap,
    ops::{Index, RangeBounds},
    sync::Arc,
};

use super::{
    ids::{NodeId, VmId},
    model::Vm,
    shared_map::{Iter, SharedMap},
};

/// All VMs. A copy costs little: see [`SharedMap`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vms {
    all: SharedMap<VmId, Arc<Vm>>,
    /// Follows from `all`.
    names: SharedMap<Arc<str>, VmId>,
    /// Follows from `all`. Only nodes that have some.
    nodes: BTreeMap<NodeId, SharedMap<VmId, ()>>,
}

impl Vms {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// One.
    pub fn get(&self, id: &VmId) -> Option<&Arc<Vm>> {
        self.all.get(id)
    }

    /// Whether it is there.
    pub fn contains_key(&self, id: &VmId) -> bool {
        self.all.contains_key(id)
    }

    /// The one with this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Vm>> {
        self.names.get(name).and_then(|id| self.all.get(id))
    }

    /// All names from this one on, in their order.
    pub fn named_from(&self, name: &str) -> impl Iterator<Item = &str> {
        let from = self.names.range(Arc::<str>::from(name)..);
        from.map(|(name, _)| &**name)
    }

    /// All, by their names.
    pub fn by_name(&self) -> impl Iterator<Item = &Arc<Vm>> {
        self.names.values().filter_map(|id| self.all.get(id))
    }

    /// All of a node, by their ids.
    pub fn of(&self, node: NodeId) -> impl Iterator<Item = &Arc<Vm>> {
        let ids = self.nodes.get(&node).into_iter().flat_map(SharedMap::keys);
        ids.filter_map(|id| self.all.get(id))
    }

    /// How many a node has.
    pub fn count_of(&self, node: NodeId) -> usize {
        self.nodes.get(&node).map_or(0, SharedMap::len)
    }

    /// The nodes that have some.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied()
    }

    /// All, by their ids.
    pub fn iter(&self) -> Iter<'_, VmId, Arc<Vm>> {
        self.all.iter()
    }

    /// All, by their ids.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Vm>> {
        self.all.values()
    }

    /// Those with ids within a range.
    pub fn range<R: RangeBounds<VmId>>(&self, range: R) -> impl Iterator<Item = (&VmId, &Arc<Vm>)> {
        self.all.range(range)
    }

    /// One, to change it. Its name and its node must stay: a VM that gets others is inserted anew.
    pub fn get_mut(&mut self, id: &VmId) -> Option<&mut Arc<Vm>> {
        self.all.get_mut(id)
    }

    /// Adds one, in the place of another with its id.
    pub fn insert(&mut self, id: VmId, vm: Arc<Vm>) {
        self.remove(&id);
        self.names.insert(vm.name.as_str().into(), id);
        self.nodes.entry(vm.node).or_default().insert(id, ());
        self.all.insert(id, vm);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: &VmId) -> Option<Arc<Vm>> {
        let vm = self.all.remove(id)?;
        if self.names.get(vm.name.as_str()) == Some(id) {
            self.names.remove(vm.name.as_str());
        }
        if let Some(there) = self.nodes.get_mut(&vm.node) {
            there.remove(id);
            if there.is_empty() {
                self.nodes.remove(&vm.node);
            }
        }
        Some(vm)
    }

    /// Whether what follows from the VMs does so still.
    pub(super) fn is_sound(&self) -> bool {
        self.all
            .iter()
            .map(|(id, vm)| (*id, Arc::clone(vm)))
            .collect::<Self>()
            == *self
    }
}

impl FromIterator<(VmId, Arc<Vm>)> for Vms {
    fn from_iter<I: IntoIterator<Item = (VmId, Arc<Vm>)>>(all: I) -> Self {
        let mut vms = Self::default();
        for (id, vm) in all {
            vms.insert(id, vm);
        }
        vms
    }
}

impl<'a> IntoIterator for &'a Vms {
    type Item = (&'a VmId, &'a Arc<Vm>);
    type IntoIter = Iter<'a, VmId, Arc<Vm>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// # Panics
///
/// When there is no such VM.
impl Index<&VmId> for Vms {
    type Output = Arc<Vm>;

    fn index(&self, id: &VmId) -> &Arc<Vm> {
        &self.all[id]
    }
}
