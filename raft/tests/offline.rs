//! Going on alone with what one member has, once a majority is lost.

// A panic here is a failure with a place.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use proto::peer::{ReadIndexRequest, raft_service_client::RaftServiceClient};
use raft::{
    consensus::{
        App as _, BeginError, Config, StartError,
        offline::{Held, begin, begin_on, look},
    },
    log::{Identity, Key, LogBackend, LogError, sled::SledBackend},
};
use support::{
    app::TextApp,
    cluster::{Cluster, within},
};
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(60);

fn as_meant(_: &mut Config) {}

/// So that much of the state is in a snapshot.
fn often_snapshots(config: &mut Config) {
    config.snapshot_every = 5;
    config.keep_entries = 1;
}

fn identity(cluster: &str, node_id: u64) -> Identity {
    Identity {
        cluster_id: cluster.into(),
        node_id,
    }
}

fn held(dir: &Path, cluster: &str, node: u64) -> Held<TextApp> {
    look(dir, &identity(cluster, node)).unwrap()
}

/// A cluster of three with some texts that all have, stopped; and where the first of them is to go on alone.
async fn stopped(tune: fn(&mut Config)) -> (Cluster, Vec<String>, PathBuf) {
    let mut cluster = Cluster::of(3, tune).await;
    let texts: Vec<String> = (0..20).map(|number| format!("text {number}")).collect();
    for text in &texts {
        cluster.write(1, text).await;
    }
    for id in 1..=3 {
        cluster.until_text(id, "text 19").await;
    }
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let anew = cluster.dir(1).with_extension("anew");
    (cluster, texts, anew)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_goes_on_alone_and_those_of_before_cannot_reach_it() {
    for tune in [as_meant, often_snapshots] {
        within(LIMIT, goes_on_alone(tune)).await;
    }
}

async fn goes_on_alone(tune: fn(&mut Config)) {
    let (mut cluster, texts, anew) = stopped(tune).await;
    let found = held(&cluster.dir(1), "test", 1);
    assert_eq!(found.app.view().list, texts);
    assert_eq!(found.voters, BTreeSet::from([1, 2, 3]));
    assert!(found.last.index >= 20 && found.committed <= found.last.index);
    assert!(found.term >= found.last.term);
    begin(
        &anew,
        &identity("anew", 1),
        found.last,
        &TextApp::snapshot(&found.app.view()),
    )
    .unwrap();

    cluster.start_in(1, false, "anew", anew.clone()).await;
    cluster.leader(1, &[]).await;
    assert_eq!(cluster.handle(1).status().voters, BTreeSet::from([1]));
    assert_eq!(cluster.texts(1).list, texts);
    assert!(cluster.handle(1).status().applied > found.last.index);
    cluster.write(1, "anew").await;

    // Those of before find a majority of their own: they were not lost after all. Nothing of theirs gets across, nor back.
    for id in [2, 3] {
        cluster.start(id, false).await;
    }
    cluster.leader(2, &[1]).await;
    cluster.write(2, "stale").await;
    cluster.until_text(3, "stale").await;
    let channel = cluster.dialer().channel(1).await.unwrap();
    let ask = ReadIndexRequest {
        cluster_id: "test".into(),
        target: 1,
    };
    let refused = RaftServiceClient::new(channel).read_index(ask).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    cluster.write(1, "still alone").await;
    assert!(!cluster.texts(1).list.contains(&"stale".to_owned()));
    assert!(!cluster.texts(3).list.contains(&"anew".to_owned()));

    // One of them follows, with nothing of what it had; a new one as well.
    cluster.stop(2).await;
    cluster.stop(3).await;
    let followed = cluster.dir(2).with_extension("anew");
    cluster.start_in(2, true, "anew", followed).await;
    let joined = cluster.dir(4);
    cluster.start_in(4, true, "anew", joined).await;
    cluster.set_members(1, &[1, 2, 4]).await;
    let all = |status: &raft::consensus::Status| {
        !status.changing && status.voters == BTreeSet::from([1, 2, 4])
    };
    cluster.until_status(1, "all vote", all).await;
    cluster.write(4, "together").await;
    for id in [1, 2, 4] {
        cluster.until_text(id, "together").await;
        assert_eq!(cluster.texts(id).list[..20], texts[..]);
    }
    // It is a log like any other, after its next start, too.
    cluster.stop(1).await;
    cluster.start_in(1, false, "anew", anew).await;
    cluster.until_text(1, "together").await;
    cluster.end().await;
}

/// An engine whose disk is gone after so many writes.
struct CutOff {
    engine: SledBackend,
    left: AtomicUsize,
}

impl CutOff {
    fn pass(&self) -> Result<(), LogError> {
        let left = |left: usize| left.checked_sub(1);
        match self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(LogError::io("written", std::io::Error::other("no disk"))),
        }
    }
}

