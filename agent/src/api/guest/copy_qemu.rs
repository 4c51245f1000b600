//! Files on their way into guests that have QEMU's agent only, and out of them: one at a time, without their times, and without a
//! way to go on where a copy was broken off. What QEMU's agent cannot do with a file, programs of the guest do (`test`, `stat`, `mv`).

use std::{fmt::Display, sync::Arc};

use guest::{
    channel::{
        message::{Piece, PieceKind},
        mux::Broken,
    },
    files::{
        CHUNK, Content, Done, Reply, Said, TreeEnd, Wanted,
        check::{self, is_name},
    },
};
use proto::v1::{
    CopyInRequest, CopyInResponse, CopyInStart, CopyOutRequest, CopyOutResponse, CopyOutStart,
    copy_in_request::Part as In, copy_out_request::Part as Back,
};
use rustix::fs::FileType;
use tonic::Streaming;

use super::super::carry::{Answers, Found};
use crate::{
    convert::files,
    guest::{Qemu, Unheard, shown},
    node::Node,
};

/// The most that is shown of what a program of the guest complains of, characters.
const LONGEST_SHOWN: usize = 300;
/// What `test` says of what is not so.
const NO: i32 = 1;
/// Brings a file into a VM.
pub(super) fn open_in(
    node: &Arc<Node>,
    found: &Found,
    qemu: Arc<Qemu>,
    start: CopyInStart,
    inputs: Streaming<CopyInRequest>,
) -> Answers<CopyInResponse> {
    super::attended(node, found, |answers| async move {
        let mut inputs = Inputs(inputs);
        let piece = inputs.only_file().await?;
        let target = target(&qemu, &start).await?;
        let say = async |reply| {
            let part = Some(files::copy_in_reply(reply));
            let sent = answers.send(Ok(CopyInResponse { part })).await;
            sent.map_err(|_| Unheard::from(Broken::Cancelled))
        };
        say(Reply::Wanted(Wanted::default())).await?;
        // Beside its place until it is whole.
        let part = format!("{target}{}", guest::files::PART_ENDING);
        let placed = async {
            let file = qemu.open(&part, "w").await?;
            loop {
                let content = inputs.content().await?;
                file.write(&content.bytes).await?;
                if content.last {
                    break;
                }
            }
            inputs.end().await?;
            file.close().await?;
            let mode = format!("{:o}", piece.mode);
            run(&qemu, &["chmod", &mode, "--", &part]).await?;
            run(&qemu, &["mv", "-f", "-T", "--", &part, &target]).await
        };
        if let Err(problem) = placed.await {
            // What went wrong is told, not that this does as well.
            let _left = run(&qemu, &["rm", "-f", "--", &part]).await;
            return Err(problem);
        }
        say(Reply::Done(Done::default())).await
    })
}

/// Takes a file out of a VM.
pub(super) fn open_out(
    node: &Arc<Node>,
    found: &Found,
    qemu: Arc<Qemu>,
    start: CopyOutStart,
    mut inputs: Streaming<CopyOutRequest>,
) -> Answers<CopyOutResponse> {
    super::attended(node, found, |answers| async move {
        let path = text(&start.path)?;
        let (piece, bytes) = stat(&qemu, &path).await?;
        let say = async |said| {
            let part = Some(files::copy_out(said));
            let sent = answers.send(Ok(CopyOutResponse { part })).await;
            sent.map_err(|_| Unheard::from(Broken::Cancelled))
        };
        say(Said::Piece(piece)).await?;
        let wanted = match back(&mut inputs).await? {
            Back::Wanted(wanted) => files::wanted(wanted),
            _ => return Err(failed("it was done before all was there")),
        };
        if !wanted.same {
            let file = qemu.open(&path, "r").await?;
            let mut offset = 0;
            loop {
                let left = bytes - offset;
                let most = left.min(CHUNK as u64) as usize;
                let read = match most {
                    0 => Vec::new(),
                    most => file.read(most).await?,
                };
                if read.is_empty() && left > 0 {
                    return Err(failed(format!(
                        "{path}: it became shorter while it was read"
                    )));
                }
                let last = read.len() as u64 == left;
                let content = Content {
                    offset,
                    last,
                    bytes: read.into(),
                    gone: false,
                };
                offset += content.bytes.len() as u64;
                say(Said::Content(content)).await?;
                if last {
                    break;
                }
            }
            file.close().await?;
        }
        say(Said::End(TreeEnd::default())).await?;
        match back(&mut inputs).await? {
            Back::Done(_) => Ok(()),
            _ => Err(failed("it wants more than there was")),
        }
    })
}

fn failed(why: impl Display) -> Unheard {
    Broken::Failed(why.to_string()).into()
}

/// A path as QEMU's agent takes it.
fn text(path: &[u8]) -> Result<String, Unheard> {
    match std::str::from_utf8(path) {
        Ok(path) if path.starts_with('/') => Ok(path.to_owned()),
        Ok(_) => Err(Unheard::Unable("it takes whole paths only: begin with /")),
        Err(_) => Err(Unheard::Unable("it takes paths in UTF-8 only")),
    }
}

