//! Connections to the guest's ports, for the host.

use std::{io, net::Ipv4Addr, time::Duration};

use fp_guest::channel::{
    link::Stream,
    message::{Answer, Forward},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How much is read at once.
const READ: usize = 32 << 10;

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
    // Small things are said at once. It costs nothing where that cannot be set.
    let _as_it_is = connection.set_nodelay(true);
    if stream.tell(&answer(String::new())).await.is_err() {
        return;
    }
    let (from, to) = connection.into_split();
    let inward = inward(stream.clone(), to);
    let outward = outward(stream.clone(), from);
    // Each ends by itself: a connection that is closed on one side still carries the other. A failure ends both.
    if tokio::try_join!(inward, outward).is_ok() {
        stream.close();
    }
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

/// From the host to the port.
async fn inward(stream: Stream, mut to: OwnedWriteHalf) -> Result<(), ()> {
    loop {
        match stream.take(0).await {
            Ok(Some(bytes)) => to.write_all(&bytes).await.map_err(|_| ())?,
            Ok(None) => break,
            Err(_) => return Err(()),
        }
    }
    to.shutdown().await.map_err(|_| ())
}

/// From the port to the host.
async fn outward(stream: Stream, mut from: OwnedReadHalf) -> Result<(), ()> {
    let mut buffer = vec![0; READ];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => stream
                .send(0, buffer[..count].to_vec())
                .await
                .map_err(|_| ())?,
            Err(_) => return Err(()),
        }
    }
    stream.end(0);
    Ok(())
}
