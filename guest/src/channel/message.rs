//! What is said over the channel, as Protocol Buffers: fields that an older side does not know are passed over, those that it does not
//! send are empty. A guest lives longer than its host's agent, and is newer in the next image.

mod files;

use std::{collections::BTreeMap, fmt};

use prost::{Message, Oneof};

pub use files::*;

/// The oldest form of the protocol that this version speaks.
pub const OLDEST: u32 = 1;
/// The newest.
pub const NEWEST: u32 = 1;

/// The host begins a session. Sent again until it is answered; the same one is answered alike.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// The oldest form that the host speaks.
    #[prost(uint32, tag = "1")]
    pub oldest: u32,
    /// The newest.
    #[prost(uint32, tag = "2")]
    pub newest: u32,
    /// The host agent's version.
    #[prost(string, tag = "3")]
    pub agent_version: String,
    /// Who the guest is.
    #[prost(message, optional, tag = "4")]
    pub identity: Option<Identity>,
    /// The host's clock when this was sent: nanoseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub clock_ns: u64,
    /// Random bytes that no other guest gets.
    #[prost(bytes = "vec", tag = "6")]
    pub entropy: Vec<u8>,
}

/// How a guest came to be as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Origin {
    /// It was booted.
    Boot = 0,
    /// It is a fork: what it was before, another one is.
    Fork = 1,
    /// It is the same VM as before, at an earlier moment.
    Reset = 2,
}

/// Who a guest is. It becomes that once for each incarnation.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct Identity {
    /// Names this VM since it was booted, forked or reset last.
    #[prost(string, tag = "1")]
    pub incarnation: String,
    /// How it came to be.
    #[prost(enumeration = "Origin", tag = "2")]
    pub origin: i32,
    /// The VM's name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The VM's id, which no other ever has.
    #[prost(string, tag = "4")]
    pub fork_id: String,
    /// For `/etc/machine-id`: 32 hexadecimal digits.
    #[prost(string, tag = "5")]
    pub machine_id: String,
    /// Its number among those that were forked together, from 0 on.
    #[prost(uint32, tag = "6")]
    pub index: u32,
    /// How many those are.
    #[prost(uint32, tag = "7")]
    pub count: u32,
    /// The name of the VM that it was forked from.
    #[prost(string, tag = "8")]
    pub parent: String,
    /// What was given with the request for the fork.
    #[prost(btree_map = "string, string", tag = "9")]
    pub settings: BTreeMap<String, String>,
    /// The same, for nobody else to see.
    #[prost(btree_map = "string, bytes", tag = "10")]
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// Secrets that were given with the request and that the host does not have any more.
    #[prost(bool, tag = "11")]
    pub secrets_lost: bool,
    /// Its network; absent without one.
    #[prost(message, optional, tag = "12")]
    pub network: Option<Network>,
    /// The guest's own request that it came of: [`Fork::request`]. Empty otherwise.
    #[prost(string, tag = "13")]
    pub asked_for: String,
    /// Its place on its group's network, where it is in one: that is no step of becoming somebody else, since all copies have the same.
    #[prost(message, optional, tag = "14")]
    pub group: Option<Network>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("incarnation", &self.incarnation)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How a guest is reached, and reaches others.
#[derive(Clone, PartialEq, Message)]
pub struct Network {
    /// Its network card's address: six bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub mac: Vec<u8>,
    /// Its IPv4 address.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Bits of the network's prefix.
    #[prost(uint32, tag = "3")]
    pub prefix: u32,
    /// Where everything else goes; empty for nowhere.
    #[prost(string, tag = "4")]
    pub gateway: String,
    /// Who knows names; empty for nobody.
    #[prost(string, tag = "5")]
    pub dns: String,
}

/// The guest takes a session up, having become who it is.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    /// The form that is spoken from here on; 0 when there is none that both speak.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The guest agent's version.
    #[prost(string, tag = "2")]
    pub agent_version: String,
    /// Who it is.
    #[prost(string, tag = "3")]
    pub incarnation: String,
    /// Steps of becoming that which failed.
    #[prost(message, repeated, tag = "4")]
    pub failed: Vec<Failed>,
    /// How long that took, microseconds by the guest's clock.
    #[prost(uint64, tag = "5")]
    pub took_us: u64,
    /// The operating system, such as "Debian GNU/Linux 12 (bookworm)".
    #[prost(string, tag = "6")]
    pub os: String,
    /// The kernel's release.
    #[prost(string, tag = "7")]
    pub kernel: String,
    /// Whether it wants SSH host keys, with the [`note::What::Settle`].
    #[prost(bool, tag = "8")]
    pub wants_host_keys: bool,
    /// Whether all that follows on becoming who it is (keys, hooks) is done.
    #[prost(bool, tag = "9")]
    pub settled: bool,
}

