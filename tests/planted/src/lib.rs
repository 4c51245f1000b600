//! Bugs that are planted, to see that they are found. The calls in the sources are their only list. One whose name begins with that of a
//! target of fuzzing is found by that: `deploy/fuzz.sh` has each be. Those of the log and of reads are found by tests of faults.
//!
//! They are compiled in by the feature `armed` with debug assertions, both: no release has them.

/// Whether this bug is planted, as `FP_PLANTED` says.
#[cfg(all(feature = "armed", debug_assertions))]
pub fn planted(bug: &str) -> bool {
    use std::sync::LazyLock;
    static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("FP_PLANTED").ok());
    CHOSEN.as_deref() == Some(bug)
}

/// None is.
#[cfg(not(all(feature = "armed", debug_assertions)))]
pub const fn planted(_: &str) -> bool {
    false
}
