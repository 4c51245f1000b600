//! Failpoints: named steps at which a test has something go wrong. The agent is killed there, as by `kill -9`; a machine's
//! process is stopped or ended; or a file system turns out to be full.
//!
//! They are in a program only if it is built with the feature `failpoints` and with debug assertions: in a release they are
//! nothing, whoever asks for the feature. The calls in the sources are the list of them: `tests/tests/kills.rs` reads it from
//! there, and fails for one that it does not know how to reach.
//!
//! One is armed by a file, which [`VARIABLE`] names in the agent's environment: `NAME ACTION`. It acts once; then the file has
//! got the ending `.reached` (a full disk stays full until the file is gone, and another with that ending is there). So a test arms a running agent, and one that was killed comes back unarmed.

#[cfg(all(feature = "failpoints", debug_assertions))]
mod armed;
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
mod inert;

#[cfg(all(feature = "failpoints", debug_assertions))]
pub use self::armed::{reached, reached_by, write};
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
pub use self::inert::{reached, reached_by, write};

/// The variable that names the file which arms a failpoint.
pub const VARIABLE: &str = "FPAGENT_FAILPOINT";
/// The ending of its name once the failpoint was reached.
pub const REACHED: &str = "reached";
/// Kills the agent.
pub const KILL: &str = "kill";
/// Stops the machine's process: it hangs.
pub const STOP: &str = "stop";
/// Ends the machine's process.
pub const END: &str = "end";
/// Has what is being written find no room.
pub const FULL: &str = "full";
