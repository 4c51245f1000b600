//! Frames: what goes over the port, one after the other. Bytes in, frames out, and the other way; no I/O.
//!
//! A frame is its body, encoded with Consistent Overhead Byte Stuffing (Cheshire and Baker, 1999) so that it holds no zero byte, and a
//! zero byte. So whoever comes in the middle of one, as the host of a fork does, finds the next; what came of a frame that
//! was cut off is seen by the length in its head. Integers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | the session that it belongs to: a number that the host chose |
//! | 4 | the stream, 0 for the session itself |
//! | 4 | length of the payload |
//! | 1 | kind |
//! | 1 | lane of the stream, 0 where that says nothing |
//! | | payload |

mod stuffing;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// What ends a frame, and is in none.
pub const DELIMITER: u8 = 0;
/// The longest payload.
pub const MAX_PAYLOAD: usize = 64 << 10;
const HEAD: usize = 18;
/// The longest frame as it is sent, without what ends it.
const MAX_ENCODED: usize = most_stuffed(HEAD + MAX_PAYLOAD);

/// So many bytes may come of which nothing becomes a frame, nor an error.
const MOST_FRUITLESS: usize = 1 << 20;

/// How long so many bytes can get by their encoding.
const fn most_stuffed(bytes: usize) -> usize {
    bytes + bytes / stuffing::RUN + 1
}

/// Bytes as they are in a frame, whatever they are: for who makes what is none.
pub fn stuffed(bytes: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    stuffing::stuff(&[bytes], &mut out);
    out
}

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The host begins a session: [`super::message::Hello`].
    Hello = 1,
    /// The guest takes it up: [`super::message::Welcome`].
    Welcome = 2,
    /// A stream begins: a request.
    Open = 3,
    /// Bytes of a lane, or one message of the lane of messages.
    Data = 4,
    /// So many more bytes of a lane are welcome: 4 bytes.
    Credit = 5,
    /// Nothing more comes on a lane.
    End = 6,
    /// The sender is done with the stream, and so should the receiver be.
    Close = 7,
    /// The stream is broken off: a [`super::mux::Broken`].
    Reset = 8,
    /// Something about the session: [`super::message::Note`].
    Note = 9,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Hello,
        Self::Welcome,
        Self::Open,
        Self::Data,
        Self::Credit,
        Self::End,
        Self::Close,
        Self::Reset,
        Self::Note,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its session.
    pub session: u64,
    /// Its stream; 0 for the session itself.
    pub stream: u32,
    /// What it means.
    pub kind: Kind,
    /// The stream's lane.
    pub lane: u8,
    /// What it carries, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
}

impl Frame {
    /// What a guest's agent sends first of all, and when it has given a session up: it knows of none that its host may think is under way.
    pub fn begun() -> Self {
        Self {
            session: 0,
            stream: 0,
            kind: Kind::Welcome,
            lane: 0,
            payload: Bytes::new(),
        }
    }

    /// Whether it is that.
    pub fn tells_beginning(&self) -> bool {
        self.session == 0 && self.kind == Kind::Welcome
    }

    /// Appends it to `out` as it is sent.
    ///
    /// # Errors
    /// Its payload is too long.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        if self.payload.len() > MAX_PAYLOAD {
            return Err(Malformed::TooLong);
        }
        let mut head = BytesMut::with_capacity(HEAD);
        head.put_u64_le(self.session);
        head.put_u32_le(self.stream);
        head.put_u32_le(self.payload.len() as u32);
        head.put_u8(self.kind as u8);
        head.put_u8(self.lane);
        out.reserve(most_stuffed(HEAD + self.payload.len()) + 1);
        stuffing::stuff(&[&head, &self.payload], out);
        out.put_u8(DELIMITER);
        Ok(())
    }

    /// Reads a frame without what ended it.
    fn decode(encoded: &[u8]) -> Result<Self, Malformed> {
        let mut body = stuffing::unstuff(encoded).ok_or(Malformed::Stuffing)?;
        if body.len() < HEAD {
            return Err(Malformed::Short);
        }
        let (session, stream) = (body.get_u64_le(), body.get_u32_le());
        let length = body.get_u32_le() as usize;
        let (kind, lane) = (body.get_u8(), body.get_u8());
        if body.len() != length && !planted::planted("frame.length") {
            return Err(Malformed::Length);
        }
        Ok(Self {
            session,
            stream,
            kind: Kind::of(kind).ok_or(Malformed::Kind(kind))?,
            lane,
            payload: body,
        })
    }
}

