//! Forky Pig's gRPC interfaces, generated from the `.proto` files beside this crate.
//!
//! [`v1`] is the public API that clients use; [`peer`] is how agents talk to each other and is no contract for anyone
//! else. The comments in the `.proto` files are the API's documentation.

pub use forkypig::{peer::v1 as peer, v1};

mod secret;

/// The packages as the compiler nests them: generated code refers to its neighbours by these paths.
#[allow(missing_docs, clippy::all, unused_qualifications)]
mod forkypig {
    pub mod v1 {
        tonic::include_proto!("forkypig.v1");
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("forkypig.peer.v1");
        }
    }
}

/// The encoded file descriptors of all packages, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