/// A step of becoming somebody failed.
#[derive(Clone, PartialEq, Message)]
pub struct Failed {
    /// Which.
    #[prost(string, tag = "1")]
    pub step: String,
    /// Why.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Something about a session.
#[derive(Clone, PartialEq, Message)]
pub struct Note {
    /// What.
    #[prost(oneof = "note::What", tags = "1, 2, 3, 4, 5, 6")]
    pub what: Option<note::What>,
}

/// What a [`Note`] says.
pub mod note {
    use super::{Clock, Oneof, Settle, Settled};

    /// See there.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum What {
        /// From the host: what time it is, in nanoseconds since the epoch. The guest stood still.
        #[prost(uint64, tag = "1")]
        ClockNs(u64),
        /// From the guest: what follows on becoming somebody is done.
        #[prost(message, tag = "2")]
        Settled(Settled),
        /// From the host: what follows on becoming somebody is to be done now.
        #[prost(message, tag = "3")]
        Settle(Settle),
        /// From the host: what time is it in the guest? With a number for the answer.
        #[prost(uint64, tag = "4")]
        AskClock(u64),
        /// From the guest: that time.
        #[prost(message, tag = "5")]
        Clock(Clock),
        /// From the host: the guest's clock is to be set forward by so many nanoseconds, or back. Unlike a time, this is right however
        /// long it takes to arrive.
        #[prost(sint64, tag = "6")]
        ShiftClockNs(i64),
    }
}

/// What time it is in the guest.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Clock {
    /// The number of the question.
    #[prost(uint64, tag = "1")]
    pub ask: u64,
    /// Nanoseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub ns: u64,
}

/// What follows on becoming somebody is to be done.
#[derive(Clone, PartialEq, Message)]
pub struct Settle {
    /// For a guest that wants some.
    #[prost(message, optional, tag = "1")]
    pub host_keys: Option<HostKeys>,
}

/// What follows on becoming somebody is done.
#[derive(Clone, PartialEq, Message)]
pub struct Settled {
    /// Who.
    #[prost(string, tag = "1")]
    pub incarnation: String,
    /// What of it failed.
    #[prost(message, repeated, tag = "2")]
    pub failed: Vec<Failed>,
}

/// An SSH host key.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct HostKeys {
    /// The private key in OpenSSH's form.
    #[prost(string, tag = "1")]
    pub ed25519: String,
    /// The public key in OpenSSH's form.
    #[prost(string, tag = "2")]
    pub ed25519_public: String,
}

impl fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKeys").finish_non_exhaustive()
    }
}

/// What a stream is begun with.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// What is asked for.
    #[prost(oneof = "request::What", tags = "1, 2, 3, 4, 5, 16, 17, 18")]
    pub what: Option<request::What>,
}

impl From<request::What> for Request {
    fn from(what: request::What) -> Self {
        Self { what: Some(what) }
    }
}

/// What a [`Request`] asks for.
pub mod request {
    use super::{Exec, Exit, Fork, Forward, Look, Oneof, Receive, Send, Wait};

    /// See there. Up to 15 the host asks, from 16 on the guest.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum What {
        /// Run a program. Lane 0 is its input, 1 its output, 2 its errors; messages are [`super::ToProgram`] and [`super::FromProgram`].
        #[prost(message, tag = "1")]
        Exec(Exec),
        /// Send files. Lane 0 is their content; messages are [`super::FromReceiver`] and [`super::FromSender`]. See [`crate::files`].
        #[prost(message, tag = "2")]
        Send(Send),
        /// Receive files. The same, the other way.
        #[prost(message, tag = "3")]
        Receive(Receive),
        /// Connect to a port of the guest. Lane 0 are the connection's bytes; the first message is an [`super::Answer`].
        #[prost(message, tag = "4")]
        Forward(Forward),
        /// Tell how the guest is: one [`super::Looks`].
        #[prost(message, tag = "5")]
        Look(Look),
        /// Fork this VM: one [`super::Forked`].
        #[prost(message, tag = "16")]
        Fork(Fork),
        /// End this VM: one [`super::Answer`], if it goes on.
        #[prost(message, tag = "17")]
        Exit(Exit),
        /// Tell how the VMs that this one forked ended: an [`super::Ended`] for each, as they do.
        #[prost(message, tag = "18")]
        Wait(Wait),
    }
}

/// Runs a program.
#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    /// Its name, looked up in `PATH`, and its arguments.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub argv: Vec<Vec<u8>>,
    /// Added to its environment: NAME=VALUE.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Its working directory; empty for the user's own.
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// Name or number of the user that it runs as; empty for root.
    #[prost(string, tag = "4")]
    pub user: String,
    /// With a terminal of this size: then its output and its errors are one.
    #[prost(message, optional, tag = "5")]
    pub terminal: Option<Size>,
    /// How long it may take, milliseconds; 0 for as long as it likes.
    #[prost(uint64, tag = "6")]
    pub timeout_ms: u64,
    /// Whether it has input; otherwise it reads an end at once.
    #[prost(bool, tag = "7")]
    pub input: bool,
}

