//! What became of a VM's processes so far: how the last one ended, and how often the VM was started again since somebody
//! started it. Kept in the VM's record by whoever owns its machine; clocks come in as arguments.

use serde::{Deserialize, Serialize};

/// A guest that ran this long, milliseconds, ran well: what ends it after that is no repetition.
pub const RAN_WELL: u64 = 10 * 60 * 1000;

/// What ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Somebody asked for it.
    Stopped,
    /// Its guest powered off.
    Poweroff,
    /// Its guest reset itself. So does a triple fault, which looks the same.
    Reboot,
    /// Its guest's kernel panicked.
    Panic,
    /// QEMU ended by itself, or was killed.
    Crash,
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// Its guest did not come up, however often that was tried.
    BootFailed,
    /// It could not be started.
    StartFailed,
    /// Its host went down with it.
    HostLost,
    /// It was gone when the agent came back: nobody saw why.
    Unseen,
    /// Its guest ended it with an exit code.
    Exited,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// What ended it.
    pub cause: Cause,
    /// The same for people.
    pub detail: String,
    /// When that was seen, milliseconds since the epoch.
    pub at: u64,
    /// The exit code that its guest gave; with [`Cause::Exited`].
    #[serde(default)]
    pub exit_code: Option<i32>,
}

impl End {
    /// Whether it ended as somebody wanted, in the guest or outside: an exit with 0 is as a poweroff, any other is a failure.
    pub fn is_orderly(&self) -> bool {
        match self.cause {
            Cause::Stopped | Cause::Poweroff => true,
            Cause::Exited => self.exit_code == Some(0),
            Cause::Reboot
            | Cause::Panic
            | Cause::Crash
            | Cause::OutOfMemory
            | Cause::BootFailed
            | Cause::StartFailed
            | Cause::HostLost
            | Cause::Unseen => false,
        }
    }
}

/// What became of a VM's processes so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Past {
    /// How the last one ended.
    pub last: Option<End>,
    /// Which boot of the VM that was, and the counts are of: another one is begun by somebody's wish.
    pub boot: u64,
    /// How often it was started again in this boot.
    pub restarts: u32,
    /// How often since it last ran well.
    pub in_a_row: u32,
    /// Since when its guest runs, milliseconds since the epoch.
    pub running_since: Option<u64>,
}

impl Past {
    /// A process is to be started for a boot: again, if one of that boot ended.
    pub fn begin(&mut self, boot: u64) {
        if boot == self.boot {
            self.restarts = self.restarts.saturating_add(1);
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            (self.restarts, self.in_a_row) = (0, 0);
        }
        self.running_since = None;
    }

    /// A process of a boot ended.
    pub fn end(&mut self, boot: u64, end: End) {
        if boot != self.boot {
            (self.restarts, self.in_a_row) = (0, 0);
            self.boot = boot;
        }
        let since = self.running_since.take();
        if since.is_some_and(|since| end.at.saturating_sub(since) >= RAN_WELL) {
            self.in_a_row = 0;
        }
        self.last = Some(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(at: u64) -> End {
        End {
            cause: Cause::Crash,
            detail: String::new(),
            at,
            exit_code: None,
        }
    }

    #[test]
    fn what_is_started_again_is_counted_until_somebody_starts_it() {
        let mut past = Past::default();
        let counts = |past: &Past| (past.restarts, past.in_a_row);
        past.begin(1);
        past.end(1, end(5));
        assert_eq!(counts(&past), (0, 0));
        for again in 1..4 {
            past.begin(1);
            past.running_since = Some(10);
            past.end(1, end(20));
            assert_eq!(counts(&past), (again, again));
        }
        past.begin(1);
        past.running_since = Some(10);
        past.end(1, end(10 + RAN_WELL));
        assert_eq!(counts(&past), (4, 0), "it ran well");
        past.begin(1);
        assert_eq!(counts(&past), (5, 1));
        past.begin(2);
        assert_eq!(counts(&past), (0, 0), "somebody's wish");
    }

    #[test]
    fn a_fork_that_ended_is_started_again() {
        // Its first process is not begun as a boot is.
        let mut past = Past::default();
        past.end(1, end(5));
        past.begin(1);
        assert_eq!(past.restarts, 1);
    }

    #[test]
    fn a_record_without_a_past_is_read() {
        let past: Past = serde_json::from_str("{}").unwrap();
        assert_eq!(past, Past::default());
        // As it was written before guests had exit codes.
        let end: End = serde_json::from_str(r#"{"cause":"panic","detail":"","at":5}"#).unwrap();
        assert_eq!((end.cause, end.exit_code), (Cause::Panic, None));
    }

    #[test]
    fn an_exit_is_orderly_by_its_code() {
        let exited = |exit_code| End {
            cause: Cause::Exited,
            exit_code,
            ..end(0)
        };
        assert!(exited(Some(0)).is_orderly());
        for code in [Some(1), Some(-1), None] {
            assert!(!exited(code).is_orderly(), "{code:?}");
        }
        let text = serde_json::to_string(&exited(Some(3))).unwrap();
        assert_eq!(serde_json::from_str::<End>(&text).unwrap(), exited(Some(3)));
    }
}
