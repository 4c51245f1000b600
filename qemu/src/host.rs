//! What this host can do: QEMU and its version, KVM, write tracking, memory.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::{
    process::Process,
    spec::Accelerator,
    sys::{page_scan, spawn::Spawn, tsc, uffd},
};

/// The oldest QEMU that is supported.
pub const OLDEST_QEMU: (u32, u32) = (8, 2);

/// Why QEMU cannot be used on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QemuProblem {
    /// There is no such program.
    #[error("{} is not installed", .0.display())]
    Missing(PathBuf),
    /// It does not answer `--version` as QEMU does.
    #[error("{} does not say its version: {}", .0.display(), .1)]
    Strange(PathBuf, String),
    /// It is older than [`OLDEST_QEMU`].
    #[error("QEMU {} is too old: {}.{} or newer is needed", .0, OLDEST_QEMU.0, OLDEST_QEMU.1)]
    TooOld(String),
}

/// QEMU's version, if it can be used.
pub async fn qemu_version(qemu: &Path) -> Result<String, QemuProblem> {
    let output = Command::new(qemu)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(QemuProblem::Missing(qemu.to_owned()));
        }
        Err(error) => return Err(QemuProblem::Strange(qemu.to_owned(), error.to_string())),
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
    };
    check_version(qemu, &output)
}

fn check_version(qemu: &Path, output: &str) -> Result<String, QemuProblem> {
    let strange = || {
        QemuProblem::Strange(
            qemu.to_owned(),
            output.lines().next().unwrap_or_default().to_owned(),
        )
    };
    let version = output
        .split_once("emulator version ")
        .map(|(_, rest)| {
            rest.chars()
                .take_while(|c| c.is_ascii_digit() || *c == '.')
                .collect::<String>()
        })
        .ok_or_else(strange)?;
    let mut numbers = version
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return Err(strange());
    };
    if (major, minor) < OLDEST_QEMU {
        Err(QemuProblem::TooOld(version))
    } else {
        Ok(version)
    }
}

/// Whether KVM can be used, or why not. A `/dev/kvm` that opens proves nothing: there are hosts where it creates a VM and no
/// guest boots. Where KVM is at home, one of its two modules is there as well.
pub fn kvm() -> Result<(), &'static str> {
    kvm_at(Path::new("/dev/kvm"), Path::new("/sys/module"))
}

fn kvm_at(device: &Path, modules: &Path) -> Result<(), &'static str> {
    if !["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| modules.join(module).exists())
    {
        return Err("neither kvm_intel nor kvm_amd is loaded");
    }
    match File::options().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("there is no /dev/kvm"),
        Err(_) => Err("/dev/kvm cannot be opened"),
    }
}

/// The processor, as far as guests under KVM see it: its name and stepping, and the CRC-32 of its features' names. Memory of a guest that
/// ran on one goes on only on another that is the same.
pub fn processor() -> io::Result<String> {
    Ok(processor_of(&fs::read_to_string("/proc/cpuinfo")?))
}

/// The first one of what the kernel tells of them (proc_cpuinfo(5)).
fn processor_of(text: &str) -> String {
    let first = text.lines().take_while(|line| !line.is_empty());
    let fields: BTreeMap<&str, &str> = first
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let field = |name| fields.get(name).copied().unwrap_or("unknown");
    let mut features: Vec<&str> = field("flags").split(' ').collect();
    features.sort_unstable();
    format!(
        "{}, stepping {}, features {:08x}",
        field("model name"),
        field("stepping"),
        crc32fast::hash(features.join(" ").as_bytes())
    )
}

/// The accelerators of this host, best first.
pub fn accelerators() -> Vec<Accelerator> {
    match kvm() {
        Ok(()) => vec![Accelerator::Kvm, Accelerator::Tcg],
        Err(_) => vec![Accelerator::Tcg],
    }
}

/// Tries whether this kernel tracks writes as captures need it, on a process made for it. `library` is the preloaded one.
pub async fn write_tracking(library: &Path) -> io::Result<bool> {
    let process = Process::start(Spawn {
        env: vec![("LD_PRELOAD", library.into())],
        ..sleeper()?
    })?;
    let result = try_tracking(&process).await;
    process.kill()?;
    process.wait().await?;
    result
}

/// Tries whether a process can be started whose pages the kernel may merge (Linux 6.7), on a process made for it.
pub async fn memory_merging() -> io::Result<bool> {
    let started = Process::start(Spawn {
        merge_memory: true,
        ..sleeper()?
    });
    let process = match started {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
        other => other?,
    };
    // Older kernels take the setting and lose it in `exec`, which is over when the start returns.
    let maps = fs::read_to_string(format!("/proc/{}/smaps", process.id().pid));
    process.kill()?;
    process.wait().await?;
    let mergeable = |line: &str| {
        line.strip_prefix("VmFlags:")
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "mg"))
    };
    Ok(maps?.lines().any(mergeable))
}

