//! Names: what they may look like, and what they lead to.
//!
//! Called by `apply`, and by the agent for lookups that change nothing. An object is found by its exact name, then by its
//! full id, then by a prefix of its id that fits no other. What has an owner is looked for among what is there for somebody: for all
//! others it does not exist.

use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc};

use super::{
    ids::{CertificateId, ImageId, LeaseId, MapId, NodeId, OperationId, SnapshotId, TokenId, VmId},
    model::{Certificate, Image, Lease, LostVm, Map, Node, Operation, Snapshot, State, Token, Vm},
    owners::{Actor, EVERYONE, Owned},
    response::{Kind, Rejection},
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

/// Refuses what is no owner's name: what is no name, and the word for all of them.
pub fn check_owner(field: &str, owner: &str) -> Result<(), Rejection> {
    check_name(field, owner)?;
    if owner != EVERYONE {
        return Ok(());
    }
    Err(Rejection::InvalidField {
        field: field.to_owned(),
        problem: format!("{EVERYONE:?} stands for all owners"),
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

/// Finds an image that is there for somebody.
pub fn image<'a>(state: &'a State, by: &Actor, text: &str) -> Result<&'a Arc<Image>, Rejection> {
    let named = |name: &str| {
        let name = name.to_owned();
        state.images.values().filter(move |one| one.name == name)
    };
    find_owned(by, text, named, |range: RangeInclusive<ImageId>| {
        state.images.range(range)
    })
}

/// Finds a VM that is there for somebody. Of one that was given up with its node that is said.
pub fn vm<'a>(state: &'a State, by: &Actor, text: &str) -> Result<&'a Arc<Vm>, Rejection> {
    // Others may have many of this name.
    if let Some(own) = state.vms.named(&by.owner, text) {
        return Ok(own);
    }
    let named = |name: &str| state.vms.all_named(name);
    let found = find_owned(by, text, named, |range: RangeInclusive<VmId>| {
        state.vms.range(range)
    });
    match found {
        Err(Rejection::NotFound { .. }) => Err(given_up(state, by, text)),
        found => found,
    }
}

/// Why there is no VM of this name or id.
fn given_up(state: &State, by: &Actor, text: &str) -> Rejection {
    let id = text.parse().ok();
    let (owner, name) = split_owner(text);
    let is_it = |(vm, lost): (&VmId, &LostVm)| {
        let named = lost.name == name && owner.is_none_or(|owner| lost.owner == owner);
        by.sees(&lost.owner) && (named || Some(*vm) == id)
    };
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

/// Finds a snapshot that is there for somebody. `VM@SNAPSHOT` is one that was captured from this VM, `@SNAPSHOT` any, as where a VM could be
/// meant.
pub fn snapshot<'a>(
    state: &'a State,
    by: &Actor,
    text: &str,
) -> Result<&'a Arc<Snapshot>, Rejection> {
    match text.split_once('@') {
        Some(("", snapshot)) => snapshot_of(state, by, snapshot, None),
        Some((vm, snapshot)) => snapshot_of(state, by, snapshot, Some(vm)),
        None => snapshot_of(state, by, text, None),
    }
}

/// Finds a snapshot; with `vm`, one that was captured from this VM, which may be gone. Where the VM is named with its owner and the
/// snapshot is not, that is its owner, too.
pub fn snapshot_of<'a>(
    state: &'a State,
    by: &Actor,
    text: &str,
    of: Option<&str>,
) -> Result<&'a Arc<Snapshot>, Rejection> {
    let shown = |of: &str| not_found(Kind::Snapshot, &format!("{of}@{text}"));
    let owner = of.and_then(|of| split_owner(of).0);
    let owned = owner
        .filter(|_| !text.contains('/'))
        .map(|owner| format!("{owner}/{text}"));
    let named = |name: &str| {
        let name = name.to_owned();
        let all = state.snapshots.values();
        all.filter(move |one| one.name.as_ref() == Some(&name))
    };
    let find = |text: &str| {
        find_owned(by, text, named, |range: RangeInclusive<SnapshotId>| {
            state.snapshots.range(range)
        })
    };
    let found = match owned.map(|owned| find(&owned)) {
        Some(Ok(found)) => found,
        // It may be another's, or be named by its id.
        _ => find(text)?,
    };
    let Some(of) = of else { return Ok(found) };
    let captured = &found.vm;
    let is_its_vm = match vm(state, by, of) {
        Ok(vm) => vm.id == captured.vm,
        Err(Rejection::NotFound { .. } | Rejection::GivenUp { .. }) => {
            let (owner, name) = split_owner(of);
            let named =
                captured.name == name && captured.owner == owner.unwrap_or(by.owner.as_str());
            !state.vms.contains_key(&captured.vm)
                && by.sees(&captured.owner)
                && (named || of.parse() == Ok(captured.vm))
        }
        Err(other) => return Err(other),
    };
    if is_its_vm { Ok(found) } else { Err(shown(of)) }
}

