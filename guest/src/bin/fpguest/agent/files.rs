//! Files that the host wants, or brings: the guest's ends of [`fp_guest::files`], each on a thread of its own, since the disk may let it wait.
//!
//! In a fork of the VM the conversation is its parent's: it breaks here, and what there is of a file is removed.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use fp_guest::{
    channel::{
        link::Stream,
        message::{Receive, Send},
        mux::Broken,
    },
    files::{self, CopyError, From, Limits, Meter, Mover, To, wire},
};
use tokio::task::{JoinError, spawn_blocking};

use super::users::User;

/// Sends files to the host.
pub async fn send(stream: Stream, request: Send) {
    let path = match path(request.path) {
        Ok(path) => path,
        Err(problem) => return stream.fail(problem),
    };
    let (mut ends, Mover { mut said, heard }) = files::sender();
    let work = spawn_blocking(move || files::send(From::Path(path), &mut ends, &Meter::default()));
    let inward = tokio::spawn({
        let stream = stream.clone();
        async move {
            loop {
                let next = wire::hear_answer(&stream).await;
                let broke = next.is_err();
                if heard.send(next).await.is_err() || broke {
                    return;
                }
            }
        }
    });
    while let Some(next) = said.recv().await {
        if wire::say(&stream, next).await.is_err() {
            break;
        }
    }
    // Where the stream broke this ends whatever the thread says next.
    drop(said);
    end(&stream, work.await);
    inward.abort();
}

/// Receives files from the host.
pub async fn receive(stream: Stream, request: Receive) {
    let to = match path(request.path) {
        Ok(path) => To::Path {
            path,
            name: request.name,
        },
        Err(problem) => return stream.fail(problem),
    };
    let (mut ends, Mover { mut said, heard }) = files::receiver();
    let work =
        spawn_blocking(move || files::receive(to, Limits::OF_HOSTS, &mut ends, &Meter::default()));
    let inward = tokio::spawn({
        let stream = stream.clone();
        async move {
            let mut hearing = wire::Hearing::default();
            loop {
                let next = hearing.next(&stream).await;
                let broke = next.is_err();
                if heard.send(next).await.is_err() || broke {
                    return;
                }
            }
        }
    });
    while let Some(next) = said.recv().await {
        if wire::answer(&stream, next).await.is_err() {
            break;
        }
    }
    drop(said);
    end(&stream, work.await);
    inward.abort();
}

fn end(stream: &Stream, outcome: Result<Result<(), CopyError>, JoinError>) {
    match outcome {
        Ok(Ok(())) => stream.close(),
        // Nobody is there to be told.
        Ok(Err(CopyError::Broken(Broken::Forked | Broken::Lost(_) | Broken::Cancelled))) => {}
        Ok(Err(error)) => stream.fail(error.to_string()),
        Err(error) => stream.fail(format!("the guest's agent failed: {error}")),
    }
}

/// A path as the host names it: from root's home on.
fn path(path: Vec<u8>) -> Result<PathBuf, String> {
    if path.contains(&0) {
        return Err("a path holds a zero byte".to_owned());
    }
    let home = User::find("root")?.home;
    Ok(Path::new(&home).join(OsString::from_vec(path)))
}
