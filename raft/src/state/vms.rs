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
    quotas::Usage,
    shared_map::{Iter, SharedMap},
};

/// All VMs. A copy costs little: see [`SharedMap`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vms {
    all: SharedMap<VmId, Arc<Vm>>,
    /// By name and owner. Follows from `all`.
    names: SharedMap<(Arc<str>, Arc<str>), VmId>,
    /// What each owner has of them. Follows from `all`; only owners that have some.
    used: BTreeMap<String, Usage>,
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

    /// An owner's with this name.
    pub fn named(&self, owner: &str, name: &str) -> Option<&Arc<Vm>> {
        let key = (name.into(), owner.into());
        self.names.get(&key).and_then(|id| self.all.get(id))
    }

    /// All with this name, by their owners.
    pub fn all_named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<Vm>> + use<'a> {
        let named: Arc<str> = name.into();
        let from = self.names.range((Arc::clone(&named), "".into())..);
        from.take_while(move |((name, _), _)| *name == named)
            .filter_map(|(_, id)| self.all.get(id))
    }

    /// All names of an owner's VMs that begin so, in their order.
    pub fn names_from<'a>(
        &'a self,
        owner: &'a str,
        prefix: &'a str,
    ) -> impl Iterator<Item = &'a str> {
        let from = self.names.range((prefix.into(), "".into())..);
        from.take_while(move |((name, _), _)| name.starts_with(prefix))
            .filter(move |((_, one), _)| **one == *owner)
            .map(|((name, _), _)| &**name)
    }

    /// All, by their names, then by their owners.
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

    /// What an owner has of them.
    pub fn used_by(&self, owner: &str) -> Usage {
        self.used.get(owner).copied().unwrap_or_default()
    }

    /// The owners that have some, in their order.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.used.keys().map(String::as_str)
    }

    /// Changes one. Its name, its owner and its node must stay: a VM that gets others is inserted anew. `None` when it is not there.
    pub fn change<R>(&mut self, id: &VmId, change: impl FnOnce(&mut Vm) -> R) -> Option<R> {
        let vm = Arc::make_mut(self.all.get_mut(id)?);
        let before = Usage::of_vm(vm);
        let changed = change(vm);
        let (after, owner) = (Usage::of_vm(vm), &vm.ownership.owner);
        if before != after
            && let Some(used) = self.used.get_mut(owner)
        {
            *used = used.minus(before).plus(after);
        }
        Some(changed)
    }

    /// Adds one, in the place of another with its id.
    pub fn insert(&mut self, id: VmId, vm: Arc<Vm>) {
        self.remove(&id);
        self.names.insert(key(&vm), id);
        let used = self.used.entry(vm.ownership.owner.clone()).or_default();
        *used = used.plus(Usage::of_vm(&vm));
        self.nodes.entry(vm.node).or_default().insert(id, ());
        self.all.insert(id, vm);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: &VmId) -> Option<Arc<Vm>> {
        let vm = self.all.remove(id)?;
        let key = key(&vm);
        if self.names.get(&key) == Some(id) {
            self.names.remove(&key);
        }
        let owner = &vm.ownership.owner;
        if let Some(used) = self.used.get_mut(owner) {
            *used = used.minus(Usage::of_vm(&vm));
            if used.vms == 0 {
                self.used.remove(owner);
            }
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

fn key(vm: &Vm) -> (Arc<str>, Arc<str>) {
    (vm.name.as_str().into(), vm.ownership.owner.as_str().into())
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
