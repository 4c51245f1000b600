//! Merging of equal pages by the kernel (KSM, Documentation/admin-guide/mm/ksm.rst): its settings, which of several agents on
//! a host drives it, and what it costs and saves. When it is worth its price is decided elsewhere.
//!
//! The settings are the host's. One agent at a time changes them: who holds the [`Lease`]. What was found is kept in the
//! lease's file, so that it is known also after an agent that was killed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, getpriority_process, setpriority_process},
};
use serde::{Deserialize, Serialize};

use crate::sys::PAGE;

/// Where the kernel has its settings.
pub const SETTINGS: &str = "/sys/kernel/mm/ksm";
/// Where agents of a host agree on who drives it.
pub const LEASE: &str = "/run/fpagent/ksm.lease";

/// The settings that are changed, besides `run` and `advisor_mode`.
const CHANGED: [&str; 4] = [
    "pages_to_scan",
    "sleep_millisecs",
    "smart_scan",
    "use_zero_pages",
];

/// The scanner's priority, among the settings.
const NICE: &str = "nice";
/// The scanner's priority while it is driven: where guests want more than there is of the processors, it would never be done
/// otherwise. How much it takes is bounded by its pace.
const SCANNER_NICE: i32 = -10;

/// How the kernel looks for equal pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Not at all. What is merged stays so until it is written.
    Stopped,
    /// So many pages, then a pause. Not as the kernel's advisor says (`advisor_mode`): it looks again only when everything was
    /// looked at once, and a first look at little leaves it at ten pages (500 a second) for minutes.
    Steady {
        /// Pages in one go.
        pages: u32,
        /// The pause.
        sleep_ms: u32,
    },
}

/// Settings as they were found: by the names of their files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(BTreeMap<String, String>);

/// What merging has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Whether the kernel is looking for equal pages.
    pub running: bool,
    /// Pages that are shared.
    pub shared: u64,
    /// Pages that are saved by it: how many more share them.
    pub sharing: u64,
    /// How often everything was looked at.
    pub full_scans: u64,
}

impl Figures {
    /// Bytes of memory that are saved on this host, before what the kernel needs to remember them.
    pub fn saved_bytes(&self) -> u64 {
        self.sharing * PAGE as u64
    }
}

/// The kernel's settings.
#[derive(Debug, Clone)]
pub struct Ksm {
    root: PathBuf,
    /// The kernel's thread that looks, where it can be seen.
    scanner: Option<Pid>,
}

impl Ksm {
    /// This host's; `None` where the kernel has no such thing.
    pub fn of_host() -> Option<Self> {
        let mut ksm = Self::at(Path::new(SETTINGS))?;
        // Without it its priority stays as it is: not to be seen in a container.
        ksm.scanner = scanner().ok().flatten();
        Some(ksm)
    }

    /// Those in a folder, if they are there.
    pub fn at(root: &Path) -> Option<Self> {
        root.join("run").exists().then(|| Self {
            root: root.to_owned(),
            scanner: None,
        })
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let text = fs::read_to_string(self.root.join(name))?;
        // A choice of words has brackets around the one that holds.
        let chosen = text
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'))
            .map(|(chosen, _)| chosen.to_owned());
        Ok(chosen.unwrap_or_else(|| text.trim().to_owned()))
    }

