//! `fpagent vm wait`.

use proto::v1::{EndCause, Vm, VmState, WaitVmRequest};

use crate::client::{
    Context,
    args::guest::{Wait, WaitArgs},
    failure::{Failure, FailureKind},
    progress::Progress,
    views::vm::VmView,
};

pub(crate) async fn run(context: &Context, args: WaitArgs) -> Result<(), Failure> {
    let progress = Progress::spinner(format!("waiting for {}", args.vm));
    let (until, port) = args.until.message();
    let request = WaitVmRequest {
        vm: args.vm,
        until: until.into(),
        port,
    };
    let reach = context.reach()?;
    let waited = reach.call(async |attempt| {
        attempt
            .vms()
            .wait_vm(attempt.request(request.clone()))
            .await
    });
    let vm = waited.await?;
    drop(progress);
    let ended = match args.until {
        Wait::Exit => as_it_ended(&vm),
        Wait::Running | Wait::Ready | Wait::Port(_) => Ok(()),
    };
    context.one(VmView::from(vm))?;
    ended
}

/// Ends as a VM did: with its guest's code, with 0, or as failed.
fn as_it_ended(vm: &Vm) -> Result<(), Failure> {
    let ending = vm.ending.as_ref();
    if let Some(code) = ending.and_then(|ending| ending.exit_code) {
        return match code {
            0 => Ok(()),
            code => Err(Failure::new(
                FailureKind::Guest(exit_code(code)),
                format!("{} exited with {code}", vm.name),
                "",
            )),
        };
    }
    let orderly = match ending.map(|ending| ending.cause()) {
        Some(EndCause::Stopped | EndCause::Poweroff) => true,
        Some(_) => false,
        // It never had a process that could end.
        None => vm.state() == VmState::Stopped,
    };
    if orderly {
        return Ok(());
    }
    let why = match (vm.reason.as_str(), ending) {
        ("", Some(ending)) => ending.detail.as_str(),
        (reason, _) => reason,
    };
    Err(Failure::refused(
        format!("{} failed: {why}", vm.name),
        "`fpagent logs` has what its guest printed",
    ))
}

/// A guest's code as a process can end with it: its lowest byte, as everywhere, but no failure is told as a success.
fn exit_code(code: i32) -> u8 {
    match code & 0xff {
        0 => 1,
        low => low as u8,
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::Ending;

    use super::*;

    #[test]
    fn it_ends_as_the_vm_did() {
        let code = |cause: Option<EndCause>, exit_code, state: VmState| {
            let vm = Vm {
                state: state.into(),
                ending: cause.map(|cause| Ending {
                    cause: cause.into(),
                    exit_code,
                    ..Ending::default()
                }),
                ..Vm::default()
            };
            as_it_ended(&vm).map_or_else(|failure| failure.kind.exit_code(), |()| 0)
        };
        let (stopped, failed) = (VmState::Stopped, VmState::Failed);
        assert_eq!(code(Some(EndCause::Exited), Some(0), stopped), 0);
        assert_eq!(code(Some(EndCause::Exited), Some(7), failed), 7);
        assert_eq!(code(Some(EndCause::Exited), Some(-1), failed), 255);
        assert_eq!(code(Some(EndCause::Exited), Some(256), failed), 1);
        assert_eq!(code(Some(EndCause::Poweroff), None, stopped), 0);
        // Its node is away: what is known of its end counts.
        assert_eq!(code(Some(EndCause::Stopped), None, VmState::Unknown), 0);
        assert_eq!(code(Some(EndCause::Panic), None, VmState::Unknown), 1);
        assert_eq!(code(None, None, stopped), 0);
        assert_eq!(code(None, None, failed), 1);
    }
}