/// Runs a program of the guest: whether it ended with 0, or what it complained of.
async fn try_run(
    qemu: &Qemu,
    argv: &[&str],
) -> Result<Result<String, (Option<i32>, String)>, Unheard> {
    let words: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
    let ran = qemu.exec(&words, &[], &[]).await?;
    if ran.code == Some(0) {
        return Ok(Ok(String::from_utf8_lossy(&ran.out).into_owned()));
    }
    let said = shown(String::from_utf8_lossy(&ran.err).trim(), LONGEST_SHOWN);
    Ok(Err((ran.code, said)))
}

/// The same where it must end with 0: what it printed.
async fn run(qemu: &Qemu, argv: &[&str]) -> Result<String, Unheard> {
    let ran = try_run(qemu, argv).await?;
    ran.map_err(|(_, said)| failed(said))
}

/// Where a file goes: into a folder that is there, or to just there.
async fn target(qemu: &Qemu, start: &CopyInStart) -> Result<String, Unheard> {
    let path = text(&start.path)?;
    match try_run(qemu, &["test", "-d", &path]).await? {
        Ok(_) if is_name(&start.name) => {
            let name = std::str::from_utf8(&start.name)
                .map_err(|_| Unheard::Unable("it takes paths in UTF-8 only"))?;
            Ok(format!("{}/{name}", path.trim_end_matches('/')))
        }
        Ok(_) => Err(failed(format!("{path}: it is a folder"))),
        Err((Some(NO), _)) if !path.ends_with('/') => Ok(path),
        Err((Some(NO), _)) => Err(failed(format!("{path}: there is no such folder"))),
        Err((_, said)) => Err(failed(said)),
    }
}

/// What there is of a file, and how many bytes.
async fn stat(qemu: &Qemu, path: &str) -> Result<(Piece, u64), Unheard> {
    // Through links, in hexadecimal and in decimal.
    let said = run(qemu, &["stat", "-L", "-c", "%f %s %Y", "--", path]).await?;
    let mut numbers = said.split_whitespace();
    let mode = numbers
        .next()
        .and_then(|mode| u32::from_str_radix(mode, 16).ok());
    let mut number = || numbers.next()?.parse::<i64>().ok();
    let (bytes, seconds) = (
        number().and_then(|bytes| u64::try_from(bytes).ok()),
        number(),
    );
    let (Some(mode), Some(bytes), Some(seconds)) = (mode, bytes, seconds) else {
        let said = shown(&said, LONGEST_SHOWN);
        return Err(Unheard::Unsound(format!(
            "its stat says {said:?} of a file"
        )));
    };
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return Err(Unheard::Unable(
            "it copies files one at a time, no folders or devices",
        ));
    }
    let piece = Piece {
        kind: PieceKind::File.into(),
        mode: mode & 0o777,
        modified_ns: seconds.saturating_mul(1_000_000_000),
        bytes: Some(bytes),
        ..Piece::default()
    };
    check::piece(&piece).map_err(|malformed| Unheard::Unsound(malformed.to_string()))?;
    Ok((piece, bytes))
}

async fn back(inputs: &mut Streaming<CopyOutRequest>) -> Result<Back, Unheard> {
    loop {
        match inputs.message().await {
            Ok(Some(CopyOutRequest { part: Some(part) })) => return Ok(part),
            // Of a newer client.
            Ok(Some(CopyOutRequest { part: None })) => {}
            Ok(None) | Err(_) => return Err(Broken::Cancelled.into()),
        }
    }
}

/// What a caller says of the one file that it brings.
struct Inputs(Streaming<CopyInRequest>);

impl Inputs {
    async fn next(&mut self) -> Result<Said, Unheard> {
        loop {
            let part = match self.0.message().await {
                Ok(Some(CopyInRequest { part: Some(part) })) => part,
                // Of a newer client.
                Ok(Some(CopyInRequest { part: None })) => continue,
                Ok(None) | Err(_) => return Err(Broken::Cancelled.into()),
            };
            return Ok(match part {
                In::Piece(piece) => Said::Piece(files::piece(piece)),
                In::Content(content) => Said::Content(files::content(content)),
                In::End(end) => Said::End(files::end(end)),
                In::Failed(why) => return Err(failed(why)),
                In::Start(_) => return Err(failed("a second copy came in one call")),
            });
        }
    }

    async fn only_file(&mut self) -> Result<Piece, Unheard> {
        let Said::Piece(piece) = self.next().await? else {
            return Err(failed("no file comes first"));
        };
        match check::piece(&piece).map_err(failed)? {
            PieceKind::File if piece.path.is_empty() => Ok(piece),
            _ => Err(Unheard::Unable(
                "it copies files one at a time, no folders or devices",
            )),
        }
    }

    /// More of it.
    async fn content(&mut self) -> Result<Content, Unheard> {
        let Said::Content(content) = self.next().await? else {
            return Err(failed("something else comes before the file's end"));
        };
        check::content(&content).map_err(failed)?;
        match content.gone {
            false => Ok(content),
            true => Err(failed("it was deleted before it was read")),
        }
    }

    async fn end(&mut self) -> Result<(), Unheard> {
        match self.next().await? {
            Said::End(_) => Ok(()),
            _ => Err(Unheard::Unable(
                "it copies files one at a time, no folders or devices",
            )),
        }
    }
}
