//! What the agent measures of itself, in Prometheus's text form (its "exposition formats" document, version 0.0.4), at `/metrics` beside
//! the API. Names end in their units; times are in seconds, from one bucket to the next twice as long.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use qemu::capture::Report;

use crate::{convert, node::Node, reconcile::plan::Is};

/// Where they are.
pub const PATH: &str = "metrics";
/// What they are, for who asks.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The first bucket of times, seconds, and how many there are: to a good minute.
const SHORTEST: f64 = 0.000_25;
const BUCKETS: i32 = 19;
/// How often what was measured is put together, whether anybody asks or not.
pub const PAUSE: Duration = Duration::from_secs(5);

const CALLS: &str = "fpagent_calls_total";
const CALL_TIME: &str = "fpagent_call_seconds";
const COMMIT_TIME: &str = "fpagent_raft_commit_seconds";
const PLAN_TIME: &str = "fpagent_reconcile_seconds";
const CAPTURE_TIME: &str = "fpagent_capture_seconds";
const CAPTURE_BYTES: &str = "fpagent_capture_bytes_total";
const CHILD_TIME: &str = "fpagent_fork_child_seconds";
const CHILDREN: &str = "fpagent_fork_children_total";
const FETCHED: &str = "fpagent_fetched_bytes_total";

/// Has everything that is measured in this process be kept. Once in a process.
///
/// # Errors
/// It was done before.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let buckets: Vec<f64> = (0..BUCKETS)
        .map(|step| SHORTEST * f64::from(1 << step))
        .collect();
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &buckets)
        .and_then(PrometheusBuilder::install_recorder)
        .context("measurements cannot be kept")?;
    describe_counter!(CALLS, "calls that were answered, by what became of them");
    describe_histogram!(CALL_TIME, Unit::Seconds, "until a call's answer began");
    describe_histogram!(
        COMMIT_TIME,
        Unit::Seconds,
        "until a change was committed and applied"
    );
    describe_histogram!(
        PLAN_TIME,
        Unit::Seconds,
        "looking at what there is, and planning"
    );
    describe_histogram!(
        CAPTURE_TIME,
        Unit::Seconds,
        "captures, by phase; pause is the guest's"
    );
    describe_counter!(
        CAPTURE_BYTES,
        Unit::Bytes,
        "memory copied by captures, by when"
    );
    describe_histogram!(
        CHILD_TIME,
        Unit::Seconds,
        "from a fork's request to a child, by step"
    );
    describe_counter!(CHILDREN, "children of forks, by what became of them");
    describe_counter!(FETCHED, Unit::Bytes, "files fetched from other nodes");
    for (name, what) in GAUGES {
        describe_gauge!(*name, *what);
    }
    Ok(handle)
}

const TERM: &str = "fpagent_raft_term";
const LEADER: &str = "fpagent_raft_leader";
const QUORUM: &str = "fpagent_raft_quorum";
const APPLIED: &str = "fpagent_raft_applied_index";
const LAG: &str = "fpagent_raft_lag_entries";
const VMS: &str = "fpagent_vms";
const READY: &str = "fpagent_ready_forks";
const PRIVATE: &str = "fpagent_guest_memory_private_bytes";
const SHARED: &str = "fpagent_guest_memory_shared_bytes";
const MERGED: &str = "fpagent_guest_memory_merged_bytes";
const AVAILABLE: &str = "fpagent_host_memory_available_bytes";
const DISK: &str = "fpagent_disk_free_bytes";

const GAUGES: &[(&str, &str)] = &[
    (TERM, "the consensus's term"),
    (LEADER, "whether this node leads"),
    (QUORUM, "whether a majority of the voters answers"),
    (APPLIED, "the last log entry that this node applied"),
    (LAG, "log entries that this node has and has not applied"),
    (VMS, "VMs of this node, by their processes' state"),
    (READY, "forks that are ready before anybody asks for them"),
    (PRIVATE, "what QEMU processes have for themselves"),
    (SHARED, "what QEMU processes share"),
    (MERGED, "what the kernel merged of that"),
    (AVAILABLE, "what can be had of the host's memory"),
    (DISK, "what is free where the data directory lies"),
];

/// A call was answered.
pub fn call(call: &str, outcome: &'static str, took: Duration) {
    counter!(CALLS, "call" => call.to_owned(), "outcome" => outcome).increment(1);
    histogram!(CALL_TIME, "call" => call.to_owned()).record(took);
}

