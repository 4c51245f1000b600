//! The end of a member's log: whenever the power is cut it opens with what was on the disk, and whatever the disk lost of that
//! afterwards is missed when it is opened.
//!
//! What one log writes is recorded below it, while entries are added to it, removed from its end and purged, and votes are given. Then
//! it is cut off, and its newest writes are damaged or left out, although they were synced. `FP_CUTS` says how many times (24).

// clippy knows tests, not what they share: a panic there is a failure with a place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use openraft::{
    CommittedLeaderId, EntryPayload, RaftLogReader as _,
    storage::{RaftLogStorage as _, RaftLogStorageExt as _},
};
use raft::{
    consensus::types::{Batch, Entry, LogId, Vote},
    log::{Identity, LogError, LogGuard, LogStore, Mark, sled::SledBackend},
};
use support::device::{Device, Luck, TOLD, random};
use tempfile::TempDir;

/// How many changes are recorded, and after how many the log is closed and opened again.
const CHANGES: u64 = 240;
const CLOSED: u64 = 30;

fn open(dir: &Path, create: bool) -> Result<(LogStore, LogGuard), LogError> {
    let identity = Identity {
        cluster_id: "test".into(),
        node_id: 1,
    };
    LogStore::open(SledBackend::open(dir, create)?, &identity)
}

/// What a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    vote: (u64, u64),
    last: (u64, u64),
    purged: u64,
}

impl Held {
    async fn by(log: &mut LogStore) -> Self {
        let vote = log.read_vote().await.unwrap().unwrap_or_default();
        let state = log.get_log_state().await.unwrap();
        Self {
            vote: (vote.leader_id.term, vote.leader_id.node_id),
            last: state.last_log_id.map_or((0, 0), position),
            purged: state.last_purged_log_id.map_or(0, |id| id.index),
        }
    }

    async fn found(dir: &Path) -> Result<Self, LogError> {
        let (mut log, _guard) = open(dir, false)?;
        Ok(Self::by(&mut log).await)
    }

    fn line(&self, what: &str) -> String {
        let Self { vote, last, purged } = self;
        format!(
            "{what} {} {} {} {} {purged}\n",
            vote.0, vote.1, last.0, last.1
        )
    }

    /// A line that was told: the kind of change that comes next, and what was on the disk before.
    fn told(line: &str) -> (&str, Self) {
        let (what, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
        let held = Self {
            vote: (numbers[0], numbers[1]),
            last: (numbers[2], numbers[3]),
            purged: numbers[4],
        };
        (what, held)
    }
}

/// Term and index.
fn position(id: LogId) -> (u64, u64) {
    (id.leader_id.term, id.index)
}

#[tokio::test]
#[ignore = "the other tests run it, and record what it writes"]
async fn is_recorded() {
    let dir = tempfile::tempdir().unwrap().keep().join("log");
    let mut told = File::create(env::var(TOLD).unwrap()).unwrap();
    let mut random = random(3);
    let mut opened = open(&dir, true).unwrap();
    opened.0.save_vote(&Vote::new(1, 1)).await.unwrap();
    for change in 1..=CHANGES {
        let log = &mut opened.0;
        let held = Held::by(log).await;
        let id = |index| LogId::new(CommittedLeaderId::new(held.vote.0, held.vote.1), index);
        let what = match random(12) {
            _ if change % CLOSED == 0 => "close",
            0 => "vote",
            1 if held.last.1 > held.purged + 4 => "truncate",
            2 if held.last.1 > held.purged + 30 => "purge",
            _ => "append",
        };
        told.write_all(held.line(what).as_bytes()).unwrap();
        match what {
            "vote" => {
                let vote = Vote::new(held.vote.0 + random(2), 2 + random(7));
                if held.vote < (vote.leader_id.term, vote.leader_id.node_id) {
                    log.save_vote(&vote).await.unwrap();
                }
            }
            "truncate" => {
                // By another leader, as always.
                let vote = Vote::new(held.vote.0 + 1, 1);
                log.save_vote(&vote).await.unwrap();
                let from = held.last.1 - random(4);
                log.truncate(id(from)).await.unwrap();
            }
            "purge" => {
                let entries = log.limited_get_log_entries(held.purged + 20, u64::MAX);
                let purged = entries.await.unwrap()[0].log_id;
                log.purge(purged).await.unwrap();
            }
            "append" => {
                let first = match held.last {
                    (0, 0) => 0,
                    (_, last) => last + 1,
                };
                let entries = (first..=first + random(3)).map(|index| Entry {
                    log_id: id(index),
                    payload: EntryPayload::Normal(Batch(vec![Bytes::from(vec![
                        b'x';
                        random(9_000)
                            as usize
                    ])])),
                });
                let entries: Vec<_> = entries.collect();
                log.blocking_append(entries).await.unwrap();
                log.durable().all().await.unwrap();
            }
            _ => {
                drop(opened);
                opened = open(&dir, false).unwrap();
                let held = Held::by(&mut opened.0).await;
                told.write_all(held.line("closed").as_bytes()).unwrap();
            }
        }
    }
    let held = Held::by(&mut opened.0).await;
    drop(opened);
    told.write_all(held.line("end").as_bytes()).unwrap();
}

struct Recorded {
    device: Device,
    /// Where the log was.
    dir: PathBuf,
    random: Box<dyn FnMut(u64) -> u64>,
}

impl Recorded {
    fn new(planted: Option<&str>) -> Self {
        let device = Device::record("is_recorded", planted);
        let dir = device.folder("log");
        Self {
            device,
            dir,
            random: Box::new(random(5)),
        }
    }