/// What came is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It goes on for longer than any frame.
    #[error("a frame is longer than {MAX_PAYLOAD} bytes")]
    TooLong,
    /// It ends before its head does.
    #[error("a frame is shorter than its head")]
    Short,
    /// Its length is not what its head says.
    #[error("a frame has another length than it says")]
    Length,
    /// It cannot be the encoding of anything.
    #[error("a frame is not encoded as frames are")]
    Stuffing,
    /// Much came, and it was nothing but delimiters, or still the frame that was too long.
    #[error("much comes, and no frame")]
    Nothing,
    /// It is of a kind that is not known.
    #[error("a frame is of the unknown kind {0}")]
    Kind(u8),
}

/// Finds frames in bytes that come in pieces. What it keeps is bounded by the longest frame and the longest piece.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: BytesMut,
    /// How much of it has no delimiter.
    searched: usize,
    /// What is left of a frame that was too long.
    skipping: bool,
    /// How much came since the last frame, or error, of which nothing became one.
    fruitless: usize,
}

impl Decoder {
    /// Takes the next bytes. All frames in those before must have been taken out.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next frame that is there whole, or what came in its place. Empty ones are passed over, for a session begins with one; but
    /// nobody is kept busy with them unseen.
    pub fn next_frame(&mut self) -> Option<Result<Frame, Malformed>> {
        let next = self.find_next();
        if next.is_some() {
            self.fruitless = 0;
        } else if self.fruitless > MOST_FRUITLESS {
            self.fruitless = 0;
            return Some(Err(Malformed::Nothing));
        }
        next
    }

    fn find_next(&mut self) -> Option<Result<Frame, Malformed>> {
        loop {
            if self.searched == 0 && !self.skipping {
                let is_end = |byte: &&u8| **byte == DELIMITER;
                let empty = self.pending.iter().take_while(is_end).count();
                self.pending.advance(empty);
                self.fruitless += empty;
            }
            let unseen = self.pending.get(self.searched..)?;
            let Some(end) = memchr::memchr(DELIMITER, unseen) else {
                return self.without_end();
            };
            let end = self.searched + end;
            let encoded = self.pending.split_to(end);
            self.pending.advance(1);
            self.searched = 0;
            if std::mem::take(&mut self.skipping) {
                self.fruitless += encoded.len();
                continue;
            }
            if encoded.len() > MAX_ENCODED {
                return Some(Err(Malformed::TooLong));
            }
            return Some(Frame::decode(&encoded));
        }
    }

