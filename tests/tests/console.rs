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
