//! The machine that is measured on: what it is, its free memory, the processor time of processes.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

/// MemAvailable, bytes.
pub fn available() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .context("no MemAvailable")?;
    let kib: u64 = line
        .split_whitespace()
        .next()
        .context("no number")?
        .parse()?;
    Ok(kib << 10)
}

/// Memory that a process has resident, bytes.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<u64>()? << 10)
}

/// Processor time that a process has used, its ended threads included, milliseconds; 0 when it has ended.
pub fn cpu_ms(pid: u32) -> f64 {
    let spent = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks: u64 =
            fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(ticks as f64 * 1000.0 / rustix::param::clock_ticks_per_second() as f64)
    };
    spent().unwrap_or_default()
}

/// Words about the machine.
pub fn describe(data: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let processors = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let memory = fs::read_to_string("/proc/meminfo")?;
    let total = memory
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or_default();
    let said = |program: &str, args: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(program)
            .args(args)
            .output()
            .with_context(|| program.to_owned())?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned())
    };
    let data = data.display().to_string();
    let pairs = [
        ("processor", format!("{processors} x {model}")),
        (
            "memory",
            format!("{:.1} GiB", total as f64 / f64::from(1 << 20)),
        ),
        ("kernel", said("uname", &["-r"])?),
        ("qemu", said("qemu-system-x86_64", &["--version"])?),
        ("accelerator", "tcg (software emulation)".to_owned()),
        (
            "data on",
            said("findmnt", &["-n", "-o", "FSTYPE", "-T", &data])?,
        ),
        ("date", said("date", &["-u", "+%Y-%m-%d"])?),
    ];
    Ok(pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect())
}
