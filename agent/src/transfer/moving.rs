//! What a VM is made of that moves to this node. It comes from the node that the VM leaves, ahead while the VM runs there, and at last what has
//! changed since; nobody else has that, and nothing in the state refers to it yet.

use std::{fs::File, io, sync::Arc};

use qemu::write_back::sync_folder;
use raft::state::{Content, FileId, NodeId, SnapshotId, VmId};

use super::{
    Kept,
    file::{self, Expected, FileName},
};
use crate::{admission::Need, node::Node, reconcile::collect::Files, vms::Reserved};

/// What a VM is made of.
#[derive(Debug, Clone, Copy)]
pub enum Goods<'a> {
    /// The memory and the disk of one that runs still.
    Ahead(&'a Content),
    /// One that stands at this moment.
    Moment(&'a Content),
    /// The layers of a disk.
    Disk(&'a [FileId]),
}

impl Goods<'_> {
    fn files(self) -> Vec<(FileName, Expected)> {
        let is_stream = |file: &FileName| matches!(file, FileName::Stream(_));
        match self {
            Self::Moment(content) => file::of_snapshot(content),
            Self::Ahead(content) => {
                let all = file::of_snapshot(content).into_iter();
                all.filter(|(file, _)| !is_stream(file)).collect()
            }
            Self::Disk(layers) => {
                let layers = layers.iter().copied().map(FileName::Layer);
                layers.map(|layer| (layer, Expected::Parts)).collect()
            }
        }
    }

    fn content(&self) -> Option<&Content> {
        match self {
            Self::Ahead(content) | Self::Moment(content) => Some(content),
            Self::Disk(_) => None,
        }
    }

    fn layers(&self) -> &[FileId] {
        match self {
            Self::Ahead(content) | Self::Moment(content) => &content.layers,
            Self::Disk(layers) => layers,
        }
    }
}

/// What has come of a VM. It stays here while this is kept.
#[derive(Debug, Default)]
pub struct Stock {
    kept: Option<(Kept, Reserved)>,
}

impl Node {
    /// Has what a VM of a lineage is made of be here, from the node that it leaves. `id` names its move.
    pub async fn stock_up(
        self: &Arc<Self>,
        stock: &mut Stock,
        id: SnapshotId,
        lineage: VmId,
        goods: Goods<'_>,
        from: NodeId,
    ) -> Result<(), String> {
        let mut files = Files::default();
        match goods.content() {
            Some(content) => files.add_content(content),
            None => files.add_layers(goods.layers()),
        }
        let kept = Kept::begin(self, id, &files);
        let state = self.state();
        let reserved = self.reserve_lineage(&state, lineage)?;
        self.until_collected().await;
        let similar = match goods.content() {
            Some(content) => {
                let base = FileName::Base(content.base).path(&self.vms.engine().layout);
                let base = if base.exists() { 0 } else { content.base_bytes };
                self.admit(Need {
                    memory: 0,
                    disk: base + content.stream_bytes + content.layer_bytes,
                })?;
                self.similar_base(&state, lineage, content)
            }
            None => None,
        };
        self.have_all(
            goods.files(),
            &reserved,
            similar,
            || vec![from],
            &kept,
            None,
        )
        .await?;
        // What came ahead stays until the rest is there.
        stock.kept = Some((kept, reserved));
        Ok(())
    }

    /// Has layers be on the disk: whoever goes on with them may lose its host.
    pub async fn layers_on_disk(&self, goods: Goods<'_>) -> Result<(), String> {
        let layout = self.vms.engine().layout.clone();
        let files = goods.layers().iter().copied().map(FileName::Layer);
        let files: Vec<_> = files.map(|file| file.path(&layout)).collect();
        let sync = move || {
            for file in files {
                File::open(file)?.sync_data()?;
            }
            sync_folder(&layout.layers())
        };
        let synced = tokio::task::spawn_blocking(sync).await;
        synced
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| format!("its disk cannot be brought to this host's: {error}"))
    }
}
