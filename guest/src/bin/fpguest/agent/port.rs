//! The virtio serial port as a connection. The kernel says that the other end is gone by a hang-up, for as long as it is; so the
//! port is watched for changes only, and who waits for the host costs nothing.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::event::epoll;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use super::kernel;
use crate::ports;

/// A port that is open.
#[derive(Debug)]
pub struct Port {
    file: File,
    /// An epoll instance that has the port alone, for changes.
    changes: AsyncFd<OwnedFd>,
    /// Whether its end has been told.
    at_end: bool,
}

impl Port {
    /// Opens the port with this name.
    ///
    /// # Errors
    /// There is none, or somebody else has it open.
    pub fn open(name: &str) -> io::Result<Self> {
        let path = ports::find(Path::new(ports::FOLDER), name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let both = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&changes, &file, epoll::EventData::new_u64(0), both)?;
        Ok(Self {
            file,
            changes: kernel::watch(changes, Interest::READABLE)?,
            at_end: false,
        })
    }

    /// Waits until something about the port has changed.
    fn poll_change(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut changed = ready!(self.changes.poll_read_ready(context))?;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        // What is taken here is not told again.
        epoll::wait(
            self.changes.get_ref(),
            &mut events,
            Some(&rustix::event::Timespec::default()),
        )?;
        changed.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Port {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match rustix::io::read(&self.file, buffer.initialize_unfilled()) {
                Ok(0) if !self.at_end => {
                    self.at_end = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(0) | Err(rustix::io::Errno::AGAIN) => {}
                Ok(count) => {
                    self.at_end = false;
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            ready!(self.poll_change(context))?;
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.file, bytes) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(rustix::io::Errno::AGAIN) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            ready!(self.poll_change(context))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
