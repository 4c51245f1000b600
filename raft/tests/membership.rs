//! Who votes follows who belongs to the cluster; and what ends a member.

mod support;

use std::{collections::BTreeSet, time::Duration};

use proto::peer::{RaftMessage, ReadIndexRequest, raft_service_client::RaftServiceClient};
use raft::{
    consensus::{Config, ProposeError, ReadError, StartError, Status, start},
    log::LogError,
};
use support::{
    app::{Ask, TextApp},
    cluster::{Cluster, PATIENCE, within},
};
use tokio::time::Instant;
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(60);

fn as_meant(_: &mut Config) {}

fn votes(status: &Status, voters: &[u64], learners: &[u64]) -> bool {
    !status.changing
        && status.voters == voters.iter().copied().collect()
        && status.learners == learners.iter().copied().collect::<BTreeSet<u64>>()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_votes_and_all_of_three() {
    within(LIMIT, async {
        let mut cluster = Cluster::of_one(as_meant).await;
        cluster.start(2, true).await;
        cluster.set_members(1, &[1, 2]).await;
        cluster
            .until_status(1, "2 learns", |s| votes(s, &[1], &[2]))
            .await;
        cluster.write(2, "through a learner").await;
        cluster
            .handle(2)
            .read_barrier(Instant::now() + PATIENCE)
            .await
            .unwrap();

        // It is named before it runs.
        cluster.set_members(2, &[1, 2, 3]).await;
        cluster
            .until_status(1, "3 is awaited", |s| votes(s, &[1], &[2, 3]))
            .await;
        cluster.write(2, "without 3").await;
        cluster.start(3, true).await;
        cluster
            .until_status(1, "all vote", |s| votes(s, &[1, 2, 3], &[]))
            .await;
        cluster.until_text(3, "without 3").await;

        // The learner's loss matters to nobody.
        cluster.set_members(2, &[1, 2]).await;
        cluster
            .until_status(2, "one votes", |s| s.voters.len() == 1 && !s.changing)
            .await;
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_leader_hands_over() {
    within(LIMIT, async {
        let mut cluster = Cluster::of(3, as_meant).await;
        cluster.start(4, true).await;
        let leader = cluster.leader(1, &[]).await;
        let rest: Vec<u64> = (1..=4).filter(|id| *id != leader).collect();
        cluster.set_members(leader, &rest).await;
        cluster
            .until_status(rest[0], "the rest votes", |s| votes(s, &rest, &[]))
            .await;
        let next = cluster.leader(rest[0], &[leader]).await;
        assert!(rest.contains(&next));
        cluster.stop(leader).await;
        cluster.write(4, "without the first leader").await;
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_voter_is_replaced_when_it_is_removed() {
    within(LIMIT, async {
        let mut cluster = Cluster::of(3, as_meant).await;
        let leader = cluster.leader(1, &[]).await;
        let lost = leader % 3 + 1;
        cluster.stop(lost).await;
        cluster.start(4, true).await;
        cluster.set_members(leader, &[1, 2, 3, 4]).await;
        cluster
            .until_status(leader, "4 learns", |s| votes(s, &[1, 2, 3], &[4]))
            .await;
        let rest: Vec<u64> = (1..=4).filter(|id| *id != lost).collect();
        cluster.set_members(leader, &rest).await;
        cluster
            .until_status(leader, "4 votes", |s| votes(s, &rest, &[]))
            .await;
        cluster.end().await;
    })
    .await;
}

fn impatient(config: &mut Config) {
    config.away = Duration::from_secs(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_away_for_long_gives_way_and_comes_back_for_its_zone() {
    within(LIMIT, async {
        let mut cluster = Cluster::of(3, impatient).await;
        cluster.start(4, true).await;
        let leader = cluster.leader(1, &[]).await;
        let lost = leader % 3 + 1;
        let last = 6 - leader - lost;
        let zones = [(leader, "a"), (lost, "b"), (last, "c"), (4, "a")];
        cluster.set_zones(leader, &zones).await;
        cluster
            .until_status(leader, "4 learns", |s| votes(s, &[1, 2, 3], &[4]))
            .await;
        cluster.stop(lost).await;
        let left = [leader, last, 4];
        cluster
            .until_status(leader, "4 votes", |s| votes(s, &left, &[lost]))
            .await;
        cluster.start(lost, false).await;
        cluster
            .until_status(leader, "it is back", |s| votes(s, &[1, 2, 3], &[4]))
            .await;
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_removed_is_let_go_when_that_is_sure() {
    within(LIMIT, async {
        let cluster = Cluster::of(3, as_meant).await;
        let leader = cluster.leader(1, &[]).await;
        let follower = leader % 3 + 1;
        let last = 6 - leader - follower;
        for member in [follower, leader] {
            let handle = cluster.handle(member);
            let early = tokio::time::timeout(Duration::from_millis(300), handle.let_go());
            assert!(early.await.is_err(), "{member} votes");
        }
        cluster.set_members(leader, &[leader, last]).await;
        cluster.handle(follower).let_go().await;
        cluster.set_members(leader, &[last]).await;
        cluster.handle(leader).let_go().await;
        cluster
            .until_status(last, "it votes alone", |s| s.voters == [last].into())
            .await;
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_applied_ends_the_member() {
    within(LIMIT, async {
        let cluster = Cluster::of_one(as_meant).await;
        let handle = cluster.handle(1);
        let mut fatal = handle.fatal();
        let deadline = Instant::now() + PATIENCE;
        let write = handle.propose(Ask::Poison.bytes(), deadline).await;
        let stopped = matches!(write, Err(ProposeError::Stopped { .. }));
        assert!(stopped, "{write:?}");
        let reason = fatal.wait_for(Option::is_some).await.unwrap().clone();
        let reason = reason.unwrap();
        assert!(reason.contains("it is poisoned"), "{reason}");
        let read = handle.read_barrier(deadline).await;
        assert_eq!(read, Err(ReadError::Stopped));
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_does_not_get_into_the_log() {
    within(LIMIT, async {
        let cluster = Cluster::of(3, as_meant).await;
        for id in cluster.ids() {
            let deadline = Instant::now() + PATIENCE;
            let garbage = b"not a proposal".to_vec();
            let write = cluster.handle(id).propose(garbage, deadline).await;
            assert_eq!(write, Err(ProposeError::Unreadable), "through {id}");
        }
        cluster.write(2, "going on").await;
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_others_are_refused() {
    within(LIMIT, async {
        let cluster = Cluster::of_one(as_meant).await;
        let channel = cluster.dialer().channel(1).await.unwrap();
        let mut client = RaftServiceClient::new(channel);
        for (cluster_id, target, code) in [
            ("test", 1, Code::InvalidArgument),
            ("other", 1, Code::FailedPrecondition),
            ("test", 2, Code::FailedPrecondition),
        ] {
            let message = RaftMessage {
                cluster_id: cluster_id.into(),
                target,
                payload: b"\x01nonsense".to_vec().into(),
            };
            let refused = client.vote(message.clone()).await;
            assert_eq!(refused.unwrap_err().code(), code);
            let refused = client.append_entries(message.clone()).await;
            assert_eq!(refused.unwrap_err().code(), code);
            let refused = client.propose(message).await;
            assert_eq!(refused.unwrap_err().code(), code);
        }
        let request = ReadIndexRequest {
            cluster_id: "test".into(),
            target: 2,
        };
        let refused = client.read_index(request).await;
        assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_disk_does_not_start() {
    within(LIMIT, async {
        let mut cluster = Cluster::of_one(as_meant).await;
        cluster.stop(1).await;
        std::fs::remove_dir_all(cluster.dir(1).join("log")).unwrap();
        let config = Config::new(1, "test", cluster.dir(1));
        let started = start::<TextApp>(config, cluster.dialer()).await;
        let error = started.err().unwrap();
        assert!(
            matches!(error, StartError::Log(LogError::Missing(_))),
            "{error}"
        );
    })
    .await;
}
