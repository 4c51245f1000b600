//! A TCP connection over a stream: its bytes are those of lane 0, both ways, and each way ends by itself.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{link::Stream, mux::Broken};

/// The lane that a connection's bytes take.
const LANE: u8 = 0;
/// How much is read at once.
const READ: usize = 32 << 10;

/// Why a connection is carried no further.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The stream was broken off.
    #[error(transparent)]
    Stream(#[from] Broken),
    /// The connection was.
    #[error(transparent)]
    Connection(#[from] io::Error),
}

/// Carries a connection until both ways have ended, and closes the stream.
///
/// # Errors
/// One of the two broke, which ends both: the other side finds a connection that is closed, or a stream that was given up.
pub async fn carry(stream: &Stream, connection: TcpStream) -> Result<(), Ended> {
    // Small things are said at once. It costs nothing where that cannot be set.
    let _as_it_is = connection.set_nodelay(true);
    let (from, to) = connection.into_split();
    tokio::try_join!(sent(stream, from), received(stream, to))?;
    stream.close();
    Ok(())
}

async fn sent(stream: &Stream, mut from: OwnedReadHalf) -> Result<(), Ended> {
    let mut buffer = vec![0; READ];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            stream.end(LANE);
            return Ok(());
        }
        stream.send(LANE, buffer[..count].to_vec()).await?;
    }
}

async fn received(stream: &Stream, mut to: OwnedWriteHalf) -> Result<(), Ended> {
    while let Some(bytes) = stream.take(LANE).await? {
        to.write_all(&bytes).await?;
    }
    Ok(to.shutdown().await?)
}
