//! `fpagent keep` and `fpagent lease`.

use proto::v1::{
    CreateLeaseRequest, EndLeaseRequest, ListLeasesRequest, RenewLeaseRequest, SetKeepRequest,
    set_keep_request::Object,
};

use crate::client::{
    Context,
    args::keep::{KeepCommand, Kept, LeaseCommand, millis},
    failure::Failure,
    views::{
        KeptView,
        lease::{EndedLeaseView, LeaseView},
    },
};

pub(crate) async fn keep(context: &Context, args: KeepCommand) -> Result<(), Failure> {
    let name = args.name.clone();
    let request = SetKeepRequest {
        object: Some(match args.kind {
            Kept::Snapshot => Object::Snapshot(args.name),
            Kept::Vm => Object::Vm(args.name),
        }),
        keep: args.keep.keep(),
        request_id: args.change.id(),
    };
    let reach = context.reach()?;
    let kept = reach.change(&request.request_id, async |attempt| {
        attempt
            .leases()
            .set_keep(attempt.request(request.clone()))
            .await
    });
    let view = KeptView::from(kept.await?);
    if context.for_people() {
        return context.say(format_args!("{name}: {}", view.text()));
    }
    context.data(&view)
}

pub(crate) async fn lease(context: &Context, command: LeaseCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        LeaseCommand::Create { ttl, owner, change } => {
            let request = CreateLeaseRequest {
                ttl_ms: millis(ttl),
                owner: owner.owner,
                request_id: change.id(),
            };
            let created = reach.change(&request.request_id, async |attempt| {
                attempt
                    .leases()
                    .create_lease(attempt.request(request.clone()))
                    .await
            });
            context.one(LeaseView::from(created.await?))
        }
        LeaseCommand::Ls => {
            let listed = reach.call(async |attempt| {
                attempt
                    .leases()
                    .list_leases(attempt.request(ListLeasesRequest {}))
                    .await
            });
            let leases = listed.await?.leases.into_iter().map(LeaseView::from);
            context.list(&leases.collect::<Vec<_>>())
        }
        LeaseCommand::Renew { lease } => {
            let request = RenewLeaseRequest { lease };
            let renewed = reach.call(async |attempt| {
                attempt
                    .leases()
                    .renew_lease(attempt.request(request.clone()))
                    .await
            });
            context.one(LeaseView::from(renewed.await?))
        }
        LeaseCommand::End { lease, change } => {
            let request = EndLeaseRequest {
                lease,
                request_id: change.id(),
            };
            let ended = reach.change(&request.request_id, async |attempt| {
                attempt
                    .leases()
                    .end_lease(attempt.request(request.clone()))
                    .await
            });
            let view = EndedLeaseView::from(ended.await?);
            if context.for_people() {
                return context.say(view.text());
            }
            context.data(&view)
        }
    }
}
