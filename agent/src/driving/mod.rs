//! Driving maps that are left to the cluster: the node that the state names for one runs the engine of `fpagent map` over its own API, with
//! the rights of who asked for it. What is done follows from the state alone, so that whoever comes next does what has no result yet.
//! Started by the daemon.

mod front;
mod reports;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::v1::{self, ForkRequest, MapResult, Reason};
use raft::state::{
    Command, LeaseId, MAP_ITEM_OUTPUT, MAP_REDUCED_OUTPUT, Map, MapId, NodeId, State,
};
use tokio::{
    runtime::Handle,
    task::{JoinHandle, LocalSet, spawn_blocking, spawn_local},
    time::{Instant, sleep},
};
use ulid::Ulid;

use self::{front::Driver, reports::Reports};
use crate::{
    client::{
        failure::{Failure, FailureKind},
        map::{
            CALL_PATIENCE,
            engine::{Engine, Job},
            items::Items,
            lease::Lease,
            result::{ItemView, as_lines, result_of_ran},
        },
        reach::Reach,
    },
    convert,
    node::Node,
    trust::{
        authority::User,
        tls::{server::PeerRole, within::Within},
    },
};

/// Between two looks without news, and before a drive that broke off is begun again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a proposal may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Drives what this node is to drive, until it ends. On a thread of its own: the engine's work stays on one.
pub async fn run(node: Arc<Node>, calls: Within) {
    let handle = Handle::current();
    let driving = spawn_blocking(move || {
        let local = LocalSet::new();
        handle.block_on(local.run_until(follow(node, calls)));
    });
    if let Err(panic) = driving.await {
        tracing::error!(%panic, "no maps are driven here any more; others drive them when their leases have ended");
    }
}

async fn follow(node: Arc<Node>, calls: Within) {
    let mut published = node.raft.published();
    let mut drives: BTreeMap<MapId, JoinHandle<()>> = BTreeMap::new();
    loop {
        let state = Arc::clone(&published.borrow_and_update().view);
        drives.retain(|_, drive| !drive.is_finished());
        // The state that it starts with may have what was driven long ago.
        if node.forks.has_caught_up() {
            for map in driven_by(&state, node.id()) {
                drives.entry(map.id).or_insert_with(|| {
                    let (node, calls) = (Arc::clone(&node), calls.clone());
                    spawn_local(drive(node, calls, map.id))
                });
            }
        }
        tokio::select! {
            () = node.cancel.cancelled() => break,
            changed = published.changed() => if changed.is_err() { break },
            () = sleep(PAUSE) => {}
        }
        sleep(PAUSE / 20).await;
    }
    for drive in drives.into_values() {
        drive.abort();
        // It was asked to end.
        let _ended = drive.await;
    }
}

fn driven_by(state: &State, node: NodeId) -> impl Iterator<Item = &Arc<Map>> {
    let maps = state.maps.values();
    maps.filter(move |map| map.is_running() && map.driver == Some(node))
}

/// Drives a map once: until it has ended, is another's to drive, or something broke off.
async fn drive(node: Arc<Node>, calls: Within, id: MapId) {
    match begin(&node, id).await {
        Some(map) => go_on(&node, &calls, &map).await,
        None => sleep(PAUSE).await,
    }
}

/// Takes a map as this node's to drive, under a number of its own.
async fn begin(node: &Node, id: MapId) -> Option<Arc<Map>> {
    let map = node.state().maps.get(&id).cloned()?;
    let lease = LeaseId(Ulid::new().0);
    let command = Command::TakeMap {
        map: id,
        node: node.id(),
        epoch: map.epoch,
        lease,
    };
    let deadline = Instant::now() + PATIENCE;
    match node.propose(None, command, deadline).await {
        Ok(Ok(_)) => {}
        Ok(Err(refusal)) => {
            tracing::debug!(map = %id, %refusal, "it is not this node's to drive any more");
            return None;
        }
        Err(error) => {
            tracing::debug!(map = %id, %error, "a map is not driven yet");
            return None;
        }
    }
    let taken = |state: &Arc<State>| {
        let map = state.maps.get(&id)?;
        (map.lease == Some(lease)).then(|| Arc::clone(map))
    };
    // It may have been taken away meanwhile.
    node.wait_for(Instant::now() + PATIENCE, taken).await
}

