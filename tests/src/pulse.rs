//! The records that a guest with `fp.pulse` writes to its memory, its disk and its console, read back from outside.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
};

use anyhow::Context as _;
use guest::{
    history::{parse_disk, verify},
    pages::{PAGE_SIZE, Scan},
    record::Record,
};
use qemu::{
    disk,
    layout::Layout,
    record::{VmName, VmRecord},
    spec,
};
use serde_json::Value;

/// Gives a VM's memory to somebody, a MiB after the other. The VM must stand still.
fn read_memory(
    vm: &Value,
    mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let pid = vm["pid"]
        .as_u64()
        .filter(|pid| *pid > 0)
        .context("the VM has no process")?;
    let size = vm["memoryBytes"].as_u64().context("no size")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let start = maps
        .lines()
        .filter_map(|line| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            Some((
                u64::from_str_radix(from, 16).ok()?,
                u64::from_str_radix(to, 16).ok()?,
            ))
        })
        .find(|(from, to)| to - from == size)
        .context("the guest's memory is not mapped in one piece")?
        .0;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut buffer = vec![0; 1 << 20];
    for at in (0..size).step_by(buffer.len()) {
        memory.read_exact_at(&mut buffer, start + at)?;
        take(&buffer)?;
    }
    Ok(())
}

/// The CRC-32 of all of a VM's memory. The VM must stand still.
pub fn memory_sum(vm: &Value) -> anyhow::Result<u32> {
    let mut sum = crc32fast::Hasher::new();
    read_memory(vm, |bytes| {
        sum.update(bytes);
        Ok(())
    })?;
    Ok(sum.finalize())
}

/// Everything in a VM's memory that looks like records. The VM must stand still.
fn scan(vm: &Value) -> anyhow::Result<Scan> {
    let mut scan = Scan::default();
    read_memory(vm, |bytes| {
        for page in bytes.chunks_exact(PAGE_SIZE) {
            scan.page(page)
                .map_err(|broken| anyhow::anyhow!("memory: {broken:?}"))?;
        }
        Ok(())
    })?;
    Ok(scan)
}

/// The histories in a VM's memory, verified: none lost, repeated, torn or of another guest. One for each run of the program
/// that is still there: memory is not cleared between boots. The VM must stand still.
pub fn in_memory(vm: &Value) -> anyhow::Result<Vec<Vec<Record>>> {
    let scan = scan(vm)?;
    let runs: Vec<u64> = scan.runs().collect();
    let records = |run| {
        scan.records(run)
            .map_err(|broken| anyhow::anyhow!("memory: {broken:?}"))
    };
    let all = runs
        .into_iter()
        .map(records)
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(all
        .into_iter()
        .filter(|records| !records.is_empty())
        .collect())
}

/// The records on a VM's disk, verified. Its process must have ended.
pub fn on_disk(data: &Path, vm: &Value) -> anyhow::Result<Vec<Record>> {
    let id = vm["id"].as_str().context("no id")?;
    let work = tempfile::tempdir()?;
    let layout = Layout::create(data, None)?;
    let record =
        VmRecord::load(&layout.vm(&VmName(id.to_owned())))?.context("the VM has no record")?;
    let chain = disk::chain(&record.layers_with_next(), record.image_disk.as_deref());
    let source = format!("json:{}", spec::disk_chain(&chain, None));
    let (raw, file) = (work.path().join("disk.raw"), work.path().join("pulse"));
    let convert = Command::new("qemu-img")
        .args(["convert", "-O", "raw", &source])
        .arg(&raw)
        .current_dir(data)
        .output()?;
    anyhow::ensure!(
        convert.status.success(),
        "{}",
        String::from_utf8_lossy(&convert.stderr)
    );
    // As a boot does first; it mends nothing.
    let replay = Command::new("/sbin/e2fsck")
        .args(["-y", "-E", "journal_only"])
        .arg(&raw)
        .output()?;
    anyhow::ensure!(replay.status.success(), "{replay:?}");
    let fsck = Command::new("/sbin/e2fsck")
        .args(["-f", "-n"])
        .arg(&raw)
        .output()?;
    anyhow::ensure!(fsck.status.success(), "{fsck:?}");
    let request = format!("dump /var/lib/pulse {}", file.display());
    let dump = Command::new("/sbin/debugfs")
        .args(["-R", &request])
        .arg(&raw)
        .output()?;
    // It ends well without a file, too.
    anyhow::ensure!(dump.status.success() && file.exists(), "{dump:?}");
    let records =
        parse_disk(&fs::read(&file)?).map_err(|broken| anyhow::anyhow!("disk: {broken:?}"))?;
    let run = records.last().context("nothing is on the disk")?.run;
    let last: Vec<Record> = records
        .into_iter()
        .filter(|record| record.run == run)
        .collect();
    verify(&last).map_err(|broken| anyhow::anyhow!("disk: {broken:?}"))?;
    Ok(last)
}
