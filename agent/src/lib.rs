//! The agent: the daemon that runs on every host of a cluster, and the client that talks to it.

pub mod admission;
pub mod api;
pub mod audit;
pub mod blobs;
pub mod client;
pub mod convert;
pub mod daemon;
pub mod density;
pub mod doctor;
pub mod errors;
pub mod guest;
pub mod images;
pub mod leases;
pub mod metrics;
pub mod newcomers;
pub mod node;
pub mod peers;
pub mod program;
pub mod reconcile;
pub mod removal;
pub mod secrets;
pub mod store;
pub mod trust;
pub mod upgrade;
pub mod vms;
