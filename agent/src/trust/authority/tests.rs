//! Authorities and what they sign.

use super::*;

#[test]
fn an_authority_is_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (
        folder.path().join("ca.pem"),
        folder.path().join("ca.key.pem"),
    );
    let made = Authority::create(Ulid::from_parts(1, 2)).unwrap();
    made.save(&certificate, &key).unwrap();
    let loaded = Authority::load(made.cluster(), &certificate, &key).unwrap();
    assert_eq!(loaded.certificate(), made.certificate());
    assert_eq!(loaded.key_der(), made.key_der());
    let (_, request) = certificate_request().unwrap();
    loaded.sign_node_request(2, "b", &request).unwrap();
}

#[test]
fn a_key_of_another_authority_is_noticed() {
    let one = Authority::create(Ulid::from_parts(1, 2)).unwrap();
    let other = Authority::create(Ulid::from_parts(1, 3)).unwrap();
    let error =
        Authority::from_der(one.cluster(), one.certificate(), &other.key_der()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the authority is not valid: the key is not the certificate's"
    );
}

#[test]
fn a_certificate_says_whose_objects_are_there_for_it() {
    let authority = Authority::create(Ulid::from_parts(1, 2)).unwrap();
    for owner in ["ann", "team"] {
        let issued = authority.issue_user(UserCertificate {
            id: Ulid::new(),
            name: "ann",
            owner,
            role: Role::Operator,
            expires_at: SystemTime::now() + std::time::Duration::from_secs(60),
        });
        let user = user_of(&issued.unwrap().certificate).unwrap();
        assert_eq!((user.name.as_str(), user.owner.as_str()), ("ann", owner));
    }
}

#[test]
fn a_request_with_a_wrong_signature_is_refused() {
    let authority = Authority::create(Ulid::from_parts(1, 2)).unwrap();
    let (_, mut request) = certificate_request().unwrap();
    let last = request.len() - 1;
    request[last] ^= 1;
    assert!(authority.sign_node_request(2, "b", &request).is_err());
    assert!(authority.sign_node_request(2, "b", b"nonsense").is_err());
}

#[test]
fn a_subject_names_cluster_role_and_name() {
    let authority = Authority::create(Ulid::from_parts(1, 2)).unwrap();
    let node = authority.issue_node(7, "host-a").unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&node.certificate).unwrap();
    assert_eq!(
        parsed.subject().to_string(),
        format!("O={}, OU=node, CN=host-a", authority.cluster())
    );
    assert!(
        !format!("{node:?}").contains("PRIVATE"),
        "a key is not shown"
    );
}

#[test]
fn a_successor_has_a_name_and_a_key_of_its_own_and_its_predecessor_vouches_for_it() {
    let old = Authority::create(Ulid::from_parts(1, 2)).unwrap();
    let (new, cross) = old.successor().unwrap();
    assert_ne!(new.key_der(), old.key_der());
    assert_ne!(new.fingerprint(), old.fingerprint());
    assert_eq!(
        spki_of(&cross).unwrap(),
        spki_of(new.certificate()).unwrap()
    );
    assert!(old.has_signed(&cross).unwrap());
    let node = new.issue_node(2, "b").unwrap();
    assert!(new.has_signed(&node.certificate).unwrap());
    assert!(!old.has_signed(&node.certificate).unwrap());
    // OpenSSL and Go hold the old one's length against the whole chain.
    let length = |certificate: &[u8]| {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
        let constraints = parsed.basic_constraints().unwrap().unwrap();
        constraints.value.path_len_constraint
    };
    assert_eq!(length(old.certificate()), Some(1));
    assert_eq!(length(&cross), Some(0));
    assert_eq!(length(new.certificate()), Some(1));
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    let both = [
        certificate_pem(old.certificate()),
        certificate_pem(new.certificate()),
    ];
    std::fs::write(&bundle, both.concat()).unwrap();
    let loaded = load_certificates(&bundle).unwrap();
    assert_eq!(
        loaded,
        [old.certificate().clone(), new.certificate().clone()]
    );
    std::fs::write(&bundle, "nothing").unwrap();
    assert!(load_certificates(&bundle).is_err());
}
