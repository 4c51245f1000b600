//! Doing what was planned. Nothing here waits: VMs have their tasks, everything else becomes one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    sync::{Arc, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use qemu::{
    failpoint,
    machine::Engine,
    record::{VmName, VmRecord},
};
use raft::state::{
    Command as Change, Forgotten, ObjectId, OperationKind, OperationState, SnapshotId, State, VmId,
};
use tokio::time::Instant;

use super::{
    collect::{Files, referenced, unreferenced},
    plan::Action,
};
use crate::{
    admission,
    errors::chain,
    node::Node,
    store::work::{self, Work},
    vms::{VmHandle, command::Command, launch, network, vm_name},
};

/// How long a report may take.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);
/// After one that did not get through.
const REPORT_PAUSE: Duration = Duration::from_millis(250);

/// Begins with an action.
pub fn execute(node: &Arc<Node>, state: &Arc<State>, action: Action) {
    match action {
        Action::FetchImage(image) => node.begin_fetch(image),
        Action::FetchSnapshot(snapshot) => node.begin_obtaining(snapshot),
        Action::Boot { vm, boot } => start(node, vm, boot, None, |handle| {
            boot_command(node, state, vm, handle)
        }),
        Action::Restore {
            vm,
            boot,
            snapshot,
            paused,
        } => {
            start(node, vm, boot, Some(snapshot), |handle| {
                restore_command(node, state, vm, snapshot, paused, handle)
            });
        }
        Action::Pause(vm) => act(node, vm, Command::Pause),
        Action::Resume(vm) => act(node, vm, Command::Resume),
        Action::Stop(vm) => act(node, vm, Command::Stop),
        Action::Kill(vm) => act(node, vm, Command::Kill),
        Action::Destroy(vm) => act(node, vm, Command::Destroy),
        Action::Plug(vm) => network::plug_soon(node, state, vm),
        Action::Run(operation) => node.forks.run(node, operation),
        Action::GiveUp {
            operation,
            running: true,
            ..
        } => node.forks.cancel(operation),
        Action::GiveUp {
            operation,
            reason,
            cancelled,
            running: false,
        } => {
            report(
                node,
                Change::FailOperation {
                    operation,
                    reason,
                    cancelled,
                },
            );
        }
        Action::Report(reports) => report(
            node,
            Change::ReportVms {
                node: node.id(),
                reports,
            },
        ),
        Action::Secure(snapshot) => work::begin(node, state, Work::Secure, snapshot),
        Action::Verify(snapshot) => work::begin(node, state, Work::Verify, snapshot),
        Action::ReportLost { snapshot, reason } => report_lost(node, state, snapshot, reason),
        Action::Collect(objects) => collect(node, objects),
    }
}

fn act(node: &Node, vm: VmId, command: Command) {
    if let Some(handle) = node.vms.get(vm) {
        // One that is not taken now is planned again.
        handle.act(command);
    }
}

/// A snapshot is lost for good. So it is only reported when the state, read after a barrier, has it as it was planned for: one that an agent
/// starts with may not tell yet that its files are on disk.
fn report_lost(node: &Arc<Node>, state: &State, snapshot: SnapshotId, reason: String) {
    let planned_for = state.snapshots.get(&snapshot).cloned();
    let context = Arc::clone(node);
    node.tasks.spawn(async move {
        let deadline = Instant::now() + REPORT_PATIENCE;
        if let Err(error) = context.raft.read_barrier(deadline).await {
            tracing::debug!(%error, "a lost snapshot is not reported yet; the next plan repeats it");
            return;
        }
        if context.state().snapshots.get(&snapshot) == planned_for.as_ref() {
            let node = context.id();
            report(
                &context,
                Change::LostSnapshot {
                    snapshot,
                    node,
                    reason,
                },
            );
        }
    });
}

/// Reports are idempotent, and the next plan repeats one that did not get through: it is tried once.
pub(super) fn report(node: &Arc<Node>, change: Change) {
    let context = Arc::clone(node);
    if !node.begin_report() {
        return;
    }
    node.tasks.spawn(async move {
        let deadline = Instant::now() + REPORT_PATIENCE;
        if let Err(error) = context.propose(None, change, deadline).await {
            tracing::debug!(%error, "a report did not get through; the next plan repeats it");
            // Without a leader the next one would fail at once, and the next.
            tokio::time::sleep(REPORT_PAUSE).await;
        }
        context.end_report();
    });
}

