//! Who got out of a guest into its QEMU: a probe runs in QEMU's place, with all that the agent gives a QEMU and nothing that it takes
//! away, and reaches no other VM, nothing of the agent, and no file for writing. What a lineage shares is named exactly. That the probe
//! would reach it if it could, root shows each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use harness::{
    cluster::{Cluster, PATIENCE, is_alive, signal},
    fpagent,
    probe::{Attempt, ORDERS, Outcome, Report, status_field},
    wait_for,
};
use qemu::record::VmRecord;
use rustix::{io::Errno, process::Signal};

/// The first user that VMs get is the one after this, and the group of images is this.
const BASE: u32 = 1_879_048_192;

/// What the kernel says to who may not.
const REFUSED: [i32; 2] = [Errno::ACCESS.raw_os_error(), Errno::PERM.raw_os_error()];
/// What it says of a number that a user namespace does not have.
const UNKNOWN: i32 = Errno::INVAL.raw_os_error();

/// A node whose QEMU is the probe, as long as that has no orders.
struct World {
    cluster: Cluster,
    /// Open to all, as the folder of programs is.
    programs: tempfile::TempDir,
}

impl World {
    fn start() -> anyhow::Result<Self> {
        let programs = tempfile::tempdir()?;
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755))?;
        let mut cluster = Cluster::start(1)?;
        let world_probe = programs.path().join("probe");
        fs::copy(env!("CARGO_BIN_EXE_probe"), &world_probe)?;
        // A program that is root whoever runs it, where that is not forbidden.
        let id = programs.path().join("id");
        fs::copy("/usr/bin/id", &id)?;
        fs::set_permissions(&id, fs::Permissions::from_mode(0o4755))?;
        let node = cluster.node_mut(1);
        node.terminate()?;
        node.set_options(&["--qemu", &world_probe.display().to_string()]);
        node.start()?;
        node.wait_answers()?;
        cluster.wait_online(1)?;
        Ok(Self { cluster, programs })
    }

    fn probe(&self) -> PathBuf {
        self.programs.path().join("probe")
    }

    fn orders(&self) -> PathBuf {
        self.programs.path().join("probe").with_extension(ORDERS)
    }

    fn data(&self) -> &Path {
        &self.cluster.node(1).data
    }

    fn fp(&self, args: &[&str]) -> anyhow::Result<()> {
        self.cluster.node(1).fp(args)?.success()
    }

    fn record(&self, vm: &str) -> anyhow::Result<VmRecord> {
        let id = self.id(vm)?;
        Ok(serde_json::from_slice(&fs::read(
            self.data().join("vms").join(id).join("vm.json"),
        )?)?)
    }

    fn id(&self, vm: &str) -> anyhow::Result<String> {
        let vm = self.cluster.vm(1, vm)?;
        Ok(vm["id"].as_str().context("no id")?.to_owned())
    }

    fn pid(&self, vm: &str) -> anyhow::Result<u32> {
        let vm = self.cluster.vm(1, vm)?;
        Ok(u32::try_from(vm["pid"].as_u64().context("no pid")?)?)
    }

    /// Has the next processes be the probe, and gives what the first that the request brings about reports.
    fn probed(&self, wanted: &[Attempt], request: &[&str]) -> anyhow::Result<Report> {
        fs::write(self.orders(), serde_json::to_vec(wanted)?)?;
        fs::set_permissions(self.orders(), fs::Permissions::from_mode(0o644))?;
        let asking = Asking(
            Command::new(fpagent::binary())
                .args(request)
                .args(["--addr", &self.cluster.node(1).address()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?,
        );
        let report = wait_for("the probe's report", PATIENCE, || {
            for folder in fs::read_dir(self.data().join("vms"))? {
                let log = folder?.path().join("qemu.log");
                // It may go while it is looked for.
                let printed = fs::read(log).unwrap_or_default();
                if let Some(report) = Report::find(&String::from_utf8_lossy(&printed)) {
                    return Ok(Some(report));
                }
            }
            Ok(None)
        });
        fs::remove_file(self.orders())?;
        let report = report?;
        signal(report.pid, Signal::KILL)?;
        drop(asking);
        Ok(report)
    }

    /// The same attempts by root, from where QEMU is.
    fn by_root(&self, wanted: &[Attempt]) -> anyhow::Result<Report> {
        let orders = self.programs.path().join("root.orders");
        fs::write(&orders, serde_json::to_vec(wanted)?)?;
        let ran = Command::new(self.probe())
            .arg("--here")
            .arg(&orders)
            .current_dir(self.data())
            .output()?;
        ensure!(ran.status.success(), "{ran:?}");
        Report::find(&String::from_utf8_lossy(&ran.stdout)).context("no report")
    }
}

/// A request that may not be answered.
struct Asking(Child);

impl Drop for Asking {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn files_below(folder: &Path) -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    let mut at = 0;
    while at < folders.len() {
        for entry in fs::read_dir(&folders[at])? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
        at += 1;
    }
    Ok((files, folders))
}

/// Everything of this node that a QEMU has no business with, and that is there now: paths as QEMU would say them.
fn everything(world: &World, vms: &[&str]) -> anyhow::Result<Vec<Attempt>> {
    let data = world.data();
    let mut all = Vec::new();
    let (files, folders) = files_below(data)?;
    let below = |path: &Path| -> anyhow::Result<PathBuf> {
        let path = path.strip_prefix(data)?;
        Ok(match path.as_os_str().is_empty() {
            true => ".".into(),
            false => path.to_owned(),
        })
    };
    for file in files {
        // They come and go: what is written is put in a file's place.
        if file.extension().is_some_and(|ending| ending == "new") {
            continue;
        }
        let file = below(&file)?;
        all.extend([Attempt::Read(file.clone()), Attempt::Write(file)]);
    }
    for folder in folders {
        let folder = below(&folder)?;
        all.extend([Attempt::List(folder.clone()), Attempt::Create(folder)]);
    }
    let mut pids = vec![world.cluster.node(1).pid().context("no agent")?];
    for vm in vms {
        let (id, pid) = (world.id(vm)?, world.pid(vm)?);
        for socket in ["qmp", "console", "port"] {
            all.push(Attempt::Connect(format!("vms/{id}/{socket}.sock").into()));
        }
        pids.push(pid);
        let record = world.record(vm)?;
        let (uid, gid) = record.user.context("no user")?;
        all.extend([Attempt::BecomeUser(uid), Attempt::BecomeGroup(gid)]);
    }
    for pid in pids {
        let proc = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
        for file in ["mem", "environ", "maps", "smaps", "auxv", "pagemap"] {
            all.push(Attempt::Read(proc(file)));
        }
        for file in ["mem", "clear_refs", "oom_score_adj"] {
            all.push(Attempt::Write(proc(file)));
        }
        for folder in ["fd", "map_files"] {
            all.push(Attempt::List(proc(folder)));
        }
        for link in ["cwd", "root", "exe", "fd/0"] {
            all.push(Attempt::Follow(proc(link)));
        }
        // Through its root directory as through one's own.
        all.push(Attempt::Read(proc("root/etc/passwd")));
        all.extend([
            Attempt::Signal(pid),
            Attempt::Trace(pid),
            Attempt::TakeDescriptor(pid),
            Attempt::ReadMemory {
                pid,
                address: some_memory(pid)?,
            },
        ]);
        if let Some(group) = group_of(pid)? {
            all.push(Attempt::Write(group.join("cgroup.procs")));
        }
    }
    let socket = world.cluster.node(1).address();
    let socket = socket.strip_prefix("unix://").context("no socket")?;
    all.extend([
        Attempt::Connect(socket.into()),
        Attempt::BecomeUser(0),
        Attempt::BecomeGroup(0),
        Attempt::DropGroups,
        Attempt::Execute(world.programs.path().join("id")),
        Attempt::Read("/etc/shadow".into()),
        Attempt::Write("/etc/passwd".into()),
        Attempt::Read("/dev/mem".into()),
    ]);
    all.retain(|attempt| !matches!(attempt, Attempt::Read(path) if path == Path::new("/dev/mem") && !path.exists()));
    Ok(all)
}

/// An address where a process has memory that it may read.
fn some_memory(pid: u32) -> anyhow::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps
        .lines()
        .find(|line| line.contains(" r-xp ") || line.contains(" rw-p "));
    let begin = line.and_then(|line| line.split('-').next());
    Ok(u64::from_str_radix(begin.context("no memory")?, 16)?)
}

