//! A fork is exact: guests with one and four processors, on every machine type, write checksummed records to memory, to files
//! and to the raw disk, and pages of noise and zeros all over, on every processor, while they are captured at random moments
//! in every way there is, and while layers of their disks are merged. At each capture the child's memory and firmware are the
//! parent's, byte for byte, before the child runs; then both go on, and no place of either ever shows a gap, a repeat, a torn
//! record or a broken file system.
//!
//! `FP_EXACT_ROUNDS` says how many captures each guest has (8); `FP_EXACT_SEED` repeats a run's choices.

mod support;

use std::time::Duration;

use qemu::{
    capture::{Afterwards, Mode},
    machine::Machine,
    record::{LayerName, StreamName},
    spec::MachineType,
};
use support::{
    DISK, Host, Shape, compare, compare_firmware, merge,
    random::Random,
    records::{self, Histories},
};
use tokio::time::Instant;

/// Behind the file system: room for the raw writers of four processors.
const RAW_DISK: u64 = 16 << 20;

/// What becomes of the parent and the child after a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Both go on for a moment, and the parent is captured next.
    ParentStays,
    /// Both go on for a moment, and the child is captured next: a fork of a fork.
    ChildTakesOver,
    /// The parent goes on; the child's disk is looked at as it was captured.
    ChildNeverRuns,
}

/// One guest and what became of it.
struct Lineage {
    host: Host,
    random: Random,
    vm: Machine,
    name: String,
    tracked: bool,
    new_bases: u32,
    /// Steps of merging the layers of its disk, while it runs.
    merges: u32,
}

fn rounds() -> anyhow::Result<u32> {
    match std::env::var("FP_EXACT_ROUNDS") {
        Ok(rounds) => Ok(rounds.parse()?),
        Err(_) => Ok(8),
    }
}

impl Lineage {
    async fn new(shape: Shape, flags: &str, tracked: bool) -> anyhow::Result<Self> {
        let mut host = Host::with_tracking(tracked)?;
        host.disk = DISK + RAW_DISK;
        let what = format!("{} with {} processors", shape.machine.name(), shape.cpus);
        let random = Random::new(&what)?;
        let vm = host
            .boot("vm", shape, &format!("fp.pulse=all {flags}"))
            .await?;
        records::started(&vm, shape.cpus).await?;
        Ok(Self {
            host,
            random,
            vm,
            name: "vm".into(),
            tracked,
            new_bases: 0,
            merges: 0,
        })
    }

    /// A capture at a random moment, in a random way; its child is compared, and then some of them go on.
    async fn round(&mut self, round: u32) -> anyhow::Result<()> {
        let moment = Instant::now() + self.random.duration(Duration::from_millis(400));
        merge(&mut self.vm, &mut self.merges, Some(moment)).await?;
        let modes = if self.tracked {
            [Mode::Auto, Mode::Live, Mode::Paused]
        } else {
            [Mode::Auto, Mode::Auto, Mode::Paused]
        };
        let mode = self.random.choose(&modes);
        let (snapshot, child_name) = (format!("s{round}"), format!("vm{round}"));
        let another = self.random.below(3) == 0;
        if another {
            // Prepared, and given up by the next preparation: one machine is captured for several at once.
            let other = StreamName(format!("other{round}"));
            let layer = LayerName(format!("after-other{round}"));
            self.vm
                .prepare(&other, &layer, self.host.disk, Mode::Auto)
                .await?;
            self.random.moment(Duration::from_millis(50)).await;
        }
        let captured = self
            .host
            .capture(&mut self.vm, &snapshot, mode, true, Afterwards::Hold)
            .await?;
        self.new_bases += u32::from(captured.report.new_base);
        let mut child = self.host.load(&child_name, &captured, &snapshot).await?;
        let next = self.random.choose(&[
            Next::ParentStays,
            Next::ChildTakesOver,
            Next::ChildNeverRuns,
        ]);
        eprintln!(
            "round {round}: {mode:?}{}, {} KiB in the stream{}, then {next:?}",
            if another { " beside another" } else { "" },
            captured.stream_bytes >> 10,
            if captured.report.new_base {
                ", new base"
            } else {
                ""
            },
        );
        exact(&mut self.vm, &mut child).await?;
        let moment = records::in_memory(&child.main_memory().await?)?;
        self.go_on(child, child_name, next, &moment).await
    }

