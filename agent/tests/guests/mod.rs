//! The program's part in what guests are told and how they end: settings, secrets, rights, waiting. The agent at the other end lives
//! in the test.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tonic::Code;

use crate::{
    fake::{Fake, Reply, status},
    program::{Ran, command, fpagent},
};

/// Runs the program with something on its standard input.
async fn fed(address: &str, args: &[&str], input: &[u8]) -> Ran {
    let mut program = command(address, args);
    program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that refuses its arguments reads nothing.
    let _read = stdin.write_all(input).await;
    drop(stdin);
    child.wait_with_output().await.unwrap().into()
}

#[tokio::test]
async fn settings_and_secrets_arrive() {
    let fake = Fake::start().await;
    let path = fake.folder.path().join("token");
    std::fs::write(&path, b"hunter2\n").unwrap();
    let from_file = format!("token=@{}", path.display());
    let args = [
        "fork", "demo", "--set", "role=db", "--set", "e=", "--secret", &from_file, "--secret",
        "key=@-",
    ];
    let ran = fed(&fake.address, &args, b"\0binary").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let (settings, secrets) = fake.told().unwrap();
    assert_eq!(
        settings.into_iter().collect::<Vec<_>>(),
        [("e".into(), String::new()), ("role".into(), "db".into())]
    );
    assert_eq!(secrets["token"], b"hunter2\n"[..]);
    assert_eq!(secrets["key"], b"\0binary"[..]);
    fake.end().await;
}

#[tokio::test]
async fn a_request_that_is_sent_again_brings_its_secrets_again() {
    let fake = Fake::start().await;
    fake.will([Reply::Break]);
    let ran = fed(&fake.address, &["fork", "demo", "--secret", "key=@-"], b"x").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(fake.request_ids().len(), 2);
    assert_eq!(fake.told().unwrap().1["key"], b"x"[..]);
    fake.end().await;
}

#[tokio::test]
async fn a_secret_is_not_typed() {
    let fake = Fake::start().await;
    for (given, code) in [
        ("key=hunter2", 2),
        ("hunter2", 2),
        ("key=@/nonexistent/hunter", 1),
    ] {
        let ran = fpagent(&fake.address, &["fork", "demo", "--secret", given]).await;
        assert_eq!(
            (ran.code, ran.err.lines().count()),
            (code, 1),
            "{}",
            ran.err
        );
        assert!(ran.err.contains("the secret "), "{}", ran.err);
    }
    let ran = fpagent(&fake.address, &["fork", "demo", "--secret", "key=hunter2"]).await;
    assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    let twice = ["fork", "demo", "--secret", "a=@-", "--secret", "b=@-"];
    assert_eq!(fed(&fake.address, &twice, b"x").await.code, 2);
    assert!(fake.told().is_none(), "nothing was asked for");
    fake.end().await;
}

#[tokio::test]
async fn what_a_vm_is_made_with_is_shown() {
    let fake = Fake::start().await;
    let args = "vm create demo --image tiny --no-egress --publish 80 443 --allow-self-fork 39 --unready hold -o json";
    let ran = fpagent(&fake.address, &args.split(' ').collect::<Vec<_>>()).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let vm = ran.json();
    assert_eq!(vm["network"], json!({"kind": "user", "noEgress": true}));
    assert_eq!(vm["publish"], json!([80, 443]));
    assert_eq!(
        (&vm["selfFork"], &vm["unready"]),
        (&json!(39), &json!("hold"))
    );

    let args = "vm create demo --image tiny --network none -o json";
    let ran = fpagent(&fake.address, &args.split(' ').collect::<Vec<_>>()).await;
    assert_eq!(
        ran.json()["network"],
        json!({"kind": "none", "noEgress": false})
    );

    let disk = fake.folder.path().join("disk");
    std::fs::write(&disk, b"x").unwrap();
    let args = [
        "image",
        "import",
        "i",
        "--disk",
        disk.to_str().unwrap(),
        "--guest-agent",
        "qemu",
    ];
    let ran = fpagent(&fake.address, &[&args[..], &["-o", "json"]].concat()).await;
    assert_eq!(ran.json()["guestAgent"], "qemu");
    fake.end().await;
}

#[tokio::test]
async fn waiting_ends_as_the_vm_did() {
    let fake = Fake::start().await;
    let wait = async |vm: &str, what: &str| {
        fpagent(
            &fake.address,
            &["vm", "wait", vm, "--for", what, "-o", "json"],
        )
        .await
    };
    let ran = wait("exited-7", "exit").await;
    assert_eq!((ran.code, ran.err.as_str()), (7, ""));
    assert_eq!(ran.json()["ending"]["exitCode"], 7);
    let ran = wait("powered-off", "exit").await;
    assert_eq!(
        (ran.code, ran.json()["ending"]["exitCode"].clone()),
        (0, Value::Null)
    );
    let ran = wait("panicked", "exit").await;
    assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
    assert!(
        ran.err
            .contains("panicked failed: the guest's kernel panicked"),
        "{}",
        ran.err
    );
    assert_eq!(ran.json()["state"], "failed", "it is printed, too");
    assert_eq!(wait("demo", "running").await.code, 0);
    let ran = wait("demo", "port:80").await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("port 80"), "{}", ran.err);

    fake.will([Reply::Refuse(status(
        Code::Aborted,
        "WORK_FAILED",
        "VM \"demo\" failed: panic",
        "",
    ))]);
    let ran = wait("demo", "running").await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    fake.will([Reply::Never]);
    let args = ["vm", "wait", "demo", "--for", "exit", "--timeout", "300ms"];
    assert_eq!(fpagent(&fake.address, &args).await.code, 124);
    fake.end().await;
}
