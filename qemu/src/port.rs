//! The serial port to the guest's agent. A process is connected to before anything is loaded into it, as with the console: a
//! guest that was captured in the middle of writing goes on. What is said over it is not this crate's affair.

use std::{io, path::Path};

use tokio::{net::UnixStream, sync::mpsc};

/// Connections that wait to be taken up. There is one for each process that a VM has, one after the other.
const WAITING: usize = 4;

/// Where the connections of a VM's processes go, the same through all processes that the VM has.
#[derive(Debug, Clone)]
pub struct Line(mpsc::Sender<UnixStream>);

/// A line, and where its connections come out.
pub fn line() -> (Line, mpsc::Receiver<UnixStream>) {
    let (sender, connections) = mpsc::channel(WAITING);
    (Line(sender), connections)
}

impl Line {
    /// Connects to a process.
    pub async fn connect_to(&self, socket: &Path) -> io::Result<()> {
        let connection = UnixStream::connect(socket).await?;
        // Where nobody takes them up the guest's agent is not spoken to, and the VM runs all the same.
        if self.0.try_send(connection).is_err() {
            tracing::debug!("nobody speaks to a guest's agent");
        }
        Ok(())
    }
}
