//! The checks of `exact.rs` find what they are for: a snapshot with one page left out, without its firmware, a disk with a
//! block lost. Each check by itself, and it names exactly what was planted.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
};

use anyhow::Context as _;
use guest::pages::Page;
use qemu::{
    capture::{Afterwards, Captured, Mode},
    layout::share,
    machine::Machine,
    record::StreamName,
    spec::MachineType,
};
use support::{DISK, Host, Shape, compare, compare_firmware, planted, records};

const PAGE: usize = 4096;

/// A guest that was captured, ran on, and was captured again against the same base.
struct Captures {
    host: Host,
    parent: Machine,
    captured: Captured,
    stream: Vec<u8>,
}

impl Captures {
    async fn new(machine: MachineType) -> anyhow::Result<Self> {
        let mut host = Host::new()?;
        host.disk = DISK + (4 << 20);
        let shape = Shape { machine, cpus: 1 };
        let mut parent = host.boot("parent", shape, "fp.pulse=all").await?;
        records::started(&parent, 1).await?;
        host.capture(&mut parent, "first", Mode::Auto, true, Afterwards::Hold)
            .await?;
        // Some records more, so that what the base has is older by more than one.
        for _ in 0..4 {
            let moment = records::in_memory(&parent.main_memory().await?)?;
            records::go_on(&mut parent, &moment).await?;
            parent.pause().await?;
        }
        parent.resume().await?;
        let captured = host
            .capture(&mut parent, "second", Mode::Auto, true, Afterwards::Hold)
            .await?;
        assert!(!captured.report.new_base, "the stream has too few pages");
        let stream = fs::read(host.engine.layout.stream(&StreamName("second".into())))?;
        Ok(Self {
            host,
            parent,
            captured,
            stream,
        })
    }

    /// A child of the second capture with something left out.
    async fn child(
        &self,
        name: &str,
        leave_out: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Machine> {
        let mut stream = self.stream.clone();
        leave_out(&mut stream)?;
        let layout = &self.host.engine.layout;
        let path = layout.stream(&StreamName(name.into()));
        fs::write(&path, stream)?;
        share(&path, layout.readers())?;
        self.host.load_edited(name, &self.captured, name).await
    }

    /// The pages of the stream whose content is not the base's.
    async fn changed_pages(&self) -> anyhow::Result<Vec<(u32, Vec<u8>)>> {
        let base = File::open(self.host.engine.layout.base(&self.captured.base))?;
        let memory = self.parent.main_memory().await?;
        let mut changed = Vec::new();
        // Not the first, which the others follow.
        for page in planted::pages(&self.stream)?.into_iter().skip(1) {
            let (mut now, mut then) = (vec![0; PAGE], vec![0; PAGE]);
            memory.read(u64::from(page) * PAGE as u64, &mut now)?;
            base.read_exact_at(&mut then, u64::from(page) * PAGE as u64)?;
            if now != then {
                changed.push((page, now));
            }
        }
        Ok(changed)
    }
}

/// The comparison names the page, wherever it is in the stream.
async fn a_page_left_out_is_named(machine: MachineType) -> anyhow::Result<()> {
    let mut captures = Captures::new(machine).await?;
    let changed = captures.changed_pages().await?;
    assert!(changed.len() > 2);
    for (i, at) in [0, changed.len() / 2, changed.len() - 1]
        .into_iter()
        .enumerate()
    {
        let page = changed[at].0;
        let mut child = captures
            .child(&format!("child{i}"), |stream| {
                planted::leave_out_page(stream, page)
            })
            .await?;
        assert_eq!(compare(&mut captures.parent, &mut child).await?, [page]);
        child.kill().await?;
    }
    captures.parent.kill().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_left_out_of_a_microvm_is_named() -> anyhow::Result<()> {
    a_page_left_out_is_named(MachineType::Microvm).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_left_out_of_a_q35_is_named() -> anyhow::Result<()> {
    a_page_left_out_is_named(MachineType::Q35).await
}

/// Without the comparison: the records alone tell that a page with records is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_records_left_out_is_missed_by_the_records() -> anyhow::Result<()> {
    let mut captures = Captures::new(MachineType::Microvm).await?;
    let page = captures
        .changed_pages()
        .await?
        .into_iter()
        .filter(|(_, bytes)| Page::decode(bytes).is_some())
        .max_by_key(|(_, bytes)| Page::decode(bytes).map(|page| page.number))
        .context("no page with records was written")?
        .0;
    for (name, whole) in [("whole", true), ("planted", false)] {
        let mut child = captures
            .child(name, |stream| match whole {
                true => Ok(()),
                false => planted::leave_out_page(stream, page),
            })
            .await?;
        let memory = records::in_memory(&child.main_memory().await?);
        child.kill().await?;
        let disk = records::on_disk(&captures.host, &child)?;
        let told = memory.and_then(|memory| records::agree(&memory, &disk));
        assert_eq!(told.is_ok(), whole, "{told:?}");
    }
    captures.parent.kill().await?;
    Ok(())
}

/// Firmware that is not in the stream is missed in the child, by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_firmware_block_left_out_is_named() -> anyhow::Result<()> {
    let captures = Captures::new(MachineType::Q35).await?;
    let mut child = captures
        .child("child", |stream| {
            planted::leave_out_block(stream, "pc.bios")
        })
        .await?;
    assert_eq!(
        compare_firmware(&captures.parent, &child).await?,
        ["pc.bios"]
    );
    child.kill().await?;
    Ok(())
}

/// Where the inodes of the guest's programs are.
fn inodes_of_programs(image: &Path) -> anyhow::Result<u64> {
    let stats = Command::new("/sbin/debugfs")
        .args(["-R", "imap /bin/busybox"])
        .arg(image)
        .output()?;
    let text = String::from_utf8(stats.stdout)?;
    let (_, rest) = text
        .split_once("located at block ")
        .with_context(|| text.clone())?;
    let block: u64 = rest.split(',').next().unwrap_or_default().trim().parse()?;
    Ok(block * PAGE as u64)
}

/// A block of the raw disk, and one of the file system's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_of_the_disk_lost_is_missed() -> anyhow::Result<()> {
    let mut captures = Captures::new(MachineType::Microvm).await?;
    let memory = records::in_memory(&captures.parent.main_memory().await?)?;
    captures.parent.kill().await?;
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let image = work.path().join("disk");
    records::convert(&captures.host, &captures.parent, &image)?;
    let inodes = inodes_of_programs(&image)?;
    // Where it is written over: nowhere, the first raw page, some inodes.
    for (place, told) in [
        (None, None),
        (Some(DISK), Some("raw disk")),
        (Some(inodes), Some("e2fsck")),
    ] {
        records::convert(&captures.host, &captures.parent, &image)?;
        if let Some(place) = place {
            // First, or it may bring back what is lost.
            records::replay(&image)?;
            let file = File::options().write(true).open(&image)?;
            file.write_all_at(&[0; PAGE], place)?;
        }
        let checked = records::read_disk(&image, 1).and_then(|disk| records::agree(&memory, &disk));
        match (told, checked) {
            (None, Ok(())) => {}
            (Some(word), Err(error)) => assert!(format!("{error:#}").contains(word), "{error:#}"),
            (told, checked) => panic!("{told:?}: {checked:?}"),
        }
    }
    Ok(())
}
