//! Connections of an agent to its own API, on somebody's behalf: calls on them go through the same checks as this one's own would.

use std::{io, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::{io::duplex, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tower::service_fn;

use super::{
    accept::Connection,
    connect::{WINDOWS, endpoint},
    server::PeerRole,
};

/// Connections that wait for being accepted.
const WAITING: usize = 16;
/// What may be on its way in a connection, bytes.
const BUFFER: usize = 256 << 10;

/// Makes connections. Whoever has it speaks for whomever it likes.
#[derive(Debug, Clone)]
pub struct Within(mpsc::Sender<io::Result<Connection>>);

/// Both ends: who makes connections, and those that were made, for a server.
pub fn within() -> (Within, ReceiverStream<io::Result<Connection>>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Within(sender), ReceiverStream::new(receiver))
}

impl Within {
    /// A channel whose calls are somebody's.
    pub fn channel(&self, role: PeerRole) -> Channel {
        let (sender, role) = (self.0.clone(), Arc::new(role));
        let connector = service_fn(move |_| {
            let (sender, role) = (sender.clone(), Arc::clone(&role));
            async move {
                let (own, other) = duplex(BUFFER);
                let connection = Connection::within(other, (*role).clone());
                let sent = sender.send(Ok(connection)).await;
                sent.map_err(|_| io::Error::other("the agent is being stopped"))?;
                Ok::<_, io::Error>(TokioIo::new(own))
            }
        });
        endpoint(WINDOWS).connect_with_connector_lazy(connector)
    }
}
