//! What is found when a log is opened: what was written, or an error that says what is wrong.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader as _, storage::RaftLogStorage as _};
use tempfile::TempDir;

use super::{
    Identity, Key, LogBackend, LogError, LogGuard, LogStore, Mark, frame, sled::SledBackend, store,
};
use crate::{
    codec,
    consensus::{
        records,
        types::{Batch, Entry, LogId, StorageError, Vote},
    },
};

#[path = "../../tests/support/disk.rs"]
mod disk;

use disk::{Disk, Faulty, Mood};

fn identity() -> Identity {
    Identity {
        cluster_id: "tests".into(),
        node_id: 7,
    }
}

fn id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(2, 7), index)
}

fn entry(index: u64) -> Entry {
    let proposal = Bytes::from(vec![b'x'; 10_000]);
    Entry {
        log_id: id(index),
        payload: EntryPayload::Normal(Batch(vec![proposal])),
    }
}

fn open(dir: &Path, create: bool) -> Result<(LogStore, LogGuard), LogError> {
    LogStore::open(SledBackend::open(dir, create)?, &identity())
}

/// Appends entries the way that the store does, without openraft's callback, which only it can make.
fn put(log: &LogStore, entries: impl IntoIterator<Item = u64>) {
    let records: Vec<_> = entries
        .into_iter()
        .map(|index| framed(&entry(index)))
        .collect();
    let mark = Mark {
        last: records.last().map(|(index, _)| id(*index)),
        ..log.mark()
    };
    store::writer(log).append(records, mark).unwrap();
}

fn framed(entry: &Entry) -> (u64, Bytes) {
    let index = entry.log_id.index;
    let body = codec::encode(&records::Entry::from(entry.clone()));
    (index, frame::frame(index, &body).into())
}

/// The same, until they are on disk.
async fn append(log: &LogStore, entries: impl IntoIterator<Item = u64>) {
    put(log, entries);
    log.durable().all().await.unwrap();
}

/// A log with a vote and the entries 0 to 9.
async fn written() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (mut log, guard) = open(&path, true).unwrap();
    log.save_vote(&Vote::new(2, 7)).await.unwrap();
    append(&log, 0..10).await;
    drop(guard);
    (dir, path)
}

fn damage(path: &Path) -> String {
    match open(path, false).map(|_| ()) {
        Err(LogError::Damaged(what)) => what,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let (_dir, path) = written().await;
    {
        let (mut log, guard) = open(&path, false).unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(2, 7)));
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(entries, (0..10).map(entry).collect::<Vec<_>>());
        log.truncate(id(8)).await.unwrap();
        log.save_committed(Some(id(6))).await.unwrap();
        log.purge(id(3)).await.unwrap();
        drop(guard);
        assert!(log.try_get_log_entries(..).await.is_err(), "it is closed");
    }
    let (mut log, _guard) = open(&path, false).unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(id(3)));
    assert_eq!(state.last_log_id, Some(id(7)));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(6)));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (4..8).map(entry).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_led_leads_no_more_after_a_restart() {
    let (_dir, path) = written().await;
    for (saved, found) in [
        (Vote::new_committed(3, 7), Vote::new(3, 7)),
        // What was promised to another is as it was.
        (Vote::new_committed(4, 8), Vote::new_committed(4, 8)),
        (Vote::new(5, 8), Vote::new(5, 8)),
    ] {
        let (mut log, guard) = open(&path, false).unwrap();
        log.save_vote(&saved).await.unwrap();
        drop((log, guard));
        let (mut log, _guard) = open(&path, false).unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(found));
    }
}

#[tokio::test]
async fn what_was_purged_may_be_left_over() {
    let (_dir, path) = written().await;
    {
        // As if the process had ended between recording it and removing anything.
        let backend = SledBackend::open(&path, false).unwrap();
        let record = codec::encode(&records::LogId::from(id(4)));
        let record = frame::frame(0, &record);
        backend.put(Key::Purged, &record).unwrap();
    }
    let (mut log, guard) = open(&path, false).unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (5..10).map(entry).collect::<Vec<_>>());
    // It is removed when there is time; a purge of everything waits for its turn too.
    log.purge(id(9)).await.unwrap();
    drop((log, guard));
    let (mut log, _guard) = open(&path, false).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), []);
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_log_id, Some(id(9)));
}

