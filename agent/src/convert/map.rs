//! Maps that are left to the cluster, and their results.

use proto::v1;
use raft::state::{Map, MapResult, MapState, State};

use super::{node_name, timestamp};

/// A map as the API shows it.
pub fn map(state: &State, map: &Map) -> v1::Map {
    let (how, reason) = match &map.state {
        MapState::Running => (v1::MapState::Running, String::new()),
        MapState::Finished => (v1::MapState::Finished, String::new()),
        MapState::Cancelled => (v1::MapState::Cancelled, String::new()),
        MapState::Failed { reason } => (v1::MapState::Failed, reason.clone()),
    };
    let first = map.failures().min_by_key(|one| one.index);
    let repeated = map.results.values().filter(|one| one.attempts > 1).count();
    v1::Map {
        id: map.id.to_string(),
        name: map.name.clone().unwrap_or_default(),
        owner: map.ownership.owner.clone(),
        state: how.into(),
        reason,
        source: map.job.source.clone(),
        snapshot: map.snapshot.to_string(),
        argv: map.job.argv.iter().cloned().map(Into::into).collect(),
        count: map.job.count,
        done: map.results.len() as u32,
        failed: map.failures().count() as u32,
        first_failure: first
            .map(|one| format!("{}: {}", one.index, why(one)))
            .unwrap_or_default(),
        repeated: repeated as u32,
        driver: map
            .driver
            .map(|node| node_name(state, node))
            .unwrap_or_default(),
        drives: map.drives,
        waits_for: map.note.clone(),
        reduced: map.reduced.as_deref().map(map_result),
        created_at: Some(timestamp(map.created_at)),
        ended_at: map.ended_at.map(timestamp),
        expires_at: map.kept_until().map(timestamp),
        reduces: map.job.reduce.is_some(),
    }
}

/// What did not go well.
fn why(result: &MapResult) -> String {
    match (result.exit_code, result.error.as_str()) {
        (Some(code), "") => format!("it ended with {code}"),
        (_, error) => error.to_owned(),
    }
}

/// A result as the API tells it.
pub fn map_result(result: &MapResult) -> v1::MapResult {
    v1::MapResult {
        index: result.index,
        exit_code: result.exit_code.map(u32::from),
        error: result.error.clone(),
        stdout: result.stdout.clone().into(),
        stderr: result.stderr.clone().into(),
        truncated: result.truncated,
        vm: result.vm.clone(),
        node: result.node.clone(),
        attempts: result.attempts,
        took_us: result.took_us,
    }
}

/// The same for the state.
pub fn map_result_of(result: v1::MapResult) -> MapResult {
    MapResult {
        index: result.index,
        exit_code: result
            .exit_code
            .map(|code| u8::try_from(code).unwrap_or(u8::MAX)),
        error: result.error,
        stdout: result.stdout.into(),
        stderr: result.stderr.into(),
        truncated: result.truncated,
        vm: result.vm,
        node: result.node,
        attempts: result.attempts,
        took_us: result.took_us,
    }
}
