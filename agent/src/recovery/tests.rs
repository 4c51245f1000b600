//! Data directories that go on alone, with a backup, or with another node.

use std::collections::BTreeSet;

use raft::state::{Command, Proposal, apply};

use super::*;
use crate::backup::About;

/// A founded cluster's backup, with a user and a join token; and its authority.
fn backup() -> (Backup, Authority) {
    let cluster = Ulid::new();
    let authority = Authority::create(cluster).unwrap();
    let mut state = State::new();
    let commands = [
        Command::Found {
            cluster: ClusterId(cluster.0),
            name: "host-a".to_owned(),
            address: "10.0.0.1:7400".to_owned(),
        },
        Command::IssueCertificate {
            id: raft::state::CertificateId(9),
            name: "ann".to_owned(),
            owner: "ann".to_owned(),
            role: raft::state::Role::Admin,
            expires_at: u64::MAX,
            authority: authority.fingerprint(),
            replace: false,
        },
        Command::CreateToken {
            id: raft::state::TokenId(8),
            key_hash: [1; 32],
            expires_at: u64::MAX,
            authority: authority.fingerprint(),
        },
    ];
    for command in commands {
        let proposal = Proposal {
            request: None,
            by: raft::state::Actor::cluster(),
            now: 5,
            command,
        };
        apply(&mut state, &proposal).unwrap();
    }
    let about = About {
        cluster: cluster.0,
        incarnation: cluster.0,
        node: "host-a".to_owned(),
        taken_at: 7,
        term: 3,
        index: 9,
        agent_version: "0.1.0".to_owned(),
        authority: authority.certificate().to_vec(),
    };
    let backup = Backup {
        about,
        state,
        authority_key: Some(authority.key_der()),
    };
    (backup, authority)
}

fn new_node(name: &str) -> NewNode {
    NewNode {
        name: name.to_owned(),
        listen: "10.0.0.9:7400".to_owned(),
        advertise: "10.0.0.9:7400".to_owned(),
    }
}

/// A directory with a new node of a backup.
fn restored(users: Users) -> (tempfile::TempDir, DataDir, Backup) {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::new(folder.path().join("data"));
    let (backup, _) = backup();
    let authority = authority_of(&backup).unwrap().unwrap();
    restore_new(&data, new_node("host-x"), &backup, authority, None, users).unwrap();
    (folder, data, backup)
}

fn audit_lines(data: &DataDir) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(data.root().join(crate::audit::FILE)).unwrap();
    let parse = |line: &str| serde_json::from_str(line).unwrap();
    text.lines().map(parse).collect()
}

#[test]
fn a_backup_makes_a_new_node_that_is_the_only_voter_and_lets_an_administrator_in() {
    let (_folder, data, backup) = restored(Users::Revoke);
    let loaded = data.load().unwrap();
    let identity = &loaded.identity;
    assert_eq!(identity.cluster.0, backup.about.cluster);
    assert!(identity.node > 1_000, "a number that nobody had");
    loaded.credentials.check().unwrap();
    let node = StoppedNode::open(data.clone()).unwrap();
    let held = node.look().unwrap();
    assert_eq!(held.voters, BTreeSet::from([identity.node]));
    assert!(held.last > backup.about.position());
    let state = &held.app;
    raft::state::check(state).unwrap();
    let names: Vec<&str> = state.nodes.values().map(|one| &*one.name).collect();
    assert_eq!(names, ["host-a", "host-x"]);
    assert!(state.tokens.is_empty());
    let admin = authority::load_certificate(&data.admin_certs().join("cert.pem")).unwrap();
    let admin = authority::user_of(&admin).unwrap().certificate;
    for (id, certificate) in &state.certificates {
        assert_eq!(
            certificate.revoked_at.is_none(),
            *id == admin,
            "{certificate:?}"
        );
    }
    let line = &audit_lines(&data)[0];
    assert_eq!(
        (&line["call"], &line["outcome"]),
        (&"fpagent restore".into(), &"ok".into())
    );

    let alone = node.may_go_on_alone(&held).unwrap_err();
    assert!(matches!(alone, RecoveryError::AlreadyAlone(_)), "{alone}");
    let locked = StoppedNode::open(data).unwrap_err();
    assert!(matches!(
        locked,
        RecoveryError::Trust(TrustError::Locked { .. })
    ));
}

