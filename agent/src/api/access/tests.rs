//! Who may call what, and who is refused.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use raft::state::{Certificate, CertificateId};

use super::*;

const SERIAL: CertificateId = CertificateId(7);

fn user(role: Role) -> PeerRole {
    PeerRole::User(User {
        name: "ann".to_owned(),
        owner: "ann".to_owned(),
        role,
        certificate: SERIAL,
        expires_at: u64::MAX,
    })
}

fn everybody() -> Vec<PeerRole> {
    vec![
        user(Role::Viewer),
        user(Role::Operator),
        user(Role::Admin),
        PeerRole::Local,
        PeerRole::Node(2),
        PeerRole::Joiner { key_hash: [1; 32] },
    ]
}

#[test]
fn every_call_that_there_is_is_in_the_table_and_no_other() {
    let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let there: BTreeSet<String> = set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(move |service| (file, service)))
        .flat_map(|(file, service)| {
            service.method.iter().map(move |method| {
                format!("{}.{}/{}", file.package(), service.name(), method.name())
            })
        })
        .collect();
    let ours = TABLE
        .iter()
        .filter(|(service, _)| service.starts_with("forkypig."));
    let known: BTreeSet<String> = ours
        .flat_map(|(service, methods)| {
            methods
                .iter()
                .map(move |(method, _)| format!("{service}/{method}"))
        })
        .collect();
    assert_eq!(there, known);
}

#[test]
fn each_may_call_what_the_table_says_and_nothing_else() {
    let state = State::new();
    for (service, methods) in TABLE {
        for (method, _) in *methods {
            let needs = needs(&format!("{service}/{method}")).unwrap();
            // Viewer, operator, admin, the socket, a node, a joiner.
            let may = match needs {
                VIEWER => [true, true, true, true, false, false],
                OPERATOR => [false, true, true, true, false, false],
                ADMIN => [false, false, true, true, false, false],
                ByNode | Consensus => [false, false, false, false, true, false],
                Needs::Token => [false, false, false, false, false, true],
            };
            for (who, may) in everybody().iter().zip(may) {
                let checked = check(who, needs, &state, 2, |_| false);
                assert_eq!(
                    checked.is_ok(),
                    may,
                    "{who:?} {service}/{method}: {checked:?}"
                );
            }
        }
    }
    for none in [
        "",
        "/",
        "forkypig.v1.VmService",
        "forkypig.v1.VmService/",
        "VmService/GetVm",
    ] {
        assert_eq!(needs(none), None, "{none:?}");
    }
}

#[test]
fn a_certificate_that_was_revoked_or_has_ended_allows_nothing() {
    let mut state = State::new();
    let mut ann = User {
        name: "ann".to_owned(),
        owner: "ann".to_owned(),
        role: Role::Admin,
        certificate: SERIAL,
        expires_at: u64::MAX,
    };
    assert_eq!(is_valid(&ann, &state, 2), Ok(()), "it is not known yet");
    let mut noted = Certificate {
        name: "ann".to_owned(),
        owner: "ann".to_owned(),
        role: Role::Admin,
        created_at: 1,
        expires_at: u64::MAX,
        revoked_at: None,
        authority: [1; 32],
    };
    state.certificates.insert(SERIAL, noted.clone());
    assert_eq!(is_valid(&ann, &state, 2), Ok(()));
    noted.revoked_at = Some(2);
    state.certificates.insert(SERIAL, noted);
    assert!(is_valid(&ann, &state, 2).unwrap_err().contains("revoked"));
    // One that a state does not know which was put back since: whether it was revoked nobody remembers.
    state.certificates.clear();
    state.forgotten = Some(Forgotten { from: 5, to: 7 });
    assert!(is_valid(&ann, &state, 2).unwrap_err().contains("put back"));
    ann.certificate = CertificateId(8 << 80);
    assert_eq!(is_valid(&ann, &state, 2), Ok(()), "it was made after that");
    // However long its connection stands, and though nobody remembers any more that it was revoked.
    ann.expires_at = 2;
    state.certificates.clear();
    assert!(is_valid(&ann, &state, 2).unwrap_err().contains("expired"));
}

