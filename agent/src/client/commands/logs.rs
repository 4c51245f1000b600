//! `fpagent logs`.

use std::io::Write as _;

use proto::v1::ReadLogsRequest;
use tonic::Request;

use crate::client::{Context, args::objects::LogsArgs, failure::Failure, reach::broken};

pub(crate) async fn run(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    let request = ReadLogsRequest {
        vm: args.vm,
        follow: args.follow,
    };
    let reach = context.reach()?;
    // With `-f` the deadline is for the beginning of the answer: the rest has no end.
    let begun = reach.call(async |attempt| {
        let request = if args.follow {
            Request::new(request.clone())
        } else {
            attempt.request(request.clone())
        };
        attempt.vms().read_logs(request).await
    });
    let mut stream = begun.await?;
    loop {
        match stream.message().await {
            Ok(Some(part)) => {
                let mut out = std::io::stdout().lock();
                out.write_all(&part.chunk)?;
                out.flush()?;
            }
            Ok(None) => return Ok(()),
            Err(status) if std::error::Error::source(&status).is_some() => {
                return Err(broken(&status, "run the command again to go on"));
            }
            Err(status) => return Err(status.into()),
        }
    }
}
