//! The socket for programs of the guest: [`SOCKET`]. A request is a JSON object in a line, and so is each answer; `docs/guest-socket.md`
//! describes them. A program that asks for a fork is answered in parent and children, as fork(2) returns in both.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use base64::Engine as _;
use fp_guest::channel::{
    link::Link,
    message::{Answer, Ended, Exit, Fork, Forked, Identity, Origin, Request, Wait, request},
    mux::Broken,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
};

use super::Agent;

/// Where it is. Root's alone: whoever may use it may fork and end the machine.
pub const SOCKET: &str = "/run/forkypig/agent.sock";
/// The longest request.
const MOST: u64 = 64 << 10;

/// What a program is told that waited for its own fork when somebody else made one.
const FORKED_BY_OTHERS: &str = "this machine was forked or reset by somebody else; the fork that was asked for comes in the one that it was";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Ask {
    /// Fork this machine.
    Fork {
        /// How many.
        count: u32,
        /// What they are called.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        name: String,
    },
    /// End this machine.
    Exit {
        /// With this code.
        code: i32,
    },
    /// Tell how children end.
    Wait {
        /// Which; all when empty.
        #[serde(default)]
        children: Vec<String>,
    },
    /// What was given with the request for this fork.
    Get {
        /// Under which name.
        key: String,
    },
    /// Who this machine is.
    Identity,
    /// The same, now and whenever that changes.
    Watch,
}

/// Begins to serve programs.
///
/// # Errors
/// The socket cannot be made.
pub(super) fn listen(agent: &Arc<Agent>) -> io::Result<()> {
    let path = Path::new(SOCKET);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(attend(Arc::clone(&agent), stream));
                }
                Err(error) => {
                    eprintln!("fpguest agent: a program cannot be heard: {error}");
                    tokio::time::sleep(super::PORT_PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

/// Answers one program after another request, until it goes.
async fn attend(agent: Arc<Agent>, stream: UnixStream) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        match (&mut reader).take(MOST).read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let answered = match serde_json::from_str(&line) {
            Ok(ask) => carry_out(&agent, ask, &mut reader, &mut writer).await,
            Err(error) => {
                refuse(&mut writer, &format!("the request cannot be read: {error}")).await
            }
        };
        if answered.is_err() {
            return;
        }
    }
}

type Reader = BufReader<OwnedReadHalf>;

async fn carry_out(
    agent: &Arc<Agent>,
    ask: Ask,
    reader: &mut Reader,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    match ask {
        Ask::Fork { count, name } => {
            let answer = fork(agent, count, name).await;
            say(writer, &answer).await
        }
        Ask::Exit { code } => {
            let error = match exit(agent, code).await {
                Ok(error) => error,
                Err(broken) => broken.to_string(),
            };
            refuse(writer, &error).await
        }
        Ask::Wait { children } => wait(agent, children, writer).await,
        Ask::Get { key } => match get(agent, &key) {
            Some(value) => say(writer, &value).await,
            None => {
                refuse(
                    writer,
                    &format!("nothing was given as {key:?} with the request for this fork"),
                )
                .await
            }
        },
        Ask::Identity => {
            let identity = agent.identity.borrow().clone();
            match identity {
                Some(identity) => say(writer, &describe(&identity)).await,
                None => refuse(writer, "the host has not said yet who this machine is").await,
            }
        }
        Ask::Watch => watch(agent, reader, writer).await,
    }
}

async fn say(writer: &mut OwnedWriteHalf, value: &Value) -> io::Result<()> {
    writer.write_all(format!("{value}\n").as_bytes()).await
}

async fn refuse(writer: &mut OwnedWriteHalf, error: &str) -> io::Result<()> {
    say(writer, &json!({ "error": error })).await
}

fn describe(identity: &Identity) -> Value {
    json!({
        "origin": match identity.origin() {
            Origin::Boot => "boot",
            Origin::Fork => "fork",
            Origin::Reset => "reset",
        },
        "name": identity.name,
        "forkId": identity.fork_id,
        "index": identity.index,
        "count": identity.count,
        "parent": identity.parent,
    })
}

