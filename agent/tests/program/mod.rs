//! The program `fpagent`, as scripts call it.

use std::process::Output;

use serde_json::Value;
use tokio::process::Command;

/// What a call of the program came to.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// What was printed, as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

/// The program with these arguments, and nothing of the test's environment.
pub fn command(address: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fpagent"));
    command
        .env_clear()
        .env("FPAGENT_ADDR", address)
        .args(args)
        .kill_on_drop(true);
    command
}

/// Runs the program.
pub async fn fpagent(address: &str, args: &[&str]) -> Ran {
    command(address, args).output().await.unwrap().into()
}
