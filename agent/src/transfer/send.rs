//! Answering nodes that fetch files: what is in them, and the parts that are asked for.

use std::{fs::File, io, ops::Range, sync::Arc};

use proto::peer::{DescribeFileResponse, HeldFile, ReadFileRequest, ReadFileResponse};
use qemu::{failpoint, sys::PAGE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    file::FileName,
    pack::{Reader, digest, next_data},
};
use crate::node::Node;

/// Messages that are read ahead of who takes them.
const AHEAD: usize = 2;
/// The most ranges of one request.
const MOST_RANGES: usize = 4096;
/// The most digests of one message: 64 KiB of them.
const MOST_DIGESTS: usize = 4096;

/// Parts of an answer.
pub type Parts<T> = ReceiverStream<Result<T, Status>>;

/// Says what is in a file.
pub async fn describe(
    node: &Arc<Node>,
    file: Option<HeldFile>,
    digests: bool,
) -> Result<Parts<DescribeFileResponse>, Status> {
    let file = open(node, file).await?;
    let turn = Arc::clone(&node.transfers.sending).acquire_owned().await;
    let turn = turn.map_err(|closed| Status::unavailable(closed.to_string()))?;
    let size = file.metadata().map_err(failed)?.len();
    let (sender, receiver) = mpsc::channel(AHEAD);
    node.tasks.spawn_blocking(move || {
        let _turn = turn;
        let first = DescribeFileResponse {
            size,
            last: !digests,
            ..Default::default()
        };
        // Whoever asked may be gone.
        if sender.blocking_send(Ok(first)).is_err() || !digests {
            return;
        }
        let told = tell_pages(&file, size, |run| sender.blocking_send(Ok(run)).is_ok());
        let end = told.map_err(failed).map(|()| DescribeFileResponse {
            last: true,
            ..Default::default()
        });
        let _gone = sender.blocking_send(end);
    });
    Ok(ReceiverStream::new(receiver))
}

/// Tells the digests of all pages that hold something, a run of them after the other, while somebody listens.
pub(super) fn tell_pages(
    file: &File,
    size: u64,
    mut tell: impl FnMut(DescribeFileResponse) -> bool,
) -> io::Result<()> {
    let (mut run, mut at) = (DescribeFileResponse::default(), 0);
    let mut digests = Vec::new();
    while let Some((from, data)) = next_data(file, at, size)? {
        at = from + data.len() as u64;
        for (page, bytes) in (from / PAGE as u64..).zip(data.chunks(PAGE)) {
            let Some(digest) = digest(bytes) else {
                continue;
            };
            let goes_on = run.first_page + (digests.len() / digest.len()) as u64 == page;
            if (!goes_on || digests.len() / digest.len() == MOST_DIGESTS) && !digests.is_empty() {
                run.digests = std::mem::take(&mut digests).into();
                if !tell(std::mem::take(&mut run)) {
                    return Ok(());
                }
            }
            if digests.is_empty() {
                run.first_page = page;
            }
            digests.extend_from_slice(&digest);
        }
    }
    run.digests = digests.into();
    if !run.digests.is_empty() {
        tell(run);
    }
    Ok(())
}

/// Gives what is in ranges of a file.
pub async fn read(
    node: &Arc<Node>,
    request: ReadFileRequest,
) -> Result<Parts<ReadFileResponse>, Status> {
    let ranges: Vec<Range<u64>> = request.ranges.iter().map(|one| one.from..one.to).collect();
    let ascend = ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
    if !ascend || ranges.len() > MOST_RANGES || ranges.iter().any(Range::is_empty) {
        return Err(Status::invalid_argument(
            "the ranges are none, too many, or do not ascend",
        ));
    }
    let file = open(node, request.file).await?;
    let mut reader = Reader::new(file, ranges).map_err(failed)?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let context = Arc::clone(node);
    let urgent = request.urgent;
    node.tasks.spawn(async move {
        let _others_wait = urgent.then(|| context.transfers.pace.give_way());
        loop {
            // A turn for each part: however many ask, all get on.
            let Ok(turn) = context.transfers.sending.acquire().await else {
                return;
            };
            let read = tokio::task::spawn_blocking(move || (reader.part(), reader)).await;
            drop(turn);
            let part;
            (part, reader) = match read {
                Ok(read) => read,
                Err(panic) => {
                    let _gone = sender.send(Err(failed(io::Error::other(panic)))).await;
                    return;
                }
            };
            let part = match part {
                Ok(None) => return,
                Ok(Some(part)) => {
                    context.transfers.pace.wait(part.packed.len(), urgent).await;
                    failpoint::reached("transfer.part-read");
                    Ok(part)
                }
                Err(error) => Err(failed(error)),
            };
            let ends = part.is_err();
            if sender.send(part).await.is_err() || ends {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Opens a file that is here and may be given away.
async fn open(node: &Arc<Node>, file: Option<HeldFile>) -> Result<File, Status> {
    let name = file.as_ref().and_then(FileName::of);
    let name = name.ok_or_else(|| Status::invalid_argument("that names no file"))?;
    node.store
        .check_file(&name.relative())
        .map_err(Status::not_found)?;
    let path = name.path(&node.vms.engine().layout);
    tokio::task::spawn_blocking(move || File::open(path))
        .await
        .map_err(|panic| failed(io::Error::other(panic)))?
        .map_err(|error| Status::not_found(format!("the file is not here: {error}")))
}

fn failed(error: io::Error) -> Status {
    Status::internal(format!("the file cannot be read: {error}"))
}
