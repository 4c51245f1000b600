use std::task::Waker;

use super::*;

fn pump(from: &mut Mux, to: &mut Mux) -> Vec<Came> {
    let mut came = Vec::new();
    while let Some(frame) = from.next_frame(Waker::noop()) {
        came.push(to.receive(frame).unwrap());
    }
    came
}

fn pair() -> (Mux, Mux) {
    (Mux::new(Side::Host, 9), Mux::new(Side::Guest, 9))
}

/// A stream that the host began, on both ends.
fn opened() -> (Mux, Mux, u32) {
    let (mut host, mut guest) = pair();
    let id = host.open(Bytes::from_static(b"please")).unwrap();
    let came = pump(&mut host, &mut guest);
    assert!(
        matches!(&came[..], [Came::Opened { stream, request }] if *stream == id && request == "please"),
        "{came:?}"
    );
    (host, guest, id)
}

fn send(mux: &mut Mux, id: u32, lane: u8, bytes: &[u8]) -> Option<Result<(), Broken>> {
    mux.send(id, lane, &Bytes::copy_from_slice(bytes), Waker::noop())
}

fn take(mux: &mut Mux, id: u32, lane: u8) -> Option<Result<Option<Bytes>, Broken>> {
    mux.take(id, lane, Waker::noop())
}

fn data(stream: u32, lane: u8, payload: &[u8]) -> Frame {
    Frame {
        session: 9,
        stream,
        kind: Kind::Data,
        lane,
        payload: Bytes::copy_from_slice(payload),
    }
}

#[test]
fn lanes_carry_bytes_and_messages_and_end_each_by_itself() {
    let (mut host, mut guest, id) = opened();
    send(&mut host, id, 0, b"in").unwrap().unwrap();
    send(&mut host, id, MESSAGES, b"one").unwrap().unwrap();
    send(&mut host, id, MESSAGES, b"two").unwrap().unwrap();
    host.end(id, 0);
    pump(&mut host, &mut guest);
    assert_eq!(take(&mut guest, id, 0), Some(Ok(Some("in".into()))));
    assert_eq!(take(&mut guest, id, 0), Some(Ok(None)));
    assert_eq!(take(&mut guest, id, MESSAGES), Some(Ok(Some("one".into()))));
    assert_eq!(take(&mut guest, id, MESSAGES), Some(Ok(Some("two".into()))));
    assert_eq!(take(&mut guest, id, MESSAGES), None);
    // The other way still goes.
    send(&mut guest, id, 1, b"out").unwrap().unwrap();
    guest.close(id);
    guest.abandon(id, Broken::Cancelled);
    pump(&mut guest, &mut host);
    assert_eq!(take(&mut host, id, 1), Some(Ok(Some("out".into()))));
    assert_eq!(take(&mut host, id, 1), Some(Ok(None)));
    assert_eq!(send(&mut host, id, 0, b"late"), Some(Err(Broken::Closed)));
    host.abandon(id, Broken::Cancelled);
    assert!(host.is_idle() && guest.is_idle());
    assert!(pump(&mut host, &mut guest).is_empty());
}

#[test]
fn who_does_not_read_holds_up_its_own_lane_only() {
    let (mut host, mut guest, stalled) = opened();
    let piece = vec![7; 32 << 10];
    let mut sent = 0;
    for _ in 0..100 {
        while send(&mut guest, stalled, 1, &piece).is_some() {
            sent += piece.len();
        }
        pump(&mut guest, &mut host);
    }
    assert_eq!(sent, WINDOW as usize + QUEUE);
    let other = host.open(Bytes::new()).unwrap();
    pump(&mut host, &mut guest);
    send(&mut guest, other, 1, b"goes").unwrap().unwrap();
    send(&mut guest, stalled, 2, b"goes, too").unwrap().unwrap();
    pump(&mut guest, &mut host);
    assert_eq!(take(&mut host, other, 1), Some(Ok(Some("goes".into()))));
    assert_eq!(
        take(&mut host, stalled, 2),
        Some(Ok(Some("goes, too".into())))
    );
    // What is taken makes room, and all of it arrives.
    let mut got = 0;
    while let Some(Ok(Some(bytes))) = take(&mut host, stalled, 1) {
        got += bytes.len();
        pump(&mut host, &mut guest);
        pump(&mut guest, &mut host);
    }
    assert_eq!(got, sent);
}

