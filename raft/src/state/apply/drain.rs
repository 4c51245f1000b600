//! Draining a node: taking a host away without taking the quorum with it.

use std::{collections::BTreeSet, sync::Arc};

use crate::state::{
    ids::NodeId,
    model::{Drain, DrainHow, Millis, Node, State},
    names,
    response::{Kind, Outcome, Rejection, Response},
};

/// `silent`: the voters that the proposer knows to be away, of `voters`.
pub(super) fn drain_node(
    state: &mut State,
    now: Millis,
    node: &str,
    (voters, silent): (&[NodeId], &[NodeId]),
    force: bool,
    rest: bool,
) -> Outcome {
    let node = names::node(state, node)?;
    let id = node.id;
    if !force {
        state.check_drain(node, voters, silent)?;
    }
    if let Some(node) = state.nodes.get_mut(&id) {
        let node = Arc::make_mut(node);
        let how = match (rest, node.drain.as_ref().map(|before| before.how)) {
            (false, _) => DrainHow::Move,
            (true, Some(same @ DrainHow::Rest { .. })) => same,
            (true, _) => DrainHow::Rest {
                schedulable: node.schedulable,
            },
        };
        node.schedulable = false;
        node.drain = Some(Drain {
            how,
            since: now,
            stays: Default::default(),
        });
    }
    Ok(Response::Node(id))
}

/// Never refused: somebody may have said before that it is over.
pub(super) fn wake(state: &mut State, id: NodeId) -> Outcome {
    let rest = state.nodes.get(&id).and_then(|node| node.drain.as_ref());
    if let Some(DrainHow::Rest { schedulable }) = rest.map(|drain| drain.how)
        && let Some(node) = state.nodes.get_mut(&id)
    {
        let node = Arc::make_mut(node);
        (node.drain, node.schedulable) = (None, schedulable);
    }
    Ok(Response::Node(id))
}

impl State {
    /// Whether nothing is left to do of draining a node, but for VMs that could not be moved or suspended.
    pub fn is_drained(&self, node: &Node) -> bool {
        let Some(drain) = &node.drain else {
            return false;
        };
        match drain.how {
            DrainHow::Move => self.vms.count_of(node.id) == 0,
            DrainHow::Rest { .. } => !self.vms.of(node.id).any(|vm| vm.may_run()),
        }
    }

    /// Whether a majority of the voters is left when a node is switched off, as those that are drained may be at any time.
    ///
    /// # Errors
    /// `WrongState`, with who would be away. Not of a node that has no vote, or that is drained already: it takes nothing away that is not
    /// given up yet.
    pub fn check_drain(
        &self,
        node: &Node,
        voters: &[NodeId],
        silent: &[NodeId],
    ) -> Result<(), Rejection> {
        let voters: BTreeSet<NodeId> = voters.iter().copied().collect();
        if !voters.contains(&node.id) || node.drain.is_some() {
            return Ok(());
        }
        let why_away = |other: &Node| match (silent.contains(&other.id), &other.drain) {
            (true, _) => Some("is offline"),
            (false, Some(_)) => Some("is drained"),
            (false, None) => None,
        };
        let others = voters.iter().filter(|other| **other != node.id);
        let others = others.filter_map(|other| self.nodes.get(other));
        let away: Vec<(&str, &str)> = others
            .filter_map(|other| Some((other.name.as_str(), why_away(other)?)))
            .collect();
        let (all, gone) = (voters.len(), away.len() + 1);
        let needed = all / 2 + 1;
        if all - gone >= needed {
            return Ok(());
        }
        let named = away.iter().map(|(name, why)| format!("{name} {why}"));
        let named: Vec<String> = named.collect();
        let advice = match away.first() {
            None => "join more nodes first, or use --force".to_owned(),
            Some((name, "is drained")) => {
                format!("`fpagent node uncordon {name}` first, or use --force")
            }
            Some((name, _)) => format!("bring {name} back first, or use --force"),
        };
        let and = if named.is_empty() { "" } else { ": " };
        Err(Rejection::WrongState {
            kind: Kind::Node,
            name: node.name.clone(),
            problem: format!(
                "cannot be drained: without it {gone} of {all} voters would be away, and {needed} must be there{and}{}; {advice}",
                named.join(", ")
            ),
        })
    }
}
