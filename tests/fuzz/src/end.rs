//! One end of the channel against a hostile other: what this side does and what comes are chosen by the fuzzer, and after each step the
//! end is compared with a [`model`] of the rules: what it takes for a violation and what not, what it delivers, what it sends, and
//! how much memory it keeps.

mod model;

use std::task::Waker;

use bytes::Bytes;
use guest::channel::{
    frame::{Frame, Kind},
    mux::{Broken, Came, LANES, MESSAGES, Mux, Side},
};

use self::model::{MOST_ANSWERS, Model};
use crate::{input::Input, memory, pattern};

const SESSION: u64 = 0x5e55_1011;

pub fn host(bytes: &[u8]) {
    run(Side::Host, bytes);
}

pub fn guest(bytes: &[u8]) {
    run(Side::Guest, bytes);
}

fn run(side: Side, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let model = Model::new(side);
    let before = memory::live();
    let mut end = End {
        mux: Mux::new(side, SESSION),
        model,
        before,
        elsewhere: 0,
    };
    while !input.is_empty() {
        if end.step(&mut input).is_err() {
            end.lose();
            return;
        }
        end.check_memory();
    }
}

/// The other side broke the rules, and was found out.
struct Violated;

struct End {
    mux: Mux,
    model: Model,
    before: isize,
    /// What the model allocated meanwhile.
    elsewhere: isize,
}

impl End {
    fn step(&mut self, input: &mut Input<'_>) -> Result<(), Violated> {
        match input.u8() % 16 {
            0 => self.open(input.length()),
            1 => self.send(input),
            2 | 3 => {
                let (id, lane) = (self.own_choice(input), input.u8() % LANES as u8);
                self.take(id, lane);
            }
            4 => {
                let (id, lane) = (self.own_choice(input), input.u8() % LANES as u8);
                self.mux.end(id, lane);
                self.of_model(|model| model.end(id, lane));
            }
            5 => {
                let id = self.own_choice(input);
                self.mux.close(id);
                self.of_model(|model| model.close(id));
            }
            6 => {
                let id = self.own_choice(input);
                self.abandon(id);
            }
            7 => {
                let note = pattern::at(3, 0, input.below(64));
                self.mux.note(Bytes::from_static(note));
                self.of_model(|model| model.note(note));
            }
            8 | 9 => {
                for _ in 0..=input.below(64) {
                    self.next_frame();
                }
            }
            10 => return self.flood(input),
            11 => {
                // As the other side does it that keeps to the rules.
                let id = self.model.next_of_theirs();
                return self.receive(self.frame(id, Kind::Open, 0, Bytes::new()));
            }
            12 | 13 => {
                let (id, lane) = (self.own_choice(input), input.u8() % LANES as u8);
                let length = input.length();
                return self.receive_data(id, lane, length);
            }
            _ => {
                let frame = self.any_frame(input);
                return self.receive(frame);
            }
        }
        Ok(())
    }

    /// What the model does is none of the memory that is watched.
    fn of_model<T>(&mut self, work: impl FnOnce(&mut Model) -> T) -> T {
        let before = memory::live();
        let result = work(&mut self.model);
        self.elsewhere += memory::live() - before;
        result
    }

    fn check_memory(&mut self) {
        let kept = memory::live() - self.before - self.elsewhere;
        let most = self.model.most_memory();
        assert!(kept <= most, "{kept} bytes are kept where {most} may be");
    }

    /// A stream that this side may use.
    fn own_choice(&self, input: &mut Input<'_>) -> u32 {
        self.model.choose(input.below(256))
    }

    fn frame(&self, stream: u32, kind: Kind, lane: u8, payload: Bytes) -> Frame {
        Frame {
            session: SESSION,
            stream,
            kind,
            lane,
            payload,
        }
    }

    /// Anything that can be said in a frame.
    fn any_frame(&self, input: &mut Input<'_>) -> Frame {
        const KINDS: [Kind; 9] = [
            Kind::Close,
            Kind::Reset,
            Kind::Credit,
            Kind::End,
            Kind::Open,
            Kind::Data,
            Kind::Hello,
            Kind::Welcome,
            Kind::Note,
        ];
        let kind = KINDS[input.below(256) * input.below(256) % KINDS.len()];
        let stream = match input.u8() % 8 {
            0 => input.u32(),
            1 => self
                .model
                .next_of_theirs()
                .wrapping_add(u32::from(input.u8())),
            _ => self.own_choice(input),
        };
        let lane = match input.u8() {
            lane @ 250.. => lane,
            lane => lane % LANES as u8,
        };
        let length = input.below(40);
        let payload = Bytes::copy_from_slice(input.bytes(length));
        self.frame(stream, kind, lane, payload)
    }

    fn receive(&mut self, frame: Frame) -> Result<(), Violated> {
        // Its content is to be known again.
        if frame.kind == Kind::Data {
            return self.receive_data(frame.stream, frame.lane, frame.payload.len());
        }
        let expected = self.of_model(|model| model.expect(&frame));
        self.give(frame, expected)
    }

