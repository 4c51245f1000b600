//! What is sent: bytes that can be told from all others nearby by where they are, so that nobody has to keep them to compare.

use std::sync::LazyLock;

/// After so many it begins anew.
const PERIOD: usize = 1 << 16;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1u32;
    let one: Vec<u8> = (0..PERIOD)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    one.repeat(2)
});

/// `length` bytes, at most 64 KiB, at a place of what is sent under a key.
pub fn at(key: u64, place: u64, length: usize) -> &'static [u8] {
    let begin = key.wrapping_mul(7919).wrapping_add(place) as usize % PERIOD;
    &TABLE[begin..begin + length]
}

/// Whether these, of any length, are the bytes at that place.
pub fn is_at(key: u64, place: u64, bytes: &[u8]) -> bool {
    let mut place = place;
    bytes.chunks(PERIOD).all(|piece| {
        let same = piece == at(key, place, piece.len());
        place += piece.len() as u64;
        same
    })
}

/// A key for a lane of a stream, one way.
pub fn key(from: u8, stream: u32, lane: u8) -> u64 {
    u64::from(stream) * 8 + u64::from(lane) * 2 + u64::from(from)
}
