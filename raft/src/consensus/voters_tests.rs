use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::consensus::app::Member;

fn ids<const N: usize>(ids: [u64; N]) -> Ids {
    Ids::from(ids)
}

/// Members, each with its zone.
fn members<const N: usize>(members: [(u64, &str); N]) -> Members {
    let member = |zone: &str| Member {
        zone: zone.to_owned(),
        is_expected: false,
    };
    members.map(|(id, zone)| (id, member(zone))).into()
}

/// Node 1 leads, all members are live, and those that do not vote could.
fn situation<const V: usize>(voters: [u64; V], members: Members) -> Situation {
    let voters = ids(voters);
    let all: Ids = members.keys().copied().collect();
    let learners: Ids = all.difference(&voters).copied().collect();
    Situation {
        me: 1,
        ready: learners.clone(),
        live: &all | &voters,
        voters,
        learners,
        members,
        ..Situation::default()
    }
}

#[test]
fn voters_are_spread_over_zones() {
    let three = members([(1, "a"), (2, "a"), (3, "b"), (4, "c")]);
    assert_eq!(choose(&situation([1, 2, 3], three.clone())), ids([1, 3, 4]));
    // The leader stays, whatever else there is in its zone.
    let led_by_two = Situation {
        me: 2,
        ..situation([1, 2, 3], three)
    };
    assert_eq!(choose(&led_by_two), ids([2, 3, 4]));
    // No zone has a majority where that can be.
    let two_zones = members([(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "b")]);
    assert_eq!(
        choose(&situation([1, 2, 3, 4, 5], two_zones.clone())),
        ids([1, 2, 3, 4, 5]),
        "nothing is won by another"
    );
    let crowded = situation([1, 2, 3, 4, 5], {
        let mut members = two_zones;
        members.insert(7, Member::default());
        members
    });
    assert_eq!(choose(&crowded), ids([1, 2, 4, 5, 7]));
}

#[test]
fn those_without_a_zone_count_as_of_one() {
    let unlabelled = members([(1, ""), (2, ""), (3, ""), (4, "")]);
    assert_eq!(choose(&situation([1, 2, 4], unlabelled)), ids([1, 2, 4]));
    let some = members([(1, ""), (2, ""), (3, ""), (4, "a")]);
    assert_eq!(choose(&situation([1, 2, 3], some)), ids([1, 2, 4]));
}

#[test]
fn a_voter_that_is_away_for_long_gives_way_to_a_learner() {
    let all = || members([(1, "a"), (2, "b"), (3, "c"), (4, "a")]);
    let silent = Situation {
        live: ids([1, 2, 4]),
        ..situation([1, 2, 3], all())
    };
    assert_eq!(choose(&silent), ids([1, 2, 3]), "it may come back");
    let away = Situation {
        away: ids([3]),
        ..silent.clone()
    };
    assert_eq!(choose(&away), ids([1, 2, 4]));
    let nobody_else = Situation {
        ready: ids([]),
        ..away.clone()
    };
    assert_eq!(choose(&nobody_else), ids([1, 2, 3]));
    // It is back: its zone is worth the change, and an equal one would not be.
    let back = situation([1, 2, 4], all());
    assert_eq!(choose(&back), ids([1, 2, 3]));
    let equal = members([(1, "a"), (2, "b"), (3, "c"), (4, "c")]);
    assert_eq!(choose(&situation([1, 2, 4], equal)), ids([1, 2, 4]));
}

#[test]
fn who_has_never_been_there_counts_for_nothing() {
    let mut expected = members([(1, ""), (2, ""), (3, ""), (4, ""), (5, "")]);
    for id in [4, 5] {
        expected.insert(
            id,
            Member {
                zone: "z".to_owned(),
                is_expected: true,
            },
        );
    }
    let now = situation([1, 2, 3], expected);
    assert_eq!(choose(&now), ids([1, 2, 3]));
}

