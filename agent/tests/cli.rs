//! The program as scripts call it: exit codes, one line of error, JSON; and how a host joins. The agent at the other end
//! lives in the test and answers as it is told; sockets, TLS, certificates and tokens are real.

#![allow(
    clippy::unwrap_used,
    reason = "a panic in a test is a failure with a place"
)]

mod fake;
mod guests;
mod program;

use std::{path::Path, time::Duration};

use fake::{Fake, Reply};
use program::fpagent;
use serde_json::Value;
use tokio::process::Command;
use tonic::Code;

fn refusal(code: Code, reason: &str, message: &str) -> Reply {
    Reply::Refuse(fake::status(code, reason, message, "do better"))
}

#[tokio::test]
async fn exit_codes() {
    let fake = Fake::start().await;
    let cases = [
        (
            refusal(Code::NotFound, "NOT_FOUND", "there is no VM"),
            1,
            "fpagent: there is no VM; do better\n",
        ),
        (
            refusal(Code::DeadlineExceeded, "PENDING", "not yet"),
            124,
            "fpagent: not yet; do better\n",
        ),
        (
            refusal(Code::Unavailable, "NODE_OFFLINE", "b is away"),
            1,
            "fpagent: b is away; do better\n",
        ),
        (
            refusal(Code::Unavailable, "NO_QUORUM", "no leader"),
            3,
            "fpagent: no leader; do better\n",
        ),
        (Reply::Never, 124, "fpagent: no answer within 500ms\n"),
    ];
    for (reply, code, line) in cases {
        fake.will_always(Some(reply));
        let ran = fpagent(&fake.address, &["vm", "show", "demo", "--timeout", "500ms"]).await;
        assert_eq!(
            (ran.code, ran.err.as_str(), ran.out.as_str()),
            (code, line, "")
        );
    }
    fake.will_always(None);
    let ran = fpagent(&fake.address, &["vm", "show", "demo"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(fpagent(&fake.address, &["vm", "show"]).await.code, 2);
    let nobody = format!("unix://{}/nobody.sock", fake.folder.path().display());
    let ran = fpagent(&nobody, &["vm", "ls"]).await;
    assert_eq!((ran.code, ran.err.lines().count()), (3, 1), "{}", ran.err);
    fake.end().await;
}

#[tokio::test]
async fn a_request_is_sent_again_under_its_id() {
    let fake = Fake::start().await;
    fake.will([
        refusal(Code::Unavailable, "NO_QUORUM", "electing"),
        Reply::Break,
    ]);
    // The first address is nobody's.
    let addresses = format!(
        "unix://{}/nobody.sock,{}",
        fake.folder.path().display(),
        fake.address
    );
    let ran = fpagent(
        &addresses,
        &["vm", "create", "demo", "--image", "tiny", "-o", "json"],
    )
    .await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.json()["name"], "demo");
    let ids = fake.request_ids();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(
        ids.iter().all(|id| id == &ids[0] && id.len() == 26),
        "{ids:?}"
    );
    fake.end().await;
}

#[tokio::test]
async fn a_users_request_id_is_used() {
    let fake = Fake::start().await;
    let ran = fpagent(
        &fake.address,
        &["vm", "rm", "a", "b", "--request-id", "mine"],
    )
    .await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "NAME  OUTCOME\na     deleted\nb     deleted\n")
    );
    assert_eq!(fake.request_ids(), ["mine-0", "mine-1"]);
    fake.end().await;
}

#[tokio::test]
async fn a_refused_vm_does_not_keep_the_others() {
    let fake = Fake::start().await;
    fake.will([refusal(Code::NotFound, "NOT_FOUND", "there is no VM \"a\"")]);
    let ran = fpagent(&fake.address, &["vm", "rm", "a", "b", "-o", "json"]).await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "fpagent: there is no VM \"a\"; do better\n")
    );
    let items = &ran.json()["items"];
    assert_eq!(
        (&items[0]["deleted"], &items[1]["deleted"]),
        (&Value::Bool(false), &Value::Bool(true))
    );
    fake.end().await;
}

