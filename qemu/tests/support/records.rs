//! What a guest with `fp.pulse=all` wrote, read back from outside: memory, the disk behind the file system, and files. Each
//! run of records must be whole by itself, and all places must tell the same story.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::Context as _;
use guest::{
    history::{Broken, parse_disk, verify},
    pages::{PAGE_SIZE, Scan},
    record::{RECORD_SIZE, Record},
};
use qemu::{disk, machine::Machine, memory::MainMemory, spec};
use tokio::sync::broadcast;

use super::{DISK, Host};

/// Records by run, each run from its first record on.
pub type Histories = BTreeMap<u64, Vec<Record>>;

/// How long a guest that runs may take to write its next record. It shares its processors with other tests, and each record waits for
/// the host's disk, which was seen to take no sync for a minute while compilers wrote.
const PATIENCE: Duration = Duration::from_secs(240);

/// The records in a guest's memory; it must stand still.
pub fn in_memory(memory: &MainMemory) -> anyhow::Result<Histories> {
    let mut scan = Scan::default();
    let mut buffer = vec![0; 1 << 20];
    for at in (0..memory.len()).step_by(buffer.len()) {
        memory.read(at, &mut buffer)?;
        for page in buffer.chunks_exact(PAGE_SIZE) {
            scan.page(page).context("memory")?;
        }
    }
    histories(&scan).context("memory")
}

fn histories(scan: &Scan) -> Result<Histories, Broken> {
    let mut all = Histories::new();
    for run in scan.runs() {
        all.insert(run, scan.records(run)?);
    }
    Ok(all)
}

/// Lets a guest run until every writer wrote something after `moment`, by what the guest prints.
pub async fn go_on(machine: &mut Machine, moment: &Histories) -> anyhow::Result<()> {
    let console = machine.follow_console();
    machine.resume().await?;
    let newer = |newest: &BTreeMap<u64, u64>| {
        moment.iter().all(|(run, past)| {
            let last = past.last().map_or(0, |last| last.n);
            newest.get(run).is_some_and(|n| *n > last)
        })
    };
    printed(console, newer)
        .await
        .context("a writer does not go on")
}

/// Waits until so many writers of a running guest have begun.
pub async fn started(machine: &Machine, writers: u32) -> anyhow::Result<()> {
    let all = |newest: &BTreeMap<u64, u64>| newest.len() == writers as usize;
    printed(machine.follow_console(), all)
        .await
        .context("a writer does not start")
}

/// Waits until the newest record of each run that was printed is as it should be.
async fn printed(
    mut console: broadcast::Receiver<Vec<u8>>,
    enough: impl Fn(&BTreeMap<u64, u64>) -> bool,
) -> anyhow::Result<()> {
    let (mut newest, mut line) = (BTreeMap::new(), Vec::new());
    // For whoever reads of a failure: what was said besides, and what was lost of it.
    let (mut said, mut lost) = (Vec::new(), 0);
    let wait = async {
        while !enough(&newest) {
            match console.recv().await {
                Ok(bytes) => line.extend(bytes),
                // Only the newest counts.
                Err(broadcast::error::RecvError::Lagged(messages)) => {
                    lost += messages;
                    line.clear();
                }
                Err(closed) => return Err(anyhow::Error::from(closed)),
            }
            while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let text: Vec<u8> = line.drain(..=end).collect();
                let text = String::from_utf8_lossy(&text);
                match Record::from_line(&text) {
                    Some(record) => _ = newest.insert(record.run, record.n),
                    None => said.push(text.trim_end().to_owned()),
                }
            }
        }
        Ok(())
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| {
        let said = &said[said.len().saturating_sub(20)..];
        anyhow::bail!(
            "after {PATIENCE:?} the newest records are {newest:?}; {lost} pieces of the console were lost; it said: {said:#?}"
        )
    })
}

/// Checks that a guest that ran on from `moment` and was stopped again continued every run, and lost nothing.
pub async fn continued(machine: &Machine, moment: &Histories) -> anyhow::Result<Histories> {
    let now = in_memory(&machine.main_memory().await?)?;
    follows(moment, &now)?;
    Ok(now)
}

/// Checks that `now` begins with all of `moment` and goes on from there.
pub fn follows(moment: &Histories, now: &Histories) -> anyhow::Result<()> {
    anyhow::ensure!(moment.keys().eq(now.keys()), "a run came or went");
    for (run, past) in moment {
        anyhow::ensure!(
            now[run].starts_with(past) && now[run].len() > past.len(),
            "run {run:016x} has {} records after {}, or others",
            now[run].len(),
            past.len()
        );
    }
    Ok(())
}

/// What is on a disk whose guest stood still when its process ended.
#[derive(Debug)]
pub struct OnDisk {
    /// In `/var/lib/pulse.N`.
    pub files: Histories,
    /// Behind the file system.
    pub raw: Histories,
}

