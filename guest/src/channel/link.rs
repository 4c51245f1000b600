//! The channel's asynchronous side: a [`Link`] for who begins and takes up streams, a [`Wire`] for the task that moves its bytes.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    frame::{DELIMITER, Decoder, Frame, Malformed},
    mux::{Broken, Came, MESSAGES, Mux, Side, Violation},
};

/// How much is put together to be written at once.
const OUT: usize = 64 << 10;
/// How much is read at once.
const READ: usize = 32 << 10;

/// The streams of one session, as those see them who use them.
#[derive(Debug, Clone)]
pub struct Link(Arc<Mutex<Mux>>);

impl Link {
    /// Of a new session.
    pub fn new(side: Side, session: u64) -> Self {
        Self(Arc::new(Mutex::new(Mux::new(side, session))))
    }

    fn mux(&self) -> MutexGuard<'_, Mux> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's number.
    pub fn session(&self) -> u64 {
        self.mux().session()
    }

    /// Begins a stream with a request.
    ///
    /// # Errors
    /// The session is lost, the request is too long, or too many streams are under way.
    pub fn open(&self, request: &impl Message) -> Result<Stream, Broken> {
        let id = self.mux().open(request.encode_to_vec().into())?;
        Ok(self.stream(id))
    }

    /// A stream that the other side began: see [`Came::Opened`]. To be asked for once.
    pub fn stream(&self, id: u32) -> Stream {
        Stream(Arc::new(Handle {
            link: self.clone(),
            id,
        }))
    }

    /// Sends something about the session.
    pub fn note(&self, note: &impl Message) {
        self.mux().note(note.encode_to_vec().into());
    }

    /// Takes a frame of this session.
    ///
    /// # Errors
    /// The other side broke the rules: the session cannot go on.
    pub fn receive(&self, frame: Frame) -> Result<Came, Violation> {
        self.mux().receive(frame)
    }

    /// Breaks everything off.
    pub fn lose(&self, why: &Broken) {
        self.mux().lose(why);
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.mux().is_idle()
    }

    fn next_frame(&self, waker: &Waker) -> Option<Frame> {
        self.mux().next_frame(waker)
    }
}

#[derive(Debug)]
struct Handle {
    link: Link,
    id: u32,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.mux().abandon(self.id, Broken::Cancelled);
    }
}

/// A stream. Once the last clone is dropped it is broken off, unless it was closed.
#[derive(Debug, Clone)]
pub struct Stream(Arc<Handle>);

impl Stream {
    /// Sends bytes on a lane, once there is room for them.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn send(&self, lane: u8, bytes: impl Into<Bytes>) -> Result<(), Broken> {
        let bytes = bytes.into();
        if bytes.is_empty() && lane != MESSAGES {
            return Ok(());
        }
        poll_fn(|context| {
            let sent = self
                .0
                .link
                .mux()
                .send(self.0.id, lane, &bytes, context.waker());
            sent.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Sends a message, once there is room for it.
    ///
    /// # Errors
    /// The stream has ended, or the message is longer than 32 KiB.
    pub async fn tell(&self, message: &impl Message) -> Result<(), Broken> {
        self.send(MESSAGES, message.encode_to_vec()).await
    }

    /// Whether all that was sent on a lane has gone out: nobody waits for the other side to take it.
    pub fn is_through(&self, lane: u8) -> bool {
        self.0.link.mux().is_through(self.0.id, lane)
    }

    /// Says that nothing more comes on a lane.
    pub fn end(&self, lane: u8) {
        self.0.link.mux().end(self.0.id, lane);
    }

    /// The next bytes that came on a lane; `None` at its end. For one reader of each lane.
    ///
    /// # Errors
    /// The stream was broken off.
    pub async fn take(&self, lane: u8) -> Result<Option<Bytes>, Broken> {
        poll_fn(|context| {
            let taken = self.0.link.mux().take(self.0.id, lane, context.waker());
            taken.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The next message; `None` when the other side is done.
    ///
    /// # Errors
    /// The stream was broken off, or what came is no such message.
    pub async fn hear<M: Message + Default>(&self) -> Result<Option<M>, Broken> {
        let Some(bytes) = self.take(MESSAGES).await? else {
            return Ok(None);
        };
        M::decode(bytes)
            .map(Some)
            .map_err(|error| Broken::Failed(format!("a message cannot be read: {error}")))
    }

    /// Is done with it once all that was sent is out.
    pub fn close(&self) {
        self.0.link.mux().close(self.0.id);
    }

    /// Breaks it off with a reason.
    pub fn fail(&self, why: impl Into<String>) {
        self.0
            .link
            .mux()
            .abandon(self.0.id, Broken::Failed(why.into()));
    }
}

/// A connection that frames go over.
#[derive(Debug)]
pub struct Wire<T> {
    io: T,
    decoder: Decoder,
    out: BytesMut,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    /// Over a connection of which nothing is known: what was sent before may have been cut off.
    pub fn new(io: T) -> Self {
        let mut wire = Self {
            io,
            decoder: Decoder::default(),
            out: BytesMut::new(),
        };
        wire.begin_anew();
        wire
    }

    /// The connection. What had been read of it and not taken is lost.
    pub fn into_inner(self) -> T {
        self.io
    }

    /// Forgets what was to be sent. The next frame is found by the other side, whatever it got of the last.
    pub fn begin_anew(&mut self) {
        self.out.clear();
        self.out.put_u8(DELIMITER);
    }

    /// Whether all that was to be sent is out.
    pub fn is_clear(&self) -> bool {
        self.out.is_empty()
    }

    /// Has a frame sent before any that its session has.
    ///
    /// # Errors
    /// It is too long.
    pub fn send(&mut self, frame: &Frame) -> Result<(), Malformed> {
        frame.encode(&mut self.out)
    }

    /// The next frame, or what came in its place; meanwhile what the session has to say is sent. `None` at the connection's end.
    /// Nothing is lost when it is not waited for to the end.
    ///
    /// # Errors
    /// The connection's.
    pub async fn next(
        &mut self,
        link: Option<&Link>,
    ) -> io::Result<Option<Result<Frame, Malformed>>> {
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Ok(Some(frame));
            }
            if !poll_fn(|context| self.poll(context, link)).await? {
                return Ok(None);
            }
        }
    }

    /// Writes what there is, then reads. `false` at the end.
    fn poll(&mut self, context: &mut Context<'_>, link: Option<&Link>) -> Poll<io::Result<bool>> {
        loop {
            while self.out.len() < OUT {
                let Some(frame) = link.and_then(|link| link.next_frame(context.waker())) else {
                    break;
                };
                // Frames of a session are as long as frames may be.
                frame
                    .encode(&mut self.out)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            if self.out.is_empty() {
                break;
            }
            match Pin::new(&mut self.io).poll_write(context, &self.out) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.out.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if self.out.is_empty() && self.out.capacity() > READ {
            // What is idle keeps nothing.
            self.out = BytesMut::new();
        }
        let mut buffer = [MaybeUninit::uninit(); READ];
        let mut read = ReadBuf::uninit(&mut buffer);
        match Pin::new(&mut self.io).poll_read(context, &mut read) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let bytes = read.filled();
                self.decoder.push(bytes);
                Poll::Ready(Ok(!bytes.is_empty()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
