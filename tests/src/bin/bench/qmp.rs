//! QMP spoken by hand, as a program without us would.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
};

use anyhow::Context as _;
use serde_json::{Value, json};

/// A session with a QEMU.
pub struct Session {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Session {
    /// Reads the greeting and answers it.
    pub fn begin(stream: UnixStream) -> anyhow::Result<Self> {
        let mut session = Self {
            input: BufReader::new(stream.try_clone()?),
            output: stream,
        };
        session.line()?;
        session.ask("qmp_capabilities", json!({}))?;
        Ok(session)
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.input.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("QMP: {line:?}"))
    }

    /// A command's answer. Events that come before it are passed over.
    pub fn ask(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        writeln!(
            self.output,
            "{}",
            json!({"execute": command, "arguments": arguments})
        )?;
        loop {
            let mut answer = self.line()?;
            anyhow::ensure!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }
}