async fn go_on(node: &Arc<Node>, calls: &Within, map: &Map) {
    let Some(id) = map.lease else { return };
    tracing::info!(map = %map.id, drive = map.drives, done = map.results.len(), of = map.job.count, "driving a map");
    let reach = Reach::within(calls.channel(asker(map)), CALL_PATIENCE);
    let ttl = Duration::from_millis(map.job.lease_ttl);
    let lease = Lease::held(&reach, id.to_string(), ttl);
    let reports = Reports::new(node, map);
    let ended = tokio::select! {
        ended = work(node, &reach, &lease, &reports, map) => ended,
        lost = lease.keep() => Err(lost),
        never = reports.serve() => match never {},
        () = is_over(node, map) => return,
    };
    let (failure, reduced) = match ended {
        Ok(reduced) => (None, reduced),
        Err(failure) if breaks_off(node, id, &failure).await => {
            tracing::warn!(map = %map.id, why = failure.message(), "a map's drive broke off; it is begun again");
            sleep(PAUSE).await;
            return;
        }
        Err(failure) => (Some(failure.message().to_owned()), None),
    };
    let command = Command::EndMap {
        map: map.id,
        epoch: map.epoch,
        failure,
        reduced: reduced.map(convert::map_result_of),
    };
    let told = tokio::select! {
        told = node.report(command) => told,
        () = is_over(node, map) => return,
    };
    if let Some(Err(refusal)) = told {
        tracing::error!(map = %map.id, %refusal, "a map's end was refused; it is driven again");
        sleep(PAUSE).await;
    }
}

/// Whether another drive may come further, of this node or another: nobody answered, or what keeps the forks has ended.
async fn breaks_off(node: &Node, lease: LeaseId, failure: &Failure) -> bool {
    if failure.reason == Reason::NotAllowed {
        return false;
    }
    let is_away = matches!(
        failure.kind,
        FailureKind::Unreachable | FailureKind::TimedOut
    );
    let barrier = node.raft.read_barrier(Instant::now() + PATIENCE).await;
    is_away || barrier.is_err() || !node.state().leases.contains_key(&lease)
}

/// When a drive is not this node's any more.
async fn is_over(node: &Node, map: &Map) {
    let mut published = node.raft.published();
    let is_over = |state: &State| {
        let found = state.maps.get(&map.id);
        !found.is_some_and(|found| found.is_driven_by(node.id(), map.epoch))
    };
    // It fails when the agent ends.
    if published.wait_for(|new| is_over(&new.view)).await.is_err() {
        tracing::debug!("the agent is being stopped");
    }
}

/// Does what has no result yet, and gives what came of the program that is run over all results.
async fn work(
    node: &Node,
    reach: &Reach,
    lease: &Lease<'_>,
    reports: &Reports<'_>,
    map: &Map,
) -> Result<Option<MapResult>, Failure> {
    let inputs = match map.job.inputs.as_slice() {
        [] => vec![None; map.job.count as usize],
        lines => lines.iter().cloned().map(Some).collect(),
    };
    let is_done = |index: usize| map.done.contains_key(&(index as u32));
    let items = Items::new(inputs, map.job.retries, is_done);
    let front = Driver::new(node, map, reports);
    let job = job(map, MAP_ITEM_OUTPUT);
    Engine::new(reach, lease, &job, &front, items)
        .carry_out()
        .await?;
    let results = results(node, map)?;
    let all_good = results.iter().all(ItemView::is_good);
    let Some(command) = map.job.reduce.as_ref().filter(|_| all_good) else {
        return Ok(None);
    };
    let none = Items::new(vec![None; results.len()], 0, |_| true);
    let job = self::job(map, MAP_REDUCED_OUTPUT);
    let engine = Engine::new(reach, lease, &job, &front, none);
    let ran = engine.reduce(command, as_lines(results)?).await?;
    Ok(Some(result_of_ran(0, 1, ran)))
}

/// All results, as the cluster has them.
fn results(node: &Node, map: &Map) -> Result<Vec<ItemView>, Failure> {
    let state = node.state();
    let gone = || Failure::refused(format!("map {} is gone", map.id), "");
    let map = state.maps.get(&map.id).ok_or_else(gone)?;
    let results = map.results.values();
    Ok(results
        .map(|one| ItemView::from(convert::map_result(one)))
        .collect())
}

fn job(map: &Map, most_output: usize) -> Job {
    let asked = &map.job;
    Job {
        forks: ForkRequest {
            source: format!("@{}", map.snapshot),
            node: asked.node.clone(),
            spread: asked.spread,
            constraints: Some(v1::Constraints {
                node_labels: asked.constraints.node_labels.clone(),
                apart_from: asked.constraints.apart_from.clone(),
            }),
            labels: [("map".to_owned(), map.id.to_string())].into(),
            ..ForkRequest::default()
        },
        argv: asked.argv.clone(),
        env: asked.env.clone(),
        user: match asked.user.as_str() {
            "" => "root".to_owned(),
            user => user.to_owned(),
        },
        limit: asked.limit.map(Duration::from_millis),
        retries: asked.retries,
        parallel: Some(asked.parallel as usize).filter(|at_once| *at_once > 0),
        most_output,
    }
}

/// On whose behalf a map's calls are: of the certificate that it was asked for with, as long as that is good.
fn asker(map: &Map) -> PeerRole {
    match &map.asker {
        None => PeerRole::Local,
        Some(asker) => PeerRole::User(User {
            name: asker.name.clone(),
            owner: map.ownership.owner.clone(),
            role: asker.role,
            certificate: asker.certificate,
            expires_at: asker.expires_at,
        }),
    }
}
