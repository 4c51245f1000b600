//! How much machines' processes give way to others (nice(2)), and who comes first for a moment. While a guest stands still, or is being
//! loaded, somebody waits for its process, which has little to do and must be let do it: among fifty guests that keep all processors busy
//! a stop took 44 ms of which QEMU worked for one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    process::{ProcessId, is_alive},
    sys::spawn::{GUEST_NICE, set_nice},
};

/// How much others give way to who comes first. The agent still comes before it.
const FIRST_NICE: i32 = -10;
/// The share of processors that a control group has, where they are shared out by groups: the usual one, and of who comes first.
const WEIGHT: &str = "cpu.weight";
const USUAL_WEIGHT: &str = "100";
const FIRST_WEIGHT: &str = "10000";

/// The priorities of machines' processes, as they were set last.
#[derive(Debug)]
pub struct Priorities(Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// What holds for all.
    usual: i32,
    /// What was set, by process id.
    set: BTreeMap<u32, i32>,
    /// Who comes first: how many want that, and until when after that.
    first: BTreeMap<u32, First>,
}

#[derive(Debug, Default)]
struct First {
    wanted: usize,
    until: Option<Instant>,
    group: Option<PathBuf>,
}

impl First {
    fn is_over(&self, now: Instant) -> bool {
        self.wanted == 0 && self.until.is_none_or(|until| until <= now)
    }
}

impl Default for Priorities {
    fn default() -> Self {
        Self(Mutex::new(Known {
            usual: GUEST_NICE,
            set: BTreeMap::new(),
            first: BTreeMap::new(),
        }))
    }
}

impl Priorities {
    /// Sets what holds for all of these processes, but for those that come first. What is not known here is set in any case: an
    /// agent of before may have set it otherwise. To be called again and again: it also ends who was first for long enough.
    pub fn settle(&self, pids: &BTreeSet<u32>, usual: i32) {
        let mut known = self.known();
        known.usual = usual;
        let now = Instant::now();
        let over: BTreeSet<u32> = known
            .first
            .extract_if(.., |_, first| first.is_over(now))
            .map(|(pid, first)| {
                set_weight(first.group.as_deref(), USUAL_WEIGHT);
                pid
            })
            .collect();
        known
            .set
            .retain(|pid, _| pids.contains(pid) && !over.contains(pid));
        drop(known);
        for pid in pids {
            // Not held for all of them: somebody may want to come first meanwhile.
            let mut known = self.known();
            if known.first.contains_key(pid) || known.set.get(pid) == Some(&usual) {
                continue;
            }
            match set_nice(*pid, usual) {
                Ok(()) => drop(known.set.insert(*pid, usual)),
                Err(error) => {
                    tracing::debug!(pid, %error, "a guest's priority cannot be changed; trying again if it is still there");
                }
            }
        }
    }

    /// Has a process come before those of other guests until that is dropped.
    pub(crate) fn first(self: &Arc<Self>, process: ProcessId, group: Option<&Path>) -> ComesFirst {
        let mut known = self.known();
        let first = known.first.entry(process.pid).or_default();
        first.wanted += 1;
        first.group = group.map(Path::to_owned);
        let is_new = known.set.insert(process.pid, FIRST_NICE) != Some(FIRST_NICE);
        if is_new {
            set(process, FIRST_NICE);
            set_weight(group, FIRST_WEIGHT);
        }
        ComesFirst {
            priorities: Arc::clone(self),
            process,
            longer: Duration::ZERO,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process comes before those of other guests while this is kept.
#[derive(Debug)]
pub(crate) struct ComesFirst {
    priorities: Arc<Priorities>,
    process: ProcessId,
    longer: Duration,
}

impl ComesFirst {
    /// The same for at least this time after it is dropped, until priorities are settled the next time.
    pub(crate) fn for_longer(mut self, longer: Duration) {
        self.longer = longer;
    }
}

impl Drop for ComesFirst {
    fn drop(&mut self) {
        let mut known = self.priorities.known();
        let (pid, now) = (self.process.pid, Instant::now());
        let Some(first) = known.first.get_mut(&pid) else {
            return;
        };
        first.wanted = first.wanted.saturating_sub(1);
        if !self.longer.is_zero() {
            first.until = Some(now + self.longer);
        }
        if first.is_over(now) {
            set_weight(first.group.as_deref(), USUAL_WEIGHT);
            known.first.remove(&pid);
            let usual = known.usual;
            known.set.insert(pid, usual);
            set(self.process, usual);
        }
    }
}

/// Sets the priority of a process that may have ended.
fn set(process: ProcessId, nice: i32) {
    if is_alive(process)
        && let Err(error) = set_nice(process.pid, nice)
    {
        // The agent says at its start when it may not.
        tracing::debug!(pid = process.pid, nice, %error, "a process's priority cannot be changed");
    }
}

/// Sets the share of a group; nothing where processors are not shared out by groups.
fn set_weight(group: Option<&Path>, weight: &str) {
    let Some(file) = group.map(|group| group.join(WEIGHT)) else {
        return;
    };
    let written = File::options()
        .write(true)
        .open(file)
        .and_then(|mut file| file.write_all(weight.as_bytes()));
    match written {
        // No such controller, or no such process any more.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, weight, "a control group's share cannot be changed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::process::{Pid, getpriority_process};

    use super::*;
    use crate::{process::Process, sys::spawn::Spawn};

    #[tokio::test]
    async fn who_comes_first_does_so_until_nobody_wants_it_any_more() {
        let output = File::create("/dev/null").unwrap();
        let child = Process::start(Spawn::new("/bin/sleep", &["60"], output)).unwrap();
        let process = child.id();
        let group = tempfile::tempdir().unwrap();
        let weight = group.path().join(WEIGHT);
        fs::write(&weight, USUAL_WEIGHT).unwrap();
        let pid = process.pid;
        let nice = || getpriority_process(Pid::from_raw(pid as i32)).unwrap();
        let share = || fs::read_to_string(&weight).unwrap();
        let priorities = Arc::new(Priorities::default());
        let all = BTreeSet::from([pid]);
        priorities.settle(&all, 7);
        assert_eq!(nice(), 7);

        let one = priorities.first(process, Some(group.path()));
        let other = priorities.first(process, Some(group.path()));
        assert_eq!((nice(), &*share()), (FIRST_NICE, FIRST_WEIGHT));
        drop(one);
        // Also while what holds for all changes.
        priorities.settle(&all, 9);
        assert_eq!((nice(), &*share()), (FIRST_NICE, FIRST_WEIGHT));
        drop(other);
        // The file is written over from its start.
        assert_eq!(nice(), 9);
        assert!(share().starts_with(USUAL_WEIGHT));

        priorities
            .first(process, None)
            .for_longer(Duration::from_millis(20));
        priorities.settle(&all, 9);
        assert_eq!(nice(), FIRST_NICE);
        tokio::time::sleep(Duration::from_millis(30)).await;
        priorities.settle(&all, 9);
        assert_eq!(nice(), 9);
        child.kill().unwrap();
        child.wait().await.unwrap();
        // It is gone.
        drop(priorities.first(process, None));
        assert!(priorities.known().first.is_empty());
    }
}