    fn without_end(&mut self) -> Option<Result<Frame, Malformed>> {
        if self.skipping || self.pending.len() > MAX_ENCODED {
            self.fruitless += self.pending.len();
            if !planted::planted("frame.kept") {
                self.pending.clear();
            }
            self.searched = 0;
            let told = std::mem::replace(&mut self.skipping, true);
            return (!told).then_some(Err(Malformed::TooLong));
        }
        self.searched = self.pending.len();
        if self.pending.is_empty() {
            // What is idle keeps nothing.
            self.pending = BytesMut::new();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: Vec<u8>) -> Frame {
        Frame {
            session: 0x0102_0304_0506_0708,
            stream: 7,
            kind: Kind::Data,
            lane: 1,
            payload: payload.into(),
        }
    }

    fn all(decoder: &mut Decoder) -> Vec<Result<Frame, Malformed>> {
        std::iter::from_fn(|| decoder.next_frame()).collect()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_however_it_is_cut(
            payloads in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..600), 1..6),
            piece in 1usize..400,
        ) {
            let frames: Vec<Frame> = payloads.into_iter().map(frame).collect();
            let mut sent = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut sent).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in sent.chunks(piece) {
                decoder.push(piece);
                got.extend(all(&mut decoder));
            }
            prop_assert_eq!(got, frames.into_iter().map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn whoever_comes_in_the_middle_of_a_frame_finds_the_next(
            payload in prop::collection::vec(any::<u8>(), 1..600),
            lost in 1usize..600,
        ) {
            let mut sent = BytesMut::new();
            frame(payload).encode(&mut sent).unwrap();
            let lost = lost.min(sent.len() - 2);
            // One host sends the beginning, another begins anew.
            let mut joined = sent[..lost].to_vec();
            joined.push(DELIMITER);
            let next = frame(b"next".to_vec());
            let mut rest = BytesMut::new();
            next.encode(&mut rest).unwrap();
            joined.extend_from_slice(&rest);
            let mut decoder = Decoder::default();
            decoder.push(&joined);
            let got = all(&mut decoder);
            let torn = got.len() - 1;
            prop_assert!(got[..torn].iter().all(Result::is_err), "{:?}", got);
            prop_assert_eq!(&got[torn], &Ok(next));
        }
    }

    #[test]
    fn the_longest_payload_passes_and_a_longer_one_does_not() {
        let mut sent = BytesMut::new();
        frame(vec![1; MAX_PAYLOAD]).encode(&mut sent).unwrap();
        assert_eq!(
            frame(vec![1; MAX_PAYLOAD + 1]).encode(&mut BytesMut::new()),
            Err(Malformed::TooLong)
        );
        let mut decoder = Decoder::default();
        decoder.push(&sent);
        assert_eq!(all(&mut decoder).len(), 1);
    }

    #[test]
    fn what_never_ends_is_told_now_and_then_and_not_kept() {
        let mut decoder = Decoder::default();
        let mut told = Vec::new();
        for _ in 0..160 {
            decoder.push(&[1; 16 << 10]);
            told.extend(all(&mut decoder).into_iter().filter_map(Result::err));
            assert!(decoder.pending.len() <= MAX_ENCODED + (16 << 10));
        }
        let nothing = Malformed::Nothing;
        assert_eq!(told, [Malformed::TooLong, nothing, nothing]);
        let mut rest = BytesMut::new();
        rest.put_u8(DELIMITER);
        frame(b"after".to_vec()).encode(&mut rest).unwrap();
        decoder.push(&rest);
        assert_eq!(all(&mut decoder), [Ok(frame(b"after".to_vec()))]);
    }

    #[test]
    fn delimiters_and_nothing_else_are_told() {
        let mut decoder = Decoder::default();
        let mut told = Vec::new();
        for _ in 0..100 {
            decoder.push(&[DELIMITER; 16 << 10]);
            told.extend(all(&mut decoder));
            assert!(decoder.pending.is_empty());
        }
        assert_eq!(told, [Err(Malformed::Nothing)]);
    }

    #[test]
    fn heads_that_lie_are_refused() {
        let encode = |body: &[u8]| {
            let mut encoded = cobs::encode_vec(body);
            encoded.push(DELIMITER);
            encoded
        };
        let mut body = vec![0; HEAD];
        body[16] = Kind::Data as u8;
        let mut long = body.clone();
        long[12] = 1;
        let mut unknown = body.clone();
        unknown[16] = 99;
        let cases: [(&[u8], Malformed); 3] = [
            (&body[..HEAD - 1], Malformed::Short),
            (&long, Malformed::Length),
            (&unknown, Malformed::Kind(99)),
        ];
        for (body, malformed) in cases {
            let mut decoder = Decoder::default();
            decoder.push(&encode(body));
            assert_eq!(all(&mut decoder), [Err(malformed)]);
        }
        let mut decoder = Decoder::default();
        decoder.push(&[200, 1, DELIMITER]);
        assert_eq!(all(&mut decoder), [Err(Malformed::Stuffing)]);
    }
}