/// Any nodes, in any zones; some vote, some are silent, some for long.
fn any_situation() -> impl Strategy<Value = Situation> {
    let node = (
        select(&["", "a", "b", "c"][..]),
        any::<bool>(),
        // Whether it is a member, votes, could vote.
        (0..10u8, 0..2u8, any::<bool>()),
        0..6u8,
    );
    (vec(node, 1..9), any::<u8>()).prop_map(|(nodes, me)| {
        let mut now = Situation::default();
        for (id, (zone, expected, (member, voter, caught_up), silence)) in (1u64..).zip(nodes) {
            if member > 0 {
                let one = Member {
                    zone: zone.to_owned(),
                    is_expected: expected && voter == 0,
                };
                now.members.insert(id, one);
            }
            let votes = voter == 1 && now.voters.len() < 5;
            match votes {
                true => now.voters.insert(id),
                false => now.learners.insert(id),
            };
            match silence {
                0 => drop(now.away.insert(id)),
                1 => {}
                _ => drop(now.live.insert(id)),
            }
            if caught_up && !votes && now.live.contains(&id) {
                now.ready.insert(id);
            }
        }
        // Somebody leads, which is live.
        let place = usize::from(me) % now.voters.len().max(1);
        now.me = now.voters.iter().nth(place).copied().unwrap_or(1);
        now.voters.insert(now.me);
        now.learners.remove(&now.me);
        now.ready.remove(&now.me);
        now.away.remove(&now.me);
        now.live.insert(now.me);
        now
    })
}

fn zones(of: &Ids, members: &Members) -> usize {
    let zones: BTreeSet<&str> = of
        .iter()
        .filter_map(|id| members.get(id))
        .map(|one| one.zone.as_str())
        .collect();
    zones.len()
}

/// The same after the choice has been made: whoever no longer votes learns, and could vote again when it is live.
fn after(now: &Situation, chosen: &Ids) -> Situation {
    let all = &now.voters | &now.learners;
    let left: Ids = now.voters.difference(chosen).copied().collect();
    let could: Ids = left.intersection(&now.live).copied().collect();
    Situation {
        learners: all.difference(chosen).copied().collect(),
        ready: &now.ready.difference(chosen).copied().collect() | &could,
        voters: chosen.clone(),
        ..now.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn the_choice_is_sound_and_stays(now in any_situation()) {
        let chosen = choose(&now);
        if chosen == now.voters {
            return Ok(());
        }
        prop_assert_eq!(chosen.len() % 2, 1, "it is odd: {:?}", chosen);
        prop_assert!(chosen.len() <= 5 && chosen.len() <= now.members.len().max(1));
        let live = chosen.intersection(&now.live).count();
        prop_assert!(live * 2 > chosen.len(), "{:?} has no live majority", chosen);
        let may = |id: &u64| now.members.contains_key(id)
            && (now.voters.contains(id) || now.ready.contains(id));
        prop_assert!(chosen.iter().all(may), "{:?}", chosen);
        if now.members.contains_key(&now.me) {
            prop_assert!(chosen.contains(&now.me), "the leader stays");
        }
        // Fewer vote only where somebody had to go.
        let most = now.voters.iter().all(|id| now.members.contains_key(id))
            && now.voters.len() <= wanted(&now.members);
        prop_assert!(!most || chosen.len() >= now.voters.len());
        // Those that are put in the place of others are worth it: more zones, a fuller spread, or somebody was away.
        if most && chosen.len() == now.voters.len() && now.away.is_disjoint(&now.voters) {
            prop_assert!(zones(&chosen, &now.members) >= zones(&now.voters, &now.members));
        }
        // And again, by whoever leads then.
        let then = after(&now, &chosen);
        prop_assert_eq!(&choose(&then), &chosen);
        for me in chosen.intersection(&now.live) {
            let led = Situation { me: *me, ..then.clone() };
            prop_assert_eq!(&choose(&led), &chosen, "led by {}", me);
        }
    }
}
