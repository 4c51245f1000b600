//! Streams over one session: which frames to send, and what those that came mean. No I/O: [`super::link`] moves the bytes, and wakes
//! whoever waits.
//!
//! A stream has four lanes each way: three of bytes, one of messages. Each lane has a window: so much may be sent that the
//! other side has not taken yet, and who does not read holds up that lane and nothing else. What goes out takes turns, a
//! frame of each stream. Nothing that the other side does makes this side keep more than the windows of the streams that it let begin.

use std::{
    collections::{BTreeMap, VecDeque},
    task::Waker,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::frame::{Frame, Kind, MAX_PAYLOAD};

/// The lane of messages.
pub const MESSAGES: u8 = 3;
/// How many lanes a stream has.
pub const LANES: usize = 4;
/// What a message takes of its window besides its own bytes.
const MESSAGE_COST: u32 = 64;
/// The longest piece of a lane in one frame: short enough that streams take turns often.
const PIECE: usize = 32 << 10;
/// What is sent of a lane waits here until it goes out: so much, and then the sender waits.
const QUEUE: usize = 64 << 10;
/// The window of a lane of bytes of a stream that the host began.
pub const WINDOW: u32 = 256 << 10;
/// The window of its lane of messages, and of that of a stream that the guest began, which has no other.
pub const MESSAGE_WINDOW: u32 = 64 << 10;
/// How many streams the host may have begun at a time.
pub const HOST_STREAMS: usize = 256;
/// How many the guest may have begun.
pub const GUEST_STREAMS: usize = 32;
/// Frames that wait to go out besides those of lanes. Who makes us answer more breaks the rules.
const ANSWERS: usize = 1024;

/// The end of the channel that this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host's. Its streams have odd numbers.
    Host,
    /// The guest's. Its streams have even numbers.
    Guest,
}

impl Side {
    fn of_stream(id: u32) -> Self {
        if id % 2 == 1 { Self::Host } else { Self::Guest }
    }

    fn windows(self) -> [u32; LANES] {
        match self {
            Self::Host => [WINDOW, WINDOW, WINDOW, MESSAGE_WINDOW],
            Self::Guest => [0, 0, 0, MESSAGE_WINDOW],
        }
    }

    fn most_streams(self) -> usize {
        match self {
            Self::Host => HOST_STREAMS,
            Self::Guest => GUEST_STREAMS,
        }
    }
}

/// Why a stream was broken off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The other side is done with it.
    #[error("the other side closed it")]
    Closed,
    /// The other side has no use for it any more.
    #[error("the other side gave it up")]
    Cancelled,
    /// It could not be begun, or not be carried out.
    #[error("{0}")]
    Failed(String),
    /// The VM was forked, and this is the child: what was under way is its parent's.
    #[error("the VM was forked; it goes on in the parent only")]
    Forked,
    /// The session ended.
    #[error("the connection between the host and the guest's agent ended: {0}")]
    Lost(String),
}

impl Broken {
    /// The longest reason.
    const MAX_REASON: usize = 1 << 10;

    fn encode(&self) -> Bytes {
        let (code, reason) = match self {
            Self::Closed => (0, ""),
            Self::Cancelled => (1, ""),
            Self::Failed(reason) => (2, reason.as_str()),
            Self::Forked => (3, ""),
            Self::Lost(reason) => (4, reason.as_str()),
        };
        let mut bytes = BytesMut::new();
        bytes.put_u8(code);
        let mut end = reason.len().min(Self::MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        bytes.put_slice(&reason.as_bytes()[..end]);
        bytes.freeze()
    }

    fn decode(payload: &[u8]) -> Self {
        let (code, reason) = payload.split_first().unwrap_or((&1, &[]));
        let reason = || {
            let cut = &reason[..reason.len().min(Self::MAX_REASON)];
            String::from_utf8_lossy(cut).into_owned()
        };
        match code {
            0 => Self::Closed,
            2 => Self::Failed(reason()),
            3 => Self::Forked,
            4 => Self::Lost(reason()),
            _ => Self::Cancelled,
        }
    }
}

/// The other side broke the rules: the session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More came on a lane than its window allows.
    #[error("more was sent than there is room for")]
    Window,
    /// A frame is about a stream that never began.
    #[error("a frame is of a stream that never began")]
    Stream,
    /// A frame makes no sense where it came.
    #[error("a frame makes no sense there")]
    Sense,
    /// More answers are due than are kept.
    #[error("too many answers are asked for")]
    Answers,
}

