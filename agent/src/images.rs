//! Having an image's files here.

use std::sync::{Arc, PoisonError};

use raft::state::{Blob, Command, Image, ImageId};

use crate::{node::Node, transfer::Usable};

/// The files of an image.
pub fn blobs_of(image: &Image) -> impl Iterator<Item = &Blob> {
    let disk = image.disk.as_ref().map(|disk| &disk.blob);
    image.kernel.iter().chain(&image.initrd).chain(disk)
}

impl Node {
    /// An image some of whose files are not here; `None` when all are.
    fn lacking(&self, id: ImageId) -> Result<Option<Arc<Image>>, String> {
        let state = self.state();
        let image = state.images.get(&id);
        let image = image.ok_or_else(|| format!("the image {id} is not known"))?;
        Ok((!self.has_image(&state, id)).then(|| Arc::clone(image)))
    }

    /// Makes sure that an image's files are all here.
    pub async fn fetch_image(self: &Arc<Self>, id: ImageId) -> Result<(), String> {
        let Some(image) = self.lacking(id)? else {
            return Ok(());
        };
        for blob in blobs_of(&image) {
            self.have_blob(&image, blob, None).await?;
        }
        self.report(Command::ReportImage {
            image: id,
            node: self.id(),
        })
        .await;
        Ok(())
    }

    /// Makes sure that what a fork needs of an image is here: its disk. What its guest needs to start anew comes after that, beside everything
    /// else.
    pub async fn fetch_image_disk(self: &Arc<Self>, id: ImageId) -> Result<(), String> {
        let Some(image) = self.lacking(id)? else {
            return Ok(());
        };
        if let Some(disk) = &image.disk {
            self.begin_disk(&image, disk.blob.clone()).await?;
        }
        self.begin_fetch(id);
        Ok(())
    }

    /// Has an image's disk come, and waits until it can be used.
    async fn begin_disk(self: &Arc<Self>, image: &Arc<Image>, blob: Blob) -> Result<(), String> {
        let usable = Arc::<Usable>::default();
        let (node, image, early) = (Arc::clone(self), Arc::clone(image), Arc::clone(&usable));
        let mut whole = self.tasks.spawn(async move {
            tokio::select! {
                () = node.cancel.cancelled() => Err("the agent ends".to_owned()),
                had = node.have_blob(&image, &blob, Some(early)) => had,
                () = node.until_no_image(&image, &blob) => Err(format!("the image {:?} was deleted meanwhile", image.name)),
            }
        });
        tokio::select! {
            biased;
            had = &mut whole => had.map_err(|panic| panic.to_string())?,
            () = usable.until(1) => Ok(()),
        }
    }

    /// Fetches an image beside everything else, unless that is under way.
    pub fn begin_fetch(self: &Arc<Self>, id: ImageId) {
        let fetching = || self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if !fetching().insert(id) {
            return;
        }
        let node = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = node.cancel.cancelled() => {}
                result = node.fetch_image(id) => if let Err(problem) = result {
                    tracing::warn!(image = %id, problem, "an image could not be fetched; trying again");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
            node.fetching.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            node.wake.notify_one();
        });
    }
}
