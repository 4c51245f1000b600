//! Disk chains of real guests stay short, and mean what they meant: layers are merged while the guest writes and while it is
//! captured, and a merge that is interrupted or fails leaves the chain as it was.
//!
//! Needs what `engine.rs` needs, and `mount` for the test of a full disk.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use qemu::{
    capture::{Afterwards, Captured, Mode},
    disk,
    machine::Machine,
    merge::{Happened, INHERITED_LIMIT, OWN_LIMIT},
    record::{LayerName, StreamName, VmName, VmRecord},
    spec::{self, Start},
};
use serde_json::Value;
use support::{DISK, Host, compare, merge};
use tokio::time::Instant;

const IMAGE: &str = "disk.qcow2";
const PATIENCE: Duration = Duration::from_secs(60);

fn names(names: &[&str]) -> Vec<LayerName> {
    names.iter().map(|name| LayerName((*name).into())).collect()
}

/// A chain as `qemu-img` takes it: read-only, and without names, since it opens two of them at once.
fn source(layers: &[LayerName]) -> String {
    let mut chain = spec::disk_chain(&disk::chain(layers, Some(IMAGE)), None);
    let mut node = &mut chain;
    while let Some(options) = node.as_object_mut() {
        options.remove("node-name");
        options.insert("read-only".into(), true.into());
        node = &mut node["backing"];
    }
    format!("json:{chain}")
}

