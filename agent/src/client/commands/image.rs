//! `fpagent image`.

use proto::v1::{
    DeleteImageRequest, GetImageRequest, GuestAgent, ImageFileKind, ImportImageHeader,
    ListImagesRequest,
};
use tonic::Status;

use super::upload::{LocalFile, Upload};
use crate::client::{
    Context,
    args::objects::{ImageCommand, ImportArgs},
    failure::Failure,
    progress::Progress,
    reach::Reach,
    views::image::ImageView,
};

pub(crate) async fn run(context: &Context, command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Import(args) => import(context, args).await,
        ImageCommand::Ls => {
            let reach = context.reach()?;
            let listed = reach.call(async |attempt| {
                attempt
                    .images()
                    .list_images(attempt.request(ListImagesRequest {}))
                    .await
            });
            let images: Vec<_> = listed
                .await?
                .images
                .into_iter()
                .map(ImageView::from)
                .collect();
            context.list(&images)
        }
        ImageCommand::Show { image } => {
            let request = GetImageRequest { image };
            let reach = context.reach()?;
            let shown = reach.call(async |attempt| {
                attempt
                    .images()
                    .get_image(attempt.request(request.clone()))
                    .await
            });
            context.show(&ImageView::from(shown.await?))
        }
        ImageCommand::Rm { image, change } => {
            let request = DeleteImageRequest {
                image,
                request_id: change.id(),
            };
            let reach = context.reach()?;
            let deleted = reach.change(&request.request_id, async |attempt| {
                attempt
                    .images()
                    .delete_image(attempt.request(request.clone()))
                    .await
            });
            deleted.await?;
            if context.for_people() {
                return context.say(format_args!("{} deleted", request.image));
            }
            context.data(&serde_json::json!({ "name": request.image, "deleted": true }))
        }
    }
}

async fn import(context: &Context, args: ImportArgs) -> Result<(), Failure> {
    let files = [
        (ImageFileKind::Kernel, &args.kernel),
        (ImageFileKind::Initrd, &args.initrd),
        (ImageFileKind::Disk, &args.disk),
    ];
    let files: Vec<LocalFile> = files
        .into_iter()
        .filter_map(|(kind, path)| path.as_ref().map(|path| LocalFile::check(kind, path)))
        .collect::<Result<_, _>>()?;
    let header = ImportImageHeader {
        name: args.name.clone(),
        cmdline: args.cmdline,
        ready_line: args.ready_line,
        boot_timeout_ms: u64::try_from(args.boot_timeout.as_millis())
            .unwrap_or(u64::MAX)
            .max(1),
        guest_agent: GuestAgent::from(args.guest_agent).into(),
        owner: args.owner.owner,
        request_id: args.change.id(),
    };
    let reach = context.reach()?;
    let image = send(&reach, &header, &files).await?;
    context.one(image)
}

async fn send(
    reach: &Reach,
    header: &ImportImageHeader,
    files: &[LocalFile],
) -> Result<ImageView, Failure> {
    let total = files.iter().map(|file| file.size).sum();
    let progress = Progress::bytes(format!("importing {}", header.name), total);
    // A file that cannot be read ends the call: the agent must never take half of one for the whole.
    let unreadable = std::cell::RefCell::new(None);
    let imported = reach.change(&header.request_id, async |attempt| {
        let mut upload = Upload::new(header.clone(), files.to_vec());
        let sent = upload.sent();
        let request = attempt.request(upload.stream());
        let mut images = attempt.images();
        let mut call = std::pin::pin!(images.import_image(request));
        let mut shown = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            tokio::select! {
                answer = &mut call => return answer,
                failure = upload.failure() => {
                    *unreadable.borrow_mut() = Some(failure);
                    return Err(Status::aborted("a file could not be read"));
                }
                _ = shown.tick() => progress.at(sent.load(std::sync::atomic::Ordering::Relaxed)),
            }
        }
    });
    let imported = imported.await;
    match unreadable.into_inner() {
        Some(failure) => Err(failure),
        None => imported.map(ImageView::from),
    }
}
