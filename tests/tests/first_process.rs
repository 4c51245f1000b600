//! What a guest's first process owes it, in the tiny image: `fpguest init`.

use harness::{
    cluster::{Cluster, PATIENCE},
    session::Session,
    wait_for,
};

/// Holds a file on the disk open for writing, and ends for nobody who asks.
const STUBBORN: &str = "(trap '' HUP INT TERM; while :; do sleep 1; done) >/root/held &\n";

#[test]
fn a_guests_first_process_mounts_reaps_respawns_and_ends_in_order() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(1)?;
    let node = cluster.node(1);
    let create = ["vm", "create", "v", "--image", "tiny", "--wait"];
    node.fp(&create)?.success()?;
    let mut session = Session::open(&cluster, 1, "v")?;
    session.ask("listening")?;

    session.send("echo mounts-$(grep -cE ' (/dev/pts|/dev/shm|/run) ' /proc/mounts)\n")?;
    session.wait_for("mounts-3")?;
    session.send("echo terminals-$(stat -c %a /dev/pts/ptmx)\n")?;
    session.wait_for("terminals-666")?;
    // Nothing that the first process blocked or ignores is so in what it starts.
    session.send("echo blocked-$(grep SigBlk /proc/$$/status | cut -f 2)\n")?;
    session.wait_for("blocked-0000000000000000")?;

    // Parents that end at once leave their children to it.
    session.send("for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.2 &); done; sleep 1\n")?;
    session.send("echo dead-$(grep -ls '^State:.Z' /proc/[0-9]*/status | wc -l)\n")?;
    session.wait_for("dead-0")?;

    // A shell that ends, with the terminal in no state to be typed at, is followed by one that is.
    session.send("old=yes; stty raw -echo; exit\n")?;
    wait_for("another shell", PATIENCE, || {
        let greetings = node.fp(&["logs", "v"])?.out.matches("BusyBox v").count();
        Ok((greetings == 2).then_some(()))
    })?;
    session.ask("again")?;
    session.send("echo new-$(tty)-$old.\n")?;
    session.wait_for("new-/dev/ttyS0-.")?;
    assert!(
        !session.seen().contains("job control turned off"),
        "{}",
        session.seen()
    );

    // Whoever does not end is made to, and the disk is whole: what was not synced is there, and no journal is replayed.
    session.send(STUBBORN)?;
    session.send("echo mine >/root/whose; reboot\n")?;
    wait_for("v to run again", PATIENCE, || {
        let vm = cluster.vm(1, "v")?;
        Ok((vm["ending"]["cause"] == "reboot" && vm["state"] == "running").then_some(()))
    })?;
    drop(session);
    let mut session = Session::open(&cluster, 1, "v")?;
    session.send("echo disk-$(cat /root/whose)-$(dmesg | grep -ciE 'recover|orphan')\n")?;
    session.wait_for("disk-mine-0")?;
    session.send("poweroff\n")?;
    let vm = cluster.wait_vm(1, "v", "stopped")?;
    assert_eq!(vm["ending"]["cause"], "poweroff");
    Ok(())
}
