//! Who may talk to whom: the cluster's authority, a node's identity on disk, join tokens, and mutual TLS.
//!
//! `fpagent init` and `join` write what is here, the daemon serves with it, the client connects with it.

pub mod authority;
pub mod files;
pub mod identity;
pub mod names;
pub mod renewal;
pub mod replacement;
pub mod tls;
pub mod token;

use std::{io, path::PathBuf};

/// Why something about identity, certificates or keys could not be done. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: "read", "write", ….
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate or key could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// A certificate request, certificate or key that somebody sent is not one.
    #[error("{what} is not valid: {problem}")]
    Malformed {
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// rustls does not accept the keys and certificates.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// A name or an address is not written as it must be.
    #[error(transparent)]
    Name(#[from] names::NameError),
    /// A join token's text cannot be used.
    #[error(transparent)]
    Token(#[from] token::TokenError),
    /// The data directory belongs to another cluster.
    #[error("{} belongs to the cluster {cluster}", path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster it belongs to.
        cluster: String,
    },
    /// The data directory belongs to a node of another name.
    #[error("{} belongs to the node {name:?} already", path.display())]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The name of the node it belongs to.
        name: String,
    },
    /// The directory's node was removed from its cluster.
    #[error(
        "{} holds node {name:?}, which was removed from its cluster on {at} and cannot come back", path.display()
    )]
    Removed {
        /// The directory.
        path: PathBuf,
        /// The node's name.
        name: String,
        /// When it learned of that.
        at: String,
    },
    /// The directory holds something else.
    #[error("{} is not empty and holds no node ({found:?} is in it)", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What was found in it.
        found: String,
    },
    /// The directory holds no node.
    #[error("{} holds no node", path.display())]
    NoNode {
        /// The directory.
        path: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another fpagent", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

impl TrustError {
    /// Makes a closure for `map_err` that tells what was tried, and where.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