/// A process's group of cgroup v2, where it has one of its own.
fn group_of(pid: u32) -> anyhow::Result<Option<PathBuf>> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right
            .starts_with("cgroup2 ")
            .then(|| left.split(' ').nth(4))?
    });
    Ok(own
        .zip(mount)
        .map(|(own, mount)| Path::new(mount).join(own)))
}

/// What was reached of what was tried.
fn reached(attempts: &[(Attempt, Outcome)]) -> BTreeSet<Attempt> {
    let reached = attempts.iter().filter(|(_, outcome)| outcome.is_ok());
    reached.map(|(attempt, _)| attempt.clone()).collect()
}

/// Fails unless exactly this was reached, and all else was forbidden, and not just absent. What went away meanwhile is told apart
/// by what root finds.
fn check(report: &Report, expected: &BTreeSet<Attempt>, root: &Report) -> anyhow::Result<()> {
    let roots: BTreeMap<_, _> = root.attempts.iter().cloned().collect();
    let own = Attempt::Create(format!("vms/{}/qemu", report.vm).into());
    let tried = [Ok(&report.attempts), report.as_own_root.as_ref()];
    for attempts in tried.into_iter().flatten() {
        let mut reached = reached(attempts);
        // It is in that already, if not in a namespace that has no numbers.
        let own_group: Option<u32> = status_field(&report.status, "Gid")
            .first()
            .and_then(|gid| gid.parse().ok());
        reached.retain(
            |attempt| !matches!(attempt, Attempt::BecomeGroup(group) if Some(*group) == own_group),
        );
        ensure!(
            reached.remove(&own),
            "it does not even reach its own folder"
        );
        let beyond: Vec<_> = reached.difference(expected).collect();
        ensure!(beyond.is_empty(), "it reaches {beyond:#?}");
        let missing: Vec<_> = expected.difference(&reached).collect();
        ensure!(missing.is_empty(), "it should reach {missing:#?}");
        for (attempt, outcome) in attempts {
            let forbidden = outcome.is_ok() || outcome.is_err_and(|error| REFUSED.contains(&error));
            let unknown = matches!(attempt, Attempt::BecomeUser(_) | Attempt::BecomeGroup(_))
                && *outcome == Err(UNKNOWN);
            let went = unknown || roots.get(attempt).is_some_and(|outcome| outcome.is_err());
            ensure!(forbidden || went, "{attempt:?} failed with {outcome:?}");
        }
    }
    Ok(())
}

