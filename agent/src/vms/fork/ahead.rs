//! What may be done ahead of an operation: preparing the capture, and starting children's processes.

use std::{sync::Arc, time::Duration};

use qemu::machine::Shape;
use raft::state::{CaptureMode, OperationId, State, VmId, VmSpec};
use tokio::time::timeout;

use super::{Parts, Prepared, Source, Starting, engine_mode, fresh_file};
use crate::{
    errors::chain,
    node::Node,
    vms::{
        command::Command,
        launch::{self, Child, Kind},
        pool::Blank,
    },
};

/// How long a process that is killed may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What may be done ahead: prepare the capture, and start the children's processes with what it will refer to.
pub(super) async fn prepare(
    node: &Arc<Node>,
    state: &State,
    operation: OperationId,
    source: Source,
    mut children: Vec<u32>,
    mode: CaptureMode,
) -> Result<Prepared, String> {
    let (mut capture, mut ready) = (None, None);
    let (parts, hardware, spec) = match source {
        Source::Vm(id) => {
            let vm = state.vms.get(&id).ok_or("the VM is not known here yet")?;
            if vm.node != node.id() {
                // What it will refer to is not here.
                return match children.is_empty() {
                    true => Ok(Prepared::default()),
                    false => expect_elsewhere(node, state, vm.lineage, &vm.spec),
                };
            }
            let handle = node.vms.get(id).ok_or("the VM is not here")?;
            let stream = launch::stream_name(fresh_file(operation));
            capture = Some((id, stream.clone()));
            let (disk_bytes, mode) = (vm.spec.disk_bytes, engine_mode(mode));
            let asked = stream.clone();
            let expected = handle
                .ask(|done| Command::Expect {
                    stream: asked,
                    disk_bytes,
                    done,
                })
                .await
                .map_err(|error| error.to_string())?
                .map_err(|error| chain(&error))?;
            // Beside the starting of processes; the capture comes after it in the VM's queue, and meets whatever it met.
            handle
                .tell(Command::Prepare {
                    stream,
                    layer: launch::layer_name(fresh_file(operation)),
                    disk_bytes,
                    mode,
                })
                .await
                .map_err(|error| error.to_string())?;
            let parts = Parts {
                base: expected.base,
                layers: expected.layers,
            };
            (parts, Ok(expected.hardware), vm.spec.clone())
        }
        Source::Snapshot(id) => {
            let snapshot = state
                .snapshots
                .get(&id)
                .ok_or("the snapshot is not known here yet")?;
            let content = snapshot
                .content
                .as_ref()
                .ok_or("the snapshot is not ready")?;
            if !snapshot.nodes.contains(&node.id()) {
                return match children.is_empty() {
                    true => Ok(Prepared::default()),
                    false => expect_elsewhere(node, state, snapshot.lineage, &snapshot.spec),
                };
            }
            node.store.check_usable(id, content)?;
            let hardware = launch::snapshot_hardware(&snapshot.spec, content, &node.fitness);
            ready = Some((id, node.pool.take(id, children.len() as u32)));
            (Parts::of(content), hardware, snapshot.spec.clone())
        }
    };
    let hardware = hardware.map_err(|error| error.to_string())?;
    let start = |number| {
        let child = Child {
            id: operation.child(number),
            boot: 1,
            spec: spec.clone(),
        };
        let (context, parts, hardware) = (Arc::clone(node), parts.clone(), hardware.clone());
        let with = parts.clone();
        let started = node
            .tasks
            .spawn(async move { start_child(&context, &child, hardware, &with).await });
        (number, Starting { parts, started })
    };
    let there = ready.as_ref().map_or(0, |(_, members)| members.len());
    // Those that are ready become the last ones.
    children.truncate(children.len().saturating_sub(there));
    Ok(Prepared {
        capture,
        ready,
        expected: None,
        starting: children.into_iter().map(start).collect(),
    })
}

/// Has a process without a shape wait for a child of what is on another node.
fn expect_elsewhere(
    node: &Arc<Node>,
    state: &State,
    lineage: VmId,
    spec: &VmSpec,
) -> Result<Prepared, String> {
    let lineage = node.reserve_lineage(state, lineage)?;
    let hardware = launch::hardware(state, spec, &node.fitness);
    let kind = hardware.and_then(|hardware| Kind::of(state, spec, hardware, lineage.group()));
    let kind = kind.map_err(|error| error.to_string())?;
    let context = Arc::clone(node);
    let waiting = node
        .tasks
        .spawn(async move { context.pool.expect_blank(&context, kind).await });
    Ok(Prepared {
        expected: Some((waiting, lineage)),
        ..Prepared::default()
    })
}

/// Makes a process that waited without a shape a child's, which then waits for its stream.
async fn give_shape(
    node: &Arc<Node>,
    blank: &Blank,
    child: &Child,
    parts: &Parts,
) -> Result<(), String> {
    let shape = Shape {
        base: parts.base.clone(),
        below: parts.layers.clone(),
        disk_bytes: child.spec.disk_bytes,
    };
    if !node.vms.rename(blank.id, child.id) {
        return Err("there is something of the child already".to_owned());
    }
    blank
        .handle
        .ask(|done| Command::Shape {
            shape: Box::new(shape),
            done,
        })
        .await
        .map_err(|error| error.to_string())?
}

/// Starts a child's process, which then waits for its stream: one that waited without a shape, if there is one of its kind.
pub async fn start_child(
    node: &Arc<Node>,
    child: &Child,
    hardware: qemu::spec::Hardware,
    parts: &Parts,
) -> Result<(), String> {
    let _turn = node.forks.turn().await?;
    let state = node.state();
    let lineage = node
        .vms
        .lineage_of(&parts.base)
        .map_err(|error| chain(&error))?;
    let kind = Kind::of(&state, &child.spec, hardware.clone(), lineage)
        .map_err(|error| error.to_string())?;
    if let Some(blank) = node.pool.take_blank(&kind) {
        match give_shape(node, &blank, child, parts).await {
            Ok(()) => return Ok(()),
            Err(problem) => {
                tracing::warn!(vm = %child.id, problem, "a process that waited is of no use; starting another");
                // One that is gone has nothing left.
                let _gone = blank.handle.tell(Command::Destroy).await;
                timeout(ENDS_WITHIN, blank.handle.gone())
                    .await
                    .map_err(|_| format!("{problem}; and its process does not end"))?;
            }
        }
    }
    start(node, &state, child, hardware, parts).await
}

/// Starts a process for a child that nobody waits for, where what waits is left for those that somebody does.
pub async fn start_new_child(
    node: &Arc<Node>,
    child: &Child,
    hardware: qemu::spec::Hardware,
    parts: &Parts,
) -> Result<(), String> {
    let _turn = node.forks.turn().await?;
    start(node, &node.state(), child, hardware, parts).await
}

async fn start(
    node: &Arc<Node>,
    state: &State,
    child: &Child,
    hardware: qemu::spec::Hardware,
    parts: &Parts,
) -> Result<(), String> {
    let handle = node
        .vms
        .lineage_of(&parts.base)
        .and_then(|lineage| node.vms.get_or_create(child.id, lineage))
        .map_err(|error| chain(&error))?;
    let place = handle.place();
    let launch = launch::restore(
        state,
        child,
        hardware,
        place,
        parts.base.clone(),
        &parts.layers,
    )
    .map_err(|error| error.to_string())?;
    handle
        .ask(|done| Command::Prestart {
            launch: Box::new(launch),
            done,
        })
        .await
        .map_err(|error| error.to_string())?
}
