//! Lineages as they are drawn.

use proto::v1;

use super::*;

fn vm(id: &str, name: &str, parent: (&str, &str), snapshot: &str) -> VmView {
    let vm = v1::Vm {
        id: id.to_owned(),
        name: name.to_owned(),
        node: "host-a".to_owned(),
        state: v1::VmState::Running.into(),
        parent: parent.0.to_owned(),
        parent_name: parent.1.to_owned(),
        snapshot: snapshot.to_owned(),
        ..Default::default()
    };
    vm.into()
}

fn snapshot(id: &str, name: &str, vm: (&str, &str), parent: &str) -> SnapshotView {
    let snapshot = v1::Snapshot {
        id: id.to_owned(),
        name: name.to_owned(),
        vm: vm.0.to_owned(),
        vm_name: vm.1.to_owned(),
        parent: parent.to_owned(),
        nodes: vec!["host-a".to_owned()],
        state: v1::SnapshotState::Ready.into(),
        ..Default::default()
    };
    snapshot.into()
}

fn family() -> Forest {
    Forest::new(
        &[
            vm("V9", "other", ("", ""), ""),
            vm("V1", "demo", ("", ""), ""),
            vm("V4", "demo-1", ("V1", "demo"), "V3"),
            vm("V5", "demo-2", ("V1", "demo"), "V3"),
            vm("V7", "grandchild", ("V5", "demo-2"), "V6"),
        ],
        &[
            snapshot("V6", "", ("V5", "demo-2"), "V3"),
            snapshot("V3", "golden", ("V1", "demo"), ""),
            snapshot("V8", "late", ("V1", "demo"), ""),
        ],
    )
}

#[test]
fn a_family() {
    let expected = "\
demo  running  host-a
├─ @golden  ready
│  ├─ demo-1  running  host-a
│  └─ demo-2  running  host-a
│     └─ @V6  ready
│        └─ grandchild  running  host-a
└─ @late  ready
other  running  host-a
";
    assert_eq!(draw(&family().whole(), Strokes::UNICODE), expected);
}

#[test]
fn deleted_parents_are_drawn_where_they_were() {
    // demo and demo-2 are gone; the snapshot of demo-2 remembers what demo-2 was forked from.
    let forest = Forest::new(
        &[
            vm("V7", "grandchild", ("V5", "demo-2"), "V6"),
            vm("VA", "lone", ("V2", "long-gone"), "VX"),
        ],
        &[
            snapshot("V3", "golden", ("V1", "demo"), ""),
            snapshot("V6", "", ("V5", "demo-2"), "V3"),
        ],
    );
    let expected = "\
demo  (deleted)
`- @golden  ready
   `- demo-2  (deleted)
      `- @V6  ready
         `- grandchild  running  host-a
long-gone  (deleted)
`- lone  running  host-a
";
    assert_eq!(draw(&forest.whole(), Strokes::ASCII), expected);
}

#[test]
fn a_part_of_it() {
    for (text, root) in [
        ("demo-2", "V5"),
        ("@golden", "V3"),
        ("demo@golden", "V3"),
        ("golden", "V3"),
        ("v7", "V7"),
        ("@V8", "V8"),
    ] {
        assert_eq!(family().below(text, "").unwrap().id, root, "{text}");
    }
    for text in ["", "nothing", "@demo", "other@golden", "demo-1@V6", "@"] {
        assert_eq!(
            family().below(text, ""),
            Err(RootError::NotFound(text.to_owned())),
            "{text}"
        );
    }
    let several = family().below("V", "").unwrap_err();
    assert!(
        matches!(&several, RootError::Ambiguous { matches, .. } if matches[..2] == ["V1", "V4"]),
        "{several}"
    );
}

#[test]
fn a_vm_that_was_reset_is_drawn_below_its_moment() {
    // demo was set to its first snapshot after it had made the second; one and other are at each other's moments.
    let forest = || {
        Forest::new(
            &[
                vm("V1", "demo", ("", ""), "V2"),
                vm("V4", "one", ("", ""), "V7"),
                vm("V5", "other", ("", ""), "V6"),
            ],
            &[
                snapshot("V2", "first", ("V1", "demo"), ""),
                snapshot("V3", "second", ("V1", "demo"), ""),
                snapshot("V6", "of-one", ("V4", "one"), ""),
                snapshot("V7", "of-other", ("V5", "other"), ""),
            ],
        )
    };
    let expected = "\
@first  ready
`- demo  running  host-a
   `- @second  ready
one  running  host-a
`- @of-one  ready
   `- other  running  host-a
      `- @of-other  ready
";
    assert_eq!(draw(&forest().whole(), Strokes::ASCII), expected);
    assert_eq!(forest().below("demo@first", "").unwrap().id, "V2");
}

