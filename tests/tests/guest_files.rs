//! Files go into VMs and out of them through any node, whole; what is interrupted goes on; what a guest sends stays where it belongs.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE, signal},
    fpagent::{Answer, binary},
    guests::boot,
    lineage::fork,
    wait_for,
};
use rustix::process::Signal;

/// The size of a file that takes a while.
const LARGE: u64 = 64 << 20;

/// A cluster of three with a VM `v` on the second, that answers.
fn with_vm() -> anyhow::Result<Cluster> {
    let cluster = Cluster::with_guests(3)?;
    boot(&cluster, 1, &[("v", &["--node", "node2"])])?;
    Ok(cluster)
}

/// Runs a line of shell in a VM.
fn exec(cluster: &Cluster, vm: &str, line: &str) -> anyhow::Result<Answer> {
    cluster.node(2).fp(&["exec", vm, "--", "sh", "-c", line])
}

/// The same, which must succeed; what it printed.
fn told(cluster: &Cluster, vm: &str, line: &str) -> anyhow::Result<String> {
    let answer = exec(cluster, vm, line)?;
    answer.success().with_context(|| line.to_owned())?;
    Ok(answer.out.trim().to_owned())
}

/// A command against a node, with what it reads.
fn spawn(cluster: &Cluster, through: usize, args: &[&str]) -> anyhow::Result<Child> {
    Ok(Command::new(binary())
        .args(args)
        .args(["--addr", &cluster.node(through).address()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?)
}

/// What is in a folder: kinds, permissions, times, contents.
fn listed(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    fn look(root: &Path, path: &Path, all: &mut BTreeMap<PathBuf, String>) -> anyhow::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let content = if metadata.is_symlink() {
            format!("{:?}", fs::read_link(path)?)
        } else if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                look(root, &entry?.path(), all)?;
            }
            String::new()
        } else {
            format!("{:?}", fs::read(path)?)
        };
        let mode = metadata.permissions().mode();
        let time = (metadata.mtime(), metadata.mtime_nsec());
        let line = format!("{mode:o} {time:?} {content}");
        all.insert(path.strip_prefix(root)?.to_owned(), line);
        Ok(())
    }
    let mut all = BTreeMap::new();
    look(root, root, &mut all)?;
    Ok(all)
}

/// A tree of all that can be copied; how many files are in it.
fn make_tree(root: &Path) -> anyhow::Result<usize> {
    fs::create_dir_all(root.join("a/b c/ü"))?;
    fs::create_dir(root.join("empty"))?;
    let mut files = 0;
    for (name, length, mode) in [
        ("a/program", 200_000, 0o755),
        ("a/b c/secret", 10, 0o600),
        ("a/b c/ü/nothing", 0, 0o444),
        ("a/new\nline", 65_536, 0o644),
    ] {
        let content: Vec<u8> = (0..length).map(|n: u32| (n * 31 / 7) as u8).collect();
        fs::write(root.join(name), content)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode))?;
        files += 1;
    }
    for number in 0..300 {
        fs::write(root.join(format!("a/small{number}")), number.to_string())?;
        files += 1;
    }
    symlink("../a/program", root.join("a/link"))?;
    symlink("nowhere", root.join("dangling"))?;
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o500))?;
    Ok(files)
}

#[test]
fn a_tree_goes_in_through_one_node_and_out_through_another() -> anyhow::Result<()> {
    let cluster = with_vm()?;
    let here = tempfile::tempdir()?;
    let at = |name: &str| here.path().join(name).display().to_string();
    let (from, to) = (at("from"), at("to"));
    let files = make_tree(Path::new(&from))?;
    let (one, three) = (cluster.node(1), cluster.node(3));

    let first = one.json(&["cp", &from, "v:/tree"])?;
    assert_eq!(first["files"], files, "{first}");
    three.fp(&["cp", "v:/tree", &to])?.success()?;
    assert_eq!(listed(Path::new(&from))?, listed(Path::new(&to))?);
    // Again, below what is there by now; and then nothing is left to be done but for what is empty.
    one.fp(&["cp", &from, "v:/tree"])?.success()?;
    told(&cluster, "v", "test -f /tree/from/a/program")?;
    let again = three.json(&["cp", &from, "v:/tree"])?;
    assert_eq!(
        (&again["bytes"], &again["sameFiles"]),
        (&0.into(), &(files - 1).into())
    );

    // One file by standard streams, below root's home.
    let mut input = spawn(&cluster, 1, &["cp", "-", "v:words"])?;
    input
        .stdin
        .take()
        .context("no input")?
        .write_all(b"words of wisdom")?;
    let output = input.wait_with_output()?;
    assert!(output.status.success(), "{output:?}");
    let home = told(&cluster, "v", "pwd")?;
    let path = format!("v:{home}/words");
    assert_eq!(three.fp(&["cp", &path, "-"])?.out, "words of wisdom");

    // What a guest has that leads elsewhere stays there, and is told.
    let line = "mkdir /odd && cd /odd && ln -s /etc/passwd out && ln -s ../.. up && ln -s in down && mkfifo pipe && \
                echo x > in && chmod 4755 in";
    told(&cluster, "v", line)?;
    let answer = one.fp(&["cp", "v:/odd", &at("odd")])?;
    answer.success()?;
    assert!(
        answer
            .err
            .contains("2 links that point out of the tree were left out"),
        "{}",
        answer.err
    );
    assert!(
        answer.err.contains("1 thing that is no file"),
        "{}",
        answer.err
    );
    let there: Vec<_> = listed(Path::new(&at("odd")))?.into_keys().collect();
    assert_eq!(there, ["", "down", "in"].map(PathBuf::from));
    let mode = fs::metadata(at("odd/in"))?.permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);

    refusals(&cluster, &at("x"))
}

