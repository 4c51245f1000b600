//! Bad input and hosts that cannot do what is asked: each is refused with the right status and a message that says what to
//! do, and nothing is changed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::{cluster::Cluster, fpagent, image::Image};

fn digest(cluster: &Cluster) -> anyhow::Result<String> {
    let status = cluster.node(1).json(&["status"])?;
    // Everything that users see: what was asked and refused is remembered by its request id, which is no change to them.
    let count = |key: &str| status[key].as_u64();
    let vms = cluster.node(1).json(&["vm", "ls"])?;
    Ok(format!(
        "{:?} {:?} {:?} {vms}",
        count("vms"),
        count("snapshots"),
        count("images")
    ))
}

#[test]
fn bad_requests_are_refused_and_change_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(1)?;
    let node = cluster.node(1);
    node.fp(&["vm", "create", "v", "--image", "tiny", "--wait"])?
        .success()?;
    node.fp(&["vm", "pause", "v"])?.success()?;
    let before = digest(&cluster)?;
    let long = "x".repeat(5000);
    let cases: &[(&[&str], &[&str])] = &[
        (&["vm", "show", "nobody"], &["nobody", "vm ls"]),
        (&["vm", "start", "nobody"], &["nobody"]),
        (&["fork", "nobody"], &["nobody"]),
        (&["fork", "v@nothing"], &["nothing", "snapshot ls"]),
        (&["snapshot", "create", "nobody"], &["nobody"]),
        (
            &["vm", "create", "v", "--image", "tiny"],
            &["v", "another name"],
        ),
        (
            &["vm", "create", "w", "--image", "nothing"],
            &["nothing", "image ls"],
        ),
        (&["vm", "create", "../w", "--image", "tiny"], &["name"]),
        (&["vm", "create", "a,b", "--image", "tiny"], &["name"]),
        (&["vm", "create", "a\nb", "--image", "tiny"], &["name"]),
        (&["vm", "create", &long, "--image", "tiny"], &["name"]),
        (&["fork", "v", "--name", "a/b"], &["name"]),
        (&["fork", "v", "-n", "0"], &["count"]),
        (&["fork", "v", "-n", "100000"], &["count"]),
        (
            &["vm", "create", "w", "--image", "tiny", "--memory", "4096G"],
            &["node1", "memory"],
        ),
        (
            &[
                "vm",
                "create",
                "w",
                "--image",
                "tiny",
                "--node",
                "elsewhere",
            ],
            &["elsewhere", "node ls"],
        ),
        (
            &["vm", "create", "w", "--image", "tiny", "--disk", "1M"],
            &["disk"],
        ),
        (&["vm", "rm", "v"], &["v", "--force"]),
        (&["token", "create", "--ttl", "1000h"], &["30 days"]),
        (&["op", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], &["op ls"]),
    ];
    for (args, words) in cases {
        node.fp(args)?.refused(words).with_context(|| {
            format!(
                "fpagent {}",
                args.join(" ").chars().take(80).collect::<String>()
            )
        })?;
    }
    assert_eq!(digest(&cluster)?, before);
    // Wrong usage is told apart from a refusal.
    assert_eq!(node.fp(&["vm", "create"])?.code, 2);
    assert_eq!(node.fp(&["fork", "v", "-n", "many"])?.code, 2);
    Ok(())
}