#[tokio::test]
async fn a_hole_is_recognised() {
    let (_dir, path) = written().await;
    let backend = SledBackend::open(&path, false).unwrap();
    let last = backend.read(7..10, usize::MAX).unwrap();
    backend.truncate(5).unwrap();
    backend.append(&last).unwrap();
    drop(backend);
    assert_eq!(damage(&path), "records 5 to 6 are missing");
}

#[tokio::test]
async fn a_lost_start_is_recognised() {
    let (_dir, path) = written().await;
    let backend = SledBackend::open(&path, false).unwrap();
    while backend.remove_upto(2, 100).unwrap() {}
    drop(backend);
    assert_eq!(damage(&path), "records 0 to 2 are missing");
}

#[tokio::test]
async fn a_lost_end_is_recognised_when_it_was_committed() {
    let (_dir, path) = written().await;
    let (mut log, guard) = open(&path, false).unwrap();
    log.save_committed(Some(id(9))).await.unwrap();
    drop((log, guard));
    let backend = SledBackend::open(&path, false).unwrap();
    backend.truncate(8).unwrap();
    drop(backend);
    let what = "entries up to 9 were committed, those after 7 are missing";
    assert_eq!(damage(&path), what);
}

#[tokio::test]
async fn a_lost_end_is_recognised() {
    let (_dir, path) = written().await;
    let backend = SledBackend::open(&path, false).unwrap();
    backend.truncate(9).unwrap();
    drop(backend);
    let what = "its end is missing: it reached entry 9 of term 2, and ends with entry 8 of term 2";
    assert_eq!(damage(&path), what);
    assert_eq!(damage(&path), what, "the second time, too");
}

#[tokio::test]
async fn an_end_that_fell_back_is_recognised() {
    let (_dir, path) = written().await;
    let backend = SledBackend::open(&path, false).unwrap();
    let older = Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, 7), 9),
        ..entry(9)
    };
    backend.truncate(9).unwrap();
    backend
        .append(&[framed(&older), framed(&entry(10))])
        .unwrap();
    drop(backend);
    let what = "it has fallen back: it held entry 9 of term 2, and has entry 9 of term 1 there";
    assert_eq!(damage(&path), what);
}

#[tokio::test]
async fn a_vote_that_fell_back_is_recognised() {
    let (_dir, path) = written().await;
    for vote in [Vote::new(1, 9), Vote::new(2, 6), Vote::new_committed(1, 9)] {
        let backend = SledBackend::open(&path, false).unwrap();
        let record = codec::encode(&records::Vote::from(vote));
        backend.put(Key::Vote, &frame::frame(0, &record)).unwrap();
        drop(backend);
        let what = damage(&path);
        assert!(
            what.starts_with("its vote is missing: it voted for node 7 in term 2, and has a vote"),
            "{what}"
        );
    }
}

#[tokio::test]
async fn what_was_only_begun_when_the_power_was_cut_is_not_in_the_way() {
    let (_dir, path) = written().await;
    let half = path.join("snap.FFFFFFFFFFFFFFF0.generating");
    for content in [&b""[..], b"half of it"] {
        fs::write(&half, content).unwrap();
        let (mut log, _guard) = open(&path, false).unwrap();
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 10);
        assert!(!half.exists());
    }
}

#[tokio::test]
async fn a_lost_mark_is_recognised() {
    let (_dir, path) = written().await;
    let mark = path.join("mark");
    fs::write(&mark, vec![0; 8192]).unwrap();
    assert!(damage(&path).ends_with("mark holds nothing that was written there"));
    fs::remove_file(&mark).unwrap();
    assert!(damage(&path).ends_with("mark is missing"));
}

