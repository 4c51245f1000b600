//! The switch: the process `fpagent switch`. The agent starts it when the first member is to be plugged in; it ends when the last has gone.
//!
//! Frames are read and handed on one after the other, some from each member in turn. What a receiver has no room for is lost, as on any
//! network: so nothing is kept, and nobody waits for anybody.

use std::{cell::RefCell, io, mem::MaybeUninit, os::fd::OwnedFd, rc::Rc, time::Duration};

use anyhow::Context as _;
use qemu::sys::spawn::{become_user, given_listener};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
    sockopt::socket_type,
};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{UnixListener, UnixStream},
    runtime::Builder,
    sync::Notify,
    task::{JoinHandle, LocalSet, spawn_local, yield_now},
    time::timeout,
};

use super::{
    segments::Segments,
    wire::{LONGEST, ToAgent, ToSwitch},
};
use crate::beside::line;

/// Frames that are read of one member before it is the others' turn.
const BURST: usize = 32;
/// The longest frame: as much as QEMU takes.
const FRAME: usize = 4096 + 65_536;
/// How long it waits for the first member.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it stays when the last has gone: the next may be about to come.
const LINGER: Duration = Duration::from_secs(1);

/// A member's end.
struct Port {
    socket: Rc<UnixStream>,
    reads: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    segments: RefCell<Segments<Port>>,
    /// Rung when a member came or went.
    changed: Notify,
}

/// Hands on frames until nobody is plugged in. The agent gave us a listening socket.
pub fn run(user: Option<(u32, u32)>) -> anyhow::Result<()> {
    let listener = given_listener().context("no listening socket was given")?;
    if let Some((uid, gid)) = user {
        become_user(uid, gid).context("another user cannot be become")?;
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for anything")?;
    LocalSet::new().block_on(&runtime, serve(listener))
}

async fn serve(listener: std::os::unix::net::UnixListener) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let shared = Rc::new(Shared::default());
    let agents = Rc::clone(&shared);
    let listening = async move {
        loop {
            match listener.accept().await {
                Ok((agent, _)) => {
                    let shared = Rc::clone(&agents);
                    spawn_local(async move {
                        if let Err(error) = talk(&shared, agent).await {
                            eprintln!("an agent cannot be heard: {error}");
                        }
                    });
                }
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        error = listening => Err(error).context("agents cannot be heard"),
        () = unused(&shared) => Ok(()),
    }
}

/// Returns when nobody is plugged in, and nobody was for a while.
async fn unused(shared: &Shared) {
    let is_used = || !shared.segments.borrow().is_empty();
    let mut patience = PATIENCE;
    loop {
        while is_used() {
            shared.changed.notified().await;
            patience = LINGER;
        }
        let came = async {
            while !is_used() {
                shared.changed.notified().await;
            }
        };
        if timeout(patience, came).await.is_err() {
            return;
        }
    }
}

/// Serves an agent until it is gone.
async fn talk(shared: &Rc<Shared>, mut agent: UnixStream) -> io::Result<()> {
    let (mut said, mut sockets) = (Vec::new(), Vec::new());
    loop {
        let count = agent
            .async_io(Interest::READABLE, || hear(&agent, &mut said, &mut sockets))
            .await?;
        if count == 0 {
            return Ok(());
        }
        let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
            if said.len() > LONGEST {
                return Err(io::Error::other("it says too much at once"));
            }
            continue;
        };
        let message = serde_json::from_slice::<ToSwitch>(&said[..end]);
        said.drain(..=end);
        let problem = match (message, sockets.pop()) {
            (Ok(ToSwitch::Plug { segment, number }), Some(socket)) => {
                plug(shared, segment, number, socket).err()
            }
            (Ok(ToSwitch::Plug { .. }), None) => Some(io::Error::other("no socket came with it")),
            (Err(error), _) => Some(error.into()),
        };
        sockets.clear();
        let problem = problem.map(|error| error.to_string());
        agent.write_all(&line(&ToAgent::Done { problem })?).await?;
    }
}

/// Reads what has come of messages, and what came with them.
fn hear(agent: &UnixStream, said: &mut Vec<u8>, sockets: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; LONGEST];
    let heard = recvmsg(
        agent,
        &mut [io::IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            sockets.extend(files);
        }
    }
    said.extend_from_slice(&bytes[..heard.bytes]);
    Ok(heard.bytes)
}

/// Has a socket be a member's.
fn plug(shared: &Rc<Shared>, segment: String, number: u8, socket: OwnedFd) -> io::Result<()> {
    if socket_type(&socket)? != rustix::net::SocketType::SEQPACKET {
        return Err(io::Error::other("the socket is of another kind"));
    }
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    // By its type a stream of bytes, of which here only is asked when something can be read: packets are.
    let socket = Rc::new(UnixStream::from_std(socket)?);
    let (from, its) = (Rc::clone(shared), Rc::clone(&socket));
    let name = segment.clone();
    let reads = spawn_local(async move {
        read(&from, &name, number, &its).await;
        let is_it = |port: &Port| Rc::ptr_eq(&port.socket, &its);
        let mut segments = from.segments.borrow_mut();
        // Another one may have taken its place.
        if segments.get(&name, number).is_some_and(is_it) {
            segments.unplug(&name, number);
        }
        drop(segments);
        from.changed.notify_waiters();
    });
    let port = Port { socket, reads };
    let before = shared.segments.borrow_mut().plug(&segment, number, port);
    if let Some(before) = before {
        before.reads.abort();
    }
    shared.changed.notify_waiters();
    Ok(())
}

