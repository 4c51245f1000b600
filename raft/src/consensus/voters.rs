//! Who should vote. Pure: called by [`super::membership`] before each step.
//!
//! An odd number votes, at most five. The leader stays. The others are spread over the zones, so that the loss of one leaves a
//! majority where it can; those that vote already come before those that could. A voter that has been away for long gives way
//! to a learner. What is chosen is chosen again when nothing else has changed.

use std::collections::{BTreeMap, BTreeSet};

use super::app::Members;

pub(super) type Ids = BTreeSet<u64>;

/// What voters are chosen by.
#[derive(Clone, Debug, Default)]
pub(super) struct Situation {
    /// The leader.
    pub(super) me: u64,
    /// Who votes; the newer set while they change.
    pub(super) voters: Ids,
    /// Whether the voters are being changed.
    pub(super) changing: bool,
    pub(super) learners: Ids,
    /// Who belongs to the cluster.
    pub(super) members: Members,
    /// Learners that could vote now.
    pub(super) ready: Ids,
    /// Nodes that have answered lately, the leader included.
    pub(super) live: Ids,
    /// Nodes that have not answered for long.
    pub(super) away: Ids,
    /// Learners that do not belong to the cluster any more and may not have heard of that yet.
    pub(super) parting: Ids,
}

/// How many of a number of members vote: an odd number, at most five. Two voters are worse than one, since the loss of
/// either stops them.
fn wanted(members: &Members) -> usize {
    match members.values().filter(|one| !one.is_expected).count() {
        0 => 0,
        1 | 2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// Who should vote, of those who can. The present voters where nothing better is sure to work.
pub(super) fn choose(now: &Situation) -> Ids {
    // Without a majority of them nothing can be agreed on.
    if now.voters.intersection(&now.live).count() * 2 <= now.voters.len() {
        return now.voters.clone();
    }
    let candidates = candidates(now);
    let wanted = wanted(&now.members);
    let most = candidates.len().min(wanted);
    let somebody_goes =
        now.voters.iter().any(|id| !candidates.contains(id)) || now.voters.len() > wanted;
    let sizes = (1..=most).rev().filter(|size| !size.is_multiple_of(2));
    for size in sizes {
        // Fewer than now only because somebody has to go, never for want of answers.
        if size < now.voters.len() && !somebody_goes {
            break;
        }
        if let Some(chosen) = pick(now, &candidates, size) {
            return chosen;
        }
    }
    now.voters.clone()
}

fn candidates(now: &Situation) -> Ids {
    let belongs = |id: &&u64| now.members.contains_key(*id);
    let stay = now.voters.iter().filter(belongs);
    let has_come = |id: &&u64| now.members.get(*id).is_some_and(|one| !one.is_expected);
    let join = now.ready.iter().filter(has_come);
    stay.chain(join).copied().collect()
}

/// So many of the candidates: one after the other the best that is left. `None` where no majority of them would be live, which could
/// never agree to have become one.
fn pick(now: &Situation, candidates: &Ids, size: usize) -> Option<Ids> {
    let mut chosen = Ids::new();
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    let mut silent = 0;
    while chosen.len() < size {
        let is_live = |id: u64| now.live.contains(&id);
        let may = |id: &u64| {
            let room = 2 * (silent + 1) < size;
            !chosen.contains(id) && (is_live(*id) || room)
        };
        let zone = |id: u64| now.members.get(&id).map_or("", |one| one.zone.as_str());
        let rank = |id: &u64| {
            let crowd = in_zone.get(zone(*id)).copied().unwrap_or(0);
            (
                *id != now.me,
                now.away.contains(id),
                crowd,
                !now.voters.contains(id),
                !is_live(*id),
                *id,
            )
        };
        let best = *candidates
            .iter()
            .filter(|id| may(id))
            .min_by_key(|id| rank(id))?;
        *in_zone.entry(zone(best)).or_default() += 1;
        silent += usize::from(!is_live(best));
        chosen.insert(best);
    }
    Some(chosen)
}

#[cfg(test)]
#[path = "voters_tests.rs"]
mod tests;
