//! Virtual machines.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    check_labels, check_line, group, ha as on_loss, invalid, life, moving, operation, placement,
    removal, reset, schedule as schedules,
};
use crate::state::{
    command::{Command, PowerAction, VmReport},
    ids::{NodeId, VmId},
    model::{
        Ha, Image, Limits, Millis, Network, ObjectId, Phase, Power, Source, State, Vm, VmSpec,
    },
    names,
    owners::{Actor, Owned as _},
    quotas::Usage,
    response::{Kind, Outcome, Rejection, Response},
};

/// Memory comes in pieces of this, bytes: huge pages, and the same everywhere.
const MEMORY_UNIT: u64 = 2 << 20;
/// The least memory of a VM, bytes.
const MIN_MEMORY: u64 = 32 << 20;
/// The most virtual processors.
const MAX_CPUS: u32 = 255;
/// The least that a process's memory may be limited to, bytes: QEMU itself takes half of it.
const MIN_MEMORY_LIMIT: u64 = 64 << 20;
/// The fewest threads: QEMU's own, one for each processor, and some for its disks.
const MIN_PIDS: u32 = 16;
/// The most: what Linux can have.
const MAX_PIDS: u32 = 4_194_304;
/// The most ports that a VM may publish.
const MAX_PUBLISHED: usize = 64;
/// The most VMs that guests of one family may make.
const MAX_SELF_FORK: u32 = 1_000;
/// Disks come in pieces of this, bytes.
const SECTOR: u64 = 512;

pub(super) fn create(state: &mut State, by: &Actor, now: Millis, command: &Command) -> Outcome {
    let Command::CreateVm {
        id,
        name,
        image,
        node,
        constraints,
        candidates,
        cpus,
        memory_bytes,
        disk_bytes,
        machine,
        accelerator,
        cpu_model,
        cmdline,
        limits,
        restart,
        labels,
        network,
        publish,
        self_fork,
        unready,
        life: how_long,
        schedule,
        ha,
        group,
    } = command
    else {
        unreachable!("called for this command only");
    };
    names::check_name("name", name)?;
    names::check_owner("owner", &by.owner)?;
    if !(1..=MAX_CPUS).contains(cpus) {
        return Err(invalid("cpus", format!("must be 1 to {MAX_CPUS}")));
    }
    if *memory_bytes < MIN_MEMORY || !memory_bytes.is_multiple_of(MEMORY_UNIT) {
        return Err(invalid(
            "memory",
            "must be a multiple of 2 MiB and at least 32 MiB",
        ));
    }
    if let Some(group) = group {
        names::check_name("group", group)?;
    }
    check_line("cmdline", cmdline)?;
    if let Some(model) = cpu_model {
        check_cpu_model(model)?;
    }
    check_limits(limits)?;
    check_labels(labels)?;
    life::check(state, by, &by.owner, now, *how_long)?;
    placement::check(constraints)?;
    let publish = published(publish, *network)?;
    if *self_fork > MAX_SELF_FORK {
        return Err(invalid(
            "selfFork",
            format!("must be at most {MAX_SELF_FORK}"),
        ));
    }
    let image = names::image(state, by, image)?;
    if image.kernel.is_none() {
        return Err(invalid(
            "image",
            format!("{:?} has no kernel, which a VM is started from", image.name),
        ));
    }
    if image.nodes.is_empty() {
        return Err(Rejection::WrongState {
            kind: Kind::Image,
            name: image.name.clone(),
            problem: "is lost: the only node that held it was removed; delete and import it again"
                .to_owned(),
        });
    }
    let spec = VmSpec {
        image: image.id,
        cpus: *cpus,
        memory_bytes: *memory_bytes,
        disk_bytes: disk_size(image, *disk_bytes)?,
        machine: *machine,
        accelerator: *accelerator,
        cpu_model: cpu_model.clone(),
        cmdline: cmdline.clone(),
        limits: *limits,
        restart: *restart,
        network: *network,
        publish,
        self_fork: *self_fork,
        unready: *unready,
    };
    if state.vms.named(&by.owner, name).is_some() {
        return Err(Rejection::NameTaken {
            kind: Kind::Vm,
            name: name.clone(),
        });
    }
    if state.vms.contains_key(id) || state.tombstones.contains_key(&ObjectId::Vm(*id)) {
        return Err(removal::id_taken(Kind::Vm, id));
    }
    let wanted = placement::Wanted {
        by,
        labels,
        constraints,
        candidates,
        count: 1,
    };
    let joined = match group {
        Some(group) => Some(group::join(state, by, group, *id)?),
        None => None,
    };
    let node = match joined.as_ref().and_then(|joined| joined.node) {
        Some(with) => group::beside(state, &wanted, node.as_deref(), with, &spec, image)?,
        None => placement::of_vm(state, &wanted, node.as_deref(), &spec, image)?,
    };
    if let Some(schedule) = schedule {
        schedules::check(state, schedule, node, candidates)?;
    }
    let vm = Vm {
        labels: labels.clone(),
        family: (*self_fork > 0).then_some(*id),
        life: *how_long,
        schedule: *schedule,
        // Its node knows before it runs for the first time.
        ha: if *ha { Ha::Restore } else { Ha::Off },
        group: joined.map(|joined| joined.group),
        ..Vm::new(*id, name.clone(), &by.owner, node, spec, Source::Image, now)
    };
    if *ha {
        on_loss::check_alone(&vm)?;
    }
    state.check_quota(&by.owner, Usage::of_vm(&vm))?;
    state.vms.insert(*id, Arc::new(vm));
    Ok(Response::Vm(*id))
}

