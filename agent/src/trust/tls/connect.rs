//! gRPC channels to agents, over TLS or the Unix socket. Used by the raft transport, the peer calls and the client.

use std::{error::Error, io, path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpStream, UnixStream},
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// For resolving the name, connecting and the handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Chunks are 1 MiB: a few of them may be on their way.
pub(super) const WINDOWS: Windows = Windows {
    stream: 4 << 20,
    connection: 16 << 20,
};

/// How much may be on its way to whoever does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// In one call, bytes.
    pub stream: u32,
    /// In all calls of a connection, bytes.
    pub connection: u32,
}

/// For calls that are streams and may stand still for as long as they like: so many of them that one does not hold up another.
pub const STREAMS: Windows = Windows {
    stream: 256 << 10,
    connection: 1 << 30,
};

/// An agent, and how to reach it.
#[derive(Debug, Clone)]
pub enum Target {
    /// Over the network.
    Tls {
        /// HOST:PORT.
        address: String,
        /// The name its certificate must have.
        server_name: String,
        /// Whom to trust and what to show.
        config: Arc<ClientConfig>,
    },
    /// On this host.
    Unix(PathBuf),
}

/// Why there is no connection to an agent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("cannot connect to {target}")]
    Unreachable {
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// Nobody answered in time.
    #[error("no answer from {target} within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut {
        /// Where.
        target: String,
    },
    /// Whoever answers is not who is asked for.
    #[error("{target} does not prove that it belongs to the cluster")]
    Untrusted {
        /// Where.
        target: String,
        /// What is wrong with its certificate.
        #[source]
        source: Arc<io::Error>,
    },
    /// The agent does not accept what this side showed of itself.
    #[error("{target} refuses this certificate or token")]
    Refused {
        /// Where.
        target: String,
        /// Its alert.
        #[source]
        source: Arc<io::Error>,
    },
}

impl ConnectError {
    /// Finds the connection error in the causes of another one, such as a `tonic::Status` of a lazy channel.
    pub fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// Whether trying again is of no use: the two sides do not trust each other.
    pub fn is_about_trust(&self) -> bool {
        matches!(self, Self::Untrusted { .. } | Self::Refused { .. })
    }

    fn new(target: &str, source: io::Error) -> Self {
        let target = target.to_owned();
        let tls = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(_)) => Self::Refused {
                target,
                source: Arc::new(source),
            },
            Some(_) => Self::Untrusted {
                target,
                source: Arc::new(source),
            },
            None => Self::Unreachable {
                target,
                source: Arc::new(source),
            },
        }
    }
}

/// A channel that connects when it is first used, and again when its connection is lost. Cheap to clone.
///
/// Calls on it fail with `UNAVAILABLE` while there is no connection; [`ConnectError::within`] tells why.
pub fn channel(target: Target) -> Channel {
    channel_with(target, WINDOWS)
}

/// The same, with windows of the caller's choice.
pub fn channel_with(target: Target, windows: Windows) -> Channel {
    let endpoint = endpoint(windows);
    match target {
        Target::Tls {
            address,
            server_name,
            config,
        } => {
            let connector = service_fn(move |_| {
                let (address, name, config) =
                    (address.clone(), server_name.clone(), config.clone());
                async move { connect_tls(&address, &name, config).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector_lazy(connector)
        }
        Target::Unix(path) => {
            let connector = service_fn(move |_| {
                let path = path.clone();
                async move { connect_unix(path).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector_lazy(connector)
        }
    }
}

/// Checks that an agent can be reached: connects and shakes hands, then closes the connection.
pub async fn probe(target: &Target) -> Result<(), ConnectError> {
    match target {
        Target::Tls {
            address,
            server_name,
            config,
        } => connect_tls(address, server_name, config.clone())
            .await
            .map(drop),
        Target::Unix(path) => connect_unix(path.clone()).await.map(drop),
    }
}

pub(super) fn endpoint(windows: Windows) -> Endpoint {
    // The connector knows where to go. The name only fills the requests' `:authority`.
    Endpoint::from_static("http://agent.forkypig")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
}

async fn connect_tls(
    address: &str,
    server_name: &str,
    config: Arc<ClientConfig>,
) -> Result<BufReader<TlsStream<TcpStream>>, ConnectError> {
    let connecting = async {
        let name = ServerName::try_from(server_name.to_owned()).map_err(io::Error::other)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(TlsConnector::from(config).connect(name, stream).await?);
        // In TLS 1.3 the client is done before the server has looked at its certificate. The server's first bytes (it
        // speaks first in HTTP/2) or its alert tell whether it is accepted.
        if stream.fill_buf().await?.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection",
            ));
        }
        Ok(stream)
    };
    match time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected.map_err(|error| ConnectError::new(address, error)),
        Err(_) => Err(ConnectError::TimedOut {
            target: address.to_owned(),
        }),
    }
}

async fn connect_unix(path: PathBuf) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(&path)
        .await
        .map_err(|error| ConnectError::new(&format!("unix://{}", path.display()), error))
}
