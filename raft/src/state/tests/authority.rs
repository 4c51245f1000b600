//! The authority's replacement.

use super::*;

fn certificate(byte: u8) -> AuthorityCertificate {
    AuthorityCertificate {
        fingerprint: [byte; 32],
        der: vec![byte],
        expires_at: 9_000,
    }
}

fn begin(old: u8, new: u8, is_compromised: bool) -> Command {
    Command::ReplaceAuthority {
        old: certificate(old),
        new: certificate(new),
        cross: vec![old, new],
        is_compromised,
    }
}

fn trust(node: NodeId, authority: u8, holds: u8) -> Command {
    Command::ReportTrust {
        node,
        trust: NodeTrust {
            key: [node as u8; 32],
            authority: [authority; 32],
            holds: [holds; 32],
        },
    }
}

fn sign(number: u64, absent: &[NodeId]) -> Command {
    Command::SignWithNewAuthority {
        number,
        absent: absent.to_vec(),
    }
}

fn issue(id: u128, name: &str, authority: u8, replace: bool) -> Command {
    Command::IssueCertificate {
        id: CertificateId(id),
        name: name.into(),
        owner: name.into(),
        role: Role::Viewer,
        expires_at: 9_000,
        authority: [authority; 32],
        replace,
    }
}

fn token(id: u128, authority: u8) -> Command {
    Command::CreateToken {
        id: TokenId(id),
        key_hash: [id as u8; 32],
        expires_at: 9_000,
        authority: [authority; 32],
    }
}

fn finish(force: bool) -> Command {
    Command::FinishAuthority { force }
}

fn phase(world: &World) -> ReplacementPhase {
    world.state.replacement.as_ref().unwrap().phase
}

/// Two nodes that have said what they have.
fn world() -> World {
    let mut world = World::new();
    world.ok(trust(1, 1, 1));
    world.ok(trust(2, 1, 1));
    world
}

#[test]
fn it_goes_on_when_every_node_is_ready_and_ends_when_every_node_is_renewed() {
    let mut world = world();
    world.ok(issue(1, "ann", 1, false));
    world.ok(token(1, 1));
    world.refused(finish(false));
    world.ok(begin(1, 2, false));
    world.refused(finish(false));
    world.ok(trust(1, 1, 2));
    world.ok(sign(1, &[]));
    assert_eq!(phase(&world), ReplacementPhase::Spreading);
    world.ok(trust(2, 1, 2));
    // Of another replacement.
    world.ok(sign(2, &[]));
    assert_eq!(phase(&world), ReplacementPhase::Spreading);
    world.ok(sign(1, &[]));
    assert_eq!(phase(&world), ReplacementPhase::Renewing);
    world.ok(sign(1, &[]));

    // Both are trusted.
    world.ok(issue(2, "bob", 1, false));
    world.ok(issue(3, "cat", 2, false));
    world.ok(token(2, 2));
    assert_eq!(world.state.tokens.len(), 2);
    world.ok(trust(1, 2, 2));
    let Rejection::InUse { dependents, .. } = world.refused(finish(false)) else {
        panic!("another refusal");
    };
    assert_eq!(dependents, ["node n2"]);
    world.refused(begin(2, 3, false));
    world.ok(trust(2, 2, 2));
    world.ok(finish(false));
    assert_eq!(phase(&world), ReplacementPhase::Finished);
    let revoked = |id| world.state.certificates[&CertificateId(id)].revoked_at;
    assert!(revoked(1).is_some() && revoked(2).is_some());
    assert_eq!(revoked(3), None);
    let tokens: Vec<_> = world.state.tokens.keys().collect();
    assert_eq!(tokens, [&TokenId(2)]);

    // What a node signs that has not heard of it is refused.
    world.refused(issue(4, "dan", 1, false));
    world.refused(token(4, 1));
    world.refused(finish(false));
    // The next one, of the one that signs only.
    world.refused(begin(1, 3, false));
    world.refused(begin(2, 2, false));
    world.ok(begin(2, 3, false));
    assert_eq!(world.state.replacement.as_ref().unwrap().number, 2);
}