#[tokio::test]
async fn a_fork() {
    let fake = Fake::start().await;
    let ran = fpagent(&fake.address, &["fork", "demo", "-n", "2", "-o", "json"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let fork = ran.json();
    assert_eq!(fork["pauseMs"], 5.5);
    assert_eq!(fork["children"][1]["name"], "demo-2");
    assert_eq!(fork["children"][1]["runningMs"], 81.25);
    let ran = fpagent(&fake.address, &["fork", "demo", "-n", "2"]).await;
    assert!(
        ran.out
            .ends_with("2 running after 81.2 ms; the parent stood still for 5.5 ms\n"),
        "{}",
        ran.out
    );
    let ran = fpagent(&fake.address, &["fork", "broken", "-n", "2", "-o", "json"]).await;
    assert_eq!(
        (ran.code, &ran.json()["children"][0]["error"]),
        (1, &Value::from("no memory"))
    );
    assert!(
        ran.err
            .starts_with("fpagent: 2 of 2 forks failed: no memory; "),
        "{}",
        ran.err
    );
    fake.end().await;
}

#[tokio::test]
async fn lists_and_trees() {
    let fake = Fake::start().await;
    let ran = fpagent(&fake.address, &["vm", "ls", "-o", "json"]).await;
    assert_eq!(ran.json()["items"][0]["state"], "running");
    let ran = fpagent(&fake.address, &["tree"]).await;
    assert_eq!(
        ran.out,
        "demo  running  host-a\n`- @golden  ready\n   `- demo-1  running  host-a\n"
    );
    let ran = fpagent(&fake.address, &["tree", "@golden", "-o", "json"]).await;
    assert_eq!(ran.json()["children"][0]["name"], "demo-1");
    assert_eq!(fpagent(&fake.address, &["tree", "nothing"]).await.code, 1);
    let ran = fpagent(&fake.address, &["logs", "demo"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "hello\nworld\n"));
    fake.end().await;
}

#[tokio::test]
async fn an_image_arrives_whole() {
    let fake = Fake::start().await;
    let (kernel, disk) = (
        fake.folder.path().join("vmlinuz"),
        fake.folder.path().join("disk.qcow2"),
    );
    std::fs::write(&kernel, vec![1; (1 << 20) + 1]).unwrap();
    std::fs::write(&disk, b"disk").unwrap();
    let (kernel, disk) = (kernel.to_str().unwrap(), disk.to_str().unwrap());
    let import = [
        "image",
        "import",
        "tiny",
        "--kernel",
        kernel,
        "--disk",
        disk,
        "--cmdline",
        "-x y",
        "-o",
        "json",
    ];
    let ran = fpagent(&fake.address, &import).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let image = ran.json();
    assert_eq!(
        (&image["name"], &image["cmdline"]),
        (&Value::from("tiny"), &Value::from("-x y"))
    );
    let sizes: Vec<_> = image["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["sizeBytes"].as_u64())
        .collect();
    assert_eq!(sizes, [Some((1 << 20) + 1), Some(4)]);
    let ran = fpagent(
        &fake.address,
        &["image", "import", "tiny", "--disk", "/nonexistent"],
    )
    .await;
    assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
    fake.end().await;
}

#[tokio::test]
async fn doctor_tells_by_its_exit_code() {
    let fake = Fake::start().await;
    let ran = fpagent(&fake.address, &["doctor"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("qemu"), "{}", ran.out);
    assert_eq!(
        ran.err,
        "fpagent: one check failed; do what its hint says, and check again\n"
    );
    let ran = fpagent(&fake.address, &["status"]).await;
    assert_eq!(ran.code, 0);
    assert!(
        ran.out.contains("problem   host-b is offline"),
        "{}",
        ran.out
    );
    fake.end().await;
}

fn join_args<'a>(dir: &'a Path, name: &'a str, token: &'a str) -> [&'a str; 11] {
    let dir = dir.to_str().unwrap();
    [
        "join",
        "-o",
        "json",
        "--data-dir",
        dir,
        "--name",
        name,
        "--listen",
        "127.0.0.1:7999",
        "--token",
        token,
    ]
}

#[tokio::test]
async fn a_host_joins() {
    let fake = Fake::start().await;
    let dir = fake.folder.path().join("joined");
    let token = fpagent(&fake.address, &["token", "create"]).await.out;
    let ran = fpagent(&fake.address, &join_args(&dir, "host-b", &token)).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        (&ran.json()["outcome"], &ran.json()["nodeId"]),
        (&Value::from("new"), &Value::from(2))
    );
    let node = agent::trust::identity::DataDir::new(&dir).load().unwrap();
    assert_eq!(node.identity.members[0].name, "host-a");
    node.credentials.check().unwrap();

    let ran = fpagent(&fake.address, &join_args(&dir, "host-b", &token)).await;
    assert_eq!(
        (ran.code, &ran.json()["outcome"]),
        (0, &Value::from("already"))
    );

    // Used up: gets nowhere, and leaves nothing behind.
    let other = fake.folder.path().join("other");
    let ran = fpagent(&fake.address, &join_args(&other, "host-c", &token)).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(
        ran.err.contains("refuses this certificate or token"),
        "{}",
        ran.err
    );
    assert!(!other.exists());

    let mut altered = token.trim().to_owned();
    altered.pop();
    let ran = fpagent(&fake.address, &join_args(&other, "host-c", &altered)).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("damaged"), "{}", ran.err);
    fake.end().await;
}

#[tokio::test]
async fn a_host_that_cannot_keep_the_answer_withdraws_and_leaves_nothing() {
    let fake = Fake::start().await;
    fake.will_lie();
    let dir = fake.folder.path().join("not/there/yet");
    let token = fpagent(&fake.address, &["token", "create"]).await.out;
    let ran = fpagent(&fake.address, &join_args(&dir, "host-b", &token)).await;
    assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
    assert!(ran.err.contains("authority"), "{}", ran.err);
    assert_eq!(fake.withdrawn(), 1);
    assert!(!fake.folder.path().join("not").exists());
    // A directory that was there stays; what cannot be used at all is said before anybody is asked.
    let there = fake.folder.path().join("there");
    std::fs::create_dir(&there).unwrap();
    let ran = fpagent(&fake.address, &join_args(&there, "host-b", &token)).await;
    assert_eq!((ran.code, fake.withdrawn()), (1, 2), "{}", ran.err);
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
    std::fs::write(there.join("notes.txt"), "mine").unwrap();
    let ran = fpagent(&fake.address, &join_args(&there, "host-b", &token)).await;
    assert_eq!((ran.code, fake.withdrawn()), (1, 2), "{}", ran.err);
    assert!(ran.err.contains("notes.txt"), "{}", ran.err);
    fake.end().await;
}

#[tokio::test]
async fn a_node_of_another_cluster_does_not_join() {
    let (fake, another) = (Fake::start().await, Fake::start().await);
    let dir = fake.folder.path().join("joined");
    let token = fpagent(&fake.address, &["token", "create"]).await.out;
    assert_eq!(
        fpagent(&fake.address, &join_args(&dir, "host-b", &token))
            .await
            .code,
        0
    );
    let token = fpagent(&another.address, &["token", "create"]).await.out;
    let ran = fpagent(&fake.address, &join_args(&dir, "host-b", &token)).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("belongs to the cluster"), "{}", ran.err);
    fake.end().await;
    another.end().await;
}

