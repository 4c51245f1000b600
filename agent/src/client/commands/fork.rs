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
    let counts = (fork.failed(), fork.children.len());
    all_succeeded("forks", counts, fork.why_failed(), &fork.operation)
}

/// Fails when some did, of so many; says why the first did.
pub(super) fn all_succeeded(
    what: &str,
    (failed, all): (usize, usize),
    why: Option<&str>,
    operation: &str,
) -> Result<(), Failure> {
    let Some(why) = why else {
        return Ok(());
    };
    Err(Failure::refused(
        format!("{failed} of {all} {what} failed: {why}"),
        &format!("`fpagent op show {operation}` has the details"),
    ))
}
