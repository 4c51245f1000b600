//! The guests' agents, as this node speaks to them: one task for each VM (`session`), which greets the guest with who it is
//! ([`identity`]) and knows whether it answers. All that comes from a guest is taken for hostile.

pub mod becoming;
mod clock;
pub mod identity;
mod keys;
mod look;
pub mod ports;
mod qemu;
mod session;
pub mod wait;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ::qemu::port::{Line, line};
use guest::channel::{
    link::{Link, Stream},
    message::{Answer, Failed, Forward, Identity, Note, Request, Welcome, note, request},
    mux::Broken,
};
use tokio::{
    net::UnixStream,
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

/// Requests of guests that wait to be looked at, over all VMs of a node.
pub const REQUESTS: usize = 64;

/// What a guest asks for.
#[derive(Debug)]
pub struct Asked {
    /// Who asks: its VM's id, as it was told.
    pub vm: String,
    /// What for.
    pub what: request::What,
    /// Where the answer goes.
    pub stream: Stream,
}

/// A session that a guest has taken up.
#[derive(Debug)]
pub struct Session {
    /// Its streams.
    pub link: Link,
    /// What the guest said of itself.
    pub welcome: Welcome,
    /// Since when.
    pub since: Instant,
    /// Its clock.
    pub clock: Arc<Clock>,
}

/// The most steps that failed which are told of one guest.
const MOST_STEPS: usize = 32;
/// The most that is told of one of them, characters.
const LONGEST_STEP: usize = 400;

impl Session {
    /// What failed of becoming who it is, as far as it is known: by name, with the reason. It is a guest's word: cut to a measure.
    pub fn failed_steps(&self) -> Vec<String> {
        let one =
            |failed: &Failed| shown(&format!("{}: {}", failed.step, failed.reason), LONGEST_STEP);
        self.welcome
            .failed
            .iter()
            .take(MOST_STEPS)
            .map(one)
            .collect()
    }
}

/// What a guest says, fit to be shown and kept: without what would command a terminal, and no longer than so many characters.
pub fn shown(text: &str, most: usize) -> String {
    let fit = text.chars().filter(|c| !c.is_control());
    fit.take(most).collect()
}

/// How it is with a guest's agent.
#[derive(Debug, Clone, Default)]
pub enum Contact {
    /// It has not answered.
    #[default]
    Silent,
    /// It answers.
    Speaking(Arc<Session>),
    /// It is QEMU's, and answers.
    Qemu(Arc<Qemu>),
    /// It does not do as the protocol says: why.
    Unsound(String),
}

/// The agent of one VM's guest.
#[derive(Debug, Clone)]
pub struct Guest {
    line: Line,
    identity: watch::Sender<Option<Arc<Introduction>>>,
    contact: watch::Sender<Contact>,
}

/// Who a guest is, and which agent it has.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// Who.
    pub identity: Identity,
    /// Whether its agent is QEMU's, which becomes nobody.
    pub is_qemu: bool,
}