/// Two chains, of which nobody writes, hold the same.
fn same(host: &Host, one: &[LayerName], other: &[LayerName]) -> anyhow::Result<()> {
    let output = Command::new("qemu-img")
        .args(["compare", "-U", &source(one), &source(other)])
        .current_dir(host.engine.layout.root())
        .output()?;
    ensure!(
        output.status.success(),
        "{one:?} and {other:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Begins a merge and does not wait for it.
async fn begin(machine: &mut Machine, into: &str) -> anyhow::Result<()> {
    machine.want_merge();
    ensure!(machine.is_merging(), "there is nothing to merge");
    ensure!(matches!(machine.happened().await, Happened::Merge));
    machine.go_on_merging(LayerName(into.into())).await?;
    ensure!(machine.record().merge.is_some());
    Ok(())
}

/// Captures a guest that writes its disk so often that its chain is too long.
async fn long_chain(host: &Host, machine: &mut Machine) -> anyhow::Result<Vec<LayerName>> {
    let mut all = names(&[&machine.record().layers[0].0]);
    for number in 0..=OWN_LIMIT {
        capture(host, machine, &format!("s{number}")).await?;
        all.insert(0, LayerName(format!("after-s{number}")));
    }
    ensure!(machine.record().layers == all);
    Ok(all)
}

/// Captures a guest, once it has written its disk.
async fn capture(host: &Host, machine: &mut Machine, name: &str) -> anyhow::Result<Captured> {
    let top = host.engine.layout.layer(&machine.record().layers[0]);
    let before = fs::metadata(&top)?.len();
    let deadline = Instant::now() + PATIENCE;
    while fs::metadata(&top)?.len() == before && machine.record().layers.len() > 1 {
        ensure!(Instant::now() < deadline, "the guest writes nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(host
        .capture(machine, name, Mode::Auto, true, Afterwards::GoOn)
        .await?)
}

fn node_names(machine: &Machine) -> anyhow::Result<Vec<String>> {
    let fds = fs::read_dir(format!("/proc/{}/fd", machine.process().pid))?;
    let mut open: Vec<String> = fds
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|path| Some(path.to_str()?.split_once("/layers/")?.1.to_owned()))
        .collect();
    open.sort();
    open.dedup();
    Ok(open)
}

/// What QEMU has open is the chain that the record has, and nothing else.
fn only_the_chain_is_open(machine: &Machine) -> anyhow::Result<()> {
    let record = machine.record();
    let mut wanted: Vec<String> = record
        .layers_with_next()
        .iter()
        .map(|layer| format!("{layer}.qcow2"))
        .collect();
    wanted.sort();
    ensure!(node_names(machine)? == wanted, "{:?}", node_names(machine)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_captures_of_a_busy_guest_leave_a_short_chain_that_means_the_same()
-> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = host.boot("vm", 1, "fp.pulse fp.churn-disk").await?;
    let (mut longest, mut number, mut steps) = (0, 0, 0);
    let (mut all, mut captured) = (names(&["vm"]), Vec::new());
    for round in 0..40 {
        let name = format!("s{round}");
        let one = capture(&host, &mut vm, &name).await?;
        captured.push((all.clone(), one.layers.clone()));
        longest = longest.max(one.layers.len());
        if one.layer_bytes > 0 {
            all.insert(0, LayerName(format!("after-{name}")));
        }
        let until = Instant::now() + Duration::from_millis(150);
        steps += merge(&mut vm, &mut number, Some(until)).await?;
    }
    steps += merge(&mut vm, &mut number, None).await?;
    eprintln!(
        "{} layers made, {steps} steps of merges, at most {longest} in a snapshot, {} in the end",
        all.len(),
        vm.record().layers.len()
    );
    assert!(all.len() > 30, "the guest did not write its disk");
    assert!(vm.record().layers.len() <= OWN_LIMIT + 1);
    assert!(longest <= 2 * OWN_LIMIT + 2, "{longest}");
    only_the_chain_is_open(&vm)?;
    vm.kill().await?;
    for (whole, short) in &captured {
        same(&host, whole, short)?;
    }
    same(&host, &all, &vm.record().layers)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_come_between_a_merge_and_a_fork_of_them_runs() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = host.boot("vm", 1, "fp.pulse").await?;
    let mut all = long_chain(&host, &mut vm).await?;
    begin(&mut vm, "m1").await?;
    // Two more layers come on top before the merged one is put below them.
    for name in ["between1", "between2"] {
        let captured = capture(&host, &mut vm, name).await?;
        assert_eq!(captured.layers, all, "the chain is as it was");
        all.insert(0, LayerName(format!("after-{name}")));
    }
    let mut number = 0;
    // What is prepared is not changed under those who wait for it.
    vm.prepare(
        &StreamName("held".into()),
        &LayerName("after-held".into()),
        DISK,
        Mode::Auto,
    )
    .await?;
    merge(
        &mut vm,
        &mut number,
        Some(Instant::now() + Duration::from_secs(2)),
    )
    .await?;
    assert_eq!(vm.record().layers, all);
    vm.release(&StreamName("held".into()))?;
    merge(&mut vm, &mut number, None).await?;
    let chain = vm.record().layers.clone();
    assert!(chain.len() <= OWN_LIMIT + 1, "{chain:?}");
    assert!(chain.contains(&LayerName("m1".into())));
    // What it replaced may belong to a snapshot that is not known yet, and stays until it is.
    let held: Vec<LayerName> = vm.record().replaced.clone();
    assert!(held.contains(&LayerName("after-s0".into())), "{held:?}");
    for stream in (0..=OWN_LIMIT)
        .map(|number| format!("s{number}"))
        .chain(["between1".into(), "between2".into()])
    {
        vm.release(&StreamName(stream))?;
    }
    assert!(vm.record().replaced.is_empty());
    let merged = fs::metadata(host.engine.layout.layer(&LayerName("m1".into())))?;
    assert_eq!((merged.uid(), merged.mode() & 0o777), (0, 0o440));

    let captured = host
        .capture(&mut vm, "last", Mode::Auto, true, Afterwards::Hold)
        .await?;
    let mut child = host.load("child", &captured, "last").await?;
    assert_eq!(compare(&mut vm, &mut child).await?, Vec::<u32>::new());
    child.resume().await?;
    assert!(child.is_running().await?);
    capture(&host, &mut child, "of-child").await?;
    child.kill().await?;
    vm.kill().await?;
    same(&host, &all, &chain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_away_takes_a_merge_up_again() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = host.boot("vm", 1, "fp.pulse").await?;
    let all = long_chain(&host, &mut vm).await?;
    begin(&mut vm, "m1").await?;
    let record = vm.record().clone();
    drop(vm);
    let mut vm = host.adopt("vm", record).await?.context("it runs on")?;
    assert!(vm.is_merging());
    merge(&mut vm, &mut 0, None).await?;
    let chain = vm.record().layers.clone();
    assert!(
        chain.contains(&LayerName("m1".into())),
        "it went on: {chain:?}"
    );
    only_the_chain_is_open(&vm)?;

    // One that was noted and never begun is forgotten, with its file.
    let layout = &host.engine.layout;
    let unborn = LayerName("m2".into());
    vm.update_record(|record| {
        record.merge = Some(qemu::record::Merge {
            into: unborn.clone(),
            layers: record.layers[1..].to_vec(),
        });
    })?;
    host.engine
        .overlays
        .create(&unborn, DISK, vm.record().user)?;
    let record = vm.record().clone();
    drop(vm);
    let mut vm = host.adopt("vm", record).await?.context("it runs on")?;
    assert_eq!((&vm.record().merge, &vm.record().layers), (&None, &chain));
    assert!(!layout.layer(&unborn).exists());
    assert!(vm.is_running().await?);
    vm.kill().await?;
    same(&host, &all, &chain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_that_dies_with_its_process_changes_nothing() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = host.boot("vm", 1, "fp.pulse").await?;
    let all = long_chain(&host, &mut vm).await?;
    begin(&mut vm, "m1").await?;
    vm.kill().await?;
    drop(vm);
    let dir = host.engine.layout.vm(&VmName("vm".into()));
    let record = VmRecord::load(&dir)?.context("it has a record")?;
    assert_eq!(record.layers, all);
    assert!(record.layer_files().any(|layer| layer.0 == "m1"));
    // It starts again from what the record says, and the half of a layer is nobody's.
    let mut launch = host.launch("vm", 1.into());
    (launch.layers, launch.new_layer) = (record.layers_with_next(), false);
    launch.start = Start::Boot {
        kernel: "images/vmlinuz".into(),
        initrd: Some("images/initrd".into()),
        cmdline: host.cmdline.clone(),
    };
    let mut vm = Machine::launch(&host.engine, launch).await?;
    assert!(vm.record().layer_files().all(|layer| layer.0 != "m1"));
    vm.kill().await?;
    Ok(())
}

/// A file system of its own for a host's layers.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(host: &Host) -> anyhow::Result<Self> {
        let folder = host.engine.layout.layers();
        let about = fs::metadata(&folder)?;
        let options = format!(
            "size=192m,mode={:o},uid={},gid={}",
            about.mode() & 0o7777,
            about.uid(),
            about.gid()
        );
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&folder)
            .status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a test that failed leaves its guests for the host to end.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(
            std::thread::panicking() || unmounted.is_ok_and(|status| status.success()),
            "{} stays mounted",
            self.0.display()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_the_merge_and_nothing_else() -> anyhow::Result<()> {
    let host = Host::new()?;
    let small = Small::mount(&host)?;
    let mut vm = host.boot("vm", 1, "fp.pulse fp.churn-disk").await?;
    let all = long_chain(&host, &mut vm).await?;
    // The guest itself must not meet the full disk.
    vm.pause().await?;
    let filler = File::create(small.0.join("filler"))?;
    let free = {
        let about = rustix::fs::statvfs(&small.0)?;
        about.f_bavail * about.f_frsize
    };
    let room = 256 << 10;
    rustix::fs::fallocate(
        &filler,
        rustix::fs::FallocateFlags::empty(),
        0,
        free.saturating_sub(room),
    )?;
    begin(&mut vm, "m1").await?;
    let error = merge(&mut vm, &mut 0, None).await.unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!((&vm.record().merge, &vm.record().layers), (&None, &all));
    assert!(!host.engine.layout.layer(&LayerName("m1".into())).exists());
    only_the_chain_is_open(&vm)?;
    // It is not tried again and again.
    vm.want_merge();
    assert!(!vm.is_merging());

    filler.set_len(0)?;
    vm.resume().await?;
    capture(&host, &mut vm, "room").await?;
    merge(&mut vm, &mut 10, None).await?;
    assert!(vm.record().layers.len() <= OWN_LIMIT + 1);
    vm.kill().await?;
    let mut whole = all;
    whole.insert(0, LayerName("after-room".into()));
    same(&host, &whole, &vm.record().layers)?;
    drop(small);
    Ok(())
}

/// Zeros that hide data below them, whether they were written or discarded, are still zeros when their layer is merged. Also
/// without an image below, where a merge may reach the bottom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_and_discards_hide_what_is_below() -> anyhow::Result<()> {
    let host = Host::new()?;
    let commands = [
        "write -P 1 100M 48M",
        "write -z 101M 1M",
        "discard 103M 1M",
        "write -P 2 101512k 4k",
        "write -P 3 110M 3M",
        "discard 111M 64k",
        "write -z 112M 4k",
        "write -P 4 120M 64k",
        "write -P 5 500M 64k",
    ];
    assert!(commands.len() > INHERITED_LIMIT);
    host.engine.overlays.prepare(DISK).await?;
    let mut layers: Vec<LayerName> = Vec::new();
    for (number, command) in commands.iter().enumerate() {
        let name = LayerName(format!("l{number}"));
        host.engine.overlays.create(&name, DISK, None)?;
        layers.insert(0, name.clone());
        let chain = spec::disk_chain(&disk::chain(&layers, Some(IMAGE)), None);
        let status = Command::new("qemu-io")
            .args(["-c", command, &format!("json:{chain}")])
            .current_dir(host.engine.layout.root())
            .output()?;
        ensure!(status.status.success(), "{command}: {status:?}");
        rustix::fs::chown(
            host.engine.layout.layer(&name),
            None,
            host.launch("vm", 1.into())
                .user
                .map(|(_, gid)| rustix::fs::Gid::from_raw(gid)),
        )?;
        host.engine.overlays.freeze(&name)?;
    }
    let mut launch = host.launch("vm", 1.into());
    launch.layers.extend(layers.clone());
    launch.start = Start::Boot {
        kernel: "images/vmlinuz".into(),
        initrd: Some("images/initrd".into()),
        cmdline: host.cmdline.clone(),
    };
    let mut vm = Machine::launch(&host.engine, launch).await?;
    vm.claim()?;
    merge(&mut vm, &mut 0, None).await?;
    let chain = vm.record().layers.clone();
    assert!(chain.len() <= INHERITED_LIMIT + 1, "{chain:?}");
    only_the_chain_is_open(&vm)?;
    vm.kill().await?;
    same(&host, &layers, &chain[1..])?;

    // The merged layer says no word of what lies below it: the record does.
    let merged = chain
        .iter()
        .find(|layer| layer.0.starts_with("merged"))
        .context("nothing was merged")?;
    let mut header = [0; 24];
    File::open(host.engine.layout.layer(merged))?.read_exact_at(&mut header, 0)?;
    assert_eq!(
        u32::from_be_bytes([header[16], header[17], header[18], header[19]]),
        0,
        "it names a backing file"
    );
    let info = Command::new("qemu-img")
        .args(["info", "--output=json", "-f", "qcow2"])
        .arg(host.engine.layout.layer(merged))
        .output()?;
    let info: Value = serde_json::from_slice(&info.stdout)?;
    assert!(info["full-backing-filename"].is_null(), "{info}");
    Ok(())
}
