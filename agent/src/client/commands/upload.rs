//! The files of an image on their way to an agent.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::BytesMut;
use futures::{Stream, stream};
use proto::v1::{ImageFileKind, ImportImageHeader, ImportImageRequest, import_image_request::Part};
use tokio::{fs::File, io::AsyncReadExt as _, sync::mpsc};

use crate::client::{failure::Failure, views::image::file_kind_word};

const CHUNK: usize = 1 << 20;

/// A file that was there when it was looked at.
#[derive(Debug, Clone)]
pub struct LocalFile {
    kind: ImageFileKind,
    path: PathBuf,
    /// Bytes.
    pub size: u64,
}

impl LocalFile {
    /// Checks that a file is there, is a regular one, can be read and is not empty.
    pub fn check(kind: ImageFileKind, path: &Path) -> Result<Self, Failure> {
        let word = file_kind_word(kind);
        let cannot = |error: io::Error| {
            Failure::refused(
                format!("the {word} {} cannot be read: {error}", path.display()),
                "check the path",
            )
        };
        let metadata = fs::metadata(path).map_err(cannot)?;
        let what = match metadata.file_type() {
            kind if kind.is_file() => None,
            kind if kind.is_dir() => Some("a folder"),
            kind if kind.is_block_device() => Some("a block device"),
            _ => Some("something else"),
        };
        if let Some(what) = what {
            let message = format!("the {word} {} is no file but {what}", path.display());
            return Err(Failure::refused(
                message,
                "give a regular file; a disk can be made one with `qemu-img convert`",
            ));
        }
        fs::File::open(path).map_err(cannot)?;
        if metadata.len() == 0 {
            return Err(Failure::refused(
                format!("the {word} {} is empty", path.display()),
                "check the path",
            ));
        }
        Ok(Self {
            kind,
            path: path.to_owned(),
            size: metadata.len(),
        })
    }
}

/// One try to send an image.
pub struct Upload {
    parts: Option<Parts>,
    sent: Arc<AtomicU64>,
    failure: mpsc::Receiver<Failure>,
}

struct Parts {
    header: Option<ImportImageHeader>,
    files: std::vec::IntoIter<LocalFile>,
    current: Option<(LocalFile, File, u64)>,
    sent: Arc<AtomicU64>,
    failed: mpsc::Sender<Failure>,
}

impl Upload {
    /// Prepares to send a header and these files.
    pub fn new(header: ImportImageHeader, files: Vec<LocalFile>) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let (failed, failure) = mpsc::channel(1);
        let parts = Parts {
            header: Some(header),
            files: files.into_iter(),
            current: None,
            sent: sent.clone(),
            failed,
        };
        Self {
            parts: Some(parts),
            sent,
            failure,
        }
    }

    /// Counts the bytes that were handed over.
    pub fn sent(&self) -> Arc<AtomicU64> {
        self.sent.clone()
    }

    /// What is sent. After a file that cannot be read it neither goes on nor ends: only an end says "this is all".
    pub fn stream(&mut self) -> impl Stream<Item = ImportImageRequest> + Send + 'static + use<> {
        stream::unfold(self.parts.take(), |parts| async move {
            let mut parts = parts?;
            match parts.next().await {
                Ok(part) => part.map(|part| (ImportImageRequest { part: Some(part) }, Some(parts))),
                Err(failure) => {
                    // The receiver is gone only when nobody waits for the call any more.
                    let _ = parts.failed.send(failure).await;
                    std::future::pending().await
                }
            }
        })
    }

    /// Waits for a file that cannot be read; for ever when all can.
    pub async fn failure(&mut self) -> Failure {
        match self.failure.recv().await {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }
}

