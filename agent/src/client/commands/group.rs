//! `fpagent group`.

use proto::v1::{CaptureMode, DeleteGroupRequest, ForkGroupRequest, GetGroupRequest};
use serde::Serialize;

use super::fork::all_succeeded;
use crate::client::{
    Context,
    args::group::{GroupCommand, GroupForkArgs},
    failure::Failure,
    progress::Progress,
    views::group::{GroupForkView, GroupView},
};

pub(crate) async fn run(context: &Context, command: GroupCommand) -> Result<(), Failure> {
    match command {
        GroupCommand::Fork(args) => fork(context, *args).await,
        GroupCommand::Ls => {
            let reach = context.reach()?;
            let listed = reach.call(async |attempt| attempt.list_groups::<GroupView>().await);
            context.list(&listed.await?)
        }
        GroupCommand::Show { group } => {
            let request = GetGroupRequest { group };
            let reach = context.reach()?;
            let shown = reach.call(async |attempt| {
                attempt
                    .vms()
                    .get_group(attempt.request(request.clone()))
                    .await
            });
            let group = GroupView::from(shown.await?);
            match context.for_people() {
                true => {
                    context.say(format_args!(
                        "{} of {} on node {}",
                        group.name, group.owner, group.node
                    ))?;
                    context.list(&group.members)
                }
                false => context.data(&group),
            }
        }
        GroupCommand::Rm {
            group,
            force,
            change,
        } => {
            let request = DeleteGroupRequest {
                group,
                force,
                request_id: change.id(),
            };
            remove(context, request).await
        }
    }
}

async fn fork(context: &Context, args: GroupForkArgs) -> Result<(), Failure> {
    let progress = Progress::spinner(format!("forking group {}", args.group));
    let request = ForkGroupRequest {
        group: args.group,
        count: args.count,
        name: args.name,
        mode: CaptureMode::from(args.mode).into(),
        keep: args.keep.keep(),
        owner: args.owner.owner,
        request_id: args.change.id(),
    };
    let reach = context.reach()?;
    let forked = reach.change(&request.request_id, async |attempt| {
        attempt
            .vms()
            .fork_group(attempt.request(request.clone()))
            .await
    });
    let fork = GroupForkView::from(forked.await?);
    drop(progress);
    if context.for_people() {
        context.list(&fork.copies)?;
        context.say(fork.summary())?;
    } else {
        context.data(&fork)?;
    }
    let counts = (fork.failed(), fork.copies.len());
    all_succeeded("copies", counts, fork.why_failed(), &fork.operation)
}

/// A deleted group, as programs are told of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RemovedView {
    name: String,
    completed: bool,
}

async fn remove(context: &Context, request: DeleteGroupRequest) -> Result<(), Failure> {
    let progress = Progress::spinner(format!("deleting group {}", request.group));
    let reach = context.reach()?;
    let removed = reach.change(&request.request_id, async |attempt| {
        attempt
            .vms()
            .delete_group(attempt.request(request.clone()))
            .await
    });
    let removed = removed.await?;
    drop(progress);
    let view = RemovedView {
        name: request.group,
        completed: removed.completed,
    };
    if context.for_people() {
        let how = match view.completed {
            true => "deleted",
            false => "deleted; its node does it when it is back",
        };
        return context.say(format_args!("{} {how}", view.name));
    }
    context.data(&view)
}
