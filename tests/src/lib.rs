//! A harness for tests with real agent processes and real QEMU guests. Everything a user would do is done as a user would:
//! by the commands of `fpagent`. Waits name what they wait for and are bounded.
//!
//! Needs root, QEMU, the release build of `fpagent` (or `FPAGENT`), and the guest image of `deploy/build-image.sh tiny` (in
//! `FP_TEST_IMAGE` or `.local/image/tiny`).

pub mod channels;
pub mod cluster;
pub mod copies;
pub mod failpoints;
pub mod fpagent;
pub mod guests;
pub mod image;
pub mod lineage;
pub mod linear;
pub mod nemesis;
pub mod network;
pub mod panics;
pub mod probe;
pub mod processes;
pub mod pulse;
pub mod random;
pub mod raw;
pub mod requests;
pub mod secrecy;
pub mod session;
pub mod soundness;
pub mod users;
pub mod witness;
pub mod workload;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Waits until `reached` gives something; fails with what it was waiting for.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut reached: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = reached()? {
            return Ok(found);
        }
        anyhow::ensure!(
            begun.elapsed() < patience,
            "{what}: not within {} s",
            patience.as_secs_f64()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
