//! What may be done ahead of an operation: preparing the capture, and starting children's processes.

use std::{collections::BTreeMap, sync::Arc};

use raft::state::{CaptureMode, OperationId, Snapshot, State, Vm, VmId};

use super::{Parts, Prepared, Source, Starting, content_parts, engine_mode, next_layer};
use crate::{
    errors::chain,
    node::Node,
    vms::{command::Command, launch},
};

/// What may be done ahead: prepare the capture, and start the children's processes with what it will refer to.
pub(super) async fn prepare(
    node: &Arc<Node>,
    state: &State,
    operation: OperationId,
    source: Source,
    count: u32,
    mode: CaptureMode,
) -> Result<Prepared, String> {
    let (parts, hardware, template) = match source {
        Source::Vm(id) => {
            let vm = state.vms.get(&id).ok_or("the VM is not known here yet")?;
            let handle = node.vms.get(id).ok_or("the VM is not here")?;
            let stream = launch::stream_name(operation.snapshot());
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
            let hardware = launch::hardware(&vm.spec, &node.fitness);
            // Beside the starting of processes; the capture comes after it in the VM's queue, and meets whatever it met.
            handle
                .tell(Command::Prepare {
                    stream,
                    layer: next_layer(operation),
                    disk_bytes,
                    mode,
                })
                .await
                .map_err(|error| error.to_string())?;
            let parts = Parts {
                base: expected.base,
                layers: expected.layers,
            };
            (parts, hardware, Arc::clone(vm))
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
            node.store.check_usable(id, content)?;
            let hardware = launch::snapshot_hardware(&snapshot.spec, content, &node.fitness);
            (
                content_parts(content),
                hardware,
                Arc::new(pseudo_vm(snapshot)),
            )
        }
    };
    let hardware = hardware.map_err(|error| error.to_string())?;
    let start = |number| {
        let mut child = Vm::clone(&template);
        child.id = operation.child(number);
        child.boot = 1;
        let (context, parts, hardware) = (Arc::clone(node), parts.clone(), hardware.clone());
        let with = parts.clone();
        let started = node
            .tasks
            .spawn(async move { start_child(&context, &child, hardware, &with).await });
        (number, Starting { parts, started })
    };
    Ok(Prepared {
        starting: (0..count).map(start).collect(),
    })
}

/// A VM to start children of a snapshot by: only what it is made of matters.
fn pseudo_vm(snapshot: &Snapshot) -> Vm {
    use raft::state::{Phase, Power, Source};
    Vm {
        id: VmId(0),
        name: String::new(),
        node: 0,
        spec: snapshot.spec.clone(),
        source: Source::Snapshot(snapshot.id),
        parent: None,
        labels: BTreeMap::new(),
        power: Power::Running,
        generation: 1,
        boot: 1,
        phase: Phase::Pending,
        reason: String::new(),
        reported_boot: 0,
        operation: None,
        created_at: 0,
    }
}

/// Starts a child's process, which then waits for its stream.
pub(super) async fn start_child(
    node: &Arc<Node>,
    child: &Vm,
    hardware: qemu::spec::Hardware,
    parts: &Parts,
) -> Result<(), String> {
    let _turn = node
        .forks
        .starts
        .acquire()
        .await
        .map_err(|error| error.to_string())?;
    let handle = node
        .vms
        .get_or_create(child.id)
        .map_err(|error| error.to_string())?;
    let place = handle.place();
    let state = node.state();
    let launch = launch::restore(
        &state,
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
