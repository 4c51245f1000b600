//! Handing a map over to the cluster.

use proto::v1::StartMapRequest;
use ulid::Ulid;

use super::{CALL_PATIENCE, inputs};
use crate::client::{
    Context,
    args::{keep::millis, map::MapArgs},
    failure::Failure,
    progress::Progress,
    views::map::MapView,
};

/// Leaves a map to the cluster, and says which it is.
pub(super) async fn start(context: &Context, args: MapArgs) -> Result<(), Failure> {
    if args.collect.is_some() {
        return Err(Failure::usage(
            "--collect cannot be used with --detach: nobody is there to bring the files to",
            "have the program print what is wanted, or send it somewhere by itself",
        ));
    }
    let inputs: Vec<Option<Vec<u8>>> = inputs(&args)?;
    let request = StartMapRequest {
        count: u32::try_from(inputs.len()).unwrap_or(u32::MAX),
        inputs: inputs.into_iter().flatten().map(Into::into).collect(),
        argv: args.argv().into_iter().map(Into::into).collect(),
        env: args.settings(),
        source: args.source,
        user: args.user,
        limit_ms: context.global.timeout.map_or(0, millis),
        retries: args.retries,
        parallel: args.parallel.unwrap_or(0),
        lease_ttl_ms: millis(args.lease),
        node: args.node,
        spread: args.spread,
        constraints: Some(args.constraints.into()),
        reduce: args.reduce.unwrap_or_default(),
        name: args.name,
        kept_for_ms: args.keep_for.map_or(0, millis),
        request_id: args.request_id.unwrap_or_else(|| Ulid::new().to_string()),
    };
    let progress = Progress::spinner("leaving it to the cluster");
    let reach = context.reach_for(CALL_PATIENCE)?;
    let started = reach.change(&request.request_id, async |attempt| {
        let request = attempt.request(request.clone());
        attempt.maps().start_map(request).await
    });
    let map = MapView::from(started.await?);
    drop(progress);
    if context.for_people() {
        context.say(&map.id)?;
        eprintln!("its results: fpagent maps results {}", map.called());
        return Ok(());
    }
    context.data(&map)
}
