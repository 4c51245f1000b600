//! What the program inside a guest and the host agree on: the [`channel`] between their agents, copying [`files`] over it, and what
//! the guests of tests write for the host's tests to read back.
//!
//! `fpguest pulse` writes one record after another, each to these places in this order:
//!
//! 1. memory: a locked buffer whose pages a reader of guest RAM finds by their magic ([`pages`]);
//! 2. raw disk, where it was asked for: the same page, at the same place of a block device;
//! 3. disk: appended to a file as 32 bytes and synced ([`history::parse_disk`]);
//! 4. console: a line of text ([`record::Record::to_line`]).
//!
//! So at whatever instant a guest is captured, each of them is at most one record ahead of the next. Every record carries the clock and the time stamp
//! counter of its writing, and a checksum that covers the checksum of the one before: two forks of
//! a guest share their records up to the fork and differ from there on, and a lost, repeated, torn
//! or foreign record breaks the chain ([`history::verify`]).

pub mod channel;
pub mod crc;
pub mod files;
pub mod group;
pub mod history;
pub mod pages;
pub mod record;
