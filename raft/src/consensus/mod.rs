//! A member of the consensus: openraft over the log in [`crate::log`], an application, and gRPC between the members.
//!
//! Knows nothing of what it replicates but the trait [`App`]. [`start`] gives a [`Handle`]: proposals and linearizable
//! reads from any node, the published state, and the service that the other members call.

mod app;
mod core;
mod elections;
mod errors;
mod handle;
mod health;
mod machine;
mod membership;
mod network;
mod node;
pub mod offline;
mod peers;
mod proposals;
mod reads;
pub mod records;
mod service;
mod snapshots;
#[cfg(test)]
mod store_tests;
pub mod types;
mod voters;
pub mod wire;

pub use self::{
    app::{App, AppError, Member, Members, Published},
    errors::{BeginError, InitializeError, ProposeError, ReadError, StartError},
    handle::{Handle, Leading, Proposed},
    health::Status,
    node::{AWAY, Config, start, start_on},
    peers::{DialError, Dialer},
    service::{Caller, Service},
    snapshots::SnapshotError,
};
