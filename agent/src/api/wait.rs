//! Waiting until a VM is as somebody wants it. What is waited for is looked up in the replicated state, first as it is and then as it
//! changes: nothing that was so before is missed.

use std::{sync::Arc, time::Duration};

use proto::{
    peer::{WaitGuestRequest, WaitGuestResponse},
    v1::{Vm, WaitFor, WaitVmRequest},
};
use raft::state::{self as model, Actor, Kind, Phase, Rejection, VmId, names};
use tokio::time::{Instant, sleep, timeout_at};

use super::Api;
use crate::{
    audit,
    errors::ApiError,
    guest::{
        Unheard,
        wait::{self, Waited},
    },
    node::Node,
};

/// The longest that somebody may wait: guests may work for days.
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a guest is waited for before it is looked at again whether its VM still runs.
pub const TURN: Duration = Duration::from_secs(2);
/// Before a node that could not wait is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether a VM is as is wanted, or will never be; `None` while that is open.
type Met = fn(&model::Vm) -> Option<Result<(), ApiError>>;

impl Api {
    pub(super) async fn waited_for(
        &self,
        by: &Actor,
        request: WaitVmRequest,
        deadline: Instant,
    ) -> Result<Vm, ApiError> {
        let invalid = |field, problem: &str| ApiError::InvalidField {
            field,
            problem: problem.to_owned(),
        };
        let ports = 1..=u32::from(u16::MAX);
        let (met, inside): (Met, _) = match request.until() {
            WaitFor::Running => (runs, None),
            WaitFor::Exit => (has_ended, None),
            WaitFor::Ready => (runs, Some(0)),
            WaitFor::Port if ports.contains(&request.port) => (runs, Some(request.port)),
            WaitFor::Port => return Err(invalid("port", "must be 1 to 65535")),
            WaitFor::Unspecified => {
                let problem = "say what to wait for: running, ready, exit or port";
                return Err(invalid("until", problem));
            }
        };
        audit::about(|| format!("VM {}", request.vm));
        let id = names::vm(&*self.read(deadline).await?, by, &request.vm)?.id;
        loop {
            let vm = self.waited_outside(by, &request, id, met, deadline).await?;
            let Some(port) = inside else { return Ok(vm) };
            // A VM that ends meanwhile, or whose node's agent does, is looked at again from outside.
            if self.turn_inside(id, &vm.name, port, deadline).await? {
                return self.message_of(&self.node.state(), by, id).await;
            }
        }
    }

    /// Waits for what the state tells.
    async fn waited_outside(
        &self,
        by: &Actor,
        request: &WaitVmRequest,
        id: VmId,
        met: Met,
        deadline: Instant,
    ) -> Result<Vm, ApiError> {
        let waited = self.node.wait_for(deadline, |state| {
            let there = state.vms.get(&id);
            // It may be shared no more.
            let Some(vm) = there.filter(|vm| vm.ownership.is_seen_by(by)) else {
                return Some(Err(ApiError::from(Rejection::NotFound {
                    kind: Kind::Vm,
                    name: request.vm.clone(),
                })));
            };
            Some(met(vm)?.map(|()| Arc::clone(state)))
        });
        match waited.await {
            // As it was then: what follows may have come already.
            Some(state) => self.message_of(&*state?, by, id).await,
            None => Err(ApiError::Pending {
                what: format!("the wait for VM {:?}", request.vm),
                operation: None,
            }),
        }
    }

