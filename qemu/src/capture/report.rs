//! How a capture went, and why its pause was long when it was.

use std::time::Duration;

/// How a capture went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// From QEMU's STOP event to its RESUME event; zero for a machine that stood still before and after.
    pub pause: Duration,
    /// From sending `stop` to `cont` having returned.
    pub agent_pause: Duration,
    /// Work before the stop.
    pub ahead: Duration,
    /// Parts of the pause: `stop`; then the disk and the devices, and beside them the scan and the copying; `cont`.
    pub stop: Duration,
    /// See `stop`.
    pub disk: Duration,
    /// See `stop`.
    pub devices: Duration,
    /// See `stop`.
    pub scan: Duration,
    /// See `stop`.
    pub copy: Duration,
    /// See `stop`.
    pub cont: Duration,
    /// Part of the pause, too, of a machine that is captured together with others: until they were captured.
    pub others: Duration,
    /// Writing the stream, after the pause.
    pub write: Duration,
    /// Rounds of copying while the guest ran.
    pub rounds: u32,
    /// Bytes copied while the guest ran.
    pub ahead_bytes: u64,
    /// Bytes copied while it stood still.
    pub paused_bytes: u64,
    /// Whether a new base was made.
    pub new_base: bool,
    /// Whether memory was copied while the guest ran.
    pub live: bool,
    /// Why the pause was longer than it should be; empty when it was not.
    pub note: String,
}

/// Why a pause was longer than it should be.
pub(super) fn explain(report: &Report) -> String {
    const LONG: Duration = Duration::from_millis(12);
    let longest = report.pause.max(report.agent_pause);
    if longest <= LONG {
        return String::new();
    }
    if !report.live {
        return "memory was copied while the guest stood still".to_owned();
    }
    if report.paused_bytes > 4 << 20 {
        return format!(
            "the guest writes faster than its memory can be copied: {} MiB were left after {} rounds",
            report.paused_bytes >> 20,
            report.rounds
        );
    }
    let steps = [
        ("stopping", report.stop),
        ("the disk", report.disk),
        ("saving the devices", report.devices),
        ("scanning memory", report.scan),
        ("copying memory", report.copy),
        ("capturing the others of its group", report.others),
        ("going on", report.cont),
    ];
    steps
        .iter()
        .max_by_key(|(_, time)| *time)
        .map(|(what, time)| {
            format!(
                "{what} took {:.1} ms; is the host busy?",
                time.as_secs_f64() * 1e3
            )
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_pause_is_explained() {
        let long = Duration::from_millis(40);
        let report = Report {
            live: true,
            pause: long,
            disk: long,
            ..Report::default()
        };
        assert!(explain(&report).contains("the disk"));
        assert!(
            explain(&Report {
                pause: long,
                ..Report::default()
            })
            .contains("stood still")
        );
        assert_eq!(
            explain(&Report {
                live: true,
                ..Report::default()
            }),
            ""
        );
    }
}
