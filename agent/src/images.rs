//! Fetching an image's files from a node that has them.

use std::{io, sync::Arc, sync::PoisonError};

use proto::peer::FetchFileRequest;
use raft::state::{Blob, Command, Image, ImageId, NodeId};
use ulid::Ulid;

use crate::{
    blobs::{Incoming, hex, is_here},
    errors::chain,
    metrics,
    node::Node,
};

/// The files of an image.
pub fn blobs_of(image: &Image) -> impl Iterator<Item = &Blob> {
    let disk = image.disk.as_ref().map(|disk| &disk.blob);
    image.kernel.iter().chain(&image.initrd).chain(disk)
}

/// A file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The node that has it did not send it.
    #[error("node {node} did not send it")]
    Peer {
        /// Which node.
        node: NodeId,
        /// The cause.
        #[source]
        source: tonic::Status,
    },
    /// The node that has it cannot be reached.
    #[error("node {node} cannot be reached")]
    Unreachable {
        /// Which node.
        node: NodeId,
        /// The cause.
        #[source]
        source: crate::peers::PeerError,
    },
    /// It could not be written.
    #[error("it cannot be written")]
    Write(#[from] io::Error),
    /// It came with another content.
    #[error("node {0} sent other bytes than it should have")]
    Digest(NodeId),
}

impl Node {
    /// Makes sure that an image's files are all here.
    pub async fn fetch_image(self: &Arc<Self>, id: ImageId) -> Result<(), String> {
        let state = self.state();
        let image = state
            .images
            .get(&id)
            .ok_or_else(|| format!("the image {id} is not known"))?;
        if self.has_image(&state, id) {
            return Ok(());
        }
        for blob in blobs_of(image) {
            if !is_here(&self.vms.engine().layout, &blob.sha256) {
                self.fetch_blob(image, blob).await?;
            }
        }
        self.report(Command::ReportImage {
            image: id,
            node: self.id(),
        })
        .await;
        Ok(())
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

    async fn fetch_blob(&self, image: &Image, blob: &Blob) -> Result<(), String> {
        let mut problems = Vec::new();
        for source in image
            .nodes
            .iter()
            .copied()
            .filter(|source| *source != self.id())
        {
            match self.fetch_from(source, blob).await {
                Ok(()) => return Ok(()),
                Err(error) => problems.push(chain(&error)),
            }
        }
        let problems = if problems.is_empty() {
            "no other node has it".to_owned()
        } else {
            problems.join("; ")
        };
        Err(format!(
            "image {:?}: {}: {problems}",
            image.name,
            hex(&blob.sha256)
        ))
    }

    async fn fetch_from(&self, source: NodeId, blob: &Blob) -> Result<(), FetchError> {
        let unreachable = |error| FetchError::Unreachable {
            node: source,
            source: error,
        };
        let refused = |status| FetchError::Peer {
            node: source,
            source: status,
        };
        let mut client = self.peers.client(source).await.map_err(unreachable)?;
        let request = FetchFileRequest {
            sha256: hex(&blob.sha256),
            offset: 0,
        };
        let mut stream = client
            .fetch_file(request)
            .await
            .map_err(refused)?
            .into_inner();
        let layout = self.vms.engine().layout.clone();
        // Of its own: somebody else may be fetching the same.
        let name = format!("fetch-{}", Ulid::new());
        let mut incoming = Incoming::begin(&layout, &name)?;
        while let Some(part) = stream.message().await.map_err(refused)? {
            incoming.write(&part.chunk)?;
            metrics::fetched(part.chunk.len());
        }
        let taken = tokio::task::spawn_blocking(move || incoming.keep(&layout))
            .await
            .map_err(io::Error::other)??;
        // What came under another hash lies under that name, unreferenced, and is collected.
        if taken.sha256 == blob.sha256 {
            Ok(())
        } else {
            Err(FetchError::Digest(source))
        }
    }
}
