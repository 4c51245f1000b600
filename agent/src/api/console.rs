//! A VM's serial console: what it prints, and what it is to read, carried to its node.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::ready, stream};
use proto::{
    peer::peer_service_client::PeerServiceClient,
    v1::{ConsoleRequest, ConsoleResponse},
};
use qemu::console::Pen;
use raft::state::VmId;
use tokio::{
    sync::{broadcast, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{node::Node, vms::VmHandle};

/// What a console prints, as it is answered.
pub type Outputs = Pin<Box<dyn Stream<Item = Result<ConsoleResponse, Status>> + Send>>;

/// How long the first message of a call may take to come.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// Input that is taken at once, bytes.
const MOST_INPUT: usize = 64 << 10;
/// Inputs that are carried ahead of a guest that does not read.
const INPUTS_AHEAD: usize = 4;

/// The message that names the VM.
pub(super) async fn first(
    inputs: &mut Streaming<ConsoleRequest>,
) -> Result<ConsoleRequest, Status> {
    match timeout(FIRST_PATIENCE, inputs.message()).await {
        Ok(first) => {
            first?.ok_or_else(|| Status::invalid_argument("the first message names the VM"))
        }
        Err(_) => Err(Status::deadline_exceeded(
            "the message that names the VM did not come",
        )),
    }
}

/// Opens the console of a VM of this node. It ends with the caller's input, with the VM, or with the node.
pub(super) fn open(
    node: &Arc<Node>,
    vm: VmId,
    first_input: Bytes,
    inputs: Streaming<ConsoleRequest>,
) -> Result<Outputs, Status> {
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
            // The end of the input is the end of the call.
            status = failed.recv() => Err(status?),
            chunk = printed.recv() => Ok(ConsoleResponse {
                output: match chunk {
                    Ok(chunk) => chunk.into(),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        format!("\n[{missed} pieces of output were missed: the reader is too slow]\n").into()
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            }),
        };
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

/// Carries a call to the node that has the VM.
pub(super) async fn carry(
    mut client: PeerServiceClient<Channel>,
    first: ConsoleRequest,
    mut inputs: Streaming<ConsoleRequest>,
) -> Result<Outputs, Status> {
    let (sender, receiver) = mpsc::channel(INPUTS_AHEAD);
    let outputs = client
        .console(stream::once(async { first }).chain(ReceiverStream::new(receiver)))
        .await?
        .into_inner();
    // Ends with either side: it is part of the stream that the caller reads.
    let carried = async move {
        while let Ok(Some(next)) = inputs.message().await {
            if sender.send(next).await.is_err() {
                return;
            }
        }
    };
    let carried = stream::once(carried).filter_map(|()| ready(None));
    // The other side's end is the end, whether or not more input comes.
    let outputs = outputs.map(Some).chain(stream::once(ready(None)));
    let all = stream::select(outputs, carried);
    Ok(all
        .take_while(|part| ready(part.is_some()))
        .filter_map(ready)
        .boxed())
}
