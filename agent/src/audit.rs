//! The audit log: who asked for what, from where, and what became of it. A JSON object a line in `DATA/audit.log`, for the calls
//! that change something or reach into a guest, and for all that was refused. It is rotated by size. What calls carry (files,
//! programs' input, settings, secrets) is not in it: only what they are about.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use prost_types::Timestamp;
use serde::Serialize;

use crate::trust::{
    authority::unit_of,
    tls::{accept::Peer, server::PeerRole},
};

/// The file's name in the data directory.
pub const FILE: &str = "audit.log";
/// How large it may grow, bytes, before it is put aside.
const MOST_BYTES: u64 = 16 << 20;
/// How many of those are kept.
const KEPT: u32 = 4;
/// The most that is said of what a call is about, characters.
const LONGEST: usize = 200;
/// So many refused connections, and calls of nodes that may not, in a [`PERIOD`] are noted one by one: anybody can cause them, and they
/// must not push out what else is in the log. Of more, only how many there were.
const MOST_REFUSALS: u32 = 30;
/// See there.
const PERIOD: Duration = Duration::from_secs(60);

/// What became of a call.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The call: SERVICE/METHOD.
    pub call: &'a str,
    /// Who made it.
    pub peer: Option<&'a Peer>,
    /// The object that it is about; empty where that is not known.
    pub about: &'a str,
    /// What became of it.
    pub outcome: &'a str,
}

/// A line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    at: String,
    /// Who: a name, by its role.
    #[serde(skip_serializing_if = "String::is_empty")]
    who: String,
    /// On whose behalf, where that is not `who`.
    #[serde(skip_serializing_if = "str::is_empty")]
    owner: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    role: &'a str,
    /// The certificate's serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    /// HOST:PORT, or "local".
    from: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    call: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    about: String,
    outcome: &'a str,
}

/// The log of a node.
#[derive(Debug)]
pub struct Audit(Mutex<Log>);

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Refused connections and nodes: since when they are counted, and how many there were.
    refusals: (Instant, u32),
}