/// The members of a group that is there for somebody, by their numbers: of one of its owner's or, for an administrator, anybody's. It is
/// not shared with its members: whoever works with it works with all of them.
pub fn group<'a>(state: &'a State, by: &Actor, text: &str) -> Result<Vec<&'a Arc<Vm>>, Rejection> {
    let (owner, name) = split_owner(text);
    let id = text.parse::<VmId>().ok();
    let is_seen = |vm: &&Arc<Vm>| by.sees(&vm.ownership.owner);
    let is_it = |vm: &Vm| {
        let whose = vm.ownership.owner.as_str();
        (vm.group.as_ref()).is_some_and(|group| match owner {
            Some(owner) => group.name == name && whose == owner,
            None => group.name == name || Some(group.id) == id,
        })
    };
    let found = state.vms.values().filter(is_seen).filter(|vm| is_it(vm));
    let mut found: Vec<&Arc<Vm>> = found.collect();
    let owners: BTreeSet<&str> = (found.iter())
        .map(|vm| vm.ownership.owner.as_str())
        .collect();
    let whose = match owners.get(by.owner.as_str()) {
        Some(own) => *own,
        None if owners.len() > 1 => {
            let named = owners.into_iter().take(LISTED);
            return Err(Rejection::Ambiguous {
                kind: Kind::Group,
                name: shorten(text),
                matches: named.map(|owner| format!("{owner}/{name}")).collect(),
            });
        }
        None => owners.first().ok_or_else(|| not_found(Kind::Group, text))?,
    };
    found.retain(|vm| vm.ownership.owner == whose);
    found.sort_by_key(|vm| vm.group.as_ref().map(|group| group.number));
    Ok(found)
}

/// Finds an operation that is there for somebody, by its id or a prefix of it.
pub fn operation<'a>(
    state: &'a State,
    by: &Actor,
    text: &str,
) -> Result<&'a Arc<Operation>, Rejection> {
    find_by_id(
        Kind::Operation,
        text,
        |range: RangeInclusive<OperationId>| {
            let within = state.operations.range(range);
            within.filter(|(_, operation)| operation.is_seen_by(by))
        },
    )
}

/// Finds a lease that is there for somebody, by its id or a prefix of it.
pub fn lease<'a>(
    state: &'a State,
    by: &Actor,
    text: &str,
) -> Result<(LeaseId, &'a Lease), Rejection> {
    find_by_id(Kind::Lease, text, |range: RangeInclusive<LeaseId>| {
        let within = state.leases.range(range);
        within
            .filter(|(_, lease)| by.sees(&lease.owner))
            .map(|(id, lease)| (id, (*id, lease)))
    })
}

/// Finds a map that is there for somebody.
pub fn map<'a>(state: &'a State, by: &Actor, text: &str) -> Result<&'a Arc<Map>, Rejection> {
    let named = |name: &str| {
        let name = name.to_owned();
        let all = state.maps.values();
        all.filter(move |one| one.name.as_ref() == Some(&name))
    };
    find_owned(by, text, named, |range: RangeInclusive<MapId>| {
        state.maps.range(range)
    })
}

/// Finds a join token, by its id or a prefix of it.
pub fn token<'a>(state: &'a State, text: &str) -> Result<(TokenId, &'a Token), Rejection> {
    find_by_id(Kind::Token, text, |range: RangeInclusive<TokenId>| {
        let within = state.tokens.range(range);
        within.map(|(id, token)| (id, (*id, token)))
    })
}

