//! `fpagent maps`: maps that are left to the cluster.

use std::time::Duration;

use proto::v1::{CancelMapRequest, DeleteMapRequest, GetMapRequest, Map, MapState, ReadMapRequest};
use tokio::time::sleep;
use tonic::Request;

use crate::client::{
    Context,
    args::map::MapsCommand,
    failure::Failure,
    map::shown::{Shown, ended_with, items_failed},
    reach::Reach,
    retry::{Trouble, classify},
    views::map::MapView,
};

/// Before another agent is asked when one broke off.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn run(context: &Context, command: MapsCommand) -> Result<(), Failure> {
    let reach = context.reach()?;
    match command {
        MapsCommand::Ls => {
            let listed = reach.call(async |attempt| attempt.list_maps::<MapView>().await);
            context.list(&listed.await?)
        }
        MapsCommand::Show { map } => context.show(&MapView::from(get(&reach, map).await?)),
        MapsCommand::Results { map } => results(context, &reach, map).await,
        MapsCommand::Wait { map } => wait(context, &reach, map).await,
        MapsCommand::Cancel { map, change } => {
            let request = CancelMapRequest {
                map,
                request_id: change.id(),
            };
            let cancelled = reach.change(&request.request_id, async |attempt| {
                let request = attempt.request(request.clone());
                attempt.maps().cancel_map(request).await
            });
            context.one(MapView::from(cancelled.await?))
        }
        MapsCommand::Rm {
            maps,
            force,
            change,
        } => {
            for (index, map) in maps.iter().enumerate() {
                let request = DeleteMapRequest {
                    map: map.clone(),
                    force,
                    request_id: change.id_of(index, maps.len()),
                };
                let deleted = reach.change(&request.request_id, async |attempt| {
                    let request = attempt.request(request.clone());
                    attempt.maps().delete_map(request).await
                });
                deleted.await?;
                if context.for_people() {
                    context.say(format_args!("{map} deleted"))?;
                }
            }
            Ok(())
        }
    }
}

async fn get(reach: &Reach, map: String) -> Result<Map, Failure> {
    let request = GetMapRequest { map };
    let shown = reach.call(async |attempt| {
        let request = attempt.request(request.clone());
        attempt.maps().get_map(request).await
    });
    shown.await
}

/// Prints results as the map itself would, from the first on, and ends as that would.
async fn results(context: &Context, reach: &Reach, map: String) -> Result<(), Failure> {
    let found = get(reach, map).await?;
    let shown = Shown::new(context, u64::from(found.count));
    let request = ReadMapRequest {
        map: found.id,
        ..ReadMapRequest::default()
    };
    let ended = follow(reach, request, |result| shown.show(result)).await?;
    went_well(&ended)?;
    shown.tell(took(&ended))?;
    match ended.reduced {
        Some(reduced) => shown.show_reduced(reduced),
        None => Ok(()),
    }
}

/// Waits until a map has ended, and ends as that would.
async fn wait(context: &Context, reach: &Reach, map: String) -> Result<(), Failure> {
    let request = ReadMapRequest {
        map,
        only_end: true,
        ..ReadMapRequest::default()
    };
    let ended = follow(reach, request, |_| Ok(())).await?;
    context.one(MapView::from(ended.clone()))?;
    went_well(&ended)?;
    if ended.failed > 0 {
        let (failed, count) = (ended.failed as usize, ended.count as usize);
        return Err(items_failed(failed, count, &ended.first_failure));
    }
    ended_with(ended.reduced.and_then(|one| one.exit_code).unwrap_or(0))
}

fn went_well(map: &Map) -> Result<(), Failure> {
    let called = match map.name.as_str() {
        "" => &map.id,
        name => name,
    };
    match map.state() {
        MapState::Cancelled => {
            let message = format!("map {called} was cancelled");
            Err(Failure::refused(message, ""))
        }
        MapState::Failed => {
            let message = format!("map {called} failed: {}", map.reason);
            Err(Failure::refused(message, ""))
        }
        MapState::Unspecified | MapState::Running | MapState::Finished => Ok(()),
    }
}

/// From when it was asked for until its end.
fn took(map: &Map) -> Duration {
    let millis = |time: Option<prost_types::Timestamp>| {
        time.map_or(0, |time| {
            time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000
        })
    };
    let took = millis(map.ended_at) - millis(map.created_at);
    Duration::from_millis(u64::try_from(took).unwrap_or_default())
}

/// Reads results until the map has ended. When the agent that tells them is gone, another one goes on from the last.
async fn follow(
    reach: &Reach,
    mut request: ReadMapRequest,
    show: impl Fn(proto::v1::MapResult) -> Result<(), Failure>,
) -> Result<Map, Failure> {
    loop {
        // Without a deadline: it has no end of its own.
        let begun = reach.call(async |attempt| {
            let request = Request::new(request.clone());
            attempt.maps().read_map(request).await
        });
        let mut parts = begun.await?;
        loop {
            match parts.message().await {
                Ok(Some(part)) => {
                    part.results.into_iter().try_for_each(&show)?;
                    request.position = part.position;
                    if let Some(ended) = part.ended {
                        return Ok(ended);
                    }
                }
                Ok(None) => break,
                Err(status) => match classify(&status) {
                    Trouble::Broken | Trouble::Unavailable | Trouble::NotConnected => break,
                    Trouble::Distrust | Trouble::TimedOut | Trouble::Final => {
                        return Err(status.into());
                    }
                },
            }
        }
        sleep(PAUSE).await;
    }
}
