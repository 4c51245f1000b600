//! Who was forked from whom: builds the forest from VMs and snapshots, and draws it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::views::{snapshot::SnapshotView, vm::VmView};

/// A VM or a snapshot with what descends from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Branch {
    /// `vm` or `snapshot`.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// Its name; empty for a snapshot without one.
    pub name: String,
    /// Whose it is; empty for one that is deleted or hidden.
    pub owner: String,
    /// How it is; empty for one that is deleted.
    pub state: String,
    /// Where it is: a VM's node, a snapshot's nodes, comma-separated.
    pub node: String,
    /// Whether only its descendants are left.
    pub deleted: bool,
    /// Whether it is another owner's that may not be seen: nothing more is known of it.
    pub hidden: bool,
    /// A VM's snapshots and a snapshot's VMs, the oldest first.
    pub children: Vec<Branch>,
}

/// How many that a name fits are listed.
const LISTED: usize = 10;

/// Why there is no tree below what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Nothing has this name or id.
    #[error("there is no VM or snapshot {0:?}")]
    NotFound(String),
    /// It fits several.
    #[error("{text:?} fits more than one VM or snapshot: {}", matches.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// What fits only one of them each.
        matches: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Vm(String),
    Snapshot(String),
    /// What the object with this id comes from, which is another owner's.
    Hidden(String),
}

impl Key {
    fn id(&self) -> &str {
        match self {
            Self::Vm(id) | Self::Snapshot(id) | Self::Hidden(id) => id,
        }
    }

    /// What fits only this one.
    fn exact(&self, branch: &Branch) -> String {
        let Branch { owner, name, .. } = branch;
        match self {
            Self::Vm(_) if !owner.is_empty() && !name.is_empty() => format!("{owner}/{name}"),
            Self::Snapshot(_) if !owner.is_empty() && !name.is_empty() => {
                format!("@{owner}/{name}")
            }
            key => key.id().to_owned(),
        }
    }
}

/// All of them with their lines of descent.
#[derive(Debug, Default)]
pub struct Forest {
    entries: BTreeMap<Key, Branch>,
    children: BTreeMap<Key, Vec<Key>>,
    /// Which VM each snapshot was captured from.
    captured: BTreeMap<Key, Key>,
    roots: Vec<Key>,
}

impl Forest {
    /// Puts together what belongs together. Parents that are deleted are in it by the names their descendants remember.
    pub fn new(vms: &[VmView], snapshots: &[SnapshotView]) -> Self {
        let mut forest = Self::default();
        let mut parents: BTreeMap<Key, Option<Key>> = BTreeMap::new();
        let known: BTreeSet<&str> = snapshots
            .iter()
            .map(|snapshot| snapshot.id.as_str())
            .collect();
        let listed = |id: &str| known.contains(id).then(|| Key::Snapshot(id.to_owned()));
        let gone_back_to = moments_of_own(vms, snapshots);
        for snapshot in snapshots {
            let key = Key::Snapshot(snapshot.id.clone());
            forest
                .entries
                .insert(key.clone(), snapshot_branch(snapshot));
            if snapshot.vm_hidden {
                parents.insert(key, Some(forest.hide(&snapshot.id)));
                continue;
            }
            let parent = if gone_back_to.contains(snapshot.id.as_str()) {
                listed(&snapshot.parent)
            } else {
                Some(Key::Vm(snapshot.vm.clone()))
            };
            parents.insert(key, parent);
            // Replaced below when it is still there.
            let captured = Key::Vm(snapshot.vm.clone());
            forest
                .captured
                .insert(Key::Snapshot(snapshot.id.clone()), captured.clone());
            forest.entries.insert(
                captured.clone(),
                deleted_vm(&snapshot.vm, &snapshot.vm_name),
            );
            parents.insert(captured, listed(&snapshot.parent));
        }
        for vm in vms.iter().filter(|vm| !vm.parent.is_empty()) {
            let parent = Key::Vm(vm.parent.clone());
            forest
                .entries
                .entry(parent.clone())
                .or_insert_with(|| deleted_vm(&vm.parent, &vm.parent_name));
            parents.entry(parent).or_insert(None);
        }
        for vm in vms {
            let key = Key::Vm(vm.id.clone());
            let by_vm = || (!vm.parent.is_empty()).then(|| Key::Vm(vm.parent.clone()));
            forest.entries.insert(key.clone(), vm_branch(vm));
            let parent = listed(&vm.snapshot).or_else(by_vm);
            let parent = parent.or_else(|| vm.parent_hidden.then(|| forest.hide(&vm.id)));
            parents.insert(key, parent);
        }
        // Ids are ULIDs: their order is that of creation.
        let mut sorted: Vec<_> = parents.into_iter().collect();
        sorted.sort_by(|(one, _), (other, _)| one.id().cmp(other.id()));
        for (key, parent) in sorted {
            if let Some(hidden @ Key::Hidden(_)) = &parent {
                forest.roots.push(hidden.clone());
            }
            match parent {
                Some(parent) => forest.children.entry(parent).or_default().push(key),
                None => forest.roots.push(key),
            }
        }
        forest
    }

