//! The agent: the daemon that runs on every host of a cluster, and the client that talks to it.

pub mod daemon;
pub mod trust;