/// Starts a VM: in the lineage of a snapshot, or in its own.
fn start(
    node: &Arc<Node>,
    vm: VmId,
    boot: u64,
    snapshot: Option<SnapshotId>,
    command: impl FnOnce(&VmHandle) -> Result<Command, String>,
) {
    let state = node.state();
    let content = snapshot.and_then(|id| state.snapshots.get(&id)?.content.as_ref());
    // What came with it from another node.
    let disk = state.vms.get(&vm).and_then(|vm| vm.disk.as_ref());
    let lineage = match (content, disk.and_then(|disk| disk.first())) {
        _ if node.vms.get(vm).is_some() => Ok(None),
        (Some(content), _) => node.vms.lineage_of(&launch::base_name(content.base)),
        (None, Some(layer)) => node.vms.lineage_of_layer(&launch::layer_name(*layer)),
        (None, None) => Ok(None),
    };
    let no_user = match lineage.and_then(|lineage| node.vms.get_or_create(vm, lineage)) {
        Ok(handle) => {
            let command = command(&handle).unwrap_or_else(|problem| {
                tracing::warn!(%vm, problem, "a VM cannot be started");
                Command::CannotStart { boot, problem }
            });
            handle.act(command);
            return;
        }
        Err(no_user) => chain(&no_user),
    };
    tracing::warn!(%vm, no_user, "a VM cannot be started");
    let failed = raft::state::VmReport {
        vm,
        boot,
        phase: raft::state::Phase::Failed,
        reason: no_user,
        ending: None,
        restarts: 0,
        next_start: None,
    };
    report(
        node,
        Change::ReportVms {
            node: node.id(),
            reports: vec![failed],
        },
    );
}

fn boot_command(
    node: &Node,
    state: &State,
    vm: VmId,
    handle: &VmHandle,
) -> Result<Command, String> {
    let spec = state.vms.get(&vm).ok_or("it was deleted")?;
    let record = VmRecord::load(&node.vms.engine().layout.vm(&vm_name(vm)))
        .map_err(|error| chain(&error))?;
    let layers = record.as_ref().map(VmRecord::layers_with_next);
    let has_run = record.as_ref().is_some_and(|record| record.has_run);
    let mut launch = launch::boot(state, spec, &node.fitness, handle.place(), layers, has_run)
        .map_err(|error| error.to_string())?;
    if let (None, Some(disk)) = (&record, &spec.disk) {
        launch = launch::on_disk(launch, disk);
    }
    node.admit(admission::boot(spec.spec.memory_bytes))?;
    let patience = launch::image(state, &spec.spec)
        .map(launch::patience)
        .map_err(|error| error.to_string())?;
    Ok(Command::Boot {
        launch: Box::new(launch),
        patience,
    })
}

fn restore_command(
    node: &Node,
    state: &State,
    vm: VmId,
    snapshot: SnapshotId,
    paused: bool,
    handle: &VmHandle,
) -> Result<Command, String> {
    let spec = state.vms.get(&vm).ok_or("it was deleted")?;
    let missing = || launch::Unfit::NoSnapshot(snapshot).to_string();
    let record = state.snapshots.get(&snapshot).ok_or_else(missing)?;
    let content = record.content.as_ref().ok_or_else(missing)?;
    if record.nodes.is_empty() {
        return Err(format!(
            "its snapshot {snapshot} is on no node any more: {}",
            record.lost
        ));
    }
    let below: Vec<_> = content
        .layers
        .iter()
        .copied()
        .map(launch::layer_name)
        .collect();
    let launch = launch::snapshot_hardware(&record.spec, content, &node.fitness)
        .and_then(|hardware| {
            launch::restore(
                state,
                &launch::Child::of(spec),
                hardware,
                handle.place(),
                launch::base_name(content.base),
                &below,
            )
        })
        .map_err(|error| error.to_string())?;
    Ok(Command::Restore {
        launch: Box::new(launch),
        stream: launch::stream(content),
        paused,
    })
}

/// Removes files that nothing refers to, and says that these objects are gone from here.
fn collect(node: &Arc<Node>, objects: Vec<ObjectId>) {
    if !node.begin_collection() {
        return;
    }
    let context = Arc::clone(node);
    node.tasks.spawn(async move {
        match sweep(&context).await {
            Ok(()) => {
                failpoint::reached("remove.swept");
                context
                    .report(Change::Purged {
                        node: context.id(),
                        objects,
                    })
                    .await;
                failpoint::reached("remove.purged");
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "files could not be collected; trying again")
            }
        }
        context.end_collection();
        context.wake.notify_one();
    });
}

