//! The cluster's founding, join tokens, certificates and nodes.

use std::sync::Arc;

use super::{authority, check_address, check_labels, invalid, leaving};
use crate::state::{
    authority::Fingerprint,
    command::Command,
    ids::{ClusterId, NodeId, TokenId},
    model::{Capacity, Certificate, Labels, Millis, Node, State, Token},
    names,
    response::{Kind, Outcome, Rejection, Response},
};

pub(super) fn found(
    state: &mut State,
    now: Millis,
    cluster: ClusterId,
    name: &str,
    address: &str,
) -> Outcome {
    match state.cluster {
        Some(existing) if existing == cluster => return Ok(Response::Done),
        Some(existing) => {
            let problem = format!("cannot found a cluster: it is in {existing} already");
            return Err(wrong_state(name, problem));
        }
        None => {}
    }
    names::check_name("name", name)?;
    check_address(address)?;
    state.cluster = Some(cluster);
    Ok(Response::Node(add_node(state, now, name, address, None)))
}

pub(super) fn create_token(
    state: &mut State,
    now: Millis,
    id: TokenId,
    key_hash: &[u8; 32],
    expires_at: Millis,
    of: Fingerprint,
) -> Outcome {
    if expires_at <= now {
        return Err(invalid("ttlSeconds", "must end in the future"));
    }
    let refuse = |problem: &str| {
        Err(Rejection::WrongState {
            kind: Kind::Token,
            name: id.to_string(),
            problem: problem.to_owned(),
        })
    };
    if state.cluster.is_none() {
        return refuse("cannot be made: the cluster is not founded yet");
    }
    if state.tokens.contains_key(&id)
        || state
            .tokens
            .values()
            .any(|token| token.key_hash == *key_hash)
    {
        return refuse("exists already");
    }
    authority::check(state, &of)?;
    // A good moment to forget the ones that can no longer be used.
    state.tokens.retain(|_, token| token.expires_at > now);
    state.tokens.insert(
        id,
        Token {
            key_hash: *key_hash,
            created_at: now,
            expires_at,
            node: None,
            authority: of,
        },
    );
    Ok(Response::Done)
}

pub(super) fn revoke_token(state: &mut State, id: &str) -> Outcome {
    let (id, _) = names::token(state, id)?;
    state.tokens.remove(&id);
    Ok(Response::Done)
}

pub(super) fn issue_certificate(state: &mut State, now: Millis, command: &Command) -> Outcome {
    let Command::IssueCertificate {
        id,
        name,
        owner,
        role,
        expires_at,
        authority: of,
        replace,
    } = command
    else {
        return Ok(Response::Done);
    };
    let (id, expires_at) = (*id, *expires_at);
    names::check_name("name", name)?;
    names::check_owner("owner", owner)?;
    if expires_at <= now {
        return Err(invalid("ttlSeconds", "must end in the future"));
    }
    if state.certificates.contains_key(&id) {
        return Err(Rejection::WrongState {
            kind: Kind::Certificate,
            name: id.to_string(),
            problem: "exists already".to_owned(),
        });
    }
    let is_in_the_way =
        |one: &Certificate| one.name == *name && one.revoked_at.is_none() && one.expires_at > now;
    if !replace && state.certificates.values().any(is_in_the_way) {
        return Err(Rejection::NameTaken {
            kind: Kind::Certificate,
            name: name.to_owned(),
        });
    }
    authority::check(state, of)?;
    for before in state.certificates.values_mut() {
        if is_in_the_way(before) {
            before.revoked_at = Some(now);
        }
    }
    // A good moment to forget the ones that nobody lets in any more by themselves.
    state.certificates.retain(|_, one| one.expires_at > now);
    state.certificates.insert(
        id,
        Certificate {
            name: name.clone(),
            owner: owner.clone(),
            role: *role,
            created_at: now,
            expires_at,
            revoked_at: None,
            authority: *of,
        },
    );
    Ok(Response::Certificate(id))
}

pub(super) fn revoke_certificate(state: &mut State, now: Millis, certificate: &str) -> Outcome {
    let (id, _) = names::certificate(state, certificate)?;
    if let Some(one) = state.certificates.get_mut(&id) {
        // Once more changes nothing.
        one.revoked_at.get_or_insert(now);
    }
    Ok(Response::Certificate(id))
}

