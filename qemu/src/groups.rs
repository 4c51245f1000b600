//! A control group for each machine (cgroup v2, Documentation/admin-guide/cgroup-v2.rst), below one that is ours: the kernel shares
//! processors out by them, and keeps the machine's limits.
//!
//! A limit is kept by the kernel or it is not: what could not be set is never assumed. Whether it is set is read back from
//! the group that the process really is in, each time somebody asks.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A period of the processor limit, microseconds: the kernel's own choice.
const PERIOD_US: u64 = 100_000;
/// The file system's magic number (statfs(2)).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// The threads of a machine that has no limit of them: QEMU has one for each virtual processor, 64 at most for disks, and a few
/// more. Who got out of a guest takes no more either.
const MOST_THREADS: &str = "1024";

/// What a machine's process may take at most; `None` for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processor time: percent of one processor.
    pub cpu_percent: Option<u32>,
    /// Memory that is charged to it, bytes: its own, and what it brings into the page cache.
    pub memory_bytes: Option<u64>,
    /// Threads.
    pub pids: Option<u32>,
}

/// One limit as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// For people.
    what: &'static str,
    controller: &'static str,
    file: &'static str,
    value: String,
}

impl Limits {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn settings(&self) -> Vec<Setting> {
        let cpu = self.cpu_percent.map(|percent| Setting {
            what: "CPU",
            controller: "cpu",
            file: "cpu.max",
            value: format!("{} {PERIOD_US}", u64::from(percent) * PERIOD_US / 100),
        });
        // No `memory.high` below it: without swap there is little to reclaim, and a guest that is made to wait for that
        // stands still for seconds instead of ending with a reason.
        let memory = self.memory_bytes.map(|bytes| Setting {
            what: "memory",
            controller: "memory",
            file: "memory.max",
            value: bytes.to_string(),
        });
        let pids = self.pids.map(|pids| Setting {
            what: "thread",
            controller: "pids",
            file: "pids.max",
            value: pids.to_string(),
        });
        [cpu, memory, pids].into_iter().flatten().collect()
    }
}

/// The group that machines' groups are made in, or why there is none.
#[derive(Debug)]
pub struct Groups {
    place: Result<Place, String>,
    /// Groups whose process has ended and that the kernel still held when they were to be removed.
    ended: Mutex<BTreeSet<PathBuf>>,
}

#[derive(Debug)]
struct Place {
    /// Where cgroup v2 is mounted.
    mount: PathBuf,
    root: PathBuf,
    /// Controllers that can be used in it.
    controllers: BTreeSet<String>,
}

impl Groups {
    /// None, for this reason.
    pub fn none(why: impl Into<String>) -> Self {
        Self {
            place: Err(why.into()),
            ended: Mutex::default(),
        }
    }

    /// Makes our group below `parent` (a folder of cgroup v2; `None` for the top of where that is mounted), named for whom it is
    /// for, and removes what an earlier agent left empty in it.
    pub fn open(parent: Option<&Path>, name: &str) -> Self {
        let place = mount_point()
            .map_err(|error| format!("the host's mounts cannot be read: {error}"))
            .and_then(|mount| mount.ok_or_else(|| "cgroup v2 is not mounted".to_owned()))
            .and_then(|mount| {
                let parent = parent.unwrap_or(&mount).to_owned();
                if !is_cgroup2(&parent) {
                    return Err(format!("{} is no group of cgroup v2", parent.display()));
                }
                Place::make(mount, &parent, name).map_err(|error| {
                    format!("no group can be made in {}: {error}", parent.display())
                })
            });
        if let Ok(place) = &place {
            place.sweep();
        }
        Self {
            place,
            ended: Mutex::default(),
        }
    }

    /// What can be limited: "cpu", "memory", "pids"; or why nothing can be.
    pub fn controllers(&self) -> Result<Vec<&str>, &str> {
        let place = self.place.as_ref().map_err(String::as_str)?;
        Ok(["cpu", "memory", "pids"]
            .into_iter()
            .filter(|name| place.controllers.contains(*name))
            .collect())
    }

    /// Where the group of this name is, whether it is there or not; `None` where there can be none.
    pub fn named(&self, name: &str) -> Option<PathBuf> {
        let place = self.place.as_ref().ok()?;
        Some(place.root.join(name))
    }