    /// A setting that this kernel may not have.
    fn read_if_there(&self, name: &str) -> io::Result<Option<String>> {
        match self.read(name) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn number(&self, name: &str) -> io::Result<u64> {
        self.read(name)?.parse().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name} is not a number"),
            )
        })
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.root.join(name), value)
            .map_err(|error| io::Error::new(error.kind(), format!("{name}={value}: {error}")))
    }

    /// Whether the kernel is looking for equal pages.
    pub fn is_running(&self) -> io::Result<bool> {
        Ok(self.read("run")? == "1")
    }

    /// What it has come to.
    pub fn figures(&self) -> io::Result<Figures> {
        Ok(Figures {
            running: self.is_running()?,
            shared: self.number("pages_shared")?,
            sharing: self.number("pages_sharing")?,
            full_scans: self.number("full_scans")?,
        })
    }

    /// The settings as they are.
    pub fn settings(&self) -> io::Result<Settings> {
        let mut settings = BTreeMap::new();
        for name in CHANGED.into_iter().chain(["run", "advisor_mode"]) {
            if let Some(value) = self.read_if_there(name)? {
                settings.insert(name.to_owned(), value);
            }
        }
        if let Some(scanner) = self.scanner {
            let nice = getpriority_process(Some(scanner))?;
            settings.insert(NICE.to_owned(), nice.to_string());
        }
        Ok(Settings(settings))
    }

    /// Has the kernel look for equal pages at a pace.
    pub fn set_pace(&self, pace: Pace) -> io::Result<()> {
        match pace {
            Pace::Stopped => return self.write("run", "0"),
            Pace::Steady { pages, sleep_ms } => {
                if self.read_if_there("advisor_mode")?.is_some() {
                    // It would not have its number of pages changed.
                    self.write("advisor_mode", "none")?;
                }
                self.write("pages_to_scan", &pages.to_string())?;
                self.write("sleep_millisecs", &sleep_ms.to_string())?;
            }
        }
        if self.read_if_there("smart_scan")?.is_some() {
            self.write("smart_scan", "1")?;
        }
        if let Some(scanner) = self.scanner {
            setpriority_process(Some(scanner), SCANNER_NICE)?;
        }
        // A page of zeros then costs nothing to remember, and any number of processes share the one.
        self.write("use_zero_pages", "1")?;
        self.write("run", "1")
    }

    /// Puts back settings that were found.
    pub fn restore(&self, found: &Settings) -> io::Result<()> {
        let mode = found.0.get("advisor_mode").map(String::as_str);
        if mode.is_some() {
            self.write("advisor_mode", "none")?;
        }
        for (name, value) in found
            .0
            .iter()
            .filter(|(name, _)| CHANGED.contains(&&***name))
        {
            self.write(name, value)?;
        }
        if let Some(mode) = mode.filter(|mode| *mode != "none") {
            self.write("advisor_mode", mode)?;
        }
        let nice = found.0.get(NICE).and_then(|nice| nice.parse().ok());
        if let (Some(scanner), Some(nice)) = (self.scanner, nice) {
            setpriority_process(Some(scanner), nice)?;
        }
        match found.0.get("run") {
            Some(run) => self.write("run", run),
            None => Ok(()),
        }
    }
}

/// What a lease's file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The host's boot that it belongs to.
    host_boot: String,
    found: Settings,
}

/// The right to change the host's settings, until it is dropped. An agent that is killed loses it; what it had found stays.
#[derive(Debug)]
pub struct Lease {
    file: File,
    host_boot: String,
}

impl Lease {
    /// Takes it; `None` while another process has it.
    pub fn take(path: &Path, host_boot: &str) -> io::Result<Option<Self>> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self {
                file,
                host_boot: host_boot.to_owned(),
            })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What an agent found that could not put it back, in this boot of the host.
    pub fn found(&mut self) -> io::Result<Option<Settings>> {
        let mut text = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut text)?;
        if text.is_empty() {
            return Ok(None);
        }
        let kept: Kept = serde_json::from_str(&text)?;
        Ok((kept.host_boot == self.host_boot).then_some(kept.found))
    }

    /// Keeps what was found, before anything is changed.
    pub fn keep(&mut self, found: &Settings) -> io::Result<()> {
        let kept = Kept {
            host_boot: self.host_boot.clone(),
            found: found.clone(),
        };
        self.clear()?;
        self.file.write_all(&serde_json::to_vec(&kept)?)
    }

    /// Says that everything is as it was found.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)
    }
}

/// The kernel's thread that looks for equal pages. `None` where it cannot be seen (in a container).
fn scanner() -> io::Result<Option<Pid>> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        // Most are no processes, and processes end meanwhile. Anybody may have the name, and only a thread of the kernel has
        // kthreadd (2) as its parent.
        if fs::read_to_string(entry.path().join("stat"))
            .is_ok_and(|stat| stat.contains(" (ksmd) ") && parent(&stat) == Some(2))
        {
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            return Ok(pid.and_then(Pid::from_raw));
        }
    }
    Ok(None)
}

