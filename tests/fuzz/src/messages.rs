//! Any bytes as each message that is sent over the channel: nothing breaks, what was understood means the same when it is said again,
//! and no more memory goes than a small multiple of what came. Then the checks that a host makes of what guests say.

use bytes::Bytes;
use guest::channel::{
    check::{self, LONGEST_TEXT, MOST_FAILED, Unfit},
    message::{
        Answer, Ended, Exec, Forked, FromProgram, Hello, Identity, Looks, NEWEST, Note, OLDEST,
        Piece, Receive, Request, Send, ToProgram, Welcome,
    },
    mux::Broken,
};
use prost::Message;

use crate::{input::Input, memory};

/// A message of two bytes can be a hundred in memory, and a list's memory doubles and is copied.
const SWELLING: isize = 256;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.u8();
    let payload = Bytes::copy_from_slice(input.bytes(64 << 10));
    match choice % 18 {
        0 => one::<Hello>(payload),
        1 => one::<Identity>(payload),
        2 => one::<Note>(payload),
        3 => one::<Request>(payload),
        4 => one::<Exec>(payload),
        5 => one::<ToProgram>(payload),
        6 => one::<FromProgram>(payload),
        7 => one::<Send>(payload),
        8 => one::<Receive>(payload),
        9 => one::<Piece>(payload),
        10 => one::<Answer>(payload),
        11 => one::<Looks>(payload),
        12 => one::<Forked>(payload),
        13 => one::<Ended>(payload),
        14 => reason(&payload),
        15 => one::<Welcome>(payload),
        _ => welcome(payload),
    }
}

fn one<M: Message + Default + PartialEq + std::fmt::Debug>(payload: Bytes) {
    let length = payload.len() as isize;
    let (decoded, peak) = memory::peak(|| M::decode(payload));
    assert!(
        peak <= SWELLING * length + 4096,
        "{peak} bytes for {length}"
    );
    let Ok(message) = decoded else { return };
    let said = message.encode_to_vec();
    let again = M::decode(&said[..]);
    assert!(again.as_ref() == Ok(&message), "{message:?}, {again:?}");
}

fn welcome(payload: Bytes) {
    let said = Welcome::decode(payload.clone());
    match (check::welcome(payload, "vm.1"), said) {
        (Err(Unfit::Unreadable(_)), Err(_)) => {}
        (Err(Unfit::Version(shown)), Ok(said)) => {
            assert!(said.version < OLDEST || said.version > NEWEST);
            fit(&shown);
        }
        (Err(Unfit::Another), Ok(said)) => assert_ne!(said.incarnation, "vm.1"),
        (Ok(taken), Ok(said)) => {
            assert!((OLDEST..=NEWEST).contains(&said.version));
            assert_eq!(said.incarnation, "vm.1");
            assert!(taken.failed.len() <= MOST_FAILED);
            for text in [&taken.agent_version, &taken.os, &taken.kernel] {
                fit(text);
            }
            for failed in &taken.failed {
                fit(&failed.step);
                fit(&failed.reason);
            }
            assert_eq!(taken.version, said.version);
            assert_eq!(taken.settled, said.settled);
        }
        (checked, said) => panic!("{said:?} was taken for {checked:?}"),
    }
}

fn fit(text: &str) {
    assert!(text.chars().count() <= LONGEST_TEXT);
    assert!(!text.chars().any(char::is_control));
}

/// Why a stream was broken off, as the other side says it: shown to people.
fn reason(payload: &[u8]) {
    let mut mux = guest::channel::mux::Mux::new(guest::channel::mux::Side::Host, 1);
    let Ok(id) = mux.open(Bytes::new()) else {
        panic!("a first stream is refused")
    };
    let reset = guest::channel::frame::Frame {
        session: 1,
        stream: id,
        kind: guest::channel::frame::Kind::Reset,
        lane: 0,
        payload: Bytes::copy_from_slice(payload),
    };
    assert!(mux.receive(reset).is_ok());
    match mux.take(id, 0, std::task::Waker::noop()) {
        Some(Ok(None)) => assert_eq!(payload[0], 0),
        Some(Err(Broken::Failed(why) | Broken::Lost(why))) => {
            // What is not UTF-8 becomes a character of three bytes.
            assert!(why.len() <= 3 << 10);
        }
        Some(Err(_)) => {}
        other => panic!("{other:?}"),
    }
}