/// Refuses limits that QEMU cannot live with.
fn check_limits(limits: &Limits) -> Result<(), Rejection> {
    if limits
        .cpu_percent
        .is_some_and(|percent| !(1..=MAX_CPUS * 100).contains(&percent))
    {
        return Err(invalid(
            "limits.cpu",
            format!("must be 1% to {MAX_CPUS} processors"),
        ));
    }
    if limits
        .memory_bytes
        .is_some_and(|bytes| !(MIN_MEMORY_LIMIT..=i64::MAX as u64).contains(&bytes))
    {
        return Err(invalid("limits.memory", "must be at least 64 MiB"));
    }
    if limits
        .pids
        .is_some_and(|pids| !(MIN_PIDS..=MAX_PIDS).contains(&pids))
    {
        return Err(invalid(
            "limits.pids",
            format!("must be {MIN_PIDS} to {MAX_PIDS}"),
        ));
    }
    Ok(())
}

/// The ports to publish, in order.
fn published(ports: &[u16], network: Network) -> Result<Vec<u16>, Rejection> {
    let refuse = |problem: String| Err(invalid("publish", problem));
    if ports.len() > MAX_PUBLISHED {
        return refuse(format!("must be at most {MAX_PUBLISHED} ports"));
    }
    if ports.contains(&0) {
        return refuse("a port must be 1 to 65535".to_owned());
    }
    if !ports.is_empty() && network == Network::None {
        return refuse("a VM without a network has no ports".to_owned());
    }
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    if let Some(twice) = ports.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(format!("port {} is named twice", twice[0]));
    }
    Ok(ports)
}

fn check_cpu_model(model: &str) -> Result<(), Rejection> {
    check_line("cpuModel", model)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.,=+-".contains(&b);
    if model.is_empty() || !model.bytes().all(allowed) {
        return Err(invalid(
            "cpuModel",
            "may hold letters, digits and _.,=+- only",
        ));
    }
    Ok(())
}

/// The disk's size, bytes; 0 for none.
fn disk_size(image: &Image, asked: u64) -> Result<u64, Rejection> {
    let least = image.disk.as_ref().map_or(0, |disk| disk.virtual_bytes);
    if asked == 0 {
        return Ok(least);
    }
    if asked < least {
        return Err(invalid(
            "disk",
            format!("must be at least the image's {least} bytes"),
        ));
    }
    if !asked.is_multiple_of(SECTOR) {
        return Err(invalid(
            "disk",
            format!("must be a multiple of {SECTOR} bytes"),
        ));
    }
    Ok(asked)
}

pub(super) fn set_power(
    state: &mut State,
    by: &Actor,
    now: Millis,
    vm: &str,
    action: PowerAction,
) -> Outcome {
    let found = names::vm(state, by, vm)?;
    found.check_ruled_by(by)?;
    reset::check_free(state, found)?;
    let vm = Arc::clone(found);
    let id = vm.id;
    let Wanted { power, boots } = wanted_power(&vm, action)?;
    if !vm.counts_as_running() && matches!(power, Power::Running | Power::Paused) {
        state.check_quota(&vm.ownership.owner, Usage::of_running(&vm))?;
    }
    if power != vm.power || boots {
        state.vms.change(&id, |vm| {
            vm.power = power;
            vm.rests_from = None;
            vm.generation += 1;
            if boots {
                vm.boot += 1;
                vm.boots();
                vm.phase = Phase::Pending;
                vm.reason.clear();
                vm.restarts = 0;
                vm.failed_steps.clear();
            }
            if boots || is_stopped(power) {
                vm.next_start = None;
            }
        });
    }
    if vm.power == Power::Suspended {
        reset::forget_moment(state, now, id);
    }
    Ok(Response::Vm(id))
}

fn is_stopped(power: Power) -> bool {
    matches!(power, Power::Stopped { .. })
}

/// How a VM should be after an action.
struct Wanted {
    power: Power,
    /// Whether it is started anew.
    boots: bool,
}