/// A terminal's size.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Size {
    /// Lines.
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    /// Characters in a line.
    #[prost(uint32, tag = "2")]
    pub columns: u32,
}

/// Something is done to a program that runs.
#[derive(Clone, PartialEq, Message)]
pub struct ToProgram {
    /// Its terminal has another size.
    #[prost(message, optional, tag = "1")]
    pub size: Option<Size>,
    /// It is sent this signal, by Linux's number; 0 for none.
    #[prost(uint32, tag = "2")]
    pub signal: u32,
}

/// What became of a program.
#[derive(Clone, PartialEq, Message)]
pub struct FromProgram {
    /// How it ended. The streams' ends come before that.
    #[prost(oneof = "program::End", tags = "1, 2, 3, 4")]
    pub end: Option<program::End>,
    /// How long it ran, microseconds by the guest's clock.
    #[prost(uint64, tag = "5")]
    pub took_us: u64,
}

/// How a program ended.
pub mod program {
    use super::Oneof;

    /// See there.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum End {
        /// By itself, with this code.
        #[prost(int32, tag = "1")]
        Code(i32),
        /// By this signal.
        #[prost(int32, tag = "2")]
        Signal(i32),
        /// It was ended since it took too long.
        #[prost(bool, tag = "3")]
        TimedOut(bool),
        /// It could not be started: why.
        #[prost(string, tag = "4")]
        NotStarted(String),
    }
}

/// Whether something was done.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// Why not; empty when it was.
    #[prost(string, tag = "1")]
    pub error: String,
}

/// Connects to a port.
#[derive(Clone, PartialEq, Message)]
pub struct Forward {
    /// Where; empty for the guest itself.
    #[prost(string, tag = "1")]
    pub host: String,
    /// Which.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// Asks how the guest is.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Look {}

/// How a guest is.
#[derive(Clone, PartialEq, Message)]
pub struct Looks {
    /// Memory that it has, bytes.
    #[prost(uint64, tag = "1")]
    pub memory_total: u64,
    /// Memory that programs could still have, bytes.
    #[prost(uint64, tag = "2")]
    pub memory_available: u64,
    /// Its addresses but for its own loopback's, such as "10.0.2.15/24".
    #[prost(string, repeated, tag = "3")]
    pub addresses: Vec<String>,
    /// Its name for itself.
    #[prost(string, tag = "4")]
    pub hostname: String,
    /// Since it was booted, seconds.
    #[prost(uint64, tag = "5")]
    pub uptime_s: u64,
    /// Its clock: nanoseconds since the epoch.
    #[prost(uint64, tag = "6")]
    pub clock_ns: u64,
}

/// Forks the VM that asks.
#[derive(Clone, PartialEq, Message)]
pub struct Fork {
    /// How many.
    #[prost(uint32, tag = "1")]
    pub count: u32,
    /// Their name, or the beginning of it; empty for the parent's.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Names this request: sent again, it is the same, and a child is told that it came of it.
    #[prost(string, tag = "3")]
    pub request: String,
}

/// What came of a fork, for the parent.
#[derive(Clone, PartialEq, Message)]
pub struct Forked {
    /// Why there are none; empty when there are.
    #[prost(string, tag = "1")]
    pub error: String,
    /// The children.
    #[prost(message, repeated, tag = "2")]
    pub children: Vec<Child>,
}

/// A child.
#[derive(Clone, PartialEq, Message)]
pub struct Child {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its id.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Why it does not run; empty when it does.
    #[prost(string, tag = "3")]
    pub error: String,
}

/// Ends the VM that asks.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Exit {
    /// With this code.
    #[prost(int32, tag = "1")]
    pub code: i32,
}

/// Asks how children end.
#[derive(Clone, PartialEq, Message)]
pub struct Wait {
    /// Which, by name or id; all that this VM has forked by itself when empty.
    #[prost(string, repeated, tag = "1")]
    pub children: Vec<String>,
}

/// How a child ended.
#[derive(Clone, PartialEq, Message)]
pub struct Ended {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its id.
    #[prost(string, tag = "2")]
    pub id: String,
    /// The code that it ended with, where it did so by itself.
    #[prost(int32, optional, tag = "3")]
    pub code: Option<i32>,
    /// How it ended, for people.
    #[prost(string, tag = "4")]
    pub how: String,
    /// Why it cannot be told how the children end; empty when it can.
    #[prost(string, tag = "5")]
    pub error: String,
}
