//! Captures while the kernel merges equal pages as hard as it can: a page that it merges counts as written, and may turn into
//! the shared page of zeros under a guest that wrote zeros. Children are exact all the same, and streams hold what the guest
//! wrote, not what was merged.
//!
//! Changes the host's settings for KSM and puts them back.

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use qemu::{
    capture::{Afterwards, Mode},
    footprint,
    ksm::{Ksm, LEASE, Lease, Pace, SETTINGS, Settings},
    machine::Machine,
    record::{HOST_BOOT, host_boot},
};
use support::{Host, compare};

/// Merging at its hardest, until it is dropped.
struct Hardest {
    ksm: Ksm,
    found: Settings,
    lease: Lease,
}

impl Hardest {
    async fn begin(zero_pages: bool) -> anyhow::Result<Self> {
        let ksm = Ksm::of_host().context("this kernel cannot merge memory")?;
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut lease = loop {
            if let Some(lease) = Lease::take(Path::new(LEASE), &host_boot(Path::new(HOST_BOOT))?)? {
                break lease;
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "somebody else drives KSM on this host"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let found = match lease.found()? {
            Some(found) => found,
            None => ksm.settings()?,
        };
        lease.keep(&found)?;
        let hardest = Self { ksm, found, lease };
        hardest.ksm.set_pace(Pace::Steady {
            pages: 200_000,
            sleep_ms: 0,
        })?;
        let zero_pages = if zero_pages { "1" } else { "0" };
        fs::write(Path::new(SETTINGS).join("use_zero_pages"), zero_pages)?;
        Ok(hardest)
    }

    /// Until everything was looked at twice more: what is equal is merged by then.
    async fn merged(&self, vm: &Machine) -> anyhow::Result<u64> {
        let before = self.ksm.figures()?.full_scans;
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.ksm.figures()?.full_scans < before + 3 {
            anyhow::ensure!(Instant::now() < deadline, "KSM does not come around");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(footprint::of(vm.process().pid)?.merged)
    }
}

impl Drop for Hardest {
    fn drop(&mut self) {
        let restored = self.ksm.restore(&self.found);
        if let Err(error) = restored.and_then(|()| self.lease.clear()) {
            eprintln!("KSM's settings are not put back: {error}");
        }
    }
}

/// A guest, its fork, and a fork of that: each captured in every way while it writes and is merged.
async fn exact_and_small(zero_pages: bool, tracked: bool) -> anyhow::Result<()> {
    let host = Host::merging(tracked)?;
    let hardest = Hardest::begin(zero_pages).await?;
    let mut vm = host.boot("vm", 1, "fp.churn=4").await?;
    // It has no base yet, and the first capture makes one.
    host.capture(&mut vm, "first", Mode::Auto, true, Afterwards::GoOn)
        .await?;
    let mut sizes = Vec::new();
    let mut most = 0;
    for round in 0..6 {
        let merged = hardest.merged(&vm).await?;
        most = most.max(merged);
        let mode = [Mode::Auto, Mode::Paused][round % 2];
        let name = format!("s{round}");
        let captured = host
            .capture(&mut vm, &name, mode, true, Afterwards::Hold)
            .await?;
        eprintln!(
            "round {round}, {mode:?}: {} MiB merged, {} KiB in the stream, new base {}, {:?} ahead, {:?} pause",
            merged >> 20,
            captured.stream_bytes >> 10,
            captured.report.new_base,
            captured.report.ahead,
            captured.report.agent_pause,
        );
        sizes.push(captured.stream_bytes);
        let mut child = host.load(&format!("vm{round}"), &captured, &name).await?;
        assert_eq!(
            compare(&mut vm, &mut child).await?,
            Vec::<u32>::new(),
            "pages differ in round {round}"
        );
        if round % 3 == 2 {
            vm.kill().await?;
            vm = child;
        } else {
            child.resume().await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            child.kill().await?;
        }
        vm.resume().await?;
    }
    assert!(most > 16 << 20, "little was merged: {most} bytes");
    // 4 MiB are rewritten all the time; what else a guest of this image writes is a megabyte or two.
    assert!(
        sizes.iter().all(|size| *size < 12 << 20),
        "streams are large: {sizes:?}"
    );
    vm.kill().await?;
    let (ksm, found) = (hardest.ksm.clone(), hardest.found.clone());
    drop(hardest);
    assert_eq!(ksm.settings()?, found, "the host's settings");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merged_guests_are_captured_exactly() -> anyhow::Result<()> {
    exact_and_small(false, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_whose_zeros_are_merged_are_captured_exactly() -> anyhow::Result<()> {
    exact_and_small(true, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merged_guests_whose_writes_are_not_tracked_are_captured_exactly() -> anyhow::Result<()> {
    exact_and_small(true, false).await
}
