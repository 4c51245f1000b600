//! Bugs that are planted, to see that fuzzing finds them: `deploy/fuzz.sh` builds them in, and has each be found. The calls in the
//! sources are their only list; a bug's name begins with that of the target that is to find it.
//!
//! They are compiled in by the feature `planted` with debug assertions, both: no release has them.

/// Whether this bug is planted, as `FP_PLANTED` says.
#[cfg(all(feature = "planted", debug_assertions))]
pub fn planted(bug: &str) -> bool {
    use std::sync::LazyLock;
    static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("FP_PLANTED").ok());
    CHOSEN.as_deref() == Some(bug)
}

/// None is.
#[cfg(not(all(feature = "planted", debug_assertions)))]
pub const fn planted(_: &str) -> bool {
    false
}
