//! What may be asked of a map that is left to the cluster.

use std::sync::Arc;

use super::super::{check_line, invalid, life};
use crate::state::{
    limits::{MAP_ITEMS, MAP_JOB, MAPS_HELD, MAPS_HELD_OF_OWNER, MAPS_OF_OWNER, most_of},
    model::{Map, MapJob, Millis, State},
    names,
    owners::Actor,
    response::{Kind, Rejection},
};

/// How many items may run at once.
const MOST_PARALLEL: u32 = 1_000;
/// How often an item may be done again.
const MOST_RETRIES: u32 = 100;
/// How long a map may be kept after its end: ten days.
const KEPT_FOR: std::ops::RangeInclusive<Millis> = 1..=10 * 24 * 3_600_000;

/// Refuses what is not to be done, or too much.
pub(super) fn check(
    state: &State,
    by: &Actor,
    name: Option<&str>,
    job: &MapJob,
    kept_for: Millis,
) -> Result<(), Rejection> {
    if let Some(name) = name {
        names::check_name("name", name)?;
        let is_it =
            |map: &Arc<Map>| map.name.as_deref() == Some(name) && map.ownership.owner == by.owner;
        if state.maps.values().any(is_it) {
            return Err(Rejection::NameTaken {
                kind: Kind::Map,
                name: name.to_owned(),
            });
        }
    }
    if !KEPT_FOR.contains(&kept_for) {
        return Err(invalid("keptForMs", "must be up to ten days"));
    }
    check_job(job)?;
    let own = state.maps.values();
    let own = own.filter(|map| map.ownership.owner == by.owner);
    let (mut maps, mut held) = (1, most_of(job));
    for map in own {
        maps += 1;
        held += map.held_bytes();
    }
    let all: u64 = state.maps.values().map(|map| map.held_bytes()).sum();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let free =
        "delete some that ended with `fpagent maps rm`, or wait until those that run have ended";
    let mut exceeded = Vec::new();
    if maps > MAPS_OF_OWNER {
        exceeded.push(format!("an owner may have {MAPS_OF_OWNER} maps: {free}"));
    }
    if held > MAPS_HELD_OF_OWNER {
        exceeded.push(format!(
            "with this one its maps could come to hold {} MiB, and may {}: {free}",
            mib(held),
            mib(MAPS_HELD_OF_OWNER)
        ));
    } else if all.saturating_add(most_of(job)) > MAPS_HELD {
        exceeded.push(format!(
            "with this one all maps of the cluster could come to hold more than {} MiB: {free}, or ask for fewer items",
            mib(MAPS_HELD)
        ));
    }
    match exceeded.is_empty() {
        true => Ok(()),
        false => Err(Rejection::OverQuota {
            owner: by.owner.clone(),
            exceeded,
        }),
    }
}

fn check_job(job: &MapJob) -> Result<(), Rejection> {
    if !(1..=MAP_ITEMS).contains(&job.count) {
        let problem =
            format!("must be 1 to {MAP_ITEMS} items where the map is left to the cluster");
        return Err(invalid("count", problem));
    }
    if !job.inputs.is_empty() && job.inputs.len() != job.count as usize {
        return Err(invalid("inputs", "must be one for each item"));
    }
    if job.argv.first().is_none_or(Vec::is_empty) {
        return Err(invalid("argv", "name a program"));
    }
    let holds_nul = |bytes: &[u8]| bytes.contains(&0);
    if job.argv.iter().any(|word| holds_nul(word)) {
        return Err(invalid("argv", "must not hold NUL"));
    }
    let is_setting = |text: &String| text.contains('=') && !holds_nul(text.as_bytes());
    if !job.env.iter().all(is_setting) {
        return Err(invalid("env", "must be NAME=VALUE, without NUL"));
    }
    if job.parallel > MOST_PARALLEL {
        let problem = format!("must be at most {MOST_PARALLEL}");
        return Err(invalid("parallel", problem));
    }
    if job.retries > MOST_RETRIES {
        let problem = format!("must be at most {MOST_RETRIES}");
        return Err(invalid("retries", problem));
    }
    if !life::LEASE_TTL.contains(&job.lease_ttl) {
        return Err(invalid("leaseTtlMs", "must be 10 s to 24 h"));
    }
    if job.spread && !job.node.is_empty() {
        let problem = "forks are spread over all nodes or go to one: say either";
        return Err(invalid("spread", problem));
    }
    check_line("user", &job.user)?;
    check_line("node", &job.node)?;
    if job
        .reduce
        .as_ref()
        .is_some_and(|line| holds_nul(line.as_bytes()))
    {
        return Err(invalid("reduce", "must not hold NUL"));
    }
    if job.bytes() > MAP_JOB {
        return Err(invalid(
            "inputs",
            format!(
                "what is asked of a map that is left to the cluster may take {} KiB, and this takes {}: hand the input over in the image,                  or run the map without --detach",
                MAP_JOB >> 10,
                job.bytes().div_ceil(1 << 10)
            ),
        ));
    }
    Ok(())
}
