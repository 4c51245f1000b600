//! `fpagent logs`.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use proto::v1::{ReadLogsRequest, ReadLogsResponse};
use tonic::{Request, Streaming};

use crate::client::{
    Context, args::objects::LogsArgs, failure::Failure, follow::Followed, reach::broken,
};

/// How much of what was printed last is looked for in a log that begins anew.
const SEAM: usize = 256;
/// How long: what is kept comes at once.
const SEAM_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) async fn run(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    let mut vm = Followed::of(context, &args.vm).await?;
    let mut printed = Printed::default();
    loop {
        let mut stream = open(context, &vm.id, args.follow).await?;
        loop {
            match stream.message().await {
                Ok(Some(part)) => printed.print(&part.chunk)?,
                Ok(None) => break,
                Err(status) if std::error::Error::source(&status).is_some() => {
                    return Err(broken(&status, "run the command again to go on"));
                }
                Err(status) => return Err(status.into()),
            }
        }
        if !args.follow || !vm.has_moved(context).await? {
            return Ok(());
        }
        // Its log has gone with it.
        printed.begins_anew();
    }
}

async fn open(
    context: &Context,
    vm: &str,
    follow: bool,
) -> Result<Streaming<ReadLogsResponse>, Failure> {
    let vm = vm.to_owned();
    let request = ReadLogsRequest { vm, follow };
    let reach = context.reach()?;
    // With `-f` the deadline is for the beginning of the answer: the rest has no end.
    let begun = reach.call(async |attempt| {
        let request = if follow {
            Request::new(request.clone())
        } else {
            attempt.request(request.clone())
        };
        attempt.vms().read_logs(request).await
    });
    begun.await
}

/// What was printed, so that nothing is printed twice of a log that is read again.
#[derive(Debug, Default)]
struct Printed {
    /// The last of it.
    last: Vec<u8>,
    /// What has come of the log that begins anew, until the last is found in it, and since when.
    again: Option<(Vec<u8>, Instant)>,
}

impl Printed {
    fn begins_anew(&mut self) {
        self.again = Some((Vec::new(), Instant::now())).filter(|_| !self.last.is_empty());
    }

    fn print(&mut self, chunk: &[u8]) -> io::Result<()> {
        let new = self.new_of(chunk);
        let mut out = io::stdout().lock();
        out.write_all(&new)?;
        out.flush()
    }

    /// What of it was not printed yet.
    fn new_of(&mut self, chunk: &[u8]) -> Vec<u8> {
        let new = match self.again.take() {
            None => chunk.to_vec(),
            Some((mut again, since)) => {
                again.extend_from_slice(chunk);
                let mut windows = again.windows(self.last.len());
                match windows.rposition(|window| window == self.last) {
                    Some(at) => again.split_off(at + self.last.len()),
                    // It was printed so long ago that it is not kept any more.
                    None if since.elapsed() > SEAM_PATIENCE => again,
                    None => {
                        self.again = Some((again, since));
                        return Vec::new();
                    }
                }
            }
        };
        self.last.extend_from_slice(&new);
        self.last.drain(..self.last.len().saturating_sub(SEAM));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::Printed;

    #[test]
    fn a_log_that_begins_anew_is_printed_from_where_it_was() {
        let mut printed = Printed::default();
        assert_eq!(printed.new_of(b"one\ntwo\n"), b"one\ntwo\n");
        assert_eq!(printed.new_of(b"three\n"), b"three\n");
        printed.begins_anew();
        // However it comes.
        for chunk in [&b"one\nt"[..], b"wo\nth", b"ree"] {
            assert_eq!(printed.new_of(chunk), b"");
        }
        assert_eq!(printed.new_of(b"\nfour\n"), b"four\n");
        assert_eq!(printed.new_of(b"five\n"), b"five\n");
    }
}
