//! What is shared with somebody, in guests that run: it is worked in and forked as long as it is shared, through any node, and what comes
//! of that stays.

use harness::{
    cluster::{Cluster, PATIENCE, signal},
    guests::{boot, exec, ready, shell},
    session::Session,
    users::Users,
    wait_for,
};
use rustix::process::Signal;

/// How many processes of a guest have this among their arguments.
fn running(cluster: &Cluster, vm: &str, word: &str) -> anyhow::Result<usize> {
    let (head, tail) = word.split_at(1);
    let look = format!("busybox ps -o args | grep -c '[{head}]{tail}' || true");
    Ok(shell(cluster, 1, vm, &look)?.trim().parse()?)
}

#[test]
fn a_shared_vm_is_worked_in_and_forked_as_long_as_it_is_shared() -> anyhow::Result<()> {
    let cluster = Cluster::with_guests(2)?;
    let users = [("ann", "operator", "ann"), ("bob", "operator", "bob")];
    let users = Users::of(&cluster, &users)?;
    boot(
        &cluster,
        1,
        &[("web", &["--node", "node2", "--owner", "ann"])],
    )?;
    let (near, far) = (cluster.node(2), cluster.node(1));
    let run = |name: &str, args: &[&str]| users.run(far, name, args);
    let hidden = ["there is no VM \"ann/web\""];
    let uses: [&[&str]; 6] = [
        &["exec", "ann/web", "--", "true"],
        &["logs", "ann/web"],
        &["console", "ann/web"],
        &["cp", "ann/web:/etc", "/nowhere"],
        &["fork", "ann/web"],
        &["snapshot", "create", "ann/web", "mine"],
    ];
    for args in uses {
        run("bob", args)?.refused(&hidden)?;
    }

    let share = ["share", "vm", "web", "--with", "bob"];
    run("ann", &share)?.success()?;
    run("bob", uses[0])?.success()?;
    let session = |name, agent, args: &[&str]| users.session(agent, name, args);
    let cat = |name, agent, vm: &str, mark: &str| -> anyhow::Result<Session> {
        let script = format!("echo up; cat; : {mark}");
        let mut cat = session(name, agent, &["exec", "-i", vm, "--", "sh", "-c", &script])?;
        cat.wait_for("up\n")?;
        Ok(cat)
    };
    let mut cut = [
        cat("bob", near, "ann/web", "bobs")?,
        cat("bob", far, "ann/web", "bobs")?,
        session("bob", far, &["logs", "-f", "ann/web"])?,
        session("bob", far, &["console", "ann/web"])?,
    ];
    let mut anns = cat("ann", far, "web", "anns")?;
    // Who does not read what comes is cut off, too.
    let flood = [
        "exec",
        "-i",
        "ann/web",
        "--",
        "sh",
        "-c",
        "yes flood; : bobs",
    ];
    let mut deaf = session("bob", far, &flood)?;
    deaf.wait_for("flood")?;
    signal(deaf.pid(), Signal::STOP)?;
    cut[3].ask("together")?;
    cut[2].wait_for("together")?;
    // A shell may run as two.
    assert!(running(&cluster, "web", "bobs")? >= 3);
    let forked = users.json(far, "bob", &["fork", "ann/web"])?;
    assert_eq!(forked["children"][0]["name"], "web-1", "{forked}");
    ready(&cluster, 1, "web-1")?;

    run("ann", &[&share[..], &["--stop"]].concat())?.success()?;
    for one in cut {
        let (code, problem) = one.end()?;
        assert_eq!(code, Some(1), "{problem}");
        assert!(problem.contains(hidden[0]), "{problem}");
    }
    wait_for("what Bob ran to be gone", PATIENCE, || {
        Ok((running(&cluster, "web", "bobs")? == 0).then_some(()))
    })?;
    for args in uses {
        run("bob", args)?.refused(&hidden)?;
    }
    // Its owner's go on.
    anns.send("still here\n")?;
    anns.wait_for("still here")?;

    // What came of it is Bob's, and tells him of its parent no more; Ann never knew of it.
    let child = users.json(far, "bob", &["vm", "show", "web-1"])?;
    assert_eq!(
        (&child["owner"], &child["parentHidden"], &child["parent"]),
        (&"bob".into(), &true.into(), &"".into())
    );
    assert!(!child.to_string().contains("ann"), "{child}");
    let tree = run("bob", &["tree"])?.out;
    assert!(tree.contains("(hidden)"), "{tree}");
    run("ann", &["exec", "web-1", "--", "true"])?.refused(&["there is no VM \"web-1\""])?;
    run("bob", &["exec", "web-1", "--", "true"])?.success()?;

    // A snapshot by itself; its forks are not called after a VM that is hidden.
    run("ann", &["snapshot", "create", "web", "gold"])?.success()?;
    let gold = users.json(far, "ann", &["snapshot", "show", "gold"])?;
    let gold = gold["id"].as_str().unwrap_or_default();
    for name in [gold, "ann/gold"] {
        let fork = format!("@{name}");
        let refused = format!("there is no snapshot {name:?}");
        run("bob", &["fork", &fork])?.refused(&[&refused])?;
        run("bob", &["snapshot", "show", name])?.refused(&[&refused])?;
    }
    // What Ann had done is hers to know.
    let operations = users.json(far, "ann", &["op", "ls"])?;
    let operation = operations["items"][0]["id"].as_str().unwrap_or_default();
    assert_eq!(operations["items"][0]["kind"], "snapshot", "{operations}");
    for action in ["show", "cancel"] {
        run("bob", &["op", action, operation])?.refused(&["there is no operation"])?;
    }
    let bobs = users.json(far, "bob", &["op", "ls"])?.to_string();
    assert!(!bobs.contains(operation) && !bobs.contains("ann"), "{bobs}");
    run("ann", &["share", "snapshot", "gold", "--with", "everyone"])?.success()?;
    let forked = users.json(far, "bob", &["fork", "@ann/gold"])?;
    assert_eq!(forked["children"][0]["name"], "gold-1", "{forked}");
    ready(&cluster, 1, "gold-1")?;
    // All that was in its memory is in it: what Ann was doing goes on there.
    assert_eq!(exec(&cluster, 1, "gold-1", &["hostname"])?.trim(), "gold-1");
    let shown = users.json(far, "bob", &["snapshot", "show", "ann/gold"])?;
    assert_eq!(
        (&shown["vmHidden"], &shown["vm"], &shown["vmName"]),
        (&true.into(), &"".into(), &"".into())
    );
    run("ann", &["snapshot", "rm", "gold"])?.refused(&["1 of other owners"])?;
    run("bob", &["snapshot", "rm", "ann/gold"])?.refused(&["belongs to another owner"])?;

    // What a fork needs counts as a whole.
    cluster
        .node(1)
        .fp(&["quota", "set", "bob", "--vms", "3"])?
        .success()?;
    run("bob", &["fork", "web-1", "-n", "2"])?
        .refused(&["2 of 3 VMs are used, and 2 more asked for"])?;
    assert_eq!(
        users.json(far, "bob", &["quota", "show"])?["used"]["vms"],
        2
    );
    run("bob", &["fork", "web-1"])?.success()
}
