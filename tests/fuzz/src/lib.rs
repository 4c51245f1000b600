//! Fuzzing of the channel between guests' agents and their hosts'. Each target takes any bytes for what one side does, or both, and
//! panics where what must hold does not. `deploy/fuzz.sh` has an engine choose the bytes by the code that they reach; the tests
//! of this crate give the targets the corpus that lies beside it.

mod end;
mod frame;
mod input;
mod memory;
mod messages;
mod pair;
mod pattern;

/// A target: what it is called, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("frame", frame::run),
    ("host_end", end::host),
    ("guest_end", end::guest),
    ("pair", pair::run),
    ("messages", messages::run),
];