    /// Adds what an object comes from and that is another owner's.
    fn hide(&mut self, id: &str) -> Key {
        let key = Key::Hidden(id.to_owned());
        let hidden = Branch {
            hidden: true,
            deleted: false,
            ..deleted_vm("", "")
        };
        self.entries.insert(key.clone(), hidden);
        key
    }

    /// How many owners they have.
    pub fn owners(&self) -> usize {
        let owners = self.entries.values().map(|branch| branch.owner.as_str());
        let owners: BTreeSet<&str> = owners.filter(|owner| !owner.is_empty()).collect();
        owners.len()
    }

    /// The trees of all that descend from nothing.
    pub fn whole(mut self) -> Vec<Branch> {
        let roots = std::mem::take(&mut self.roots);
        let mut trees: Vec<Branch> = roots.iter().filter_map(|root| self.take(root)).collect();
        // VMs that were set to each other's moments descend from each other: they begin with the first of them.
        while let Some(first) = self.entries.keys().min_by_key(|key| key.id()).cloned() {
            trees.extend(self.take(&first));
        }
        trees
    }

    /// The tree below a VM or a snapshot: name or id of either, `@SNAPSHOT`, or `VM@SNAPSHOT`; each name also as `OWNER/NAME`. Bare names
    /// are `own`'s first.
    pub fn below(mut self, text: &str, own: &str) -> Result<Branch, RootError> {
        let key = self.find(text, own)?;
        self.take(&key)
            .ok_or_else(|| RootError::NotFound(text.to_owned()))
    }

    /// Takes children away as it goes down, so that it ends whatever it is given.
    fn take(&mut self, key: &Key) -> Option<Branch> {
        let mut branch = self.entries.remove(key)?;
        let children = self.children.remove(key).unwrap_or_default();
        branch.children = children
            .iter()
            .filter_map(|child| self.take(child))
            .collect();
        Some(branch)
    }

    fn find(&self, text: &str, own: &str) -> Result<Key, RootError> {
        if let Some((vm, snapshot)) = text.split_once('@') {
            let vm = match vm {
                "" => None,
                vm => Some(self.pick(vm, text, own, |key| matches!(key, Key::Vm(_)))?),
            };
            let is_of_it = |key: &Key| vm.is_none() || self.captured.get(key) == vm.as_ref();
            return self.pick(snapshot, text, own, |key| {
                matches!(key, Key::Snapshot(_)) && is_of_it(key)
            });
        }
        self.pick(text, text, own, |key| matches!(key, Key::Vm(_)))
            .or_else(|_| self.pick(text, text, own, |_| true))
    }

    /// By exact name, then exact id, then the unambiguous beginning of an id.
    fn pick(
        &self,
        name: &str,
        text: &str,
        own: &str,
        wanted: impl Fn(&Key) -> bool,
    ) -> Result<Key, RootError> {
        let is_known = |key: &Key| !matches!(key, Key::Hidden(_));
        let all = || {
            let all = self.entries.iter();
            all.filter(|(key, _)| is_known(key) && wanted(key))
        };
        let one = |found: Vec<(&Key, &Branch)>| match found.as_slice() {
            [] => Ok(None),
            [(key, _)] => Ok(Some((*key).clone())),
            several => Err(RootError::Ambiguous {
                text: text.to_owned(),
                matches: several
                    .iter()
                    .take(LISTED)
                    .map(|(key, branch)| key.exact(branch))
                    .collect(),
            }),
        };
        if name.is_empty() {
            return Err(RootError::NotFound(text.to_owned()));
        }
        let (owner, bare) = match name.split_once('/') {
            Some((owner, bare)) => (Some(owner), bare),
            None => (None, name),
        };
        let is_it = |branch: &Branch| {
            branch.name == bare && owner.is_none_or(|owner| branch.owner == owner)
        };
        let mut named: Vec<_> = all()
            .filter(|(_, branch)| is_it(branch) && !branch.deleted)
            .collect();
        if named.iter().any(|(_, branch)| branch.owner == own) {
            named.retain(|(_, branch)| branch.owner == own);
        }
        if let Some(key) = one(named)? {
            return Ok(key);
        }
        let id = name.to_ascii_uppercase();
        if let Some((key, _)) = all().find(|(key, _)| key.id() == id) {
            return Ok(key.clone());
        }
        let begun = all().filter(|(key, _)| key.id().starts_with(&id)).collect();
        one(begun)?.ok_or_else(|| RootError::NotFound(text.to_owned()))
    }
}

