//! Members whose disks are slow, stand still or fail: nothing is told as done that is not on enough disks.

mod support;

use std::time::Duration;

use raft::consensus::{Config, Handle, ProposeError, Proposed};
use support::{
    app::TextApp,
    cluster::{Cluster, PATIENCE, within},
    disk::Mood,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Long for what is on its way, short for a disk that stands still.
const MOMENT: Duration = Duration::from_millis(700);

/// Requests wait for a disk longer than it stands still.
fn patient(config: &mut Config) {
    config.patience = PATIENCE;
}

/// Proposes a text through a member, without waiting for it.
fn propose(cluster: &Cluster, id: u64, text: &str) -> JoinHandle<Result<Proposed, ProposeError>> {
    let (handle, ask): (Handle<TextApp>, _) = (cluster.handle(id), cluster.ask(text));
    tokio::spawn(async move { handle.propose(ask, Instant::now() + PATIENCE).await })
}

/// Waits until a member's log has more than it had.
async fn until_longer(cluster: &Cluster, id: u64, last: u64) {
    let handle = cluster.handle(id);
    while handle.status().last_log <= last {
        sleep(Duration::from_millis(5)).await;
    }
}

fn holds(cluster: &Cluster, id: u64, text: &str) -> bool {
    cluster.texts(id).list.iter().any(|there| there == text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leaders_disk_does_not_have_is_done_nowhere() {
    within(LIMIT, async {
        let cluster = Cluster::of(3, patient).await;
        let leader = cluster.leader(1, &[]).await;
        let (term, last) = (
            cluster.handle(leader).status().term,
            cluster.handle(leader).status().last_log,
        );
        cluster.set_disk(leader, Mood::StandsStill);
        let proposed = propose(&cluster, leader, "held");
        // The others have it on their disks meanwhile: that is the majority that openraft asks for, together with a leader who
        // has not.
        for id in cluster.ids() {
            until_longer(&cluster, id, last).await;
        }
        sleep(MOMENT).await;
        assert!(!proposed.is_finished());
        for id in cluster.ids() {
            assert!(!holds(&cluster, id, "held"), "node {id} has applied it");
        }
        cluster.set_disk(leader, Mood::Works);
        proposed.await.unwrap().unwrap();
        for id in cluster.ids() {
            cluster.until_text(id, "held").await;
        }
        assert_eq!(cluster.handle(leader).status().term, term, "no election");
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_follower_has_not_on_its_disk_does_not_count() {
    within(LIMIT, async {
        let mut cluster = Cluster::of(3, patient).await;
        let leader = cluster.leader(1, &[]).await;
        let others: Vec<u64> = cluster
            .ids()
            .into_iter()
            .filter(|id| *id != leader)
            .collect();
        cluster.stop(others[0]).await;
        let last = cluster.handle(leader).status().last_log;
        cluster.set_disk(others[1], Mood::StandsStill);
        let proposed = propose(&cluster, leader, "held");
        until_longer(&cluster, others[1], last).await;
        sleep(MOMENT).await;
        assert!(!proposed.is_finished());
        assert!(!holds(&cluster, leader, "held"));
        cluster.set_disk(others[1], Mood::Works);
        proposed.await.unwrap().unwrap();
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_stands_still_is_replaced() {
    within(LIMIT, async {
        let cluster = Cluster::of(3, patient).await;
        let slow = cluster.leader(1, &[]).await;
        let other = cluster.ids().into_iter().find(|id| *id != slow).unwrap();
        cluster.set_disk(slow, Mood::StandsStill);
        let waits = propose(&cluster, slow, "waits");
        cluster.leader(other, &[slow]).await;
        cluster.write(other, "goes on").await;
        assert!(!holds(&cluster, slow, "waits"));

        cluster.set_disk(slow, Mood::Works);
        cluster.until_text(slow, "goes on").await;
        waits.await.unwrap().unwrap();
        for id in cluster.ids() {
            cluster.until_text(id, "waits").await;
            assert_eq!(cluster.texts(id).list, cluster.texts(slow).list);
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_fails_ends_and_the_others_go_on() {
    within(LIMIT, async {
        let cluster = Cluster::of(3, patient).await;
        let broken = cluster.leader(1, &[]).await;
        let other = cluster.ids().into_iter().find(|id| *id != broken).unwrap();
        cluster.set_disk(broken, Mood::Fails);
        let refused = propose(&cluster, broken, "lost");
        let mut fatal = cluster.handle(broken).fatal();
        let why = timeout(PATIENCE, fatal.wait_for(Option::is_some)).await;
        let why = why.unwrap().unwrap().clone().unwrap();
        assert!(why.contains("no disk"), "{why}");
        let refused = refused.await.unwrap();
        assert!(
            matches!(refused, Err(ProposeError::Stopped { .. })),
            "{refused:?}"
        );
        cluster.leader(other, &[broken]).await;
        cluster.write(other, "goes on").await;
        assert!(!holds(&cluster, broken, "lost"));
        cluster.end().await;
    })
    .await;
}
