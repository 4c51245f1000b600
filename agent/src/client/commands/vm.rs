//! `fpagent vm`.

use futures::{StreamExt as _, stream};
use proto::v1::{
    Accelerator, CreateVmRequest, DeleteVmRequest, GetVmRequest, Limits, Machine, MoveVmRequest,
    OnHostLoss, PowerAction, ProtectVmRequest, ResetVmRequest, RestartPolicy, SetVmPowerRequest,
    SuspendVmRequest, Unready,
};
use serde::Serialize;

use crate::client::{
    Context,
    args::{
        Change,
        objects::{CreateArgs, Every, PowerArgs, VmCommand},
    },
    failure::Failure,
    output::Row,
    progress::Progress,
    views::vm::VmView,
};

/// How many VMs are deleted at once: each is waited for until its host has taken everything away.
const REMOVED_AT_ONCE: usize = 256;

pub(crate) async fn run(context: &Context, command: VmCommand) -> Result<(), Failure> {
    match command {
        VmCommand::Create(args) => create(context, *args).await,
        VmCommand::Ls => {
            let reach = context.reach()?;
            let listed = reach.call(async |attempt| attempt.list_vms::<VmView>().await);
            context.list(&listed.await?)
        }
        VmCommand::Show { vm } => {
            let request = GetVmRequest { vm };
            let reach = context.reach()?;
            let shown = reach
                .call(async |attempt| attempt.vms().get_vm(attempt.request(request.clone())).await);
            context.show(&VmView::from(shown.await?))
        }
        VmCommand::Wait(args) => super::wait::run(context, args).await,
        VmCommand::Start(args) => power(context, args, PowerAction::Start, "starting").await,
        VmCommand::Stop {
            power: args,
            force: false,
        } => power(context, args, PowerAction::Stop, "stopping").await,
        VmCommand::Stop {
            power: args,
            force: true,
        } => power(context, args, PowerAction::ForceStop, "stopping").await,
        VmCommand::Pause(args) => power(context, args, PowerAction::Pause, "pausing").await,
        VmCommand::Resume(args) => power(context, args, PowerAction::Resume, "resuming").await,
        VmCommand::Restart(args) => power(context, args, PowerAction::Restart, "restarting").await,
        VmCommand::Reset {
            vm,
            to,
            paused,
            change,
        } => {
            let request = ResetVmRequest {
                vm,
                snapshot: to,
                paused,
                request_id: change.id(),
            };
            reset(context, request).await
        }
        VmCommand::Suspend { vm, change } => {
            let _progress = Progress::spinner(format!("suspending {vm}"));
            let request = SuspendVmRequest {
                vm,
                request_id: change.id(),
            };
            let reach = context.reach()?;
            let suspended = reach.change(&request.request_id, async |attempt| {
                attempt
                    .vms()
                    .suspend_vm(attempt.request(request.clone()))
                    .await
            });
            context.one(VmView::from(suspended.await?))
        }
        VmCommand::Move { vm, node, change } => {
            let request = MoveVmRequest {
                vm,
                node,
                request_id: change.id(),
            };
            move_to(context, request).await
        }
        VmCommand::Protect {
            vm,
            snapshot_every,
            kept,
            ha,
            change,
        } => {
            let request = ProtectVmRequest {
                vm,
                stop_snapshots: matches!(snapshot_every, Some(Every::Off)),
                snapshots: kept.schedule(snapshot_every),
                on_host_loss: ha.map_or(OnHostLoss::Unspecified, OnHostLoss::from).into(),
                request_id: change.id(),
            };
            let reach = context.reach()?;
            let protected = reach.change(&request.request_id, async |attempt| {
                attempt
                    .vms()
                    .protect_vm(attempt.request(request.clone()))
                    .await
            });
            context.one(VmView::from(protected.await?))
        }
        VmCommand::Rm { vms, force, change } => remove(context, vms, force, &change).await,
    }
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let _progress = Progress::spinner(format!("creating {}", args.name));
    let request = CreateVmRequest {
        name: args.name,
        image: args.image,
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk.unwrap_or(0),
        node: args.node,
        constraints: Some(args.constraints.into()),
        group: args.group,
        machine: Machine::from(args.machine).into(),
        accelerator: Accelerator::from(args.accel).into(),
        cpu_model: args.cpu_model,
        cmdline: args.cmdline,
        limits: Some(Limits {
            cpu_percent: args.cpu_limit.unwrap_or(0),
            memory_bytes: args.memory_limit.unwrap_or(0),
            pids: args.pids_limit.unwrap_or(0),
        }),
        restart: RestartPolicy::from(args.restart).into(),
        network: Some(args.guest.network()),
        publish: args.guest.publish.into_iter().map(u32::from).collect(),
        self_fork: args.guest.allow_self_fork,
        unready: Unready::from(args.guest.unready).into(),
        labels: args.labels.into_iter().collect(),
        wait: args.wait,
        owner: args.owner.owner,
        keep: args.keep.keep(),
        snapshots: args.kept.schedule(args.snapshot_every),
        on_host_loss: OnHostLoss::from(args.ha).into(),
        request_id: args.change.id(),
    };
    let reach = context.reach()?;
    let created = reach.change(&request.request_id, async |attempt| {
        attempt
            .vms()
            .create_vm(attempt.request(request.clone()))
            .await
    });
    context.one(VmView::from(created.await?))
}