/// Reads the disk of a machine whose process has ended, with a check of its file system: the journal is replayed, as a boot
/// does first, and then there must be nothing to mend.
pub fn on_disk(host: &Host, machine: &Machine) -> anyhow::Result<OnDisk> {
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let image = work.path().join("disk");
    convert(host, machine, &image)?;
    read_disk(&image, machine.record().hardware.cpus)
}

/// The whole disk of a machine, as a raw file.
pub fn convert(host: &Host, machine: &Machine, image: &Path) -> anyhow::Result<()> {
    let record = machine.record();
    let chain = disk::chain(&record.layers_with_next(), record.image_disk.as_deref());
    let source = format!("json:{}", spec::disk_chain(&chain, None));
    run(Command::new("qemu-img")
        .args(["convert", "-O", "raw", &source])
        .arg(image)
        .current_dir(host.engine.layout.root()))?;
    Ok(())
}

/// See [`on_disk`].
pub fn read_disk(image: &Path, writers: u32) -> anyhow::Result<OnDisk> {
    let file = File::open(image)?;
    let mut raw = vec![0; (file.metadata()?.len() - DISK) as usize];
    file.read_exact_at(&mut raw, DISK)?;
    let raw = Scan::of(&raw)
        .and_then(|scan| histories(&scan))
        .context("the raw disk")?;

    replay(image)?;
    run(Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(image))?;
    let mut files = Histories::new();
    for writer in 0..writers {
        let file = format!("/var/lib/pulse.{writer}");
        let bytes = written(image, &file)?;
        let records =
            parse_disk(&bytes).with_context(|| format!("{file}, of {} bytes", bytes.len()))?;
        verify(&records).with_context(|| file.clone())?;
        let run = records.first().context("a writer's file is empty")?.run;
        files.insert(run, records);
    }
    Ok(OnDisk { files, raw })
}

/// A file, without a last record that is zeros. A file's size may be in ext4's journal before what was appended is on the disk, when
/// another file's sync came between: a block that has data already is not waited for (`data=ordered` waits for new ones), and a new
/// one is taken for unwritten until it is (`dioread_nolock`; admin-guide/ext4 of the kernel). Nobody was told that the record is
/// there, and [`agree`] has memory be one record ahead at most.
fn written(image: &Path, file: &str) -> anyhow::Result<Vec<u8>> {
    let out = image.with_extension("file");
    debugfs(image, &format!("dump {file} {}", out.display()))?;
    let mut bytes = std::fs::read(&out)?;
    if let Some((before, last)) = bytes.split_last_chunk::<RECORD_SIZE>()
        && last.iter().all(|byte| *byte == 0)
    {
        bytes.truncate(before.len());
    }
    Ok(bytes)
}

/// Asks `debugfs`, which ends well when it cannot open a file system, too.
fn debugfs(image: &Path, request: &str) -> anyhow::Result<()> {
    let output = run(Command::new("/sbin/debugfs")
        .args(["-R", request])
        .arg(image))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(said.lines().count() == 1, "debugfs {request}: {said}");
    Ok(())
}

/// Replays the journal of a disk's file system, as a boot does first, and mends nothing. (`debugfs` does not open a file system whose
/// bitmaps are not those of its journal.)
pub fn replay(image: &Path) -> anyhow::Result<()> {
    run(Command::new("/sbin/e2fsck")
        .args(["-y", "-E", "journal_only"])
        .arg(image))?;
    Ok(())
}

/// Checks that disk and memory of one moment tell the same: each is at most one record behind the one written before it.
pub fn agree(memory: &Histories, disk: &OnDisk) -> anyhow::Result<()> {
    for (place, histories) in [("files", &disk.files), ("raw disk", &disk.raw)] {
        anyhow::ensure!(
            memory.keys().eq(histories.keys()),
            "the runs on the {place} are not those in memory"
        );
        for (run, records) in histories {
            let in_memory = &memory[run];
            anyhow::ensure!(
                in_memory.starts_with(records) && in_memory.len() - records.len() <= 1,
                "run {run:016x}: {} records on the {place}, {} in memory, or others",
                records.len(),
                in_memory.len()
            );
        }
    }
    Ok(())
}

/// Checks that no writer and no kernel complained on a machine's console.
pub fn console_is_clean(host: &Host, name: &str) -> anyhow::Result<()> {
    let vm = qemu::record::VmName(name.into());
    let log = host.engine.layout.vm(&vm).console_log();
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let complaint = |line: &&str| {
        [
            "fpguest ",
            "EXT4-fs",
            "I/O error",
            "Oops",
            "BUG:",
            "Kernel panic",
        ]
        .iter()
        .any(|word| line.contains(word))
    };
    match text.lines().find(complaint) {
        Some(line) => anyhow::bail!("{name} printed {line:?}"),
        None => Ok(()),
    }
}

fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(output)
}
