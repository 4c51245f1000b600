//! What a pause looks like from outside: a program in the guest answers every millisecond, and while the guest is captured
//! there is no answer. The longest gaps are printed beside QEMU's own figures. No answer is lost, repeated or out of order.

mod support;

use std::time::{Duration, Instant};

use qemu::{
    capture::{Afterwards, Expected, Mode},
    spec::MachineType,
};
use support::{
    Host, Shape,
    echo::{Gap, Witness},
    random::Random,
};

/// How often the parent is captured.
const ROUNDS: usize = 20;

/// The longest part of a span of time that lies in one gap.
fn longest_within(gaps: &[Gap], from: Instant, to: Instant) -> Duration {
    let part = |gap: &Gap| gap.to.min(to).saturating_duration_since(gap.from.max(from));
    gaps.iter().map(part).max().unwrap_or_default()
}

fn print(what: &str, gaps: &[Gap]) {
    let longest = gaps.iter().take(6).map(|gap| gap.length().as_micros());
    let longest: Vec<String> = longest
        .map(|us| format!("{:.1}", us as f64 / 1000.0))
        .collect();
    eprintln!(
        "{what}: {} answers; longest gaps, ms: {}",
        gaps.len() + 1,
        longest.join(" ")
    );
}

async fn a_capture_is_seen(machine: MachineType) -> anyhow::Result<()> {
    let mut host = Host::new()?;
    host.port = true;
    let mut random = Random::new(machine.name())?;
    let shape = Shape { machine, cpus: 1 };
    let mut parent = host.boot("parent", shape, "fp.echo fp.pulse").await?;
    let mut at_parent = Witness::start(&host, "parent", "parent").await?;
    at_parent.answered(Instant::now()).await?;
    let mut captures = Vec::new();
    for round in 0..ROUNDS {
        random.moment(Duration::from_millis(300)).await;
        let name = format!("live{round}");
        let from = Instant::now();
        let captured = host
            .capture(&mut parent, &name, Mode::Auto, true, Afterwards::GoOn)
            .await?;
        at_parent.answered(Instant::now()).await?;
        captures.push((from, Instant::now(), captured.report.pause));
    }

    let captured = host
        .capture(&mut parent, "held", Mode::Auto, true, Afterwards::Hold)
        .await?;
    let held = Instant::now();
    let made_of = Expected {
        base: captured.base.clone(),
        layers: captured.layers.clone(),
        hardware: captured.hardware.clone(),
    };
    let mut child = host.wait("child", &made_of, shape).await?;
    // Somebody must listen before the load: the guest is in the middle of answering.
    let mut at_child = Witness::start(&host, "child", "child").await?;
    let stream = host.checked("held", &captured).await?;
    child.load(&stream).await?;
    child.resume().await?;
    at_child.answered(Instant::now()).await?;
    let until = Instant::now();
    parent.resume().await?;
    at_parent.answered(Instant::now()).await?;

    let (of_parent, of_child) = (at_parent.end().await?, at_child.end().await?);
    let mut more = Vec::new();
    for (from, to, pause) in captures {
        let seen = longest_within(&of_parent, from, to);
        eprintln!("a pause of {pause:.1?} by QEMU; {seen:.1?} without an answer");
        more.push(seen.saturating_sub(pause));
    }
    more.sort_unstable();
    let usual = of_parent[of_parent.len() / 2].length();
    eprintln!(
        "{ROUNDS} captures: {:.1?} more without an answer than QEMU says (median; {:.1?} at most), {:.1?} more than that and the \
         {usual:.1?} that an answer takes at any time",
        more[more.len() / 2],
        more[more.len() - 1],
        more[more.len() / 2].saturating_sub(usual),
    );
    print("parent", &of_parent);
    print("child", &of_child);
    // What was under way when the guest stopped still comes, in one piece or two.
    let seen = longest_within(&of_parent, held, until);
    assert!(
        seen >= (until - held) / 3,
        "the guest stood still for {:?}, and the longest gap is {seen:?}",
        until - held
    );
    child.kill().await?;
    parent.kill().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_of_a_microvm_is_seen_from_outside() -> anyhow::Result<()> {
    a_capture_is_seen(MachineType::Microvm).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_of_a_q35_is_seen_from_outside() -> anyhow::Result<()> {
    a_capture_is_seen(MachineType::Q35).await
}