#[test]
fn one_that_is_away_is_not_waited_for_and_is_given_up_by_force_only() {
    let mut world = world();
    let third = world.join("n3");
    world.ok(Command::ReportNode {
        node: third,
        address: "h3:7000".into(),
        capacity: capacity(),
    });
    world.ok(trust(third, 1, 1));
    world.ok(begin(1, 2, false));
    // It may be begun anew, for the one that has the key may be gone.
    world.ok(begin(1, 2, false));
    world.ok(trust(1, 1, 2));
    world.ok(trust(2, 1, 2));
    world.ok(sign(2, &[third]));
    assert_eq!(phase(&world), ReplacementPhase::Renewing);
    world.ok(trust(1, 2, 2));
    // Without most nodes there is no quorum: not by force either.
    world.refused(finish(true));
    world.ok(trust(2, 2, 2));
    let newcomer = world.join("n4");
    world.refused(finish(false));
    world.ok(finish(true));
    assert!(
        !world.state.nodes.contains_key(&newcomer),
        "it is of the old one"
    );
    assert!(world.state.nodes.contains_key(&third));
}

#[test]
fn a_leaked_key_vouches_for_nobody_new() {
    let mut world = World::new();
    world.ok(issue(1, "ann", 1, false));
    world.ok(token(1, 1));
    // By their keys nodes are known.
    world.refused(begin(1, 2, true));
    world.ok(trust(1, 1, 1));
    world.ok(trust(2, 1, 1));
    let newcomer = world.join("n3");
    world.ok(begin(1, 2, true));
    assert!(world.state.tokens.is_empty());
    assert!(!world.state.nodes.contains_key(&newcomer));
    let ann = &world.state.certificates[&CertificateId(1)];
    assert!(ann.revoked_at.is_some());
    world.refused(issue(2, "bob", 1, false));
    world.refused(token(2, 1));
    // Who got in as a node before that does not get its place.
    world.ok(Command::ReportTrust {
        node: 2,
        trust: NodeTrust {
            key: [9; 32],
            authority: [1; 32],
            holds: [2; 32],
        },
    });
    let known = world.state.nodes[&2].trust.as_ref().unwrap();
    assert_eq!((known.key, known.holds), ([2; 32], [1; 32]));
    // Begun anew it stays so.
    world.ok(begin(1, 3, false));
    assert!(world.state.replacement.as_ref().unwrap().is_compromised);
}

#[test]
fn that_a_key_leaked_may_be_said_in_the_middle() {
    let mut world = world();
    world.ok(issue(1, "ann", 1, false));
    world.ok(begin(1, 2, false));
    world.ok(trust(1, 1, 2));
    world.ok(trust(2, 1, 2));
    world.ok(sign(1, &[]));
    world.ok(issue(2, "bob", 2, false));
    world.ok(begin(2, 9, true));
    let now = world.state.replacement.as_ref().unwrap();
    assert!(now.is_compromised && now.new == certificate(2) && now.number == 1);
    let revoked = |id| world.state.certificates[&CertificateId(id)].revoked_at;
    assert!(revoked(1).is_some() && revoked(2).is_none());
    world.refused(begin(2, 9, true));
}

#[test]
fn a_certificate_takes_the_place_of_the_one_before() {
    let mut world = world();
    world.ok(issue(1, "ann", 1, false));
    world.refused(issue(2, "ann", 1, false));
    world.ok(issue(2, "ann", 1, true));
    let revoked = |id| world.state.certificates[&CertificateId(id)].revoked_at;
    assert!(revoked(1).is_some() && revoked(2).is_none());
}

#[test]
fn a_state_that_was_put_back_knows_of_a_replacement_since() {
    let mut world = world();
    world.ok(issue(1, "ann", 1, false));
    let mut old = world.state.clone();
    world.ok(begin(1, 2, false));
    for node in [1, 2] {
        world.ok(trust(node, 1, 2));
    }
    world.ok(sign(1, &[]));
    for node in [1, 2] {
        world.ok(trust(node, 2, 2));
    }
    world.ok(finish(false));
    old.put_back(world.now, Users::Keep);
    old.put_replacement(world.now, world.state.replacement.clone());
    check(&old).unwrap();
    assert_eq!(old.replacement, world.state.replacement);
    let ann = &old.certificates[&CertificateId(1)];
    assert!(ann.revoked_at.is_some(), "it is of the old one");
}