/// Hands on what a member sends, until its QEMU has ended.
async fn read(shared: &Shared, segment: &str, number: u8, socket: &UnixStream) {
    let mut frame = vec![0; FRAME];
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        for _ in 0..BURST {
            let received = socket.try_io(Interest::READABLE, || {
                Ok(recv(socket, &mut frame[..], flags)?)
            });
            match received {
                Ok((_, 0)) => return,
                // A longer one is told with its whole length.
                Ok((_, length)) => {
                    if let Some(frame) = frame.get(..length) {
                        hand_on(shared, segment, number, frame);
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    _ => return,
                },
            }
        }
        yield_now().await;
    }
}

fn hand_on(shared: &Shared, segment: &str, from: u8, frame: &[u8]) {
    for port in shared.segments.borrow().receivers(segment, from, frame) {
        // Who has no room, or has ended, does not get it.
        let _lost = send(
            &port.socket,
            frame,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use tokio::time::sleep;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn frame(to: u8, text: &str) -> Vec<u8> {
        let mut frame = guest::group::mac(to).to_vec();
        frame.resize(14, 0);
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    /// What has come, once nothing has for a while.
    async fn came(socket: &OwnedFd) -> Vec<String> {
        let mut all = Vec::new();
        let mut bytes = [0; 2000];
        for _ in 0..20 {
            sleep(Duration::from_millis(5)).await;
            while let Ok((_, length)) = recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
                if length == 0 {
                    all.push("end".to_owned());
                    return all;
                }
                all.push(String::from_utf8_lossy(&bytes[14..length]).into_owned());
            }
        }
        all
    }

    fn local(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn frames_reach_the_members_of_their_group_and_who_has_gone_is_forgotten() {
        local(async {
            let shared = Rc::new(Shared::default());
            let mut qemus = Vec::new();
            for (segment, number) in [("a", 1), ("a", 2), ("b", 1), ("b", 2)] {
                let (qemu, ours) = pair();
                plug(&shared, segment.to_owned(), number, ours).unwrap();
                qemus.push(qemu);
            }
            let write = |from: usize, frame: &[u8]| {
                send(&qemus[from], frame, SendFlags::NOSIGNAL).unwrap();
            };
            write(0, &frame(2, "to a2"));
            write(3, &frame(1, "to b1"));
            let mut to_all = frame(9, "to all");
            to_all[..6].fill(0xff);
            write(1, &to_all);
            write(2, &[0xff; 3]);
            assert_eq!(came(&qemus[0]).await, ["to all"]);
            assert_eq!(came(&qemus[1]).await, ["to a2"]);
            assert_eq!(came(&qemus[2]).await, ["to b1"]);
            assert!(came(&qemus[3]).await.is_empty());

            drop(qemus.pop());
            sleep(Duration::from_millis(50)).await;
            assert!(shared.segments.borrow().get("b", 2).is_none());
            drop(qemus);
            sleep(Duration::from_millis(50)).await;
            assert!(shared.segments.borrow().is_empty());
        });
    }

    #[test]
    fn one_that_does_not_read_holds_nobody_up_and_one_that_is_plugged_in_anew_is_its_successor() {
        local(async {
            let shared = Rc::new(Shared::default());
            let (sender, ours) = pair();
            plug(&shared, "a".to_owned(), 1, ours).unwrap();
            let (slow, ours) = pair();
            plug(&shared, "a".to_owned(), 2, ours).unwrap();
            let (other, ours) = pair();
            plug(&shared, "a".to_owned(), 3, ours).unwrap();
            for _ in 0..5_000 {
                let _full = send(&sender, &frame(2, "x"), SendFlags::NOSIGNAL);
                yield_now().await;
            }
            send(&sender, &frame(3, "past it"), SendFlags::NOSIGNAL).unwrap();
            assert_eq!(came(&other).await, ["past it"]);
            let (new, ours) = pair();
            plug(&shared, "a".to_owned(), 2, ours).unwrap();
            send(&sender, &frame(2, "anew"), SendFlags::NOSIGNAL).unwrap();
            assert_eq!(came(&new).await, ["anew"]);
            assert_eq!(came(&slow).await.last().unwrap(), "end");
        });
    }

    #[test]
    fn a_socket_of_another_kind_is_refused() {
        local(async {
            let shared = Rc::new(Shared::default());
            let flags = SocketFlags::CLOEXEC;
            let (stream, _other) =
                socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            assert!(plug(&shared, "a".to_owned(), 1, stream).is_err());
            assert!(shared.segments.borrow().is_empty());
        });
    }
}
