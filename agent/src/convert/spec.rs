//! What a VM is made of: from requests to the replicated state, and back to messages.

use proto::v1;
use raft::state::{
    Accelerator, GuestAgent, Ha, Limits, Machine, Network, RestartPolicy, Schedule, ScheduleChange,
    Unready, Vm,
};

use crate::errors::ApiError;

/// What of a request says which machine to make.
pub fn machine(machine: v1::Machine) -> Machine {
    match machine {
        v1::Machine::Unspecified | v1::Machine::Microvm => Machine::Microvm,
        v1::Machine::Q35 => Machine::Q35,
    }
}

/// What of a request says what a VM may take.
pub fn limits(limits: v1::Limits) -> Limits {
    let some = |number: u32| Some(number).filter(|number| *number != 0);
    Limits {
        cpu_percent: some(limits.cpu_percent),
        memory_bytes: Some(limits.memory_bytes).filter(|bytes| *bytes != 0),
        pids: some(limits.pids),
    }
}

pub(super) fn limits_message(limits: &Limits) -> v1::Limits {
    v1::Limits {
        cpu_percent: limits.cpu_percent.unwrap_or_default(),
        memory_bytes: limits.memory_bytes.unwrap_or_default(),
        pids: limits.pids.unwrap_or_default(),
    }
}

/// How many scheduled snapshots are kept where nobody says.
const KEPT: u32 = 3;

/// What of a request says which snapshots are taken of a VM by themselves.
pub fn schedule(schedule: v1::SnapshotSchedule) -> Schedule {
    let or = |number, default| match number {
        0 => default,
        number => number,
    };
    Schedule {
        every: schedule.every_ms,
        keep: or(schedule.keep, KEPT),
        replicas: or(schedule.replicas, 1),
    }
}

pub(super) fn schedule_message(vm: &Vm) -> Option<v1::SnapshotSchedule> {
    vm.schedule.map(|schedule| v1::SnapshotSchedule {
        every_ms: schedule.every,
        keep: schedule.keep,
        replicas: schedule.replicas,
        next_at: Some(super::timestamp(vm.next_snapshot)),
    })
}

fn refuse(field: &'static str, problem: &str) -> ApiError {
    ApiError::InvalidField {
        field,
        problem: problem.to_owned(),
    }
}

/// What of a request says whether a VM is restored when its node is lost; `None` where it does not.
pub fn ha(wanted: v1::OnHostLoss) -> Result<Option<bool>, ApiError> {
    match wanted {
        v1::OnHostLoss::Unspecified => Ok(None),
        v1::OnHostLoss::Stay => Ok(Some(false)),
        v1::OnHostLoss::Restore => Ok(Some(true)),
        v1::OnHostLoss::Arming => Err(refuse("onHostLoss", "is for answers")),
    }
}

/// What of a request changes which snapshots are taken by themselves.
pub fn schedule_change(
    snapshots: Option<v1::SnapshotSchedule>,
    stop: bool,
) -> Result<Option<ScheduleChange>, ApiError> {
    match (snapshots.map(schedule), stop) {
        (Some(_), true) => Err(refuse("stopSnapshots", "does not go with snapshots")),
        (Some(schedule), false) => Ok(Some(ScheduleChange::Follow(schedule))),
        (None, true) => Ok(Some(ScheduleChange::Stop)),
        (None, false) => Ok(None),
    }
}

pub(super) fn ha_message(ha: Ha) -> v1::OnHostLoss {
    match ha {
        Ha::Off => v1::OnHostLoss::Stay,
        Ha::Arming => v1::OnHostLoss::Arming,
        Ha::Restore => v1::OnHostLoss::Restore,
    }
}

/// What of a request says what follows a VM's end.
pub fn restart_policy(policy: v1::RestartPolicy) -> RestartPolicy {
    match policy {
        v1::RestartPolicy::Unspecified | v1::RestartPolicy::Never => RestartPolicy::Never,
        v1::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        v1::RestartPolicy::Always => RestartPolicy::Always,
    }
}

pub(super) fn restart_policy_message(policy: RestartPolicy) -> v1::RestartPolicy {
    match policy {
        RestartPolicy::Never => v1::RestartPolicy::Never,
        RestartPolicy::OnFailure => v1::RestartPolicy::OnFailure,
        RestartPolicy::Always => v1::RestartPolicy::Always,
    }
}