    fn receive_data(&mut self, id: u32, lane: u8, length: usize) -> Result<(), Violated> {
        let place = self.model.place(id, lane);
        let bytes = pattern::at(pattern::key(1, id, lane), place, length);
        let frame = self.frame(id, Kind::Data, lane, Bytes::copy_from_slice(bytes));
        let expected = self.of_model(|model| model.expect(&frame));
        self.give(frame, expected)
    }

    fn give(
        &mut self,
        frame: Frame,
        expected: Result<model::Came, guest::channel::mux::Violation>,
    ) -> Result<(), Violated> {
        let shown = (frame.kind, frame.stream, frame.lane, frame.payload.len());
        let request = frame.payload.clone();
        match (self.mux.receive(frame), expected) {
            (Ok(Came::Handled), Ok(model::Came::Handled)) => Ok(()),
            (
                Ok(Came::Opened {
                    stream,
                    request: came,
                }),
                Ok(model::Came::Opened(id)),
            ) => {
                assert_eq!((stream, came), (id, request));
                Ok(())
            }
            (Err(violation), Err(expected)) if violation == expected => Err(Violated),
            (came, expected) => panic!("{shown:?} came to {came:?} and not {expected:?}"),
        }
    }

    /// Streams are begun and refused, again and again.
    fn flood(&mut self, input: &mut Input<'_>) -> Result<(), Violated> {
        // Seldom more than may wait for answers.
        let count = match input.below(256) {
            many @ 250.. => 5 * many,
            few => few / 8,
        };
        for _ in 0..count {
            let id = self.model.next_of_theirs();
            self.receive(self.frame(id, Kind::Open, 0, Bytes::new()))?;
            self.abandon(id);
            assert!(self.model.answers() <= MOST_ANSWERS);
        }
        Ok(())
    }

    fn open(&mut self, length: usize) {
        let request = Bytes::copy_from_slice(pattern::at(5, 0, length));
        let opened = self.mux.open(request);
        let expected = self.of_model(|model| model.open(length));
        assert_eq!(opened.ok(), expected);
    }

    fn send(&mut self, input: &mut Input<'_>) {
        let (id, lane) = (self.own_choice(input), input.u8() % LANES as u8);
        let length = input.length();
        if length == 0 && lane != MESSAGES {
            return;
        }
        let place = self.model.place_sent(id, lane);
        let bytes = Bytes::from_static(pattern::at(pattern::key(0, id, lane), place, length));
        let sent = self.mux.send(id, lane, &bytes, Waker::noop());
        let expected = self.of_model(|model| model.send(id, lane, length));
        assert_eq!(sent.map(|sent| sent.is_ok()), expected);
    }

    fn take(&mut self, id: u32, lane: u8) {
        let taken = self.mux.take(id, lane, Waker::noop());
        let expected = self.of_model(|model| model.take(id, lane));
        match (taken, expected) {
            (None, model::Taken::Nothing) => {}
            (Some(Ok(None)), model::Taken::End) => {}
            (Some(Err(_)), model::Taken::Broken) => {}
            (Some(Ok(Some(bytes))), model::Taken::Bytes { place, length }) => {
                assert_eq!(bytes.len(), length);
                assert!(
                    pattern::is_at(pattern::key(1, id, lane), place, &bytes),
                    "other bytes than were sent"
                );
            }
            (taken, expected) => panic!("{taken:?} was taken and not {expected:?}"),
        }
    }

    fn abandon(&mut self, id: u32) {
        self.mux.abandon(id, Broken::Failed("no".to_owned()));
        self.of_model(|model| model.abandon(id));
    }

    fn next_frame(&mut self) {
        match self.mux.next_frame(Waker::noop()) {
            Some(frame) => {
                assert_eq!(frame.session, SESSION);
                self.of_model(|model| model.sent(&frame));
            }
            None => self.model.has_nothing_to_say(),
        }
    }

    /// The session is over: what came is still there, and nothing else.
    fn lose(&mut self) {
        self.mux
            .lose(&Broken::Lost("it broke the rules".to_owned()));
        assert!(self.mux.next_frame(Waker::noop()).is_none());
        assert!(matches!(self.mux.open(Bytes::new()), Err(Broken::Lost(_))));
        self.of_model(Model::lose);
        for id in self.model.usable() {
            for lane in 0..LANES as u8 {
                while matches!(self.model.peek(id, lane), model::Taken::Bytes { .. }) {
                    self.take(id, lane);
                }
                self.take(id, lane);
            }
            let sent = self
                .mux
                .send(id, 0, &Bytes::from_static(b"x"), Waker::noop());
            assert!(matches!(sent, Some(Err(_))));
            self.abandon(id);
        }
        assert!(self.mux.next_frame(Waker::noop()).is_none());
        self.check_memory();
    }
}