/// Finds a certificate, by its owner's name where it is not revoked, or by its id or a prefix of it.
pub fn certificate<'a>(
    state: &'a State,
    text: &str,
) -> Result<(CertificateId, &'a Certificate), Rejection> {
    let is_it = |one: &Certificate| one.revoked_at.is_none() && one.name == text;
    let mut all = state.certificates.iter();
    if let Some((id, named)) = all.find(|(_, one)| is_it(one)) {
        return Ok((*id, named));
    }
    find_by_id(
        Kind::Certificate,
        text,
        |range: RangeInclusive<CertificateId>| {
            let within = state.certificates.range(range);
            within.map(|(id, one)| (id, (*id, one)))
        },
    )
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

ulids!(
    ImageId,
    VmId,
    SnapshotId,
    OperationId,
    TokenId,
    LeaseId,
    MapId,
    CertificateId
);

/// Takes `OWNER/NAME` apart.
fn split_owner(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((owner, name)) => (Some(owner), name),
        None => (None, text),
    }
}

/// The object that somebody means, of those that are there for this one: `OWNER/NAME` says it exactly; a bare name is one's own, else
/// what others share, and for an administrator anybody's. `named` gives all objects with a name, `within` those with ids in a range.
///
/// A full id comes before names of others: nobody can give an object a name that is another's id.
fn find_owned<'a, I, T, N, F>(
    by: &Actor,
    text: &str,
    named: impl Fn(&str) -> N,
    within: impl FnOnce(RangeInclusive<I>) -> F,
) -> Result<&'a Arc<T>, Rejection>
where
    I: Ulid + 'a,
    T: Owned + 'a,
    N: Iterator<Item = &'a Arc<T>>,
    F: Iterator<Item = (&'a I, &'a Arc<T>)>,
{
    let is_seen = |one: &&'a Arc<T>| one.ownership().is_seen_by(by);
    if let (Some(owner), name) = split_owner(text) {
        let mut all = named(name).filter(is_seen);
        let found = all.find(|one| one.ownership().owner == owner);
        return found.ok_or_else(|| not_found(T::KIND, text));
    }
    let mut others = Vec::new();
    for one in named(text).filter(is_seen) {
        if one.ownership().owner == by.owner {
            return Ok(one);
        }
        others.push(one);
    }
    let by_id = || {
        find_by_id(T::KIND, text, |range| {
            within(range).filter(|(_, one)| is_seen(one))
        })
    };
    match others.as_slice() {
        [] => by_id(),
        _ if text.len() == ULID_LEN && prefix(text).is_some() => by_id().or_else(|_| {
            // It only looks like one.
            pick(by, text, &others)
        }),
        _ => pick(by, text, &others),
    }
}

/// The only one of some objects of one name that are others'.
fn pick<'a, T: Owned>(
    by: &Actor,
    text: &str,
    others: &[&'a Arc<T>],
) -> Result<&'a Arc<T>, Rejection> {
    match others {
        [one] => Ok(one),
        _ => Err(Rejection::Ambiguous {
            kind: T::KIND,
            name: shorten(text),
            matches: others
                .iter()
                .take(LISTED)
                .map(|one| one.name_for(by))
                .collect(),
        }),
    }
}

/// The one whose id begins so, of those that `within` gives for a range of ids.
fn find_by_id<'a, I: Ulid + 'a, T, F: Iterator<Item = (&'a I, T)>>(
    kind: Kind,
    text: &str,
    within: impl FnOnce(RangeInclusive<I>) -> F,
) -> Result<T, Rejection> {
    let Some(range) = prefix(text) else {
        return Err(not_found(kind, text));
    };
    let mut matches = within(I::of(*range.start())..=I::of(*range.end()));
    match (matches.next(), matches.next()) {
        (None, _) => Err(not_found(kind, text)),
        (Some((_, one)), None) => Ok(one),
        (Some((first, _)), Some((second, _))) => Err(Rejection::Ambiguous {
            kind,
            name: shorten(text),
            matches: [first, second]
                .into_iter()
                .chain(matches.map(|(id, _)| id))
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
