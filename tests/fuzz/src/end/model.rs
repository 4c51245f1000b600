//! The rules of one end, written down a second time and without any bytes: how many there are of what.

use std::collections::{BTreeMap, VecDeque};

use guest::channel::{
    frame::{Frame, Kind, MAX_PAYLOAD},
    mux::{GUEST_STREAMS, HOST_STREAMS, LANES, MESSAGE_WINDOW, MESSAGES, Side, Violation, WINDOW},
};

use crate::pattern;

/// The most frames that wait to be sent besides those of lanes.
pub const MOST_ANSWERS: usize = 1024;
/// The longest piece of a lane in a frame, and the longest message.
const PIECE: usize = 32 << 10;
/// What is sent of a lane waits in a queue of so many bytes, or of one piece.
const QUEUE: usize = 64 << 10;
/// What a message takes of its window besides its bytes.
const MESSAGE_COST: usize = 64;

/// What a frame should come to.
#[derive(Debug)]
pub enum Came {
    Handled,
    Opened(u32),
}

/// What should be there to be taken.
#[derive(Debug)]
pub enum Taken {
    Nothing,
    End,
    Broken,
    Bytes { place: u64, length: usize },
}

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Closed,
    Otherwise,
}

#[derive(Default)]
struct Outgoing {
    window: usize,
    queue: VecDeque<usize>,
    /// Bytes that were queued in all, and that went out.
    queued: u64,
    sent: u64,
    ending: bool,
    ended: bool,
}

#[derive(Default)]
struct Incoming {
    /// What the other side was told that it may send.
    told: usize,
    /// Bytes that came in all, and that were taken.
    came: u64,
    taken: u64,
    /// Lengths of messages that were not taken.
    messages: VecDeque<usize>,
    most_messages: usize,
    ended: bool,
}

struct Stream {
    out: [Outgoing; LANES],
    came: [Incoming; LANES],
    closing: bool,
    left: bool,
    broken: Option<Break>,
    most_queued: usize,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Open(u32, usize),
    Reset(u32),
    Note(usize),
}

/// The end.
pub struct Model {
    side: Side,
    streams: BTreeMap<u32, Stream>,
    next: u32,
    seen: u32,
    answers: VecDeque<Answer>,
    lost: bool,
}

fn of_stream(id: u32) -> Side {
    if id % 2 == 1 { Side::Host } else { Side::Guest }
}

fn windows(id: u32) -> [usize; LANES] {
    let (bytes, messages) = (WINDOW as usize, MESSAGE_WINDOW as usize);
    match of_stream(id) {
        Side::Host => [bytes, bytes, bytes, messages],
        Side::Guest => [0, 0, 0, messages],
    }
}

fn most(side: Side) -> usize {
    match side {
        Side::Host => HOST_STREAMS,
        Side::Guest => GUEST_STREAMS,
    }
}

fn cost(lane: u8, length: usize) -> usize {
    if lane == MESSAGES {
        length + MESSAGE_COST
    } else {
        length
    }
}

impl Model {
    pub fn new(side: Side) -> Self {
        Self {
            side,
            streams: BTreeMap::new(),
            next: if side == Side::Host { 1 } else { 2 },
            seen: 0,
            answers: VecDeque::new(),
            lost: false,
        }
    }

    pub fn answers(&self) -> usize {
        self.answers.len()
    }

    /// The number of the next stream that the other side may begin.
    pub fn next_of_theirs(&self) -> u32 {
        match self.side {
            // Once it has begun the last that there is, it can begin no other: whichever it names is refused.
            Side::Host => self.seen.saturating_add(2),
            Side::Guest => self.seen.saturating_add(1) | 1,
        }
    }

    /// Streams that somebody here still holds.
    pub fn usable(&self) -> Vec<u32> {
        let held = self.streams.iter().filter(|(_, stream)| !stream.left);
        held.map(|(id, _)| *id).collect()
    }

