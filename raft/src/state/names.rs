//! Names: what they may look like, and what they lead to.
//!
//! Called by `apply`, and by the agent for lookups that change nothing. An object is found by its exact name, then by its
//! full id, then by a prefix of its id that fits no other.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

use super::{
    ids::{CertificateId, NodeId, OperationId, SnapshotId, TokenId, VmId},
    model::{Certificate, Image, Node, Operation, Snapshot, State, Token, Vm},
    response::{Kind, Rejection},
    shared_map::SharedMap,
};

/// How long a name may be.
pub const MAX_NAME: usize = 63;

/// What keys of settings and secrets look like.
pub const KEY_RULE: &str = "1 to 63 of A-Z, a-z, 0-9 and _.-, beginning with a letter or _";

/// How many matches an ambiguous prefix's rejection lists.
const LISTED: usize = 10;

/// Crockford's alphabet, in which ULIDs are written.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Letters in a ULID.
const ULID_LEN: usize = 26;

/// Whether a name follows the rule `[a-z0-9][a-z0-9-]{0,62}`.
pub fn is_valid(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(|&b| plain(b))
        && bytes.iter().all(|&b| plain(b) || b == b'-')
}

/// Refuses a name that does not follow the rule.
pub fn check_name(field: &str, name: &str) -> Result<(), Rejection> {
    if is_valid(name) {
        return Ok(());
    }
    Err(Rejection::InvalidField {
        field: field.to_owned(),
        problem: format!(
            "{} is not a name: 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit",
            shown(name)
        ),
    })
}

/// Whether a setting's or a secret's key follows the [`KEY_RULE`].
pub fn is_key(key: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let bytes = key.as_bytes();
    bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(|&b| first(b))
        && bytes
            .iter()
            .all(|&b| first(b) || b.is_ascii_digit() || b == b'.' || b == b'-')
}

/// What is not a name, for messages: it may be long and hostile, so its beginning, escaped.
pub fn shown(text: &str) -> String {
    let beginning: String = text.chars().take(MAX_NAME).collect();
    let rest = if beginning.len() < text.len() {
        "…"
    } else {
        ""
    };
    format!("{beginning:?}{rest}")
}

/// Finds a node, by name or number.
pub fn node<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Node>, Rejection> {
    if let Some(node) = state.nodes.values().find(|node| node.name == text) {
        return Ok(node);
    }
    let number: Option<NodeId> = text.parse().ok();
    number
        .and_then(|number| state.nodes.get(&number))
        .ok_or_else(|| not_found(Kind::Node, text))
}

/// Finds an image.
pub fn image<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Image>, Rejection> {
    let id = find_in(&state.images, Kind::Image, text, |image| Some(&image.name))?;
    state
        .images
        .get(&id)
        .ok_or_else(|| not_found(Kind::Image, text))
}

/// Finds a VM. Of one that was given up with its node that is said.
pub fn vm<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Vm>, Rejection> {
    if let Some(vm) = state.vms.named(text) {
        return Ok(vm);
    }
    match find_by_id(Kind::Vm, text, |range| state.vms.range(range)) {
        Ok(id) => state.vms.get(&id).ok_or_else(|| not_found(Kind::Vm, text)),
        Err(Rejection::NotFound { .. }) => Err(given_up(state, text)),
        Err(other) => Err(other),
    }
}

/// Why there is no VM of this name or id.
fn given_up(state: &State, text: &str) -> Rejection {
    let id = text.parse().ok();
    let is_it = |(vm, name): (&VmId, &String)| name == text || Some(*vm) == id;
    let node = state.removed.values().rev();
    match node.into_iter().find(|node| node.vms.iter().any(is_it)) {
        Some(node) => Rejection::GivenUp {
            kind: Kind::Vm,
            name: text.to_owned(),
            node: node.name.clone(),
        },
        None => not_found(Kind::Vm, text),
    }
}

