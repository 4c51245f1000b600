//! Clusters for tests: members in this process with logs on disk, called over gRPC on the loopback interface.

// Each test binary uses a part of it.
#![allow(dead_code, missing_docs)]

pub mod app;
pub mod cluster;
