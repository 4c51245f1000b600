//! Any bytes for what a node has on its disk, and for what other members send it: nothing breaks, what was understood means the same when
//! it is written again, a record is as long as it says, and what is read takes a bounded amount of memory.

use raft::{
    codec,
    consensus::{
        records::{Entry, LogId, SnapshotMeta, Vote},
        types,
        wire::{
            Append, AppendReply, AskVote, ProposeReply, SnapshotHeader, SnapshotReply, VoteReply,
        },
    },
    log::frame,
    state::{self, State},
    version::FIRST,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{input::Input, memory};

/// What may be kept of a record: a length in it is believed up to a mebibyte at each depth until its content shows that it is not so, and
/// what is there takes a small multiple of its bytes.
fn kept(length: usize) -> isize {
    (16 << 20) + 256 * length as isize
}

fn record(input: &mut Input<'_>) -> Vec<u8> {
    let version = input.u8();
    // Mostly one that is known.
    let version = if version < 250 { 1 } else { version };
    [&[version], input.bytes(usize::MAX)].concat()
}

fn bounded<T>(record: &[u8], read: impl FnOnce(&[u8]) -> T) -> T {
    let (read, peak) = memory::peak(|| read(record));
    assert!(
        peak <= kept(record.len()),
        "{peak} bytes for {}",
        record.len()
    );
    read
}

fn one<T: Serialize + DeserializeOwned>(record: &[u8]) -> Option<T> {
    let read = |record: &[u8]| codec::decode::<T>(record, codec::NETWORK_LIMIT).ok();
    let value = bounded(record, read)?;
    assert!(
        read(&[record, &[0]].concat()).is_none(),
        "a byte more is passed over"
    );
    let written = codec::encode(&value);
    let again = read(&written).map(|again| codec::encode(&again));
    assert_eq!(again, Some(written), "it is read otherwise");
    Some(value)
}

/// What is on a disk.
pub fn stored(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.u8() % 8 {
        0 => framed(&mut input),
        1 => drop(one::<Vote>(&record(&mut input)).map(types::Vote::from)),
        2 => drop(one::<Entry>(&record(&mut input)).map(types::Entry::from)),
        3 => drop(one::<SnapshotMeta>(&record(&mut input)).map(types::SnapshotMeta::from)),
        4 => drop(one::<LogId>(&record(&mut input)).map(types::LogId::from)),
        5 => outcome(&record(&mut input)),
        6 => proposals(&mut input),
        _ => whole_state(&record(&mut input)),
    }
}

/// A record of the log, at any place, and perhaps as it should be.
fn framed(input: &mut Input<'_>) {
    let index = u64::from(input.u32());
    let (right, changed, by) = (input.u8(), input.below(32), input.u8());
    let bytes = match right % 2 {
        0 => input.bytes(usize::MAX).to_vec(),
        _ => frame::frame(index, input.bytes(usize::MAX)),
    };
    let mut bytes = bytes;
    if let Some(byte) = bytes.get_mut(changed) {
        *byte ^= by;
    }
    if let Ok(body) = frame::unframe(index, &bytes) {
        assert_eq!(frame::frame(index, body), bytes, "it was changed");
        assert!(
            frame::unframe(index + 1, &bytes).is_err(),
            "it is good elsewhere, too"
        );
    }
}

fn outcome(record: &[u8]) {
    if let Ok(outcome) = bounded(record, codec::decode_outcome) {
        let again = codec::decode_outcome(&codec::encode_outcome(&outcome));
        assert!(again.is_ok_and(|again| again == outcome), "{outcome:?}");
    }
}

/// Changes that somebody proposes, one after the other. What is refused changes nothing but what is remembered of it.
fn proposals(input: &mut Input<'_>) {
    let mut state = State::new();
    for _ in 0..4 {
        let length = input.length();
        let record = [&[1], input.bytes(length)].concat();
        let Ok(proposal) = bounded(&record, codec::decode_proposal) else {
            return;
        };
        let written = codec::encode_proposal(&proposal, FIRST);
        assert!(codec::decode_proposal(&written).is_ok_and(|again| again == proposal));
        let before = state.clone();
        if state::apply(&mut state, &proposal).is_err() {
            state.requests = before.requests.clone();
            assert!(
                state == before,
                "{proposal:?} was refused and changed something"
            );
        }
        same_again(&state);
    }
}

fn same_again(state: &State) {
    let again = codec::decode_state(&codec::encode_state(state));
    assert!(again.is_ok_and(|again| again == *state), "{state:?}");
}

fn whole_state(record: &[u8]) {
    if let Ok(state) = bounded(record, codec::decode_state) {
        same_again(&state);
        assert_eq!(state::digest(&state).len(), 64);
    }
}

/// What other members send.
pub fn peers(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.u8() % 8;
    let record = record(&mut input);
    match kind {
        0 => drop(one::<Append>(&record).map(openraft::raft::AppendEntriesRequest::from)),
        1 => drop(one::<AppendReply>(&record).map(openraft::raft::AppendEntriesResponse::from)),
        2 => drop(one::<AskVote>(&record).map(openraft::raft::VoteRequest::from)),
        3 => drop(one::<VoteReply>(&record).map(openraft::raft::VoteResponse::from)),
        4 => drop(
            one::<SnapshotHeader>(&record).map(|header| types::SnapshotMeta::from(header.meta)),
        ),
        5 => drop(one::<SnapshotReply>(&record)),
        6 => drop(one::<ProposeReply>(&record)),
        // A proposal that was handed on is decoded twice.
        _ => {
            if let Some(proposal) = one::<bytes::Bytes>(&record) {
                drop(codec::decode_proposal(&proposal));
            }
        }
    }
}
