//! What the kernel tells of processes: their memory and their time.

use std::{fs, time::Duration};

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
