//! How a VM's process ended, from what QEMU, the kernel and the guest left behind. Pure: called by the VM's task.

use qapi::qmp::ShutdownCause;
use qemu::{machine::Ending, past::Cause};

/// What a kernel prints first when it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// Where in a console that is looked for: a panic prints its trace after it, and then nothing.
const LAST_BYTES: usize = 16 * 1024;
/// How much of what the guest says about it is passed on.
const WORDS: usize = 160;

/// What ended a process, and the same for people. `asked`: whether it was on its way to be stopped. `console`: what the guest
/// printed, to explain a panic; it decides nothing.
pub fn explain(ending: &Ending, asked: bool, console: &[u8]) -> (Cause, String) {
    let (cause, detail) = by_itself(ending, console);
    match (asked, cause) {
        (true, Cause::Poweroff) => (Cause::Stopped, "it was stopped".to_owned()),
        (true, _) => (Cause::Stopped, format!("it was stopped: {detail}")),
        (false, cause) => (cause, detail),
    }
}

fn by_itself(ending: &Ending, console: &[u8]) -> (Cause, String) {
    if let Some(killed) = ending.out_of_memory {
        return (Cause::OutOfMemory, killed.to_string());
    }
    match ending.cause {
        Some(ShutdownCause::guest_shutdown) => {
            (Cause::Poweroff, "the guest powered off".to_owned())
        }
        Some(ShutdownCause::guest_reset) => (Cause::Reboot, "the guest reset itself".to_owned()),
        Some(ShutdownCause::guest_panic) => {
            let said = panic_words(console).map_or_else(String::new, |words| format!(": {words}"));
            (Cause::Panic, format!("the guest's kernel panicked{said}"))
        }
        _ => {
            let log = match ending.log.as_str() {
                "" => String::new(),
                log => format!(": {log}"),
            };
            let detail = format!("QEMU ended unexpectedly ({}){log}", ending.exit);
            (Cause::Crash, detail)
        }
    }
}

/// What ends a boot that came to nothing: a guest that reset itself or powered off before it was up has not done as it should.
pub fn of_boot(cause: Cause) -> Cause {
    match cause {
        Cause::Reboot | Cause::Poweroff => Cause::BootFailed,
        other => other,
    }
}

/// What the guest's kernel said it panicked of. A guest can print anything: what comes out is short and printable.
fn panic_words(console: &[u8]) -> Option<String> {
    let last = &console[console.len().saturating_sub(LAST_BYTES)..];
    let at = last
        .windows(PANIC.len())
        .rposition(|window| window == PANIC)?;
    let line = &last[at + PANIC.len()..];
    let words: String = line
        .iter()
        .take_while(|byte| !b"\r\n".contains(byte))
        .filter(|byte| byte.is_ascii_graphic() || **byte == b' ')
        .take(WORDS)
        .map(|byte| char::from(*byte))
        .collect();
    Some(words).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use qemu::{oom, process::Exit};

    use super::*;

    fn ending(cause: Option<ShutdownCause>) -> Ending {
        Ending {
            exit: Exit::Signal(9),
            cause,
            log: "a warning".into(),
            out_of_memory: None,
        }
    }

    #[test]
    fn ends_are_told_apart() {
        let cause = |cause, asked| explain(&ending(cause), asked, b"").0;
        use ShutdownCause::*;
        assert_eq!(cause(Some(guest_shutdown), false), Cause::Poweroff);
        assert_eq!(cause(Some(guest_reset), false), Cause::Reboot);
        assert_eq!(cause(Some(guest_panic), false), Cause::Panic);
        assert_eq!(cause(Some(host_signal), false), Cause::Crash);
        assert_eq!(cause(None, false), Cause::Crash);
        for asked in [Some(guest_shutdown), Some(guest_reset), None] {
            assert_eq!(cause(asked, true), Cause::Stopped);
        }
        let killed = Ending {
            out_of_memory: Some(oom::Cause::Host),
            ..ending(None)
        };
        assert_eq!(explain(&killed, false, b"").0, Cause::OutOfMemory);
        let (_, detail) = explain(&ending(None), false, b"");
        assert!(detail.ends_with(": a warning"), "{detail}");
    }

    #[test]
    fn a_panic_is_explained_in_the_guests_words_and_no_more() {
        let words =
            |console: &[u8]| explain(&ending(Some(ShutdownCause::guest_panic)), false, console).1;
        assert_eq!(words(b""), "the guest's kernel panicked");
        let console = b"[1.0] Kernel panic - not syncing: old\r\n[2.0] Kernel panic - not syncing: sysrq\x1b[2J crash\r\nCPU: 0";
        assert_eq!(
            words(console),
            "the guest's kernel panicked: sysrq[2J crash"
        );
        let long = [PANIC, &[b'x'; 5_000]].concat();
        assert!(words(&long).len() < 200);
        let far = [PANIC, b"x\n", &[b'y'; LAST_BYTES]].concat();
        assert_eq!(words(&far), "the guest's kernel panicked");
    }
}
