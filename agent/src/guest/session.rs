//! The task that speaks to one guest's agent: over each connection that the VM's processes get, a session, begun anew for each
//! identity. It is the only one that reads and writes there.

use std::{sync::Arc, time::Duration};

use guest::channel::{
    check,
    frame::{Frame, Kind, Malformed},
    link::{Link, Wire},
    message::{Hello, Identity, NEWEST, Note, OLDEST, Request, Settle, Settled, Welcome, note},
    mux::{Broken, Came, Side, Violation},
};
use prost::Message as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    net::UnixStream,
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{Asked, Becoming, Clock, Contact, Ends, Introduction, Session, keys, now_ns, qemu};

/// How long a greeting waits for its answer before it is sent again; twice as long each time.
const FIRST_PATIENCE: Duration = Duration::from_millis(50);
/// And at most so long.
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);
/// A greeting that was answered later than this told a time that is past.
const STALE_CLOCK: Duration = Duration::from_millis(5);
/// How long a guest is left alone that does not do as it should.
const REST: Duration = Duration::from_secs(5);
/// Random bytes for each guest.
const ENTROPY: usize = 64;
/// What may come before a guest has answered, frames: what its parent's was owed.
const STALE_FRAMES: u32 = 4096;
/// So many frames may come in a [`PERIOD`]; then the guest waits for the next. A gibibyte takes thirty thousand.
const MOST_FRAMES: u32 = 20_000;
/// See there.
const PERIOD: Duration = Duration::from_millis(100);

/// Speaks to a guest's agent until nobody holds its [`super::Guest`] any more.
pub async fn run(mut ends: Ends, asked: mpsc::Sender<Asked>) {
    let mut next = ends.connections.recv().await;
    while let Some(connection) = next.take() {
        let speaking = speak(
            &mut ends.identity,
            &ends.contact,
            &ends.becoming,
            &asked,
            connection,
        );
        // Another process's connection is the end of this one's.
        next = tokio::select! {
            () = speaking => None,
            connection = ends.connections.recv() => connection,
        };
        ends.contact.send_replace(Contact::Silent);
        if next.is_none() {
            next = ends.connections.recv().await;
        }
    }
}

/// What a session ended with.
enum End {
    /// The connection is gone.
    Gone,
    /// The guest is somebody else now.
    NewIdentity,
    /// The guest's agent was started anew, or gave the session up.
    NewAgent,
    /// The guest does not do as it should.
    Unsound(String),
}

pub(super) type Identities = tokio::sync::watch::Receiver<Option<Arc<Introduction>>>;

/// Sessions over one connection, until that ends.
async fn speak(
    identities: &mut Identities,
    contact: &tokio::sync::watch::Sender<Contact>,
    becoming: &Becoming,
    asked: &mpsc::Sender<Asked>,
    connection: UnixStream,
) {
    let mut wire = Wire::new(connection);
    loop {
        // A process that waits for a fork is nobody yet, and its guest does not run.
        let known = identities.wait_for(Option::is_some).await;
        let Some(known) = known.ok().and_then(|known| known.clone()) else {
            return;
        };
        identities.mark_unchanged();
        if known.is_qemu {
            // Its form of speech is another, and knows of nobody that the guest could become.
            return qemu::speak(identities, contact, wire.into_inner(), known).await;
        }
        let end = match Greeting::new(known) {
            Ok(greeting) => {
                session(identities, contact, becoming, asked, &mut wire, greeting).await
            }
            Err(problem) => End::Unsound(problem),
        };
        match end {
            End::Gone => return,
            End::NewIdentity => {
                contact.send_replace(Contact::Silent);
            }
            End::NewAgent => {
                contact.send_replace(Contact::Silent);
                // However often it says so.
                sleep(PERIOD).await;
            }
            End::Unsound(why) => {
                tracing::warn!(problem = why, "a guest's agent is not sound");
                contact.send_replace(Contact::Unsound(why));
                // Unread, so that it waits, too.
                sleep(REST).await;
            }
        }
    }
}

/// What a guest is greeted with.
struct Greeting {
    known: Arc<Introduction>,
    session: u64,
    entropy: Vec<u8>,
}