    /// Makes a group for a process that is about to be started, with as many of its limits as can be set. `None` where there can be
    /// none.
    pub fn prepare(&self, name: &str, limits: &Limits) -> io::Result<Option<NewGroup>> {
        let Ok(place) = &self.place else {
            return Ok(None);
        };
        let mut ended = self.ended();
        let path = place.root.join(name);
        ended.remove(&path);
        ended.retain(|group| !removed(group));
        match fs::create_dir(&path) {
            // Of a process that has just ended.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        drop(ended);
        if limits.pids.is_none() && place.controllers.contains("pids") {
            fs::write(path.join("pids.max"), MOST_THREADS)?;
        }
        for setting in limits.settings() {
            if place.controllers.contains(setting.controller) {
                fs::write(path.join(setting.file), &setting.value)?;
            }
        }
        let procs = File::options()
            .write(true)
            .open(path.join("cgroup.procs"))?;
        Ok(Some(NewGroup {
            procs: procs.into(),
            path,
        }))
    }

    /// The group of ours that a process is in.
    pub fn of(&self, pid: u32) -> Option<PathBuf> {
        let place = self.place.as_ref().ok()?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = own_path(&text)?;
        let path = place.mount.join(path.trim_start_matches('/'));
        (path.parent() == Some(&place.root)).then_some(path)
    }

    /// The limits of a process that are not enforced, one sentence each.
    pub fn not_enforced(&self, pid: u32, limits: &Limits) -> Vec<String> {
        if limits.is_empty() {
            return Vec::new();
        }
        let why = |setting: &Setting| match &self.place {
            Err(why) => why.clone(),
            Ok(place) if !place.controllers.contains(setting.controller) => {
                format!("cgroup v2 has no {} controller here", setting.controller)
            }
            Ok(_) => "its process runs without it; restart the VM".to_owned(),
        };
        let group = self.of(pid);
        missing(group.as_deref(), limits)
            .iter()
            .map(|setting| {
                format!(
                    "the {} limit is not enforced: {}",
                    setting.what,
                    why(setting)
                )
            })
            .collect()
    }

    /// Removes a group whose process has ended.
    pub fn remove(&self, group: &Path) {
        let mut ended = self.ended();
        if !removed(group) {
            // The kernel may not have let go of the process yet.
            ended.insert(group.to_owned());
        }
    }

    fn ended(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a group is gone, or goes now.
fn removed(group: &Path) -> bool {
    match fs::remove_dir(group) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Ok(place) = &self.place {
            place.sweep();
            // Stays as long as a VM is in it.
            let _in_use = fs::remove_dir(&place.root);
        }
    }
}

impl Place {
    fn make(mount: PathBuf, parent: &Path, name: &str) -> io::Result<Self> {
        let root = parent.join(name);
        hand_down(parent)?;
        match fs::create_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        hand_down(&root)?;
        let controllers = words(&root.join("cgroup.subtree_control"))?;
        Ok(Self {
            mount,
            root,
            controllers,
        })
    }

    /// Removes what is left over. Not while a group is made that has no process yet.
    fn sweep(&self) {
        let groups = match fs::read_dir(&self.root) {
            Ok(groups) => groups,
            Err(error) => {
                tracing::warn!(%error, "groups that are left over cannot be looked for");
                return;
            }
        };
        // Those that are in use refuse, and files are no groups.
        for group in groups.flatten() {
            let _in_use = fs::remove_dir(group.path());
        }
    }
}

/// Lets groups below this one have the controllers that it has, of those that are of use to us.
fn hand_down(group: &Path) -> io::Result<()> {
    let there = words(&group.join("cgroup.controllers"))?;
    let used = words(&group.join("cgroup.subtree_control"))?;
    for name in ["cpu", "memory", "pids"] {
        if there.contains(name)
            && !used.contains(name)
            && let Err(error) = fs::write(group.join("cgroup.subtree_control"), format!("+{name}"))
        {
            // A group with processes of its own cannot: then this limit is not there, and is said not to be.
            tracing::warn!(group = %group.display(), controller = name, %error, "a controller cannot be handed down");
        }
    }
    Ok(())
}

fn words(file: &Path) -> io::Result<BTreeSet<String>> {
    let text = fs::read_to_string(file)?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// The limits that a group does not have.
fn missing(group: Option<&Path>, limits: &Limits) -> Vec<Setting> {
    let is_set = |setting: &Setting| {
        group.is_some_and(|group| {
            fs::read_to_string(group.join(setting.file))
                .is_ok_and(|value| value.trim() == setting.value)
        })
    };
    let mut settings = limits.settings();
    settings.retain(|setting| !is_set(setting));
    settings
}

/// Whether the kernel ended a process of a group because the group had used up its memory, and not because the host had.
pub fn ran_out_of_memory(group: &Path) -> bool {
    // Without a memory controller, or a group any more, there is no such file.
    fs::read_to_string(group.join("memory.events")).is_ok_and(|text| {
        let count = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .any(|(key, value)| key == name && value != "0")
        };
        count("oom") && count("oom_kill")
    })
}

/// A group that has no process yet.
#[derive(Debug)]
pub struct NewGroup {
    /// Its `cgroup.procs`, for the process that starts.
    pub procs: OwnedFd,
    /// Where it is.
    pub path: PathBuf,
}

fn mount_point() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(find_mount(&mounts).map(PathBuf::from))
}

/// proc_pid_mountinfo(5): the fifth field is where, and the type follows a lone hyphen.
fn find_mount(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right
            .starts_with("cgroup2 ")
            .then(|| left.split(' ').nth(4))
            .flatten()
    })
}