pub(super) fn join(
    state: &mut State,
    now: Millis,
    key_hash: &[u8; 32],
    name: &str,
    address: &str,
    newest_version: u32,
    start_by: Millis,
) -> Outcome {
    // The token first: nothing is told to somebody without one.
    let (id, token) = state
        .tokens
        .iter()
        .find(|(_, token)| token.key_hash == *key_hash && now < token.expires_at)
        .map(|(id, token)| (*id, token.clone()))
        .ok_or(Rejection::BadToken)?;
    let before = token.node.and_then(|node| state.nodes.get(&node));
    if before.is_some_and(|before| before.name != name) {
        return Err(Rejection::BadToken);
    }
    let before = before.map(|before| before.id);
    names::check_name("name", name)?;
    check_address(address)?;
    let is_other = |node: &Arc<Node>| node.name == name && Some(node.id) != before;
    if state.nodes.values().any(is_other) {
        return Err(Rejection::NameTaken {
            kind: Kind::Node,
            name: name.to_owned(),
        });
    }
    if newest_version < state.version {
        let problem = format!(
            "cannot join: the cluster uses version {} of its records, and this fpagent understands {newest_version} at most",
            state.version
        );
        return Err(wrong_state(name, problem));
    }
    if let Some(before) = before {
        // The answer to that may have got lost. Should it not have, there must not be two of that number.
        leaving::forget_newcomer(state, before);
    }
    let start_by = Some(start_by.max(token.expires_at));
    let node = add_node(state, now, name, address, start_by);
    let token = Token {
        node: Some(node),
        ..token
    };
    state.tokens.insert(id, token);
    Ok(Response::Node(node))
}

/// Never refused: the token, or the newcomer, may be gone.
pub(super) fn withdraw_join(state: &mut State, key_hash: &[u8; 32]) -> Outcome {
    let found = state
        .tokens
        .iter()
        .find(|(_, token)| token.key_hash == *key_hash)
        .map(|(id, token)| (*id, token.clone()));
    if let Some((id, token)) = found
        && let Some(node) = token.node
    {
        leaving::forget_newcomer(state, node);
        state.tokens.insert(
            id,
            Token {
                node: None,
                ..token
            },
        );
    }
    Ok(Response::Done)
}

pub(in crate::state) fn add_node(
    state: &mut State,
    now: Millis,
    name: &str,
    address: &str,
    start_by: Option<Millis>,
) -> NodeId {
    let id = state.next_node;
    state.next_node += 1;
    state.nodes.insert(
        id,
        Arc::new(Node {
            id,
            name: name.to_owned(),
            address: address.to_owned(),
            schedulable: true,
            labels: Labels::new(),
            created_at: now,
            capacity: None,
            start_by,
            trust: None,
            drain: None,
        }),
    );
    id
}

/// Never refused: a node that is gone may still report.
pub(super) fn report_node(
    state: &mut State,
    node: NodeId,
    address: &str,
    capacity: &Capacity,
) -> Outcome {
    if let Some(found) = state.nodes.get_mut(&node) {
        let found = Arc::make_mut(found);
        found.capacity = Some(capacity.clone());
        found.start_by = None;
        // Whoever has the token cannot be the node any more.
        state.tokens.retain(|_, token| token.node != Some(node));
    }
    move_node(state, node, address)
}

/// Never refused: a node that is gone may still say where it is.
pub(super) fn move_node(state: &mut State, node: NodeId, address: &str) -> Outcome {
    if let Some(node) = state.nodes.get_mut(&node)
        && node.address != address
        && check_address(address).is_ok()
    {
        address.clone_into(&mut Arc::make_mut(node).address);
    }
    Ok(Response::Done)
}

pub(super) fn raise_version(state: &mut State, to: u32) -> Outcome {
    if state.nodes.is_empty() {
        return Err(invalid(
            "to",
            "nobody has said what it understands: the cluster is not founded yet",
        ));
    }
    for node in state.nodes.values() {
        let understands = node.capacity.as_ref().map(|own| own.newest_version);
        if understands.is_none_or(|newest| newest < to) {
            let problem = format!("does not understand version {to} of the cluster's records");
            return Err(wrong_state(&node.name, problem));
        }
    }
    state.version = state.version.max(to);
    Ok(Response::Done)
}

fn wrong_state(node: &str, problem: String) -> Rejection {
    Rejection::WrongState {
        kind: Kind::Node,
        name: node.to_owned(),
        problem,
    }
}

pub(super) fn label_node(
    state: &mut State,
    node: &str,
    set: &Labels,
    remove: &[String],
) -> Outcome {
    check_labels(set)?;
    let node = names::node(state, node)?;
    let (id, mut labels) = (node.id, node.labels.clone());
    labels.retain(|key, _| !remove.contains(key));
    labels.extend(set.clone());
    check_labels(&labels)?;
    if let Some(node) = state.nodes.get_mut(&id) {
        Arc::make_mut(node).labels = labels;
    }
    Ok(Response::Node(id))
}

pub(super) fn cordon_node(state: &mut State, node: &str, schedulable: bool) -> Outcome {
    let id = names::node(state, node)?.id;
    if let Some(node) = state.nodes.get_mut(&id) {
        let node = Arc::make_mut(node);
        node.schedulable = schedulable;
        if schedulable {
            node.drain = None;
        }
    }
    Ok(Response::Node(id))
}
