//! What the kernel tells of processes: their memory, their time, and whose they are.

use std::{fs, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use anyhow::Context as _;

/// Forgets the most memory that a process has had until now.
pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
    // proc_pid_clear_refs(5): its peak becomes what it has now.
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// The most memory that a process has had, and what it has now, bytes.
pub fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok((field(&status, "VmHWM")?, field(&status, "VmRSS")?))
}

/// A field of `/proc/PID/status`, in bytes.
pub fn field(status: &str, name: &str) -> anyhow::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {name} in {status}"))? << 10)
}

/// Processor time that a process has used, its own and the kernel's for it.
pub fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no stat")?;
    let field = |number: usize| -> anyhow::Result<u64> {
        // proc_pid_stat(5) counts from 1, and two are before this.
        let text = rest.split(' ').nth(number - 3).context("a short stat")?;
        Ok(text.parse()?)
    };
    let ticks = field(14)? + field(15)?;
    Ok(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

/// A file of every process that can be read, such as `cmdline` or `environ`, with the process's id.
pub fn all(file: &str) -> anyhow::Result<Vec<(u32, Vec<u8>)>> {
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
        // It may have ended meanwhile, or have none.
        if let Ok(bytes) = fs::read(entry.path().join(file)) {
            found.push((pid, bytes));
        }
    }
    Ok(found)
}

/// Processes that work below a folder, or are told of it, but for this one. One that an agent was about to start when it was killed has the
/// agent's own arguments until it is QEMU.
pub fn of_folder(folder: &Path) -> anyhow::Result<Vec<u32>> {
    let name = folder.as_os_str().as_bytes();
    let mut all = all("cmdline")?;
    all.retain(|(pid, line)| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        let works = cwd.is_ok_and(|cwd| cwd.starts_with(folder));
        let told = line.windows(name.len()).any(|part| part == name);
        (works || told) && *pid != std::process::id()
    });
    Ok(all.into_iter().map(|(pid, _)| pid).collect())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::wait_for;

    #[test]
    fn who_works_below_a_folder_or_is_told_of_it_is_found() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = folder.path().to_str().unwrap();
        // Each waits for a line.
        let wait = |at: &Path, word: &str| -> Child {
            Command::new("sh")
                .args(["-c", "read -r line", word])
                .current_dir(at)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut started = [
            wait(folder.path(), "word"),
            wait(other.path(), &format!("{name}/file")),
            wait(other.path(), "word"),
        ];
        let mut expected = [started[0].id(), started[1].id()];
        expected.sort_unstable();
        let found = wait_for("both to be found", Duration::from_secs(10), || {
            let found = of_folder(folder.path())?;
            Ok((found.len() == 2).then_some(found))
        });
        for child in &mut started {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut found = found.unwrap();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(of_folder(folder.path()).unwrap(), [0; 0]);
    }
}