impl Parts {
    async fn next(&mut self) -> Result<Option<Part>, Failure> {
        if let Some(header) = self.header.take() {
            return Ok(Some(Part::Header(header)));
        }
        if let Some((file, open, left)) = &mut self.current {
            if *left > 0 {
                let cannot = |error: io::Error| {
                    Failure::refused(
                        format!("{} cannot be read: {error}", file.path.display()),
                        "",
                    )
                };
                let mut chunk =
                    BytesMut::with_capacity(CHUNK.min(usize::try_from(*left).unwrap_or(CHUNK)));
                let read = open
                    .take(*left)
                    .read_buf(&mut chunk)
                    .await
                    .map_err(cannot)?;
                if read == 0 {
                    let message =
                        format!("{} became shorter while it was sent", file.path.display());
                    return Err(Failure::refused(
                        message,
                        "import it when nothing writes to it",
                    ));
                }
                *left -= read as u64;
                self.sent.fetch_add(read as u64, Ordering::Relaxed);
                return Ok(Some(Part::Chunk(chunk.freeze())));
            }
            self.current = None;
        }
        let Some(file) = self.files.next() else {
            return Ok(None);
        };
        let open = File::open(&file.path).await.map_err(|error| {
            Failure::refused(
                format!("{} cannot be read: {error}", file.path.display()),
                "",
            )
        })?;
        let (kind, left) = (file.kind, file.size);
        self.current = Some((file, open, left));
        Ok(Some(Part::BeginFile(kind.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;

    fn write(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn what_is_no_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let empty = write(folder.path(), "empty", b"");
        let cases = [
            (
                folder.path().join("missing"),
                "cannot be read: No such file",
            ),
            (folder.path().to_owned(), "is no file but a folder"),
            (PathBuf::from("/dev/null"), "is no file but something else"),
            (empty, "is empty"),
        ];
        for (path, expected) in cases {
            let line = LocalFile::check(ImageFileKind::Disk, &path)
                .unwrap_err()
                .line();
            assert!(
                line.starts_with("fpagent: the disk ") && line.contains(expected),
                "{line}"
            );
        }
    }

    #[tokio::test]
    async fn header_files_and_chunks_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = vec![7; 2 * CHUNK + 5];
        let files = vec![
            LocalFile::check(ImageFileKind::Kernel, &write(folder.path(), "k", &kernel)).unwrap(),
            LocalFile::check(ImageFileKind::Disk, &write(folder.path(), "d", b"disk")).unwrap(),
        ];
        let mut upload = Upload::new(ImportImageHeader::default(), files);
        let parts: Vec<_> = upload
            .stream()
            .map(|request| request.part.unwrap())
            .collect()
            .await;
        assert_eq!(parts[0], Part::Header(ImportImageHeader::default()));
        assert_eq!(parts[1], Part::BeginFile(ImageFileKind::Kernel.into()));
        let split = parts
            .iter()
            .rposition(|part| matches!(part, Part::BeginFile(_)))
            .unwrap();
        assert_eq!(parts[split], Part::BeginFile(ImageFileKind::Disk.into()));
        let content = |parts: &[Part]| -> Vec<u8> {
            let chunk = |part: &Part| match part {
                Part::Chunk(chunk) => chunk.to_vec(),
                other => panic!("{other:?}"),
            };
            parts.iter().flat_map(chunk).collect()
        };
        assert_eq!(content(&parts[2..split]), kernel);
        assert_eq!(content(&parts[split + 1..]), b"disk");
        assert!(
            parts
                .iter()
                .all(|part| !matches!(part, Part::Chunk(chunk) if chunk.len() > CHUNK))
        );
        assert_eq!(
            upload.sent().load(Ordering::Relaxed),
            kernel.len() as u64 + 4
        );
    }

    #[tokio::test]
    async fn a_file_that_shrinks_never_looks_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "d", &[1; 100]);
        let file = LocalFile::check(ImageFileKind::Disk, &path).unwrap();
        fs::write(&path, [1; 10]).unwrap();
        let mut upload = Upload::new(ImportImageHeader::default(), vec![file]);
        let mut stream = std::pin::pin!(upload.stream());
        let failure = loop {
            tokio::select! {
                part = stream.next() => assert!(part.is_some(), "the stream ended"),
                failure = upload.failure() => break failure,
            }
        };
        assert!(
            failure.line().contains("became shorter"),
            "{}",
            failure.line()
        );
    }
}