/// A reset VM, as programs are told of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResetView {
    operation: String,
    running_ms: f64,
    vm: VmView,
}

async fn reset(context: &Context, request: ResetVmRequest) -> Result<(), Failure> {
    let progress = Progress::spinner(format!("resetting {}", request.vm));
    let reach = context.reach()?;
    let answer = reach.change(&request.request_id, async |attempt| {
        attempt
            .vms()
            .reset_vm(attempt.request(request.clone()))
            .await
    });
    let answer = answer.await?;
    drop(progress);
    let view = ResetView {
        operation: answer.operation,
        running_ms: answer.running_ms,
        vm: VmView::from(answer.vm.unwrap_or_default()),
    };
    if context.for_people() {
        let (vm, ms) = (&view.vm, view.running_ms);
        return context.say(format_args!(
            "{} is {} at the moment of {}, after {ms:.1} ms",
            vm.name, vm.state, request.snapshot
        ));
    }
    context.data(&view)
}

/// A moved VM, as programs are told of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MovedView {
    operation: String,
    pause_ms: f64,
    vm: VmView,
}

async fn move_to(context: &Context, request: MoveVmRequest) -> Result<(), Failure> {
    let progress = Progress::spinner(format!("moving {}", request.vm));
    let reach = context.reach()?;
    let answer = reach.change(&request.request_id, async |attempt| {
        attempt
            .vms()
            .move_vm(attempt.request(request.clone()))
            .await
    });
    let answer = answer.await?;
    drop(progress);
    let view = MovedView {
        operation: answer.operation,
        pause_ms: answer.pause_ms,
        vm: VmView::from(answer.vm.unwrap_or_default()),
    };
    if !context.for_people() {
        return context.data(&view);
    }
    let (vm, ms) = (&view.vm, view.pause_ms);
    match ms > 0.0 {
        true => context.say(format_args!(
            "{} is {} on {}, and stood still for {ms:.1} ms",
            vm.name, vm.state, vm.node
        )),
        false => context.say(format_args!("{} is {} on {}", vm.name, vm.state, vm.node)),
    }
}

async fn power(
    context: &Context,
    args: PowerArgs,
    action: PowerAction,
    doing: &str,
) -> Result<(), Failure> {
    let _progress = Progress::spinner(format!("{doing} {}", args.vm));
    let request = SetVmPowerRequest {
        vm: args.vm,
        action: action.into(),
        no_wait: args.no_wait,
        request_id: args.change.id(),
    };
    let reach = context.reach()?;
    let changed = reach.change(&request.request_id, async |attempt| {
        attempt
            .vms()
            .set_vm_power(attempt.request(request.clone()))
            .await
    });
    context.one(VmView::from(changed.await?))
}

/// What became of one VM that was to be deleted.
#[derive(Serialize)]
struct RemovedView {
    name: String,
    deleted: bool,
    completed: bool,
    error: String,
}

impl Row for RemovedView {
    fn header(_wide: bool) -> Vec<&'static str> {
        vec!["NAME", "OUTCOME"]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        let outcome = match (self.deleted, self.completed) {
            (true, true) => "deleted".to_owned(),
            (true, false) => "deleted; its node removes the rest when it is back".to_owned(),
            (false, _) => self.error.clone(),
        };
        vec![self.name.clone(), outcome]
    }
}

/// Goes on after one that is refused, and tells of the first failure at the end.
async fn remove(
    context: &Context,
    vms: Vec<String>,
    force: bool,
    change: &Change,
) -> Result<(), Failure> {
    let reach = context.reach()?;
    let count = vms.len();
    let progress = Progress::things("deleting", count as u64);
    let removals = vms.into_iter().enumerate().map(async |(index, vm)| {
        let request = DeleteVmRequest {
            vm: vm.clone(),
            force,
            request_id: change.id_of(index, count),
        };
        let answer = reach.change(&request.request_id, async |attempt| {
            attempt
                .vms()
                .delete_vm(attempt.request(request.clone()))
                .await
        });
        let answer = answer.await;
        progress.another();
        (vm, answer)
    });
    let answers: Vec<_> = stream::iter(removals)
        .buffered(REMOVED_AT_ONCE)
        .collect()
        .await;
    let (mut removed, mut first) = (Vec::new(), None);
    for (vm, answer) in answers {
        removed.push(match answer {
            Ok(answer) => RemovedView {
                name: vm,
                deleted: true,
                completed: answer.completed,
                error: String::new(),
            },
            Err(failure) => {
                let error = failure.line().trim_start_matches("fpagent: ").to_owned();
                first.get_or_insert(failure);
                RemovedView {
                    name: vm,
                    deleted: false,
                    completed: false,
                    error,
                }
            }
        });
    }
    drop(progress);
    // With nothing deleted the error line says it all.
    if context.for_people() && first.is_some() && count == 1 {
        return first.map_or(Ok(()), Err);
    }
    context.list(&removed)?;
    first.map_or(Ok(()), Err)
}
