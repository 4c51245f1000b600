//! `fpguest fork`, `exit`, `wait`, `get` and `identity`: what programs ask of the agent through its socket, for shells.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use base64::Engine as _;
use serde_json::Value;

use crate::{
    agent::{
        self,
        local::{Ask, SOCKET},
    },
    ports,
};

/// How long the agent is waited for that is not up yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for it.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks, and prints the answers.
///
/// # Errors
/// The agent is not there, or refuses.
pub fn run(ask: &Ask) -> io::Result<()> {
    if let Ask::Exit { .. } = ask {
        // What is not on the disk by then never will be.
        rustix::fs::sync();
    }
    let mut answers = send(ask)?;
    let mut failed = false;
    loop {
        let answer = next(&mut answers)?;
        if let Some(error) = answer["error"].as_str() {
            return Err(io::Error::other(error.to_owned()));
        }
        match ask {
            Ask::Wait { .. } => {
                if answer["done"] == true {
                    break;
                }
                failed |= answer["code"] != 0;
                print(&ended_line(&answer))?;
            }
            Ask::Watch => print(&answer.to_string())?,
            Ask::Fork { .. } => {
                print(&forked_lines(&answer))?;
                break;
            }
            Ask::Get { .. } => {
                io::stdout().write_all(&value(&answer)?)?;
                break;
            }
            Ask::Identity | Ask::Exit { .. } => {
                print(&answer.to_string())?;
                break;
            }
        }
    }
    if failed {
        return Err(io::Error::other("not all of them ended with 0"));
    }
    Ok(())
}

/// Waits until the host has said who this machine is, where there is one to say it.
///
/// # Errors
/// It has not within some seconds.
pub fn wait_until_known() -> io::Result<()> {
    if !agent::is_wanted() || !ports::have_device(Path::new(ports::DRIVER))? {
        return Ok(());
    }
    let begun = Instant::now();
    loop {
        let known = send(&Ask::Identity).and_then(|mut answers| next(&mut answers));
        if known.is_ok_and(|answer| answer["error"].is_null()) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(PAUSE);
    }
}

fn send(ask: &Ask) -> io::Result<BufReader<UnixStream>> {
    let mut stream = connect()?;
    let line = serde_json::to_string(ask)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    Ok(BufReader::new(stream))
}

fn connect() -> io::Result<UnixStream> {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(SOCKET) {
            Err(error)
                if begun.elapsed() < PATIENCE
                    && matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
            {
                std::thread::sleep(PAUSE);
            }
            other => {
                return other
                    .map_err(|error| io::Error::new(error.kind(), format!("{SOCKET}: {error}")));
            }
        }
    }
}

fn next(answers: &mut BufReader<UnixStream>) -> io::Result<Value> {
    let mut line = String::new();
    if answers.read_line(&mut line)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the agent went away",
        ));
    }
    Ok(serde_json::from_str(&line)?)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes())?;
    out.flush()
}

/// As fork(2) returns: 0 in a child, with its number, and in the parent the children's names.
fn forked_lines(answer: &Value) -> String {
    if answer["role"] == "child" {
        return format!("0 {}", answer["index"]);
    }
    let children = answer["children"].as_array();
    let line = |child: &Value| {
        let name = child["name"].as_str().unwrap_or_default();
        match child["error"].as_str().unwrap_or_default() {
            "" => name.to_owned(),
            error => format!("{name} {error}"),
        }
    };
    let lines: Vec<String> = children.into_iter().flatten().map(line).collect();
    lines.join("\n")
}

/// A child's name and its code, or how else it ended.
fn ended_line(answer: &Value) -> String {
    let name = match answer["name"].as_str().unwrap_or_default() {
        "" => answer["id"].as_str().unwrap_or_default(),
        name => name,
    };
    match answer["code"].as_i64() {
        Some(code) => format!("{name} {code}"),
        None => format!("{name} - {}", answer["how"].as_str().unwrap_or_default()),
    }
}

fn value(answer: &Value) -> io::Result<Vec<u8>> {
    if let Some(text) = answer["value"].as_str() {
        return Ok(text.as_bytes().to_vec());
    }
    let encoded = answer["base64"].as_str().unwrap_or_default();
    base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fork_returns_in_parent_and_child() {
        assert_eq!(forked_lines(&json!({"role": "child", "index": 2})), "0 2");
        let parent = json!({"role": "parent", "children": [
            {"name": "a-1", "error": ""}, {"name": "a-2", "error": "no memory"},
        ]});
        assert_eq!(forked_lines(&parent), "a-1\na-2 no memory");
    }

    #[test]
    fn a_childs_end_is_a_line() {
        assert_eq!(ended_line(&json!({"name": "a-1", "code": 3})), "a-1 3");
        let crashed = json!({"name": "", "id": "01A", "code": null, "how": "it crashed"});
        assert_eq!(ended_line(&crashed), "01A - it crashed");
    }

    #[test]
    fn values_are_given_as_they_are() {
        assert_eq!(value(&json!({"value": "x y"})).unwrap(), b"x y");
        assert_eq!(value(&json!({"base64": "AP8="})).unwrap(), [0, 255]);
    }
}
