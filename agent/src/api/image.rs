//! Images: taken in, checked, listed, deleted.

use prost::Message as _;
use proto::v1::{
    DeleteImageRequest, DeleteImageResponse, GetImageRequest, Image, ImageFileKind,
    ImportImageHeader, ImportImageRequest, ListImagesRequest, ListImagesResponse,
    image_service_server::ImageService, import_image_request::Part,
};
use raft::state::{
    Blob, Command, DiskBlob, ImageId, ObjectId, RequestKey, Response as Outcome, names,
};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status, Streaming};
use ulid::Ulid;

use super::{
    Api,
    asker::{asked, for_owner},
    made, request_key, unexpected,
};
use crate::{
    audit,
    blobs::{Incoming, Taken},
    convert,
    errors::{ApiError, chain},
};

/// How long a guest may take to say that it is ready, when the importer does not say.
const BOOT_TIMEOUT_MS: u64 = 60_000;
/// Room is looked at again after this much.
const CHECK_ROOM_EVERY: u64 = 16 << 20;

/// The files of an image that is being imported.
#[derive(Debug, Default)]
struct Files {
    kernel: Option<Blob>,
    initrd: Option<Blob>,
    disk: Option<DiskBlob>,
}

#[tonic::async_trait]
impl ImageService for Api {
    async fn import_image(
        &self,
        request: Request<Streaming<ImportImageRequest>>,
    ) -> Result<Response<Image>, Status> {
        let (by, deadline) = asked(&request)?;
        let mut parts = request.into_inner();
        self.has_room()?;
        let header = match parts.message().await?.and_then(|first| first.part) {
            Some(Part::Header(header)) => header,
            _ => return Err(invalid("part", "the header comes first").into()),
        };
        let by = for_owner(by, &header.owner)?;
        audit::about(|| made(&by, format!("image {}", header.name)));
        names::check_name("name", &header.name).map_err(ApiError::from)?;
        let _until_it_is_referred_to = self.node.begin_import();
        let files = self.take_files(&mut parts).await?;
        if files.kernel.is_none() && (!header.cmdline.is_empty() || files.initrd.is_some()) {
            return Err(invalid("kernel", "an initrd or a command line needs a kernel").into());
        }
        let key = import_key(&header, &files);
        let guest_agent = convert::spec::guest_agent(header.guest_agent());
        let command = Command::ImportImage {
            id: ImageId(Ulid::new().0),
            name: header.name,
            kernel: files.kernel,
            initrd: files.initrd,
            disk: files.disk,
            cmdline: header.cmdline,
            ready_line: Some(header.ready_line).filter(|line| !line.is_empty()),
            boot_timeout_ms: if header.boot_timeout_ms == 0 {
                BOOT_TIMEOUT_MS
            } else {
                header.boot_timeout_ms
            },
            guest_agent,
            node: self.node.id(),
        };
        match self.change(&by, key, command, deadline).await? {
            Outcome::Image(id) => {
                let state = self.node.state();
                let image = names::image(&state, &by, &id.to_string()).map_err(ApiError::from)?;
                Ok(Response::new(convert::image(&state, &by, image)))
            }
            other => Err(unexpected(other).into()),
        }
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let state = self.read(deadline).await?;
        let mut images: Vec<_> = state
            .images
            .values()
            .filter(|image| image.ownership.is_seen_by(&by))
            .map(|image| convert::image(&state, &by, image))
            .collect();
        images.sort_by(|a, b| (&a.name, &a.owner).cmp(&(&b.name, &b.owner)));
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn get_image(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<Image>, Status> {
        let (by, deadline) = asked(&request)?;
        let named = request.into_inner().image;
        audit::about(|| format!("image {named}"));
        let state = self.read(deadline).await?;
        let image = names::image(&state, &by, &named).map_err(ApiError::from)?;
        Ok(Response::new(convert::image(&state, &by, image)))
    }

    async fn delete_image(
        &self,
        request: Request<DeleteImageRequest>,
    ) -> Result<Response<DeleteImageResponse>, Status> {
        let (by, deadline) = asked(&request)?;
        let request = request.into_inner();
        let state = self.read(deadline).await?;
        let id = names::image(&state, &by, &request.image).map(|image| image.id);
        let key = request_key(&request, |request| &mut request.request_id);
        self.change(
            &by,
            key,
            Command::DeleteImage {
                image: request.image,
            },
            deadline,
        )
        .await?;
        if let Ok(id) = id {
            // Nodes that are offline delete theirs when they are back.
            self.purged(ObjectId::Image(id), deadline).await;
        }
        Ok(Response::new(DeleteImageResponse {}))
    }
}

/// The key of an import: its header and what its files are, which a repeated import brings again.
fn import_key(header: &ImportImageHeader, files: &Files) -> RequestKey {
    let mut key = request_key(header, |header| &mut header.request_id);
    let disk = files.disk.as_ref().map(|disk| &disk.blob);
    let mut hash = Sha256::new()
        .chain_update(key.body)
        .chain_update(header.encoded_len().to_be_bytes());
    for blob in [files.kernel.as_ref(), files.initrd.as_ref(), disk] {
        hash.update(blob.map_or([0; 32], |blob| blob.sha256));
    }
    key.body = hash.finalize().into();
    key
}

fn invalid(field: &'static str, problem: &str) -> ApiError {
    ApiError::InvalidField {
        field,
        problem: problem.to_owned(),
    }
}

fn write_failed(error: std::io::Error) -> ApiError {
    match error.raw_os_error() {
        Some(libc_codes::ENOSPC | libc_codes::EDQUOT) => {
            ApiError::DiskFull(format!("the file cannot be kept: {error}"))
        }
        _ => ApiError::Internal(format!("the file cannot be kept: {error}")),
    }
}

/// Numbers of errors that mean that a disk is full.
mod libc_codes {
    pub const ENOSPC: i32 = rustix::io::Errno::NOSPC.raw_os_error();
    pub const EDQUOT: i32 = rustix::io::Errno::DQUOT.raw_os_error();
}

impl Api {
    async fn take_files(
        &self,
        parts: &mut Streaming<ImportImageRequest>,
    ) -> Result<Files, ApiError> {
        let mut files = Files::default();
        let mut current: Option<(ImageFileKind, Incoming)> = None;
        let mut since_check = 0;
        loop {
            let part = parts.message().await.map_err(|status| {
                ApiError::BadImage(format!("the import was broken off: {}", status.message()))
            })?;
            match part.map(|part| part.part) {
                Some(Some(Part::Chunk(chunk))) => {
                    let Some((_, incoming)) = &mut current else {
                        return Err(invalid(
                            "part",
                            "a chunk came before the file it belongs to",
                        ));
                    };
                    since_check += chunk.len() as u64;
                    if since_check > CHECK_ROOM_EVERY {
                        self.has_room()?;
                        since_check = 0;
                    }
                    incoming.write(&chunk).map_err(write_failed)?;
                }
                Some(Some(Part::BeginFile(kind))) => {
                    self.finish_file(&mut files, current.take()).await?;
                    let kind = ImageFileKind::try_from(kind).unwrap_or_default();
                    let name = format!("import-{}", Ulid::new());
                    let layout = &self.node.vms.engine().layout;
                    current = Some((kind, Incoming::begin(layout, &name).map_err(write_failed)?));
                }
                Some(Some(Part::Header(_)) | None) => {
                    return Err(invalid("part", "the header comes once"));
                }
                None => {
                    self.finish_file(&mut files, current.take()).await?;
                    return Ok(files);
                }
            }
        }
    }

    async fn finish_file(
        &self,
        files: &mut Files,
        current: Option<(ImageFileKind, Incoming)>,
    ) -> Result<(), ApiError> {
        let Some((kind, mut incoming)) = current else {
            return Ok(());
        };
        match kind {
            ImageFileKind::Kernel => {
                if !incoming.is_kernel().map_err(write_failed)? {
                    return Err(ApiError::BadImage(
                        "the kernel is neither a bzImage nor an ELF file".to_owned(),
                    ));
                }
                files.kernel = Some(blob(self.keep(incoming).await?));
            }
            ImageFileKind::Initrd => {
                if !incoming.is_initrd().map_err(write_failed)? {
                    return Err(ApiError::BadImage(
                        "the initrd is no cpio archive, plain or compressed".to_owned(),
                    ));
                }
                files.initrd = Some(blob(self.keep(incoming).await?));
            }
            ImageFileKind::Disk => {
                let info = qemu::disk::inspect(
                    &self.node.qemu_img,
                    incoming.path(),
                    self.node.helper_user,
                )
                .await;
                let info = info.map_err(|error| match error {
                    qemu::disk::DiskError::Unusable(problem) => ApiError::BadImage(problem),
                    qemu::disk::DiskError::QemuImg { .. } => ApiError::BadImage(chain(&error)),
                    qemu::disk::DiskError::Io { .. } => ApiError::HostUnfit {
                        problem: chain(&error),
                        hint: "install qemu-img (package qemu-utils) on this node",
                    },
                })?;
                let blob = blob(self.keep(incoming).await?);
                files.disk = Some(DiskBlob {
                    blob,
                    virtual_bytes: info.virtual_bytes,
                });
            }
            ImageFileKind::Unspecified => {
                return Err(invalid("beginFile", "say what the file is for"));
            }
        }
        Ok(())
    }

    async fn keep(&self, incoming: Incoming) -> Result<Taken, ApiError> {
        if self.node.free_bytes().map_err(write_failed)? < self.node.reserves.disk {
            self.has_room()?;
        }
        let layout = self.node.vms.engine().layout.clone();
        spawn_blocking(move || incoming.keep(&layout))
            .await
            .map_err(|panic| ApiError::Internal(panic.to_string()))?
            .map_err(write_failed)
    }
}

fn blob(taken: Taken) -> Blob {
    Blob {
        sha256: taken.sha256,
        size_bytes: taken.bytes,
    }
}