    /// Waits for what happens inside a VM that runs, for a turn: then whether it still runs is to be looked at.
    async fn turn_inside(
        &self,
        id: VmId,
        name: &str,
        port: u32,
        deadline: Instant,
    ) -> Result<bool, ApiError> {
        if Instant::now() >= deadline {
            return Err(ApiError::Pending {
                what: format!("the wait for VM {name:?}"),
                operation: None,
            });
        }
        let state = self.node.state();
        let Some(vm) = state.vms.get(&id) else {
            return Ok(false);
        };
        let never = |why| ApiError::Guest {
            vm: name.to_owned(),
            problem: Unheard::Unsound(why),
        };
        if vm.node == self.node.id() {
            let turn = deadline.min(Instant::now() + TURN);
            return match in_guest(&self.node, id, port, turn).await {
                Waited::Met => Ok(true),
                Waited::Never(why) => Err(never(why)),
                Waited::Open => Ok(false),
            };
        }
        let asked = WaitGuestRequest {
            vm: id.to_string(),
            port,
        };
        let mut client = self.client(&state, vm.node).await?;
        match timeout_at(deadline, client.wait_guest(asked)).await {
            Ok(Ok(answer)) => match answer.into_inner() {
                WaitGuestResponse { met, never: why } if why.is_empty() => Ok(met),
                WaitGuestResponse { never: why, .. } => Err(never(why)),
            },
            Ok(Err(status)) => {
                tracing::debug!(%status, "a node did not wait for a guest; asking again");
                sleep(PAUSE).await;
                Ok(false)
            }
            Err(_) => Ok(false),
        }
    }
}

/// Waits for what happens inside a VM of this node: see `WaitGuestRequest`.
pub(super) async fn in_guest(node: &Node, vm: VmId, port: u32, deadline: Instant) -> Waited {
    let Some(handle) = node.vms.get(vm).filter(|handle| handle.pid() != 0) else {
        sleep(PAUSE).await;
        return Waited::Open;
    };
    match port {
        0 => wait::settled(handle.guest(), deadline).await,
        port => wait::listens(handle.guest(), port, deadline).await,
    }
}

fn runs(vm: &model::Vm) -> Option<Result<(), ApiError>> {
    match (vm.phase, vm.reported_boot == vm.boot) {
        (Phase::Running, true) => Some(Ok(())),
        (Phase::Failed, true) => Some(Err(super::vm::failed(vm))),
        _ => None,
    }
}

fn has_ended(vm: &model::Vm) -> Option<Result<(), ApiError>> {
    let ended = matches!(vm.phase, Phase::Stopped | Phase::Failed);
    (ended && vm.reported_boot == vm.boot).then_some(Ok(()))
}

#[cfg(test)]
mod tests {
    use raft::state::{
        Accelerator, ImageId, Limits, Machine, Network, RestartPolicy, Source, Unready, VmId,
        VmSpec,
    };

    use super::*;

    fn vm(phase: Phase, reported_boot: u64) -> model::Vm {
        let spec = VmSpec {
            image: ImageId(1),
            cpus: 1,
            memory_bytes: 1 << 28,
            disk_bytes: 0,
            machine: Machine::Microvm,
            accelerator: Accelerator::Auto,
            cpu_model: None,
            cmdline: String::new(),
            limits: Limits::default(),
            restart: RestartPolicy::default(),
            network: Network::default(),
            publish: Vec::new(),
            self_fork: 0,
            unready: Unready::default(),
        };
        model::Vm {
            phase,
            reported_boot,
            boot: 2,
            ..model::Vm::new(VmId(1), "a".into(), "ann", 1, spec, Source::Image, 0)
        }
    }

    #[test]
    fn what_was_reported_of_this_boot_counts() {
        let is = |met: Met, phase| met(&vm(phase, 2)).map(|result| result.is_ok());
        for (phase, running, exit) in [
            (Phase::Pending, None, None),
            (Phase::Running, Some(true), None),
            (Phase::Paused, None, None),
            (Phase::Restarting, None, None),
            (Phase::Suspended, None, None),
            (Phase::Stopped, None, Some(true)),
            (Phase::Failed, Some(false), Some(true)),
        ] {
            assert_eq!((is(runs, phase), is(has_ended, phase)), (running, exit));
            let before = vm(phase, 1);
            assert!(runs(&before).is_none() && has_ended(&before).is_none());
        }
    }

    #[test]
    fn a_vm_that_failed_says_why() {
        let failed = model::Vm {
            reason: "the guest's kernel panicked".into(),
            ..vm(Phase::Failed, 2)
        };
        let why = runs(&failed).unwrap().unwrap_err().to_string();
        assert!(why.contains("panicked"), "{why}");
    }
}
