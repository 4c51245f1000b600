//! A day's writes, made as fast as they go: what the store takes on disk must not grow with them.

use std::{
    fs, io,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use futures::future::try_join_all;
use tokio::runtime::Runtime;

use crate::{
    host,
    report::{Held, Report},
    state::Claimed,
};

/// Forks of a day where one is made every second, around the clock.
const FORKS: u32 = 24 * 3600;
/// Writes that each comes to: decided, captured, answered, deleted, its files gone.
const WRITES: u32 = 5;
/// VMs that are there.
const VMS: u32 = 1_000;
/// How many forks go on at once: of more, several would be one entry of the log.
const SIDE_BY_SIDE: u32 = 2;
/// How often the folders are looked at.
const LOOKS: u32 = 40;
/// How much larger the store may be in the second half of the day than in the first. It goes up and down as the log is cut off.
const MOST_GROWTH: f64 = 1.1;
/// What it may come to at all, MiB.
const MOST_MIB: f64 = 64.0;

/// Measures, and adds what was measured to a report.
pub fn run(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let _entered = runtime.enter();
    let claimed = Claimed::new(&runtime, VMS)?;
    report.machine = host::describe(claimed.cluster.folder())?;
    let forks = if quick { FORKS / 10 } else { FORKS };
    let begun = Instant::now();
    let first = claimed.host.applied();
    let mut sizes = Vec::new();
    for look in 1..=LOOKS {
        let left = AtomicU32::new(forks / LOOKS);
        let take = || {
            let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            taken.is_ok()
        };
        let work = (0..SIDE_BY_SIDE).map(|_| async {
            while take() {
                claimed.fork(0).await?;
            }
            anyhow::Ok(())
        });
        runtime.block_on(async { try_join_all(work).await })?;
        let mut largest = 0;
        for agent in &claimed.cluster.agents {
            largest = largest.max(size(&agent.data.join("raft"))?);
        }
        eprintln!("    {look} of {LOOKS}: {:.1} MiB", mib(largest));
        sizes.push(mib(largest));
    }
    let entries = claimed.host.applied() - first;
    let took = begun.elapsed().as_secs_f64();
    let (early, late) = sizes.split_at(sizes.len() / 2);
    let most = |sizes: &[f64]| sizes.iter().copied().fold(0.0, f64::max);
    let writes = forks / LOOKS * LOOKS * WRITES;
    let note = format!("{writes} writes in {entries} entries, in {took:.0} s");
    let growth = Held::at_most(
        "store",
        "the largest in the day's second half, as a part of the first's",
        most(late) / most(early),
        MOST_GROWTH,
        "",
    );
    let largest = Held::at_most(
        "store",
        "DATA/raft, the largest",
        most(&sizes),
        MOST_MIB,
        "MiB",
    );
    report.held.extend([growth.noted(note), largest]);
    runtime.block_on(claimed.host.stop())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What a folder's files take, bytes. One that goes meanwhile takes nothing.
fn size(folder: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let counted = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => size(&path),
            Ok(found) => Ok(found.blocks() * 512),
            Err(error) => Err(error),
        };
        match counted {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            counted => bytes += counted?,
        }
    }
    Ok(bytes)
}
