//! Several members together: elections, proposals and reads from any of them, losses and returns.

mod support;

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use raft::consensus::{Config, ProposeError, ReadError};
use support::cluster::{Cluster, PATIENCE, within};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(60);

fn as_meant(_: &mut Config) {}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_take_proposals_anywhere_and_agree() {
    within(LIMIT, async {
        let cluster = Cluster::of(3, as_meant).await;
        for id in cluster.ids() {
            let text = format!("through {id}");
            let proposed = cluster.write(id, &text).await;
            // The node that took it has it already.
            assert!(cluster.texts(id).list.contains(&text));
            assert!(cluster.handle(id).status().applied >= proposed.index);
            assert_eq!(proposed.outcome, (id - 1).to_be_bytes());
        }
        for id in cluster.ids() {
            cluster.until_text(id, "through 3").await;
            let expected = ["through 1", "through 2", "through 3"];
            assert_eq!(cluster.texts(id).list, expected);
            assert!(cluster.handle(id).status().quorum_ok);
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_share_entries() {
    within(LIMIT, async {
        const COUNT: u64 = 500;
        let cluster = Cluster::of(3, as_meant).await;
        let before = cluster.handle(1).status().last_log;
        let writes = (0..COUNT).map(|n| {
            let handle = cluster.handle(n % 3 + 1);
            let ask = cluster.ask(&n.to_string());
            async move { handle.propose(ask, soon()).await.unwrap() }
        });
        let proposed = join_all(writes).await;
        let places: BTreeSet<Vec<u8>> = proposed.iter().map(|p| p.outcome.clone()).collect();
        assert_eq!(places.len(), proposed.len(), "each has its own outcome");
        let entries: BTreeSet<u64> = proposed.iter().map(|p| p.index).collect();
        let last = proposed.iter().map(|p| p.index).max().unwrap();
        println!("{COUNT} proposals in {} entries", entries.len());
        assert!(last - before < COUNT / 2, "{} entries", last - before);
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leader_takes_over_and_a_repeated_proposal_gets_its_answer() {
    within(LIMIT, async {
        let mut cluster = Cluster::of(3, as_meant).await;
        let first = cluster.ask("once");
        let leader = cluster.leader(2, &[]).await;
        let answer = cluster.handle(leader).propose(first.clone(), soon()).await;
        let others: Vec<u64> = cluster
            .ids()
            .into_iter()
            .filter(|id| *id != leader)
            .collect();

        // Requests are on their way while the leader goes.
        let flying = (0..40u64).map(|n| {
            let handle = cluster.handle(others[usize::from(n % 2 == 0)]);
            let ask = cluster.ask(&format!("flying {n}"));
            async move { handle.propose(ask, soon()).await.unwrap() }
        });
        let flying = tokio::spawn(join_all(flying.collect::<Vec<_>>()));
        let gone = Instant::now();
        cluster.stop(leader).await;
        let next = cluster.leader(others[0], &[leader]).await;
        println!("a new leader after {:?}", gone.elapsed());
        assert!(others.contains(&next));
        flying.await.unwrap();

        let again = cluster
            .handle(others[1])
            .propose(first, soon())
            .await
            .unwrap();
        assert_eq!(again.outcome, answer.unwrap().outcome);
        for id in others {
            cluster.handle(id).read_barrier(soon()).await.unwrap();
            let texts = cluster.texts(id);
            assert_eq!(texts.list.len(), 41);
            assert_eq!(texts.list.iter().filter(|t| *t == "once").count(), 1);
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_catches_up() {
    within(LIMIT, async {
        let mut cluster = Cluster::of(3, as_meant).await;
        cluster.write(1, "before").await;
        let leader = cluster.leader(1, &[]).await;
        let away = leader % 3 + 1;
        cluster.until_text(away, "before").await;
        cluster.stop(away).await;
        for n in 0..20 {
            cluster.write(leader, &format!("meanwhile {n}")).await;
        }
        cluster.start(away, false).await;
        // What was committed before it left is there at once.
        assert_eq!(cluster.texts(away).list[..1], ["before"]);
        cluster.until_text(away, "meanwhile 19").await;
        assert_eq!(cluster.texts(away), cluster.texts(leader));
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_long_gets_a_snapshot() {
    within(LIMIT, async {
        let often = |config: &mut Config| {
            config.snapshot_every = 20;
            config.keep_entries = 5;
            // It writes much: a busy disk is not what is tested.
            config.patience = PATIENCE;
        };
        let mut cluster = Cluster::of(3, often).await;
        let leader = cluster.leader(1, &[]).await;
        let away = leader % 3 + 1;
        cluster.stop(away).await;
        // More than one message of a snapshot.
        let large = "x".repeat(100 << 10);
        for n in 0..100 {
            cluster.write(leader, &format!("{n} {large}")).await;
        }
        cluster.write(leader, "last").await;
        cluster.start(away, false).await;
        cluster.until_text(away, "last").await;
        assert_eq!(cluster.texts(away), cluster.texts(leader));
        let snapshots = std::fs::read_dir(cluster.dir(away).join("snapshots")).unwrap();
        let sizes: Vec<u64> = snapshots
            .map(|f| f.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 1, "one snapshot is kept");
        assert!(sizes[0] > 5 << 20, "{} bytes", sizes[0]);

        // It stands on its own disk, too.
        cluster.stop(away).await;
        cluster.start(away, false).await;
        cluster.until_text(away, "last").await;
        assert_eq!(cluster.texts(away), cluster.texts(leader));
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_anywhere_see_what_was_answered() {
    within(LIMIT, async {
        let cluster = Cluster::of(3, as_meant).await;
        for round in 0..30u64 {
            let text = format!("round {round}");
            cluster.write(round % 3 + 1, &text).await;
            let reads = cluster.ids().into_iter().map(|id| {
                let handle = cluster.handle(id);
                async move { handle.read_barrier(soon()).await.unwrap() }
            });
            join_all(reads).await;
            for id in cluster.ids() {
                assert!(cluster.texts(id).list.contains(&text), "node {id}, {text}");
            }
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_requests_are_refused_soon() {
    within(LIMIT, async {
        for leader_stays in [true, false] {
            let mut cluster = Cluster::of(3, as_meant).await;
            let leader = cluster.leader(1, &[]).await;
            let stays = if leader_stays { leader } else { leader % 3 + 1 };
            for id in cluster.ids().into_iter().filter(|id| *id != stays) {
                cluster.stop(id).await;
            }
            let handle = cluster.handle(stays);
            let begun = Instant::now();
            let write = handle.propose(cluster.ask("in vain"), soon());
            let (write, read) = tokio::join!(write, handle.read_barrier(soon()));
            println!(
                "stays {stays}, leader {leader}: {write:?} after {:?}",
                begun.elapsed()
            );
            assert!(matches!(write, Err(ProposeError::NoLeader { .. })));
            assert_eq!(read, Err(ReadError::NoLeader));
            assert!(begun.elapsed() < Duration::from_secs(4));

            let begun = Instant::now();
            let write = handle.propose(cluster.ask("in vain"), soon()).await;
            let maybe_applied = false;
            assert_eq!(write, Err(ProposeError::NoLeader { maybe_applied }));
            assert!(begun.elapsed() < Duration::from_millis(100), "at once");
            assert!(!handle.status().quorum_ok);

            // It comes back by itself.
            let other = stays % 3 + 1;
            cluster.start(other, false).await;
            cluster
                .until_status(stays, "a majority", |status| status.quorum_ok)
                .await;
            cluster.write(stays, "again").await;
            cluster.end().await;
        }
    })
    .await;
}
