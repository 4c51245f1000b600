//! When what nobody waits for comes. A guest that has just begun to run stands still for one page after another, and each comes sooner over a link
//! that has nothing else to carry, from a host that packs nothing else.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// It is quiet when nobody has waited for anything for so long.
const QUIET: Duration = Duration::from_millis(100);
/// No file waits longer for that: there are guests that read on and on.
const AT_LATEST: Duration = Duration::from_millis(1500);

/// When somebody here stood still last for something that comes.
#[derive(Debug, Default)]
pub struct Quiet(Mutex<Option<Instant>>);

impl Quiet {
    fn last(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody stands still now.
    pub fn end(&self) {
        *self.last() = Some(Instant::now());
    }

    /// Waits until it is quiet, or a file that began to come then has waited long enough.
    pub async fn begun(&self, file_began: Instant) {
        loop {
            let last = *self.last();
            let until = last.map(|last| (last + QUIET).min(file_began + AT_LATEST));
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => sleep_until(until).await,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timers count in milliseconds, and end after their time.
    fn is_about(took: Duration, meant: Duration) -> bool {
        (meant..=meant + Duration::from_millis(2)).contains(&took)
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_comes_when_it_is_quiet_and_soon_all_the_same() {
        let (quiet, began) = (Quiet::default(), Instant::now());
        quiet.begun(began).await;
        assert!(is_about(began.elapsed(), Duration::ZERO));
        quiet.end();
        quiet.begun(began).await;
        assert!(is_about(began.elapsed(), QUIET));

        let began = Instant::now();
        let asks = async {
            loop {
                quiet.end();
                sleep_until(Instant::now() + QUIET / 2).await;
            }
        };
        tokio::select! {
            biased;
            () = asks => {}
            () = quiet.begun(began) => {}
        }
        let took = began.elapsed();
        assert!(is_about(took, AT_LATEST), "{took:?}");
    }
}
