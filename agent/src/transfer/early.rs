//! Files that are used before they are whole, when something becomes of those who fetch or use them: the agent is started anew, the snapshot is
//! deleted, or what comes is not what it should be.

use std::sync::Arc;

use qemu::record::VmRecord;
use raft::state::{Blob, Image, SnapshotId};

use super::{
    GONE,
    file::{self, Expected, FileName},
};
use crate::{
    blobs::remove_parts,
    errors::chain,
    node::Node,
    reconcile::collect::Files,
    vms::{command::Command, vm_name},
};

impl Node {
    /// Waits until a snapshot is not in the state any more.
    pub(super) async fn until_gone(&self, id: SnapshotId) {
        let mut published = self.raft.published();
        let is_gone =
            |published: &raft::node::Published| !published.view.snapshots.contains_key(&id);
        // The state is there for as long as the node.
        let _gone = published.wait_for(is_gone).await;
    }

    /// Waits until an image is not in the state any more, and gives up its disk.
    pub async fn until_no_image(self: &Arc<Self>, image: &Image, disk: &Blob) {
        let mut published = self.raft.published();
        let is_gone =
            |published: &raft::node::Published| !published.view.images.contains_key(&image.id);
        // The state is there for as long as the node.
        drop(published.wait_for(is_gone).await);
        let file = (FileName::Image(disk.sha256), Expected::Name);
        self.give_up(&[file], "the image was deleted").await;
    }

    /// Gives up the files of a snapshot that are used already, unless somebody else still fetches them, and ends the VMs that need them: they
    /// would stand still for ever, or read what is not right.
    pub(super) async fn give_up(self: &Arc<Self>, files: &[(FileName, Expected)], problem: &str) {
        let wanted = self.transfers.wanted();
        let mut given_up = Files::default();
        for (file, _) in files {
            if wanted.holds(&file.relative())
                || !self.transfers.arriving.give_up(&file.shown()).await
            {
                continue;
            }
            tracing::error!(
                file = file.relative(),
                problem,
                "a file that is used already will not come"
            );
            given_up.add_file(&file.relative());
            for path in [
                file.path(&self.vms.engine().layout),
                file.part(&self.vms.engine().layout),
            ] {
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::debug!(%error, path = %path.display(), "what was begun of a file is not there");
                }
            }
        }
        self.end_those_that_need(&given_up, problem).await;
    }

    /// Ends the VMs of this node that need any of these files.
    async fn end_those_that_need(&self, files: &Files, problem: &str) {
        let layout = &self.vms.engine().layout;
        for (vm, handle) in self.vms.all() {
            let record = match VmRecord::load(&layout.vm(&vm_name(vm))) {
                Ok(Some(record)) => record,
                // It needs nothing.
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%vm, error = %chain(&error), "what a VM needs is not known");
                    continue;
                }
            };
            let mut needs = Files::default();
            needs.add_record(&record);
            if !needs.is_disjoint(files) {
                tracing::error!(%vm, problem, "a VM is ended: what it is made of will not come");
                // One that is gone needs nothing.
                let _gone = handle.tell(Command::Kill).await;
            }
        }
    }

    /// Goes on with the files that an earlier agent's forks use already.
    pub async fn resume_arriving(self: &Arc<Self>) -> std::io::Result<()> {
        let names = self.transfers.arriving.find().await?;
        // Those that a server which has ended by now was about to show, too.
        remove_parts(&self.vms.engine().layout)?;
        if names.is_empty() {
            return Ok(());
        }
        tracing::info!(
            files = names.len(),
            "files that are used already are fetched on"
        );
        let node = Arc::clone(self);
        self.tasks.spawn(async move {
            // What the snapshots are that they belong to.
            node.forks.catch_up(&node).await;
            if node.cancel.is_cancelled() {
                return;
            }
            for name in names {
                node.resume_one(&name).await;
            }
        });
        Ok(())
    }

    async fn resume_one(self: &Arc<Self>, name: &str) {
        let state = self.state();
        let file = FileName::of_shown(name);
        let snapshot = state.snapshots.values().find(|snapshot| {
            let content = snapshot.content.as_ref();
            content.is_some_and(|content| {
                file::of_snapshot(content)
                    .iter()
                    .any(|(one, _)| Some(*one) == file)
            })
        });
        let image = state.images.values().find(|image| {
            let disk = image.disk.as_ref();
            disk.is_some_and(|disk| Some(FileName::Image(disk.blob.sha256)) == file)
        });
        match (file, snapshot, image) {
            (_, Some(snapshot), _) => self.begin_obtaining(snapshot.id),
            (_, None, Some(image)) => self.begin_fetch(image.id),
            (Some(file), None, None) => self.give_up(&[(file, Expected::Parts)], GONE).await,
            (None, None, None) => {
                self.transfers.arriving.give_up(name).await;
            }
        }
    }
}