impl Greeting {
    fn new(known: Arc<Introduction>) -> Result<Self, String> {
        let (mut session, mut entropy) = ([0; 8], vec![0; ENTROPY]);
        let random = SystemRandom::new();
        for bytes in [&mut session[..], &mut entropy[..]] {
            random
                .fill(bytes)
                .map_err(|_| "the host has no random numbers".to_owned())?;
        }
        Ok(Self {
            known,
            session: u64::from_le_bytes(session),
            entropy,
        })
    }

    /// As it is sent now.
    fn frame(&self) -> Frame {
        let hello = Hello {
            oldest: OLDEST,
            newest: NEWEST,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            identity: Some(self.known.identity.clone()),
            clock_ns: now_ns(),
            entropy: self.entropy.clone(),
        };
        Frame {
            session: self.session,
            stream: 0,
            kind: Kind::Hello,
            lane: 0,
            payload: hello.encode_to_vec().into(),
        }
    }
}

async fn session(
    identities: &mut Identities,
    contact: &tokio::sync::watch::Sender<Contact>,
    becoming: &Becoming,
    asked: &mpsc::Sender<Asked>,
    wire: &mut Wire<UnixStream>,
    greeting: Greeting,
) -> End {
    let begun = Instant::now();
    let greeted = tokio::select! {
        greeted = greet(wire, &greeting) => greeted,
        _changed = identities.changed() => return End::NewIdentity,
    };
    let welcome = match greeted {
        Ok(welcome) => welcome,
        Err(end) => return end,
    };
    let link = Link::new(Side::Host, greeting.session);
    if begun.elapsed() > STALE_CLOCK {
        link.note(&Note {
            what: Some(note::What::ClockNs(now_ns())),
        });
    }
    let (settled, wants_keys) = (welcome.settled, welcome.wants_host_keys);
    tracing::debug!(vm = greeting.known.identity.fork_id, took_us = welcome.took_us, failed = ?welcome.failed, settled, "a guest's agent answers");
    let clock = Arc::new(Clock::just_told());
    let session = Session {
        link: link.clone(),
        welcome,
        since: Instant::now(),
        clock: Arc::clone(&clock),
    };
    contact.send_replace(Contact::Speaking(Arc::new(session)));
    let end = tokio::select! {
        end = serve(wire, &link, contact, asked, &greeting.known.identity) => end,
        _changed = identities.changed() => End::NewIdentity,
        // For as long as that.
        () = async {
            tokio::join!(clock.keep(&link), async {
                if !settled {
                    becoming.is_over().await;
                    have_settle(&link, wants_keys);
                }
            });
        } => End::Gone,
    };
    link.lose(&Broken::Lost(match &end {
        End::Gone => "the VM's process has ended, or is another".to_owned(),
        End::NewIdentity => "the VM was set to another moment".to_owned(),
        End::NewAgent => "the guest's agent was started anew".to_owned(),
        End::Unsound(why) => why.clone(),
    }));
    end
}

/// Greets until the guest answers.
async fn greet(wire: &mut Wire<UnixStream>, greeting: &Greeting) -> Result<Welcome, End> {
    let mut patience = FIRST_PATIENCE;
    let mut stale = 0;
    wire.begin_anew();
    let mut greeted = false;
    loop {
        // Nobody reads the last: where none ever does, no more of them are kept.
        if !greeted || wire.is_clear() {
            wire.send(&greeting.frame())
                .map_err(|_| End::Unsound("what it is to be told is too long".to_owned()))?;
            greeted = true;
        }
        let again = Instant::now() + patience;
        patience = (patience * 2).min(LONGEST_PATIENCE);
        loop {
            let next = tokio::select! {
                next = wire.next(None) => next,
                () = sleep_until(again) => break,
            };
            let frame = match next {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(End::Gone),
                Err(error) => {
                    tracing::debug!(%error, "the connection to a guest's agent ended");
                    return Err(End::Gone);
                }
            };
            match frame {
                Ok(frame) if frame.session == greeting.session && frame.kind == Kind::Welcome => {
                    return check(greeting, frame);
                }
                Err(Malformed::Nothing) => return Err(unsound(Malformed::Nothing)),
                // Of its parent's session, or the end of one that was cut off.
                Ok(_) | Err(_) => stale += 1,
            }
            if stale > STALE_FRAMES {
                return Err(End::Unsound(
                    "it does not answer, and sends other things".to_owned(),
                ));
            }
        }
    }
}