fn get(agent: &Agent, key: &str) -> Option<Value> {
    let identity = agent.identity.borrow().clone()?;
    if let Some(value) = identity.settings.get(key) {
        return Some(json!({ "value": value }));
    }
    let secret = identity.secrets.get(key)?;
    Some(match std::str::from_utf8(secret) {
        Ok(text) => json!({ "value": text }),
        Err(_) => json!({ "base64": base64::engine::general_purpose::STANDARD.encode(secret) }),
    })
}

async fn watch(agent: &Agent, reader: &mut Reader, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let mut identity = agent.identity.subscribe();
    loop {
        let now = identity.borrow_and_update().clone();
        if let Some(identity) = now {
            say(writer, &describe(&identity)).await?;
        }
        tokio::select! {
            changed = identity.changed() => if changed.is_err() { return Ok(()) },
            // Nothing is asked in the middle of this: it is the program's end.
            _ended = reader.fill_buf() => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The session that goes on, waited for when there is none.
async fn link(agent: &Agent) -> Result<Link, Broken> {
    let mut link = agent.link.subscribe();
    let there = link.wait_for(Option::is_some).await;
    let there = there.ok().and_then(|link| link.clone());
    there.ok_or_else(|| Broken::Lost("this agent ends".to_owned()))
}

async fn exit(agent: &Agent, code: i32) -> Result<String, Broken> {
    let request = Request::from(request::What::Exit(Exit { code }));
    let stream = link(agent).await?.open(&request)?;
    // Where it works there is no answer.
    Ok(match stream.hear::<Answer>().await? {
        Some(answer) => answer.error,
        None => "the host did not say why this machine goes on".to_owned(),
    })
}

async fn wait(agent: &Agent, children: Vec<String>, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let request = Request::from(request::What::Wait(Wait { children }));
    let opened = match link(agent).await {
        Ok(link) => link.open(&request),
        Err(broken) => Err(broken),
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(broken) => return refuse(writer, &broken.to_string()).await,
    };
    loop {
        match stream.hear::<Ended>().await {
            Ok(Some(ended)) if ended.error.is_empty() => {
                let told = json!({
                    "name": ended.name,
                    "id": ended.id,
                    "code": ended.code,
                    "how": ended.how,
                });
                say(writer, &told).await?;
            }
            Ok(Some(ended)) => return refuse(writer, &ended.error).await,
            Ok(None) => return say(writer, &json!({ "done": true })).await,
            Err(broken) => return refuse(writer, &broken.to_string()).await,
        }
    }
}

/// What is waited for goes on in parent and children: each finds out which it is.
async fn fork(agent: &Agent, count: u32, name: String) -> Value {
    let mut bytes = [0; 14];
    if let Err(error) = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        return json!({ "error": error.to_string() });
    }
    let request: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (sender, mut child) = oneshot::channel();
    agent.me().forks.insert(request.clone(), sender);
    let asked = Fork {
        count,
        name,
        request: request.clone(),
    };
    let answer = loop {
        tokio::select! {
            // In a child, both are true.
            biased;
            identity = &mut child => break match identity {
                Ok(identity) => {
                    let mut told = describe(&identity);
                    told["role"] = json!("child");
                    told
                }
                Err(_) => json!({ "error": FORKED_BY_OTHERS }),
            },
            forked = ask_for_fork(agent, &asked) => match forked {
                Ok(forked) if forked.error.is_empty() => {
                    let children: Vec<Value> = forked
                        .children
                        .iter()
                        .map(|child| json!({ "name": child.name, "id": child.id, "error": child.error }))
                        .collect();
                    break json!({ "role": "parent", "children": children });
                }
                Ok(forked) => break json!({ "error": forked.error }),
                // The same request is sent again, and is the same fork.
                Err(Broken::Lost(_)) => {}
                Err(broken) => break json!({ "error": broken.to_string() }),
            },
        }
    };
    agent.me().forks.remove(&request);
    answer
}

async fn ask_for_fork(agent: &Agent, asked: &Fork) -> Result<Forked, Broken> {
    let request = Request::from(request::What::Fork(asked.clone()));
    let stream = link(agent).await?.open(&request)?;
    let forked = stream.hear::<Forked>().await?;
    forked.ok_or_else(|| Broken::Failed("the host did not say what came of it".to_owned()))
}
