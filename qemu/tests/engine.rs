//! The engine against real QEMU guests: a child's memory is its parent's, byte for byte, however hard the guest writes, at
//! any depth and as often as one parent is forked.
//!
//! Needs root, QEMU, and the guest image that `deploy/build-image.sh tiny` makes, in `FP_TEST_IMAGE` or `.local/image/tiny`.

mod support;

use std::time::Duration;

use qemu::{
    capture::{Afterwards, Mode},
    record::{LayerName, StreamName},
};
use support::{DISK, Host, compare};

/// The guest writes all over its memory, zeroes pages, and writes to its disk, as fast as it can.
async fn exact_under_churn(cpus: u32) -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut parent = host.boot("parent", cpus, "fp.churn=64").await?;
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let name = format!("snap{round}");
        let captured = host
            .capture(&mut parent, &name, Mode::Auto, true, Afterwards::Hold)
            .await?;
        eprintln!("{cpus} vCPUs, capture {round}: {:?}", captured.report);
        let mut child = host
            .load(&format!("child{round}"), &captured, &name)
            .await?;
        assert_eq!(
            compare(&mut parent, &mut child).await?,
            Vec::<u32>::new(),
            "pages differ"
        );
        parent.resume().await?;
        child.resume().await?;
        assert!(child.is_running().await?);
        child.kill().await?;
    }
    parent.kill().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_is_exact_while_the_guest_writes_with_one_vcpu() -> anyhow::Result<()> {
    exact_under_churn(1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_is_exact_while_the_guest_writes_with_four_vcpus() -> anyhow::Result<()> {
    exact_under_churn(4).await
}

/// A fork of a fork of a fork, and one parent forked again and again: each exact, and the stream stays small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn depth_and_repetition_cost_nothing() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = host.boot("vm0", 1, "fp.pulse").await?;
    let mut sizes = Vec::new();
    for depth in 1..=5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let name = format!("depth{depth}");
        let captured = host
            .capture(&mut vm, &name, Mode::Auto, true, Afterwards::Hold)
            .await?;
        let mut child = host.load(&format!("vm{depth}"), &captured, &name).await?;
        assert_eq!(
            compare(&mut vm, &mut child).await?,
            Vec::<u32>::new(),
            "depth {depth}"
        );
        vm.kill().await?;
        child.resume().await?;
        vm = child;
        sizes.push(captured.stream_bytes);
    }
    for again in 0..6 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let name = format!("again{again}");
        let captured = host
            .capture(&mut vm, &name, Mode::Auto, true, Afterwards::GoOn)
            .await?;
        eprintln!("again {again}: {:?}", captured.report);
        assert!(
            !captured.report.new_base,
            "a little was written, and a new base was made"
        );
        assert!(captured.report.pause > Duration::ZERO);
        sizes.push(captured.stream_bytes);
    }
    assert!(
        sizes.iter().all(|size| *size < 16 << 20),
        "streams grow: {sizes:?}"
    );
    vm.kill().await?;
    Ok(())
}

/// A byte of the stream that changed on the way is an error, not a guest with wrong memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_stream_is_not_loaded() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut parent = host.boot("parent", 1, "fp.pulse").await?;
    let captured = host
        .capture(&mut parent, "one", Mode::Auto, true, Afterwards::GoOn)
        .await?;
    let path = host.engine.layout.stream(&StreamName("one".into()));
    let mut bytes = std::fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes)?;
    let Err(error) = host.load("child", &captured, "one").await else {
        anyhow::bail!("it was loaded");
    };
    assert!(
        error.to_string().contains("streams/one is damaged"),
        "{error}"
    );
    assert!(parent.is_running().await?);
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes)?;
    let mut child = host.load("whole", &captured, "one").await?;
    child.kill().await?;
    parent.kill().await?;
    Ok(())
}

/// Captures of one machine are prepared side by side, and only the last of them is kept: a child that was started ahead for
/// another one must still map the base that its capture makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_waits_maps_the_base_of_its_capture() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut parent = host.boot("parent", 1, "fp.pulse").await?;
    let (one, other) = (StreamName("one".into()), StreamName("other".into()));
    let expected = parent.expect(&one, DISK)?;
    let mut child = host.wait("child", &expected, 1).await?;
    for (stream, layer) in [(&one, "after-one"), (&other, "after-other")] {
        parent
            .prepare(stream, &LayerName(layer.into()), DISK, Mode::Auto)
            .await?;
    }
    let captured = host
        .capture(&mut parent, "one", Mode::Auto, true, Afterwards::Hold)
        .await?;
    assert_eq!(
        (&captured.base, &captured.layers),
        (&expected.base, &expected.layers)
    );
    let stream = host.checked("one", &captured).await?;
    child.load(&stream).await?;
    assert_eq!(
        compare(&mut parent, &mut child).await?,
        Vec::<u32>::new(),
        "pages differ"
    );
    child.kill().await?;
    parent.kill().await?;
    Ok(())
}

/// An agent that was away: what it did not see counts as written, what holds the base's content is dropped, and the child
/// is exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_guest_is_captured_exactly() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut parent = host.boot("parent", 1, "fp.pulse").await?;
    host.capture(&mut parent, "before", Mode::Auto, true, Afterwards::GoOn)
        .await?;
    let (record, pid) = (parent.record().clone(), parent.process());
    drop(parent);

    let mut parent = host.adopt("parent", record).await?.expect("it runs on");
    assert_eq!(parent.process(), pid);
    assert!(parent.is_running().await?);
    let captured = host
        .capture(&mut parent, "after", Mode::Auto, true, Afterwards::Hold)
        .await?;
    eprintln!("after adoption: {:?}", captured.report);
    assert_eq!(
        captured.base.0, "before",
        "most pages still hold what the base holds"
    );
    let mut child = host.load("child", &captured, "after").await?;
    assert_eq!(compare(&mut parent, &mut child).await?, Vec::<u32>::new());
    child.kill().await?;
    parent.kill().await?;
    Ok(())
}

/// Without write tracking everything is copied in the stop: slower, and as exact. Asking for more is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_write_tracking_captures_are_paused_and_exact() -> anyhow::Result<()> {
    let host = Host::with_tracking(false)?;
    let mut parent = host.boot("parent", 1, "fp.churn=16").await?;
    let refused = host
        .capture(&mut parent, "live", Mode::Live, true, Afterwards::GoOn)
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("cannot capture a VM while it runs")
    );
    for name in ["first", "second"] {
        let captured = host
            .capture(&mut parent, name, Mode::Auto, true, Afterwards::Hold)
            .await?;
        assert!(!captured.report.live);
        let mut child = host.load(&format!("child-{name}"), &captured, name).await?;
        assert_eq!(
            compare(&mut parent, &mut child).await?,
            Vec::<u32>::new(),
            "{name}"
        );
        child.kill().await?;
        parent.resume().await?;
    }
    parent.kill().await?;
    Ok(())
}