/// Finds a snapshot. `VM@SNAPSHOT` is one that was captured from this VM.
pub fn snapshot<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Snapshot>, Rejection> {
    match text.split_once('@') {
        Some((vm, snapshot)) => snapshot_of(state, snapshot, Some(vm)),
        None => snapshot_of(state, text, None),
    }
}

/// Finds a snapshot; with `vm`, one that was captured from this VM, which may be gone.
pub fn snapshot_of<'a>(
    state: &'a State,
    text: &str,
    of: Option<&str>,
) -> Result<&'a Arc<Snapshot>, Rejection> {
    let found = find(&state.snapshots, Kind::Snapshot, text, |snapshot| {
        snapshot.name.as_ref()
    })?;
    let Some(of) = of else { return Ok(found) };
    let (id, name) = &found.vm;
    let is_its_vm = match vm(state, of) {
        Ok(vm) => vm.id == *id,
        Err(Rejection::NotFound { .. } | Rejection::GivenUp { .. }) => {
            !state.vms.contains_key(id) && (name == of || of.parse() == Ok(*id))
        }
        Err(other) => return Err(other),
    };
    if is_its_vm {
        Ok(found)
    } else {
        Err(not_found(Kind::Snapshot, &format!("{of}@{text}")))
    }
}

/// Finds an operation, by its id or a prefix of it.
pub fn operation<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Operation>, Rejection> {
    find(&state.operations, Kind::Operation, text, |_| None)
}

/// Finds a join token, by its id or a prefix of it.
pub fn token<'a>(state: &'a State, text: &str) -> Result<(TokenId, &'a Token), Rejection> {
    let id = find_in(&state.tokens, Kind::Token, text, |_| None)?;
    state
        .tokens
        .get(&id)
        .map(|token| (id, token))
        .ok_or_else(|| not_found(Kind::Token, text))
}

/// Finds a certificate, by its owner's name where it is not revoked, or by its id or a prefix of it.
pub fn certificate<'a>(
    state: &'a State,
    text: &str,
) -> Result<(CertificateId, &'a Certificate), Rejection> {
    let id = find_in(
        &state.certificates,
        Kind::Certificate,
        text,
        |certificate| {
            certificate
                .revoked_at
                .is_none()
                .then_some(&certificate.name)
        },
    )?;
    state
        .certificates
        .get(&id)
        .map(|certificate| (id, certificate))
        .ok_or_else(|| not_found(Kind::Certificate, text))
}

/// An id that wraps a ULID's number.
trait Ulid: Copy + Ord + std::fmt::Display {
    fn of(number: u128) -> Self;
}

macro_rules! ulids {
    ($($name:ident),*) => {$(
        impl Ulid for $name {
            fn of(number: u128) -> Self {
                Self(number)
            }
        }
    )*};
}

use super::ids::ImageId;
ulids!(
    ImageId,
    VmId,
    SnapshotId,
    OperationId,
    TokenId,
    CertificateId
);

fn find<'a, I: Ulid, T>(
    map: &'a SharedMap<I, Arc<T>>,
    kind: Kind,
    text: &str,
    name_of: impl Fn(&T) -> Option<&String>,
) -> Result<&'a Arc<T>, Rejection> {
    let is_named = |object: &&Arc<T>| name_of(object).is_some_and(|name| name == text);
    if let Some(named) = map.values().find(is_named) {
        return Ok(named);
    }
    let id = find_by_id(kind, text, |range| map.range(range))?;
    map.get(&id).ok_or_else(|| not_found(kind, text))
}

fn find_in<I: Ulid, T>(
    map: &BTreeMap<I, T>,
    kind: Kind,
    text: &str,
    name_of: impl Fn(&T) -> Option<&String>,
) -> Result<I, Rejection> {
    let named = |object: &T| name_of(object).is_some_and(|name| name == text);
    if let Some((id, _)) = map.iter().find(|(_, object)| named(object)) {
        return Ok(*id);
    }
    find_by_id(kind, text, |range| map.range(range))
}

