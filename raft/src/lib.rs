//! What the cluster should be, replicated.
//!
//! * [`state`]: the model, the commands and their application; pure.
//! * [`stored`] and [`codec`]: how all of it is written down and sent.
//! * [`log`]: what openraft keeps on disk, in sled.
//! * [`consensus`]: a member of the consensus, the way to propose and to read, for any state machine.
//! * [`node`]: the two joined: what the agent uses.

// Tests in the modules share files with those beside them.
#[cfg(test)]
extern crate self as raft;

pub mod codec;
pub mod consensus;
pub mod log;
pub mod node;
pub mod state;
pub mod stored;
pub mod version;
