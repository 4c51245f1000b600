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

/// What writers of one side did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Writes {
    /// Whose cluster.
    pub who: String,
    /// How many wrote at once.
    pub writers: u32,
    /// How long a write took, milliseconds.
    pub ms: Series,
    /// Writes a second, of all writers.
    pub per_second: f64,
    /// Processor time of the cluster's processes for each write, milliseconds.
    pub cpu_ms: f64,
}

/// A figure, and the bound that it is held against.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Its scenario.
    pub scenario: String,
    /// What it is.
    pub what: String,
    /// The figure.
    pub measured: f64,
    /// Its unit; empty for a ratio.
    pub unit: String,
    /// The bound.
    pub bound: f64,
    /// Whether the figure may be at most that, rather than must be at least that.
    pub at_most: bool,
    /// What is to be known besides.
    #[serde(default)]
    pub note: String,
}

impl Held {
    /// One that may be so much at most.
    pub fn at_most(scenario: &str, what: &str, measured: f64, bound: f64, unit: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            what: what.to_owned(),
            measured,
            unit: unit.to_owned(),
            bound,
            at_most: true,
            note: String::new(),
        }
    }

    /// One that must be so much at least.
    pub fn at_least(scenario: &str, what: &str, measured: f64, bound: f64, unit: &str) -> Self {
        Self {
            at_most: false,
            ..Self::at_most(scenario, what, measured, bound, unit)
        }
    }

    /// The same, with a note.
    pub fn noted(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }

    /// Whether it keeps to its bound.
    pub fn is_kept(&self) -> bool {
        match self.at_most {
            true => self.measured <= self.bound,
            false => self.measured >= self.bound,
        }
    }
}

/// A whole run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The machine it was made on.
    pub machine: Vec<(String, String)>,
    /// Whether it was the short one.
    pub quick: bool,
    /// What was measured of forks.
    pub rows: Vec<Row>,
    /// What was measured of writes.
    #[serde(default)]
    pub writes: Vec<Writes>,
    /// What is held against bounds.
    #[serde(default)]
    pub held: Vec<Held>,
}

impl Report {
    /// Takes what another one measured in the place of what it has of that.
    pub fn take(&mut self, other: Self) {
        for (name, value) in other.machine {
            self.machine.retain(|(known, _)| *known != name);
            self.machine.push((name, value));
        }
        if !other.writes.is_empty() {
            self.writes = other.writes;
        }
        let again = |scenario: &str| other.held.iter().any(|held| held.scenario == scenario);
        self.held.retain(|held| !again(&held.scenario));
        self.held.extend(other.held);
        let again = |scenario: &str| other.rows.iter().any(|row| row.scenario == scenario);
        self.rows.retain(|row| !again(&row.scenario));
        self.rows.extend(other.rows);
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (name, value) in &self.machine {
            let _ = writeln!(text, "{name:12} {value}");
        }
        self.forks(&mut text);
        self.written(&mut text);
        self.bounds(&mut text);
        text
    }

    fn forks(&self, text: &mut String) {
        if self.rows.is_empty() {
            return;
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
    }

    fn written(&self, text: &mut String) {
        if self.writes.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\n{:10} {:>7} {:>8} {:>9} {:>9} {:>9} {:>10} {:>10}",
            "who", "writers", "writes", "p50 ms", "p99 ms", "max ms", "writes/s", "CPU ms"
        );
        for row in &self.writes {
            let _ = writeln!(
                text,
                "{:10} {:>7} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>10.0} {:>10.3}",
                row.who,
                row.writers,
                row.ms.n,
                row.ms.median,
                row.ms.p99,
                row.ms.max,
                row.per_second,
                row.cpu_ms
            );
        }
    }

    fn bounds(&self, text: &mut String) {
        if self.held.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\n{:8} {:58} {:>14} {:>18}  kept  note",
            "scenario", "what", "measured", "aimed at"
        );
        for held in &self.held {
            let word = if held.at_most { "at most" } else { "at least" };
            let kept = if held.is_kept() { "yes" } else { "NO" };
            let _ = writeln!(
                text,
                "{:8} {:58} {:>14} {:>18}  {kept:4}  {}",
                held.scenario,
                held.what,
                figure(held.measured, &held.unit),
                format!("{word} {}", figure(held.bound, &held.unit)),
                held.note
            );
        }
    }
}

/// With two digits where it is small, and its unit.
fn figure(value: f64, unit: &str) -> String {
    let digits = if value < 10.0 { 2 } else { 1 };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
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

    #[test]
    fn a_bound_is_kept_on_its_own_side_only() {
        let most = |measured| Held::at_most("x", "y", measured, 1.15, "").is_kept();
        let least = |measured| Held::at_least("x", "y", measured, 1.5, "").is_kept();
        assert!(most(1.15) && !most(1.16));
        assert!(least(1.5) && !least(1.49));
    }
}
