//! A VM's console, read and written through any node.

use harness::{cluster::Cluster, lineage::fork, session::Session};

#[test]
fn a_console_is_written_by_one_and_read_by_all() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "")?;
    let create = [
        "vm", "create", "a", "--image", "tiny", "--node", "node1", "--wait",
    ];
    cluster.node(2).fp(&create)?.success()?;

    let mut onlooker = Session::open(&cluster, 1, "a")?;
    let mut writer = Session::open(&cluster, 3, "a")?;
    writer.ask("first")?;
    writer.ask("second")?;
    onlooker.wait_for("second")?;

    let mut second = Session::open(&cluster, 2, "a")?;
    second.send("echo third\n")?;
    let (code, problem) = second.end()?;
    assert_eq!(code, Some(1), "{problem}");
    assert!(
        problem.contains("somebody else is writing to this console"),
        "{problem}"
    );

    // A fork has a console of its own, and its parent's session goes on.
    fork(&cluster, 2, &["a", "--name", "b"])?;
    let mut child = Session::open(&cluster, 3, "b")?;
    child.ask("childs")?;
    writer.ask("parents")?;
    assert!(!writer.seen().contains("childs"), "{}", writer.seen());
    assert!(!child.seen().contains("parents"), "{}", child.seen());

    // The end of the input is the end of the right to write.
    writer.close_input();
    let (code, problem) = writer.end()?;
    assert_eq!(code, Some(0), "{problem}");
    let mut next = Session::open(&cluster, 2, "a")?;
    next.ask("fourth")?;
    onlooker.wait_for("fourth")?;

    cluster.node(1).fp(&["vm", "stop", "a"])?.success()?;
    let answer = cluster.node(3).fp(&["console", "a"])?;
    answer.refused(&["no running process", "fpagent vm start"])
}

#[test]
fn what_is_open_goes_on_with_a_vm_that_moves_and_nothing_printed_is_lost() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    cluster.import("tiny", "")?;
    let create = [
        "vm", "create", "a", "--image", "tiny", "--node", "node1", "--wait",
    ];
    cluster.node(2).fp(&create)?.success()?;
    let mut console = Session::open(&cluster, 3, "a")?;
    let mut logs = Session::of(&["logs", "-f", "a", "--addr", &cluster.node(2).address()])?;
    console.ask("first")?;
    logs.wait_for("first")?;
    for (node, word) in [("node2", "second"), ("node3", "third"), ("node1", "fourth")] {
        let to = ["vm", "move", "a", "--node", node];
        cluster.node(1).fp(&to)?.success()?;
        for session in [&console, &logs] {
            session.wait_said(&format!("a has moved to {node}"))?;
        }
        console.ask(word)?;
        logs.wait_for(word)?;
    }
    let shown = cluster.node(2).fp(&["logs", "a"])?;
    shown.success()?;
    let words = ["forkypig-guest ready", "first", "second", "third", "fourth"];
    for said in [&shown.out[..], logs.seen()] {
        let at = words.map(|word| said.find(word));
        assert!(at.is_sorted() && at[0].is_some(), "{at:?} {said}");
        for word in words {
            // Once as it was printed: what is typed is cut in two.
            assert_eq!(said.matches(word).count(), 1, "{word}: {said}");
        }
    }
    cluster
        .node(1)
        .fp(&["vm", "rm", "--force", "a"])?
        .success()?;
    for session in [console, logs] {
        let (code, problem) = session.end()?;
        assert_eq!(code, Some(0), "{problem}");
        assert!(problem.contains("a has moved to node3"), "{problem}");
    }
    Ok(())
}