/// A change was committed.
pub fn commit(took: Duration) {
    histogram!(COMMIT_TIME).record(took);
}

/// The reconciler has planned once.
pub fn planned(took: Duration) {
    histogram!(PLAN_TIME).record(took);
}

/// A guest was captured.
pub fn capture(report: &Report) {
    let report = convert::capture_report(report);
    for (phase, us) in [
        ("pause", report.pause_us),
        ("ahead", report.ahead_us),
        ("stop", report.stop_us),
        ("disk", report.disk_us),
        ("devices", report.devices_us),
        ("scan", report.scan_us),
        ("copy", report.copy_us),
        ("cont", report.cont_us),
        ("write", report.write_us),
    ] {
        histogram!(CAPTURE_TIME, "phase" => phase).record(Duration::from_micros(us));
    }
    counter!(CAPTURE_BYTES, "when" => "ahead").increment(report.ahead_bytes);
    counter!(CAPTURE_BYTES, "when" => "paused").increment(report.paused_bytes);
}

/// What became of a fork's child: until it ran, until it was ready (0 for one that was not), or that it failed.
pub fn child(running: Duration, ready: Duration, failed: bool) {
    let outcome = if failed { "failed" } else { "running" };
    counter!(CHILDREN, "outcome" => outcome).increment(1);
    if failed {
        return;
    }
    histogram!(CHILD_TIME, "step" => "running").record(running);
    if !ready.is_zero() {
        histogram!(CHILD_TIME, "step" => "ready").record(ready);
    }
}

/// Some of a file came from another node.
pub fn fetched(bytes: usize) {
    counter!(FETCHED).increment(bytes as u64);
}

/// Puts together what was measured, until the node ends: it would grow where nobody asks for it.
pub async fn keep(node: &Node) {
    loop {
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => node.metrics.run_upkeep(),
        }
    }
}

/// Everything, as it is now.
pub async fn text(node: &Node) -> String {
    let status = node.raft.status();
    gauge!(TERM).set(status.term as f64);
    gauge!(LEADER).set(f64::from(u8::from(status.leader == Some(node.id()))));
    gauge!(QUORUM).set(f64::from(u8::from(status.quorum_ok)));
    gauge!(APPLIED).set(status.applied as f64);
    gauge!(LAG).set(status.last_log.saturating_sub(status.applied) as f64);
    for (state, count) in by_state(node.vms.observe().values().map(|seen| &seen.is)) {
        gauge!(VMS, "state" => state).set(f64::from(count));
    }
    let ready: u32 = node.pool.ready().iter().map(|(_, count)| count).sum();
    gauge!(READY).set(f64::from(ready));
    match node.host_memory().await {
        Ok(memory) => {
            let guests = memory.guests.unwrap_or_default();
            gauge!(PRIVATE).set(guests.private_bytes as f64);
            gauge!(SHARED).set(guests.shared_bytes as f64);
            gauge!(MERGED).set(guests.merged_bytes as f64);
            gauge!(AVAILABLE).set(memory.available_bytes as f64);
        }
        Err(error) => tracing::warn!(error, "memory is missing from the metrics"),
    }
    match node.free_bytes() {
        Ok(bytes) => gauge!(DISK).set(bytes as f64),
        Err(error) => tracing::warn!(%error, "the disk is missing from the metrics"),
    }
    node.metrics.render()
}

/// How many VMs there are in each state: in all that there are, so that a gauge goes back to zero.
fn by_state<'a>(vms: impl Iterator<Item = &'a Is>) -> BTreeMap<&'static str, u32> {
    let all = ["absent", "booting", "ended", "paused", "running", "unknown"];
    let mut counts: BTreeMap<_, u32> = all.into_iter().map(|state| (state, 0)).collect();
    for is in vms {
        let state = match is {
            Is::Unknown => "unknown",
            Is::Absent => "absent",
            Is::Booting { .. } => "booting",
            Is::Running { .. } => "running",
            Is::Paused { .. } => "paused",
            Is::Ended { .. } => "ended",
        };
        *counts.entry(state).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_without_a_vm_are_counted_too() {
        let vms = [Is::Running { boot: 1 }, Is::Running { boot: 2 }, Is::Absent];
        let counts = by_state(vms.iter());
        assert_eq!(
            (counts["running"], counts["absent"], counts["paused"]),
            (2, 1, 0)
        );
        assert_eq!(counts.len(), 6);
    }
}
