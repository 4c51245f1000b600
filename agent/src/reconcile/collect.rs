//! Which files of a node nothing refers to any more. Pure; `super::execute` removes them.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

use qemu::record::VmRecord;
use raft::state::{Content, DERIVED_IDS, FileId, Forgotten, NodeId, OperationId, State, VmId};

use crate::blobs::hex;

/// Files of a node, by name, whether they are there or referred to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Bases.
    pub bases: BTreeSet<String>,
    /// Streams.
    pub streams: BTreeSet<String>,
    /// Disk layers.
    pub layers: BTreeSet<String>,
    /// Files of images.
    pub images: BTreeSet<String>,
}

impl Files {
    /// Adds those of a snapshot.
    pub fn add_content(&mut self, content: &Content) {
        self.bases.insert(name(content.base));
        self.streams.insert(name(content.stream));
        self.add_layers(&content.layers);
    }

    /// Adds layers of a disk.
    pub fn add_layers(&mut self, layers: &[FileId]) {
        self.layers.extend(layers.iter().map(|layer| name(*layer)));
    }

    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        self.bases.extend(others.bases.iter().cloned());
        self.streams.extend(others.streams.iter().cloned());
        self.layers.extend(others.layers.iter().cloned());
        self.images.extend(others.images.iter().cloned());
    }

    /// Adds one, by its path below the data directory.
    pub fn add_file(&mut self, path: &str) {
        if let Some((files, name)) = self.of(path) {
            files.insert(name.to_owned());
        }
    }

    /// Whether one is among them, by its path below the data directory.
    pub fn holds(&self, path: &str) -> bool {
        let mut all = self.clone();
        all.of(path)
            .is_some_and(|(files, name)| files.contains(name))
    }

    fn of<'a>(&mut self, path: &'a str) -> Option<(&mut BTreeSet<String>, &'a str)> {
        let (folder, name) = path.split_once('/')?;
        Some(match folder {
            "bases" => (&mut self.bases, name),
            "streams" => (&mut self.streams, name),
            "layers" => (&mut self.layers, name.strip_suffix(".qcow2")?),
            "images" => (&mut self.images, name),
            _ => return None,
        })
    }

    /// Whether nothing is in both.
    pub fn is_disjoint(&self, others: &Self) -> bool {
        self.bases.is_disjoint(&others.bases)
            && self.streams.is_disjoint(&others.streams)
            && self.layers.is_disjoint(&others.layers)
            && self.images.is_disjoint(&others.images)
    }

    /// Adds what a VM's record refers to.
    pub fn add_record(&mut self, record: &VmRecord) {
        let bases = record.base.iter().chain(&record.delta_base);
        self.bases.extend(bases.map(|base| base.0.clone()));
        self.layers
            .extend(record.layer_files().map(|layer| layer.0));
        self.images.extend(record.image_disk.clone());
    }

    /// Leaves out what is in others.
    pub fn without(mut self, others: &Self) -> Self {
        self.bases.retain(|name| !others.bases.contains(name));
        self.streams.retain(|name| !others.streams.contains(name));
        self.layers.retain(|name| !others.layers.contains(name));
        self.images.retain(|name| !others.images.contains(name));
        self
    }
}

/// What is referred to: by snapshots and images of the state, by the records of the VMs that are here, by their ids. Files of operations
/// that are under way or may come are in the way of nobody, but must stay as well: see [`unreferenced`].
pub fn referenced(state: &State, node: NodeId, records: &BTreeMap<String, VmRecord>) -> Files {
    let mut files = Files::default();
    for snapshot in state
        .snapshots
        .values()
        .filter(|snapshot| snapshot.nodes.contains(&node))
    {
        if let Some(content) = &snapshot.content {
            files.add_content(content);
        }
    }
    for vm in state.vms.of(node) {
        let id = vm.id.to_string();
        // Without a record here, its first overlay is all that can be known.
        if !records.contains_key(&id) {
            files.layers.insert(id);
            files.add_layers(vm.disk.as_deref().unwrap_or_default());
        }
    }
    for record in records.values() {
        files.add_record(record);
    }
    for image in state.images.values() {
        let blobs = [
            &image.kernel,
            &image.initrd,
            &image.disk.as_ref().map(|disk| disk.blob.clone()),
        ];
        files
            .images
            .extend(blobs.into_iter().flatten().map(|blob| hex(&blob.sha256)));
    }
    files
}

/// What is there, not referred to, belongs to no operation that is under way, and was not made in a time that the state has forgotten: a
/// newer state may refer to it, and may be put back yet. Images have names that say nothing of that.
pub fn unreferenced(
    there: &Files,
    referenced: &Files,
    in_flight: &BTreeSet<OperationId>,
    forgotten: Option<&Forgotten>,
) -> Files {
    let free = |there: &BTreeSet<String>, referenced: &BTreeSet<String>| {
        there
            .difference(referenced)
            .filter(|name| !belongs_to(name, in_flight) && !is_forgotten(name, forgotten))
            .cloned()
            .collect()
    };
    Files {
        bases: free(&there.bases, &referenced.bases),
        streams: free(&there.streams, &referenced.streams),
        layers: free(&there.layers, &referenced.layers),
        images: there
            .images
            .difference(&referenced.images)
            .cloned()
            .collect(),
    }
}

/// Whether a file's name derives from one of these operations. A name that is no id is nobody's file of ours: it stays.
fn belongs_to(name: &str, operations: &BTreeSet<OperationId>) -> bool {
    match name.parse::<OperationId>() {
        Ok(id) => operations.contains(&OperationId(id.0 & !(DERIVED_IDS - 1))),
        Err(_) => true,
    }
}

/// Whether a file was made in a time that the state has forgotten.
fn is_forgotten(name: &str, forgotten: Option<&Forgotten>) -> bool {
    let id = name.parse::<VmId>();
    forgotten.is_some_and(|forgotten| id.is_ok_and(|id| forgotten.holds(id.0)))
}

fn name(id: u128) -> String {
    VmId(id).to_string()
}
