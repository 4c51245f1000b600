//! Preparing, loading and refusing data directories.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _};

use super::*;

fn node(cluster: u64, name: &str) -> (LocalNode, Credentials) {
    let cluster = Ulid::from_parts(cluster, 9);
    let authority = Authority::create(cluster).unwrap();
    let credentials = authority.issue_node(1, name).unwrap();
    let admin = authority.issue_admin("admin").unwrap();
    let address = "127.0.0.1:7400".to_owned();
    let identity = Identity {
        cluster,
        incarnation: cluster,
        node: 1,
        name: name.to_owned(),
        listen: address.clone(),
        advertise: address.clone(),
        members: vec![Member {
            id: 1,
            name: name.to_owned(),
            address,
        }],
    };
    (
        LocalNode {
            identity,
            authority,
            credentials,
            replacement: None,
        },
        admin,
    )
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_prepared_directory_is_loaded_as_it_was_written() {
    let parent = tempfile::tempdir().unwrap();
    let dir = DataDir::new(parent.path().join("a/b"));
    let (node, admin) = node(1, "host-a");
    assert_eq!(dir.check(None, "host-a").unwrap(), None);
    assert_eq!(dir.prepare(&node, Some(&admin)).unwrap(), Prepared::New);
    let loaded = dir.load().unwrap();
    assert_eq!(loaded.identity, node.identity);
    assert_eq!(loaded.credentials.certificate, node.credentials.certificate);
    assert_eq!(
        names_in(dir.root()),
        BTreeSet::from(["certs".to_owned(), "identity.json".to_owned()])
    );
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.root().join("certs/ca.key.pem")), 0o600);
    assert_eq!(mode(dir.root().join("certs/node.key.pem")), 0o600);
    assert_eq!(mode(dir.admin_certs().join("key.pem")), 0o600);
    assert_eq!(mode(dir.root().to_owned()), 0o700);
}

#[test]
fn the_same_node_again_changes_nothing_and_others_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let dir = DataDir::new(parent.path());
    let (first, _) = node(1, "host-a");
    dir.prepare(&first, None).unwrap();
    assert_eq!(
        dir.prepare(&first, None).unwrap(),
        Prepared::Already(first.identity.clone())
    );
    let (other, _) = node(2, "host-a");
    assert!(matches!(
        dir.prepare(&other, None),
        Err(TrustError::OtherCluster { .. })
    ));
    assert!(matches!(
        dir.check(Some(first.identity.cluster), "host-b"),
        Err(TrustError::OtherNode { .. })
    ));
    assert_eq!(dir.load().unwrap().identity, first.identity);
}

#[test]
fn a_directory_with_something_else_in_it_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("raft")).unwrap();
    let dir = DataDir::new(parent.path());
    let (node, _) = node(1, "host-a");
    let error = dir.prepare(&node, None).unwrap_err();
    assert!(
        matches!(&error, TrustError::NotEmpty { found, .. } if found == "raft"),
        "{error}"
    );
    assert_eq!(names_in(parent.path()), BTreeSet::from(["raft".to_owned()]));
}

#[test]
fn an_interrupted_preparation_is_cleared() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join(PREPARING)).unwrap();
    fs::create_dir(parent.path().join(CERTS)).unwrap();
    fs::write(parent.path().join(CERTS).join("ca.pem"), "half").unwrap();
    let dir = DataDir::new(parent.path());
    let (node, _) = node(1, "host-a");
    assert_eq!(dir.prepare(&node, None).unwrap(), Prepared::New);
    dir.load().unwrap();
}

#[test]
fn a_failed_preparation_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    // The place of the certificates is taken by what cannot be replaced by a folder.
    let dir = DataDir::new(parent.path());
    let (node, _) = node(1, "host-a");
    fs::create_dir(parent.path().join(PREPARING)).unwrap();
    fs::write(parent.path().join(CERTS), "a file").unwrap();
    assert!(dir.prepare(&node, None).is_err());
    assert!(dir.identity().unwrap().is_none());
}

#[test]
fn a_directory_that_is_not_used_after_all_is_gone_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = DataDir::new(parent.path().join("a/b/c"));
    let reserved = dir.reserve().unwrap();
    assert!(matches!(dir.reserve(), Err(TrustError::Locked { .. })));
    assert!(dir.root().exists(), "it is the first one's");
    drop(reserved);
    assert_eq!(names_in(parent.path()), BTreeSet::new());

    // What was there before stays, and so does what somebody else put there.
    fs::create_dir(parent.path().join("a")).unwrap();
    let reserved = dir.reserve().unwrap();
    fs::write(parent.path().join("a/b/note"), "mine").unwrap();
    drop(reserved);
    assert_eq!(
        names_in(&parent.path().join("a/b")),
        BTreeSet::from(["note".to_owned()])
    );
}

