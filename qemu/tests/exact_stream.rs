//! What the encoder writes, QEMU reads: random sets of pages go through a stream into a real QEMU, over a base whose pages
//! are not zero, and every page of the guest's memory is then what it should be.
//!
//! `FP_EXACT_CASES` says how many sets are tried (12), beside the special ones.

mod support;

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use qemu::{
    capture::{Afterwards, Captured, Mode},
    layout::share,
    record::{BaseName, StreamName, VmName},
    spec::MachineType,
    stream::{Block, Pages, assemble},
};
use support::{Host, Shape};

const PAGE: usize = 4096;
const MEMORY: u64 = 32 << 20;
const PAGES: u32 = (MEMORY / PAGE as u64) as u32;

/// Pages that go into a stream: a run of them, and what they hold.
#[derive(Debug, Clone)]
struct Run {
    start: u32,
    len: u32,
    /// 0 for zeros.
    salt: u8,
}

/// A stopped machine: its devices, its firmware, and a place to load them again.
struct Bench {
    host: Host,
    captured: Captured,
    devices: Vec<u8>,
    firmware: Vec<(Block, Vec<u8>)>,
    shape: Shape,
    loads: u32,
}

/// What a page holds with a salt: no two pages the same, none zero but for salt 0.
fn content(page: u32, salt: u8) -> Vec<u8> {
    let mut bytes = vec![salt; PAGE];
    if salt != 0 {
        bytes[..4].copy_from_slice(&page.to_be_bytes());
        bytes[PAGE - 4..].copy_from_slice(&page.to_le_bytes());
    }
    bytes
}

/// The base's page: every third is a hole.
fn base_content(page: u32) -> Vec<u8> {
    content(page, if page.is_multiple_of(3) { 0 } else { 0xb5 })
}

/// The salts of all pages that the runs say, the later ones first in force.
fn wanted(runs: &[Run]) -> Vec<Option<u8>> {
    let mut wanted = vec![None; PAGES as usize];
    for run in runs {
        let end = (run.start + run.len).min(PAGES);
        wanted[run.start as usize..end as usize].fill(Some(run.salt));
    }
    wanted
}

fn pages_of(runs: &[Run], leave_out: Option<u32>) -> Pages {
    let mut pages = Pages::default();
    let wanted = wanted(runs);
    // In the order of the runs, which is not that of the pages.
    for run in runs {
        let end = (run.start + run.len).min(PAGES);
        for (page, place) in pages.places_for(std::slice::from_ref(&(run.start..end))) {
            place.copy_from_slice(&content(page, wanted[page as usize].unwrap_or_default()));
        }
    }
    if let Some(page) = leave_out {
        pages.remove(page);
    }
    pages
}

impl Bench {
    async fn new(machine: MachineType) -> anyhow::Result<Self> {
        let mut host = Host::new()?;
        host.memory = MEMORY;
        let shape = Shape { machine, cpus: 1 };
        let mut parent = host.start("parent", shape, "", true).await?;
        let captured = host
            .capture(&mut parent, "parent", Mode::Paused, false, Afterwards::Hold)
            .await?;
        let layout = &host.engine.layout;
        let devices = layout.vm(&VmName("parent".into())).device_state();
        let devices = fs::read(layout.root().join(devices))?;
        let firmware = parent.main_memory().await?.firmware()?;
        parent.kill().await?;
        let base = BaseName("base".into());
        let file = File::create(layout.base(&base))?;
        file.set_len(MEMORY)?;
        for page in (0..PAGES).filter(|page| !page.is_multiple_of(3)) {
            file.write_all_at(&base_content(page), u64::from(page) * PAGE as u64)?;
        }
        share(&layout.base(&base), layout.readers())?;
        Ok(Self {
            captured: Captured { base, ..captured },
            host,
            devices,
            firmware,
            shape,
            loads: 0,
        })
    }

    /// Loads a stream with these pages, and gives those pages that are not as they should be then.
    async fn wrong_pages(
        &mut self,
        runs: &[Run],
        leave_out: Option<u32>,
    ) -> anyhow::Result<Vec<u32>> {
        self.loads += 1;
        let name = format!("load{}", self.loads);
        let main = Block {
            name: "m".into(),
            used: MEMORY,
        };
        let pages = pages_of(runs, leave_out);
        let stream = assemble(
            self.shape.machine.name(),
            &main,
            &pages,
            &self.firmware,
            &self.devices,
        )?;
        let layout = &self.host.engine.layout;
        let path = layout.stream(&StreamName(name.clone()));
        let mut file = File::create(&path)?;
        for part in stream.parts() {
            file.write_all(&part)?;
        }
        share(&path, layout.readers())?;
        let mut child = self.host.load_edited(&name, &self.captured, &name).await?;
        let memory = child.main_memory().await?;
        let mut found = vec![0; MEMORY as usize];
        memory.read(0, &mut found)?;
        child.kill().await?;
        fs::remove_file(&path)?;
        let wanted = wanted(runs);
        let should = |page: u32| match wanted[page as usize] {
            Some(salt) => content(page, salt),
            None => base_content(page),
        };
        Ok((0..PAGES)
            .filter(|page| found[*page as usize * PAGE..][..PAGE] != should(*page))
            .collect())
    }
}

fn run(start: u32, len: u32, salt: u8) -> Run {
    Run { start, len, salt }
}

/// The ends of what there can be: nothing, everything, everything zero, the first page, the last, and zeros over the base.
fn special() -> Vec<Vec<Run>> {
    vec![
        vec![],
        vec![run(0, PAGES, 7)],
        vec![run(0, PAGES, 0)],
        vec![run(0, 1, 7)],
        vec![run(PAGES - 1, 1, 7)],
        vec![run(PAGES - 1, 1, 0), run(0, 1, 9)],
        vec![run(1, 2, 0)],
    ]
}

fn any_runs() -> impl Strategy<Value = Vec<Run>> {
    let len = prop_oneof![3 => 1..4u32, 2 => 1..300u32, 1 => 1..PAGES];
    let salt = prop_oneof![1 => Just(0), 3 => 1..=255u8];
    let run = (0..PAGES, len, salt).prop_map(|(start, len, salt)| Run { start, len, salt });
    proptest::collection::vec(run, 0..40)
}

fn every_page_arrives(machine: MachineType) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let bench = std::cell::RefCell::new(runtime.block_on(Bench::new(machine))?);
    let load =
        |runs: &[Run], leave_out| runtime.block_on(bench.borrow_mut().wrong_pages(runs, leave_out));
    for runs in special() {
        assert_eq!(load(&runs, None)?, [0; 0], "{runs:?}");
    }
    let cases = match std::env::var("FP_EXACT_CASES") {
        Ok(cases) => cases.parse()?,
        Err(_) => 12,
    };
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    runner.run(&any_runs(), |runs| {
        let wrong = load(&runs, None).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        prop_assert!(wrong.is_empty(), "wrong pages: {wrong:?}");
        Ok(())
    })?;
    // The check itself: one page of many is left out, and it is found.
    let runs = [run(100, 50, 3), run(4000, 7, 0)];
    for page in [100, 130, 149, 4001] {
        assert_eq!(load(&runs, Some(page))?, [page]);
    }
    Ok(())
}

#[test]
fn every_page_arrives_in_a_microvm() -> anyhow::Result<()> {
    every_page_arrives(MachineType::Microvm)
}

#[test]
fn every_page_arrives_in_a_q35() -> anyhow::Result<()> {
    every_page_arrives(MachineType::Q35)
}