/// What came of a frame, for whoever moves the bytes.
#[derive(Debug)]
pub enum Came {
    /// Whatever it was about has been woken.
    Handled,
    /// The other side began a stream.
    Opened {
        /// Its number.
        stream: u32,
        /// The request.
        request: Bytes,
    },
}

#[derive(Debug, Default)]
struct Outgoing {
    window: u32,
    queue: VecDeque<Bytes>,
    queued: usize,
    /// Nothing more is sent; said once the queue is empty.
    ending: bool,
    ended: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Incoming {
    /// What the other side may still send.
    granted: u32,
    /// What was taken and is not to be granted again yet.
    taken: u32,
    /// What is to be granted again with the next frame.
    owed: u32,
    bytes: BytesMut,
    messages: VecDeque<Bytes>,
    ended: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Stream {
    outgoing: [Outgoing; LANES],
    incoming: [Incoming; LANES],
    /// We are done with it once everything is sent.
    closing: bool,
    /// Nobody here looks at it any more.
    left: bool,
    broken: Option<Broken>,
    /// Whether it waits for its turn to send.
    queued: bool,
}

impl Stream {
    fn new(windows: [u32; LANES]) -> Self {
        Self {
            outgoing: windows.map(|window| Outgoing {
                window,
                ..Outgoing::default()
            }),
            incoming: windows.map(|granted| Incoming {
                granted,
                ..Incoming::default()
            }),
            closing: false,
            left: false,
            broken: None,
            queued: false,
        }
    }

    fn wake_all(&mut self) {
        for lane in &mut self.outgoing {
            wake(&mut lane.waker);
        }
        for lane in &mut self.incoming {
            wake(&mut lane.waker);
        }
    }

    fn break_off(&mut self, broken: Broken) {
        if self.broken.is_none() {
            self.broken = Some(broken);
        }
        for lane in &mut self.outgoing {
            lane.queue.clear();
            lane.queued = 0;
        }
        self.wake_all();
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// The streams of one session.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    session: u64,
    streams: BTreeMap<u32, Stream>,
    next: u32,
    /// The highest number that the other side has used.
    seen: u32,
    answers: VecDeque<Frame>,
    /// The lanes that more is owed to, each once. Granted as it is said: who does not listen has its window, and no more.
    credits: VecDeque<(u32, u8)>,
    turns: VecDeque<u32>,
    lost: Option<Broken>,
    /// Woken when there is something to send.
    output: Option<Waker>,
}

impl Mux {
    /// Of a session with nothing under way.
    pub fn new(side: Side, session: u64) -> Self {
        Self {
            side,
            session,
            streams: BTreeMap::new(),
            next: if side == Side::Host { 1 } else { 2 },
            seen: 0,
            answers: VecDeque::new(),
            credits: VecDeque::new(),
            turns: VecDeque::new(),
            lost: None,
            output: None,
        }
    }

    /// The session's number.
    pub fn session(&self) -> u64 {
        self.session
    }

    fn frame(&self, stream: u32, kind: Kind, lane: u8, payload: Bytes) -> Frame {
        Frame {
            session: self.session,
            stream,
            kind,
            lane,
            payload,
        }
    }

    fn answer(&mut self, stream: u32, kind: Kind, lane: u8, payload: Bytes) {
        let frame = self.frame(stream, kind, lane, payload);
        self.answers.push_back(frame);
        wake(&mut self.output);
    }

    fn take_turn(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
        {
            stream.queued = true;
            self.turns.push_back(id);
            wake(&mut self.output);
        }
    }

    /// Whether the other side has not taken what it was answered for long. Then nothing is added to that.
    fn is_deaf(&self) -> bool {
        self.answers.len() >= ANSWERS && !planted::planted("guest_end.answers")
    }

    /// Forgets a stream, and what it waited for.
    fn forget(&mut self, id: u32) {
        self.streams.remove(&id);
        self.credits.retain(|(stream, _)| *stream != id);
        self.turns.retain(|stream| *stream != id);
    }

    /// Sends something about the session, unless the other side takes nothing.
    pub fn note(&mut self, note: Bytes) {
        if !self.is_deaf() {
            self.answer(0, Kind::Note, 0, note);
        }
    }

    /// Begins a stream.
    ///
    /// # Errors
    /// The session is lost, the request is too long, or too many streams are under way.
    pub fn open(&mut self, request: Bytes) -> Result<u32, Broken> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        if request.len() > MAX_PAYLOAD {
            let most = MAX_PAYLOAD >> 10;
            return Err(Broken::Failed(format!(
                "the request is longer than {most} KiB"
            )));
        }
        if self.is_deaf() {
            return Err(Broken::Failed(
                "the other side does not take what it is sent".to_owned(),
            ));
        }
        let ours = self
            .streams
            .keys()
            .filter(|id| Side::of_stream(**id) == self.side);
        if ours.count() >= self.side.most_streams() {
            return Err(Broken::Failed(format!(
                "{} requests are under way with this guest's agent; try again when one has ended",
                self.side.most_streams()
            )));
        }
        let id = self.next;
        self.next = self
            .next
            .checked_add(2)
            .ok_or_else(|| Broken::Lost("its streams are used up".to_owned()))?;
        self.streams.insert(id, Stream::new(self.side.windows()));
        self.answer(id, Kind::Open, 0, request);
        Ok(id)
    }

    /// Takes a frame of this session.
    ///
    /// # Errors
    /// The other side broke the rules.
    pub fn receive(&mut self, frame: Frame) -> Result<Came, Violation> {
        let (id, lane) = (frame.stream, usize::from(frame.lane));
        if frame.kind == Kind::Open {
            return self.opened(id, frame.payload);
        }
        if lane >= LANES || matches!(frame.kind, Kind::Hello | Kind::Welcome | Kind::Note) {
            return Err(Violation::Sense);
        }
        let highest = match Side::of_stream(id) == self.side {
            true => self.next.saturating_sub(2),
            false => self.seen,
        };
        if id == 0 || id > highest {
            return Err(Violation::Stream);
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            // It ended here while this was on its way.
            return Ok(Came::Handled);
        };
        match frame.kind {
            Kind::Data => {
                receive_data(stream, lane, frame.payload)?;
                if stream.left {
                    self.pass_over(id);
                }
            }
            Kind::Credit => {
                let mut payload = frame.payload;
                let more = payload.try_get_u32_le().map_err(|_| Violation::Sense)?;
                let lane = &mut stream.outgoing[lane];
                lane.window = lane.window.checked_add(more).ok_or(Violation::Window)?;
                self.take_turn(id);
            }
            Kind::End => {
                stream.incoming[lane].ended = true;
                wake(&mut stream.incoming[lane].waker);
            }
            Kind::Close | Kind::Reset => {
                stream.break_off(match frame.kind {
                    Kind::Close => Broken::Closed,
                    _ => Broken::decode(&frame.payload),
                });
                if stream.left {
                    self.forget(id);
                }
            }
            Kind::Open | Kind::Hello | Kind::Welcome | Kind::Note => return Err(Violation::Sense),
        }
        Ok(Came::Handled)
    }

    fn opened(&mut self, id: u32, request: Bytes) -> Result<Came, Violation> {
        let theirs = match self.side {
            Side::Host => Side::Guest,
            Side::Guest => Side::Host,
        };
        if id == 0 || Side::of_stream(id) != theirs || id <= self.seen {
            return Err(Violation::Stream);
        }
        // Each is answered sooner or later, and it does not take its answers.
        if self.is_deaf() {
            return Err(Violation::Answers);
        }
        self.seen = id;
        let there = self
            .streams
            .keys()
            .filter(|id| Side::of_stream(**id) == theirs)
            .count();
        if there >= theirs.most_streams() {
            let refused = Broken::Failed("too many requests are under way".to_owned());
            self.answer(id, Kind::Reset, 0, refused.encode());
            return Ok(Came::Handled);
        }
        self.streams.insert(id, Stream::new(theirs.windows()));
        Ok(Came::Opened {
            stream: id,
            request,
        })
    }

    /// The next frame to send. `None` when there is none now: then `waker` is woken when there is.
    pub fn next_frame(&mut self, waker: &Waker) -> Option<Frame> {
        if let Some(frame) = self.answers.pop_front() {
            return Some(frame);
        }
        if let Some((id, lane)) = self.credits.pop_front()
            && let Some(stream) = self.streams.get_mut(&id)
        {
            let came = &mut stream.incoming[usize::from(lane)];
            let more = std::mem::take(&mut came.owed);
            came.granted += more;
            let payload = Bytes::copy_from_slice(&more.to_le_bytes());
            return Some(self.frame(id, Kind::Credit, lane, payload));
        }
        while let Some(id) = self.turns.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let Some((kind, lane, payload)) = next_of(stream) else {
                continue;
            };
            if kind == Kind::Close {
                stream.break_off(Broken::Closed);
                self.forget(id);
            } else {
                self.take_turn(id);
            }
            return Some(self.frame(id, kind, lane, payload));
        }
        self.output = Some(waker.clone());
        None
    }

    /// Queues bytes, or a message, to be sent on a lane. `None`: there is no room; `waker` is woken when there is.
    pub fn send(
        &mut self,
        id: u32,
        lane: u8,
        bytes: &Bytes,
        waker: &Waker,
    ) -> Option<Result<(), Broken>> {
        let lost = self.lost.clone();
        let Some(stream) = self.streams.get_mut(&id) else {
            return Some(Err(lost.unwrap_or(Broken::Closed)));
        };
        if let Some(broken) = &stream.broken {
            return Some(Err(broken.clone()));
        }
        if lane == MESSAGES && bytes.len() > PIECE {
            return Some(Err(Broken::Failed("a message is too long".to_owned())));
        }
        let out = &mut stream.outgoing[usize::from(lane)];
        if out.ending {
            return Some(Err(Broken::Closed));
        }
        if out.queued > 0 && out.queued + bytes.len() > QUEUE {
            out.waker = Some(waker.clone());
            return None;
        }
        out.queued += bytes.len();
        out.queue.push_back(bytes.clone());
        self.take_turn(id);
        Some(Ok(()))
    }

    /// Whether all that was sent on a lane has gone out, or never will.
    pub fn is_through(&self, id: u32, lane: u8) -> bool {
        let stream = self.streams.get(&id);
        stream.is_none_or(|stream| stream.outgoing[usize::from(lane)].queue.is_empty())
    }

    /// Says that nothing more comes on a lane.
    pub fn end(&mut self, id: u32, lane: u8) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.outgoing[usize::from(lane)].ending = true;
            self.take_turn(id);
        }
    }

    /// Is done with a stream, once what is queued has been sent.
    pub fn close(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.closing = true;
            self.take_turn(id);
        }
    }

    /// Breaks a stream off, unless it is being closed, and forgets it.
    pub fn abandon(&mut self, id: u32, why: Broken) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.broken.is_none() {
            if stream.closing {
                stream.left = true;
                self.pass_over(id);
                return;
            }
            stream.break_off(why.clone());
            let is_open = |frame: &Frame| frame.stream == id && frame.kind == Kind::Open;
            let unsaid = (Side::of_stream(id) == self.side)
                .then(|| self.answers.iter().rposition(is_open))
                .flatten();
            match unsaid {
                // What the other side never hears of needs no end.
                Some(place) => drop(self.answers.remove(place)),
                None => self.answer(id, Kind::Reset, 0, why.encode()),
            }
        }
        self.forget(id);
    }

    /// Takes what came on a stream that nobody looks at any more, so that the other side can finish, too: it may have more to send than
    /// the window allows before it is done.
    fn pass_over(&mut self, id: u32) {
        for lane in 0..LANES as u8 {
            while let Some(Ok(Some(_))) = self.take(id, lane, Waker::noop()) {}
        }
    }

    /// Takes what came on a lane: bytes, all that are there, or one message. `None`: nothing yet; `waker` is woken. `Ok(None)`
    /// at the lane's end.
    pub fn take(
        &mut self,
        id: u32,
        lane: u8,
        waker: &Waker,
    ) -> Option<Result<Option<Bytes>, Broken>> {
        let lost = self.lost.clone();
        let Some(stream) = self.streams.get_mut(&id) else {
            return Some(Err(lost.unwrap_or(Broken::Closed)));
        };
        let came = &mut stream.incoming[usize::from(lane)];
        let (bytes, cost) = if lane == MESSAGES {
            let message = came.messages.pop_front();
            let cost = message.as_ref().map_or(0, |message| message_cost(message));
            (message, cost)
        } else if came.bytes.is_empty() {
            (None, 0)
        } else {
            // All of it: nothing is kept for a lane that is empty.
            let bytes = std::mem::take(&mut came.bytes).freeze();
            let cost = bytes.len() as u32;
            (Some(bytes), cost)
        };
        let Some(bytes) = bytes else {
            return match &stream.broken {
                _ if came.ended => Some(Ok(None)),
                Some(Broken::Closed) => Some(Ok(None)),
                Some(broken) => Some(Err(broken.clone())),
                None => {
                    came.waker = Some(waker.clone());
                    None
                }
            };
        };
        came.taken += cost;
        let window = Side::of_stream(id).windows()[usize::from(lane)];
        if came.taken >= window / 4 && stream.broken.is_none() && !came.ended {
            if came.owed == 0 {
                self.credits.push_back((id, lane));
                wake(&mut self.output);
            }
            came.owed += std::mem::take(&mut came.taken);
            if planted::planted("pair.credit") {
                came.owed /= 2;
            }
        }
        Some(Ok(Some(bytes)))
    }

    /// Breaks everything off: the session is over.
    pub fn lose(&mut self, why: &Broken) {
        self.lost.get_or_insert_with(|| why.clone());
        for stream in self.streams.values_mut() {
            stream.break_off(why.clone());
        }
        self.answers.clear();
        self.credits.clear();
        self.turns.clear();
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }
}

