//! What the cluster should be, replicated.
//!
//! * [`state`]: the model, the commands and their application; pure.
//! * [`stored`] and [`codec`]: how all of it is written down and sent.
//! * [`log`] and [`machine`]: what openraft keeps on disk, in sled and in snapshot files.
//! * [`node`]: a member of the consensus, the way to propose and to read.
//!
//! The agent starts a [`node::Handle`], proposes [`state::Proposal`]s and looks at the published [`state::State`].

pub mod codec;
pub mod state;
pub mod stored;
