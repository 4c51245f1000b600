//! The host's end against guests that keep to the protocol, and against such that do not.

use bytes::BytesMut;
use guest::channel::frame::Decoder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
    time::timeout,
};

use super::{
    super::{Guest, Unheard},
    *,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A guest's end, by hand.
struct Fake {
    socket: UnixStream,
    decoder: Decoder,
}

impl Fake {
    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return frame.unwrap();
            }
            let mut buffer = [0; 4096];
            let count = self.socket.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the host is gone");
            self.decoder.push(&buffer[..count]);
        }
    }

    async fn send(&mut self, frame: &Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out).unwrap();
        self.socket.write_all(&out).await.unwrap();
    }

    /// Takes the greeting, and answers it.
    async fn welcome(&mut self, change: impl FnOnce(&mut Welcome)) -> Hello {
        let frame = self.frame().await;
        assert_eq!(frame.kind, Kind::Hello);
        let hello = Hello::decode(frame.payload.clone()).unwrap();
        let mut welcome = Welcome {
            version: 1,
            incarnation: hello.identity.clone().unwrap().incarnation,
            ..Welcome::default()
        };
        change(&mut welcome);
        let answer = Frame {
            kind: Kind::Welcome,
            payload: welcome.encode_to_vec().into(),
            ..frame
        };
        self.send(&answer).await;
        hello
    }
}

fn identity(incarnation: &str) -> Introduction {
    let identity = Identity {
        incarnation: incarnation.to_owned(),
        fork_id: "vm".to_owned(),
        ..Identity::default()
    };
    Introduction {
        identity,
        is_qemu: false,
    }
}

struct Host {
    guest: Guest,
    asked: mpsc::Receiver<Asked>,
    _task: JoinHandle<()>,
}

async fn connect(guest: &Guest) -> Fake {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    guest.line().connect_to(&path).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    Fake {
        socket,
        decoder: Decoder::default(),
    }
}

async fn host() -> (Host, Fake) {
    let (guest, ends) = Guest::new(Becoming::default());
    let (sender, asked) = mpsc::channel(4);
    let task = tokio::spawn(run(ends, sender));
    let fake = connect(&guest).await;
    let host = Host {
        guest,
        asked,
        _task: task,
    };
    (host, fake)
}

async fn unsound(guest: &Guest) -> String {
    let mut contact = guest.watch();
    let found = contact.wait_for(|contact| matches!(contact, Contact::Unsound(_)));
    let found = timeout(PATIENCE, found).await.unwrap().unwrap();
    match &*found {
        Contact::Unsound(why) => why.clone(),
        other => panic!("{other:?}"),
    }
}

async fn speaking(guest: &Guest, incarnation: &str) -> Arc<Session> {
    let became = guest.became(incarnation, Instant::now() + PATIENCE);
    became.await.expect("it answers");
    guest.session().unwrap()
}

