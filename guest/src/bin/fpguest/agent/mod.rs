//! `fpguest agent`: the guest's end of the channel. It becomes who the host says it is, and does what is asked through it: by the host
//! ([`exec`], [`files`], [`forward`], [`look`]) and by programs of the guest ([`local`]).

mod exec;
mod files;
mod forward;
mod identity;
mod kernel;
pub mod local;
mod look;
mod port;
mod settle;
mod terminal;
mod users;

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fp_guest::channel::{
    PORT,
    frame::{Frame, Kind},
    link::{Link, Stream, Wire},
    message::{
        Clock, Failed, Hello, Identity, NEWEST, Note, OLDEST, Origin, Request, Settle, Settled,
        Welcome, note, request,
    },
    mux::{Broken, Came, Side},
};
use prost::Message as _;
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

use self::{
    identity::{Root, Tools},
    port::Port,
};

/// How long until the port is looked for again: its driver may come later than this program.
const PORT_PAUSE: Duration = Duration::from_millis(200);

/// What the parts of the agent have in common.
#[derive(Debug)]
struct Agent {
    root: Root,
    image: Image,
    me: Mutex<Me>,
    /// The session that goes on.
    link: watch::Sender<Option<Link>>,
    /// Who this guest is, for those who want to know when it becomes somebody else.
    identity: watch::Sender<Option<Arc<Identity>>>,
}

/// What is the same in all forks, looked up once: a greeting is answered without a file being opened.
#[derive(Debug)]
struct Image {
    os: String,
    kernel: String,
    wants_host_keys: bool,
}

impl Image {
    fn of(root: &Root) -> Self {
        Self {
            os: os_name(root),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            wants_host_keys: identity::wants_host_keys(root),
        }
    }
}

/// Who this guest is.
#[derive(Debug, Default)]
struct Me {
    /// What it becomes somebody with.
    tools: Tools,
    /// What it has become, and what of that failed.
    became: Option<(String, Vec<Failed>)>,
    /// Whether all that follows on that is done.
    settled: bool,
    /// Those who wait to find out that they are in a child, by their requests.
    forks: BTreeMap<String, oneshot::Sender<Arc<Identity>>>,
    /// Whether it wants SSH host keys for that.
    wants_host_keys: bool,
    /// Who waits for the host's word to do it.
    settle: Option<oneshot::Sender<Settle>>,
}

impl Agent {
    fn new(root: Root) -> Self {
        Self {
            image: Image::of(&root),
            root,
            me: Mutex::default(),
            link: watch::Sender::new(None),
            identity: watch::Sender::new(None),
        }
    }

    fn me(&self) -> MutexGuard<'_, Me> {
        self.me.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is to run in this guest.
pub fn is_wanted() -> bool {
    // Without one nobody has said that it is not to run.
    wants_agent(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Whether the kernel's command line lets it run: not with `fp.agent=off`, nor where another program has its port.
fn wants_agent(command_line: &str) -> bool {
    !command_line
        .split_whitespace()
        .any(|word| matches!(word, "fp.agent=off" | "fp.echo") || word.starts_with("fp.hostile="))
}

/// Serves until it cannot.
///
/// # Errors
/// The port, or the socket for programs, cannot be had.
pub fn run() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let agent = Arc::new(Agent::new(Root::default()));
        local::listen(&agent)?;
        let port = find_port().await?;
        serve(&agent, Wire::new(port)).await
    })
}

async fn find_port() -> io::Result<Port> {
    loop {
        match Port::open(PORT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => sleep(PORT_PAUSE).await,
            other => return other,
        }
    }
}

async fn serve(agent: &Arc<Agent>, mut wire: Wire<Port>) -> io::Result<()> {
    let mut link: Option<Link> = None;
    // A host that spoke to this agent's predecessor does not know that it is gone.
    let _short_enough = wire.send(&Frame::begun());
    loop {
        // What is no frame was cut off by a fork, or comes from nobody that could be told.
        let frame = match wire.next(link.as_ref()).await? {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => continue,
            None => {
                lose(agent, &mut wire, link.take(), "the host's agent is gone");
                continue;
            }
        };
        if frame.kind == Kind::Hello {
            greet(agent, &mut wire, &mut link, &frame);
            continue;
        }
        let Some(current) = link.as_ref().filter(|link| link.session() == frame.session) else {
            continue;
        };
        if frame.kind == Kind::Note {
            hear(agent, current, frame.payload);
            continue;
        }
        match current.receive(frame) {
            Ok(Came::Handled) => {}
            Ok(Came::Opened { stream, request }) => {
                let stream = current.stream(stream);
                tokio::spawn(answer(Arc::clone(agent), stream, request));
            }
            Err(violation) => lose(agent, &mut wire, link.take(), &violation.to_string()),
        }
    }
}