#[test]
fn streams_take_turns() {
    let (mut host, mut guest, first) = opened();
    let second = host.open(Bytes::new()).unwrap();
    pump(&mut host, &mut guest);
    for id in [first, second] {
        send(&mut host, id, 0, &vec![1; 64 << 10]).unwrap().unwrap();
    }
    let mut order = Vec::new();
    while let Some(frame) = host.next_frame(Waker::noop()) {
        order.push(frame.stream);
        assert!(frame.payload.len() <= PIECE);
    }
    assert_eq!(order, [first, second, first, second]);
}

#[test]
fn more_than_the_window_is_a_violation() {
    let (mut host, mut guest, id) = opened();
    drop(guest.next_frame(Waker::noop()));
    for _ in 0..WINDOW as usize / PIECE {
        host.receive(data(id, 1, &vec![0; PIECE])).unwrap();
    }
    assert_eq!(
        host.receive(data(id, 1, b"x")).unwrap_err(),
        Violation::Window
    );
    // Messages that are empty are not for nothing.
    let messages = MESSAGE_WINDOW / MESSAGE_COST;
    for _ in 0..messages {
        host.receive(data(id, MESSAGES, b"")).unwrap();
    }
    assert_eq!(
        host.receive(data(id, MESSAGES, b"")).unwrap_err(),
        Violation::Window
    );
}

#[test]
fn frames_that_make_no_sense_are_violations() {
    let (mut host, _, id) = opened();
    let frame = |stream, kind, lane| Frame {
        session: 9,
        stream,
        kind,
        lane,
        payload: Bytes::new(),
    };
    let cases = [
        (frame(0, Kind::Data, 0), Violation::Stream),
        (frame(id + 2, Kind::Data, 0), Violation::Stream),
        (frame(2, Kind::End, 0), Violation::Stream),
        (frame(id, Kind::Data, 4), Violation::Sense),
        (frame(id, Kind::Data, 0), Violation::Sense),
        (frame(id, Kind::Credit, 0), Violation::Sense),
        (frame(id, Kind::Hello, 0), Violation::Sense),
        (frame(id, Kind::Open, 0), Violation::Stream),
        (frame(0, Kind::Open, 0), Violation::Stream),
    ];
    for (frame, violation) in cases {
        assert_eq!(
            host.receive(frame.clone()).unwrap_err(),
            violation,
            "{frame:?}"
        );
    }
    let credit = Frame {
        payload: Bytes::copy_from_slice(&u32::MAX.to_le_bytes()),
        ..frame(id, Kind::Credit, 0)
    };
    assert_eq!(host.receive(credit).unwrap_err(), Violation::Window);
}

#[test]
fn no_more_streams_than_may_be_are_kept_however_many_are_begun() {
    let mut host = Mux::new(Side::Host, 9);
    let mut refused = 0;
    let mut id = 2;
    let violation = loop {
        let open = Frame {
            kind: Kind::Open,
            ..data(id, 0, b"")
        };
        id += 2;
        match host.receive(open) {
            Ok(Came::Opened { .. }) => assert_eq!(refused, 0),
            Ok(Came::Handled) => refused += 1,
            Err(violation) => break violation,
        }
    };
    assert_eq!(violation, Violation::Answers);
    assert_eq!(host.streams.len(), GUEST_STREAMS);
    assert!(refused > 0 && host.answers.len() <= ANSWERS + 1);
}

#[test]
fn who_takes_no_answers_is_not_answered_for_ever() {
    let mut host = Mux::new(Side::Host, 9);
    let violation = (1..).find_map(|number| {
        let open = Frame {
            kind: Kind::Open,
            ..data(2 * number, 0, b"")
        };
        let opened = host.receive(open);
        host.abandon(2 * number, Broken::Failed("no".to_owned()));
        opened.err()
    });
    assert_eq!(violation, Some(Violation::Answers));
    assert_eq!(host.answers.len(), ANSWERS);
    assert!(matches!(host.open(Bytes::new()), Err(Broken::Failed(_))));
    host.note(Bytes::new());
    assert_eq!(host.answers.len(), ANSWERS);
}

#[test]
fn who_takes_no_credits_has_its_window_and_no_more() {
    let (mut host, _, id) = opened();
    for _ in 0..WINDOW as usize / PIECE {
        host.receive(data(id, 1, &vec![0; PIECE])).unwrap();
        take(&mut host, id, 1).unwrap().unwrap();
    }
    assert_eq!(host.credits.len(), 1);
    let more = host.receive(data(id, 1, b"x"));
    assert_eq!(more.unwrap_err(), Violation::Window);
    let credit = host.next_frame(Waker::noop()).unwrap();
    assert_eq!((credit.kind, credit.lane), (Kind::Credit, 1));
    assert_eq!(credit.payload, WINDOW.to_le_bytes()[..]);
    host.receive(data(id, 1, b"x")).unwrap();
}

