//! Incoming connections that know who is at the other end. The daemon hands the streams made here to tonic's
//! `serve_with_incoming_shutdown`, where a request's extensions then hold a [`Peer`].

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    Stream, StreamExt as _,
    future::{AbortHandle, BoxFuture, abortable},
    stream::{self, FuturesUnordered},
};
use rustls::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;
use tracing::warn;

use super::server::{PeerRole, ServerTls};
use crate::trust::replacement::Shown;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// So many handshakes are under way at most. For one more, another is given up: whoever opens connections and says nothing must not
/// keep others out.
const MAX_HANDSHAKES: usize = 1024;
/// After a failed `accept` (out of descriptors, mostly): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of the connection that a request came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it may do.
    pub role: PeerRole,
    /// What its certificate rests on; `None` for a token, for the Unix socket and from within the agent.
    pub shown: Option<Shown>,
    /// Where it is; `None` for the Unix socket and from within the agent.
    pub address: Option<SocketAddr>,
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    peer: Peer,
}

#[derive(Debug)]
enum Io {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
    Within(DuplexStream),
}

impl Connection {
    /// One from within the agent: whoever makes it says whose calls come through it.
    pub(super) fn within(stream: DuplexStream, role: PeerRole) -> Self {
        Self {
            io: Io::Within(stream),
            peer: Peer {
                role,
                shown: None,
                address: None,
            },
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Connections over TCP that have gone through a TLS handshake. Handshakes run side by side; one that fails, takes more than 10
/// seconds or has to make room is dropped, and `refused` is told from where it came and why. The stream does not end.
pub fn tls_incoming(
    listener: TcpListener,
    tls: ServerTls,
    refused: impl Fn(SocketAddr, &str) + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let accepting = Accepting {
        listener,
        tls,
        refused: Arc::new(refused),
        handshakes: FuturesUnordered::new(),
        under_way: BTreeMap::new(),
        next: 0,
    };
    stream::unfold(accepting, |mut accepting| async move {
        let connection = accepting.next().await;
        Some((Ok(connection), accepting))
    })
}

type Refused = dyn Fn(SocketAddr, &str) + Send + Sync;

struct Accepting {
    listener: TcpListener,
    tls: ServerTls,
    refused: Arc<Refused>,
    handshakes: FuturesUnordered<BoxFuture<'static, (u64, Option<Connection>)>>,
    /// Those of them that are not given up, the oldest first.
    under_way: BTreeMap<u64, (SocketAddr, AbortHandle)>,
    /// The number of the next.
    next: u64,
}

impl Accepting {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                Some((number, done)) = self.handshakes.next() => {
                    self.under_way.remove(&number);
                    if let Some(connection) = done {
                        return connection;
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => self.begin(stream, address),
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn begin(&mut self, stream: TcpStream, address: SocketAddr) {
        if self.under_way.len() >= MAX_HANDSHAKES {
            self.make_room();
        }
        let number = self.next;
        self.next += 1;
        let (tls, refused) = (self.tls.clone(), Arc::clone(&self.refused));
        let (handshake, abort) = abortable(handshake(stream, address, tls, refused));
        self.under_way.insert(number, (address, abort));
        self.handshakes.push(Box::pin(async move {
            (number, handshake.await.unwrap_or_default())
        }));
    }

    /// Gives up the oldest handshake of who has most of them under way.
    fn make_room(&mut self) {
        let mut counts = BTreeMap::new();
        for (address, _) in self.under_way.values() {
            *counts.entry(origin(address)).or_insert(0_usize) += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        let oldest = self.under_way.iter().find_map(|(number, (address, _))| {
            (Some(origin(address)) == most.map(|(origin, _)| origin)).then_some(*number)
        });
        if let Some((address, abort)) = oldest.and_then(|number| self.under_way.remove(&number)) {
            abort.abort();
            (self.refused)(address, "it said nothing, and too many others do so too");
        }
    }
}

/// Whoever has one address of IPv6 has 2^64 of them.
fn origin(address: &SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    tls: ServerTls,
    refused: Arc<Refused>,
) -> Option<Connection> {
    match time::timeout(HANDSHAKE_TIMEOUT, identify(stream, &tls)).await {
        Ok(Ok((io, (role, shown)))) => Some(Connection {
            io,
            peer: Peer {
                role,
                shown,
                address: Some(address),
            },
        }),
        Ok(Err(error)) => {
            refused(address, &error.to_string());
            None
        }
        Err(_) => {
            refused(address, "the TLS handshake took too long");
            None
        }
    }
}

async fn identify(
    stream: TcpStream,
    tls: &ServerTls,
) -> io::Result<(Io, (PeerRole, Option<Shown>))> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(tls.config.clone()).accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let now = tls.time.current_time().ok_or(Error::FailedToGetCurrentTime);
    let who = now
        .and_then(|now| tls.verifier.role(chain, now))
        .map_err(io::Error::other)?;
    Ok((Io::Tls(Box::new(stream)), who))
}

/// Connections over the Unix socket: whoever may open it is an administrator.
pub fn unix_incoming(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> + Send {
    stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let peer = Peer {
                        role: PeerRole::Local,
                        shown: None,
                        address: None,
                    };
                    return Some((
                        Ok(Connection {
                            io: Io::Unix(stream),
                            peer,
                        }),
                        listener,
                    ));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection on the Unix socket");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Makes the Unix socket, with mode 0600 from its first moment, and its folder when it is missing. One that a dead agent
/// left behind is replaced.
///
/// # Errors
/// `AddrInUse` when another agent listens there.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent listens there",
            ));
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) => {}
        Err(error) => return Err(error),
    }
    // Bound under another name and moved: nobody can connect before the mode is set.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temporary, path)?;
    Ok(listener)
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
            Io::Unix(io) => Pin::new(io).poll_read(cx, buf),
            Io::Within(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
            Io::Unix(io) => Pin::new(io).poll_write(cx, buf),
            Io::Within(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Unix(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Within(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tls(io) => io.is_write_vectored(),
            Io::Unix(io) => io.is_write_vectored(),
            Io::Within(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
            Io::Unix(io) => Pin::new(io).poll_flush(cx),
            Io::Within(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Io::Unix(io) => Pin::new(io).poll_shutdown(cx),
            Io::Within(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