    async fn go_on(
        &mut self,
        mut child: Machine,
        child_name: String,
        next: Next,
        moment: &Histories,
    ) -> anyhow::Result<()> {
        if next == Next::ChildNeverRuns {
            child.kill().await?;
            records::agree(moment, &records::on_disk(&self.host, &child)?)?;
            self.vm.resume().await?;
            return Ok(());
        }
        records::go_on(&mut child, moment).await?;
        records::go_on(&mut self.vm, moment).await?;
        child.pause().await?;
        self.vm.pause().await?;
        let of_child = records::continued(&child, moment).await?;
        let of_parent = records::continued(&self.vm, moment).await?;
        anyhow::ensure!(of_child != of_parent, "two guests wrote the same records");
        let (mut gone, gone_name, gone_memory) = match next {
            Next::ChildTakesOver => {
                let parent = std::mem::replace(&mut self.vm, child);
                let name = std::mem::replace(&mut self.name, child_name);
                (parent, name, of_parent)
            }
            _ => (child, child_name, of_child),
        };
        gone.kill().await?;
        records::agree(&gone_memory, &records::on_disk(&self.host, &gone)?)?;
        records::console_is_clean(&self.host, &gone_name)?;
        self.vm.resume().await?;
        Ok(())
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.vm.pause().await?;
        let memory = records::in_memory(&self.vm.main_memory().await?)?;
        self.vm.kill().await?;
        records::agree(&memory, &records::on_disk(&self.host, &self.vm)?)?;
        records::console_is_clean(&self.host, &self.name)
    }
}

/// Both stand still and are the same.
async fn exact(parent: &mut Machine, child: &mut Machine) -> anyhow::Result<()> {
    let pages = compare(parent, child).await?;
    anyhow::ensure!(pages.is_empty(), "pages differ: {pages:?}");
    let blocks = compare_firmware(parent, child).await?;
    anyhow::ensure!(blocks.is_empty(), "firmware differs: {blocks:?}");
    Ok(())
}

async fn exact_at_random_moments(
    shape: Shape,
    flags: &str,
    tracked: bool,
) -> anyhow::Result<Lineage> {
    let mut lineage = Lineage::new(shape, flags, tracked).await?;
    let begun = Instant::now();
    let rounds = rounds()?;
    for round in 0..rounds {
        lineage.round(round).await?;
    }
    eprintln!(
        "{rounds} captures in {:.1?}, {} new bases, {} steps of merges, {} layers",
        begun.elapsed(),
        lineage.new_bases,
        lineage.merges,
        lineage.vm.record().layers.len()
    );
    Ok(lineage)
}

fn shape(machine: MachineType, cpus: u32) -> Shape {
    Shape { machine, cpus }
}

/// Little enough is written for most captures to stay with their base.
const CALM: &str = "fp.churn=8 fp.churn-disk";
/// More than a delta may have: every capture makes a new base while the guest writes.
const WILD: &str = "fp.churn=48";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_microvm_with_one_processor() -> anyhow::Result<()> {
    let lineage = exact_at_random_moments(shape(MachineType::Microvm, 1), CALM, true).await?;
    lineage.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_microvm_with_four_processors_and_new_bases() -> anyhow::Result<()> {
    let lineage = exact_at_random_moments(shape(MachineType::Microvm, 4), WILD, true).await?;
    assert!(lineage.new_bases > 1, "no new base was made");
    lineage.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_q35_with_one_processor_and_new_bases() -> anyhow::Result<()> {
    let lineage = exact_at_random_moments(shape(MachineType::Q35, 1), WILD, true).await?;
    assert!(lineage.new_bases > 1, "no new base was made");
    lineage.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_q35_with_four_processors() -> anyhow::Result<()> {
    let lineage = exact_at_random_moments(shape(MachineType::Q35, 4), CALM, true).await?;
    lineage.end().await
}

/// As on a host whose kernel cannot track writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_q35_whose_writes_are_not_tracked() -> anyhow::Result<()> {
    let lineage = exact_at_random_moments(shape(MachineType::Q35, 1), CALM, false).await?;
    lineage.end().await
}