/// The one whose id begins so, of those that `within` gives for a range of ids.
fn find_by_id<'a, I: Ulid + 'a, T: 'a, F: Iterator<Item = (&'a I, &'a T)>>(
    kind: Kind,
    text: &str,
    within: impl FnOnce(RangeInclusive<I>) -> F,
) -> Result<I, Rejection> {
    let Some(range) = prefix(text) else {
        return Err(not_found(kind, text));
    };
    let mut matches = within(I::of(*range.start())..=I::of(*range.end())).map(|(id, _)| *id);
    match (matches.next(), matches.next()) {
        (None, _) => Err(not_found(kind, text)),
        (Some(id), None) => Ok(id),
        (Some(first), Some(second)) => Err(Rejection::Ambiguous {
            kind,
            name: shorten(text),
            matches: [first, second]
                .into_iter()
                .chain(matches)
                .take(LISTED)
                .map(|id| id.to_string())
                .collect(),
        }),
    }
}

/// The numbers of all ULIDs that begin with this text; a full one has itself only.
fn prefix(text: &str) -> Option<RangeInclusive<u128>> {
    if text.is_empty() || text.len() > ULID_LEN {
        return None;
    }
    let mut first: u128 = 0;
    for byte in text.bytes() {
        let digit = ALPHABET
            .iter()
            .position(|&letter| letter == byte.to_ascii_uppercase())?;
        // 26 letters are 130 bits: the first letter is at most 7.
        first = first.checked_mul(32)?.checked_add(digit as u128)?;
    }
    let free = 5 * (ULID_LEN - text.len()) as u32;
    // Shifting out what does not fit would make it another id's prefix.
    if first.leading_zeros() < free {
        return None;
    }
    let low = first.checked_shl(free).unwrap_or(0);
    Some(low..=low | 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1))
}

pub(super) fn not_found(kind: Kind, text: &str) -> Rejection {
    Rejection::NotFound {
        kind,
        name: shorten(text),
    }
}

/// What was asked for, short enough to be repeated in an error.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 2 * MAX_NAME + 1;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule() {
        for good in ["a", "0", "web-1", "a-", &"x".repeat(63)] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            "A",
            "a.b",
            "a/b",
            "a,b",
            "a\n",
            "ä",
            &"x".repeat(64),
            &"x".repeat(5000),
        ] {
            assert!(!is_valid(bad), "{bad}");
            assert!(check_name("name", bad).unwrap_err().to_string().len() < 400);
        }
    }

    #[test]
    fn keys() {
        for good in ["a", "_", "DB_URL", "a.b-c", "Z9", &"x".repeat(63)] {
            assert!(is_key(good), "{good}");
        }
        for bad in [
            "",
            "1a",
            ".a",
            "-a",
            "a b",
            "a=b",
            "a\0",
            "ä",
            &"x".repeat(64),
        ] {
            assert!(!is_key(bad), "{bad}");
        }
    }

    #[test]
    fn a_prefix_covers_exactly_the_ids_that_begin_with_it() {
        let id = VmId(0x0192_3456_789a_bcde_f012_3456_789a_bcde);
        let text = id.to_string();
        for len in 1..=ULID_LEN {
            let range = prefix(&text[..len].to_lowercase()).unwrap();
            assert!(range.contains(&id.0));
            assert!(VmId(*range.start()).to_string().starts_with(&text[..len]));
            assert!(VmId(*range.end()).to_string().starts_with(&text[..len]));
            if let Some(before) = range.start().checked_sub(1) {
                assert!(!VmId(before).to_string().starts_with(&text[..len]));
            }
        }
        assert_eq!(prefix(&text), Some(id.0..=id.0));
        assert_eq!(prefix("8"), None, "no ULID begins with more than 7");
        assert_eq!(prefix("7"), Some(7 << 125..=u128::MAX));
        assert_eq!(prefix("u"), None, "not in the alphabet");
    }
}