/// Collecting did not work.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// There is no quorum: what is not known to be unreferenced stays.
    #[error("the state's latest version cannot be had")]
    Barrier(#[from] raft::node::ReadError),
    /// A file could not be looked at or removed.
    #[error("a file cannot be removed")]
    Io(#[from] io::Error),
    /// A VM's record cannot be read: what it refers to is not known.
    #[error(transparent)]
    Record(#[from] qemu::record::RecordError),
}

/// Removes what the state, read after a barrier, and the VMs of this node do not refer to.
///
/// The order keeps what is made, or referred to by another, meanwhile. Files are looked at before the operations that are under way: one
/// that begins after that has none among them, one that ends after that has its files in the state. What a VM refers to is looked at
/// before the state and after it: a capture gives it from a VM to a snapshot, a fork from a snapshot to a VM.
pub async fn sweep(node: &Arc<Node>) -> Result<(), SweepError> {
    let engine = Arc::clone(node.vms.engine());
    let looking = Arc::clone(&engine);
    let look = move || {
        let layout = &looking.layout;
        let mut images = names(&layout.images(), "")?;
        images.retain(|name| !name.ends_with(".part"));
        let there = Files {
            bases: names(&layout.bases(), "")?,
            streams: names(&layout.streams(), "")?,
            layers: names(&layout.layers(), ".qcow2")?,
            images,
        };
        Ok::<_, SweepError>((there, records(&looking)?))
    };
    let (mut there, before) = blocking(look).await?;
    if node.importing.load(std::sync::atomic::Ordering::Acquire) > 0 {
        there.images.clear();
    }
    // What is being fetched, too, which is told before it is forgotten there.
    let coming = node.transfers.wanted();
    let mut in_flight = node.forks.in_flight();
    node.raft
        .read_barrier(Instant::now() + Duration::from_secs(5))
        .await?;
    let (state, id) = (node.state(), node.id());
    // What a VM's new node is given stays until it is known where the VM lives, whatever agent is lost.
    let moves = state.operations.values().filter(|operation| {
        operation.kind == OperationKind::Move && operation.state == OperationState::Open
    });
    in_flight.extend(moves.map(|operation| operation.id));
    let sweep = move || {
        let layout = &engine.layout;
        let forgotten = state.forgotten.as_ref();
        let mut free = there.without(&coming);
        for records in [before, records(&engine)?] {
            let referenced = referenced(&state, id, &records);
            free = unreferenced(&free, &referenced, &in_flight, forgotten);
        }
        if let Some(forgotten) = forgotten {
            free.images
                .retain(|image| !is_of(forgotten, &layout.images().join(image)));
        }
        let all = [
            (layout.bases(), free.bases, ""),
            (layout.streams(), free.streams, ""),
            (layout.layers(), free.layers, ".qcow2"),
            (layout.images(), free.images, ""),
        ];
        for (folder, names, ending) in all {
            for name in names {
                tracing::debug!(folder = %folder.display(), name, "removing a file that nothing refers to");
                match fs::remove_file(folder.join(format!("{name}{ending}"))) {
                    // Whoever gave it up has removed it meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
                failpoint::reached("remove.file-removed");
            }
        }
        Ok(())
    };
    blocking(sweep).await
}

/// Looks at files, away from the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SweepError> + Send + 'static,
) -> Result<T, SweepError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// The records of the VMs that are here.
fn records(engine: &Engine) -> Result<BTreeMap<String, VmRecord>, SweepError> {
    // A folder that got another name between the two would be overlooked.
    let _names_stay = engine.naming.read().unwrap_or_else(PoisonError::into_inner);
    let mut records = BTreeMap::new();
    for name in names(&engine.layout.vms(), "")? {
        let record = VmRecord::load(&engine.layout.vm(&VmName(name.clone())))?;
        records.extend(record.map(|record| (name, record)));
    }
    Ok(records)
}

/// Whether a file was last written in a time that the state has forgotten.
fn is_of(forgotten: &Forgotten, file: &Path) -> bool {
    let written = fs::metadata(file).and_then(|metadata| metadata.modified());
    let at = written.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default());
    at.is_ok_and(|at| {
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        (forgotten.from..=forgotten.to).contains(&at)
    })
}

fn names(folder: &Path, ending: &str) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(ending)) {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}
