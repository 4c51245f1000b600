//! Waiting until a VM is as somebody wants it. What is waited for is looked up in the replicated state, first as it is and then as it
//! changes: nothing that was so before is missed.

use std::{sync::Arc, time::Duration};

use proto::v1::{Vm, WaitFor, WaitVmRequest};
use raft::state::{self as model, Kind, Phase, Rejection, names};
use tokio::time::Instant;

use super::Api;
use crate::errors::ApiError;

/// The longest that somebody may wait: guests may work for days.
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whether a VM is as is wanted, or will never be; `None` while that is open.
type Met = fn(&model::Vm) -> Option<Result<(), ApiError>>;

impl Api {
    pub(super) async fn waited_for(
        &self,
        request: WaitVmRequest,
        deadline: Instant,
    ) -> Result<Vm, ApiError> {
        let met: Met = match request.until() {
            WaitFor::Running => runs,
            WaitFor::Exit => has_ended,
            WaitFor::Ready | WaitFor::Port => {
                let problem = "this agent cannot wait for what happens inside a guest";
                return Err(ApiError::Unsupported(problem.to_owned()));
            }
            WaitFor::Unspecified => {
                return Err(ApiError::InvalidField {
                    field: "until",
                    problem: "say what to wait for: running, ready, exit or port".to_owned(),
                });
            }
        };
        let id = names::vm(&*self.read(deadline).await?, &request.vm)?.id;
        let waited = self.node.wait_for(deadline, |state| {
            let Some(vm) = state.vms.get(&id) else {
                return Some(Err(ApiError::from(Rejection::NotFound {
                    kind: Kind::Vm,
                    name: request.vm.clone(),
                })));
            };
            Some(met(vm)?.map(|()| Arc::clone(state)))
        });
        match waited.await {
            // As it was then: what follows may have come already.
            Some(state) => self.message_of(&*state?, id).await,
            None => Err(ApiError::Pending {
                what: format!("the wait for VM {:?}", request.vm),
                operation: None,
            }),
        }
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
            ..model::Vm::new(VmId(1), "a".into(), 1, spec, Source::Image, 0)
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