#[test]
fn a_node_that_was_removed_may_only_help_to_let_it_go() {
    let mut state = State::new();
    let node = PeerRole::Node(2);
    let may = |state: &State, needs, takes_part| check(&node, needs, state, 2, |_| takes_part);
    assert!(may(&state, ByNode, false).is_ok(), "it is not known yet");
    state.next_node = 3;
    assert!(may(&state, Consensus, true).is_ok());
    let leaving = may(&state, ByNode, true).unwrap_err();
    assert!(matches!(leaving, ApiError::NotAllowed(_)), "{leaving}");
    for needs in [ByNode, Consensus] {
        let removed = may(&state, needs, false).unwrap_err();
        assert!(matches!(removed, ApiError::NodeRemoved(2)), "{removed}");
    }
}

#[test]
fn what_a_node_of_another_incarnation_asks_is_refused() {
    let incarnation = ulid::Ulid::from_parts(3, 4);
    let address = "127.0.0.1:7400".to_owned();
    let identity = Identity {
        cluster: ulid::Ulid::from_parts(1, 2),
        incarnation,
        node: 1,
        name: "host-a".to_owned(),
        listen: address.clone(),
        advertise: address,
        members: Vec::new(),
    };
    let named = |text: String| http::HeaderValue::try_from(text).unwrap();
    let (own, other) = (
        named(incarnation.to_string()),
        named(identity.cluster.to_string()),
    );
    let lease = "forkypig.peer.v1.PeerService/RenewLease";
    assert!(
        TABLE
            .iter()
            .any(|(service, _)| PEERS == format!("{service}/"))
    );
    assert_eq!(check_incarnation(lease, Some(&own), &identity), Ok(()));
    assert!(check_incarnation(lease, Some(&other), &identity).is_err());
    assert!(check_incarnation(lease, None, &identity).is_err());
    // Users are in none.
    let list = "forkypig.v1.VmService/ListVms";
    assert_eq!(check_incarnation(list, None, &identity), Ok(()));
}

#[test]
fn what_rests_on_an_authority_that_was_replaced_is_refused_with_what_to_do() {
    use crate::trust::{
        authority::Authority,
        replacement::{Shown, tests::replaced},
    };
    let old = Authority::create(ulid::Ulid::from_parts(1, 1)).unwrap();
    let phase = raft::state::ReplacementPhase::Finished;
    let (known, new) = replaced(&old, phase, false, &[]);
    let peer = |role, authority| Peer {
        role,
        shown: Some(Shown {
            authority,
            key: [7; 32],
        }),
        address: None,
    };
    for (role, what_to_do) in [
        (PeerRole::Node(2), "fpagent node rm"),
        (
            user(Role::Operator),
            "fpagent cert create ann --role operator",
        ),
    ] {
        let of_old = peer(role.clone(), old.fingerprint());
        let standing = |peer: &Peer, known| check_standing(peer, known, || Ok(()));
        assert!(standing(&of_old, None).is_ok(), "nothing is known");
        let refused = standing(&of_old, Some(&known)).unwrap_err();
        let ApiError::AuthorityReplaced { hint, .. } = refused else {
            panic!("{refused}");
        };
        assert!(hint.contains(what_to_do), "{hint}");
        let of_new = peer(role, new.fingerprint());
        assert!(standing(&of_new, Some(&known)).is_ok());
    }
    // It is the more useful to know of the two.
    let removed = check_standing(
        &peer(PeerRole::Node(2), old.fingerprint()),
        Some(&known),
        || Err(ApiError::NodeRemoved(2)),
    );
    let removed = removed.unwrap_err();
    assert!(matches!(removed, ApiError::NodeRemoved(2)), "{removed}");
    let not_allowed = || Err(ApiError::NotAllowed("no".to_owned()));
    let of_new = peer(user(Role::Viewer), new.fingerprint());
    let refused = check_standing(&of_new, Some(&known), not_allowed).unwrap_err();
    assert!(matches!(refused, ApiError::NotAllowed(_)), "{refused}");
    let local = Peer {
        role: PeerRole::Local,
        shown: None,
        address: None,
    };
    assert!(check_standing(&local, Some(&known), || Ok(())).is_ok());
}

#[test]
fn an_answer_says_what_became_of_the_call() {
    assert_eq!(outcome(&http::Response::new(Body::empty())), "ok");
    let refused = Status::not_found("x").into_http();
    assert_eq!(outcome(&refused), "not-found");
}
