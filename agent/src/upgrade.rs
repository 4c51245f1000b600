//! Upgrades: the cluster goes over to a newer form of its records once every node's agent understands it. The oldest agent decides.

use std::{sync::Arc, time::Duration};

use raft::state::{Command, State};
use tokio::time::sleep;

use crate::node::Node;

/// How long the leader lets pass after one look, or a refusal.
const PAUSE: Duration = Duration::from_secs(1);

/// The newest version that every node has reported to understand; `None` while one has not reported.
fn understood_by_all(state: &State) -> Option<u32> {
    let versions = state.nodes.values().map(|node| {
        let capacity = node.capacity.as_ref()?;
        Some(capacity.newest_version)
    });
    versions.min().flatten()
}

/// Which nodes keep the cluster from using what others understand, one sentence each.
pub fn held_back_by(state: &State) -> Vec<String> {
    let newest = |node: &raft::state::Node| {
        let capacity = node.capacity.as_ref();
        capacity.map_or(0, |capacity| capacity.newest_version)
    };
    let best = state.nodes.values().map(|node| newest(node)).max();
    let best = best.unwrap_or_default().max(state.version);
    let older = state
        .nodes
        .values()
        .filter(|node| (1..best).contains(&newest(node)));
    older
        .map(|node| {
            let agent = node.capacity.as_ref().map(|own| own.agent_version.as_str());
            format!(
                "node {}: its agent ({}) is older than others: the cluster uses version {} of its records rather than {best} until it is upgraded",
                node.name,
                agent.unwrap_or_default(),
                state.version,
            )
        })
        .collect()
}

/// Raises the version while this node leads, until the node ends.
pub async fn run(node: Arc<Node>) {
    let mut published = node.raft.published();
    loop {
        let wanted = {
            let state = &published.borrow_and_update().view;
            understood_by_all(state).filter(|version| *version > state.version)
        };
        if let Some(to) = wanted
            && node.raft.status().leader == Some(node.id())
            && let Some(Ok(())) = node.report(Command::RaiseVersion { to }).await
        {
            tracing::info!(
                version = to,
                "every agent understands it: it is used from now on"
            );
        }
        tokio::select! {
            () = node.cancel.cancelled() => return,
            // Who leads may have changed, too.
            () = sleep(PAUSE) => {}
        }
        if published.has_changed().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use raft::state::{Capacity, Labels};

    use super::*;

    fn state(version: u32, newest: &[Option<u32>]) -> State {
        let node = |(index, newest): (usize, &Option<u32>)| {
            let id = index as u64 + 1;
            let capacity = newest.map(|newest_version| Capacity {
                cpus: 1,
                memory_bytes: 1 << 30,
                qemu_version: "10.0.2".into(),
                accelerators: vec![],
                processor: String::new(),
                agent_version: format!("0.{newest_version}.0"),
                newest_version,
                problems: vec![],
            });
            let node = raft::state::Node {
                id,
                name: format!("n{id}"),
                address: "h:1".into(),
                schedulable: true,
                labels: Labels::new(),
                created_at: 0,
                start_by: None,
                trust: None,
                drain: None,
                capacity,
            };
            (id, Arc::new(node))
        };
        let nodes: BTreeMap<_, _> = newest.iter().enumerate().map(node).collect();
        State {
            version,
            nodes,
            ..State::new()
        }
    }

    #[test]
    fn the_oldest_decides() {
        assert_eq!(understood_by_all(&State::new()), None);
        assert_eq!(understood_by_all(&state(1, &[Some(2), None])), None);
        assert_eq!(understood_by_all(&state(1, &[Some(2), Some(3)])), Some(2));
    }

    #[test]
    fn who_is_older_is_told() {
        let told = |version, newest: &[Option<u32>]| held_back_by(&state(version, newest));
        assert!(told(1, &[Some(1), Some(1)]).is_empty());
        assert!(
            told(1, &[Some(1), None]).is_empty(),
            "nothing is known of it"
        );
        assert!(told(2, &[Some(2), Some(2)]).is_empty());
        let old = told(1, &[Some(2), Some(1), Some(2)]);
        assert_eq!(old.len(), 1);
        assert!(
            old[0].contains("node n2") && old[0].contains("0.1.0"),
            "{old:?}"
        );
    }
}
