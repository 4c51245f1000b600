use super::*;
use crate::consensus::app::Member;

fn ids<const N: usize>(ids: [u64; N]) -> Ids {
    Ids::from(ids)
}

/// Node 1 leads, and all are live.
fn situation<const V: usize, const L: usize, const M: usize>(
    voters: [u64; V],
    learners: [u64; L],
    members: [u64; M],
) -> Situation {
    Situation {
        me: 1,
        voters: ids(voters),
        learners: ids(learners),
        members: members.map(|id| (id, Member::default())).into(),
        ready: ids(learners),
        live: ids(voters).union(&ids(learners)).copied().collect(),
        ..Situation::default()
    }
}

/// Takes steps until there are none, and returns who votes and who learns then.
fn settle(mut now: Situation) -> (Ids, Ids) {
    for _ in 0..20 {
        match next_step(&now) {
            None => return (now.voters, now.learners),
            Some(Step::Finish(_)) => now.changing = false,
            Some(Step::AddLearner(id)) => {
                now.learners.insert(id);
                now.ready.insert(id);
                now.live.insert(id);
            }
            Some(Step::SetVoters(voters)) => {
                let all: Ids = now.voters.union(&now.learners).copied().collect();
                now.learners = all.difference(&voters).copied().collect();
                now.ready = now.learners.intersection(&now.live).copied().collect();
                now.voters = voters;
                now.changing = true;
            }
            Some(Step::Remove(gone)) => {
                now.learners.retain(|id| !gone.contains(id));
                now.ready.retain(|id| !gone.contains(id));
            }
        }
    }
    panic!("it does not settle: {now:?}");
}

#[test]
fn an_odd_number_votes() {
    let alone = || situation([1], [], [1]);
    let with = |members: &[u64]| Situation {
        members: members.iter().map(|id| (*id, Member::default())).collect(),
        ..alone()
    };
    assert_eq!(settle(with(&[])), (ids([1]), ids([])));
    assert_eq!(settle(with(&[1])), (ids([1]), ids([])));
    assert_eq!(settle(with(&[1, 2])), (ids([1]), ids([2])));
    assert_eq!(settle(with(&[1, 2, 3])), (ids([1, 2, 3]), ids([])));
    assert_eq!(settle(with(&[1, 2, 3, 4])), (ids([1, 2, 3]), ids([4])));
    let seven = with(&[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(settle(seven), (ids([1, 2, 3, 4, 5]), ids([6, 7])));
}

#[test]
fn who_is_gone_is_replaced_or_removed() {
    let replaced = situation([1, 2, 3], [4], [1, 3, 4]);
    assert_eq!(settle(replaced), (ids([1, 3, 4]), ids([])));
    let two_left = situation([1, 2, 3], [], [1, 3]);
    assert_eq!(settle(two_left), (ids([1]), ids([3])));
    let leader_gone = situation([1, 2, 3], [4], [2, 3, 4]);
    assert_eq!(settle(leader_gone), (ids([2, 3, 4]), ids([])));
}

#[test]
fn nobody_votes_who_is_behind_or_away() {
    let behind = Situation {
        ready: ids([2]),
        ..situation([1], [2, 3], [1, 2, 3])
    };
    assert_eq!(next_step(&behind), None);
    let away = Situation {
        live: ids([1, 2]),
        ..situation([1, 2, 3], [4], [1, 2, 3, 4])
    };
    assert_eq!(next_step(&away), None, "being away removes nobody");
    let shrinking = Situation {
        live: ids([1, 4, 5]),
        ..situation([1, 2, 3, 4, 5], [], [1, 2, 3, 4])
    };
    // Two of three are live; 3, which is away, keeps its vote only for want of others.
    assert_eq!(next_step(&shrinking), Some(Step::SetVoters(ids([1, 2, 4]))));
    let hopeless = Situation {
        live: ids([1]),
        ..situation([1, 2, 3], [], [2, 3])
    };
    assert_eq!(next_step(&hopeless), None, "2 and 3 are away, 1 is to go");
}

#[test]
fn a_change_that_was_begun_is_ended_first() {
    let changing = Situation {
        changing: true,
        ..situation([1, 2, 3], [], [1])
    };
    assert_eq!(next_step(&changing), Some(Step::Finish(ids([1, 2, 3]))));
}

#[test]
fn a_node_that_was_removed_is_told_before_it_is_left_alone() {
    let parting = Situation {
        parting: ids([3]),
        ..situation([1], [2, 3, 4], [1, 2])
    };
    assert_eq!(next_step(&parting), Some(Step::Remove(ids([4]))));
    let removed = situation([1], [2, 3], [1, 2]);
    assert_eq!(next_step(&removed), Some(Step::Remove(ids([3]))));
}
