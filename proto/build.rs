//! Compiles the `.proto` files with protox, so that no system `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 14] = [
    "forkypig/v1/cluster.proto",
    "forkypig/v1/errors.proto",
    "forkypig/v1/event.proto",
    "forkypig/v1/guest.proto",
    "forkypig/v1/image.proto",
    "forkypig/v1/lease.proto",
    "forkypig/v1/map.proto",
    "forkypig/v1/node.proto",
    "forkypig/v1/operation.proto",
    "forkypig/v1/owner.proto",
    "forkypig/v1/snapshot.proto",
    "forkypig/v1/vm.proto",
    "forkypig/peer/v1/peer.proto",
    "forkypig/peer/v1/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `bytes` fields as `Bytes`: chunks of images and snapshots are handed on without a copy.
    // Maps in their order: requests are told apart by the hash of what they are encoded to. Messages that hold secrets are not
    // printed as they are, see `src/secret.rs`.
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .skip_debug([
            ".forkypig.v1.ForkRequest",
            ".forkypig.v1.JoinResponse",
            ".forkypig.peer.v1.FetchAuthorityResponse",
            ".forkypig.peer.v1.HandSecretsRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