#[test]
fn a_node_that_was_removed_is_not_loaded_any_more() {
    let parent = tempfile::tempdir().unwrap();
    let dir = DataDir::new(parent.path());
    let (node, _) = node(1, "host-a");
    dir.prepare(&node, None).unwrap();
    dir.mark_removed().unwrap();
    let removed = [
        dir.load().map(drop),
        dir.prepare(&node, None).map(drop),
        dir.check(None, "host-b").map(drop),
    ];
    for removed in removed {
        let error = removed.unwrap_err();
        assert!(
            matches!(&error, TrustError::Removed { name, .. } if name == "host-a"),
            "{error}"
        );
    }
}

#[test]
fn a_node_moves() {
    let parent = tempfile::tempdir().unwrap();
    let dir = DataDir::new(parent.path());
    let (node, _) = node(1, "host-a");
    dir.prepare(&node, None).unwrap();
    let mut own = node.identity.clone();
    let addresses = |own: &Identity| (own.listen.clone(), own.advertise.clone());
    let both = |address: &str| (address.to_owned(), address.to_owned());
    dir.relocate(&mut own, None, None).unwrap();
    assert_eq!(own, node.identity);
    dir.relocate(&mut own, Some("10.0.0.2:1"), None).unwrap();
    assert_eq!(addresses(&own), both("10.0.0.2:1"));
    assert_eq!(dir.identity().unwrap().as_ref(), Some(&own), "it is kept");
    // One that is reached elsewhere than where it listens stays so.
    dir.relocate(&mut own, Some("0.0.0.0:1"), Some("host-a:1"))
        .unwrap();
    dir.relocate(&mut own, Some("0.0.0.0:2"), None).unwrap();
    assert_eq!(
        addresses(&own),
        ("0.0.0.0:2".to_owned(), "host-a:1".to_owned())
    );
    for (listen, advertise) in [
        (Some("x"), None),
        (None, Some("0.0.0.0:1")),
        (None, Some("x")),
    ] {
        assert!(dir.relocate(&mut own, listen, advertise).is_err());
    }
    assert_eq!(dir.identity().unwrap().as_ref(), Some(&own));
    assert_eq!(
        dir.load().unwrap().credentials.certificate,
        node.credentials.certificate
    );
}

#[test]
fn one_process_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let dir = DataDir::new(parent.path());
    let held = dir.lock().unwrap();
    assert!(matches!(dir.lock(), Err(TrustError::Locked { .. })));
    drop(held);
    dir.lock().unwrap();
}

#[test]
fn a_damaged_identity_is_told() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join(IDENTITY), "{").unwrap();
    assert!(matches!(
        DataDir::new(parent.path()).identity(),
        Err(TrustError::Damaged { .. })
    ));
    assert!(matches!(
        DataDir::new(parent.path().join("x")).load(),
        Err(TrustError::NoNode { .. })
    ));
}

#[test]
fn an_authority_takes_the_others_place_whatever_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::new(folder.path().join("data"));
    let (node, _) = node(1, "host-a");
    data.prepare(&node, None).unwrap();
    let (new, _) = node.authority.successor().unwrap();
    assert!(data.staged_authority(&node.authority).unwrap().is_none());
    data.stage_authority(&new).unwrap();
    // Once more, as by an agent that was killed before it could say so.
    data.stage_authority(&new).unwrap();
    let staged = data.staged_authority(&node.authority).unwrap().unwrap();
    assert_eq!(staged.fingerprint(), new.fingerprint());
    let loaded = data.load().unwrap();
    assert_eq!(loaded.authority.fingerprint(), node.authority.fingerprint());

    // The key is in its place, and its certificate is not.
    let certs = data.root().join("certs");
    fs::rename(certs.join("next/ca.key.pem"), certs.join("ca.key.pem")).unwrap();
    let loaded = data.load().unwrap();
    assert_eq!(loaded.authority.fingerprint(), new.fingerprint());
    assert!(!certs.join("next").exists());
    assert!(data.staged_authority(&new).unwrap().is_none());

    let (third, _) = new.successor().unwrap();
    data.stage_authority(&third).unwrap();
    data.take_staged_authority().unwrap();
    let loaded = data.load().unwrap();
    assert_eq!(loaded.authority.fingerprint(), third.fingerprint());
    assert_eq!(loaded.authority.key_der(), third.key_der());
}
