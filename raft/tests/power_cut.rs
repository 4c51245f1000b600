//! The power is cut at any moment, of all members at once: what was answered is on the disks of a majority, every log opens or is
//! recognised as damaged, and the members go on from what their disks hold.
//!
//! What three members write is recorded below the store (`support::device`), and replayed up to a moment, with some of what was not
//! synced then. `FP_CUTS` says how many moments (12).

// clippy knows tests, not what they share: a panic there is a failure with a place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;
use openraft::{EntryPayload, RaftLogReader as _};
use raft::log::{Identity, LogError, LogStore, sled::SledBackend};
use support::{
    app::Ask,
    cluster::{Cluster, PATIENCE, within},
    device::{Device, Luck, TOLD, random},
};
use tempfile::TempDir;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(240);
const MEMBERS: u64 = 3;
/// How many texts are proposed.
const TEXTS: u64 = 150;

/// What is recorded: members that are proposed to from all sides, and a leader that goes and comes back.
#[test]
#[ignore = "the other tests run it, and record what it writes"]
fn is_recorded() {
    let told = Arc::new(Mutex::new(File::create(env::var(TOLD).unwrap()).unwrap()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(within(LIMIT, async {
        // A traced process is slow.
        let patient = |config: &mut raft::consensus::Config| {
            config.patience = PATIENCE;
            config.heartbeat *= 5;
            config.election.0 *= 5;
            config.election.1 *= 5;
        };
        let mut cluster = Cluster::of(MEMBERS, patient).await;
        for half in 0..2 {
            let writes = (0..4).map(|writer| {
                let (cluster, told) = (&cluster, Arc::clone(&told));
                async move {
                    for number in
                        (half * TEXTS / 2..(half + 1) * TEXTS / 2).filter(|n| n % 4 == writer)
                    {
                        let text =
                            format!("{number} {}", "x".repeat((number * 131 % 9_000) as usize));
                        cluster.write(writer % MEMBERS + 1, &text).await;
                        let line = format!("{number}\n");
                        told.lock().unwrap().write_all(line.as_bytes()).unwrap();
                    }
                }
            });
            join_all(writes).await;
            if half == 0 {
                let leader = cluster.leader(1, &[]).await;
                cluster.stop(leader).await;
                cluster.leader(leader % MEMBERS + 1, &[leader]).await;
                cluster.start(leader, false).await;
            }
        }
        cluster.end().await;
    }));
}

/// A record, and where the members' folders were.
struct Recorded {
    device: Device,
    folder: PathBuf,
    /// The first moment at which the cluster was there.
    first: usize,
}

fn record(planted: Option<&str>) -> Recorded {
    let device = Device::record("is_recorded", planted);
    let folder = device.folder_of("log/db").expect("no log was written");
    let first = device.told.first().expect("nothing was answered").0;
    assert_eq!(device.told.len() as u64, TEXTS);
    Recorded {
        device,
        folder,
        first,
    }
}

/// The numbers of the texts in a member's log, in its order.
async fn texts_of(folder: &Path, id: u64) -> Result<Vec<String>, LogError> {
    let identity = Identity {
        cluster_id: "test".into(),
        node_id: id,
    };
    let backend = SledBackend::open(&folder.join("log"), false)?;
    let (mut log, _guard) = LogStore::open(backend, &identity)?;
    let read = log.try_get_log_entries(..).await;
    let entries = read.map_err(|error| LogError::Damaged(error.to_string()))?;
    let mut texts = Vec::new();
    for entry in entries {
        let EntryPayload::Normal(batch) = entry.payload else {
            continue;
        };
        for proposal in &batch.0 {
            if let Ok(Ask::Text(_, text)) = raft::codec::decode(proposal, 1 << 24) {
                texts.push(text.split(' ').next().unwrap().to_owned());
            }
        }
    }
    Ok(texts)
}

/// What is wrong after a cut, if something is.
async fn wrong_after(
    recorded: &Recorded,
    cut: usize,
    luck: Luck,
    random: &mut impl FnMut(u64) -> u64,
) -> Option<String> {
    let work = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Recorded { device, folder, .. } = recorded;
    device.restore(folder, work.path(), cut, luck, random);
    let mut held = Vec::new();
    for id in 1..=MEMBERS {
        match texts_of(&work.path().join(id.to_string()), id).await {
            Ok(texts) => held.push(texts),
            Err(error) => return Some(format!("the log of {id} does not open: {error:?}")),
        }
    }
    let answered = device.told.iter().filter(|(at, _)| *at < cut);
    for (_, text) in answered {
        let holders = held.iter().filter(|texts| texts.contains(text)).count();
        if holders <= held.len() / 2 {
            return Some(format!(
                "{text} was answered, and {holders} members have it"
            ));
        }
    }
    None
}

/// Looks at so many moments. Gives what was wrong first.
async fn look(recorded: &Recorded, cuts: u64) -> Option<String> {
    let mut random = random(7);
    for _ in 0..cuts {
        let span = (recorded.device.end - recorded.first) as u64;
        let cut = recorded.first + random(span + 1) as usize;
        for luck in [Luck::Nothing, Luck::Everything, Luck::Any, Luck::Any] {
            if let Some(wrong) = wrong_after(recorded, cut, luck, &mut random).await {
                return Some(format!("cut at line {cut}, {luck:?} is kept: {wrong}"));
            }
        }
    }
    None
}

fn cuts() -> u64 {
    env::var("FP_CUTS").map_or(12, |cuts| cuts.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_on_a_majority_of_the_disks() {
    let recorded = record(None);
    let wrong = look(&recorded, cuts()).await;
    assert_eq!(wrong, None);
}

/// The members themselves, from what their disks hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_go_on_from_what_their_disks_hold() {
    within(LIMIT, async {
        let recorded = record(None);
        let Recorded {
            device,
            folder,
            first,
        } = &recorded;
        let mut random = random(11);
        for round in 1..=4 {
            let cut = first + (device.end - first) * round / 4;
            let work = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            device.restore(folder, work.path(), cut, Luck::Any, &mut random);
            let cluster = Cluster::back(work, MEMBERS, |_| {}).await;
            cluster.write(2, "goes on").await;
            for id in cluster.ids() {
                let handle = cluster.handle(id);
                let barrier = handle.read_barrier(Instant::now() + PATIENCE);
                barrier.await.unwrap();
                let texts = cluster.texts(id);
                let has = |number: &str| {
                    let is_it = |text: &String| text.split(' ').next() == Some(number);
                    texts.list.iter().any(is_it)
                };
                for (at, text) in &device.told {
                    assert!(*at >= cut || has(text), "node {id} has no {text}");
                }
            }
            cluster.end().await;
        }
    })
    .await;
}

/// A log that the disk damaged does not open, or cannot be read, or holds all that was written. `log_end` looks closer at its newest
/// writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_the_disk_damaged_is_recognised() {
    let recorded = record(None);
    let Recorded { device, folder, .. } = &recorded;
    let mut random = random(13);
    let whole = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    device.restore(
        folder,
        whole.path(),
        device.end,
        Luck::Everything,
        &mut random,
    );
    let expected = texts_of(&whole.path().join("1"), 1).await.unwrap();
    let mut refused = 0;
    for _ in 0..cuts() {
        let work = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        device.restore(
            folder,
            work.path(),
            device.end,
            Luck::Everything,
            &mut random,
        );
        let log = work.path().join("1");
        let db = log.join("log/db");
        let mut content = fs::read(&db).unwrap();
        // A sector that was written and is another.
        let used: Vec<usize> = (0..content.len() / 512)
            .filter(|sector| content[sector * 512..][..512].iter().any(|byte| *byte != 0))
            .collect();
        let sector = used[random(used.len() as u64) as usize];
        for byte in &mut content[sector * 512..][..512] {
            *byte ^= 0x55;
        }
        fs::write(&db, content).unwrap();
        match texts_of(&log, 1).await {
            Ok(texts) => assert_eq!(texts, expected, "sector {sector}"),
            Err(error) => {
                refused += 1;
                assert!(error.chain().contains("log"), "{error}");
            }
        }
    }
    println!("{refused} are refused");
    assert!(refused > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_comes_before_the_log_is_found() {
    let recorded = record(Some("log.mark-first"));
    let wrong = look(&recorded, cuts()).await.expect("it is found");
    assert!(wrong.contains("missing"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_does_not_sync_is_found() {
    let recorded = record(Some("log.no-fdatasync"));
    let wrong = look(&recorded, cuts()).await;
    println!("{wrong:?}");
    assert!(wrong.is_some());
}
