//! `fpagent tree`.

use std::io::Write as _;

use proto::v1::{GetQuotaRequest, ListSnapshotsRequest, ListVmsRequest};
use serde_json::json;

use crate::client::{
    Context,
    args::objects::TreeArgs,
    failure::Failure,
    reach::Reach,
    tree::{Forest, RootError, Strokes, draw},
    views::{snapshot::SnapshotView, vm::VmView},
};

pub(crate) async fn run(context: &Context, args: TreeArgs) -> Result<(), Failure> {
    let reach = context.reach()?;
    let vms = reach.call(async |attempt| {
        attempt
            .vms()
            .list_vms(attempt.request(ListVmsRequest {}))
            .await
    });
    let vms: Vec<_> = vms.await?.vms.into_iter().map(VmView::from).collect();
    let snapshots = reach.call(async |attempt| {
        attempt
            .snapshots()
            .list_snapshots(attempt.request(ListSnapshotsRequest {}))
            .await
    });
    let snapshots: Vec<_> = snapshots
        .await?
        .snapshots
        .into_iter()
        .map(SnapshotView::from)
        .collect();
    let forest = Forest::new(&vms, &snapshots);
    let (trees, one) = match &args.root {
        Some(root) => {
            // With one owner there is nothing to choose.
            let own = match forest.owners() > 1 {
                true => own(&reach).await?,
                false => String::new(),
            };
            (vec![forest.below(root, &own)?], true)
        }
        None => (forest.whole(), false),
    };
    if context.for_people() {
        let drawn = draw(&trees, Strokes::for_locale());
        return Ok(std::io::stdout().lock().write_all(drawn.as_bytes())?);
    }
    match trees.first() {
        Some(tree) if one => context.data(tree),
        _ => context.data(&json!({ "items": trees })),
    }
}

/// The owner whose bare names come first.
async fn own(reach: &Reach) -> Result<String, Failure> {
    let quota = reach.call(async |attempt| {
        let request = attempt.request(GetQuotaRequest::default());
        attempt.owners().get_quota(request).await
    });
    Ok(quota.await?.owner)
}

impl From<RootError> for Failure {
    fn from(error: RootError) -> Self {
        let hint = match &error {
            RootError::NotFound(_) => {
                "`fpagent vm ls` and `fpagent snapshot ls` list what there is"
            }
            RootError::Ambiguous { .. } => {
                "give more of the id, write a snapshot as @NAME, or say whose it is: OWNER/NAME"
            }
        };
        Self::refused(error, hint)
    }
}
