//! What is printed of the API's messages. Field names and words are the contract of the command line.

pub mod authority;
pub mod cluster;
pub mod copy;
pub mod event;
pub mod fork;
pub mod group;
pub mod guest;
pub mod image;
pub mod lease;
pub mod map;
pub mod memory;
pub mod node;
pub mod operation;
pub mod owner;
pub mod recovery;
pub mod snapshot;
pub mod vm;

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prost_types::Timestamp;
use proto::v1::SetKeepResponse;
use serde::{Serialize, Serializer};

use super::units;

/// A point in time, printed as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment(Timestamp);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn time(timestamp: Option<Timestamp>) -> Option<Moment> {
    timestamp.map(Moment)
}

/// A time as text; nothing where there is none.
pub fn time_text(time: Option<Moment>) -> String {
    time.map_or_else(String::new, |time| time.to_string())
}

/// How long ago a time was, for a table.
fn age(time: Option<Moment>) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    time.map_or_else(String::new, |Moment(then)| {
        units::show_seconds(now.saturating_sub(u64::try_from(then.seconds).unwrap_or(0)))
    })
}

/// How long it is until a time, for a table.
fn until(time: Option<Moment>) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    time.map_or_else(String::new, |Moment(then)| {
        units::show_seconds(u64::try_from(then.seconds).unwrap_or(0).saturating_sub(now))
    })
}

/// How long something is kept, for a table.
fn kept(expires_at: Option<Moment>, lease: &str) -> String {
    match (expires_at, lease) {
        (None, "") => String::new(),
        (None, lease) => lease.to_owned(),
        (end, _) => until(end),
    }
}

/// How long something is kept from now on, as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct KeptView {
    pub expires_at: Option<Moment>,
}

impl KeptView {
    /// The same in words.
    pub fn text(&self) -> String {
        match self.expires_at {
            Some(end) => format!("kept until {end}"),
            None => "no time is set for its end".to_owned(),
        }
    }
}

impl From<SetKeepResponse> for KeptView {
    fn from(kept: SetKeepResponse) -> Self {
        Self {
            expires_at: time(kept.expires_at),
        }
    }
}

/// Milliseconds with three digits after the point: more is noise.
fn milliseconds(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

fn labels_text(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests;
