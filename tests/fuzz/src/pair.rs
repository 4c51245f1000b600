//! Both ends, joined by queues that lose nothing, in any order of what each does. Neither ever finds the other to break the rules; what
//! is sent arrives in order; and once both ends go on until nobody is woken any more, all has arrived of what nobody gave up. Who has
//! to wait does nothing until its waker is called, so that one that is not is found, too.

mod wakers;

use std::{collections::VecDeque, task::Waker};

use bytes::Bytes;
use guest::channel::{
    frame::Frame,
    mux::{Broken, Came, LANES, MESSAGES, Mux, Side},
};

use self::wakers::Bell;
use crate::{input::Input, pattern};

/// So many streams begin at most, so that what each is answered stays below what may wait.
const MOST_STREAMS: usize = 400;
/// The longest message.
const LONGEST_MESSAGE: usize = 32 << 10;
/// Whom to look at again before all is quiet, rounds. Each moves a window at least.
const MOST_ROUNDS: usize = 100_000;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut pair = Pair::new();
    while !input.is_empty() {
        pair.step(&mut input);
    }
    pair.settle();
    pair.check();
}

/// One way of a lane.
#[derive(Default)]
struct Lane {
    /// What is waiting to be sent: a piece that there was no room for.
    piece: Option<usize>,
    room: Bell,
    sent: u64,
    ended: bool,
    /// Of the other side: what it took.
    taken: u64,
    /// How many messages were sent and taken.
    messages: VecDeque<usize>,
    at_end: bool,
    came: Bell,
}

/// One end of a stream.
#[derive(Default)]
struct Half {
    /// Whether there is one.
    is_held: bool,
    was_held: bool,
    closed: bool,
    abandoned: bool,
    /// What it sends.
    lanes: [Lane; LANES],
}

struct Joint {
    id: u32,
    halves: [Half; 2],
}

struct End {
    mux: Mux,
    output: Bell,
    /// On its way to the other.
    frames: VecDeque<Frame>,
}

struct Pair {
    ends: [End; 2],
    streams: Vec<Joint>,
}

