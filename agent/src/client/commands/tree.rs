//! `fpagent tree`.

use std::io::Write as _;

use proto::v1::{ListSnapshotsRequest, ListVmsRequest};
use serde_json::json;

use crate::client::{
    Context,
    args::objects::TreeArgs,
    failure::Failure,
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
        Some(root) => (vec![forest.below(root)?], true),
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

impl From<RootError> for Failure {
    fn from(error: RootError) -> Self {
        let hint = match &error {
            RootError::NotFound(_) => {
                "`fpagent vm ls` and `fpagent snapshot ls` list what there is"
            }
            RootError::Ambiguous(_) => "give more of the id, or write a snapshot as @NAME",
        };
        Self::refused(error, hint)
    }
}