#[test]
fn files_that_are_no_images_are_refused() -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let node = cluster.node(1);
    let path = |name: &str| cluster.folder().join(name).display().to_string();
    fs::write(path("text"), "not an image")?;
    let qemu_img = |args: &[&str]| -> anyhow::Result<()> {
        anyhow::ensure!(Command::new("qemu-img").args(args).status()?.success());
        Ok(())
    };
    qemu_img(&["create", "-q", "-f", "qcow2", &path("good"), "64M"])?;
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        &path("good"),
        &path("backed"),
    ])?;
    let kernel = Image::Tiny.folder().join("vmlinuz").display().to_string();
    let (text, missing, backed) = (path("text"), path("missing"), path("backed"));
    let cases: &[(&[&str], &[&str])] = &[
        (&["--kernel", &missing], &["missing"]),
        (&["--kernel", &text], &["kernel"]),
        (&["--kernel", &kernel, "--initrd", &text], &["initrd"]),
        (
            &["--kernel", &kernel, "--disk", &text],
            &["qcow2", "qemu-img convert"],
        ),
        (
            &["--kernel", &kernel, "--disk", &backed],
            &["backing file", "qemu-img convert"],
        ),
    ];
    for (args, words) in cases {
        let args = [&["image", "import", "bad"], *args].concat();
        node.fp(&args)?
            .refused(words)
            .with_context(|| args.join(" "))?;
    }
    assert_eq!(
        node.json(&["image", "ls"])?["items"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    let left: Vec<_> = fs::read_dir(node.data.join("images"))?.collect();
    assert!(left.iter().all(|entry| {
        entry
            .as_ref()
            .is_ok_and(|entry| !entry.path().to_string_lossy().ends_with(".part"))
    }));
    Ok(())
}

#[test]
fn a_guest_that_never_boots_is_told_apart() -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let folder = Image::Tiny.folder();
    let file = |name: &str| folder.join(name).display().to_string();
    let node = cluster.node(1);
    // It boots, and never prints the line that is waited for.
    let (kernel, initrd) = (file("vmlinuz"), file("initrd"));
    let import = [
        "image",
        "import",
        "mute",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--cmdline",
        "console=ttyS0 quiet",
        "--ready-line",
        "never said",
        "--boot-timeout",
        "3s",
    ];
    node.fp(&import)?.success()?;
    let begun = Instant::now();
    let answer = node.fp(&["vm", "create", "v", "--image", "mute", "--wait"])?;
    answer.refused(&["boot-timeout", "2 times", "fpagent logs"])?;
    assert!(
        begun.elapsed() >= Duration::from_secs(6),
        "it was not tried twice"
    );
    let vm = cluster.vm(1, "v")?;
    assert_eq!((&vm["state"], &vm["pid"]), (&"failed".into(), &0.into()));
    Ok(())
}