impl Pair {
    fn new() -> Self {
        let ends = [Side::Host, Side::Guest].map(|side| End {
            mux: Mux::new(side, 9),
            output: Bell::default(),
            frames: VecDeque::new(),
        });
        Self {
            ends,
            streams: Vec::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let action = input.u8();
        let side = usize::from(action >> 7);
        match action % 12 {
            0 => self.open(side),
            1..=3 => {
                let (at, lane) = (input.below(self.streams.len()), input.below(LANES));
                let length = input.length();
                self.send(side, at, lane, length);
            }
            4 | 5 => {
                let (at, lane) = (input.below(self.streams.len()), input.below(LANES));
                self.take(side, at, lane);
            }
            6 => {
                let (at, lane) = (input.below(self.streams.len()), input.below(LANES));
                self.end(side, at, lane);
            }
            7 => {
                let at = input.below(self.streams.len());
                self.close(side, at);
            }
            8 => {
                let (at, sure) = (input.below(self.streams.len()), input.u8());
                // Seldom: most of it is about what is not given up.
                if sure % 4 == 3 {
                    self.abandon(side, at);
                }
            }
            9 | 10 => {
                for _ in 0..=input.below(32) {
                    self.speak(side);
                }
            }
            _ => {
                for _ in 0..=input.below(32) {
                    self.listen(side);
                }
            }
        }
    }

    fn open(&mut self, side: usize) {
        if self.streams.len() >= MOST_STREAMS {
            return;
        }
        // Too many at a time are refused.
        let Ok(id) = self.ends[side]
            .mux
            .open(Bytes::from_static(pattern::at(1, 0, 9)))
        else {
            return;
        };
        let mut halves = <[Half; 2]>::default();
        (halves[side].is_held, halves[side].was_held) = (true, true);
        self.streams.push(Joint { id, halves });
    }

    /// The stream's number, if this side still has it.
    fn held(&self, side: usize, at: usize) -> Option<u32> {
        let joint = self.streams.get(at)?;
        joint.halves[side].is_held.then_some(joint.id)
    }

    fn send(&mut self, side: usize, at: usize, lane: usize, length: usize) {
        let Some(id) = self.held(side, at) else {
            return;
        };
        let is_message = lane == usize::from(MESSAGES);
        // A stream of the guest has messages only.
        if (id % 2 == 0 || length == 0) && !is_message {
            return;
        }
        let most = if is_message {
            LONGEST_MESSAGE
        } else {
            64 << 10
        };
        let half = &mut self.streams[at].halves[side].lanes[lane];
        if half.piece.is_none() && !half.ended {
            half.piece = Some(length.min(most));
            self.go_on(side, at, lane);
        }
    }

    /// Sends the piece that waits. Whether anything came of it.
    fn go_on(&mut self, side: usize, at: usize, lane: usize) -> bool {
        let Some(id) = self.held(side, at) else {
            return false;
        };
        let half = &mut self.streams[at].halves[side].lanes[lane];
        let Some(length) = half.piece.filter(|_| half.room.is_rung()) else {
            return false;
        };
        let key = pattern::key(side as u8, id, lane as u8);
        let piece = Bytes::from_static(pattern::at(key, half.sent, length));
        let (waker, mux) = (half.room.waker(), &mut self.ends[side].mux);
        match mux.send(id, lane as u8, &piece, &waker) {
            None => return false,
            Some(Ok(())) => {
                half.sent += length as u64;
                if lane == usize::from(MESSAGES) {
                    half.messages.push_back(length);
                }
            }
            // The other side is done with it.
            Some(Err(_)) => {}
        }
        half.piece = None;
        half.room.ring();
        true
    }

    /// Takes what came from the other side. Whether there was any.
    fn take(&mut self, side: usize, at: usize, lane: usize) -> bool {
        let Some(id) = self.held(side, at) else {
            return false;
        };
        let half = &mut self.streams[at].halves[1 - side].lanes[lane];
        if half.at_end || !half.came.is_rung() {
            return false;
        }
        let waker = half.came.waker();
        match self.ends[side].mux.take(id, lane as u8, &waker) {
            None => return false,
            Some(Ok(Some(bytes))) => {
                let key = pattern::key(1 - side as u8, id, lane as u8);
                assert!(
                    pattern::is_at(key, half.taken, &bytes),
                    "other bytes than were sent"
                );
                half.taken += bytes.len() as u64;
                assert!(half.taken <= half.sent, "more was taken than was sent");
                if lane == usize::from(MESSAGES) {
                    assert_eq!(half.messages.pop_front(), Some(bytes.len()));
                }
            }
            Some(Ok(None) | Err(_)) => half.at_end = true,
        }
        half.came.ring();
        true
    }

    fn end(&mut self, side: usize, at: usize, lane: usize) {
        let Some(id) = self.held(side, at) else {
            return;
        };
        let half = &mut self.streams[at].halves[side].lanes[lane];
        if half.piece.is_none() {
            half.ended = true;
            self.ends[side].mux.end(id, lane as u8);
        }
    }

    /// Is done with a stream. What it wanted to send and had no room for it does not send.
    fn close(&mut self, side: usize, at: usize) {
        let Some(id) = self.held(side, at) else {
            return;
        };
        self.ends[side].mux.close(id);
        self.ends[side].mux.abandon(id, Broken::Cancelled);
        let half = &mut self.streams[at].halves[side];
        (half.closed, half.is_held) = (true, false);
    }

    fn abandon(&mut self, side: usize, at: usize) {
        let Some(id) = self.held(side, at) else {
            return;
        };
        self.ends[side].mux.abandon(id, Broken::Cancelled);
        let half = &mut self.streams[at].halves[side];
        (half.abandoned, half.is_held) = (true, false);
    }

    /// Has a side send its next frame, if it was told that there is one. Whether there was.
    fn speak(&mut self, side: usize) -> bool {
        let end = &mut self.ends[side];
        if !end.output.is_rung() {
            return false;
        }
        let Some(frame) = end.mux.next_frame(&end.output.waker()) else {
            return false;
        };
        end.output.ring();
        end.frames.push_back(frame);
        true
    }

    /// Has a side take the next frame of the other. Whether there was one.
    fn listen(&mut self, side: usize) -> bool {
        let Some(frame) = self.ends[1 - side].frames.pop_front() else {
            return false;
        };
        match self.ends[side].mux.receive(frame) {
            Ok(Came::Handled) => {}
            Ok(Came::Opened { stream, request }) => {
                assert_eq!(request, pattern::at(1, 0, 9));
                let joint = self.streams.iter_mut().find(|joint| joint.id == stream);
                let Some(joint) = joint else {
                    panic!("stream {stream} begins, which nobody began")
                };
                let half = &mut joint.halves[side];
                assert!(!half.was_held, "stream {stream} begins twice");
                (half.is_held, half.was_held) = (true, true);
            }
            Err(violation) => panic!("of two honest ends one finds that {violation}"),
        }
        true
    }

    /// Both go on for as long as anybody is woken, with whatever is there.
    fn settle(&mut self) {
        for _ in 0..MOST_ROUNDS {
            let mut moved = false;
            for side in [0, 1] {
                while self.speak(side) {
                    moved = true;
                }
                while self.listen(side) {
                    moved = true;
                }
                for at in 0..self.streams.len() {
                    for lane in 0..LANES {
                        moved |= self.go_on(side, at, lane);
                        moved |= self.take(side, at, lane);
                    }
                }
            }
            if !moved {
                return;
            }
        }
        panic!("they never come to rest");
    }

    fn check(&mut self) {
        for side in [0, 1] {
            assert!(
                self.ends[side].mux.next_frame(Waker::noop()).is_none(),
                "nobody was told of a frame"
            );
            for joint in &self.streams {
                let (near, far) = (&joint.halves[side], &joint.halves[1 - side]);
                if !near.was_held || !far.was_held || near.abandoned || far.abandoned || far.closed
                {
                    continue;
                }
                for (number, lane) in near.lanes.iter().enumerate() {
                    let (id, sent, taken) = (joint.id, lane.sent, lane.taken);
                    assert!(
                        near.closed || lane.piece.is_none(),
                        "lane {number} of {id} waits for ever"
                    );
                    assert!(
                        sent == taken && lane.messages.is_empty(),
                        "lane {number} of {id}: {taken} of {sent} came"
                    );
                    assert_eq!(
                        lane.at_end,
                        lane.ended || near.closed,
                        "the end of lane {number} of {id}"
                    );
                }
            }
        }
        self.check_ends();
    }

    /// Once all is given up nothing is left on either side.
    fn check_ends(&mut self) {
        for at in 0..self.streams.len() {
            self.abandon(0, at);
            self.abandon(1, at);
        }
        self.settle();
        for end in &self.ends {
            assert!(end.mux.is_idle(), "a stream is left that nobody holds");
        }
    }
}
