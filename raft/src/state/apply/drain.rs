//! Draining a node: taking a host away without taking the quorum with it.

use std::{collections::BTreeSet, sync::Arc};

use crate::state::{
    ids::NodeId,
    model::{Drain, Millis, Node, State},
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
) -> Outcome {
    let node = names::node(state, node)?;
    let id = node.id;
    if !force {
        state.check_drain(node, voters, silent)?;
    }
    if let Some(node) = state.nodes.get_mut(&id) {
        let node = Arc::make_mut(node);
        node.schedulable = false;
        node.drain = Some(Drain {
            since: now,
            stays: Default::default(),
        });
    }
    Ok(Response::Node(id))
}

impl State {
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
