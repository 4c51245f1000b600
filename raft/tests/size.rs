//! What the log and the snapshots take on disk does not grow with what was ever written.
#![allow(clippy::unwrap_used)]

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Duration};

use futures::future::join_all;
use raft::{
    node::{self, DialError, Dialer, Handle},
    state::{Actor, ClusterId, Command, Labels, Proposal},
};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::transport::Channel;

/// How many entries are written in all, and between two looks.
const ENTRIES: u64 = 10_000;
const STEP: u64 = 500;
/// How many are written side by side: each is an entry of its own while fewer than these wait.
const SIDE_BY_SIDE: u64 = 2;
/// How much larger the second half's largest may be: the log is cut off at other moments than it is looked at.
const MOST_GROWTH: f64 = 1.25;

/// The only member dials nobody.
struct Alone;

#[async_trait::async_trait]
impl Dialer for Alone {
    async fn channel(&self, node: u64) -> Result<Channel, DialError> {
        Err(DialError {
            node,
            source: "there is no other".into(),
        })
    }
}

async fn propose(node: &Handle, command: Command) {
    let proposal = Proposal {
        request: None,
        by: Actor::cluster(),
        now: 1,
        command,
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    node.propose(&proposal, deadline).await.unwrap().unwrap();
}

fn label(number: u64) -> Command {
    Command::LabelNode {
        node: "a".into(),
        set: Labels::from([("written".into(), format!("{number:0255}"))]),
        remove: Vec::new(),
    }
}

/// What a folder's files take, bytes. One that goes meanwhile takes nothing.
fn size(folder: &Path) -> u64 {
    let of = |path: &Path| match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => size(path),
        Ok(found) => found.blocks() * 512,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| of(&entry.unwrap().path())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_does_not_grow_with_what_was_written() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = node::config(1, ClusterId(1), dir.path().join("raft"), true);
    config.snapshot_every = 200;
    config.keep_entries = 50;
    let node = node::start(config, Arc::new(Alone)).await.unwrap();
    node.initialize().await.unwrap();
    let found = Command::Found {
        cluster: ClusterId(1),
        name: "a".into(),
        address: "a:1".into(),
    };
    propose(&node, found).await;

    let mut sizes = Vec::new();
    for step in 0..ENTRIES / STEP {
        let writers = (0..SIDE_BY_SIDE).map(|writer| {
            let node = &node;
            async move {
                for number in (writer..STEP).step_by(SIDE_BY_SIDE as usize) {
                    propose(node, label(step * STEP + number)).await;
                }
            }
        });
        join_all(writers).await;
        sizes.push(size(dir.path()));
    }
    let applied = node.status().applied;
    node.shutdown().await;

    let (early, late) = sizes.split_at(sizes.len() / 2);
    let most = |sizes: &[u64]| *sizes.iter().max().unwrap() as f64;
    assert!(applied > ENTRIES / SIDE_BY_SIDE, "{applied} entries");
    assert!(most(late) <= MOST_GROWTH * most(early), "{sizes:?}");
}