    /// One of them; 0 when there is none.
    pub fn choose(&self, choice: usize) -> u32 {
        let held = self.usable();
        held.get(choice % held.len().max(1)).copied().unwrap_or(0)
    }

    /// Where the next byte that comes on a lane is, of all of it.
    pub fn place(&self, id: u32, lane: u8) -> u64 {
        let stream = self.streams.get(&id);
        let lane = stream.and_then(|stream| stream.came.get(usize::from(lane)));
        lane.map_or(0, |lane| lane.came)
    }

    pub fn place_sent(&self, id: u32, lane: u8) -> u64 {
        let stream = self.streams.get(&id);
        stream.map_or(0, |stream| stream.out[usize::from(lane)].queued)
    }

    fn begin(&mut self, id: u32) {
        let stream = Stream {
            out: windows(id).map(|window| Outgoing {
                window,
                ..Outgoing::default()
            }),
            came: windows(id).map(|told| Incoming {
                told,
                ..Incoming::default()
            }),
            closing: false,
            left: false,
            broken: None,
            most_queued: 0,
        };
        self.streams.insert(id, stream);
    }

    fn begun_by(&self, side: Side) -> usize {
        let all = self.streams.keys();
        all.filter(|id| of_stream(**id) == side).count()
    }

    pub fn open(&mut self, length: usize) -> Option<u32> {
        let refused = self.lost
            || length > MAX_PAYLOAD
            || self.answers.len() >= MOST_ANSWERS
            || self.begun_by(self.side) >= most(self.side);
        if refused {
            return None;
        }
        let id = self.next;
        self.next += 2;
        self.begin(id);
        self.answers.push_back(Answer::Open(id, length));
        Some(id)
    }

    pub fn note(&mut self, note: &[u8]) {
        if self.answers.len() < MOST_ANSWERS {
            self.answers.push_back(Answer::Note(note.len()));
        }
    }