/// Snapshots that were captured from a VM which has been set to them, or to a later one, since: the VM is drawn below them, and
/// they below what it came from.
fn moments_of_own<'a>(vms: &'a [VmView], snapshots: &'a [SnapshotView]) -> BTreeSet<&'a str> {
    let by_id: BTreeMap<&str, &SnapshotView> = snapshots
        .iter()
        .map(|snapshot| (snapshot.id.as_str(), snapshot))
        .collect();
    let mut own = BTreeSet::new();
    for vm in vms {
        let (mut next, mut left) = (vm.snapshot.as_str(), snapshots.len());
        while let Some(snapshot) = by_id.get(next).filter(|_| left > 0) {
            if snapshot.vm == vm.id {
                own.insert(snapshot.id.as_str());
            }
            (next, left) = (snapshot.parent.as_str(), left - 1);
        }
    }
    own
}

fn vm_branch(vm: &VmView) -> Branch {
    Branch {
        owner: vm.owner.clone(),
        state: vm.state.to_owned(),
        node: vm.node.clone(),
        deleted: false,
        ..deleted_vm(&vm.id, &vm.name)
    }
}

fn deleted_vm(id: &str, name: &str) -> Branch {
    Branch {
        kind: "vm",
        id: id.to_owned(),
        name: name.to_owned(),
        owner: String::new(),
        state: String::new(),
        node: String::new(),
        deleted: true,
        hidden: false,
        children: Vec::new(),
    }
}

fn snapshot_branch(snapshot: &SnapshotView) -> Branch {
    Branch {
        kind: "snapshot",
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        owner: snapshot.owner.clone(),
        state: snapshot.state.to_owned(),
        node: snapshot.nodes.join(","),
        deleted: false,
        hidden: false,
        children: Vec::new(),
    }
}

/// The four pieces that lines are drawn with.
#[derive(Debug, Clone, Copy)]
pub struct Strokes {
    branch: &'static str,
    last: &'static str,
    through: &'static str,
    nothing: &'static str,
}

impl Strokes {
    /// Box-drawing characters.
    pub const UNICODE: Self = Self {
        branch: "├─ ",
        last: "└─ ",
        through: "│  ",
        nothing: "   ",
    };
    /// For terminals that know nothing else.
    pub const ASCII: Self = Self {
        branch: "|- ",
        last: "`- ",
        through: "|  ",
        nothing: "   ",
    };

    /// What the locale allows.
    pub fn for_locale() -> Self {
        let set = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        let utf8 = set.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        if utf8 { Self::UNICODE } else { Self::ASCII }
    }
}

/// Draws trees, a line for each VM and snapshot.
pub fn draw(trees: &[Branch], strokes: Strokes) -> String {
    let mut text = String::new();
    for tree in trees {
        text.push_str(&title(tree));
        text.push('\n');
        draw_children(tree, "", strokes, &mut text);
    }
    text
}

fn draw_children(branch: &Branch, indent: &str, strokes: Strokes, text: &mut String) {
    let count = branch.children.len();
    for (index, child) in branch.children.iter().enumerate() {
        let (stroke, below) = if index + 1 == count {
            (strokes.last, strokes.nothing)
        } else {
            (strokes.branch, strokes.through)
        };
        text.push_str(&format!("{indent}{stroke}{}\n", title(child)));
        draw_children(child, &format!("{indent}{below}"), strokes, text);
    }
}

fn title(branch: &Branch) -> String {
    let name = if branch.name.is_empty() {
        &branch.id
    } else {
        &branch.name
    };
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    match branch.kind {
        _ if branch.hidden => "(hidden)".to_owned(),
        "snapshot" => format!("@{name}  {}", branch.state),
        _ if branch.deleted => format!("{name}  (deleted)"),
        _ => format!("{name}  {}  {}", branch.state, branch.node),
    }
}

#[cfg(test)]
mod tests;