#[test]
fn json_is_nested() {
    let json = serde_json::to_value(family().below("demo-2", "").unwrap()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "kind": "vm", "id": "V5", "name": "demo-2", "owner": "", "state": "running", "node": "host-a", "deleted": false, "hidden": false,
            "children": [{
                "kind": "snapshot", "id": "V6", "name": "", "owner": "", "state": "ready", "node": "host-a", "deleted": false,
                "hidden": false,
                "children": [{
                    "kind": "vm", "id": "V7", "name": "grandchild", "owner": "", "state": "running", "node": "host-a",
                    "deleted": false, "hidden": false, "children": []
                }]
            }]
        })
    );
}

#[test]
fn nonsense_ends() {
    let forest = || {
        Forest::new(
            &[vm("V1", "a", ("V1", "a"), "S1")],
            &[snapshot("S1", "s", ("V1", "a"), "S1")],
        )
    };
    assert_eq!(forest().whole().len(), 1);
    assert_eq!(forest().below("a", "").unwrap().children, []);
}

#[test]
fn what_is_hidden_is_drawn_without_a_name() {
    let hidden_vm = |id: &str, name: &str| VmView {
        parent_hidden: true,
        ..vm(id, name, ("", ""), "")
    };
    let shared = SnapshotView {
        vm_hidden: true,
        ..snapshot("S2", "golden", ("", ""), "")
    };
    let forest = || {
        Forest::new(
            &[
                hidden_vm("V1", "mine"),
                VmView {
                    parent_hidden: true,
                    ..vm("V3", "golden-1", ("", ""), "S2")
                },
            ],
            std::slice::from_ref(&shared),
        )
    };
    let expected = "\
(hidden)
└─ @golden  ready
   └─ golden-1  running  host-a
(hidden)
└─ mine  running  host-a
";
    assert_eq!(draw(&forest().whole(), Strokes::UNICODE), expected);
    // It is not found by the id of what comes from it.
    assert_eq!(forest().below("V1", "").unwrap().name, "mine");
    assert_eq!(forest().below("S2", "").unwrap().name, "golden");
}

#[test]
fn names_of_several_owners_are_told_apart() {
    let of = |owner: &str, id: &str| VmView {
        owner: owner.to_owned(),
        ..vm(id, "web", ("", ""), "")
    };
    let forest = || Forest::new(&[of("ann", "V1"), of("bob", "V2")], &[]);
    assert_eq!(forest().below("bob/web", "").unwrap().id, "V2");
    assert_eq!(
        forest().below("web", "carl").unwrap_err(),
        RootError::Ambiguous {
            text: "web".to_owned(),
            matches: vec!["ann/web".to_owned(), "bob/web".to_owned()],
        }
    );
    // One's own comes first.
    assert_eq!(forest().below("web", "bob").unwrap().id, "V2");
    assert_eq!(forest().owners(), 2);
    let gold = |owner: &str, id: &str, vm: &str| SnapshotView {
        owner: owner.to_owned(),
        ..snapshot(id, "gold", (vm, "web"), "")
    };
    let forest = || {
        Forest::new(
            &[of("ann", "V1"), of("bob", "V2")],
            &[gold("ann", "S1", "V1"), gold("bob", "S2", "V2")],
        )
    };
    for (text, id) in [
        ("@bob/gold", "S2"),
        ("bob/web@gold", "S2"),
        ("ann/web@gold", "S1"),
    ] {
        assert_eq!(forest().below(text, "").unwrap().id, id, "{text}");
    }
    assert_eq!(
        forest().below("@gold", "").unwrap_err().to_string(),
        "\"@gold\" fits more than one VM or snapshot: @ann/gold, @bob/gold"
    );
}
