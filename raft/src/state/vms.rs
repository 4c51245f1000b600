//! The VMs of the state, found by their ids, their names and their nodes: commands ask by all three, and the cluster may have ten
//! thousand of them.

use std::{
    collections::BTreeMap,
    ops::{Index, RangeBounds},
    sync::Arc,
};

use super::{
    ids::{LeaseId, NodeId, SnapshotId, VmId},
    loads::{Load, Loads, Part},
    model::{Life, Millis, Source, Vm},
    quotas::Usage,
    shared_map::{Iter, SharedMap},
};

/// A name or the beginning of some, and the owner.
type Key = (Arc<str>, Arc<str>);

/// The numbers that are in use, side by side: a thousand are gone through without a look at as many names, which lie anywhere.
type Numbers = SharedMap<u32, ()>;

/// A label's key and value, the owner of VMs that have it, and the node that they are on.
type Labelled = (Arc<str>, Arc<str>, Arc<str>, NodeId);

/// All VMs. A copy costs little: see [`SharedMap`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vms {
    all: SharedMap<VmId, Arc<Vm>>,
    /// By name and owner. Follows from `all`.
    names: SharedMap<Key, VmId>,
    /// The numbers with which names end, by what is before them and by owner. Follows from `names`.
    numbers: SharedMap<Key, Arc<Numbers>>,
    /// By the snapshot that they were made from. Follows from `all`.
    sources: SharedMap<(SnapshotId, VmId), ()>,
    /// Those that are not kept until somebody deletes them, in the order of their ends. Follows from `all`.
    bounded: SharedMap<(Life, VmId), ()>,
    /// What each owner has of them. Follows from `all`; only owners that have some.
    used: BTreeMap<String, Usage>,
    /// Follows from `all`. Only nodes that have some.
    nodes: BTreeMap<NodeId, SharedMap<VmId, ()>>,
    /// What they take of their nodes. Follows from `all`.
    loads: Loads,
    /// How many have a label. Follows from `all`.
    labels: SharedMap<Labelled, u32>,
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

    /// All, by their ids, to be copied and compared.
    pub(super) fn all(&self) -> &SharedMap<VmId, Arc<Vm>> {
        &self.all
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

    /// The numbers of an owner's VMs that are called `PREFIX-NUMBER`, ascending.
    pub fn numbers_of(&self, owner: &str, prefix: &str) -> impl Iterator<Item = u32> {
        let all = self.numbers.get(&(prefix.into(), owner.into()));
        all.into_iter().flat_map(|all| all.keys().copied())
    }

    /// All that were made from a snapshot, by their ids.
    pub fn made_from(&self, snapshot: SnapshotId) -> impl Iterator<Item = &Arc<Vm>> {
        let all = (snapshot, VmId(0))..=(snapshot, VmId(u128::MAX));
        self.sources
            .range(all)
            .filter_map(|((_, id), ())| self.all.get(id))
    }

    /// Those whose time ends by then, the first to end first.
    pub fn ending_by(&self, now: Millis) -> impl Iterator<Item = VmId> {
        let from = (Life::Until(0), VmId(0));
        let all = self
            .bounded
            .range(from..=(Life::Until(now), VmId(u128::MAX)));
        all.map(|((_, id), ())| *id)
    }

    /// Those that are kept by a lease.
    pub fn leased(&self, lease: LeaseId) -> impl Iterator<Item = VmId> {
        let life = Life::Leased(lease);
        let all = self
            .bounded
            .range((life, VmId(0))..=(life, VmId(u128::MAX)));
        all.map(|((_, id), ())| *id)
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

    /// What those of a node take of it.
    pub fn load_of(&self, node: NodeId) -> Load {
        self.loads.of(node)
    }

    /// Whether a node has VMs of a lineage, of this memory, that are to have a process.
    pub fn has_line(&self, node: NodeId, lineage: VmId, memory_bytes: u64) -> bool {
        self.loads.has(node, lineage, memory_bytes)
    }

    /// The nodes that have VMs with a label, in no particular order: an owner's, or with `None` anybody's.
    pub fn nodes_labelled(
        &self,
        key: &str,
        value: &str,
        owner: Option<&str>,
    ) -> impl Iterator<Item = NodeId> {
        let (key, value): (Arc<str>, Arc<str>) = (key.into(), value.into());
        let from = (
            Arc::clone(&key),
            Arc::clone(&value),
            owner.unwrap_or_default().into(),
            0,
        );
        let is_wanted = move |of: &str| owner.is_none_or(|owner| owner == of);
        self.labels
            .range(from..)
            .map(|(found, _)| found)
            .take_while(move |(found, has, of, _)| *found == key && *has == value && is_wanted(of))
            .map(|(_, _, _, node)| *node)
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

    /// Changes one. Its name, its owner, its node and its labels must stay: a VM that gets others is inserted anew. `None` when it is not there.
    pub fn change<R>(&mut self, id: &VmId, change: impl FnOnce(&mut Vm) -> R) -> Option<R> {
        let vm = Arc::make_mut(self.all.get_mut(id)?);
        let (before, source, life) = (Usage::of_vm(vm), vm.source, vm.life);
        let part = Part::of(vm);
        let changed = change(vm);
        let (after, owner) = (Usage::of_vm(vm), &vm.ownership.owner);
        self.loads.change(part, Part::of(vm));
        if source != vm.source {
            if let Source::Snapshot(snapshot) = source {
                self.sources.remove(&(snapshot, *id));
            }
            if let Source::Snapshot(snapshot) = vm.source {
                self.sources.insert((snapshot, *id), ());
            }
        }
        if life != vm.life {
            self.bounded.remove(&(life, *id));
            if vm.life != Life::Unbounded {
                self.bounded.insert((vm.life, *id), ());
            }
        }
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
        let key = key(&vm);
        if let Some((series, number)) = numbered(&key) {
            match self.numbers.get_mut(&series) {
                Some(known) => drop(Arc::make_mut(known).insert(number, ())),
                None => {
                    let first = Numbers::from_iter([(number, ())]);
                    self.numbers.insert(series, Arc::new(first));
                }
            }
        }
        self.names.insert(key, id);
        if let Source::Snapshot(snapshot) = vm.source {
            self.sources.insert((snapshot, id), ());
        }
        if vm.life != Life::Unbounded {
            self.bounded.insert((vm.life, id), ());
        }
        let used = self.used.entry(vm.ownership.owner.clone()).or_default();
        *used = used.plus(Usage::of_vm(&vm));
        self.nodes.entry(vm.node).or_default().insert(id, ());
        self.loads.change(None, Part::of(&vm));
        for label in labels(&vm) {
            match self.labels.get_mut(&label) {
                Some(count) => *count += 1,
                None => drop(self.labels.insert(label, 1)),
            }
        }
        self.all.insert(id, vm);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: &VmId) -> Option<Arc<Vm>> {
        let vm = self.all.remove(id)?;
        let key = key(&vm);
        if self.names.get(&key) == Some(id) {
            self.names.remove(&key);
            if let Some((series, number)) = numbered(&key)
                && let Some(known) = self.numbers.get_mut(&series)
            {
                Arc::make_mut(known).remove(&number);
                if known.is_empty() {
                    self.numbers.remove(&series);
                }
            }
        }
        if let Source::Snapshot(snapshot) = vm.source {
            self.sources.remove(&(snapshot, *id));
        }
        self.bounded.remove(&(vm.life, *id));
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
        self.loads.change(Part::of(&vm), None);
        for label in labels(&vm) {
            if let Some(count) = self.labels.get_mut(&label) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.labels.remove(&label);
                }
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

/// A VM's labels, as they are found.
fn labels(vm: &Vm) -> impl Iterator<Item = Labelled> {
    let owner: Arc<str> = vm.ownership.owner.as_str().into();
    let node = vm.node;
    vm.labels.iter().map(move |(key, value)| {
        let (key, value) = (key.as_str().into(), value.as_str().into());
        (key, value, Arc::clone(&owner), node)
    })
}

fn key(vm: &Vm) -> Key {
    (vm.name.as_str().into(), vm.ownership.owner.as_str().into())
}

/// What is before the number with which a name ends, with the owner, and the number. `01` is another name than `1`, and no number.
fn numbered((name, owner): &Key) -> Option<(Key, u32)> {
    let (prefix, number) = name.rsplit_once('-')?;
    let number = number.parse().ok().filter(|_| !number.starts_with('0'))?;
    Some(((prefix.into(), Arc::clone(owner)), number))
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
