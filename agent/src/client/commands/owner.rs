//! `fpagent share` and `fpagent quota`.

use proto::v1::{
    DeleteQuotaRequest, GetQuotaRequest, ListQuotasRequest, Quota, SetQuotaRequest, ShareRequest,
    share_request::{Object, With},
};
use raft::state::EVERYONE;

use crate::client::{
    Context,
    args::owner::{QuotaCommand, ShareArgs, Shared},
    failure::Failure,
    views::owner::{QuotaView, SharingView},
};

pub(crate) async fn share(context: &Context, args: ShareArgs) -> Result<(), Failure> {
    let name = args.name.clone();
    let request = ShareRequest {
        object: Some(match args.kind {
            Shared::Image => Object::Image(args.name),
            Shared::Snapshot => Object::Snapshot(args.name),
            Shared::Vm => Object::Vm(args.name),
        }),
        with: Some(match args.with {
            everyone if everyone == EVERYONE => With::Everyone(true),
            owner => With::Owner(owner),
        }),
        stop: args.stop,
        request_id: args.change.id(),
    };
    let reach = context.reach()?;
    let shared = reach.change(&request.request_id, async |attempt| {
        attempt
            .owners()
            .share(attempt.request(request.clone()))
            .await
    });
    let sharing = SharingView::from(shared.await?.sharing.unwrap_or_default());
    if context.for_people() {
        return context.say(format_args!("{name}: {}", sharing.text()));
    }
    context.data(&sharing)
}

pub(crate) async fn quota(context: &Context, command: QuotaCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        QuotaCommand::Set(args) => {
            let amounts = args.amounts;
            let request = SetQuotaRequest {
                owner: args.owner,
                quota: Some(Quota {
                    vms: amounts.vms,
                    cpus: amounts.cpus,
                    memory_bytes: amounts.memory,
                    disk_bytes: amounts.disk,
                    snapshots: amounts.snapshots,
                    images: amounts.images,
                }),
                request_id: args.change.id(),
            };
            let set = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.owners().set_quota(request).await
            });
            context.one(QuotaView::from(set.await?))
        }
        QuotaCommand::Ls => {
            let listed = reach.call(async |attempt| {
                let request = attempt.request(ListQuotasRequest {});
                attempt.owners().list_quotas(request).await
            });
            let quotas = listed.await?.quotas.into_iter();
            let quotas: Vec<_> = quotas.map(QuotaView::from).collect();
            context.list(&quotas)
        }
        QuotaCommand::Show { owner } => {
            let request = GetQuotaRequest { owner };
            let shown = reach.call(async |attempt| {
                let request = attempt.request(request.clone());
                attempt.owners().get_quota(request).await
            });
            context.show(&QuotaView::from(shown.await?))
        }
        QuotaCommand::Rm { owner, change } => {
            let request = DeleteQuotaRequest {
                owner,
                request_id: change.id(),
            };
            let deleted = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.owners().delete_quota(request).await
            });
            deleted.await?;
            if context.for_people() {
                return context.say(format_args!("{} has no quota", request.owner));
            }
            context.data(&serde_json::json!({ "owner": request.owner, "deleted": true }))
        }
    }
}
