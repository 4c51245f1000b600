//! As little as can be that has to be brought.

use std::cmp::Reverse;

use super::{Request, Taker};

/// How exactly the least load is looked for: within a twentieth.
const EXACTNESS: u64 = 20;

/// The hosts that are to share a request: of all choices that have room for it and to which the least has to be brought, one whose largest load
/// is the least.
pub(super) fn nearest<'a>(request: &Request, takers: &[Taker<'a>]) -> Vec<Taker<'a>> {
    let (here, far): (Vec<Taker<'a>>, Vec<Taker<'a>>) = takers
        .iter()
        .copied()
        .partition(|taker| taker.host.moves_bytes == 0);
    let room: u64 = here.iter().map(|taker| u64::from(taker.most)).sum();
    if room >= u64::from(request.count) {
        return here;
    }
    let choice = |limit: u64| -> Option<(u64, Vec<usize>)> {
        let within = |takers: &[Taker<'a>]| -> Vec<u32> {
            takers
                .iter()
                .map(|one| one.within(request, limit))
                .collect()
        };
        let near: u32 = within(&here).iter().sum::<u32>().min(request.count);
        let moves: Vec<u64> = far.iter().map(|taker| taker.host.moves_bytes).collect();
        cheapest((request.count - near) as usize, &moves, &within(&far))
    };
    let mut heaviest = takers
        .iter()
        .map(|taker| taker.host.load_with(request, taker.most))
        .max()
        .unwrap_or(0);
    let Some((least, mut chosen)) = choice(heaviest) else {
        return takers.to_vec();
    };
    let mut lightest = 0;
    while heaviest - lightest > heaviest / EXACTNESS && heaviest - lightest > 1 {
        let middle = lightest + (heaviest - lightest) / 2;
        match choice(middle) {
            Some((moves, found)) if moves <= least => (heaviest, chosen) = (middle, found),
            _ => lightest = middle,
        }
    }
    let mut all = here;
    all.extend(chosen.into_iter().map(|number| far[number]));
    all
}

impl Taker<'_> {
    /// How many it takes without more load than this.
    fn within(&self, request: &Request, limit: u64) -> u32 {
        // The load grows with each.
        let (mut fit, mut over) = (0, self.most + 1);
        while over - fit > 1 {
            let middle = fit + (over - fit) / 2;
            match self.host.load_with(request, middle) <= limit {
                true => fit = middle,
                false => over = middle,
            }
        }
        fit
    }
}

/// Some that have room for so many together at the least cost, and the cost: the knapsack problem, solved exactly. `None` when not all
/// of them have.
fn cheapest(count: usize, costs: &[u64], room: &[u32]) -> Option<(u64, Vec<usize>)> {
    let some = useful(count, costs, room);
    // The least cost of room for each number, and of which the last one was chosen for that, row by row.
    let mut least = vec![u64::MAX; count + 1];
    least[0] = 0;
    let mut is_taken = vec![false; some.len() * (count + 1)];
    for (row, number) in some.iter().enumerate() {
        let taken = &mut is_taken[row * (count + 1)..][..=count];
        for wanted in (1..=count).rev() {
            let without = least[wanted.saturating_sub(room[*number] as usize)];
            let with = without.saturating_add(costs[*number]);
            if with < least[wanted] {
                (least[wanted], taken[wanted]) = (with, true);
            }
        }
    }
    if least[count] == u64::MAX {
        return None;
    }
    let (mut wanted, mut chosen) = (count, Vec::new());
    for (row, number) in some.iter().enumerate().rev() {
        if is_taken[row * (count + 1) + wanted] {
            chosen.push(*number);
            wanted = wanted.saturating_sub(room[*number] as usize);
        }
    }
    Some((least[count], chosen))
}

/// Those that may be chosen: of some that cost the same, the roomiest that have room for all, which mostly are a few of a thousand.
fn useful(count: usize, costs: &[u64], room: &[u32]) -> Vec<usize> {
    let mut all: Vec<usize> = (0..costs.len()).filter(|one| room[*one] > 0).collect();
    all.sort_by_key(|one| (costs[*one], Reverse(room[*one])));
    let (mut cost, mut enough) = (None, 0);
    all.retain(|one| {
        if cost != Some(costs[*one]) {
            (cost, enough) = (Some(costs[*one]), 0);
        }
        let is_useful = enough < count;
        enough += room[*one] as usize;
        is_useful
    });
    all
}
