//! Forky Pig's fork engine: QEMU processes, the capture of their memory, devices and disk, and their restoration.
//!
//! The agent is the only caller. What is pure stands apart ([`spec`], [`stream`], [`page_set`]); what touches the kernel is
//! in [`sys`]; [`machine`] is one running process, [`capture`] makes snapshots of it.

pub mod capture;
pub mod checksum;
pub mod console;
pub mod disk;
pub mod failpoint;
pub mod footprint;
pub mod groups;
pub mod host;
pub mod ksm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod merge;
pub mod oom;
pub mod page_set;
pub mod past;
pub mod port;
pub mod priority;
pub mod process;
pub mod qmp;
pub mod record;
pub mod spec;
pub mod stream;
pub mod sys;
pub mod untrusted;
pub mod write_back;

/// The library that is preloaded into QEMU to have its writes tracked.
pub const TRACKING_LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/write_tracking.so"));