fn refusals(cluster: &Cluster, here: &str) -> anyhow::Result<()> {
    let (one, three) = (cluster.node(1), cluster.node(3));
    one.fp(&["cp", "v:/no/such", here])?
        .refused(&["\"v\"", "/no/such: there is no such file or folder"])?;
    three
        .fp(&["cp", "/etc/hosts", "v:/no/such/x"])?
        .refused(&["/no/such: there is no such file or folder"])?;
    three.fp(&["cp", here, "v:/"])?.refused(&[here])?;
    one.fp(&["cp", "none:/etc/hosts", here])?
        .refused(&["none"])?;
    assert_eq!(one.fp(&["cp", "v:/a", "v:/b"])?.code, 2);
    assert_eq!(one.fp(&["cp", "/a", "/b"])?.code, 2);
    assert!(!Path::new(here).exists());

    // A full disk: nothing is left of the file on it.
    told(
        cluster,
        "v",
        "mount -t tmpfs -o size=1m none /mnt && echo before > /mnt/kept",
    )?;
    fs::write(here, vec![7; 8 << 20])?;
    one.fp(&["cp", here, "v:/mnt/large"])?
        .refused(&["/mnt/large", "no space is left"])?;
    assert_eq!(told(cluster, "v", "ls -A /mnt")?, "kept");
    Ok(())
}

/// So many bytes of a file that is being copied into a VM are there.
fn wait_part(cluster: &Cluster, path: &str, bytes: u64) -> anyhow::Result<()> {
    let line = format!("stat -c %s {path} 2>/dev/null || echo 0");
    wait_for(&format!("{bytes} bytes of {path}"), PATIENCE, || {
        let there: u64 = told(cluster, "v", &line)?.parse()?;
        Ok((there >= bytes).then_some(()))
    })
}

#[test]
fn a_large_file_goes_on_where_it_was_and_with_the_parent_of_a_fork() -> anyhow::Result<()> {
    let cluster = with_vm()?;
    let here = tempfile::tempdir()?;
    let at = |name: &str| here.path().join(name).display().to_string();
    let large = at("large");
    let content: Vec<u8> = (0..LARGE)
        .map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8)
        .collect();
    fs::write(&large, &content)?;

    // Into the VM, in two goes.
    let mut client = spawn(&cluster, 1, &["cp", &large, "v:/one"])?;
    wait_part(&cluster, "/.one.fpcp-part", LARGE / 8)?;
    client.kill()?;
    client.wait()?;
    let view = cluster.node(3).json(&["cp", &large, "v:/one"])?;
    let (went, there) = (&view["bytes"], &view["sameBytes"]);
    let (went, there) = (
        went.as_u64().context("no bytes")?,
        there.as_u64().context("no bytes")?,
    );
    assert!(went + there == LARGE && there >= LARGE / 8, "{view}");

    // Out of it, in two goes.
    let part = here.path().join(".back.fpcp-part");
    let client = spawn(&cluster, 3, &["cp", "v:/one", &at("back")])?;
    wait_for("a part of the file", PATIENCE, || {
        let length = fs::metadata(&part).map_or(0, |part| part.len());
        Ok((length >= LARGE / 8).then_some(()))
    })?;
    signal(client.id(), Signal::INT)?;
    let output = client.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("goes on where it was"), "{said}");
    let view = cluster.node(1).json(&["cp", "v:/one", &at("back")])?;
    assert!(
        view["sameBytes"].as_u64().context("no bytes")? >= LARGE / 8,
        "{view}"
    );
    assert!(fs::read(at("back"))? == content, "it came back as another");
    assert!(!part.exists());

    // The VM is forked in the middle of one.
    let smaller = at("smaller");
    fs::write(&smaller, &content[..content.len() / 4])?;
    let client = spawn(&cluster, 1, &["cp", &smaller, "v:/two"])?;
    wait_part(&cluster, "/.two.fpcp-part", LARGE / 32)?;
    fork(&cluster, 3, &["v", "--name", "child"])?;
    let output = client.wait_with_output()?;
    assert!(output.status.success(), "{output:?}");
    assert!(!told(&cluster, "v", "ls -A /")?.contains("fpcp-part"));
    cluster
        .node(3)
        .fp(&["cp", "v:/two", &at("two")])?
        .success()?;
    assert!(
        fs::read(at("two"))? == fs::read(smaller)?,
        "it came back as another"
    );
    wait_for("nothing to be left of it in the child", PATIENCE, || {
        let gone = exec(
            &cluster,
            "child",
            "test ! -e /.two.fpcp-part && test ! -e /two",
        )?;
        Ok((gone.code == 0).then_some(()))
    })?;
    // The child's agent is as good as its parent's.
    cluster
        .node(1)
        .fp(&["cp", "/etc/hostname", "child:/h"])?
        .success()
}
