//! One pulse record: its 32 bytes, its line of text, its checksum. Written by `fpguest pulse`, read
//! through [`crate::history`] and [`crate::pages`].
//!
//! Little-endian:
//!
//! | bytes | field | what |
//! |---|---|---|
//! | 0..8 | `n` | 1, 2, 3, … within a run; 0 means: no record here yet |
//! | 8..16 | `run` | random for each start of the program, never 0 |
//! | 16..24 | `stamp` | nanoseconds since the guest's boot (`CLOCK_BOOTTIME`) at the writing |
//! | 24..28 | `salt` | the low half of the time stamp counter at the writing |
//! | 28..32 | `crc` | CRC-32 of the `crc` of the record before (4 bytes), then of bytes 0..28 |
//!
//! Before a run's first record stands the CRC-32 of `run`'s eight bytes ([`seed`]).
//!
//! On the console: `pulse N RUN STAMP SALT CRC`, `N` in decimal and the rest in hexadecimal, padded.

use crate::crc::crc32;

/// The size of an encoded record in bytes.
pub const RECORD_SIZE: usize = 32;

/// What is written ten times a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// The position in its run, from 1.
    pub n: u64,
    /// The run of the program that wrote it: the same in a guest and all of its forks.
    pub run: u64,
    /// When it was written, in nanoseconds since the guest's boot.
    pub stamp: u64,
    /// The low half of the time stamp counter when it was written.
    pub salt: u32,
    /// The checksum over the record before and this one.
    pub crc: u32,
}

/// What takes the place of "the checksum of the record before" for a run's first record.
pub fn seed(run: u64) -> u32 {
    crc32(&[&run.to_le_bytes()])
}

impl Record {
    /// The run's record number 1.
    pub fn first(run: u64, stamp: u64, salt: u32) -> Self {
        Self {
            n: 1,
            run,
            stamp,
            salt,
            crc: 0,
        }
        .sealed(seed(run))
    }

    /// The record after this one.
    #[must_use]
    pub fn next(&self, stamp: u64, salt: u32) -> Self {
        Self {
            n: self.n + 1,
            run: self.run,
            stamp,
            salt,
            crc: 0,
        }
        .sealed(self.crc)
    }

    /// Whether the checksum fits, when the record before has the checksum `before`.
    pub fn follows(&self, before: u32) -> bool {
        self.sealed(before).crc == self.crc
    }

    /// The 32 bytes.
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0; RECORD_SIZE];
        bytes[0..8].copy_from_slice(&self.n.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.run.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.stamp.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.salt.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// The record in these bytes, `None` where none was written (`n` is 0). Its checksum is not
    /// looked at: that takes the record before.
    pub fn decode(bytes: &[u8; RECORD_SIZE]) -> Option<Self> {
        let record = Self {
            n: u64_at(bytes, 0),
            run: u64_at(bytes, 8),
            stamp: u64_at(bytes, 16),
            salt: u32_at(bytes, 24),
            crc: u32_at(bytes, 28),
        };
        (record.n != 0).then_some(record)
    }

    /// The line for the console, without its end.
    pub fn to_line(&self) -> String {
        let Self {
            n,
            run,
            stamp,
            salt,
            crc,
        } = self;
        format!("pulse {n} {run:016x} {stamp:016x} {salt:08x} {crc:08x}")
    }

    /// The record in a console line, whatever stands before it (a prompt, a kernel's message):
    /// `None` when there is none or it is not complete.
    pub fn from_line(line: &str) -> Option<Self> {
        let (_, text) = line.rsplit_once("pulse ")?;
        let mut words = text.split_ascii_whitespace();
        let record = Self {
            n: words.next()?.parse().ok()?,
            run: hex(words.next()?, 16)?,
            stamp: hex(words.next()?, 16)?,
            salt: u32::try_from(hex(words.next()?, 8)?).ok()?,
            crc: u32::try_from(hex(words.next()?, 8)?).ok()?,
        };
        Some(record)
    }

    fn sealed(mut self, before: u32) -> Self {
        self.crc = crc32(&[&before.to_le_bytes(), &self.encode()[..RECORD_SIZE - 4]]);
        self
    }
}

fn hex(word: &str, digits: usize) -> Option<u64> {
    (word.len() == digits)
        .then(|| u64::from_str_radix(word, 16).ok())
        .flatten()
}

/// The little-endian number at `offset`; short bytes count as zeroes.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

/// The little-endian number at `offset`; short bytes count as zeroes.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let byte = |i: usize| u32::from(bytes.get(offset + i).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_form_does_not_change() {
        let first = Record::first(0x1122_3344_5566_7788, 1_000_000_000, 0xdead_beef);
        assert_eq!(
            first.to_line(),
            "pulse 1 1122334455667788 000000003b9aca00 deadbeef f18eba8f"
        );
        assert_eq!(first.encode()[0..9], [1, 0, 0, 0, 0, 0, 0, 0, 0x88]);
    }

    #[test]
    fn an_incomplete_line_is_no_record() {
        let line = Record::first(7, 8, 9).to_line();
        for end in 0..line.len() {
            assert_eq!(Record::from_line(&line[..end]), None, "{}", &line[..end]);
        }
        assert_eq!(Record::from_line("login: "), None);
    }

    #[test]
    fn a_prompt_before_and_a_carriage_return_after_do_no_harm() {
        let record = Record::first(7, 8, 9);
        let line = format!("/ # echo pulse {}\r", record.to_line());
        assert_eq!(Record::from_line(&line), Some(record));
    }

    proptest! {
        #[test]
        fn bytes_and_lines_keep_everything(
            n in 1u64.., run: u64, stamp: u64, salt: u32, crc: u32,
        ) {
            let record = Record { n, run, stamp, salt, crc };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
            prop_assert_eq!(Record::from_line(&record.to_line()), Some(record));
        }

        #[test]
        fn any_flipped_bit_is_noticed(run: u64, stamp: u64, salt: u32, bit in 0usize..256) {
            let first = Record::first(run, stamp, salt);
            let second = first.next(stamp.wrapping_add(1), salt);
            let mut bytes = second.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let altered = Record::decode(&bytes);
            prop_assert!(second.follows(first.crc));
            prop_assert!(!altered.is_some_and(|record| record.follows(first.crc)));
        }

        #[test]
        fn text_never_panics(line: String) {
            let _ = Record::from_line(&line);
        }
    }
}
