//! `fpagent snapshot`.

use proto::v1::{
    CaptureMode, CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest,
    ReplicateSnapshotRequest, TagSnapshotRequest, WarmSnapshotRequest,
};

use crate::client::{
    Context, args::objects::SnapshotCommand, failure::Failure, progress::Progress,
    views::snapshot::SnapshotView,
};

pub(crate) async fn run(context: &Context, command: SnapshotCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        SnapshotCommand::Create {
            vm,
            name,
            mode,
            replicas,
            wait,
            keep,
            owner,
            change,
        } => {
            let _progress = Progress::spinner(format!("capturing {vm}"));
            let mode = CaptureMode::from(mode).into();
            let request = CreateSnapshotRequest {
                vm,
                name,
                mode,
                owner: owner.owner,
                keep: keep.keep(),
                replicas: replicas.unwrap_or_default(),
                wait,
                request_id: change.id(),
            };
            let created = reach.change(&request.request_id, async |attempt| {
                attempt
                    .snapshots()
                    .create_snapshot(attempt.request(request.clone()))
                    .await
            });
            context.one(SnapshotView::from(created.await?))
        }
        SnapshotCommand::Ls => {
            let listed = reach.call(async |attempt| attempt.list_snapshots::<SnapshotView>().await);
            context.list(&listed.await?)
        }
        SnapshotCommand::Show { snapshot } => {
            let request = GetSnapshotRequest { snapshot };
            let shown = reach.call(async |attempt| {
                attempt
                    .snapshots()
                    .get_snapshot(attempt.request(request.clone()))
                    .await
            });
            context.show(&SnapshotView::from(shown.await?))
        }
        SnapshotCommand::Tag {
            snapshot,
            name,
            change,
        } => {
            let request = TagSnapshotRequest {
                snapshot,
                name,
                request_id: change.id(),
            };
            let tagged = reach.change(&request.request_id, async |attempt| {
                attempt
                    .snapshots()
                    .tag_snapshot(attempt.request(request.clone()))
                    .await
            });
            context.one(SnapshotView::from(tagged.await?))
        }
        SnapshotCommand::Warm {
            snapshot,
            count,
            change,
        } => {
            let request = WarmSnapshotRequest {
                snapshot,
                count,
                request_id: change.id(),
            };
            let warmed = reach.change(&request.request_id, async |attempt| {
                attempt
                    .snapshots()
                    .warm_snapshot(attempt.request(request.clone()))
                    .await
            });
            context.one(SnapshotView::from(warmed.await?))
        }
        SnapshotCommand::Replicate {
            snapshot,
            replicas,
            wait,
            change,
        } => {
            let _progress = wait.then(|| Progress::spinner(format!("copying {snapshot}")));
            let request = ReplicateSnapshotRequest {
                snapshot,
                replicas,
                wait,
                request_id: change.id(),
            };
            let replicated = reach.change(&request.request_id, async |attempt| {
                attempt
                    .snapshots()
                    .replicate_snapshot(attempt.request(request.clone()))
                    .await
            });
            context.one(SnapshotView::from(replicated.await?))
        }
        SnapshotCommand::Rm { snapshot, change } => {
            let _progress = Progress::spinner(format!("deleting {snapshot}"));
            let request = DeleteSnapshotRequest {
                snapshot,
                request_id: change.id(),
            };
            let deleted = reach.change(&request.request_id, async |attempt| {
                attempt
                    .snapshots()
                    .delete_snapshot(attempt.request(request.clone()))
                    .await
            });
            let completed = deleted.await?.completed;
            if context.for_people() {
                let rest = if completed {
                    ""
                } else {
                    "; its node removes the rest when it is back"
                };
                return context.say(format_args!("{} deleted{rest}", request.snapshot));
            }
            context.data(&serde_json::json!({ "name": request.snapshot, "deleted": true, "completed": completed }))
        }
    }
}
