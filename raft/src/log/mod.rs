//! The log of the consensus and its vote, on disk.
//!
//! [`LogBackend`] is what a storage engine must do; [`sled::SledBackend`] is the one there is. [`LogStore`] is openraft's
//! view of it: it frames and checks every record, and does all writing in one thread, so that a slow disk holds up
//! nothing else; [`Durable`] says how far that has come, and a [`Mark`] on disk, beside the log, tells a later start.
//! Called by [`crate::consensus`].

mod backend;
mod durable;
pub mod frame;
mod io;
mod mark;
pub mod sled;
mod slots;
mod store;
#[cfg(test)]
mod store_tests;

use std::any::Any;

pub use self::{
    backend::{Key, LogBackend, LogError},
    durable::Durable,
    mark::Mark,
    store::{Contents, Identity, LogGuard, LogReader, LogStore, begin_after, read_after},
};

/// What a panic said.
fn described(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked")
}
