//! Work on files, which blocks.

use std::io;

use tokio::task::spawn_blocking;

/// Runs work that blocks away from the runtime's threads. A panic in it is an error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
}
