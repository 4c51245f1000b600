//! The authority's replacement, step by step.

use std::sync::Arc;

use super::{invalid, leaving};
use crate::state::{
    authority::{AuthorityCertificate, Fingerprint, NodeTrust, Replacement, ReplacementPhase},
    ids::NodeId,
    model::{Millis, Node, State},
    response::{Kind, Outcome, Rejection, Response},
};

/// How long a certificate may be, bytes. Ours have less than a thousand.
const MAX_CERTIFICATE: usize = 8 << 10;

/// How a fingerprint is called in messages: by its beginning.
fn named(fingerprint: &Fingerprint) -> String {
    let start = fingerprint.iter().take(8);
    start.map(|byte| format!("{byte:02x}")).collect()
}

fn wrong_state(authority: &Fingerprint, problem: impl Into<String>) -> Rejection {
    Rejection::WrongState {
        kind: Kind::Authority,
        name: named(authority),
        problem: problem.into(),
    }
}

/// Begins a replacement, or begins it anew while nothing was signed by the new authority. Of one that is further it can only be said that
/// the old key is in wrong hands.
pub(super) fn replace(
    state: &mut State,
    now: Millis,
    old: &AuthorityCertificate,
    new: &AuthorityCertificate,
    cross: &[u8],
    is_compromised: bool,
) -> Outcome {
    if state.cluster.is_none() {
        return Err(wrong_state(
            &old.fingerprint,
            "cannot be replaced: the cluster is not founded yet",
        ));
    }
    if [&*old.der, &*new.der, cross]
        .iter()
        .any(|der| der.len() > MAX_CERTIFICATE)
    {
        return Err(invalid("authority", "has too long a certificate"));
    }
    let before = state.replacement.clone();
    if let Some(before) = &before
        && before.phase == ReplacementPhase::Renewing
    {
        if !is_compromised || before.is_compromised {
            return Err(wrong_state(
                &before.old.fingerprint,
                "is being replaced, and the new one signs already: finish that first",
            ));
        }
        refuse_unknown_keys(state)?;
        let mut known = Replacement::clone(before);
        known.is_compromised = true;
        distrust(state, now, &known);
        state.replacement = Some(Arc::new(known));
        return Ok(Response::Done);
    }
    if before.is_some_and(|before| before.signing().fingerprint != old.fingerprint) {
        return Err(wrong_state(
            &old.fingerprint,
            "is not the cluster's any more, and the node that was asked does not know that yet",
        ));
    }
    if new.fingerprint == old.fingerprint {
        return Err(invalid("authority", "cannot replace itself"));
    }
    if is_compromised {
        refuse_unknown_keys(state)?;
    }
    let before = state.replacement.as_ref();
    let was_compromised = before.is_some_and(|before| before.is_open() && before.is_compromised);
    let replacement = Replacement {
        number: before.map_or(1, |before| before.number + 1),
        phase: ReplacementPhase::Spreading,
        old: old.clone(),
        new: new.clone(),
        cross: cross.to_vec(),
        is_compromised: is_compromised || was_compromised,
        began_at: now,
        finished_at: None,
    };
    if replacement.is_compromised {
        distrust(state, now, &replacement);
    }
    state.replacement = Some(Arc::new(replacement));
    Ok(Response::Done)
}

/// Once the old key is in wrong hands a node is known by its own.
fn refuse_unknown_keys(state: &State) -> Result<(), Rejection> {
    let unknown = |node: &&Arc<Node>| node.has_started() && node.trust.is_none();
    match state.nodes.values().find(unknown) {
        Some(node) => Err(Rejection::WrongState {
            kind: Kind::Node,
            name: node.name.clone(),
            problem: "has not said yet which key it has: start its agent, or remove it".to_owned(),
        }),
        None => Ok(()),
    }
}

/// What the old authority vouches for counts no more, but for the nodes that are known.
fn distrust(state: &mut State, now: Millis, replacement: &Replacement) {
    // Also those that pin the new one are few, and may have been made by whoever got in.
    state.tokens.clear();
    forget_newcomers(state);
    revoke(state, now, &replacement.old.fingerprint);
}

fn forget_newcomers(state: &mut State) {
    let newcomers = state.nodes.values().filter(|node| !node.has_started());
    let newcomers: Vec<NodeId> = newcomers.map(|node| node.id).collect();
    for node in newcomers {
        leaving::forget_newcomer(state, node);
    }
}

