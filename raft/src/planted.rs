//! Bugs that are planted, to see that tests of faults find them: those of the `tests` crate build them in, and have each be found.
//!
//! They are compiled in by the feature `planted` with debug assertions, both: no release has them.

/// Whether this bug is planted, as `FP_PLANTED` says.
#[cfg(all(feature = "planted", debug_assertions))]
pub(crate) fn planted(bug: &str) -> bool {
    use std::sync::LazyLock;
    static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("FP_PLANTED").ok());
    CHOSEN.as_deref() == Some(bug)
}

/// None is.
#[cfg(not(all(feature = "planted", debug_assertions)))]
pub(crate) const fn planted(_: &str) -> bool {
    false
}