/// A process to try something on.
fn sleeper() -> io::Result<Spawn> {
    let output = File::options().write(true).open("/dev/null")?;
    Ok(Spawn::new("/bin/sleep", &["60"], output))
}

async fn try_tracking(process: &Process) -> io::Result<bool> {
    let pid = process.id().pid;
    // The library has run when its variable's effect shows: the descriptor is there, or main sleeps without it.
    for _ in 0..200 {
        if let Some(uffd) = uffd::find(pid, process.pidfd())? {
            let heap = heap(pid)?;
            uffd::register(&uffd, heap.clone())?;
            let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
            return Ok(page_scan::written_then_protect(&pagemap, heap).is_ok());
        }
        if fs::read_to_string(format!("/proc/{pid}/syscall"))?
            .starts_with(&format!("{} ", libc::SYS_clock_nanosleep))
        {
            return Ok(false);
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(false)
}

fn heap(pid: u32) -> io::Result<std::ops::Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    maps.lines()
        .find(|line| line.ends_with("[heap]"))
        .and_then(|line| line.split_once(' '))
        .and_then(|(range, _)| range.split_once('-'))
        .and_then(|(from, to)| {
            Some(u64::from_str_radix(from, 16).ok()?..u64::from_str_radix(to, 16).ok()?)
        })
        .ok_or_else(|| io::Error::other("the trial process has no heap"))
}

/// Memory of this host, bytes.
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit)
}

/// Memory that could be had now without swapping, bytes.
pub fn available_memory() -> io::Result<u64> {
    kib_line(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")
}

/// Memory that is a process's own, bytes: what a new base of its guest would hold at most.
pub fn own_memory(pid: u32) -> io::Result<u64> {
    kib_line(
        &fs::read_to_string(format!("/proc/{pid}/status"))?,
        "RssAnon:",
    )
}

fn kib_line(text: &str, key: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib << 10)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {key}")))
}

/// Free bytes of the file system that a path is on, as far as we may use them.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// The rate of this processor's time stamp counter, kHz; `None` where it could not be measured. Takes 50 ms.
pub fn tsc_khz() -> Option<u32> {
    tsc::khz()
}

/// QEMU processes that have the given data directory as theirs: their process ids. Whatever started them.
pub fn processes_of(root: &Path) -> io::Result<Vec<u32>> {
    let root = fs::canonicalize(root)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process may end while we look, and kernel threads have neither.
        let Ok(cwd) = fs::read_link(entry.path().join("cwd")) else {
            continue;
        };
        let Ok(command) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if cwd == root && command.windows(4).any(|part| part == b"\0fp-") {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_the_same_by_name_stepping_and_features() {
        let told = |name: &str, flags: &str| {
            let one = |number: u32| {
                format!(
                    "processor\t: {number}\nmodel name\t: {name}\nstepping\t: 4\ncpu MHz\t\t: 2{number}\nflags\t\t: {flags}\n\n"
                )
            };
            processor_of(&(one(0) + &one(1)))
        };
        let here = told("a (R) one @ 2 GHz", "fpu sse avx");
        assert!(
            here.starts_with("a (R) one @ 2 GHz, stepping 4, features "),
            "{here}"
        );
        assert_eq!(
            told("a (R) one @ 2 GHz", "avx fpu sse"),
            here,
            "in any order"
        );
        assert_ne!(told("a (R) one @ 2 GHz", "fpu sse"), here);
        assert_ne!(told("another", "fpu sse avx"), here);
    }

    #[test]
    fn versions_are_told_apart() {
        let check = |text: &str| check_version(Path::new("q"), text);
        assert_eq!(
            check("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\nCopyright").unwrap(),
            "10.0.2"
        );
        assert_eq!(check("QEMU emulator version 8.2.0").unwrap(), "8.2.0");
        assert_eq!(
            check("QEMU emulator version 7.2.15").unwrap_err(),
            QemuProblem::TooOld("7.2.15".into())
        );
        assert!(matches!(
            check("hello").unwrap_err(),
            QemuProblem::Strange(..)
        ));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_missing() {
        let error = qemu_version(Path::new("/nonexistent/qemu"))
            .await
            .unwrap_err();
        assert!(matches!(error, QemuProblem::Missing(_)));
    }

    #[test]
    fn a_kvm_device_alone_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (device, modules) = (dir.path().join("kvm"), dir.path().join("module"));
        fs::write(&device, "").unwrap();
        assert!(kvm_at(&device, &modules).is_err());
        fs::create_dir_all(modules.join("kvm_amd")).unwrap();
        assert!(kvm_at(&device, &modules).is_ok());
        assert_eq!(
            kvm_at(&dir.path().join("none"), &modules),
            Err("there is no /dev/kvm")
        );
    }
}