/// Revokes what people have of an authority.
pub(in crate::state) fn revoke(state: &mut State, now: Millis, authority: &Fingerprint) {
    for certificate in state.certificates.values_mut() {
        if certificate.authority == *authority {
            certificate.revoked_at.get_or_insert(now);
        }
    }
}

/// The nodes that have not said of themselves what `has` asks for: those that have never started among them.
fn without<'a>(
    state: &'a State,
    has: impl Fn(&NodeTrust) -> bool + 'a,
) -> impl Iterator<Item = &'a Arc<Node>> {
    let nodes = state.nodes.values();
    nodes.filter(move |node| !node.trust.as_ref().is_some_and(&has))
}

/// Never refused: it may have been done before, and a node may not be ready after all.
pub(super) fn sign_with_new(state: &mut State, number: u64, absent: &[NodeId]) -> Outcome {
    let Some(replacement) = state.replacement.clone() else {
        return Ok(Response::Done);
    };
    let new = replacement.new.fingerprint;
    // A node that is away will believe the others by what the old authority has signed of the new one.
    let is_ready = without(state, |trust| trust.holds == new)
        .filter(|node| node.has_started())
        .all(|node| absent.contains(&node.id));
    if replacement.number == number && replacement.phase == ReplacementPhase::Spreading && is_ready
    {
        let mut next = Replacement::clone(&replacement);
        next.phase = ReplacementPhase::Renewing;
        state.replacement = Some(Arc::new(next));
    }
    Ok(Response::Done)
}

pub(super) fn finish(state: &mut State, now: Millis, force: bool) -> Outcome {
    let Some(replacement) = state.replacement.clone().filter(|one| one.is_open()) else {
        return Err(Rejection::WrongState {
            kind: Kind::Authority,
            name: "of the cluster".to_owned(),
            problem: "is not being replaced".to_owned(),
        });
    };
    let (old, new) = (replacement.old.fingerprint, replacement.new.fingerprint);
    if replacement.phase == ReplacementPhase::Spreading {
        return Err(wrong_state(
            &new,
            "does not sign yet: not all nodes that are online have it",
        ));
    }
    let started = state.nodes.values().filter(|node| node.has_started());
    let started = started.count();
    let behind: Vec<&Arc<Node>> = without(state, |trust| trust.authority == new).collect();
    let left = behind.iter().filter(|node| node.has_started()).count();
    let named_all = || behind.iter().map(|node| format!("node {}", node.name));
    if !force && !behind.is_empty() {
        return Err(Rejection::InUse {
            kind: Kind::Authority,
            name: named(&old),
            dependents: named_all().collect(),
        });
    }
    if (started - left) * 2 <= started {
        return Err(wrong_state(
            &old,
            "is what most nodes have their certificates of: without them there is no quorum",
        ));
    }
    forget_behind(state, new);
    revoke(state, now, &old);
    state.tokens.retain(|_, token| token.authority != old);
    let mut next = Replacement::clone(&replacement);
    next.phase = ReplacementPhase::Finished;
    next.finished_at = Some(now);
    state.replacement = Some(Arc::new(next));
    Ok(Response::Done)
}

/// Newcomers that have not started have certificates of the old authority, as far as is known.
fn forget_behind(state: &mut State, new: Fingerprint) {
    let behind: Vec<NodeId> = without(state, |trust| trust.authority == new)
        .map(|node| node.id)
        .collect();
    for node in behind {
        leaving::forget_newcomer(state, node);
    }
}

/// Never refused: a node that is gone may still report.
pub(super) fn report_trust(state: &mut State, node: NodeId, trust: &NodeTrust) -> Outcome {
    // Its key never changes: once it is known, nobody says another one for it.
    let is_its_own = |node: &Node| {
        node.trust
            .as_ref()
            .is_none_or(|known| known.key == trust.key)
    };
    if let Some(node) = state.nodes.get_mut(&node)
        && node.trust.as_ref() != Some(trust)
        && is_its_own(node)
    {
        Arc::make_mut(node).trust = Some(trust.clone());
    }
    Ok(Response::Done)
}

/// Refuses what would be of an authority that is not trusted any more: it was replaced while the request was under way.
pub(super) fn check(state: &State, authority: &Fingerprint) -> Result<(), Rejection> {
    let Some(replacement) = &state.replacement else {
        return Ok(());
    };
    let is_old = *authority == replacement.old.fingerprint;
    match is_old && (replacement.is_compromised || !replacement.is_open()) {
        true => Err(wrong_state(
            authority,
            "is trusted no more: it is being replaced, and the node that was asked does not have the new one yet",
        )),
        false => Ok(()),
    }
}
