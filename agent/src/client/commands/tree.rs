//! `fpagent tree`.

use std::io::Write as _;

use proto::v1::GetQuotaRequest;
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
    let vms = reach.call(async |attempt| attempt.list_vms::<VmView>().await);
    let vms = vms.await?;
    let snapshots = reach.call(async |attempt| attempt.list_snapshots::<SnapshotView>().await);
    let snapshots = snapshots.await?;
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
