//! Any bytes in any pieces, against a reader of frames that is as simple as can be: what `Decoder` finds is what that finds, however
//! it is cut, and it keeps no more than a frame and a piece.

use bytes::BytesMut;
use guest::channel::frame::{DELIMITER, Decoder, Frame, Kind, MAX_PAYLOAD, Malformed};

use crate::{input::Input, memory, pattern};

/// The session, stream, length, kind and lane.
const HEAD: usize = 18;
/// With one byte in 254 more, and one at the least.
const LONGEST: usize = (HEAD + MAX_PAYLOAD) + (HEAD + MAX_PAYLOAD).div_ceil(254);
/// How many pieces there are at most, about.
const MOST_PIECES: usize = 2048;
/// The longest piece that is pushed.
const PIECE: usize = 64 << 10;
/// The most that is sent, less what is not repeated.
const LONGEST_STREAM: usize = 2 << 20;
/// So much comes at least between two times that it is told that nothing comes.
const NOTHING: usize = 1 << 20;
/// What may be kept: a frame as it came and as it is taken apart, a piece, and as much again, since buffers double.
const KEPT: isize = 4 * (LONGEST + PIECE) as isize;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let cuts = [(); 4].map(|()| input.length().clamp(1, PIECE));
    let stream = stream(&mut input);
    let expected = read(&stream);
    let mut decoder = Decoder::default();
    let before = memory::live();
    let (mut found, mut nothing, mut rest) = (0, 0, &stream[..]);
    for cut in cuts.into_iter().cycle() {
        // Not a byte at a time of what is long: nobody has that much time.
        let cut = cut.max(stream.len() / MOST_PIECES).min(rest.len());
        let (piece, others) = rest.split_at(cut);
        rest = others;
        decoder.push(piece);
        while let Some(next) = decoder.next_frame() {
            if next == Err(Malformed::Nothing) {
                nothing += 1;
                continue;
            }
            let next = next.ok();
            assert_eq!(Some(&next), expected.get(found), "frame {found}");
            found += 1;
            if let Some(frame) = &next {
                decodes_to_itself(frame);
            }
        }
        let kept = memory::live() - before;
        assert!(kept <= KEPT, "{kept} bytes are kept");
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(found, expected.len(), "frames were lost");
    assert!(nothing <= stream.len() / NOTHING);
}

/// What is sent: bytes as they came, and frames that were begun as they should be.
fn stream(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..8 {
        match input.u8() % 8 {
            // A body, well stuffed.
            0..=3 => {
                let length = input.below(64);
                let body = input.bytes(length);
                stream.extend(cobs::encode_vec(body));
                stream.push(DELIMITER);
            }
            // As it is.
            4 => {
                let length = input.below(256);
                stream.extend_from_slice(input.bytes(length));
            }
            // Long, and of no zero, or nothing but.
            5 => {
                let byte = input.u8();
                let length = (16 * input.length()).min(LONGEST_STREAM.saturating_sub(stream.len()));
                stream.extend(std::iter::repeat_n(byte, length));
            }
            6 => stream.extend(whole(input)),
            _ => break,
        }
    }
    stream.extend_from_slice(input.bytes(usize::MAX));
    stream
}

/// A frame as an honest side sends it, and perhaps with another length in its head.
fn whole(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, lie) = (input.u8(), input.u8());
    let payload = pattern::at(7, u64::from(input.u8()), input.length());
    let said = (payload.len() as u32).wrapping_add(u32::from(lie / 64));
    let mut body = vec![lie; 12];
    body.extend_from_slice(&said.to_le_bytes());
    body.extend_from_slice(&[kind % 11, lie]);
    body.extend_from_slice(payload);
    let mut stream = cobs::encode_vec(&body);
    stream.push(DELIMITER);
    stream
}

/// What `frame`'s head says of a stream of frames, read at once and with no thought of memory: frames, and `None` where
/// something else came.
fn read(stream: &[u8]) -> Vec<Option<Frame>> {
    let mut found = Vec::new();
    let mut parts = stream.split(|byte| *byte == DELIMITER);
    // What the last delimiter is not behind is not whole.
    let open = parts.next_back().unwrap_or_default();
    for part in parts.filter(|part| !part.is_empty()) {
        found.push(match part.len() <= LONGEST {
            true => unstuff(part).and_then(|body| parse(&body)),
            false => None,
        });
    }
    if open.len() > LONGEST {
        found.push(None);
    }
    found
}

/// As the paper has it: each code byte says where the next zero was, and the longest that there was none.
fn unstuff(part: &[u8]) -> Option<Vec<u8>> {
    let (mut body, mut rest) = (Vec::new(), part);
    while let Some((code, others)) = rest.split_first() {
        let run = others.get(..usize::from(*code) - 1)?;
        body.extend_from_slice(run);
        rest = &others[run.len()..];
        if *code != 255 && !rest.is_empty() {
            body.push(0);
        }
    }
    Some(body)
}

fn parse(body: &[u8]) -> Option<Frame> {
    let (head, payload) = body.split_at_checked(HEAD)?;
    let number = |from: usize| {
        head[from..from + 4]
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    };
    let kinds = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Open,
        Kind::Data,
        Kind::Credit,
        Kind::End,
        Kind::Close,
        Kind::Reset,
        Kind::Note,
    ];
    let kind = *kinds.get(usize::from(head[16]).checked_sub(1)?)?;
    (number(12) as usize == payload.len()).then(|| Frame {
        session: u64::from(number(4)) << 32 | u64::from(number(0)),
        stream: number(8),
        kind,
        lane: head[17],
        payload: payload.to_vec().into(),
    })
}

fn decodes_to_itself(frame: &Frame) {
    let mut encoded = BytesMut::new();
    if let Err(error) = frame.encode(&mut encoded) {
        panic!("a frame that was decoded cannot be encoded: {error}");
    }
    let zeros = encoded.iter().filter(|byte| **byte == DELIMITER).count();
    assert_eq!((zeros, encoded.last()), (1, Some(&DELIMITER)));
    assert!(encoded.len() <= LONGEST + 1);
    let mut decoder = Decoder::default();
    decoder.push(&encoded);
    assert_eq!(decoder.next_frame().as_ref(), Some(&Ok(frame.clone())));
    assert_eq!(decoder.next_frame(), None);
}
