//! Connections to the guest's ports, for the host.

use std::{io, net::Ipv4Addr, time::Duration};

use fp_guest::channel::{
    link::Stream,
    message::{Answer, Forward},
    relay,
};
use tokio::{net::TcpStream, time::timeout};

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Connects, and carries bytes both ways until both have ended.
pub async fn run(stream: Stream, request: Forward) {
    let answer = |error: String| Answer { error };
    let connection = match connect(&request).await {
        Ok(connection) => connection,
        Err(error) => {
            if stream.tell(&answer(error.to_string())).await.is_ok() {
                stream.close();
            }
            return;
        }
    };
    if stream.tell(&answer(String::new())).await.is_err() {
        return;
    }
    // Where it breaks the stream is dropped, and the host told so.
    let _carried = relay::carry(&stream, connection).await;
}

async fn connect(request: &Forward) -> io::Result<TcpStream> {
    let port = u16::try_from(request.port).map_err(|_| io::ErrorKind::InvalidInput)?;
    let connecting = async {
        match request.host.as_str() {
            "" => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await,
            // An address: a static program has no resolver that it could rely on.
            host => {
                let address: std::net::IpAddr = host.parse().map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidInput, "the host is no address")
                })?;
                TcpStream::connect((address, port)).await
            }
        }
    };
    match timeout(CONNECT_PATIENCE, connecting).await {
        Ok(connection) => connection,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