#[test]
fn a_request_sent_again_does_nothing_twice() -> anyhow::Result<()> {
    let cluster = Cluster::with_image(3)?;
    let create = [
        "vm",
        "create",
        "v",
        "--image",
        "tiny",
        "--request-id",
        "r1",
        "--wait",
    ];
    let first = cluster.node(1).json(&create)?;
    let again = cluster.node(2).json(&create)?;
    assert_eq!(first["id"], again["id"]);
    let other = ["vm", "create", "w", "--image", "tiny", "--request-id", "r1"];
    cluster
        .node(3)
        .fp(&other)?
        .refused(&["r1", "another body"])?;
    let fork = ["fork", "v", "-n", "2", "--paused", "--request-id", "r2"];
    let (first, again) = (cluster.node(1).json(&fork)?, cluster.node(3).json(&fork)?);
    assert_eq!(first["operation"], again["operation"]);
    let ids = |answer: &serde_json::Value| -> Vec<String> {
        let children = answer["children"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        children
            .iter()
            .map(|child| child["id"].to_string())
            .collect()
    };
    assert_eq!((ids(&first).len(), ids(&first)), (2, ids(&again)));
    cluster
        .node(2)
        .fp(&["fork", "v", "-n", "3", "--request-id", "r2"])?
        .refused(&["r2"])?;
    assert_eq!(
        cluster.node(2).json(&["vm", "ls"])?["items"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
    Ok(())
}

#[test]
fn without_a_quorum_changes_are_refused_soon() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(3)?;
    cluster.node_mut(2).kill()?;
    cluster.node_mut(3).kill()?;
    let begun = Instant::now();
    let answer =
        cluster
            .node(1)
            .fp(&["vm", "create", "v", "--image", "tiny", "--timeout", "4s"])?;
    assert!(answer.code == 3 || answer.code == 124, "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert!(answer.err.contains("fpagent status"), "{}", answer.err);
    // How it is can still be seen.
    let status = cluster.node(1).json(&["status"])?;
    assert_eq!(status["quorum"], false);
    assert!(
        status["problems"]
            .as_array()
            .is_some_and(|problems| !problems.is_empty())
    );
    cluster.node_mut(2).start()?;
    cluster.node_mut(2).wait_answers()?;
    // Another name: what was answered with "unavailable" may yet come to be.
    cluster
        .node(2)
        .fp(&["vm", "create", "w", "--image", "tiny"])?
        .success()?;
    Ok(())
}

fn script(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[test]
fn an_agent_whose_session_has_no_leader_that_it_sees_starts_as_any_other() -> anyhow::Result<()> {
    // As in a container that was entered from outside.
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(fpagent::binary())
        .args(["run", "--data-dir", "/nonexistent"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("holds no node"), "{said}");
    Ok(())
}

#[test]
fn a_host_without_a_usable_qemu_says_so() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_image(1)?;
    let old = cluster.folder().join("old-qemu");
    script(&old, "#!/bin/sh\necho 'QEMU emulator version 7.2.15'\n")?;
    for (qemu, words) in [
        ("/nonexistent/qemu", "not installed"),
        (&old.display().to_string(), "too old"),
    ] {
        cluster.node_mut(1).terminate()?;
        cluster.node_mut(1).set_options(&["--qemu", qemu]);
        cluster.node_mut(1).start()?;
        cluster.node_mut(1).wait_answers()?;
        cluster.wait_online(1)?;
        let node = cluster.node(1);
        let doctor = node.fp(&["doctor"])?;
        assert_eq!(doctor.code, 1);
        assert!(
            doctor.out.contains(words) && doctor.out.contains("8.2"),
            "{}",
            doctor.out
        );
        harness::wait_for(
            "the node to report its QEMU",
            Duration::from_secs(10),
            || {
                let answer = node.fp(&["vm", "create", "v", "--image", "tiny"])?;
                anyhow::ensure!(answer.code == 1, "{answer:?}");
                Ok(answer.err.contains("QEMU").then_some(()))
            },
        )?;
    }
    Ok(())
}

/// A file system of its own, taken down with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=711"),
                "tmpfs",
            ])
            .arg(folder.path())
            .status()?;
        anyhow::ensure!(mounted.success(), "cannot mount a small tmpfs");
        Ok(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that was killed lets go of its files a moment after it is gone from the process table.
        let umount = || Command::new("umount").arg("-q").arg(self.0.path()).status();
        let done = harness::wait_for("the small disk to be free", Duration::from_secs(10), || {
            Ok(umount()?.success().then_some(()))
        });
        if let Err(error) = done {
            eprintln!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}

#[test]
fn a_full_disk_refuses_new_work_and_keeps_what_runs() -> anyhow::Result<()> {
    let disk = SmallDisk::new("400M")?;
    let folder = tempfile::tempdir_in(disk.0.path())?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    let cluster = Cluster::start_in(1, folder)?;
    cluster.import("tiny", "")?;
    let node = cluster.node(1);
    node.fp(&["vm", "create", "v", "--image", "tiny", "--wait"])?
        .success()?;
    let filler = disk.0.path().join("filler");
    let free = qemu::host::free_bytes(disk.0.path())?;
    fs::write(&filler, vec![1; usize::try_from(free - (4 << 20))?])?;

    node.fp(&["vm", "create", "w", "--image", "tiny"])?
        .refused(&["disk", "free room"])?;
    node.fp(&["fork", "v"])?.refused(&["disk"])?;
    node.fp(&["snapshot", "create", "v"])?.refused(&["disk"])?;
    let status = node.json(&["status"])?;
    assert!(status["problems"].to_string().contains("disk"), "{status}");
    assert_eq!(cluster.vm(1, "v")?["state"], "running");
    // Deleting is not new work.
    fs::remove_file(&filler)?;
    node.fp(&["fork", "v"])?.success()?;
    node.fp(&["vm", "rm", "--force", "v"])?.success()?;
    drop(cluster);
    Ok(())
}

#[test]
fn a_cluster_that_is_not_there_is_told_apart() -> anyhow::Result<()> {
    let answer = fpagent::run(
        Some("unix:///nonexistent/agent.sock"),
        &["vm", "ls", "--timeout", "2s"],
    )?;
    assert_eq!(answer.code, 3, "{answer:?}");
    Ok(())
}