fn wanted_power(vm: &Vm, action: PowerAction) -> Result<Wanted, Rejection> {
    let ended = matches!(vm.phase, Phase::Failed | Phase::Stopped);
    let refuse = |problem: &str| {
        Err(Rejection::WrongState {
            kind: Kind::Vm,
            name: vm.name.clone(),
            problem: problem.to_owned(),
        })
    };
    let (power, boots) = match (action, vm.power) {
        (PowerAction::Stop | PowerAction::ForceStop, Power::Suspended) => {
            (Power::Stopped { force: true }, false)
        }
        (_, Power::Suspended) => {
            return refuse("is suspended: resume it, or stop it first to start it from its disk");
        }
        (PowerAction::Start, Power::Stopped { .. }) => (Power::Running, true),
        (PowerAction::Start, Power::Running | Power::Paused)
            if ended || vm.next_start.is_some() =>
        {
            (Power::Running, true)
        }
        (PowerAction::Start, Power::Running) => (Power::Running, false),
        (PowerAction::Start, Power::Paused) => return refuse("is paused: resume it"),

        (PowerAction::Stop, Power::Stopped { force }) => (Power::Stopped { force }, false),
        (PowerAction::Stop, Power::Running | Power::Paused) => {
            (Power::Stopped { force: false }, false)
        }
        (PowerAction::ForceStop, _) => (Power::Stopped { force: true }, false),

        (PowerAction::Pause | PowerAction::Resume, Power::Stopped { .. }) => {
            return refuse("is stopped or being stopped: start it");
        }
        (PowerAction::Pause | PowerAction::Resume, Power::Running | Power::Paused) if ended => {
            return refuse("is not running: start it");
        }
        (PowerAction::Pause, Power::Running | Power::Paused) => (Power::Paused, false),
        (PowerAction::Resume, Power::Running | Power::Paused) => (Power::Running, false),

        (PowerAction::Restart, Power::Stopped { .. }) => {
            return refuse("is stopped or being stopped: start it");
        }
        (PowerAction::Restart, Power::Running | Power::Paused) => (Power::Running, true),
    };
    Ok(Wanted { power, boots })
}

pub(super) fn delete(state: &mut State, by: &Actor, now: Millis, vm: &str, force: bool) -> Outcome {
    let vm = names::vm(state, by, vm)?;
    vm.check_ruled_by(by)?;
    let ended = matches!(vm.phase, Phase::Stopped | Phase::Failed);
    if !force && !ended && matches!(vm.power, Power::Running | Power::Paused) {
        return Err(Rejection::WrongState {
            kind: Kind::Vm,
            name: vm.name.clone(),
            problem: "is running: stop it first, or use --force".to_owned(),
        });
    }
    let id = vm.id;
    schedules::forget(state, now, id);
    remove(state, now, id);
    Ok(Response::DeletedVm(id))
}

/// Removes a VM, and the snapshots that existed for it only.
pub(super) fn remove(state: &mut State, now: Millis, id: VmId) {
    let Some(vm) = state.vms.remove(&id) else {
        return;
    };
    moving::forget_stay(state, vm.node, id);
    removal::bury(
        state,
        now,
        ObjectId::Vm(id),
        &vm.name,
        &BTreeSet::from([vm.node]),
    );
    match vm.source {
        Source::Image => {}
        Source::Snapshot(snapshot) => removal::collect(state, now, Some(snapshot)),
    }
}

/// Never refused: what is reported may be gone or have moved on.
pub(super) fn report(state: &mut State, node: NodeId, reports: &[VmReport]) -> Outcome {
    for report in reports {
        let Some(vm) = state.vms.get(&report.vm) else {
            continue;
        };
        if vm.node != node || report.boot != vm.boot {
            continue;
        }
        // Seen before it was suspended, or resumed.
        if (vm.power == Power::Suspended) != (report.phase == Phase::Suspended) {
            continue;
        }
        state.vms.change(&report.vm, |vm| note(vm, report));
    }
    Ok(Response::Done)
}

fn note(vm: &mut Vm, report: &VmReport) {
    vm.phase = report.phase;
    vm.reason.clone_from(&report.reason);
    vm.reported_boot = report.boot;
    if matches!(report.phase, Phase::Running | Phase::Paused) {
        // Its node has a record of it.
        vm.disk = None;
    }
    if report.ending.is_some() {
        vm.ending.clone_from(&report.ending);
    }
    vm.restarts = report.restarts;
    if vm.restarts > 0 {
        vm.boots();
    }
    // What was stopped meanwhile waits for nothing.
    let waits = report.phase == Phase::Restarting && !is_stopped(vm.power);
    vm.next_start = report.next_start.filter(|_| waits);
    // The guest powered itself off: it stays off until somebody starts it.
    if report.phase == Phase::Stopped && !is_stopped(vm.power) {
        vm.power = Power::Stopped { force: false };
        vm.generation += 1;
    }
}

/// Never refused: the VM may be gone, or started anew.
pub(super) fn report_steps(state: &mut State, vm: VmId, boot: u64, failed: &[String]) -> Outcome {
    let is_news = |vm: &&Arc<Vm>| vm.boot == boot && vm.failed_steps != failed;
    if state.vms.get(&vm).filter(is_news).is_some() {
        state.vms.change(&vm, |vm| {
            vm.failed_steps = failed.to_vec();
            operation::hold_if_unready(vm);
        });
    }
    Ok(Response::Done)
}
