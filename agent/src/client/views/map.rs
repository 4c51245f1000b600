//! Maps that are left to the cluster, as they are printed.

use proto::v1;
use serde::Serialize;

use super::{Moment, age, time};
use crate::client::{map::result::ReduceView, output::Row};

/// A map.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct MapView {
    pub id: String,
    pub name: String,
    pub owner: String,
    pub state: &'static str,
    pub reason: String,
    pub source: String,
    pub snapshot: String,
    pub command: Vec<String>,
    pub count: u32,
    pub done: u32,
    pub failed: u32,
    pub first_failure: String,
    pub repeated: u32,
    pub driver: String,
    pub drives: u64,
    pub waits_for: String,
    #[serde(flatten)]
    reduced: Option<ReduceView>,
    pub created_at: Option<Moment>,
    pub ended_at: Option<Moment>,
    pub expires_at: Option<Moment>,
}

impl From<v1::Map> for MapView {
    fn from(map: v1::Map) -> Self {
        let word = |word: &bytes::Bytes| String::from_utf8_lossy(word).into_owned();
        Self {
            state: state_word(map.state()),
            command: map.argv.iter().map(word).collect(),
            id: map.id,
            name: map.name,
            owner: map.owner,
            reason: map.reason,
            source: map.source,
            snapshot: map.snapshot,
            count: map.count,
            done: map.done,
            failed: map.failed,
            first_failure: map.first_failure,
            repeated: map.repeated,
            driver: map.driver,
            drives: map.drives,
            waits_for: map.waits_for,
            reduced: map.reduced.map(ReduceView::from),
            created_at: time(map.created_at),
            ended_at: time(map.ended_at),
            expires_at: time(map.expires_at),
        }
    }
}

fn state_word(state: v1::MapState) -> &'static str {
    match state {
        v1::MapState::Unspecified => "unknown",
        v1::MapState::Running => "running",
        v1::MapState::Finished => "finished",
        v1::MapState::Cancelled => "cancelled",
        v1::MapState::Failed => "failed",
    }
}

impl MapView {
    /// Its name, or its id.
    pub fn called(&self) -> &str {
        match self.name.as_str() {
            "" => &self.id,
            name => name,
        }
    }
}

impl Row for MapView {
    fn owner(&self) -> Option<&str> {
        Some(&self.owner)
    }

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec![
            "ID", "NAME", "STATE", "DONE", "FAILED", "SOURCE", "DRIVER", "AGE",
        ];
        if wide {
            header.extend(["COMMAND", "REASON"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.id.clone(),
            self.name.clone(),
            self.state.to_owned(),
            format!("{} of {}", self.done, self.count),
            self.failed.to_string(),
            self.source.clone(),
            self.driver.clone(),
            age(self.created_at),
        ];
        if wide {
            let why = match self.reason.as_str() {
                "" => &self.waits_for,
                reason => reason,
            };
            cells.extend([self.command.join(" "), why.to_owned()]);
        }
        cells
    }
}