/// Gives a session up, and has the host begin another. It may think that this one goes on, too where its agent seems to be gone: the
/// kernel tells of one that goes beside the data of the one that came then, and maybe after it.
fn lose(agent: &Agent, wire: &mut Wire<Port>, link: Option<Link>, why: &str) {
    if let Some(link) = link {
        link.lose(&Broken::Lost(why.to_owned()));
        agent.link.send_replace(None);
        // A few bytes.
        let _short_enough = wire.send(&Frame::begun());
    }
}

/// Takes a session up: becomes who the host says this is, and answers.
fn greet(agent: &Arc<Agent>, wire: &mut Wire<Port>, link: &mut Option<Link>, frame: &Frame) {
    let Ok(hello) = Hello::decode(frame.payload.clone()) else {
        return;
    };
    let begun = Instant::now();
    let version = NEWEST.min(hello.newest);
    let speaks = version >= OLDEST.max(hello.oldest);
    let is_new = link
        .as_ref()
        .is_none_or(|link| link.session() != frame.session);
    let mut was_forked = false;
    if let (Some(identity), true) = (&hello.identity, speaks) {
        was_forked = take_identity(agent, &hello, identity);
    }
    if is_new {
        if let Some(old) = link.take() {
            old.lose(&if was_forked {
                Broken::Forked
            } else {
                Broken::Lost("the host's agent was started anew".to_owned())
            });
        }
        wire.begin_anew();
        if speaks {
            *link = Some(Link::new(Side::Guest, frame.session));
        }
        agent.link.send_replace(link.clone());
    }
    let me = agent.me();
    let (incarnation, failed) = me.became.clone().unwrap_or_default();
    let welcome = Welcome {
        version: if speaks { version } else { 0 },
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation,
        failed,
        took_us: begun.elapsed().as_micros() as u64,
        os: agent.image.os.clone(),
        kernel: agent.image.kernel.clone(),
        wants_host_keys: me.wants_host_keys,
        settled: me.settled,
    };
    let answer = Frame {
        session: frame.session,
        stream: 0,
        kind: Kind::Welcome,
        lane: 0,
        payload: welcome.encode_to_vec().into(),
    };
    // It is a few hundred bytes.
    let _short_enough = wire.send(&answer);
}

fn os_name(root: &Root) -> String {
    let text = fs::read_to_string(root.file("etc/os-release")).unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or_default().trim_matches('"').to_owned()
}

/// Becomes somebody, unless it is that already. Says whether it is another VM than before.
fn take_identity(agent: &Arc<Agent>, hello: &Hello, identity: &Identity) -> bool {
    let identity = Arc::new(identity.clone());
    let before = agent
        .me()
        .became
        .clone()
        .map(|(incarnation, _)| incarnation);
    // An agent that was started anew in its guest knows only this much.
    let before = before.or_else(|| identity::remembered(&agent.root));
    let is_news = before.as_ref() != Some(&identity.incarnation);
    {
        let mut me = agent.me();
        if is_news {
            let failed = me.tools.become_it(hello, &identity);
            me.became = Some((identity.incarnation.clone(), failed));
            me.settled = false;
        } else if me.became.is_none() {
            me.became = Some((identity.incarnation.clone(), Vec::new()));
            me.settled = identity::was_settled(&agent.root, &identity.incarnation);
        }
        if is_news && let Some(waiting) = me.forks.remove(&identity.asked_for) {
            // Whoever asked may have gone.
            let _gone = waiting.send(Arc::clone(&identity));
        }
        if is_news && before.is_some() {
            // Who waits for another fork asked for it in the machine that this one was: it is not asked for here as well, even where the
            // request had not gone out yet.
            me.forks.clear();
        }
    }
    let known = agent.identity.borrow().clone();
    let secrets_again = known
        .as_ref()
        .is_none_or(|known| known.incarnation != identity.incarnation || known.secrets.is_empty());
    if secrets_again {
        agent.identity.send_replace(Some(Arc::clone(&identity)));
    }
    if !agent.me().settled && (is_news || known.is_none()) {
        // The same VM at another moment, or booted anew, keeps its own.
        let is_another = identity.origin() == Origin::Fork;
        let (sender, word) = oneshot::channel();
        {
            let mut me = agent.me();
            me.wants_host_keys = is_another && agent.image.wants_host_keys;
            me.settle = Some(sender);
        }
        tokio::spawn(settle(Arc::clone(agent), identity, word));
    }
    is_news && before.is_some()
}

