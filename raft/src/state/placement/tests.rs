//! The planner against every way that there is, where they can be counted, and what it says when there is none.

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

const MIB: u64 = 1 << 20;

fn host(node: NodeId) -> Host<'static> {
    Host {
        node,
        name: ["", "node1", "node2", "node3", "node4"][node as usize],
        zone: "",
        unfit: None,
        memory_bytes: 4096 * MIB,
        cpus: 4,
        load: Load::default(),
        vms: 0,
        room: None,
        shared_bytes: 0,
        moves_bytes: 0,
        disk_bytes: 0,
    }
}

fn room(memory_mib: u32) -> Option<Room> {
    let disk_mib = 1_000;
    Some(Room {
        memory_mib,
        disk_mib,
    })
}

fn forks(count: u32, order: Order) -> Request {
    Request {
        count,
        order,
        memory_bytes: 16 * MIB,
        cpus: 1,
        disk_bytes: MIB,
        one_each: false,
    }
}

/// How many each host gets.
fn counts(request: &Request, hosts: &[Host<'_>]) -> Vec<u32> {
    count(hosts, &places(request, hosts).unwrap())
}

fn count(hosts: &[Host<'_>], nodes: &[NodeId]) -> Vec<u32> {
    let of = |host: &Host<'_>| nodes.iter().filter(|node| **node == host.node).count() as u32;
    hosts.iter().map(of).collect()
}

fn why_not(request: &Request, hosts: &[Host<'_>]) -> String {
    let Refusal { short, reasons } = places(request, hosts).unwrap_err();
    format!("{short}: {}", reasons.join(", "))
}

#[test]
fn what_is_lacking_is_counted_as_if_it_were_spread() {
    let mut hosts = [1, 2, 3, 4].map(host);
    hosts[0].room = room(16 * 19 + 15);
    hosts[1].room = room(16 * 41);
    hosts[2].unfit = Some(Unfit::Cordoned);
    hosts[3].unfit = Some(Unfit::Has("db"));
    assert_eq!(
        why_not(&forks(100, Order::Spread), &hosts),
        "40: node1 memory 31 short (16 MiB each; 319 MiB are free beyond what is kept back), \
         node2 memory 9 short (16 MiB each; 656 MiB are free beyond what is kept back), \
         node3 is cordoned, node4 has VM db"
    );
    assert_eq!(counts(&forks(60, Order::Spread), &hosts), [19, 41, 0, 0]);
    hosts[1].room.as_mut().unwrap().disk_mib = 20;
    hosts[1].disk_bytes = 15 * MIB;
    let said = why_not(&forks(30, Order::Near), &hosts);
    assert!(
        said.starts_with("6: node2 disk 6 short (20 MiB are free beyond what is kept back; 15 MiB have to be brought), node3"),
        "{said}"
    );
    let one_each = Request {
        one_each: true,
        ..forks(3, Order::Spread)
    };
    let said = why_not(&one_each, &hosts);
    assert!(
        said.starts_with("1: node1 takes one, node2 takes one, node3"),
        "{said}"
    );
}

#[test]
fn of_many_nodes_some_are_told_of() {
    let cordoned = |node| Host {
        node,
        name: "other",
        unfit: Some(Unfit::Cordoned),
        ..host(1)
    };
    let mut hosts: Vec<Host<'_>> = (10..1_000).map(cordoned).collect();
    hosts.push(Host {
        room: room(0),
        ..host(1)
    });
    let Refusal { short, reasons } = places(&forks(7, Order::Spread), &hosts).unwrap_err();
    assert_eq!((short, reasons.len()), (7, 13));
    assert!(
        reasons[0].starts_with("node1 memory 7 short"),
        "{reasons:?}"
    );
    assert_eq!(reasons[12], "and 979 more nodes");
}

#[test]
fn what_was_placed_and_not_seen_counts_until_it_is() {
    let mut hosts = [host(1)];
    hosts[0].room = room(160);
    assert_eq!(counts(&forks(10, Order::Near), &hosts), [10]);
    hosts[0].load.own_bytes = 96 * MIB;
    hosts[0].load.unseen_bytes = 96 * MIB;
    assert!(why_not(&forks(5, Order::Near), &hosts).starts_with("1: node1 memory 1 short"));
    hosts[0].load.unseen_bytes = 0;
    assert_eq!(counts(&forks(10, Order::Near), &hosts), [10]);
    // Nobody has more free than there is.
    hosts[0].room = room(u32::MAX);
    hosts[0].load.unseen_bytes = 4090 * MIB;
    assert!(why_not(&forks(1, Order::Near), &hosts).contains("6 MiB are free"));
}

#[test]
fn forks_share_their_base_and_booted_vms_count_whole() {
    let mut hosts = [host(1), host(2)];
    hosts[0].memory_bytes = 512 * MIB;
    hosts[1].memory_bytes = 512 * MIB;
    // One has to have the base first.
    hosts[1].shared_bytes = 256 * MIB;
    assert_eq!(counts(&forks(48, Order::Spread), &hosts), [32, 16]);
    let said = why_not(&forks(49, Order::Spread), &hosts);
    assert!(
        said.starts_with(
            "1: node2 memory 1 short (16 MiB each; of 512 MiB 0 are promised, 256 to be shared)"
        ),
        "{said}"
    );
    hosts[0].load.own_bytes = 320 * MIB;
    assert_eq!(counts(&forks(28, Order::Spread), &hosts), [12, 16]);
}

#[test]
fn zones_are_even_before_nodes_are() {
    let mut hosts = [1, 2, 3, 4].map(host);
    for (host, zone) in hosts.iter_mut().zip(["east", "east", "east", "west"]) {
        host.zone = zone;
    }
    assert_eq!(counts(&forks(12, Order::Spread), &hosts), [2, 2, 2, 6]);
    // Of nodes that have as many, those come first to which less has to be brought.
    for host in &mut hosts[..2] {
        host.moves_bytes = 100;
    }
    assert_eq!(counts(&forks(2, Order::Spread), &hosts), [0, 0, 1, 1]);
    assert_eq!(counts(&forks(9, Order::Spread), &hosts), [2, 1, 2, 4]);
}

#[test]
fn near_goes_where_little_has_to_be_brought() {
    let mut hosts = [1, 2, 3, 4].map(host);
    for (host, (mib, moves)) in hosts
        .iter_mut()
        .zip([(160, 0), (80, 10), (80, 10), (160, 11)])
    {
        host.room = room(mib);
        host.moves_bytes = moves;
    }
    assert_eq!(counts(&forks(10, Order::Near), &hosts), [10, 0, 0, 0]);
    // One that has room for all that is over, rather than two to each of which less is brought.
    assert_eq!(counts(&forks(18, Order::Near), &hosts), [9, 0, 0, 9]);
    // The lightest that will do.
    hosts[1].load.cpus = 20;
    assert_eq!(counts(&forks(13, Order::Near), &hosts), [8, 0, 5, 0]);
}

/// One of any size, load and room; numbered by whoever asks for several.
fn any_host() -> impl Strategy<Value = Host<'static>> {
    let unfit = &[Unfit::Cordoned, Unfit::Offline, Unfit::NoQemu];
    let load =
        (0..2_000_u64, 0..2_u64, 0..200_u64, 0..40_u64).prop_map(|(own, shared, unseen, cpus)| {
            Load {
                own_bytes: own * MIB,
                shared_bytes: shared * 256 * MIB,
                unseen_bytes: unseen.min(own) * MIB,
                cpus,
            }
        });
    let room = (0..600_u32, 0..12_u32).prop_map(|(memory_mib, disk_mib)| Room {
        memory_mib,
        disk_mib,
    });
    let lacks = (
        select(&[0_u64, 0, 0, 1, 10, 11, 100][..]),
        select(&[0_u64, 0, 64, 256][..]),
    );
    (
        option::weighted(0.15, select(unfit.to_vec())),
        (1..12_u64, 1..9_u32, 0..4_usize),
        (load, option::weighted(0.7, room)),
        (select(&["", "east", "west"][..]), lacks),
    )
        .prop_map(
            |(unfit, (memory, cpus, vms), (load, room), (zone, (moves_bytes, shared)))| Host {
                zone,
                unfit,
                memory_bytes: memory * 256 * MIB,
                cpus,
                load,
                vms,
                room,
                shared_bytes: shared * MIB,
                moves_bytes,
                disk_bytes: moves_bytes.min(8) * MIB,
                ..host(1)
            },
        )
}

fn hosts() -> impl Strategy<Value = Vec<Host<'static>>> {
    vec(any_host(), 1..=4).prop_map(|mut all| {
        for (node, one) in (1..).zip(&mut all) {
            (one.node, one.name) = (node, host(node).name);
        }
        all
    })
}

fn requests() -> impl Strategy<Value = Request> {
    let order = select(&[Order::Lightest, Order::Near, Order::Spread][..]);
    let each = (select(&[16_u64, 17, 64, 320][..]), 1..4_u32, 1..3_u64);
    (1..=6_u32, order, each, option::weighted(0.1, Just(()))).prop_map(
        |(count, order, (memory, cpus, disk), one_each)| Request {
            count,
            order,
            memory_bytes: memory * MIB,
            cpus,
            disk_bytes: disk * MIB,
            one_each: one_each.is_some(),
        },
    )
}

/// Whether a host can have so many, as the rules say it.
fn holds(request: &Request, host: &Host<'_>, count: u32) -> bool {
    let new = u64::from(count) * request.memory_bytes;
    let fits = |room: Room| {
        let free = (u64::from(room.memory_mib) * MIB).min(host.memory_bytes);
        let disk = host.disk_bytes + u64::from(count) * request.disk_bytes;
        host.load.unseen_bytes + new <= free && disk <= u64::from(room.disk_mib) * MIB
    };
    let promised = host.load.own_bytes + host.load.shared_bytes + host.shared_bytes + new;
    count == 0
        || (host.unfit.is_none()
            && promised <= host.memory_bytes
            && host.room.is_none_or(fits)
            && !(request.one_each && count > 1))
}

/// What a way comes to: how uneven zones and nodes are, what has to be brought (for each, and once for each node), the largest load.
#[derive(Debug, Clone, Copy)]
struct Worth {
    uneven: (u32, u32),
    for_each: u64,
    moves: u64,
    load: u64,
}

fn worth(request: &Request, hosts: &[Host<'_>], counts: &[u32]) -> Worth {
    let all = || hosts.iter().zip(counts.iter().copied());
    let in_zone = |zone: &str| -> u32 {
        let there = all().filter(|(host, _)| host.zone == zone);
        there.map(|(_, count)| count).sum()
    };
    let zones = ["", "east", "west"].map(in_zone);
    let takes = || all().filter(|(_, count)| *count > 0);
    Worth {
        uneven: (
            zones.iter().map(|count| count * count).sum(),
            counts.iter().map(|count| count * count).sum(),
        ),
        for_each: takes()
            .map(|(host, count)| host.moves_bytes * u64::from(count))
            .sum(),
        moves: takes().map(|(host, _)| host.moves_bytes).sum(),
        load: takes()
            .map(|(host, count)| host.load_with(request, count))
            .max()
            .unwrap_or(0),
    }
}

/// All ways that hold the rules.
fn ways(request: &Request, hosts: &[Host<'_>]) -> Vec<Vec<u32>> {
    let Some((first, rest)) = hosts.split_first() else {
        return match request.count {
            0 => vec![Vec::new()],
            _ => Vec::new(),
        };
    };
    let here = (0..=request.count).filter(|count| holds(request, first, *count));
    let with = |count: u32| {
        let left = Request {
            count: request.count - count,
            ..*request
        };
        let rest = ways(&left, rest).into_iter();
        rest.map(move |rest| [&[count][..], &rest].concat())
    };
    here.flat_map(with).collect()
}

/// Within a tenth of the best.
fn is_good(ours: u64, best: u64) -> bool {
    ours * 10 <= best * 11
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_are_held_and_no_way_is_much_better(request in requests(), hosts in hosts()) {
        let ways = ways(&request, &hosts);
        let nodes = match places(&request, &hosts) {
            Ok(nodes) => nodes,
            Err(Refusal { short, reasons }) => {
                prop_assert!(ways.is_empty(), "refused ({reasons:?}), and {ways:?} would do");
                let fit = |host| (0..=request.count).rev().find(|count| holds(&request, host, *count));
                let room: u32 = hosts.iter().filter_map(fit).sum();
                prop_assert_eq!(short, request.count - room);
                prop_assert!(!reasons.is_empty());
                return Ok(());
            }
        };
        prop_assert_eq!(nodes.len(), request.count as usize);
        let ours = count(&hosts, &nodes);
        prop_assert!(ways.contains(&ours), "{ours:?} breaks a rule");
        let worth = |counts: &Vec<u32>| worth(&request, &hosts, counts);
        let (is, all) = (worth(&ours), || ways.iter().map(worth));
        let best_load = |may: &dyn Fn(&Worth) -> bool| {
            let loads = all().filter(|one| may(one)).map(|one| one.load);
            loads.min().unwrap_or(u64::MAX)
        };
        match request.order {
            Order::Lightest => prop_assert!(is_good(is.load, best_load(&|_| true)), "{is:?}"),
            Order::Near => {
                let least = all().map(|one| one.moves).min().unwrap_or(0);
                prop_assert!(is_good(is.moves, least), "{is:?}, and {least} would do");
                let best = best_load(&|one| one.moves <= is.moves);
                prop_assert!(is_good(is.load, best), "{is:?}, and a load of {best} would do");
            }
            Order::Spread => {
                let even = all().map(|one| one.uneven).min().unwrap_or_default();
                prop_assert_eq!(is.uneven, even);
                let least = all().filter(|one| one.uneven == even).map(|one| one.for_each).min();
                prop_assert!(is_good(is.for_each, least.unwrap_or(0)), "{is:?}, and {least:?} would do");
                let best = best_load(&|one| one.uneven == even && one.for_each <= is.for_each);
                prop_assert!(is_good(is.load, best), "{is:?}, and a load of {best} would do");
            }
        }
    }
}
