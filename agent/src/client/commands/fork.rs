//! `fpagent fork`.

use proto::v1::{CaptureMode, ForkRequest};

use crate::client::{
    Context, args::objects::ForkArgs, failure::Failure, progress::Progress, secrets,
    views::fork::ForkView,
};

pub(crate) async fn run(context: &Context, args: ForkArgs) -> Result<(), Failure> {
    // Before anything is shown: it may be typed into a pipe.
    let secrets = secrets::read(&args.secrets)?;
    let progress = Progress::spinner(format!("forking {}", args.parent));
    let request = ForkRequest {
        source: args.parent,
        count: args.count,
        name: args.name,
        mode: CaptureMode::from(args.mode).into(),
        paused: args.paused,
        labels: args.labels.into_iter().collect(),
        settings: args.settings.into_iter().collect(),
        secrets,
        owner: args.owner.owner,
        keep: args.keep.keep(),
        node: args.node,
        spread: args.spread,
        constraints: Some(args.constraints.into()),
        request_id: args.change.id(),
    };
    let reach = context.reach()?;
    let forked = reach.change(&request.request_id, async |attempt| {
        attempt.vms().fork(attempt.request(request.clone())).await
    });
    let fork = ForkView::from(forked.await?);
    drop(progress);
    if context.for_people() {
        context.list(&fork.children)?;
        context.say(fork.summary())?;
    } else {
        context.data(&fork)?;
    }
    match fork.why_failed() {
        None => Ok(()),
        Some(why) => {
            let message = format!(
                "{} of {} forks failed: {why}",
                fork.failed(),
                fork.children.len()
            );
            Err(Failure::refused(
                message,
                &format!("`fpagent op show {}` has the details", fork.operation),
            ))
        }
    }
}