#[tokio::test]
async fn the_mark_follows_what_is_on_disk_and_leads_what_is_removed() {
    let (_dir, path) = written().await;
    let disk = Arc::new(Disk::default());
    let reopened = || {
        let backend = Faulty::open(&path, false, &disk).unwrap();
        LogStore::open(backend, &identity()).unwrap()
    };
    let marked = || Mark::read(&SledBackend::open(&path, false).unwrap()).unwrap();
    let (mut log, guard) = reopened();
    disk.asked();
    // A vote is marked when it is given.
    log.save_vote(&Vote::new(3, 8)).await.unwrap();
    assert_eq!(disk.asked(), ["put", "sync", "mark"]);
    // What is removed is not marked any more before it goes.
    log.truncate(id(5)).await.unwrap();
    assert_eq!(disk.asked()[..3], ["mark", "truncate", "sync"]);
    drop((log, guard));
    let mark = Mark {
        last: Some(id(4)),
        vote: Some(Vote::new(3, 8)),
    };
    assert_eq!(marked(), mark);
    // What was appended is marked once it is on disk, at the latest when the log is closed.
    let (log, guard) = reopened();
    disk.asked();
    append(&log, 5..7).await;
    drop((log, guard));
    let asked = disk.asked();
    assert_eq!(asked[..2], ["append", "sync"]);
    assert!(asked.contains(&"mark"), "{asked:?}");
    assert_eq!(marked().last, Some(id(6)));
    // What never was on disk was never marked, and takes nothing with it.
    let (mut log, guard) = reopened();
    disk.set(Mood::StandsStill);
    put(&log, 7..9);
    disk.asked();
    let truncated = log.truncate(id(8));
    disk.set(Mood::Works);
    truncated.await.unwrap();
    let asked = disk.asked();
    let before = asked.split(|call| *call == "truncate").next().unwrap();
    assert!(
        !before.contains(&"mark") || before.contains(&"sync"),
        "{asked:?}"
    );
    // Nor is what a snapshot stands for missed.
    log.purge(id(20)).await.unwrap();
    drop((log, guard));
    assert_eq!(marked().last, Some(id(20)));
    drop(reopened());
}

#[tokio::test]
async fn what_the_engine_does_not_give_is_missed() {
    let (_dir, path) = written().await;
    let disk = Arc::new(Disk::default());
    let backend = Faulty::open(&path, false, &disk).unwrap();
    let (mut log, _guard) = LogStore::open(backend, &identity()).unwrap();
    disk.set(Mood::ReadsShort);
    let missing = |failed: StorageError| failed.to_string().contains("record 9 is missing");
    assert!(missing(log.try_get_log_entries(..).await.unwrap_err()));
    assert!(missing(log.try_get_log_entries(9..10).await.unwrap_err()));
    let mut reader = log.get_log_reader().await;
    let limited = reader.limited_get_log_entries(8, 10).await.unwrap();
    assert_eq!(limited, [entry(8)]);
    assert!(missing(
        reader.limited_get_log_entries(9, 10).await.unwrap_err()
    ));
    assert_eq!(log.try_get_log_entries(10..).await.unwrap(), []);
    // Nor does what is not stored yet hide it.
    disk.set(Mood::StandsStill);
    put(&log, 10..12);
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 12);
    disk.set(Mood::ReadsShort);
    log.durable().all().await.unwrap();
    let failed = log.try_get_log_entries(..).await.unwrap_err();
    assert!(failed.to_string().contains("record 11 is missing"));
}

#[tokio::test]
async fn a_mark_that_cannot_be_written_ends_all_writing() {
    let (_dir, path) = written().await;
    let disk = Arc::new(Disk::default());
    let backend = Faulty::open(&path, false, &disk).unwrap();
    let (mut log, _guard) = LogStore::open(backend, &identity()).unwrap();
    disk.set(Mood::ForgetsMarks);
    append(&log, 10..11).await;
    let failed = loop {
        if let Err(failed) = log.save_vote(&Vote::new(3, 7)).await {
            break failed;
        }
    };
    assert!(failed.to_string().contains("no disk"), "{failed}");
    disk.set(Mood::Works);
    let failed = log.truncate(id(5)).await.unwrap_err();
    assert!(failed.to_string().contains("must be restarted"), "{failed}");
}

