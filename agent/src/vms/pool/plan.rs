//! How many forks of which snapshots should be kept ready. Pure.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::collections::BTreeMap;

use raft::state::{NodeId, SnapshotId, State};

/// Forks of a snapshot, not counting this first one, after which some are kept ready although nobody asked for it.
const AGAIN: u32 = 2;
/// How many then, at most.
const MOST: u32 = 4;

/// Memory that a fork which stands still takes for itself, bytes; what there is room for is counted with it.
const MEMBER_BYTES: u64 = 24 << 20;

/// How many members there is room for where `there` are already, when so much memory is free and so much is to stay free, bytes.
/// When memory is short, only as many are given up as it takes.
pub fn room(free: u64, reserve: u64, there: u32) -> u32 {
    let members = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    match free.checked_sub(reserve) {
        Some(spare) => there.saturating_add(members(spare / MEMBER_BYTES)),
        None => there.saturating_sub(members((reserve - free).div_ceil(MEMBER_BYTES))),
    }
}

/// How many forks of each snapshot a node should keep ready. `recent` says how often each was forked lately, `unasked` how many
/// may be kept in all that nobody asked for, `room` how many there is memory for.
pub fn wanted(
    state: &State,
    node: NodeId,
    recent: &BTreeMap<SnapshotId, u32>,
    unasked: u32,
    room: u32,
) -> BTreeMap<SnapshotId, u32> {
    let here = || {
        state
            .snapshots
            .values()
            .filter(|snapshot| snapshot.content.is_some() && snapshot.nodes.contains(&node))
    };
    let mut wanted = BTreeMap::new();
    let mut room = room;
    let mut want = |id, count: u32, room: &mut u32| {
        let given = count.min(*room);
        *room -= given;
        if given > 0 {
            *wanted.entry(id).or_insert(0) += given;
        }
    };
    for snapshot in here() {
        want(snapshot.id, snapshot.warm, &mut room);
    }
    let mut left = unasked.min(room);
    for snapshot in here() {
        let forked = recent.get(&snapshot.id).copied().unwrap_or_default();
        if forked >= AGAIN {
            want(
                snapshot.id,
                MOST.min(forked).saturating_sub(snapshot.warm),
                &mut left,
            );
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use raft::state::{
        Accelerator, CaptureReport, Captured, Content, ImageId, Limits, Machine, Network,
        OperationId, Ownership, RestartPolicy, Safety, Snapshot, Unready, VmId, VmSpec,
    };

    use super::*;

    fn state(warm: &[u32]) -> State {
        let mut state = State::default();
        for (number, warm) in warm.iter().enumerate() {
            let snapshot = snapshot(id(number), *warm);
            state.snapshots.insert(snapshot.id, Arc::new(snapshot));
        }
        state
    }

    fn snapshot(id: SnapshotId, warm: u32) -> Snapshot {
        let content = Content {
            processor: String::new(),
            base: id.0,
            stream: id.0,
            layers: vec![],
            accelerator: Accelerator::Tcg,
            cpu_model: String::new(),
            qemu_version: String::new(),
            machine: String::new(),
            devices: vec![],
            agent: false,
            base_bytes: 0,
            stream_bytes: 0,
            stream_checksum: 0,
            safety: Safety::Memory,
            layer_bytes: 0,
            report: CaptureReport::default(),
        };
        Snapshot {
            id,
            name: None,
            ownership: Ownership::of("ann"),
            vm: Captured {
                vm: VmId(1),
                name: "a".into(),
                owner: "ann".into(),
            },
            parent: None,
            nodes: [1].into(),
            spec: VmSpec {
                image: ImageId(1),
                cpus: 1,
                memory_bytes: 1 << 28,
                disk_bytes: 0,
                machine: Machine::Microvm,
                accelerator: Accelerator::Auto,
                cpu_model: None,
                cmdline: String::new(),
                limits: Limits::default(),
                restart: RestartPolicy::default(),
                network: Network::default(),
                publish: vec![],
                self_fork: 0,
                unready: Unready::default(),
            },
            family: None,
            member: None,
            lineage: VmId(1),
            operation: OperationId(id.0),
            content: Some(content),
            lost: String::new(),
            warm,
            replicas: 0,
            copies: Default::default(),
            is_scheduled: false,
            life: Default::default(),
            created_at: 0,
        }
    }

    fn id(number: usize) -> SnapshotId {
        OperationId((number as u128 + 1) << 16).snapshot()
    }

    #[test]
    fn what_was_asked_for_comes_first() {
        let state = state(&[3, 0]);
        let recent = BTreeMap::from([(id(0), 9), (id(1), 2)]);
        let plan = |unasked, room| wanted(&state, 1, &recent, unasked, room);
        assert_eq!(plan(8, 100), BTreeMap::from([(id(0), 4), (id(1), 2)]));
        assert_eq!(plan(0, 100), BTreeMap::from([(id(0), 3)]));
        assert_eq!(plan(8, 2), BTreeMap::from([(id(0), 2)]));
        assert!(
            wanted(&state, 2, &recent, 8, 100).is_empty(),
            "not on this node"
        );
        assert!(plan(8, 0).is_empty());
    }

    proptest! {
        /// Whatever is made or given up, what is free then is near the reserve and not below it, and nothing changes any more.
        #[test]
        fn room_settles(free in 0..1_u64 << 36, reserve in 0..1_u64 << 36, there in 0..2_000_u32) {
            let fits = room(free, reserve, there);
            let freed = (i64::from(there) - i64::from(fits)) * MEMBER_BYTES as i64;
            let free = (free as i64 + freed) as u64;
            prop_assert!(fits == 0 || free >= reserve);
            prop_assert!(fits == 0 || free - reserve < MEMBER_BYTES);
            prop_assert_eq!(room(free, reserve, fits), fits);
        }

        #[test]
        fn the_bounds_hold(
            warm in proptest::collection::vec(0..20_u32, 0..6),
            forked in proptest::collection::vec(0..9_u32, 6),
            unasked in 0..10_u32,
            room in 0..60_u32,
        ) {
            let state = state(&warm);
            let recent = forked.iter().enumerate().map(|(number, count)| (id(number), *count)).collect();
            let plan = wanted(&state, 1, &recent, unasked, room);
            prop_assert!(plan.values().sum::<u32>() <= room);
            let beyond: u32 = plan.iter().map(|(id, count)| count.saturating_sub(state.snapshots[id].warm)).sum();
            prop_assert!(beyond <= unasked);
            prop_assert!(plan.values().all(|count| *count > 0));
            if warm.iter().sum::<u32>() <= room {
                for snapshot in state.snapshots.values() {
                    prop_assert!(plan.get(&snapshot.id).copied().unwrap_or_default() >= snapshot.warm);
                }
            }
        }
    }
}
