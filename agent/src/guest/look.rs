//! How a guest says that it is, fit to be shown.

use std::time::Duration;

use guest::channel::message::{Look, Looks, request};
use proto::v1::{GuestAgent, GuestInfo};
use tokio::time::timeout;

use super::{Contact, Guest, shown};

/// How long a guest may take to say how it is.
const PATIENCE: Duration = Duration::from_millis(400);
/// The most that is shown of a name or a version, characters.
const LONGEST: usize = 200;
/// The most addresses that are shown.
const MOST_ADDRESSES: usize = 16;

/// Asks a guest. `None` when its agent does not answer; with less in it when it does not say how it is in time.
pub async fn look(guest: &Guest) -> Option<GuestInfo> {
    if let Contact::Qemu(qemu) = guest.contact() {
        return Some(GuestInfo {
            agent: GuestAgent::Qemu.into(),
            agent_version: qemu.version.clone(),
            ..GuestInfo::default()
        });
    }
    let session = guest.session().ok()?;
    let looks = timeout(PATIENCE, ask(guest)).await.ok().flatten();
    let looks = looks.unwrap_or_default();
    let welcome = &session.welcome;
    Some(GuestInfo {
        agent: GuestAgent::Forkypig.into(),
        agent_version: shown(&welcome.agent_version, LONGEST),
        os: shown(&welcome.os, LONGEST),
        kernel: shown(&welcome.kernel, LONGEST),
        hostname: shown(&looks.hostname, LONGEST),
        addresses: looks
            .addresses
            .iter()
            .take(MOST_ADDRESSES)
            .map(|address| shown(address, LONGEST))
            .collect(),
        memory_bytes: looks.memory_total,
        available_bytes: looks.memory_available,
    })
}

async fn ask(guest: &Guest) -> Option<Looks> {
    let stream = guest.open(request::What::Look(Look {})).ok()?;
    stream.hear::<Looks>().await.ok().flatten()
}
