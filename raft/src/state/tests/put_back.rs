//! States that are put back.

use super::*;

const HOUR: Millis = 3_600_000;

fn made(at: Millis) -> u128 {
    u128::from(at) << 80 | 7
}

#[test]
fn a_state_that_was_put_back_lets_nobody_in_by_what_it_may_have_forgotten() {
    let mut world = World::new();
    let certificate = |id, name: &str| Command::IssueCertificate {
        id: CertificateId(id),
        name: name.into(),
        owner: name.into(),
        role: Role::Admin,
        expires_at: 100 * HOUR,
        authority: [1; 32],
        replace: false,
    };
    world.ok(certificate(1, "ann"));
    world.ok(certificate(2, "bob"));
    world.ok(Command::RevokeCertificate {
        certificate: "bob".into(),
    });
    world.ok(Command::CreateToken {
        id: TokenId(3),
        key_hash: [3; 32],
        expires_at: 100 * HOUR,
        authority: [1; 32],
    });
    let (numbers, before) = (world.state.next_node, world.now);
    let mut kept = world.state.clone();
    kept.put_back(2 * HOUR, Users::Keep);
    assert!(kept.tokens.is_empty(), "they may have been used");
    assert_eq!(kept.certificates, world.state.certificates);

    world.state.put_back(2 * HOUR, Users::Revoke);
    check(&world.state).unwrap();
    let revoked = |id| world.state.certificates[&CertificateId(id)].revoked_at;
    assert_eq!((revoked(1), revoked(2)), (Some(2 * HOUR), Some(before)));

    let number = world.state.admit(2 * HOUR, None, "n3", "h3:1").unwrap();
    assert!(number > numbers + 500, "nodes may have joined since");
    let taken = world.state.admit(2 * HOUR, None, "n3", "h4:1");
    assert!(matches!(taken, Err(Rejection::NameTaken { .. })));
    // One that did join since comes back with the number that it has.
    let early = world.state.admit(2 * HOUR, Some(numbers), "n4", "h4:1");
    assert_eq!(early, Ok(numbers));
    let late = world.state.admit(2 * HOUR, Some(number + 9), "n5", "h5:1");
    assert_eq!(late, Ok(number + 9));
    check(&world.state).unwrap();
    assert_eq!(world.state.next_node, number + 10);
}

#[test]
fn what_was_made_since_is_known_by_its_id() {
    let mut world = World::new();
    world.now = 5 * HOUR;
    world.running("a");
    assert_eq!(world.state.newest(), 5 * HOUR);
    world.state.put_back(7 * HOUR, Users::Keep);
    let forgotten = world.state.forgotten.clone().unwrap();
    for (at, since, older) in [
        (4 * HOUR, false, true),
        (5 * HOUR - 1_000, true, true),
        (6 * HOUR, true, true),
        (7 * HOUR, true, true),
        (7 * HOUR + 1, false, false),
    ] {
        let id = made(at);
        assert_eq!(
            (forgotten.holds(id), forgotten.is_older(id)),
            (since, older)
        );
    }
    // Put back once more: what was forgotten before is forgotten still.
    world.now = 8 * HOUR;
    world.running("b");
    world.state.put_back(9 * HOUR, Users::Keep);
    let both = world.state.forgotten.clone().unwrap();
    assert!(both.holds(made(6 * HOUR)) && both.holds(made(9 * HOUR)));
}

#[test]
fn a_fork_that_was_under_way_is_not_given_up_before_its_node_is_back() {
    let mut world = World::new();
    world.running("a");
    let fork = world.fork("a", 2, None);
    let capture = world.capture("a", Some("s"));
    let expiry = |world: &World, id| world.state.operations[&id].expires_at;
    let before = expiry(&world, capture);
    world.state.put_back(2 * HOUR, Users::Keep);
    check(&world.state).unwrap();
    assert!(expiry(&world, fork) > 10 * HOUR, "its children may run");
    assert_eq!(expiry(&world, capture), before);
}
