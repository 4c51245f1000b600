//! Machines that are captured at one instant: none goes on before all stand still and are captured. So whatever one of them has heard
//! from another in its snapshot, that one has said in its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::CaptureError;

/// Where they wait for each other, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// What may be done ahead is done.
    Prepared,
    /// The last round of copying before the stop is.
    Ready,
    /// It stands still, and all of its moment is read.
    Taken,
}

impl Stage {
    /// How long one waits for the others. In the last it stands still meanwhile.
    fn patience(self) -> Duration {
        match self {
            Self::Prepared => Duration::from_secs(60),
            Self::Ready => Duration::from_secs(10),
            Self::Taken => Duration::from_secs(5),
        }
    }
}

/// How many have come to each stage.
#[derive(Debug, Default)]
struct Progress {
    came: [usize; 3],
    is_broken: bool,
}

#[derive(Debug)]
struct Shared {
    members: usize,
    progress: watch::Sender<Progress>,
}

/// One machine's part in a capture of several. When it is dropped before its machine was captured, the others are not captured either.
#[derive(Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
    has_taken: AtomicBool,
}

/// One for each of so many machines.
pub fn together(members: usize) -> Vec<Ticket> {
    let shared = Arc::new(Shared {
        members,
        progress: watch::Sender::new(Progress::default()),
    });
    let ticket = |_| Ticket {
        shared: Arc::clone(&shared),
        has_taken: AtomicBool::new(false),
    };
    (0..members).map(ticket).collect()
}

impl Ticket {
    /// Says that this machine has come so far, and returns when all have, or it is certain that they will not.
    pub(super) async fn come_to(&self, stage: Stage) -> Result<(), CaptureError> {
        let Shared { members, progress } = &*self.shared;
        progress.send_modify(|progress| progress.came[stage as usize] += 1);
        let mut watched = progress.subscribe();
        let all =
            |progress: &Progress| progress.is_broken || progress.came[stage as usize] >= *members;
        let came = timeout(stage.patience(), watched.wait_for(all)).await;
        let is_broken = match came {
            // The sender is ours: it is there.
            Ok(progress) => progress.map_or(true, |progress| progress.is_broken),
            Err(_) => {
                progress.send_modify(|progress| progress.is_broken = true);
                return Err(CaptureError::Together("did not come so far in time"));
            }
        };
        if is_broken {
            return Err(CaptureError::Together("could not be captured"));
        }
        if stage == Stage::Taken {
            self.has_taken.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.has_taken.load(Ordering::Relaxed) {
            self.shared
                .progress
                .send_modify(|progress| progress.is_broken = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    fn two() -> (Ticket, Ticket) {
        let mut all = together(2).into_iter();
        (all.next().unwrap(), all.next().unwrap())
    }

    #[tokio::test]
    async fn nobody_goes_on_before_all_have_come() {
        let (one, other) = two();
        let first = tokio::spawn(async move {
            one.come_to(Stage::Ready).await.unwrap();
            one.come_to(Stage::Taken).await
        });
        yield_now().await;
        assert!(!first.is_finished());
        other.come_to(Stage::Ready).await.unwrap();
        for _ in 0..9 {
            yield_now().await;
        }
        assert!(!first.is_finished(), "it stands still until the other does");
        other.come_to(Stage::Taken).await.unwrap();
        first.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_that_fails_lets_the_others_go_on_and_fail() {
        let (one, other) = two();
        let first = tokio::spawn(async move { one.come_to(Stage::Taken).await });
        yield_now().await;
        drop(other);
        let failed = first.await.unwrap().unwrap_err().to_string();
        assert!(failed.contains("another member"), "{failed}");
    }

    #[tokio::test]
    async fn one_that_is_done_breaks_nothing_when_it_goes() {
        let (one, other) = two();
        let first =
            tokio::spawn(async move { one.come_to(Stage::Taken).await.map(|()| drop(one)) });
        other.come_to(Stage::Taken).await.unwrap();
        first.await.unwrap().unwrap();
        assert!(!other.shared.progress.borrow().is_broken);
    }
}