/// The parent of a process from its `/proc/PID/stat`.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Seconds of processor time that the kernel has spent on looking for equal pages, since its boot. `None` where its thread
/// cannot be seen (in a container).
pub fn scanner_seconds() -> io::Result<Option<f64>> {
    let Some(scanner) = scanner()? else {
        return Ok(None);
    };
    let path = format!("/proc/{}/stat", scanner.as_raw_nonzero());
    Ok(cpu_seconds(&fs::read_to_string(path)?))
}

/// Processor time of a process from its `/proc/PID/stat`, seconds.
pub fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings as Linux 6.18 has them.
    fn fake() -> (tempfile::TempDir, Ksm) {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [
            ("run", "0"),
            ("advisor_mode", "none [scan-time]"),
            ("pages_to_scan", "100"),
            ("sleep_millisecs", "20"),
            ("smart_scan", "1"),
            ("use_zero_pages", "0"),
            ("pages_shared", "10"),
            ("pages_sharing", "90"),
            ("full_scans", "3"),
        ] {
            fs::write(dir.path().join(name), format!("{value}\n")).unwrap();
        }
        let ksm = Ksm::at(dir.path()).unwrap();
        (dir, ksm)
    }

    #[test]
    fn what_was_found_is_put_back() {
        let (dir, ksm) = fake();
        let found = ksm.settings().unwrap();
        ksm.set_pace(Pace::Steady {
            pages: 128,
            sleep_ms: 20,
        })
        .unwrap();
        let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("run"), read("advisor_mode")),
            ("1".into(), "none".into())
        );
        assert_eq!(read("use_zero_pages"), "1");
        ksm.restore(&found).unwrap();
        assert_eq!(ksm.settings().unwrap(), found);
        assert_eq!(
            (read("run"), read("advisor_mode")),
            ("0".into(), "scan-time".into())
        );
        assert_eq!(read("use_zero_pages"), "0");
    }

    #[test]
    fn a_kernel_without_an_advisor_will_do() {
        let (dir, ksm) = fake();
        for name in ["advisor_mode", "smart_scan"] {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        let found = ksm.settings().unwrap();
        ksm.set_pace(Pace::Steady {
            pages: 128,
            sleep_ms: 20,
        })
        .unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("pages_to_scan")).unwrap(),
            "128"
        );
        assert!(!dir.path().join("advisor_mode").exists());
        ksm.restore(&found).unwrap();
        assert_eq!(ksm.settings().unwrap(), found);
    }

    #[test]
    fn one_at_a_time_drives_and_what_a_killed_one_found_is_known() {
        let (dir, ksm) = fake();
        let path = dir.path().join("lease");
        let mut first = Lease::take(&path, "boot").unwrap().unwrap();
        assert!(Lease::take(&path, "boot").unwrap().is_none());
        let found = ksm.settings().unwrap();
        first.keep(&found).unwrap();
        drop(first);
        let mut next = Lease::take(&path, "boot").unwrap().unwrap();
        assert_eq!(next.found().unwrap(), Some(found));
        next.clear().unwrap();
        assert_eq!(next.found().unwrap(), None);
        next.keep(&Settings::default()).unwrap();
        drop(next);
        let mut later = Lease::take(&path, "another boot").unwrap().unwrap();
        assert_eq!(later.found().unwrap(), None);
    }

    #[test]
    fn figures_and_times_are_read() {
        let (_dir, ksm) = fake();
        let figures = ksm.figures().unwrap();
        assert_eq!((figures.running, figures.saved_bytes()), (false, 90 * 4096));
        let stat = "37 (k s) md) S 2 0 0 0 -1 69238848 0 0 0 0 150 250 0 0 25 5 1 0 27";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(cpu_seconds("37 (x) S 2"), None);
    }
}