/// What all QEMU processes of a node may read: images, and the library that is loaded into them. Who runs what can be seen by anybody
/// on a host.
fn open_to_all(all: &[Attempt]) -> BTreeSet<Attempt> {
    let open = |attempt: &&Attempt| match attempt {
        Attempt::Read(path) => {
            path.starts_with("images") || path == Path::new("run/write_tracking.so")
        }
        _ => false,
    };
    all.iter().filter(open).cloned().collect()
}

#[test]
fn who_got_out_of_a_guest_reaches_nothing_but_what_its_lineage_shares() -> anyhow::Result<()> {
    let world = World::start()?;
    world.cluster.import("tiny", "")?;
    for vm in ["victim", "neighbour"] {
        world.fp(&["vm", "create", vm, "--image", "tiny", "--wait"])?;
        // So that its disk has more than an image's.
        world.fp(&["exec", vm, "--", "sh", "-c", "echo word > /word; sync"])?;
        world.fp(&["snapshot", "create", vm, &format!("of-{vm}")])?;
    }
    world.fp(&["fork", "victim", "--name", "child"])?;
    let vms = ["victim", "child", "neighbour"];
    let all = everything(&world, &vms)?;
    let root = world.by_root(&all)?;
    // What an attempt shows if nothing is in its way. Only what went away between may fail.
    let failed: Vec<_> = root
        .attempts
        .iter()
        .filter(|(_, outcome)| outcome.is_err())
        .collect();
    ensure!(
        failed.len() < all.len() / 20,
        "root does not reach {failed:#?}"
    );
    for kind in [
        Attempt::Read("certs/ca.key.pem".into()),
        Attempt::Write("audit.log".into()),
        Attempt::Read("identity.json".into()),
        Attempt::Connect(format!("vms/{}/qmp.sock", world.id("victim")?).into()),
        Attempt::Signal(world.pid("victim")?),
        Attempt::Trace(world.pid("victim")?),
        Attempt::TakeDescriptor(world.pid("victim")?),
        Attempt::Execute(world.programs.path().join("id")),
        Attempt::DropGroups,
    ] {
        let outcome = root.attempts.iter().find(|(attempt, _)| *attempt == kind);
        ensure!(
            matches!(outcome, Some((_, Ok(())))),
            "root: {kind:?}: {outcome:?}"
        );
    }

    let is_log =
        |attempt: &&Attempt| matches!(attempt, Attempt::Read(path) if path.starts_with("raft"));
    ensure!(
        reached(&root.attempts)
            .iter()
            .any(|attempt| is_log(&attempt))
    );

    // One of another lineage.
    let report = world.probed(&all, &["vm", "create", "stranger", "--image", "tiny"])?;
    has_what_qemu_has(&world, &report)?;
    check(&report, &open_to_all(&all), &root)?;
    // A fork: what its own memory and disk are made of, and what they could be made of, to read.
    let (victim, child) = (world.record("victim")?, world.record("child")?);
    let neighbour = world.record("neighbour")?;
    ensure!(victim.lineage() == child.lineage() && victim.lineage() != neighbour.lineage());
    let strangers = status_field(&report.status, "Gid");
    for lineage in [victim.lineage(), neighbour.lineage()] {
        ensure!(lineage.context("no lineage")?.to_string() != strangers[0]);
    }
    world.fp(&["vm", "rm", "--force", "stranger"])?;
    let users = [&victim, &child, &neighbour].map(|record| record.user.map(|(uid, _)| uid));
    ensure!(
        BTreeSet::from(users).len() == users.len(),
        "two have one user"
    );
    let all = everything(&world, &vms)?;
    let root = world.by_root(&all)?;
    // What is written, and what will be: open in its VM's process.
    let written = [&victim, &child, &neighbour]
        .map(|record| [record.layers.first(), record.next_layer.as_ref()]);
    let in_use = |path: &Path| {
        let name = path.file_stem().and_then(|name| name.to_str());
        written
            .iter()
            .flatten()
            .flatten()
            .any(|top| Some(top.0.as_str()) == name)
    };
    let mut shared = open_to_all(&all);
    for attempt in &all {
        let Attempt::Read(path) = attempt else {
            continue;
        };
        let is_shared = ["bases", "streams", "layers"]
            .iter()
            .any(|folder| path.starts_with(folder));
        if is_shared && !in_use(path) {
            let owner = fs::metadata(world.data().join(path))?.gid();
            if Some(owner) == victim.lineage() {
                shared.insert(attempt.clone());
            }
        }
    }
    let kinds = ["bases", "streams", "layers"].map(|folder| {
        let of =
            |attempt: &&Attempt| matches!(attempt, Attempt::Read(path) if path.starts_with(folder));
        shared.iter().filter(of).count()
    });
    ensure!(
        kinds.iter().all(|count| *count > 0),
        "a lineage shares {kinds:?}"
    );
    let report = world.probed(&all, &["fork", "victim@of-victim", "--name", "sibling"])?;
    check(&report, &shared, &root)?;

    for vm in vms {
        is_confined(&world, vm)?;
    }
    for pid in vms.map(|vm| world.pid(vm)) {
        ensure!(is_alive(pid?));
    }
    Ok(())
}

