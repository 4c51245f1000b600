//! A VM's serial console: what it prints, and what it is to read.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use proto::v1::{ConsoleRequest, ConsoleResponse};
use qemu::console::Pen;
use raft::state::VmId;
use tokio::sync::{broadcast, mpsc};
use tonic::{Status, Streaming};

use super::carry::Answers;
use crate::{node::Node, vms::VmHandle};

/// Input that is taken at once, bytes.
const MOST_INPUT: usize = 64 << 10;

/// Opens the console of a VM of this node. It ends with the caller's input, with the VM, or with the node.
pub(super) fn open(
    node: &Arc<Node>,
    vm: VmId,
    first_input: Bytes,
    inputs: Streaming<ConsoleRequest>,
) -> Result<Answers<ConsoleResponse>, Status> {
    let handle = node.vms.get(vm).filter(|handle| handle.pid() != 0);
    let handle = handle.ok_or_else(|| {
        Status::failed_precondition(
            "the VM has no running process; start it with `fpagent vm start`",
        )
    })?;
    let printed = handle.follow_console();
    // Holds what went wrong with the input; closed at its end.
    let (report, failed) = mpsc::channel(1);
    let ended = node.cancel.clone();
    node.tasks.spawn(async move {
        let written = tokio::select! {
            () = ended.cancelled() => return,
            // The caller's stream of outputs is gone.
            () = report.closed() => return,
            // Deleted, or moved: this task must not keep its console from ending.
            () = handle.gone() => return,
            written = write(&handle, first_input, inputs) => written,
        };
        if let Err(status) = written {
            // Whoever called may be gone.
            let _gone = report.send(status).await;
        }
    });
    let opened = stream::once(async { Ok(ConsoleResponse::default()) });
    let outputs = stream::unfold((printed, failed), |(mut printed, mut failed)| async move {
        let item = tokio::select! {
            // The end of the input, or of the VM, is the end of the call, after what it has printed.
            status = failed.recv() => match status {
                Some(status) => Err(status),
                None => Ok(printed.try_recv().ok()?.into()),
            },
            chunk = printed.recv() => Ok(match chunk {
                Ok(chunk) => chunk.into(),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    format!("\n[{missed} pieces of output were missed: the reader is too slow]\n").into()
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }),
        };
        let item = item.map(|output: Bytes| ConsoleResponse { output });
        Some((item, (printed, failed)))
    });
    Ok(opened
        .chain(outputs)
        .take_until(node.cancel.clone().cancelled_owned())
        .boxed())
}

/// Writes a call's input until it ends.
async fn write(
    handle: &VmHandle,
    first_input: Bytes,
    mut inputs: Streaming<ConsoleRequest>,
) -> Result<(), Status> {
    let mut pen: Option<Pen> = None;
    let mut input = first_input;
    loop {
        if input.len() > MOST_INPUT {
            return Err(Status::invalid_argument(
                "more than 64 KiB of input at once",
            ));
        }
        if !input.is_empty() {
            let pen = match &mut pen {
                Some(pen) => pen,
                None => pen.insert(handle.take_pen().ok_or_else(|| {
                    Status::failed_precondition("somebody else is writing to this console")
                })?),
            };
            pen.write(&input).await.map_err(|error| {
                Status::failed_precondition(format!("the console takes no input: {error}"))
            })?;
        }
        match inputs.message().await {
            Ok(Some(next)) => input = next.input,
            // A connection that broke is an end like any other.
            Ok(None) | Err(_) => return Ok(()),
        }
    }
}