#[tokio::test]
async fn a_guest_is_greeted_again_until_it_answers_and_is_told_the_time() {
    let (host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    let first = fake.frame().await;
    let second = fake.frame().await;
    assert_eq!(first.session, second.session);
    let hello = fake.welcome(|_| ()).await;
    assert_eq!(hello.entropy.len(), ENTROPY);
    assert!(now_ns().abs_diff(hello.clock_ns) < PATIENCE.as_nanos() as u64);
    speaking(&host.guest, "vm.1").await;
    host.guest.tell_time();
    loop {
        // Greetings that were sent meanwhile come first.
        let frame = fake.frame().await;
        if frame.kind == Kind::Note {
            match Note::decode(frame.payload).unwrap().what {
                Some(note::What::ClockNs(_)) => break,
                // It is asked what time it is there, too.
                Some(note::What::AskClock(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn what_is_left_of_a_parents_session_is_passed_over() {
    let (host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    // The end of a frame, and a whole one, of another session.
    fake.socket.write_all(&[7, 7, 7, 0]).await.unwrap();
    let stale = Frame {
        session: 1,
        stream: 3,
        kind: Kind::Data,
        lane: 1,
        payload: "old".into(),
    };
    fake.send(&stale).await;
    fake.welcome(|_| ()).await;
    speaking(&host.guest, "vm.1").await;
}

#[tokio::test]
async fn a_guest_that_becomes_somebody_else_is_greeted_anew_and_streams_end() {
    let (host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    fake.welcome(|_| ()).await;
    let session = speaking(&host.guest, "vm.1").await;
    let stream = session.link.open(&Request::default()).unwrap();
    host.guest.introduce(identity("vm.2"));
    assert!(matches!(stream.take(0).await, Err(Broken::Lost(_))));
    loop {
        let frame = fake.frame().await;
        if frame.kind == Kind::Hello && frame.session != session.link.session() {
            let hello = Hello::decode(frame.payload).unwrap();
            assert_eq!(hello.identity.unwrap().incarnation, "vm.2");
            break;
        }
    }
}

#[tokio::test]
async fn a_guests_agent_that_is_started_anew_is_greeted_anew_and_streams_end() {
    let (host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    // The first of its boot: nobody has heard of it yet.
    fake.send(&Frame::begun()).await;
    fake.welcome(|_| ()).await;
    let session = speaking(&host.guest, "vm.1").await;
    let stream = session.link.open(&Request::default()).unwrap();
    fake.send(&Frame::begun()).await;
    assert!(matches!(stream.take(0).await, Err(Broken::Lost(_))));
    loop {
        let frame = fake.frame().await;
        if frame.kind == Kind::Hello && frame.session != session.link.session() {
            break;
        }
    }
}

#[tokio::test]
async fn guests_that_speak_another_version_or_lie_about_who_they_are_are_not_spoken_to() {
    let (one, mut fake) = host().await;
    one.guest.introduce(identity("vm.1"));
    fake.welcome(|welcome| welcome.version = 99).await;
    assert!(unsound(&one.guest).await.contains("protocol"));
    let (other, mut fake) = host().await;
    other.guest.introduce(identity("vm.1"));
    fake.welcome(|welcome| welcome.incarnation = "vm.7".to_owned())
        .await;
    assert!(unsound(&other.guest).await.contains("another VM"));
    assert!(matches!(other.guest.session(), Err(Unheard::Unsound(_))));
}

#[tokio::test]
async fn rubbish_ends_a_session_with_an_error_on_that_vm() {
    for rubbish in [&[9u8, 9, 0][..], &[1; 200 << 10], &[0; 2 << 20]] {
        let (host, mut fake) = host().await;
        host.guest.introduce(identity("vm.1"));
        fake.welcome(|_| ()).await;
        let session = speaking(&host.guest, "vm.1").await;
        let stream = session.link.open(&Request::default()).unwrap();
        // The host may have stopped reading by then.
        let writing = tokio::spawn(async move {
            let _cut_off = fake.socket.write_all(rubbish).await;
            fake
        });
        assert!(unsound(&host.guest).await.contains("frame"));
        assert!(matches!(stream.take(0).await, Err(Broken::Lost(_))));
        drop(writing);
    }
}

#[tokio::test]
async fn a_guest_that_floods_is_held_to_a_pace() {
    let (host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    fake.welcome(|_| ()).await;
    let session = speaking(&host.guest, "vm.1").await;
    let note = Frame {
        session: session.link.session(),
        stream: 0,
        kind: Kind::Note,
        lane: 0,
        payload: Note::default().encode_to_vec().into(),
    };
    let mut one = BytesMut::new();
    note.encode(&mut one).unwrap();
    let flood: Vec<u8> = one.repeat(1000);
    let mut frames = 0;
    let begun = Instant::now();
    let flooding = async {
        loop {
            fake.socket.write_all(&flood).await.unwrap();
            frames += 1000;
        }
    };
    let _never_ends = timeout(Duration::from_secs(1), flooding).await;
    let periods = begun.elapsed().as_millis() / PERIOD.as_millis() + 1;
    // What lies in the socket has not been looked at.
    let unseen = 20_000;
    assert!(
        frames <= u128::from(MOST_FRAMES) * periods + unseen,
        "{frames} in {periods}"
    );
    assert!(matches!(host.guest.contact(), Contact::Speaking(_)));
}

#[tokio::test]
async fn what_a_guest_asks_for_is_passed_on_and_too_much_is_refused() {
    let (mut host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    fake.welcome(|_| ()).await;
    let session = speaking(&host.guest, "vm.1").await;
    let request = Request::from(guest::channel::message::request::What::Exit(
        guest::channel::message::Exit { code: 3 },
    ));
    for number in 1..=6 {
        let open = Frame {
            session: session.link.session(),
            stream: 2 * number,
            kind: Kind::Open,
            lane: 0,
            payload: request.encode_to_vec().into(),
        };
        fake.send(&open).await;
    }
    let asked = timeout(PATIENCE, host.asked.recv()).await.unwrap().unwrap();
    assert_eq!(asked.vm, "vm");
    // Two more than are kept.
    for _ in 0..2 {
        let frame = loop {
            let frame = fake.frame().await;
            if !matches!(frame.kind, Kind::Hello | Kind::Note) {
                break frame;
            }
        };
        assert_eq!(frame.kind, Kind::Reset);
    }
}

/// A guest whose clock can be looked at and set.
struct FakeClock {
    /// How far it is ahead, nanoseconds.
    off: i64,
    /// How often it was looked at.
    looks: u32,
}

impl FakeClock {
    /// Answers the next message, if one comes soon, and says whether it was a look. Message and answer take so long each.
    async fn answer(&mut self, fake: &mut Fake, slow: Duration) -> bool {
        let Ok(frame) = timeout(Duration::from_millis(20), fake.frame()).await else {
            return false;
        };
        if frame.kind != Kind::Note {
            return false;
        }
        match Note::decode(frame.payload.clone()).unwrap().what {
            Some(note::What::AskClock(ask)) => {
                self.looks += 1;
                sleep(slow).await;
                let clock = guest::channel::message::Clock {
                    ask,
                    ns: now_ns().saturating_add_signed(self.off),
                };
                let answer = Note {
                    what: Some(note::What::Clock(clock)),
                };
                let payload = answer.encode_to_vec().into();
                sleep(slow).await;
                fake.send(&Frame { payload, ..frame }).await;
                true
            }
            Some(note::What::ShiftClockNs(by)) => {
                self.off += by;
                false
            }
            _ => false,
        }
    }
}

#[tokio::test]
async fn a_guests_clock_is_set_right_however_late_it_is_told() {
    let (host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    fake.welcome(|_| ()).await;
    let session = speaking(&host.guest, "vm.1").await;
    // It is 300 ms behind, and is told the time once more after it has answered the second time, which does not reach it.
    let mut clock = FakeClock {
        off: -300_000_000,
        looks: 0,
    };
    while timeout(Duration::ZERO, session.clock.is_right())
        .await
        .is_err()
    {
        if clock.answer(&mut fake, Duration::ZERO).await && clock.looks == 2 {
            host.guest.tell_time();
            clock.off -= 200_000_000;
        }
    }
    assert!(
        clock.looks > 2 && clock.off.abs() < 20_000_000,
        "{} ns off after {} looks",
        clock.off,
        clock.looks
    );
}

#[tokio::test]
async fn a_clock_of_which_too_little_is_known_for_long_is_set_right_later() {
    let (host, mut fake) = host().await;
    host.guest.introduce(identity("vm.1"));
    fake.welcome(|_| ()).await;
    let session = speaking(&host.guest, "vm.1").await;
    let mut clock = FakeClock {
        off: -25_000_000,
        looks: 0,
    };
    // Each answer takes so long that it may be right.
    while timeout(Duration::ZERO, session.clock.is_right())
        .await
        .is_err()
    {
        clock.answer(&mut fake, Duration::from_millis(20)).await;
    }
    assert_eq!(clock.off, -25_000_000);
    let end = Instant::now() + PATIENCE;
    while clock.off.abs() > 20_000_000 {
        assert!(Instant::now() < end, "{} ns off", clock.off);
        clock.answer(&mut fake, Duration::ZERO).await;
    }
}
