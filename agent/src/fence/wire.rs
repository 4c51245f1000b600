//! What an agent and its watchdog say to each other: a line of JSON each. The agent asks, the watchdog answers each in turn.

use std::{collections::BTreeMap, io};

use qemu::process::ProcessId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// To the watchdog.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Order {
    /// Let those that are watched run until this moment: nanoseconds of `CLOCK_BOOTTIME`. One that is earlier than another before it says
    /// nothing.
    Until { at: u64 },
    /// Watch a VM's process, which runs or is about to. Refused when the moment has passed until which whoever says so knows that it may: then it is
    /// stopped.
    Watch {
        vm: String,
        process: ProcessId,
        known_until: u64,
    },
    /// Let a VM be.
    Forget { vm: String },
    /// Let one go on that was stopped. Refused in the same way.
    GoOn { vm: String, known_until: u64 },
    /// End one that was stopped: it lives elsewhere.
    End { vm: String },
}

/// To the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Why it was not done; empty when it was.
    pub problem: String,
    /// The VMs that are watched, and whether each was stopped.
    pub vms: BTreeMap<String, bool>,
}

/// A message as it came.
pub fn read<T: DeserializeOwned>(line: &str) -> io::Result<T> {
    serde_json::from_str(line).map_err(io::Error::from)
}