/// Whether the probe was started with what a QEMU gets and no more.
fn has_what_qemu_has(world: &World, report: &Report) -> anyhow::Result<()> {
    ensure!(
        report.directory == world.data(),
        "{}",
        report.directory.display()
    );
    ensure!(
        report
            .environment
            .iter()
            .all(|one| one == "LD_PRELOAD=run/write_tracking.so"),
        "its environment is {:?}",
        report.environment
    );
    let log = world.data().join("vms").join(&report.vm).join("qemu.log");
    for (fd, path) in &report.descriptors {
        let fits = match fd {
            0 => path == Path::new("/dev/null"),
            1 | 2 => *path == log,
            // Listening, for its agent: control, console and port.
            3..=5 => path.to_string_lossy().starts_with("socket:["),
            // Of its own making: the library that is preloaded opens it.
            _ => path == Path::new("anon_inode:[userfaultfd]"),
        };
        ensure!(fits, "descriptor {fd} is {}", path.display());
    }
    has_no_rights(&report.status)
}

/// Users, groups, capabilities and privileges, by `/proc/PID/status`.
fn has_no_rights(status: &str) -> anyhow::Result<()> {
    let users = status_field(status, "Uid");
    let uid: u32 = users.first().context("no user")?.parse()?;
    ensure!(
        uid > BASE && users.iter().all(|other| *other == users[0]),
        "{users:?}"
    );
    let groups = status_field(status, "Gid");
    let gid: u32 = groups.first().context("no group")?.parse()?;
    ensure!(
        gid > BASE && groups.iter().all(|other| *other == groups[0]),
        "{groups:?}"
    );
    ensure!(
        status_field(status, "Groups") == [BASE.to_string()],
        "{status}"
    );
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(
            status_field(status, set) == ["0000000000000000"],
            "{status}"
        );
    }
    ensure!(status_field(status, "NoNewPrivs") == ["1"], "{status}");
    Ok(())
}