fn message_cost(message: &[u8]) -> u32 {
    message.len() as u32 + MESSAGE_COST
}

fn receive_data(stream: &mut Stream, lane: usize, payload: Bytes) -> Result<(), Violation> {
    if stream.broken.is_some() {
        return Ok(());
    }
    let came = &mut stream.incoming[lane];
    let is_message = lane == usize::from(MESSAGES);
    if came.ended || (payload.is_empty() && !is_message) {
        return Err(Violation::Sense);
    }
    let cost = match is_message {
        true => message_cost(&payload),
        false => payload.len() as u32,
    };
    came.granted = match came.granted.checked_sub(cost) {
        Some(left) => left,
        None if planted::planted("host_end.window") => 0,
        None => return Err(Violation::Window),
    };
    if is_message {
        came.messages.push_back(payload);
    } else {
        came.bytes.extend_from_slice(&payload);
    }
    wake(&mut came.waker);
    Ok(())
}

/// The next thing that a stream has to say and may.
fn next_of(stream: &mut Stream) -> Option<(Kind, u8, Bytes)> {
    if stream.broken.is_some() {
        return None;
    }
    // Messages first: they are few, and tell of what follows.
    for lane in [3, 0, 1, 2] {
        let out = &mut stream.outgoing[lane];
        let number = lane as u8;
        let Some(first) = out.queue.front_mut() else {
            if out.ending && !out.ended {
                out.ended = true;
                return Some((Kind::End, number, Bytes::new()));
            }
            continue;
        };
        let payload = if number == MESSAGES {
            let cost = message_cost(first);
            if cost > out.window {
                continue;
            }
            out.window -= cost;
            out.queue.pop_front()?
        } else {
            let most = first.len().min(PIECE).min(out.window as usize);
            if most == 0 {
                continue;
            }
            out.window -= most as u32;
            let piece = first.split_to(most);
            if first.is_empty() {
                out.queue.pop_front();
            }
            piece
        };
        out.queued -= payload.len();
        if !planted::planted("pair.waker") {
            wake(&mut out.waker);
        }
        return Some((Kind::Data, number, payload));
    }
    let all_sent = stream.outgoing.iter().all(|out| out.queue.is_empty());
    (stream.closing && all_sent).then(|| (Kind::Close, 0, Bytes::new()))
}

#[cfg(test)]
mod tests;