    /// A moment at which something had been told.
    fn moment(&mut self) -> usize {
        let first = self.device.told[0].0 + 1;
        first + (self.random)((self.device.end - first) as u64) as usize
    }

    /// The log as the disk has it after a cut.
    fn after(&mut self, cut: usize, luck: Luck) -> TempDir {
        let work = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        self.device
            .restore(&self.dir, work.path(), cut, luck, &mut self.random);
        work
    }

    /// What was told last before a moment.
    fn told(&self, cut: usize) -> (&str, Held) {
        let told = self.device.told.iter().rev();
        let line = told.clone().find(|(at, _)| *at < cut).unwrap();
        Held::told(&line.1)
    }
}

fn times() -> u64 {
    env::var("FP_CUTS").map_or(24, |cuts| cuts.parse().unwrap())
}

/// What is wrong with a log after a cut, if something is.
async fn wrong_after(recorded: &mut Recorded, cut: usize, luck: Luck) -> Option<String> {
    let work = recorded.after(cut, luck);
    let (what, told) = recorded.told(cut);
    let found = match Held::found(work.path()).await {
        Ok(found) => found,
        Err(error) => return Some(format!("after {told:?}, in {what}: {}", error.chain())),
    };
    // What was begun may be done.
    let has = found.vote >= told.vote
        && found.purged >= told.purged
        && (found.last.1 >= told.last.1 || what == "truncate");
    (!has).then(|| format!("{told:?} was told, then {what}; there is {found:?}"))
}

#[tokio::test]
async fn a_log_that_was_cut_off_anywhere_opens_with_what_was_told() {
    let mut recorded = Recorded::new(None);
    for _ in 0..times() {
        let cut = recorded.moment();
        for luck in [Luck::Nothing, Luck::Everything, Luck::Any] {
            let wrong = wrong_after(&mut recorded, cut, luck).await;
            assert_eq!(wrong, None, "cut at line {cut}, {luck:?} is kept");
        }
    }
}

/// Damages the newest writes of a log that are on the disk.
fn damage(recorded: &mut Recorded, cut: usize, to: &Path) -> String {
    let db = recorded.dir.join("db");
    let sure = recorded.device.sure(&db, cut);
    let newest = (recorded.random)(8.min(sure.len() as u64)) as usize;
    let (how, content) = match (recorded.random)(3) {
        0 => {
            let mut content = fs::read(to.join("db")).unwrap();
            let Range { start, end } = sure[newest].clone();
            let at = start + (recorded.random)((end - start) as u64) as usize;
            // The file may have been cut shorter since.
            if let Some(byte) = content.get_mut(at) {
                *byte ^= 1 << (recorded.random)(8);
            }
            (format!("byte {at} of write {newest} is another"), content)
        }
        kind => {
            let lost = match kind {
                1 => newest..newest + 1,
                _ => 0..newest + 1,
            };
            let content = recorded.device.without(&db, cut, &lost);
            (format!("writes {lost:?} are lost"), content)
        }
    };
    fs::write(to.join("db"), content).unwrap();
    how
}

/// A log that was damaged is refused, or has what its mark names. It names the last vote that was given, always; the last entry if
/// the log was closed, and else one of those before it.
#[tokio::test]
async fn what_the_disk_lost_is_missed() {
    let mut recorded = Recorded::new(None);
    let (mut refused, mut ends) = (0, 0);
    for round in 0..3 * times() {
        let closed: Vec<usize> = recorded.closed();
        let cut = match round % 2 {
            0 => closed[(recorded.random)(closed.len() as u64) as usize],
            _ => recorded.moment(),
        };
        let work = recorded.after(cut, Luck::Nothing);
        let mark = Mark::read(&SledBackend::open(work.path(), false).unwrap()).unwrap();
        let marked = mark.last.map_or((0, 0), position);
        let (_, told) = recorded.told(cut);
        if round % 2 == 0 {
            assert_eq!(marked, told.last, "what was closed is marked");
        }
        let work = recorded.after(cut, Luck::Nothing);
        let how = damage(&mut recorded, cut, work.path());
        match Held::found(work.path()).await {
            Ok(found) => {
                let has = found.vote >= told.vote && found.last >= marked;
                assert!(has, "cut at line {cut}, {how}: {told:?}, {found:?}");
            }
            Err(error) => {
                refused += 1;
                let error = error.chain();
                let named = ["its end is missing", "it has fallen back", "its vote is"];
                ends += u64::from(named.iter().any(|name| error.contains(name)));
            }
        }
    }
    println!("{refused} are refused, {ends} of them by their mark");
    assert!(ends > 0);
}

impl Recorded {
    /// The moments at which the log had just been closed.
    fn closed(&self) -> Vec<usize> {
        let told = self.device.told.iter();
        let closed = told.filter(|(_, line)| ["closed", "end"].contains(&Held::told(line).0));
        closed.map(|(at, _)| at + 1).collect()
    }
}
