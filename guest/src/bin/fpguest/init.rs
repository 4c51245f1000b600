//! `fpguest init`: the first process of a guest that has no other init. Mounts, starts, reaps, ends the machine. Started by the
//! kernel under the name `init`, from the initrd or from the disk.
//!
//! It must never end: a guest without its first process panics, and its host takes that for a failure. So nothing here panics,
//! and what the kernel refuses is said in its log and lived with.

mod end;
mod mounts;
mod plan;
mod start;
mod sys;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use plan::{Next, Plan};
use sys::Signals;

use crate::agent;

/// Whether the program was started to be this: as `init`, or as `fpguest init`.
pub fn is_asked_for(mut words: impl Iterator<Item = OsString>) -> bool {
    let name = words.next().unwrap_or_default();
    Path::new(&name).file_name() == Some("init".as_ref())
        || words.next().is_some_and(|word| word == "init")
}

/// Runs until the machine ends.
pub fn run() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("fpguest init: this is the first process of a guest, not to be started in it");
        return ExitCode::FAILURE;
    }
    let signals = Signals::block();
    mounts::all();
    start::take_console();
    // The keyboard's ctrl-alt-del is a signal then, and no reset.
    start::or_tell("ctrl-alt-del", reboot(RebootCommand::CadOff));

    let begun = Instant::now();
    let mut plan = Plan::new(start::script(start::RC), agent::is_wanted());
    let ending = loop {
        reap(|pid| plan.ended(pid, begun.elapsed()));
        let pause = loop {
            match plan.next(begun.elapsed()) {
                Next::Start(service) => {
                    plan.started(service, start::service(service), begun.elapsed());
                }
                Next::Wait(pause) => break pause,
            }
        };
        if let Some(ending) = signals.wait(pause).and_then(plan::ending) {
            break ending;
        }
    };
    end::machine(ending, plan.shell(), &signals)
}

/// Takes leave of every process that has ended, the guest's orphans among them. Whether any is left.
fn reap(mut ended: impl FnMut(plan::Process)) -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((process, _))) => ended(process),
            Ok(None) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_asked_for;

    #[test]
    fn it_is_asked_for_by_its_name_or_by_a_word() {
        for (words, asked) in [
            (&["/sbin/init"][..], true),
            (&["init", "splash"], true),
            (&["/bin/fpguest", "init"], true),
            (&["/bin/fpguest", "pulse", "init"], false),
            (&["/bin/fpguest"], false),
            (&["/sbin/init/fpguest"], false),
            (&[], false),
        ] {
            let words = words.iter().map(|word| word.into());
            assert_eq!(is_asked_for(words), asked);
        }
    }
}