impl Audit {
    /// Goes on with the log in a data directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(FILE);
        let file = open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self(Mutex::new(Log {
            path,
            file,
            bytes,
            refusals: (Instant::now(), 0),
        })))
    }

    /// Notes what became of a call. What cannot be written is an error in the agent's own log: work is not held up by it.
    pub fn note(&self, entry: &Entry<'_>) {
        self.log().write(&line(entry));
    }

    /// Notes that a node was refused.
    pub fn refused_node(&self, entry: &Entry<'_>) {
        let mut log = self.log();
        if log.is_one_of_few() {
            log.write(&line(entry));
        }
    }

    /// Notes that a connection was refused.
    pub fn refused(&self, address: SocketAddr, why: &str) {
        let mut log = self.log();
        if log.is_one_of_few() {
            let why = format!("refused: {}", crate::guest::shown(why, LONGEST));
            log.write(&refusal(address.to_string(), &why));
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Counts a refusal, and tells whether it is to be noted by itself.
    fn is_one_of_few(&mut self) -> bool {
        let (since, count) = self.refusals;
        if since.elapsed() >= PERIOD {
            if count > MOST_REFUSALS {
                let more = format!(
                    "refused: {} more connections or calls",
                    count - MOST_REFUSALS
                );
                self.write(&refusal("many".to_owned(), &more));
            }
            self.refusals = (Instant::now(), 1);
        } else {
            self.refusals.1 += 1;
        }
        self.refusals.1 <= MOST_REFUSALS
    }

    fn write(&mut self, line: &Line<'_>) {
        let written = serde_json::to_vec(line)
            .map_err(io::Error::from)
            .and_then(|mut text| {
                text.push(b'\n');
                if self.bytes + text.len() as u64 > MOST_BYTES {
                    self.rotate()?;
                }
                // At once: lines of agents that follow on each other are whole.
                self.file.write_all(&text)?;
                self.bytes += text.len() as u64;
                Ok(())
            });
        if let Err(error) = written {
            tracing::error!(%error, path = %self.path.display(), "the audit log cannot be written");
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let old = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..KEPT).rev() {
            match fs::rename(old(number), old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, old(1))?;
        self.file = open(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn at() -> String {
    Timestamp::from(SystemTime::now()).to_string()
}

fn line<'a>(entry: &Entry<'a>) -> Line<'a> {
    let owner = match entry.peer.map(|peer| &peer.role) {
        Some(PeerRole::User(user)) if user.owner != user.name => &user.owner,
        _ => "",
    };
    let (who, role, certificate, from) = match entry.peer {
        Some(peer) => {
            let (who, role, certificate) = described(&peer.role);
            let from = peer.address.map(|address| address.to_string());
            let from = from.unwrap_or_else(|| "local".to_owned());
            (who, role, certificate, from)
        }
        None => (String::new(), "", None, "unknown".to_owned()),
    };
    Line {
        at: at(),
        who,
        owner,
        role,
        certificate,
        from,
        call: entry.call,
        about: crate::guest::shown(entry.about, LONGEST),
        outcome: entry.outcome,
    }
}

fn refusal(from: String, outcome: &str) -> Line<'_> {
    Line {
        at: at(),
        who: String::new(),
        owner: "",
        role: "",
        certificate: None,
        from,
        call: "",
        about: String::new(),
        outcome,
    }
}

/// Somebody's name, role and certificate.
fn described(role: &PeerRole) -> (String, &'static str, Option<String>) {
    match role {
        PeerRole::Node(id) => (id.to_string(), "node", None),
        PeerRole::User(user) => (
            user.name.clone(),
            unit_of(user.role),
            Some(user.certificate.to_string()),
        ),
        PeerRole::Joiner { .. } => (String::new(), "joiner", None),
        PeerRole::Local => (String::new(), "local", None),
    }
}

tokio::task_local! {
    /// What the call that is being answered is about.
    static ABOUT: Arc<OnceLock<String>>;
}

/// Answers a call, and gives what it turned out to be [`about`].
pub async fn during<T>(answering: impl Future<Output = T>) -> (String, T) {
    let subject = Arc::new(OnceLock::new());
    let answer = ABOUT.scope(Arc::clone(&subject), answering).await;
    let subject = subject.get().cloned();
    (subject.unwrap_or_default(), answer)
}

/// Says what the call that is being answered is about. The first word counts; outside of calls it is nobody's.
pub fn about(subject: impl FnOnce() -> String) {
    // Work that no call waits for is not audited.
    let _outside = ABOUT.try_with(|about| {
        about.get_or_init(subject);
    });
}

#[cfg(test)]
mod tests {
    use raft::state::{CertificateId, Role};
    use serde_json::Value;

    use super::*;
    use crate::trust::authority::User;

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        let parse = |line: &str| serde_json::from_str(line).unwrap();
        text.lines().map(parse).collect()
    }

    #[tokio::test]
    async fn a_line_says_who_asked_for_what_from_where_and_what_became_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(folder.path()).unwrap();
        let peer = Peer {
            role: PeerRole::User(User {
                name: "ann".to_owned(),
                owner: "team".to_owned(),
                role: Role::Operator,
                certificate: CertificateId(7),
                expires_at: u64::MAX,
            }),
            shown: None,
            address: Some("10.0.0.1:4000".parse().unwrap()),
        };
        about(|| unreachable!("no call is being answered"));
        let (subject, ()) = during(async {
            about(|| "vm web\u{1b}[2J".to_owned());
            about(|| "not this".to_owned());
        })
        .await;
        audit.note(&Entry {
            call: "forkypig.v1.VmService/DeleteVm",
            peer: Some(&peer),
            about: &subject,
            outcome: "ok",
        });
        let line = &lines(&folder.path().join(FILE))[0];
        for (field, value) in [
            ("who", "ann"),
            ("owner", "team"),
            ("role", "operator"),
            ("certificate", "00000000000000000000000007"),
            ("from", "10.0.0.1:4000"),
            ("call", "forkypig.v1.VmService/DeleteVm"),
            ("about", "vm web[2J"),
            ("outcome", "ok"),
        ] {
            assert_eq!(line[field], value, "{line}");
        }
    }

    #[test]
    fn many_refusals_are_counted_and_the_log_is_put_aside_when_it_is_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let audit = Audit::open(folder.path()).unwrap();
        let address = "10.0.0.1:4000".parse().unwrap();
        for _ in 0..100 {
            audit.refused(address, "no certificate");
        }
        assert_eq!(lines(&path).len(), MOST_REFUSALS as usize);
        audit.log().bytes = MOST_BYTES;
        for _ in 0..=KEPT {
            audit.log().bytes = MOST_BYTES;
            audit.note(&Entry {
                call: "x",
                peer: None,
                about: "",
                outcome: "ok",
            });
        }
        let aside = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!((aside, lines(&path).len()), (KEPT as usize + 1, 1));
    }
}
