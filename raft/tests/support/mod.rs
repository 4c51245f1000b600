//! Clusters for tests: members in this process with logs on disk, called over gRPC on the loopback interface.

// Each test binary uses a part of it. clippy knows tests, not what they share: a panic there is a failure with a place.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod app;
pub mod cluster;
pub mod device;
pub mod disk;