/// A guest's agent cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// It does not answer.
    #[error("the guest's agent does not answer")]
    Silent,
    /// It does not do as the protocol says.
    #[error("the guest's agent is not sound: {0}")]
    Unsound(String),
    /// It is QEMU's, which cannot do that.
    #[error("the guest's agent is QEMU's, which cannot do that: {0}")]
    Unable(&'static str),
    /// The request could not be begun, or was broken off.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// What the task of a guest's agent works with.
#[derive(Debug)]
pub struct Ends {
    connections: mpsc::Receiver<UnixStream>,
    identity: watch::Receiver<Option<Arc<Introduction>>>,
    contact: watch::Sender<Contact>,
    becoming: Becoming,
}

impl Guest {
    /// One that has not been heard of, and what its task works with: see [`session::run`].
    pub fn new(becoming: Becoming) -> (Self, Ends) {
        let (line, connections) = line();
        let guest = Self {
            line,
            identity: watch::Sender::new(None),
            contact: watch::Sender::new(Contact::Silent),
        };
        let ends = Ends {
            connections,
            identity: guest.identity.subscribe(),
            contact: guest.contact.clone(),
            becoming,
        };
        (guest, ends)
    }

    /// Where its processes' connections go.
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Says who the guest is: it is greeted with that from now on. Said again, it does nothing.
    pub fn introduce(&self, introduction: Introduction) {
        let same = self.is_known_as(&introduction.identity.incarnation);
        if !same {
            self.identity.send_replace(Some(Arc::new(introduction)));
        }
    }

    /// Whether it has been said that it is this incarnation.
    pub fn is_known_as(&self, incarnation: &str) -> bool {
        let known = self.identity.borrow();
        known
            .as_ref()
            .is_some_and(|known| known.identity.incarnation == incarnation)
    }

    /// How it is with it.
    pub fn contact(&self) -> Contact {
        self.contact.borrow().clone()
    }

    /// Becomes another whenever something about it changes.
    pub fn watch(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }

    /// Waits until it answers as this incarnation: since when it does, and what failed of becoming it. `None` when the deadline passes
    /// first.
    pub async fn became(
        &self,
        incarnation: &str,
        deadline: Instant,
    ) -> Option<(Instant, Vec<String>)> {
        let mut contact = self.contact.subscribe();
        let is_it = |contact: &Contact| match contact {
            Contact::Speaking(session) if session.welcome.incarnation == incarnation => {
                Some((session.since, session.failed_steps()))
            }
            Contact::Qemu(qemu) if qemu.incarnation == incarnation => {
                Some((qemu.since, qemu.failed.clone()))
            }
            _ => None,
        };
        let became = contact.wait_for(|contact| is_it(contact).is_some());
        match timeout_at(deadline, became).await {
            Ok(Ok(contact)) => is_it(&contact),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// The session that goes on.
    pub fn session(&self) -> Result<Arc<Session>, Unheard> {
        match &*self.contact.borrow() {
            Contact::Speaking(session) => Ok(Arc::clone(session)),
            Contact::Silent => Err(Unheard::Silent),
            Contact::Qemu(_) => Err(Unheard::Unable("it has no streams")),
            Contact::Unsound(why) => Err(Unheard::Unsound(why.clone())),
        }
    }

    /// Begins a stream.
    pub fn open(&self, what: request::What) -> Result<Stream, Unheard> {
        Ok(self.session()?.link.open(&Request::from(what))?)
    }

    /// Tells it what time it is: it stood still. Nothing when it does not answer: it is told when it does.
    pub fn tell_time(&self) {
        match &*self.contact.borrow() {
            Contact::Speaking(session) => {
                session.link.note(&Note {
                    what: Some(note::What::ClockNs(now_ns())),
                });
                session.clock.was_told();
            }
            Contact::Qemu(qemu) => qemu.tell_time(),
            Contact::Silent | Contact::Unsound(_) => {}
        }
    }

    /// Whether its agent answers, whichever it is.
    pub fn answers(&self) -> bool {
        matches!(
            &*self.contact.borrow(),
            Contact::Speaking(_) | Contact::Qemu(_)
        )
    }
}

/// Connects to a port of a guest. Returns once the connection is made.
pub async fn connect(guest: &Guest, host: &str, port: u32) -> Result<Stream, Unheard> {
    let forward = Forward {
        host: host.to_owned(),
        port,
    };
    let stream = guest.open(request::What::Forward(forward))?;
    match stream.hear::<Answer>().await? {
        Some(answer) if answer.error.is_empty() => Ok(stream),
        Some(answer) => {
            let why = shown(&answer.error, LONGEST_STEP);
            Err(Broken::Failed(format!("port {port} of the guest: {why}")).into())
        }
        None => Err(Broken::Closed.into()),
    }
}

/// The host's clock: nanoseconds since the epoch.
fn now_ns() -> u64 {
    // A clock before 1970 counts as 1970.
    let now: Duration = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64
}

pub use self::{
    becoming::Becoming,
    clock::Clock,
    look::look,
    qemu::{MOST_INPUT, Qemu, Ran},
    session::run,
};
