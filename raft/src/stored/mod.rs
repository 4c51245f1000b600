//! The stored and sent forms of commands, outcomes and states, apart from those that the code works with.
//!
//! bincode has no notion of a missing field: a form that was released never changes. A new one is a new module beside
//! [`v1`]; the golden files under `tests/golden` keep the old ones readable. Called by [`crate::codec`] only.

mod mirror;
pub mod v1;

pub use mirror::Mirror;