/// The path in cgroup v2's hierarchy, of `/proc/PID/cgroup`.
fn own_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{process::Process, sys::spawn::Spawn};

    fn limits() -> Limits {
        Limits {
            cpu_percent: Some(150),
            memory_bytes: Some(64 << 20),
            pids: Some(64),
        }
    }

    /// A folder that looks like a group with these controllers.
    fn fake(controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        dir
    }

    #[test]
    fn limits_are_written_as_the_kernel_takes_them() {
        let settings: Vec<_> = limits()
            .settings()
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect();
        assert_eq!(
            settings,
            [
                ("cpu.max", "150000 100000".to_owned()),
                ("memory.max", "67108864".to_owned()),
                ("pids.max", "64".to_owned())
            ]
        );
        assert!(Limits::default().settings().is_empty());
    }

    #[test]
    fn what_a_group_does_not_have_is_missing() {
        let group = fake("");
        let files = |group: Option<&Path>| -> Vec<_> {
            missing(group, &limits())
                .into_iter()
                .map(|setting| setting.file)
                .collect()
        };
        assert_eq!(files(None), ["cpu.max", "memory.max", "pids.max"]);
        fs::write(group.path().join("cpu.max"), "150000 100000\n").unwrap();
        fs::write(group.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(files(Some(group.path())), ["memory.max", "pids.max"]);
    }

    #[test]
    fn controllers_are_handed_down_once() {
        let group = fake("cpuset cpu pids hugetlb");
        hand_down(group.path()).unwrap();
        // The kernel adds the word to the list; the last one written is what a file holds.
        let control = group.path().join("cgroup.subtree_control");
        assert_eq!(fs::read_to_string(&control).unwrap(), "+pids");
        fs::write(&control, "cpu pids").unwrap();
        hand_down(group.path()).unwrap();
        assert_eq!(fs::read_to_string(&control).unwrap(), "cpu pids");
    }

    #[test]
    fn a_group_without_memory_is_told_from_a_host_without() {
        let group = fake("");
        let with = |events: &str| {
            fs::write(group.path().join("memory.events"), events).unwrap();
            ran_out_of_memory(group.path())
        };
        assert!(!ran_out_of_memory(group.path()));
        assert!(with("low 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(!with("low 0\nmax 0\noom 0\noom_kill 1\n"));
        assert!(!with("low 0\nmax 9\noom 1\noom_kill 0\n"));
    }

    #[test]
    fn mounts_and_paths_are_read() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      31 23 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(find_mount("1 2 0:1 / / rw - ext4 /dev/a rw"), None);
        assert_eq!(own_path("8:pids:/\n0::/a/b\n"), Some("/a/b"));
        assert_eq!(own_path("8:pids:/\n"), None);
    }

    #[test]
    fn without_groups_every_limit_is_said_not_to_be_enforced() {
        let groups = Groups::none("cgroup v2 is not mounted");
        let said = groups.not_enforced(std::process::id(), &limits());
        assert_eq!(said.len(), 3);
        assert_eq!(
            said[1],
            "the memory limit is not enforced: cgroup v2 is not mounted"
        );
        assert!(groups.not_enforced(1, &Limits::default()).is_empty());
        assert!(groups.prepare("x", &limits()).unwrap().is_none());
        let folder = tempfile::tempdir().unwrap();
        let wrong = Groups::open(Some(folder.path()), "x");
        assert!(wrong.controllers().is_err());
    }

    /// Whatever this host can do: the process is in its group before it runs, what is said of its limits is what the kernel has, and
    /// nothing is left.
    #[tokio::test]
    async fn a_process_is_started_in_its_group() {
        let name = format!("fpagent-test-{}", std::process::id());
        let groups = Groups::open(None, &name);
        let Ok(controllers) = groups.controllers() else {
            // Seen in the report of the run: there is nothing to try here.
            eprintln!("no cgroup v2: {:?}", groups.controllers());
            return;
        };
        let limits = Limits {
            pids: Some(20),
            ..limits()
        };
        let group = groups.prepare("one", &limits).unwrap().unwrap();
        let path = group.path.clone();
        let output = File::options().write(true).open("/dev/null").unwrap();
        let process = Process::start(Spawn {
            oom_score: Some(123),
            group: Some(group.procs.try_clone().unwrap()),
            ..Spawn::new("sleep", &["60"], output)
        })
        .unwrap();
        let pid = process.id().pid;
        assert_eq!(groups.of(pid), Some(path.clone()));
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score.trim(), "123");
        let not = groups.not_enforced(pid, &limits);
        assert_eq!(not.len(), 3 - controllers.len(), "{not:?}");
        // One without limits has a group, too.
        let other = groups.prepare("two", &Limits::default()).unwrap().unwrap();
        if controllers.contains(&"pids") {
            let most = fs::read_to_string(other.path.join("pids.max")).unwrap();
            assert_eq!(most.trim(), MOST_THREADS);
        }
        groups.remove(&other.path);
        assert!(!other.path.exists());
        // In use: it stays until it can go.
        groups.remove(&path);
        assert!(path.exists());
        process.kill().unwrap();
        process.wait().await.unwrap();
        let next = groups.prepare("three", &limits).unwrap().unwrap();
        assert!(!path.exists() && next.path.exists());
        let root = path.parent().unwrap().to_owned();
        drop(groups);
        assert!(!root.exists());
    }
}
