use std::time::Duration;

use tokio::{
    io::{DuplexStream, duplex},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::channel::message::{Answer, Looks, Request};

/// Moves an end's bytes; streams that the other side begins are handed out.
fn drive(
    mut wire: Wire<DuplexStream>,
    link: Link,
    opened: tokio::sync::mpsc::UnboundedSender<Stream>,
) -> JoinHandle<Option<Violation>> {
    tokio::spawn(async move {
        while let Ok(Some(Ok(frame))) = wire.next(Some(&link)).await {
            match link.receive(frame) {
                Ok(Came::Opened { stream, .. }) => drop(opened.send(link.stream(stream))),
                Ok(Came::Handled) => {}
                Err(violation) => return Some(violation),
            }
        }
        link.lose(&Broken::Lost("it ended".to_owned()));
        None
    })
}

struct Ends {
    host: Link,
    came: tokio::sync::mpsc::UnboundedReceiver<Stream>,
    guest_task: JoinHandle<Option<Violation>>,
}

fn ends() -> Ends {
    let (near, far) = duplex(8 << 10);
    let (host, guest) = (Link::new(Side::Host, 5), Link::new(Side::Guest, 5));
    let (opened, came) = tokio::sync::mpsc::unbounded_channel();
    drive(Wire::new(near), host.clone(), opened.clone());
    let guest_task = drive(Wire::new(far), guest, opened);
    Ends {
        host,
        came,
        guest_task,
    }
}

#[tokio::test]
async fn much_goes_through_a_small_pipe_and_back() {
    let Ends { host, mut came, .. } = ends();
    let near = host.open(&Request::default()).unwrap();
    let far = came.recv().await.unwrap();
    let echo = tokio::spawn(async move {
        while let Some(bytes) = far.take(0).await.unwrap() {
            far.send(1, bytes).await.unwrap();
        }
        far.end(1);
        far.tell(&Answer::default()).await.unwrap();
        far.close();
    });
    let sender = near.clone();
    let sent = tokio::spawn(async move {
        for number in 0..4000u32 {
            let piece: Vec<u8> = (0..500).map(|at| (number + at) as u8).collect();
            sender.send(0, piece).await.unwrap();
        }
        sender.end(0);
    });
    let mut got = Vec::new();
    while let Some(bytes) = near.take(1).await.unwrap() {
        got.extend_from_slice(&bytes);
    }
    assert_eq!(got.len(), 4000 * 500);
    let right = got
        .chunks(500)
        .enumerate()
        .all(|(number, piece)| piece[0] == number as u8 && piece[499] == (number + 499) as u8);
    assert!(right);
    assert!(near.hear::<Answer>().await.unwrap().is_some());
    assert_eq!(near.hear::<Answer>().await.unwrap(), None);
    sent.await.unwrap();
    echo.await.unwrap();
    drop(near);
    assert!(host.is_idle());
}

#[tokio::test]
async fn a_stalled_reader_does_not_hold_up_others() {
    let Ends { host, mut came, .. } = ends();
    let stalled = host.open(&Request::default()).unwrap();
    let far = came.recv().await.unwrap();
    let flood = tokio::spawn(async move { while far.send(1, vec![1; 9000]).await.is_ok() {} });
    for _ in 0..50 {
        let near = host.open(&Request::default()).unwrap();
        let far = came.recv().await.unwrap();
        far.tell(&Looks {
            memory_total: 7,
            ..Looks::default()
        })
        .await
        .unwrap();
        let heard = timeout(Duration::from_secs(20), near.hear::<Looks>());
        assert_eq!(heard.await.unwrap().unwrap().unwrap().memory_total, 7);
    }
    assert!(!flood.is_finished());
    drop(stalled);
    timeout(Duration::from_secs(20), flood)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn what_is_dropped_is_told_to_the_other_side() {
    let Ends {
        host,
        mut came,
        guest_task,
    } = ends();
    let near = host.open(&Request::default()).unwrap();
    let far = came.recv().await.unwrap();
    drop(near);
    assert_eq!(far.take(0).await, Err(Broken::Cancelled));
    let near = host.open(&Request::default()).unwrap();
    let far = came.recv().await.unwrap();
    far.fail("no");
    assert_eq!(near.take(1).await, Err(Broken::Failed("no".to_owned())));
    assert!(!guest_task.is_finished());
}