#[tokio::test]
async fn a_lost_vote_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (log, guard) = open(&path, true).unwrap();
    append(&log, 0..2).await;
    drop((log, guard));
    assert_eq!(damage(&path), "its vote is missing");
}

#[tokio::test]
async fn a_damaged_record_is_recognised() {
    for at in [0, 1, 9, 13, 7_000] {
        let (_dir, path) = written().await;
        let backend = SledBackend::open(&path, false).unwrap();
        let mut records = backend.read(4..10, usize::MAX).unwrap();
        let mut damaged = BytesMut::from(&records[0].1[..]);
        damaged[at] ^= 1;
        records[0].1 = damaged.freeze();
        backend.truncate(4).unwrap();
        backend.append(&records).unwrap();
        drop(backend);
        let what = damage(&path);
        assert!(what.starts_with("record 4 "), "{what}");
    }
}

#[tokio::test]
async fn a_log_that_is_lost_or_anothers_is_refused() {
    let (dir, path) = written().await;
    let empty = dir.path().join("empty");
    assert!(matches!(open(&empty, false), Err(LogError::Missing(_))));
    assert!(matches!(open(&path, true), Err(LogError::Exists(_))));
    let other = Identity {
        node_id: 8,
        ..identity()
    };
    let opened = LogStore::open(SledBackend::open(&path, false).unwrap(), &other);
    assert!(matches!(opened, Err(LogError::Foreign { .. })));
    let (_log, _guard) = open(&path, false).unwrap();
    assert!(matches!(open(&path, false), Err(LogError::Locked { .. })));
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_written() {
    let (_dir, path) = written().await;
    let disk = Arc::new(Disk::default());
    let backend = Faulty::open(&path, false, &disk).unwrap();
    let (mut log, guard) = LogStore::open(backend, &identity()).unwrap();
    disk.set(Mood::Fails);
    let failed = log.save_vote(&Vote::new(3, 7)).await.unwrap_err();
    assert!(failed.to_string().contains("no disk"), "{failed}");
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(2, 7)));
    // The disk being back says nothing about what it has lost.
    disk.set(Mood::Works);
    let failed = log.truncate(id(5)).await.unwrap_err();
    assert!(failed.to_string().contains("must be restarted"), "{failed}");
    let failed = log.durable().all().await.unwrap_err();
    assert!(failed.to_string().contains("no disk"), "{failed}");
    drop((log, guard));
    let (mut log, _guard) = open(&path, false).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 10);
}

#[tokio::test]
async fn what_is_appended_can_be_read_before_it_is_on_disk() {
    let (_dir, path) = written().await;
    let disk = Arc::new(Disk::default());
    let backend = Faulty::open(&path, false, &disk).unwrap();
    let (mut log, guard) = LogStore::open(backend, &identity()).unwrap();
    let durable = log.durable();
    durable.all().await.unwrap();

    disk.set(Mood::StandsStill);
    put(&log, 10..13);
    put(&log, 13..14);
    log.save_committed(Some(id(11))).await.unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (0..14).map(entry).collect::<Vec<_>>());
    let entries = log.try_get_log_entries(8..12).await.unwrap();
    assert_eq!(entries, (8..12).map(entry).collect::<Vec<_>>());
    assert!(durable.until(9).now_or_never().is_some());
    assert!(durable.until(10).now_or_never().is_none());
    assert!(durable.all().now_or_never().is_none());
    assert!(!durable.stands_still(), "not for long");

    disk.set(Mood::Works);
    durable.all().await.unwrap();
    assert!(durable.until(13).now_or_never().is_some());
    log.truncate(id(12)).await.unwrap();
    assert!(durable.until(11).now_or_never().is_some());
    assert!(durable.until(12).now_or_never().is_none());
    put(&log, 12..13);
    durable.until(12).await.unwrap();
    drop((log, guard));
    let (mut log, _guard) = open(&path, false).unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (0..13).map(entry).collect::<Vec<_>>());
}