#[test]
fn nothing_is_left_of_a_stream_that_was_forgotten() {
    let mut host = Mux::new(Side::Host, 9);
    for number in 1..100 {
        let id = 2 * number;
        let of = |kind, payload: &[u8]| Frame {
            kind,
            ..data(id, MESSAGES, payload)
        };
        host.receive(of(Kind::Open, b"")).unwrap();
        host.receive(of(Kind::Credit, &[1, 0, 0, 0])).unwrap();
        host.receive(of(Kind::Data, &[0; 20 << 10])).unwrap();
        take(&mut host, id, MESSAGES).unwrap().unwrap();
        host.receive(of(Kind::Reset, b"")).unwrap();
        host.abandon(id, Broken::Cancelled);
    }
    assert!(host.turns.is_empty() && host.credits.is_empty() && host.is_idle());
}

#[test]
fn a_stream_that_the_other_side_never_heard_of_leaves_nothing_to_be_sent() {
    let (mut host, mut guest) = pair();
    let id = host.open(vec![0; MAX_PAYLOAD].into()).unwrap();
    host.abandon(id, Broken::Cancelled);
    assert!(host.next_frame(Waker::noop()).is_none());
    let next = host.open(Bytes::new()).unwrap();
    let came = pump(&mut host, &mut guest);
    assert!(matches!(&came[..], [Came::Opened { stream, .. }] if *stream == next));
}

#[test]
fn what_is_broken_off_is_told_and_forgotten() {
    let (mut host, mut guest, id) = opened();
    send(&mut guest, id, 1, b"never read").unwrap().unwrap();
    guest.abandon(id, Broken::Failed("no such file".to_owned()));
    pump(&mut guest, &mut host);
    assert_eq!(
        take(&mut host, id, 1),
        Some(Err(Broken::Failed("no such file".to_owned())))
    );
    host.abandon(id, Broken::Cancelled);
    assert!(host.is_idle() && guest.is_idle());

    let id = host.open(Bytes::new()).unwrap();
    pump(&mut host, &mut guest);
    host.lose(&Broken::Lost("it ended".to_owned()));
    assert_eq!(
        take(&mut host, id, 1),
        Some(Err(Broken::Lost("it ended".to_owned())))
    );
    assert!(matches!(host.open(Bytes::new()), Err(Broken::Lost(_))));
    assert!(host.next_frame(Waker::noop()).is_none());
}

#[test]
fn a_stream_that_was_left_goes_when_the_other_side_breaks_it_off() {
    let (mut host, mut guest, id) = opened();
    // More than may be sent: the close waits behind it.
    while send(&mut host, id, 0, &[1; 32 << 10]).is_some() {
        pump(&mut host, &mut guest);
    }
    host.close(id);
    host.abandon(id, Broken::Cancelled);
    assert!(!host.is_idle());
    guest.abandon(id, Broken::Cancelled);
    pump(&mut guest, &mut host);
    assert!(host.is_idle());
}

#[test]
fn a_stream_that_both_sides_left_with_more_to_send_than_may_be_goes() {
    let (mut host, mut guest, id) = opened();
    for _ in 0..100 {
        let _full = send(&mut host, id, 0, &[1; 32 << 10]);
        let _full = send(&mut guest, id, 1, &[1; 32 << 10]);
        pump(&mut host, &mut guest);
        pump(&mut guest, &mut host);
    }
    for mux in [&mut host, &mut guest] {
        mux.close(id);
        mux.abandon(id, Broken::Cancelled);
        assert!(!mux.is_idle());
    }
    for _ in 0..100 {
        pump(&mut host, &mut guest);
        pump(&mut guest, &mut host);
    }
    assert!(host.is_idle() && guest.is_idle());
}

#[test]
fn reasons_are_cut_between_letters() {
    let long = "ä".repeat(2000);
    let encoded = Broken::Failed(long).encode();
    let Broken::Failed(reason) = Broken::decode(&encoded) else {
        panic!("another reason");
    };
    assert_eq!(reason, "ä".repeat(512));
    assert_eq!(Broken::decode(&[]), Broken::Cancelled);
}
