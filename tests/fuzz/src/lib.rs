//! Fuzzing of what reads bytes that others made: the channel between guests' agents and their hosts', join tokens, settings, what is on a
//! node's disk, what members send each other, and streams. Each target takes any bytes for such, and panics where what must hold does not. `deploy/fuzz.sh` has an engine choose the bytes by the code that they reach; the tests
//! of this crate give the targets the corpus that lies beside it.

mod end;
mod frame;
mod input;
mod memory;
mod messages;
mod pair;
mod pattern;
mod records;
mod settings;
mod stream;
mod token;

/// A target: what it is called, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 10] = [
    ("frame", frame::run),
    ("host_end", end::host),
    ("guest_end", end::guest),
    ("pair", pair::run),
    ("messages", messages::run),
    ("token", token::run),
    ("settings", settings::run),
    ("stored", records::stored),
    ("peers", records::peers),
    ("stream", stream::run),
];