impl LogBackend for CutOff {
    fn append(&self, records: &[(u64, Bytes)]) -> Result<(), LogError> {
        self.pass()?;
        self.engine.append(records)
    }

    fn read(&self, range: Range<u64>, max: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        self.engine.read(range, max)
    }

    fn truncate(&self, from: u64) -> Result<(), LogError> {
        self.pass()?;
        self.engine.truncate(from)
    }

    fn remove_upto(&self, index: u64, limit: usize) -> Result<bool, LogError> {
        self.pass()?;
        self.engine.remove_upto(index, limit)
    }

    fn put(&self, key: Key, value: &[u8]) -> Result<(), LogError> {
        self.pass()?;
        self.engine.put(key, value)
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, LogError> {
        self.engine.get(key)
    }

    fn flush(&self) -> Result<(), LogError> {
        self.pass()?;
        self.engine.flush()
    }

    fn sync(&self) -> Result<(), LogError> {
        self.pass()?;
        self.engine.sync()
    }

    fn mark(&self, value: &[u8]) -> Result<(), LogError> {
        self.pass()?;
        self.engine.mark(value)
    }

    fn marked(&self) -> Result<Vec<u8>, LogError> {
        self.engine.marked()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_anywhere_leaves_the_log_of_before_as_it_was() {
    within(LIMIT, async {
        let (mut cluster, texts, anew) = stopped(as_meant).await;
        let before = held(&cluster.dir(1), "test", 1);
        let state = TextApp::snapshot(&before.app.view());
        let mut cuts = 0;
        loop {
            let folder = anew.with_extension(cuts.to_string());
            let made = begin_on(&folder, &identity("anew", 1), before.last, &state, |path| {
                Ok(CutOff {
                    engine: SledBackend::open(path, true)?,
                    left: AtomicUsize::new(cuts),
                })
            });
            match made {
                Ok(()) => break,
                Err(BeginError::Log(LogError::Io { .. })) => cuts += 1,
                Err(other) => panic!("{other:?}"),
            }
            let after = held(&cluster.dir(1), "test", 1);
            assert_eq!((after.last, after.term), (before.last, before.term));
        }
        assert_eq!(cuts, 5, "three values, a sync and a mark");
        // The members of before go on as if nothing had been tried.
        for id in [1, 2] {
            cluster.start(id, false).await;
        }
        cluster.write(1, "as before").await;
        assert_eq!(cluster.texts(1).list[..20], texts[..]);
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_of_a_log_that_is_lost_damaged_or_anothers() {
    within(LIMIT, async {
        let (cluster, _, anew) = stopped(as_meant).await;
        let failed = |dir: &Path, cluster: &str| {
            let looked = look::<TextApp>(dir, &identity(cluster, 1));
            match looked.map(|held| held.last) {
                Err(StartError::Log(error)) => error,
                other => panic!("{other:?}"),
            }
        };
        let dir = cluster.dir(1);
        assert!(matches!(failed(&anew, "test"), LogError::Missing(_)));
        assert!(matches!(failed(&dir, "anew"), LogError::Foreign { .. }));
        let log = SledBackend::open(&dir.join("log"), false).unwrap();
        let tail = log.read(10..u64::MAX, usize::MAX).unwrap();
        log.truncate(8).unwrap();
        log.append(&tail).unwrap();
        drop(log);
        assert!(matches!(failed(&dir, "test"), LogError::Damaged(_)));
        // One that is there is not begun again.
        let found = held(&cluster.dir(2), "test", 2);
        let again = begin(&cluster.dir(2), &identity("test", 2), found.last, b"");
        assert!(matches!(again, Err(BeginError::Log(LogError::Exists(_)))));
        cluster.end().await;
    })
    .await;
}
