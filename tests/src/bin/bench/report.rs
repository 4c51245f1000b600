//! What was measured: rows of figures, as JSON and as a table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Several measurements of one thing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// How many.
    pub n: usize,
    /// The middle one.
    pub median: f64,
    /// 99 of 100 are not above this one (of fewer than 100: the largest).
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Series {
    /// Of values in any order; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let at = |share: f64| {
            values
                .get(((n as f64 * share).ceil() as usize).clamp(1, n.max(1)) - 1)
                .copied()
        };
        Some(Self {
            n,
            median: at(0.5)?,
            p99: at(0.99)?,
            max: *values.last()?,
        })
    }
}

/// One line of the table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its scenario.
    pub scenario: String,
    /// What it was measured of.
    pub what: String,
    /// How many forks one request asked for; 0 for a yardstick.
    pub forks: u32,
    /// The parent's pause by QEMU's own timestamps, milliseconds.
    pub pause_ms: Option<Series>,
    /// From the request's arrival to the last child's `cont` having returned, milliseconds.
    pub running_ms: Option<Series>,
    /// Processor time of agents and children for each fork, milliseconds; guests stood still.
    pub cpu_ms: Option<f64>,
    /// Host memory for each fork: the difference of MemAvailable, MiB.
    pub memory_mib: Option<f64>,
    /// Bytes that a fork's snapshot takes for memory and devices (its stream), KiB.
    pub stream_kib: Option<f64>,
    /// What is to be known besides.
    pub note: String,
}

/// A whole run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The machine it was made on.
    pub machine: Vec<(String, String)>,
    /// Whether it was the short one.
    pub quick: bool,
    /// What was measured.
    pub rows: Vec<Row>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (name, value) in &self.machine {
            let _ = writeln!(text, "{name:12} {value}");
        }
        let _ = writeln!(
            text,
            "\n{:11} {:44} {:>5} {:>22} {:>22} {:>8} {:>8} {:>9}  note",
            "scenario",
            "what",
            "forks",
            "pause ms: median (p99)",
            "running ms: med. (p99)",
            "CPU ms",
            "MiB",
            "stream KiB"
        );
        for row in &self.rows {
            let series = |series: &Option<Series>| {
                series.as_ref().map_or_else(
                    || "-".to_owned(),
                    |s| format!("{:.1} ({:.1}) n={}", s.median, s.p99, s.n),
                )
            };
            let number = |value: Option<f64>| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
            };
            let _ = writeln!(
                text,
                "{:11} {:44} {:>5} {:>22} {:>22} {:>8} {:>8} {:>9}  {}",
                row.scenario,
                row.what,
                row.forks,
                series(&row.pause_ms),
                series(&row.running_ms),
                number(row.cpu_ms),
                number(row.memory_mib),
                number(row.stream_kib),
                row.note
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hundredth_part_is_left_out() {
        let series = Series::of((1..=200).map(f64::from).rev().collect()).unwrap();
        assert_eq!(
            (series.n, series.median, series.p99, series.max),
            (200, 100.0, 198.0, 200.0)
        );
        let few = Series::of(vec![3.0, 1.0]).unwrap();
        assert_eq!((few.median, few.p99), (1.0, 3.0));
        assert!(Series::of(vec![]).is_none());
    }
}
