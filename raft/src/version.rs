//! Which forms of commands and records there are. The members of a cluster may run different versions of this program: all of them
//! write what the oldest understands, which is [`crate::state::State::version`].
//!
//! A change of what is written or of what a command does is a new version: its forms are a module beside [`crate::stored::v1`], chosen by
//! [`crate::codec`], and nothing of it is proposed before the state has reached it.

/// The first, which every member understands.
pub const FIRST: u32 = 1;

/// The newest that was released.
const NEWEST: u32 = 1;

/// The newest that this program understands.
///
/// With the feature `next-version` and debug assertions, both, and `FP_NEXT_VERSION` in the environment it is one that does not exist yet:
/// the same forms under its number. So tests have a newer program than the one that they try.
pub fn newest() -> u32 {
    #[cfg(all(feature = "next-version", debug_assertions))]
    {
        use std::sync::LazyLock;
        static NEXT: LazyLock<bool> =
            LazyLock::new(|| std::env::var_os("FP_NEXT_VERSION").is_some());
        if *NEXT {
            return NEWEST + 1;
        }
    }
    NEWEST
}
