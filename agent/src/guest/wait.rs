//! Waiting for what happens inside a guest.

use std::{sync::Arc, time::Duration};

use guest::channel::mux::Broken;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Contact, Guest, Unheard, connect};

/// Between two tries to connect to a port that nobody listens on; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// And at most so long.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What became of a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// It is so.
    Met,
    /// It will not be: why.
    Never(String),
    /// The time is over.
    Open,
}

/// Waits until a guest has become itself, with all that follows on that, and its clock is right.
pub async fn settled(guest: &Guest, deadline: Instant) -> Waited {
    let mut contact = guest.watch();
    let settled = contact.wait_for(|contact| match contact {
        Contact::Speaking(session) => session.welcome.settled,
        Contact::Silent => false,
        Contact::Qemu(_) | Contact::Unsound(_) => true,
    });
    let clock = match timeout_at(deadline, settled).await {
        Ok(Ok(contact)) => match &*contact {
            Contact::Unsound(why) => return Waited::Never(why.clone()),
            Contact::Silent | Contact::Qemu(_) => return Waited::Met,
            Contact::Speaking(session) => Arc::clone(&session.clock),
        },
        Ok(Err(_)) | Err(_) => return Waited::Open,
    };
    match timeout_at(deadline, clock.is_right()).await {
        Ok(()) => Waited::Met,
        Err(_) => Waited::Open,
    }
}

/// Waits until something in a guest takes connections to a port.
pub async fn listens(guest: &Guest, port: u32, deadline: Instant) -> Waited {
    let mut pause = FIRST_PAUSE;
    loop {
        match timeout_at(deadline, connect(guest, "", port)).await {
            // Given up at once: it was there to be taken.
            Ok(Ok(_)) => return Waited::Met,
            Ok(Err(Unheard::Unsound(why))) => return Waited::Never(why),
            Ok(Err(error @ Unheard::Unable(_))) => return Waited::Never(error.to_string()),
            Ok(Err(Unheard::Silent | Unheard::Broken(Broken::Failed(_) | Broken::Lost(_)))) => {}
            Ok(Err(Unheard::Broken(other))) => return Waited::Never(other.to_string()),
            Err(_) => return Waited::Open,
        }
        if timeout_at(deadline, sleep(pause)).await.is_err() {
            return Waited::Open;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
