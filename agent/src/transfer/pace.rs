//! When what is sent may be: no more in a second than this node is to send, and what somebody stands still for before the rest.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// How far ahead of the bound what is sent may be.
const BURST: Duration = Duration::from_millis(20);
/// How long what is not urgent waits for what is.
const GIVES_WAY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Pace {
    /// The most bytes a second that are sent; `None` for as many as there is room for.
    rate: Option<u64>,
    /// When the bytes that were sent last will have had their time, and those of them that somebody stood still for.
    paid_until: Mutex<Paid>,
    /// How many are being answered that stand still.
    urgent: watch::Sender<usize>,
}

/// See [`Pace`].
#[derive(Debug)]
struct Paid {
    all: Instant,
    urgent: Instant,
}

/// An answer that somebody stands still for.
pub struct Urgent<'a>(&'a Pace);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.urgent.send_modify(|count| *count -= 1);
    }
}

impl Pace {
    /// With a bound, bytes a second.
    pub fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            paid_until: Mutex::new(Paid {
                all: Instant::now(),
                urgent: Instant::now(),
            }),
            urgent: watch::Sender::new(0),
        }
    }

    /// Waits until so many bytes may be sent. What is urgent waits for nothing else; the rest makes up for that.
    pub async fn wait(&self, bytes: usize, urgent: bool) {
        if !urgent {
            let mut urgent = self.urgent.subscribe();
            // Not for ever: who takes urgent answers slowly must not hold up everybody. The sender is ours: it is there.
            let _free_or_late = timeout(GIVES_WAY, urgent.wait_for(|count| *count == 0)).await;
        }
        let Some(rate) = self.rate else { return };
        let (now, takes) = (
            Instant::now(),
            Duration::from_secs_f64(bytes as f64 / rate as f64),
        );
        let until = {
            let mut paid = self
                .paid_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            paid.all = paid.all.max(now) + takes;
            if urgent {
                paid.urgent = paid.urgent.max(now) + takes;
                paid.urgent
            } else {
                paid.all
            }
        };
        if until > now + BURST {
            sleep_until(until - BURST).await;
        }
    }

    /// Has everything that is not urgent wait until the result is dropped.
    pub fn give_way(&self) -> Urgent<'_> {
        self.urgent.send_modify(|count| *count += 1);
        Urgent(self)
    }
}