/// Whether the real QEMU of a VM is as it should be.
fn is_confined(world: &World, vm: &str) -> anyhow::Result<()> {
    let (pid, agent) = (
        world.pid(vm)?,
        world.cluster.node(1).pid().context("no agent")?,
    );
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut threads = 0;
    for task in fs::read_dir(proc.join("task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        has_no_rights(&status).with_context(|| vm.to_owned())?;
        // Of QEMU's own making, in each thread.
        ensure!(status_field(&status, "Seccomp") == ["2"], "{status}");
        threads += 1;
    }
    ensure!(threads > 1, "it has {threads} threads");
    let environment = fs::read(proc.join("environ"))?;
    let environment = String::from_utf8_lossy(&environment);
    ensure!(
        ["", "LD_PRELOAD=run/write_tracking.so"].contains(&environment.trim_end_matches('\0')),
        "{environment:?}"
    );
    ensure!(fs::read_link(proc.join("cwd"))? == world.data());
    let record = world.record(vm)?;
    let mut own: BTreeSet<PathBuf> = ["qemu.log"]
        .map(|name| {
            world
                .data()
                .join("vms")
                .join(world.id(vm).unwrap_or_default())
                .join(name)
        })
        .into();
    own.extend(
        record
            .layers
            .iter()
            .chain(&record.next_layer)
            .map(|layer| world.data().join(format!("layers/{layer}.qcow2"))),
    );
    own.extend(
        record
            .image_disk
            .iter()
            .map(|image| world.data().join(format!("images/{image}"))),
    );
    own.extend(
        record
            .base
            .iter()
            .map(|base| world.data().join(format!("bases/{base}"))),
    );
    let agents = links(agent)?;
    for path in links(pid)? {
        let text = path.to_string_lossy();
        if text.starts_with("socket:[") || text.starts_with("pipe:[") {
            ensure!(!agents.contains(&path), "{vm} has the agent's {text}");
        } else if !text.starts_with("anon_inode:") && path != Path::new("/dev/null") {
            // A fork was renamed: its log goes by the name that it was started with.
            let is_log = path.file_name().is_some_and(|name| name == "qemu.log");
            ensure!(own.contains(&path) || is_log, "{vm} has {text} open");
        }
    }
    Ok(())
}

/// Where the descriptors of a process lead.
fn links(pid: u32) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may have been closed.
        found.extend(fs::read_link(entry?.path()));
    }
    Ok(found)
}