/// What of a request says how to run guest code.
pub fn accelerator(accelerator: v1::Accelerator) -> Accelerator {
    match accelerator {
        v1::Accelerator::Unspecified | v1::Accelerator::Auto => Accelerator::Auto,
        v1::Accelerator::Kvm => Accelerator::Kvm,
        v1::Accelerator::Tcg => Accelerator::Tcg,
    }
}

pub(super) fn accelerator_message(accelerator: Accelerator) -> v1::Accelerator {
    match accelerator {
        Accelerator::Auto => v1::Accelerator::Auto,
        Accelerator::Kvm => v1::Accelerator::Kvm,
        Accelerator::Tcg => v1::Accelerator::Tcg,
    }
}

pub(super) fn accelerator_name(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Auto => "auto",
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    }
}

/// What of a request says which network a VM has.
pub fn network(network: Option<v1::Network>) -> Network {
    let network = network.unwrap_or_default();
    match network.kind() {
        v1::NetworkKind::None => Network::None,
        v1::NetworkKind::Unspecified | v1::NetworkKind::User => Network::User {
            egress: !network.no_egress,
        },
    }
}

pub(super) fn network_message(network: Network) -> v1::Network {
    let (kind, no_egress) = match network {
        Network::None => (v1::NetworkKind::None, false),
        Network::User { egress } => (v1::NetworkKind::User, !egress),
    };
    v1::Network {
        kind: kind.into(),
        no_egress,
    }
}

/// What of a request says which ports a VM publishes.
pub fn publish(ports: &[u32]) -> Result<Vec<u16>, ApiError> {
    let port = |port: &u32| {
        u16::try_from(*port).map_err(|_| ApiError::InvalidField {
            field: "publish",
            problem: format!("{port} is no port: they are 1 to 65535"),
        })
    };
    ports.iter().map(port).collect()
}

/// What of a request says what becomes of a fork that has not wholly become itself.
pub fn unready(unready: v1::Unready) -> Unready {
    match unready {
        v1::Unready::Unspecified | v1::Unready::Run => Unready::Run,
        v1::Unready::Hold => Unready::Hold,
    }
}

pub(super) fn unready_message(unready: Unready) -> v1::Unready {
    match unready {
        Unready::Run => v1::Unready::Run,
        Unready::Hold => v1::Unready::Hold,
    }
}

/// What of a request says which program an image's guests answer with.
pub fn guest_agent(agent: v1::GuestAgent) -> GuestAgent {
    match agent {
        v1::GuestAgent::Unspecified | v1::GuestAgent::Forkypig => GuestAgent::ForkyPig,
        v1::GuestAgent::Qemu => GuestAgent::Qemu,
        v1::GuestAgent::None => GuestAgent::None,
    }
}

pub(super) fn guest_agent_message(agent: GuestAgent) -> v1::GuestAgent {
    match agent {
        GuestAgent::ForkyPig => v1::GuestAgent::Forkypig,
        GuestAgent::Qemu => v1::GuestAgent::Qemu,
        GuestAgent::None => v1::GuestAgent::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_default() {
        assert_eq!(network(None), Network::default());
        assert_eq!(unready(v1::Unready::default()), Unready::default());
        assert_eq!(
            guest_agent(v1::GuestAgent::default()),
            GuestAgent::default()
        );
    }

    #[test]
    fn messages_say_what_was_asked_for() {
        for one in [
            Network::None,
            Network::User { egress: true },
            Network::User { egress: false },
        ] {
            assert_eq!(network(Some(network_message(one))), one);
        }
        for one in [Unready::Run, Unready::Hold] {
            assert_eq!(unready(unready_message(one)), one);
        }
        for one in [GuestAgent::ForkyPig, GuestAgent::Qemu, GuestAgent::None] {
            assert_eq!(guest_agent(guest_agent_message(one)), one);
        }
    }

    #[test]
    fn ports_fit_into_16_bits() {
        assert_eq!(publish(&[1, 65_535]).unwrap(), [1, 65_535]);
        let refused = publish(&[80, 65_536]).unwrap_err().to_string();
        assert!(refused.contains("65536"), "{refused}");
    }
}
