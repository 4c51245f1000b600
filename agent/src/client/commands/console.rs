//! `fpagent console`.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    thread,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use proto::v1::{ConsoleRequest, ConsoleResponse};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::client::{Context, args::objects::ConsoleArgs, failure::Failure, reach::broken};

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// Pieces of input that are read ahead of the guest.
const INPUTS_AHEAD: usize = 4;
/// Input that is read at once, bytes.
const INPUT: usize = 16 << 10;

pub(crate) async fn run(context: &Context, args: ConsoleArgs) -> Result<(), Failure> {
    let (sender, mut outputs) = open(context, &args.vm).await?;
    let terminal = io::stdin().is_terminal();
    let raw = terminal.then(Raw::enter).transpose()?;
    if raw.is_some() {
        eprint!("console of {}: Ctrl-] leaves\r\n", args.vm);
    }
    let (typed, mut keys) = mpsc::channel(INPUTS_AHEAD);
    // Not waited for at the end: nothing ends a read of a terminal but a key.
    thread::spawn(move || read_input(&typed));
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
            input = keys.recv(), if leave_at.is_none() => {
                let (input, leave) = match input.transpose()? {
                    Some(bytes) => until_leave(bytes, terminal),
                    None => (Vec::new(), true),
                };
                // The call may have ended: then its outputs say why.
                if !input.is_empty() {
                    let input = ConsoleRequest {
                        input: input.into(),
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

/// Reads input until its end, or until nobody wants it.
fn read_input(typed: &mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut buffer = vec![0; INPUT];
    loop {
        let read = match io::stdin().lock().read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(buffer[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        if typed.blocking_send(read).is_err() || failed {
            return;
        }
    }
}

/// What is for the guest, and whether the key to leave with came after it.
fn until_leave(mut bytes: Vec<u8>, terminal: bool) -> (Vec<u8>, bool) {
    let leave = bytes.iter().position(|byte| terminal && *byte == LEAVE);
    bytes.truncate(leave.unwrap_or(bytes.len()));
    (bytes, leave.is_some())
}

/// A terminal that passes every key on, until it is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let found = tcgetattr(io::stdin())?;
        let mut raw = found.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(found))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.0) {
            eprintln!("the terminal is not as it was ({error}): run `stty sane`");
        }
    }
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
