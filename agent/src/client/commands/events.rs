//! `fpagent events`.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use proto::v1::ReadEventsRequest;
use tokio::time::sleep;
use tonic::Request;

use crate::client::{
    Context,
    args::{Format, event::EventsArgs},
    failure::Failure,
    output::{self, printable},
    retry::{Trouble, classify},
    views::event::EventView,
};

/// Before another agent is asked when one broke off.
const PAUSE: Duration = Duration::from_millis(100);

/// Prints events. When the agent that tells them is gone, another one goes on from the last position.
pub(crate) async fn run(context: &Context, args: EventsArgs) -> Result<(), Failure> {
    let mut request = ReadEventsRequest {
        since: args.since,
        follow: args.follow,
        vm: args.vm,
        kinds: args.kinds,
    };
    let reach = context.reach()?;
    if context.for_people() {
        context.say(EventView::header(context.format() == Format::Wide))?;
    }
    loop {
        // With `-f` the deadline is for the beginning of the answer: the rest has no end.
        let begun = reach.call(async |attempt| {
            let request = match args.follow {
                true => Request::new(request.clone()),
                false => attempt.request(request.clone()),
            };
            attempt.events().read_events(request).await
        });
        let mut parts = begun.await.map_err(|failure| go_on(failure, &request))?;
        loop {
            match parts.message().await {
                Ok(Some(part)) => {
                    print(context, part.events.into_iter().map(EventView::from))?;
                    request.since = part.position;
                }
                Ok(None) => return Ok(()),
                Err(status) => match classify(&status) {
                    Trouble::Broken | Trouble::Unavailable | Trouble::NotConnected => break,
                    Trouble::Distrust | Trouble::TimedOut | Trouble::Final => {
                        return Err(go_on(status.into(), &request));
                    }
                },
            }
        }
        sleep(PAUSE).await;
    }
}

/// What else to say of a failure in the middle.
fn go_on(failure: Failure, request: &ReadEventsRequest) -> Failure {
    match request.since.contains('.') && failure.reason != proto::v1::Reason::BadPosition {
        true => failure.and(&format!("to go on later: --since {}", request.since)),
        false => failure,
    }
}

fn print(context: &Context, events: impl Iterator<Item = EventView>) -> Result<(), Failure> {
    let mut text = Vec::new();
    for event in events {
        match context.format() {
            format @ (Format::Table | Format::Wide) => {
                let line = event.text(format == Format::Wide);
                writeln!(text, "{}", printable(&line))?;
            }
            Format::Json => {
                serde_json::to_writer(&mut text, &event).map_err(io::Error::from)?;
                text.push(b'\n');
            }
            Format::Yaml => {
                text.extend_from_slice(b"---\n");
                output::data(&mut text, Format::Yaml, &event)?;
            }
        }
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}