/// Does what follows on becoming somebody when the host says so, and tells of it.
async fn settle(agent: Arc<Agent>, identity: Arc<Identity>, word: oneshot::Receiver<Settle>) {
    let Ok(word) = word.await else {
        // It is somebody else by now.
        return;
    };
    let wants_keys = agent.me().wants_host_keys;
    let mut failed = settle::settle(&agent.root, &identity, wants_keys, word).await;
    if let Err(error) = identity::remember_settled(&agent.root, &identity.incarnation) {
        failed.push(Failed {
            step: "settled".to_owned(),
            reason: error.to_string(),
        });
    }
    {
        let mut me = agent.me();
        match &mut me.became {
            Some((incarnation, all)) if *incarnation == identity.incarnation => {
                all.extend(failed.clone());
                me.settled = true;
                me.wants_host_keys = false;
            }
            // It is somebody else by now.
            _ => return,
        }
    }
    let link = agent.link.borrow().clone();
    if let Some(link) = link {
        link.note(&Note {
            what: Some(note::What::Settled(Settled {
                incarnation: identity.incarnation.clone(),
                failed,
            })),
        });
    }
}

fn hear(agent: &Agent, link: &Link, payload: Bytes) {
    let tell = |set: io::Result<()>| {
        if let Err(error) = set {
            eprintln!("fpguest agent: the clock cannot be set: {error}");
        }
    };
    match Note::decode(payload).map(|note| note.what) {
        Ok(Some(note::What::ClockNs(ns))) => tell(identity::set_clock(ns)),
        Ok(Some(note::What::ShiftClockNs(ns))) => tell(kernel::shift_clock(ns)),
        Ok(Some(note::What::AskClock(ask))) => {
            let clock = Clock {
                ask,
                ns: identity::clock_ns(),
            };
            link.note(&Note {
                what: Some(note::What::Clock(clock)),
            });
        }
        Ok(Some(note::What::Settle(settle))) => {
            // Said again, it is being done.
            if let Some(waiting) = agent.me().settle.take() {
                // Whoever waits does so to the end.
                let _gone = waiting.send(settle);
            }
        }
        // Of a newer host.
        Ok(Some(note::What::Settled(_) | note::What::Clock(_)) | None) | Err(_) => {}
    }
}

/// Does what the host asks for.
async fn answer(agent: Arc<Agent>, stream: Stream, request: Bytes) {
    let what = match Request::decode(request) {
        Ok(request) => request.what,
        Err(error) => return stream.fail(format!("the request cannot be read: {error}")),
    };
    match what {
        Some(request::What::Exec(exec)) => exec::run(stream, exec).await,
        Some(request::What::Send(send)) => files::send(stream, send).await,
        Some(request::What::Receive(receive)) => files::receive(stream, receive).await,
        Some(request::What::Forward(forward)) => forward::run(stream, forward).await,
        Some(request::What::Look(_)) => match look::look() {
            Ok(looks) => {
                if stream.tell(&looks).await.is_ok() {
                    stream.close();
                }
            }
            Err(error) => stream.fail(error.to_string()),
        },
        _ => {
            let version = env!("CARGO_PKG_VERSION");
            stream.fail(format!(
                "the guest's agent ({version}) does not know this request"
            ));
        }
    }
    drop(agent);
}

#[cfg(test)]
mod tests {
    use super::wants_agent;

    #[test]
    fn the_command_line_keeps_it_off() {
        for (line, wanted) in [
            ("console=ttyS0 quiet", true),
            ("quiet fp.agent=off", false),
            ("fp.agent=off\n", false),
            ("fp.echo fp.pulse", false),
            ("fp.hostile=zeros quiet", false),
            ("fp.agent=on xfp.echo fp.echoes", true),
        ] {
            assert_eq!(wants_agent(line), wanted, "{line}");
        }
    }
}
