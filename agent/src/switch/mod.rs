//! The networks of groups: what one member of a group sends reaches the others, and nobody else.
//!
//! A process apart from the agent, the *switch* ([`serve`]), one for a node, has a socket to the QEMU of each member, which the agent took
//! from that and handed to it ([`link`](Switch)): by that it knows who sends, whatever a guest writes into its frames. It hands frames to the members of
//! the same group only ([`segments`]), keeps none, and can do nothing else: it has no files, no keys, no network and a user of its own. It outlives the
//! agent, as QEMU does, so that groups go on while that is away.

mod link;
mod segments;
pub mod serve;
mod wire;

pub use self::link::{Member, Switch};
