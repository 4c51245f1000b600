//! What is printed of the API's messages. Field names and words are the contract of the command line.

pub mod authority;
pub mod cluster;
pub mod copy;
pub mod fork;
pub mod guest;
pub mod image;
pub mod memory;
pub mod node;
pub mod operation;
pub mod owner;
pub mod recovery;
pub mod snapshot;
pub mod vm;

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

use super::units;

/// A point in time as RFC 3339.
fn time(timestamp: Option<Timestamp>) -> Option<String> {
    timestamp.map(|timestamp| timestamp.to_string())
}

/// How long ago a time in RFC 3339 was, for a table.
fn age(time: Option<&str>) -> String {
    let then = time
        .and_then(|time| time.parse::<Timestamp>().ok())
        .map(|timestamp| timestamp.seconds);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    then.map_or_else(String::new, |then| {
        units::show_seconds(now.saturating_sub(u64::try_from(then).unwrap_or(0)))
    })
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
