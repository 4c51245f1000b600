//! `fpagent backup`: asks a node for a backup of the state, and keeps it; `backup check` reads one.

use std::{
    io::{self, Read as _, Write as _},
    path::Path,
};

use proto::v1::CreateBackupRequest;

use crate::{
    backup::Backup,
    client::{
        Context,
        args::recovery::{BackupArgs, BackupCommand},
        failure::Failure,
        reach::broken,
        views::recovery::BackupView,
    },
    trust::{
        TrustError,
        files::{self, Readers},
    },
};

pub(crate) async fn run(context: &Context, args: BackupArgs) -> Result<(), Failure> {
    if let Some(BackupCommand::Check { file }) = args.command {
        let (backup, size) = load(&file)?;
        return show(context, &BackupView::new(&backup, size));
    }
    let file = args
        .file
        .ok_or_else(|| Failure::usage("FILE is missing", ""))?;
    let bytes = fetch(context, args.with_authority).await?;
    // Nothing is kept that could not be restored.
    let backup = Backup::read(&bytes)
        .map_err(|error| Failure::refused(format!("the agent's answer: {error}"), ""))?;
    if is_standard(&file) {
        let mut out = io::stdout().lock();
        out.write_all(&bytes)?;
        return Ok(out.flush()?);
    }
    files::write(&file, &bytes, Readers::Owner)?;
    show(context, &BackupView::new(&backup, bytes.len()))
}

async fn fetch(context: &Context, with_authority: bool) -> Result<Vec<u8>, Failure> {
    let request = CreateBackupRequest { with_authority };
    let reach = context.reach()?;
    let begun = reach.call(async |attempt| {
        let request = attempt.request(request);
        attempt.cluster().create_backup(request).await
    });
    let mut stream = begun.await?;
    let mut bytes = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(part)) => bytes.extend_from_slice(&part.chunk),
            Ok(None) => return Ok(bytes),
            Err(status) if std::error::Error::source(&status).is_some() => {
                return Err(broken(&status, "nothing was written; try again"));
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// Reads and checks a backup. Gives its size, too.
pub(super) fn load(file: &Path) -> Result<(Backup, usize), Failure> {
    let mut bytes = Vec::new();
    let read = match is_standard(file) {
        true => io::stdin().lock().read_to_end(&mut bytes),
        false => std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(TrustError::file("read", file))?;
    match Backup::read(&bytes) {
        Ok(backup) => Ok((backup, bytes.len())),
        Err(error) => Err(Failure::refused(
            format!("{} cannot be used: {error}", file.display()),
            "use another backup",
        )),
    }
}

fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

pub(super) fn show(context: &Context, view: &BackupView) -> Result<(), Failure> {
    match context.for_people() {
        true => context.lines(&view.lines()),
        false => context.data(view),
    }
}