    /// Whether it is queued, or the stream broken; `None` where there is no room.
    pub fn send(&mut self, id: u32, lane: u8, length: usize) -> Option<bool> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Some(false);
        };
        let out = &mut stream.out[usize::from(lane)];
        let too_long = lane == MESSAGES && length > PIECE;
        if stream.broken.is_some() || too_long || out.ending {
            return Some(false);
        }
        let waiting: usize = out.queue.iter().sum();
        if waiting > 0 && waiting + length > QUEUE {
            return None;
        }
        out.queue.push_back(length);
        out.queued += length as u64;
        stream.most_queued = stream.most_queued.max(out.queue.len());
        Some(true)
    }

    pub fn end(&mut self, id: u32, lane: u8) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.out[usize::from(lane)].ending = true;
        }
    }

    pub fn close(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.closing = true;
        }
    }

    pub fn abandon(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.broken.is_none() {
            if stream.closing {
                stream.left = true;
                stream.pass_over();
                return;
            }
            let is_open = |answer: &Answer| matches!(answer, Answer::Open(of, _) if *of == id);
            let unsaid = (of_stream(id) == self.side)
                .then(|| self.answers.iter().rposition(is_open))
                .flatten();
            match unsaid {
                Some(place) => drop(self.answers.remove(place)),
                None => self.answers.push_back(Answer::Reset(id)),
            }
        }
        self.streams.remove(&id);
    }

    pub fn peek(&self, id: u32, lane: u8) -> Taken {
        let Some(stream) = self.streams.get(&id) else {
            return Taken::Broken;
        };
        let came = &stream.came[usize::from(lane)];
        let (place, all) = (came.taken, (came.came - came.taken) as usize);
        match (came.messages.front(), stream.broken) {
            (Some(length), _) => Taken::Bytes {
                place,
                length: *length,
            },
            (None, _) if all > 0 => Taken::Bytes { place, length: all },
            _ if came.ended => Taken::End,
            (None, Some(Break::Closed)) => Taken::End,
            (None, Some(Break::Otherwise)) => Taken::Broken,
            (None, None) => Taken::Nothing,
        }
    }

    pub fn take(&mut self, id: u32, lane: u8) -> Taken {
        let taken = self.peek(id, lane);
        if let (Taken::Bytes { length, .. }, Some(stream)) = (&taken, self.streams.get_mut(&id)) {
            let came = &mut stream.came[usize::from(lane)];
            came.taken += *length as u64;
            came.messages.pop_front();
        }
        taken
    }

    /// What a frame of the other side comes to, which has happened then.
    pub fn expect(&mut self, frame: &Frame) -> Result<Came, Violation> {
        let (id, lane, length) = (frame.stream, frame.lane, frame.payload.len());
        if frame.kind == Kind::Open {
            return self.expect_open(id);
        }
        let is_of_a_stream = matches!(
            frame.kind,
            Kind::Data | Kind::Credit | Kind::End | Kind::Close | Kind::Reset
        );
        if !is_of_a_stream || usize::from(lane) >= LANES {
            return Err(Violation::Sense);
        }
        let is_ours = of_stream(id) == self.side;
        if id == 0 || (is_ours && id >= self.next) || (!is_ours && id > self.seen) {
            return Err(Violation::Stream);
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(Came::Handled);
        };
        let came = &mut stream.came[usize::from(lane)];
        match frame.kind {
            Kind::Data if stream.broken.is_some() => {}
            Kind::Data => {
                if came.ended || (length == 0 && lane != MESSAGES) {
                    return Err(Violation::Sense);
                }
                let left = came.told.checked_sub(cost(lane, length));
                came.told = left.ok_or(Violation::Window)?;
                came.came += length as u64;
                if lane == MESSAGES {
                    came.messages.push_back(length);
                    came.most_messages = came.most_messages.max(came.messages.len());
                }
                if stream.left {
                    stream.pass_over();
                }
            }
            Kind::Credit => {
                let more = frame.payload.first_chunk().ok_or(Violation::Sense)?;
                let out = &mut stream.out[usize::from(lane)];
                let window = out.window as u64 + u64::from(u32::from_le_bytes(*more));
                out.window = u32::try_from(window).map_err(|_| Violation::Window)? as usize;
            }
            Kind::End => came.ended = true,
            _ => {
                let closed = frame.kind == Kind::Close || frame.payload.first() == Some(&0);
                let how = if closed {
                    Break::Closed
                } else {
                    Break::Otherwise
                };
                stream.broken.get_or_insert(how);
                for out in &mut stream.out {
                    out.queue.clear();
                }
                if stream.left {
                    self.streams.remove(&id);
                }
            }
        }
        Ok(Came::Handled)
    }

    fn expect_open(&mut self, id: u32) -> Result<Came, Violation> {
        if id == 0 || of_stream(id) == self.side || id <= self.seen {
            return Err(Violation::Stream);
        }
        if self.answers.len() >= MOST_ANSWERS {
            return Err(Violation::Answers);
        }
        self.seen = id;
        if self.begun_by(of_stream(id)) >= most(of_stream(id)) {
            self.answers.push_back(Answer::Reset(id));
            return Ok(Came::Handled);
        }
        self.begin(id);
        Ok(Came::Opened(id))
    }

    /// This side sent a frame. It must have been due.
    pub fn sent(&mut self, frame: &Frame) {
        let (id, lane, length) = (frame.stream, frame.lane, frame.payload.len());
        let answer = match frame.kind {
            Kind::Open => Some(Answer::Open(id, length)),
            Kind::Reset => Some(Answer::Reset(id)),
            Kind::Note => Some(Answer::Note(length)),
            _ => None,
        };
        if answer.is_some() {
            assert_eq!(self.answers.pop_front(), answer);
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            panic!("{:?} of stream {id}, which is none", frame.kind);
        };
        let (out, came) = (
            &mut stream.out[usize::from(lane)],
            &mut stream.came[usize::from(lane)],
        );
        match frame.kind {
            Kind::Credit => {
                let more = frame
                    .payload
                    .first_chunk()
                    .map_or(0, |more| u32::from_le_bytes(*more));
                came.told += more as usize;
                let kept: usize = came
                    .messages
                    .iter()
                    .map(|length| length + MESSAGE_COST)
                    .sum();
                let kept = if lane == MESSAGES {
                    kept
                } else {
                    (came.came - came.taken) as usize
                };
                assert!(more > 0 && came.told + kept <= windows(id)[usize::from(lane)]);
            }
            Kind::Data => {
                assert!(stream.broken.is_none() && length <= PIECE);
                let key = pattern::key(0, id, lane);
                assert!(
                    pattern::is_at(key, out.sent, &frame.payload),
                    "other bytes than were sent"
                );
                out.sent += length as u64;
                let left = out.window.checked_sub(cost(lane, length));
                let Some(left) = left else {
                    panic!("more is sent than the other side's window allows");
                };
                out.window = left;
                let first = out.queue.front_mut();
                let Some(first) = first.filter(|first| **first >= length) else {
                    panic!("a piece is of two");
                };
                *first -= length;
                if *first == 0 {
                    out.queue.pop_front();
                } else {
                    assert_ne!(lane, MESSAGES, "a message is cut");
                }
            }
            Kind::End => {
                assert!(stream.broken.is_none() && out.queue.is_empty());
                assert!(out.ending && !out.ended);
                out.ended = true;
            }
            Kind::Close => {
                assert!(stream.broken.is_none() && stream.closing);
                assert!(stream.out.iter().all(|out| out.queue.is_empty()));
                self.streams.remove(&id);
            }
            _ => panic!("{:?} is sent", frame.kind),
        }
    }

    /// This side says that it has nothing to send.
    pub fn has_nothing_to_say(&self) {
        assert!(self.lost || self.answers.is_empty(), "answers are due");
        for (id, stream) in self
            .streams
            .iter()
            .filter(|(_, stream)| stream.broken.is_none())
        {
            for (lane, out) in stream.out.iter().enumerate() {
                let due = match out.queue.front() {
                    Some(first) if lane == usize::from(MESSAGES) => {
                        first + MESSAGE_COST <= out.window
                    }
                    Some(_) => out.window > 0,
                    None => out.ending && !out.ended,
                };
                assert!(!due, "stream {id} has more to say on lane {lane}");
            }
            let all_sent = stream.out.iter().all(|out| out.queue.is_empty());
            assert!(!(stream.closing && all_sent), "stream {id} is to be closed");
        }
    }

    pub fn lose(&mut self) {
        self.lost = true;
        self.answers.clear();
        for stream in self.streams.values_mut() {
            stream.broken.get_or_insert(Break::Otherwise);
            for out in &mut stream.out {
                out.queue.clear();
            }
        }
    }

    /// The most memory that this may take: buffers double, lists keep the length that they had.
    pub fn most_memory(&self) -> isize {
        let answers: usize = self
            .answers
            .iter()
            .map(|answer| match answer {
                Answer::Open(_, length) | Answer::Note(length) => *length,
                Answer::Reset(_) => 64,
            })
            .sum();
        let streams: usize = self.streams.values().map(Stream::most_memory).sum();
        (answers + streams + (512 << 10)) as isize
    }
}

impl Stream {
    /// Nobody is left who takes it.
    fn pass_over(&mut self) {
        for came in &mut self.came {
            came.taken = came.came;
            came.messages.clear();
        }
    }

    fn most_memory(&self) -> usize {
        let lanes = self.came.iter().map(|came| {
            let bytes = (came.came - came.taken) as usize;
            2 * bytes + came.most_messages * 128
        });
        4096 + self.most_queued * LANES * 128 + lanes.sum::<usize>()
    }
}
