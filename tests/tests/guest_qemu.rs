//! An image that has QEMU's own guest agent, and not this project's: a real one, in Debian. Programs, files and the clock.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, thread, time::Duration};

use anyhow::Context as _;
use harness::{
    cluster::Cluster,
    guests::{clock_within, exec_with, ready, shell},
    image::Image,
};

/// How far a guest's clock may be from its host's, seconds.
const CLOCK: f64 = 0.05;
/// So many bytes are copied.
const BYTES: usize = 3 << 20;

fn clock_is_right(cluster: &Cluster, vm: &str) -> anyhow::Result<()> {
    clock_within(vm, CLOCK, || {
        Ok(shell(cluster, 1, vm, "date +%s.%N")?.trim().parse()?)
    })?;
    Ok(())
}

#[test]
fn an_image_with_qemus_agent_gets_programs_files_and_the_time() -> anyhow::Result<()> {
    let cluster = Cluster::start(3)?;
    let mut import = vec!["image", "import", "debian", "--guest-agent", "qemu"];
    let options = Image::Debian.import_options("fp.agent=off")?;
    import.extend(options.iter().map(String::as_str));
    cluster.node(1).fp(&import)?.success()?;
    let create = [
        "vm",
        "create",
        "v",
        "--image",
        "debian",
        "--memory",
        "512M",
        "--node",
        "node2",
        "--wait",
        "--timeout",
        "5m",
    ];
    cluster.node(1).fp(&create)?.success()?;
    ready(&cluster, 3, "v")?;
    let shown = cluster.vm(1, "v")?;
    assert_eq!(shown["guest"]["agent"], "qemu", "{shown}");

    // Programs: input, both outputs, environment, how they end.
    let script = "cat; echo to errors >&2; echo $WORD; exit 7";
    let ran = exec_with(
        &cluster,
        3,
        "v",
        &["-e", "WORD=heard"],
        &["sh", "-c", script],
        b"in\n",
    )?;
    assert_eq!(ran.status.code(), Some(7), "{ran:?}");
    assert_eq!(
        (ran.stdout.as_slice(), ran.stderr.as_slice()),
        (&b"in\nheard\n"[..], &b"to errors\n"[..])
    );

    // A file in, into a folder and under another name, and out again.
    let folder = tempfile::tempdir()?;
    let (here, back) = (folder.path().join("a file"), folder.path().join("back"));
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at * 7 + at / 251) as u8).collect();
    fs::write(&here, &bytes)?;
    fs::set_permissions(&here, fs::Permissions::from_mode(0o640))?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("no text");
    for target in ["v:/root/", "v:/root/other"] {
        cluster
            .node(3)
            .fp(&["cp", &text(&here)?, target])?
            .success()?;
    }
    let listed = shell(
        &cluster,
        1,
        "v",
        "cd /root; stat -c '%n %a %s' *; cmp 'a file' other",
    )?;
    assert_eq!(listed, format!("a file 640 {BYTES}\nother 640 {BYTES}\n"));
    cluster
        .node(3)
        .fp(&["cp", "v:/root/other", &text(&back)?])?
        .success()?;
    assert!(fs::read(&back)? == bytes, "another file came back");
    assert_eq!(fs::metadata(&back)?.permissions().mode() & 0o777, 0o640);
    // An empty one has a beginning and an end, too.
    let empty = folder.path().join("empty");
    fs::write(&empty, "")?;
    cluster
        .node(1)
        .fp(&["cp", &text(&empty)?, "v:/root/empty"])?
        .success()?;
    cluster
        .node(1)
        .fp(&["cp", "v:/root/empty", &text(&back)?])?
        .success()?;
    assert_eq!(fs::metadata(&back)?.len(), 0);
    // What it cannot do it says, and leaves nothing half done.
    for (copy, problem) in [
        (["cp", "v:/root", &text(&back)?], "one at a time"),
        (["cp", &text(folder.path())?, "v:/root/"], "one at a time"),
        (["cp", "v:/none", &text(&back)?], "No such file"),
        (["cp", &text(&here)?, "v:/none/"], "no such folder"),
        (["cp", &text(&here)?, "v:/none/x"], "No such file"),
    ] {
        let refused = cluster.node(1).fp(&copy)?;
        assert!(refused.err.contains(problem), "{copy:?}: {refused:?}");
        assert_ne!(refused.code, 0, "{copy:?}");
    }
    let left = shell(&cluster, 1, "v", "cd /root; ls -A | grep -c fpcp; :")?;
    assert_eq!(left, "0\n");

    // The clock of one that stood still, and of its forks, which answer for themselves.
    cluster.node(2).fp(&["vm", "pause", "v"])?.success()?;
    // Until a clock that nobody sets would be seen to be wrong.
    thread::sleep(Duration::from_secs_f64(4.0 * CLOCK));
    cluster.node(2).fp(&["vm", "resume", "v"])?.success()?;
    clock_is_right(&cluster, "v")?;
    shell(&cluster, 1, "v", "echo warm > /run/state")?;
    cluster
        .node(1)
        .fp(&["fork", "v", "-n", "2", "--name", "c"])?
        .success()?;
    for vm in ["c-1", "c-2", "v"] {
        ready(&cluster, 3, vm)?;
        assert_eq!(shell(&cluster, 3, vm, "cat /run/state")?, "warm\n");
        shell(&cluster, 1, vm, &format!("echo {vm} > /run/state"))?;
    }
    for vm in ["v", "c-2", "c-1"] {
        assert_eq!(shell(&cluster, 3, vm, "cat /run/state")?, format!("{vm}\n"));
        clock_is_right(&cluster, vm)?;
    }
    Ok(())
}
