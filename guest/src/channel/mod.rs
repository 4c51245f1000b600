//! The channel between a guest's agent and its host's: a virtio serial port named [`PORT`]. Both ends use this module.
//!
//! The host begins a session with [`message::Hello`], in which it says who the guest is. The guest becomes that, if it is not yet, and answers with
//! [`message::Welcome`]. From then on both begin streams, each with a [`message::Request`]. A session ends with the connection, or with
//! the next Hello: what was under way is then broken off, and told so.
//!
//! A guest that was forked goes on with the session of its parent until it is greeted by a host of its own. What
//! it had not read of that is cut off, and so may be what it had not finished to write: see [`frame`]. Frames
//! of another session than the one that is going on are passed over.

pub mod check;
pub mod frame;
pub mod link;
pub mod message;
pub mod mux;
pub mod relay;

/// The port's name in the guest.
pub const PORT: &str = "org.forkypig.agent";