fn check(greeting: &Greeting, frame: Frame) -> Result<Welcome, End> {
    check::welcome(frame.payload, &greeting.known.identity.incarnation)
        .map_err(|unfit| End::Unsound(unfit.to_string()))
}

/// Has a guest do what follows on becoming who it is.
fn have_settle(link: &Link, wants_keys: bool) {
    let host_keys = match wants_keys.then(keys::new_host_keys) {
        Some(Ok(keys)) => Some(keys),
        Some(Err(error)) => {
            // The guest says in its status that none came.
            tracing::warn!(%error, "no SSH host keys could be made");
            None
        }
        None => None,
    };
    link.note(&Note {
        what: Some(note::What::Settle(Settle { host_keys })),
    });
}

async fn serve(
    wire: &mut Wire<UnixStream>,
    link: &Link,
    contact: &tokio::sync::watch::Sender<Contact>,
    asked: &mpsc::Sender<Asked>,
    identity: &Identity,
) -> End {
    let mut pace = Pace::new();
    loop {
        let frame = match wire.next(Some(link)).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(malformed))) => return unsound(malformed),
            Ok(None) => return End::Gone,
            Err(error) => {
                tracing::debug!(%error, "the connection to a guest's agent ended");
                return End::Gone;
            }
        };
        pace.another().await;
        if frame.tells_beginning() {
            return End::NewAgent;
        }
        if frame.session != link.session() {
            return End::Unsound("it goes on with a session that has ended".to_owned());
        }
        match frame.kind {
            // The same answer to the greeting that was sent again.
            Kind::Welcome => continue,
            Kind::Note => {
                if let Err(end) = hear(&frame, contact, identity) {
                    return end;
                }
                continue;
            }
            _ => {}
        }
        match link.receive(frame) {
            Ok(Came::Handled) => {}
            Ok(Came::Opened { stream, request }) => {
                let stream = link.stream(stream);
                let what = Request::decode(request)
                    .ok()
                    .and_then(|request| request.what);
                let Some(what) = what else {
                    stream.fail("the host's agent does not know this request");
                    continue;
                };
                let vm = identity.fork_id.clone();
                if let Err(refused) = asked.try_send(Asked { vm, what, stream }) {
                    refused
                        .into_inner()
                        .stream
                        .fail("the host's agent has too many requests of guests; try again");
                }
            }
            Err(violation) => return broke(violation),
        }
    }
}

fn unsound(malformed: Malformed) -> End {
    End::Unsound(format!("it sends what is no frame: {malformed}"))
}

fn broke(violation: Violation) -> End {
    End::Unsound(format!("it does not keep to the protocol: {violation}"))
}

fn hear(
    frame: &Frame,
    contact: &tokio::sync::watch::Sender<Contact>,
    identity: &Identity,
) -> Result<(), End> {
    let note = Note::decode(frame.payload.clone())
        .map_err(|error| End::Unsound(format!("a note of it cannot be read: {error}")))?;
    let is_news =
        !matches!(&*contact.borrow(), Contact::Speaking(session) if session.welcome.settled);
    match note.what {
        Some(note::What::Settled(Settled {
            incarnation,
            failed,
        })) if is_news && incarnation == identity.incarnation => contact.send_modify(|contact| {
            if let Contact::Speaking(session) = contact {
                let mut welcome = session.welcome.clone();
                welcome.failed.extend(check::failed(failed));
                welcome.settled = true;
                *session = Arc::new(Session {
                    link: session.link.clone(),
                    welcome,
                    since: session.since,
                    clock: Arc::clone(&session.clock),
                });
            }
        }),
        Some(note::What::Clock(clock)) => {
            if let Contact::Speaking(session) = &*contact.borrow() {
                session.clock.answered(clock);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Holds a guest to a number of frames in a time: each costs this agent something, however small it is.
struct Pace {
    begun: Instant,
    frames: u32,
}

impl Pace {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            frames: 0,
        }
    }

    async fn another(&mut self) {
        self.frames += 1;
        if self.frames < MOST_FRAMES {
            return;
        }
        let until = self.begun + PERIOD;
        sleep_until(until).await;
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests;