#[tokio::test]
async fn over_the_network_only_with_this_clusters_certificate() {
    let (fake, another) = (Fake::start().await, Fake::start().await);
    let certs = |fake: &Fake| fake.certs.to_str().unwrap().to_owned();
    let args = |certs: &str| ["vm", "ls", "--certs", certs].map(str::to_owned);
    let call = async |certs: &str| {
        let args = args(certs);
        fpagent(&fake.https, &args.each_ref().map(String::as_str)).await
    };
    assert_eq!(call(&certs(&fake)).await.code, 0);
    let ran = call(&certs(&another)).await;
    assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
    assert_eq!(
        fpagent(&fake.https, &["vm", "ls"]).await.code,
        2,
        "no certificate at all"
    );
    fake.end().await;
    another.end().await;
}

#[tokio::test]
async fn following_ends_silently_when_nobody_reads() {
    let fake = Fake::start().await;
    let mut follow = Command::new(env!("CARGO_BIN_EXE_fpagent"));
    follow
        .env_clear()
        .args(["logs", "-f", "demo", "--addr", &fake.address]);
    follow
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut follow = follow.spawn().unwrap();
    drop(follow.stdout.take());
    let output = tokio::time::timeout(Duration::from_secs(30), follow.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), b"".as_slice())
    );
    fake.end().await;
}