#[test]
fn a_state_is_put_back_in_a_nodes_directory_and_the_log_of_before_stays() {
    let (_folder, data, backup) = restored(Users::Keep);
    let before = data.load().unwrap().identity;
    let mut node = StoppedNode::open(data.clone()).unwrap();
    let incarnation = node.restore(&backup, Users::Keep).unwrap();
    let after = data.load().unwrap().identity;
    assert_eq!((after.node, after.incarnation), (before.node, incarnation));
    assert_ne!(before.incarnation, incarnation);
    assert!(data.raft(&before).exists() && data.raft(&after).exists());
    let held = node.look().unwrap();
    // The backup does not know the node, which keeps its number all the same.
    assert_eq!(held.app.nodes[&before.node].name, "host-x");
    assert!(held.app.next_node > before.node);
    let certificate = held.app.certificates.values().find(|one| one.name == "ann");
    assert_eq!(certificate.unwrap().revoked_at, None);
}

#[test]
fn a_node_follows_with_an_empty_log_and_finds_its_own_again_when_it_goes_back() {
    let (_folder, data, _) = restored(Users::Keep);
    let mut node = StoppedNode::open(data.clone()).unwrap();
    let (first, position) = (node.identity.incarnation, node.look().unwrap().last);
    let other = Ulid::new();
    node.follow(other).unwrap();
    assert!(matches!(node.look(), Err(RecoveryError::NeverRan(_))));
    let again = node.follow(other).unwrap_err();
    assert!(
        matches!(again, RecoveryError::AlreadyThere { .. }),
        "{again}"
    );
    // It ran there: a log that is missing is a lost one from then on.
    fs::write(data.started(&node.identity), b"").unwrap();
    assert!(matches!(node.look(), Err(RecoveryError::Log { .. })));
    node.follow(first).unwrap();
    assert_eq!(node.look().unwrap().last, position);
}

#[test]
fn a_backup_of_another_cluster_or_authority_or_a_taken_name_is_refused_and_leaves_nothing() {
    let (folder, data, backup) = restored(Users::Keep);
    let (other, _) = self::backup();
    let mut node = StoppedNode::open(data.clone()).unwrap();
    let before = node.identity.clone();
    let refused = node.restore(&other, Users::Keep).unwrap_err();
    assert!(
        matches!(refused, RecoveryError::OtherCluster { .. }),
        "{refused}"
    );
    let replaced = Authority::create(Ulid(backup.about.cluster)).unwrap();
    let about = About {
        authority: replaced.certificate().to_vec(),
        ..backup.about.clone()
    };
    let state = backup.state.clone();
    let of_replaced = Backup {
        about,
        state,
        authority_key: None,
    };
    let refused = node.restore(&of_replaced, Users::Keep).unwrap_err();
    assert!(
        matches!(refused, RecoveryError::OtherAuthority),
        "{refused}"
    );
    assert_eq!(data.load().unwrap().identity, before);

    let empty = DataDir::new(folder.path().join("empty"));
    let taken = restore_new(
        &empty,
        new_node("host-a"),
        &of_replaced,
        replaced,
        None,
        Users::Keep,
    );
    assert!(matches!(taken, Err(RecoveryError::Refused(_))), "{taken:?}");
    assert!(!empty.root().exists());
}

#[test]
fn a_backup_from_before_the_authority_was_replaced_goes_on_under_the_new_one() {
    use crate::trust::replacement::tests::replaced;
    let (folder, data, backup) = restored(Users::Revoke);
    let old = data.load().unwrap().authority;
    let phase = raft::state::ReplacementPhase::Finished;
    let (known, new) = replaced(&old, phase, false, &[]);
    let keys = new.key_der();
    let new_again = Authority::from_der(new.cluster(), new.certificate(), &keys).unwrap();

    // On a new host: with the folder of a node that is left, and not with what it had before.
    let at = |name: &str| DataDir::new(folder.path().join(name));
    let make = |name: &str, authority, known| {
        restore_new(
            &at(name),
            new_node(name),
            &backup,
            authority,
            known,
            Users::Keep,
        )
    };
    let outdated = make("host-y", old, Some(known.clone())).unwrap_err();
    assert!(
        matches!(outdated, RecoveryError::OtherAuthority),
        "{outdated}"
    );
    make("host-z", new, Some(known.clone())).unwrap();
    let loaded = at("host-z").load().unwrap();
    assert_eq!(loaded.replacement.as_ref(), Some(&known));
    let signed = loaded.authority.has_signed(&loaded.credentials.certificate);
    assert!(signed.unwrap());

    // Where a directory is left, what it knows counts.
    data.stage_authority(&new_again).unwrap();
    data.take_staged_authority().unwrap();
    data.keep_replacement(&known).unwrap();
    let mut node = StoppedNode::open(data).unwrap();
    node.restore(&backup, Users::Keep).unwrap();
    let held = node.look().unwrap();
    raft::state::check(&held.app).unwrap();
    assert_eq!(held.app.replacement.as_ref(), Some(&known.replacement));
    let ann = held.app.certificates.values().next().unwrap();
    assert!(ann.revoked_at.is_some(), "it is of the old one");
}
