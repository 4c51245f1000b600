//! `fpagent console`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use proto::v1::{ConsoleRequest, ConsoleResponse};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::client::{
    Context,
    args::objects::ConsoleArgs,
    failure::Failure,
    follow::Followed,
    reach::broken,
    terminal::{Raw, input},
};

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// Pieces of input that are read ahead of the guest.
const INPUTS_AHEAD: usize = 4;

pub(crate) async fn run(context: &Context, args: ConsoleArgs) -> Result<(), Failure> {
    let mut vm = Followed::of(context, &args.vm).await?;
    let (mut sender, mut outputs) = open(context, &vm.id).await?;
    let terminal = io::stdin().is_terminal();
    let raw = terminal.then(Raw::enter).transpose()?;
    if raw.is_some() {
        eprint!("console of {}: Ctrl-] leaves\r\n", args.vm);
    }
    let mut keys = input();
    let mut leave_at: Option<Instant> = None;
    loop {
        let left = async {
            match leave_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = left => return Ok(()),
            typed = keys.recv(), if leave_at.is_none() => {
                let (bytes, leave) = match typed.transpose()? {
                    Some(bytes) => until_leave(bytes, terminal),
                    None => (Vec::new(), true),
                };
                // The call may have ended: then its outputs say why.
                if !bytes.is_empty() {
                    let input = ConsoleRequest {
                        input: bytes.into(),
                        ..ConsoleRequest::default()
                    };
                    let _ended = sender.send(input).await;
                }
                if leave {
                    let linger = if terminal { Duration::ZERO } else { args.linger };
                    leave_at = Some(Instant::now() + linger);
                }
            }
            output = outputs.message() => match output {
                Ok(Some(part)) => {
                    let mut out = io::stdout().lock();
                    out.write_all(&part.output)?;
                    out.flush()?;
                }
                Ok(None) if vm.has_moved(context).await? => {
                    (sender, outputs) = open(context, &vm.id).await?;
                }
                Ok(None) => return Ok(()),
                Err(status) if std::error::Error::source(&status).is_some() => {
                    return Err(broken(&status, "run the command again to go on"));
                }
                Err(status) => return Err(status.into()),
            },
        }
    }
}

type Opened = (mpsc::Sender<ConsoleRequest>, Streaming<ConsoleResponse>);

/// Opens the console: from then on everything that is printed comes.
async fn open(context: &Context, vm: &str) -> Result<Opened, Failure> {
    let reach = context.reach()?;
    let opened = reach.call(async |attempt| {
        let (sender, inputs) = mpsc::channel(INPUTS_AHEAD);
        let first = ConsoleRequest {
            vm: vm.to_owned(),
            ..ConsoleRequest::default()
        };
        let inputs = stream::iter([first]).chain(ReceiverStream::new(inputs));
        // Without a deadline: the call has no end of its own.
        let answer = attempt.vms().console(Request::new(inputs)).await?;
        Ok(answer.map(|outputs| (sender, outputs)))
    });
    opened.await
}

/// What is for the guest, and whether the key to leave with came after it.
fn until_leave(mut bytes: Vec<u8>, terminal: bool) -> (Vec<u8>, bool) {
    let leave = bytes.iter().position(|byte| terminal && *byte == LEAVE);
    bytes.truncate(leave.unwrap_or(bytes.len()));
    (bytes, leave.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_has_a_key_to_leave_with() {
        assert_eq!(
            until_leave(b"ab\x1dcd".to_vec(), true),
            (b"ab".to_vec(), true)
        );
        assert_eq!(
            until_leave(b"ab\x1dcd".to_vec(), false),
            (b"ab\x1dcd".to_vec(), false)
        );
        assert_eq!(until_leave(b"ab".to_vec(), true), (b"ab".to_vec(), false));
    }
}
